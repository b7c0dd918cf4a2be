//! `fuzz`: runs the targets, each in a process of its own with bounds on its memory and on the time for one input. What
//! fails is saved below `target/fuzz` and named, with what runs it again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use castor_fuzz::{Session, Target, all, by_name};
use castor_oci::Digest;
use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};

/// Address space of a target's process: a table of contents may have 150 MiB, and growing vectors twice their size.
const MEMORY: u64 = 2 << 30;
/// The longest that one input may take, on a slow machine with checks compiled in.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Options {
    /// Seconds for each target
    #[arg(long, env = "FUZZ_SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Number that determines the run; another each time by default
    #[arg(long, env = "FUZZ_SEED")]
    seed: Option<u64>,
    /// Only this target
    #[arg(long, env = "FUZZ_TARGET", value_parser = target)]
    target: Option<Target>,
    /// Where inputs that fail are saved
    #[arg(long, default_value = "target/fuzz")]
    failures: PathBuf,
    /// Be the process of a target; the file gets each input before it is run
    #[arg(long, hide = true)]
    worker: Option<PathBuf>,
    /// Inputs to run once, of the target
    inputs: Vec<PathBuf>,
}

fn target(name: &str) -> Result<Target, String> {
    let names = || all().map(|target| target.name).join(", ");
    by_name(name).ok_or_else(|| format!("want one of {}", names()))
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    match (&options.worker, options.target) {
        (Some(current), Some(target)) => work(&options, target, current),
        (None, None) if !options.inputs.is_empty() => bail!("name the target of the inputs: --target"),
        (None, Some(target)) if !options.inputs.is_empty() => {
            for path in &options.inputs {
                let input = fs::read(path).with_context(|| format!("read {}", path.display()))?;
                println!("{}: {} outcome {:x}", target.name, path.display(), target.run(&input));
            }
            Ok(ExitCode::SUCCESS)
        }
        _ => supervise(&options),
    }
}

/// Runs each target in a process and saves what it was at when it died.
fn supervise(options: &Options) -> Result<ExitCode> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = options.seed.unwrap_or(clock);
    let mut failed = false;
    for target in all() {
        if options.target.is_some_and(|only| only.name != target.name) {
            continue;
        }
        let current = tempfile::NamedTempFile::new().context("make a file for inputs")?;
        let status = Command::new(std::env::current_exe()?)
            .args(["--seconds", &options.seconds.to_string(), "--seed", &seed.to_string()])
            .args(["--target", target.name, "--worker"])
            .arg(current.path())
            .stdin(Stdio::null())
            .status()
            .context("run the target")?;
        if status.success() {
            continue;
        }
        failed = true;
        let how = match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("{status}"),
        };
        let saved = save(target, current.path(), &options.failures)?;
        eprintln!("fuzz: {} failed ({how}) with seed {seed}; the input is {}", target.name, saved.display());
        eprintln!("fuzz: again: cargo run -p castor-fuzz -- --target {} {}", target.name, saved.display());
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn save(target: Target, current: &Path, to: &Path) -> Result<PathBuf> {
    let input = fs::read(current).context("read the input that failed")?;
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let path = to.join(format!("{}-{}", target.name, &Digest::of(&input).hex()[..16]));
    fs::write(&path, input).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The process of a target: ends by a panic, by the bound on memory, or by the watch when an input takes too long.
fn work(options: &Options, target: Target, current: &Path) -> Result<ExitCode> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).context("bound the memory")?;
    let file = File::options().write(true).open(current).with_context(|| format!("open {}", current.display()))?;
    let (beat, watch) = mpsc::sync_channel::<()>(1);
    let name = target.name;
    std::thread::spawn(move || {
        loop {
            match watch.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("fuzz: {name}: an input takes longer than {PATIENCE:?}");
                    std::process::abort();
                }
            }
        }
    });
    let mut inputs = 0u64;
    let mut before = |input: &[u8]| {
        inputs += 1;
        let _ = beat.try_send(());
        let written = file.write_all_at(input, 0).and_then(|()| file.set_len(input.len() as u64));
        assert!(written.is_ok(), "keep the input: {written:?}");
    };
    let begun = Instant::now();
    let mut session = Session::new(target, options.seed.unwrap_or(0), &mut before);
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        session.step(&mut before);
    }
    let outcomes = session.outcomes();
    let seed = options.seed.unwrap_or(0);
    println!("fuzz: {name}: {inputs} inputs, {outcomes} kinds of outcomes, seed {seed}: no failure");
    Ok(ExitCode::SUCCESS)
}
