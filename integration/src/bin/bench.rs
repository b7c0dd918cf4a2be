//! `make bench`: how long the hello build takes where the registry is far away. Arguments: the number of runs, `--show`
//! for the progress of each, and `--trace` for what the daemons fetched and when, in files named `bench-*.log`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use castor_integration::build::Build;
use castor_integration::daemon::{Daemon, Options};
use castor_integration::hello;
use castor_integration::project::Project;
use castor_integration::scene::{self, STARGZ};
use castor_testkit::{RealRegistry, Relay, RelayOptions};

const NAME: &str = "go-base";
/// Runs of each row, unless the argument says otherwise; odd, so that one of them is in the middle.
const RUNS: usize = 5;
/// 200 Mbit/s.
const BANDWIDTH: u64 = 25_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// One build: time, and what went through the relay.
#[derive(Debug, Clone, Copy)]
struct Run {
    time: Duration,
    bytes: u64,
    requests: u64,
}

struct Bench {
    place: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    registry: RealRegistry,
    show: bool,
    trace: bool,
}

fn main() -> Result<()> {
    let runs: usize = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(RUNS);
    let bench = Bench::new()?;
    let image = hello::facts(bench.registry.host(), NAME, "1")?;
    println!("image: {:.1} MB compressed, {:.1} MB uncompressed", mega(image.compressed), mega(image.uncompressed));
    println!("link: {} Mbit/s, round trip {ROUND_TRIP:?}; medians of {runs}\n", BANDWIDTH * 8 / 1_000_000);

    let mut lazy = Vec::new();
    let mut local = Vec::new();
    let mut eager = Vec::new();
    for run in 0..runs {
        // Interleaved, so that a slow minute of the machine is in all rows.
        let (cold, hot) = bench.lazy(run)?;
        lazy.push(cold);
        local.push(hot);
        eager.push(bench.eager(run)?);
        let times = [cold, hot, eager[run]].map(|run| run.time.as_secs_f64());
        let (run, [cold, hot, eager]) = (run + 1, times);
        eprintln!("run {run} of {runs}: lazy {cold:.1} s, everything local {hot:.1} s, eager {eager:.1} s");
    }
    let local = median(&local);
    println!("| hello build                    | time    | over local | fetched  | requests |");
    println!("|--------------------------------|---------|------------|----------|----------|");
    for (name, run) in
        [("lazy, cold", median(&lazy)), ("eager, cold", median(&eager)), ("everything local, `--no-cache`", local)]
    {
        println!(
            "| {name:<30} | {:>5.2} s | {:>+8.2} s | {:>5.1} MB | {:>8} |",
            run.time.as_secs_f64(),
            run.time.as_secs_f64() - local.time.as_secs_f64(),
            mega(run.bytes),
            run.requests
        );
    }
    Ok(())
}

impl Bench {
    /// A registry with the base image.
    fn new() -> Result<Self> {
        let place = scene::place("bench-")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let registry = RealRegistry::start();
        let root = hello::root_filesystem()?;
        let maker = scene::plain_hosts(Options::new(place.path().join("maker")), [registry.host()]).start()?;
        hello::push_base(&maker, &root, place.path(), &format!("{}/{NAME}:1", registry.host()))?;
        maker.stop()?;
        std::fs::remove_dir_all(place.path().join("maker")).context("remove the maker's state")?;
        let has = |flag: &str| std::env::args().any(|argument| argument == flag);
        Ok(Self { place, runtime, registry, show: has("--show"), trace: has("--trace") })
    }

    /// A relay of its own for each run: its address is the image's name, which no daemon has seen.
    fn relay(&self) -> Relay {
        let options = RelayOptions { round_trip: ROUND_TRIP, bandwidth: Some(BANDWIDTH) };
        self.runtime.block_on(Relay::start(self.registry.addr(), options))
    }

    /// A cold lazy build, and one more on the same daemon once all layers are here.
    fn lazy(&self, run: usize) -> Result<(Run, Run)> {
        let relay = self.relay();
        let (daemon, project) = self.fresh(&format!("lazy-{run}"), &relay, &[STARGZ])?;
        let cold = self.timed(&relay, &Build::new(&daemon, &project).opt("lazy", "require"))?;
        // Reading everything once brings everything.
        let host = relay.host();
        let all = Project::new(
            self.place.path().join("all"),
            &format!("FROM {host}/{NAME}:1\nRUN find / -xdev -type f -exec cat {{}} + > /dev/null\n"),
        )?;
        Build::new(&daemon, &all).run()?.success()?;
        let hot = self.timed(&relay, &Build::new(&daemon, &project).arg("--no-cache"))?;
        self.end(daemon, &format!("lazy-{run}"))?;
        Ok((cold, hot))
    }

    fn eager(&self, run: usize) -> Result<Run> {
        let relay = self.relay();
        let name = format!("eager-{run}");
        let (daemon, project) = self.fresh(&name, &relay, &["--oci-worker-snapshotter=overlayfs"])?;
        let cold = self.timed(&relay, &Build::new(&daemon, &project))?;
        self.end(daemon, &name)?;
        Ok(cold)
    }

    fn fresh(&self, name: &str, relay: &Relay, arguments: &[&str]) -> Result<(Daemon, Project)> {
        let host = relay.host();
        let options = scene::plain_hosts(Options::new(self.place.path().join(name)), [host.as_str()]);
        let trace = self.trace.then_some("--log-level=trace");
        let options = arguments.iter().copied().chain(trace).fold(options, Options::arg);
        let project = hello::project(&self.place.path().join("hello"), &format!("{host}/{NAME}:1"))?;
        Ok((options.start()?, project))
    }

    fn timed(&self, relay: &Relay, build: &Build) -> Result<Run> {
        let out = self.place.path().join("out");
        relay.reset();
        let begun = Instant::now();
        let built = build.clone().local_output(&out).run()?.success()?;
        let run = Run { time: begun.elapsed(), bytes: relay.bytes_down(), requests: relay.requests() };
        if self.show {
            eprintln!("{}", built.stderr);
        }
        hello::greet(&out)?;
        std::fs::remove_dir_all(&out).context("remove the output")?;
        Ok(run)
    }

    fn end(&self, daemon: Daemon, name: &str) -> Result<()> {
        daemon.stop()?;
        let state = self.place.path().join(name);
        if self.trace {
            std::fs::copy(state.join("buildkitd.log"), format!("bench-{name}.log")).context("keep the daemon's log")?;
        }
        std::fs::remove_dir_all(state).context("remove the daemon's state")
    }
}

fn median(runs: &[Run]) -> Run {
    let mut sorted = runs.to_vec();
    sorted.sort_by_key(|run| run.time);
    sorted[sorted.len() / 2]
}

#[allow(clippy::cast_precision_loss)]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
