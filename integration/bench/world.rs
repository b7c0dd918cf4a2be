//! What is measured in: registry, images, link, daemons.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use castor_integration::build::Build;
use castor_integration::daemon::{Daemon, Options};
use castor_integration::hello;
use castor_integration::project::Project;
use castor_integration::scene::{self, STARGZ};
use castor_testkit::{File, Form, ImageBuilder, RealRegistry, Registry, Relay, RelayOptions};

use crate::Arguments;
use crate::floor::Floor;
use crate::report::{Sample, Who, mega};

/// 200 Mbit/s.
const BANDWIDTH: u64 = 25_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// The base as one eStargz layer, as three, and as one plain gzip layer.
pub const ONE: &str = "go-base:1";
pub const THREE: &str = "go-base:3";
pub const GZIP: &str = "go-base:gzip";

/// The image of many layers: so many, with so many files each.
const LAYERS: usize = 40;
const FILES: usize = 10_000;

pub struct World {
    runtime: tokio::runtime::Runtime,
    registry: RealRegistry,
    pub floor: Floor,
    facts: hello::ImageFacts,
    real: Option<(PathBuf, PathBuf)>,
    trace: bool,
    /// The most memory of our daemons, by what they did.
    memory: BTreeMap<&'static str, u64>,
    hot: Option<Running>,
    many: Option<(Registry, String)>,
    daemons: usize,
    // Dropped last.
    place: tempfile::TempDir,
}

/// A daemon on a state directory of its own.
pub struct Running {
    pub daemon: Daemon,
    who: Who,
    name: String,
}

impl World {
    pub fn new(arguments: &Arguments) -> Result<Self> {
        let place = scene::place("bench-")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let registry = RealRegistry::start();
        let root = hello::root_filesystem()?;
        let maker = scene::plain_hosts(Options::new(place.path().join("maker")), [registry.host()]).start()?;
        hello::push_base(&maker, &root, place.path(), &format!("{}/{ONE}", registry.host()))?;
        hello::push_base_in_three(&maker, &root, place.path(), &format!("{}/{THREE}", registry.host()))?;
        hello::push_base_as_gzip(&maker, &root, place.path(), &format!("{}/{GZIP}", registry.host()))?;
        maker.stop()?;
        std::fs::remove_dir_all(place.path().join("maker")).context("remove the maker's state")?;
        let facts = hello::facts(registry.host(), "go-base", "1")?;
        let floor = Floor::new(&root, place.path().join("floor"))?;
        Ok(Self {
            runtime,
            registry,
            floor,
            facts,
            real: arguments.buildctl.clone().zip(arguments.buildkitd.clone()),
            trace: arguments.trace,
            memory: BTreeMap::new(),
            hot: None,
            many: None,
            daemons: 0,
            place,
        })
    }

    /// What the numbers are of.
    pub fn describe(&self, runs: usize) -> String {
        format!(
            "Image: {:.1} MB compressed, {:.1} MB uncompressed, in one layer unless the row says otherwise. Far: {} Mbit/s, \
             round trip {ROUND_TRIP:?}. Medians of {runs}.",
            mega(self.facts.compressed),
            mega(self.facts.uncompressed),
            BANDWIDTH * 8 / 1_000_000
        )
    }

    /// Who builds: ours, and the real daemon where it was named.
    pub fn builders(&self) -> Vec<Who> {
        let mut builders = vec![Who::Lazy, Who::Eager];
        if self.real.is_some() {
            builders.extend([Who::RealLazy, Who::RealEager]);
        }
        builders
    }

    /// A relay of its own for each run: its address is part of the image's name, which no daemon has seen.
    pub fn far(&self) -> Relay {
        let options = RelayOptions { round_trip: ROUND_TRIP, bandwidth: Some(BANDWIDTH) };
        self.runtime.block_on(Relay::start(self.registry.addr(), options))
    }

    /// The registry itself.
    pub fn near(&self) -> String {
        self.registry.host().to_owned()
    }

    /// The image of many layers, made when it is first asked for; it stands in a registry of this process.
    pub fn many(&mut self) -> (String, String) {
        let (registry, name) = self.many.get_or_insert_with(|| {
            let registry = self.runtime.block_on(Registry::start());
            let busybox = scene::busybox().unwrap_or_default();
            let mut image = ImageBuilder::new().env("PATH=/bin").layer(&busybox, Form::Estargz);
            for layer in 1..LAYERS {
                let files: Vec<File> = (0..FILES)
                    .map(|file| File::new(&format!("many/{layer}/{}/{file}", file / 100), format!("{layer} {file}\n")))
                    .collect();
                image = image.layer(&files, Form::Estargz);
            }
            let name = image.build().put(&registry, "many:1").to_string();
            (registry, name)
        });
        (registry.host(), name.clone())
    }

    /// A daemon that has nothing, and may speak plain HTTP to `host`.
    pub fn fresh(&mut self, who: Who, host: &str) -> Result<Running> {
        self.daemons += 1;
        let name = format!("{}-{}", who.name().replace(", ", "-").to_lowercase(), self.daemons);
        let mut options = scene::plain_hosts(Options::new(self.place.path().join(&name)), [host]);
        let snapshotter = match who {
            Who::Lazy | Who::RealLazy | Who::Floor => STARGZ,
            Who::Eager | Who::RealEager => "--oci-worker-snapshotter=overlayfs",
        };
        options = options.arg(snapshotter);
        match &self.real {
            Some((_, daemon)) if matches!(who, Who::RealLazy | Who::RealEager) => options = options.program(daemon),
            _ if self.trace => options = options.arg("--log-level=trace"),
            _ => {}
        }
        Ok(Running { daemon: options.start()?, who, name })
    }

    /// A build of `dockerfile` on `running`, with `main.go` beside it.
    pub fn build(&self, running: &Running, dockerfile: &str) -> Result<Build> {
        let project = Project::new(self.place.path().join("project"), dockerfile)?.file("main.go", hello::PROGRAM)?;
        let build = Build::new(&running.daemon, &project);
        Ok(match (&self.real, running.who) {
            (Some((client, _)), Who::RealLazy | Who::RealEager) => build.client(client),
            (_, Who::Lazy) => build.opt("lazy", "require"),
            _ => build,
        })
    }

    /// Runs a build and takes its wall time, and what went through `relay` meanwhile.
    pub fn timed(&self, who: Who, build: &Build, relay: Option<&Relay>) -> Result<Sample> {
        if let Some(relay) = relay {
            relay.reset();
        }
        let begun = Instant::now();
        build.run()?.success()?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Sample { who, seconds, traffic: relay.map(|relay| (relay.bytes_down(), relay.requests())) })
    }

    /// Runs `script` as a step, never cached, on a daemon on which all of the base is here and was read; the same daemon for
    /// all rows. Says what was printed.
    pub fn on_hot(&mut self, script: &str) -> Result<String> {
        let host = self.near();
        let running = match self.hot.take() {
            Some(running) => running,
            None => {
                let running = self.fresh(Who::Floor, &host)?;
                let all = format!("FROM {host}/{ONE}\nRUN {}\n", crate::rows::READ_ALL);
                self.build(&running, &all)?.run()?.success()?;
                running
            }
        };
        let built =
            self.build(&running, &format!("FROM {host}/{ONE}\nRUN {script}\n"))?.arg("--no-cache").run()?.success();
        self.hot = Some(running);
        Ok(built?.stderr)
    }

    /// Ends a daemon and removes its state; what it took counts as `doing`'s.
    pub fn end(&mut self, running: Running, doing: &'static str) -> Result<()> {
        if !matches!(running.who, Who::RealLazy | Who::RealEager) {
            let most = self.memory.entry(doing).or_default();
            *most = high_water_mark(&running.daemon)?.max(*most);
        }
        running.daemon.stop()?;
        let state = self.place.path().join(&running.name);
        if self.trace {
            std::fs::copy(state.join("buildkitd.log"), format!("bench-{}.log", running.name)).context("keep a log")?;
        }
        std::fs::remove_dir_all(state).context("remove the daemon's state")
    }

    /// The most memory that daemons of ours took, by what they did.
    pub fn memory(&mut self) -> Result<BTreeMap<&'static str, u64>> {
        if let Some(hot) = self.hot.take() {
            self.end(hot, crate::rows::USUAL)?;
        }
        Ok(self.memory.clone())
    }
}

/// `VmHWM` of a daemon, in bytes.
fn high_water_mark(daemon: &Daemon) -> Result<u64> {
    let pid = daemon.pid().context("the daemon has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the daemon's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM: {line}"))?;
    Ok(kib << 10)
}
