//! A daemon of our own, on its own state directory and socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs;

/// What a daemon says once it can be called.
const READY: &str = "running server";

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running daemon; stopped when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    /// The original ends with an error when it is asked to stop.
    is_ours: bool,
    address: String,
    log: PathBuf,
}

/// How to start a daemon.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program; ours when `None`.
    pub program: Option<PathBuf>,
    /// State, socket and log live here; it may be used again after a stop.
    pub directory: PathBuf,
    /// More arguments.
    pub arguments: Vec<String>,
    /// The configuration file's text.
    pub config: String,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// A daemon of ours in `directory` with default settings.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            program: None,
            directory: directory.into(),
            arguments: Vec::new(),
            config: String::new(),
            environment: Vec::new(),
        }
    }

    /// The same with a variable in its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    /// The same with another program than ours.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// The same with one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The same with this text added to the configuration file.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Starts it and waits until it can be called.
    pub fn start(&self) -> Result<Daemon> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => programs::ours("buildkitd")?,
        };
        std::fs::create_dir_all(&self.directory)?;
        let config = self.directory.join("buildkitd.toml");
        std::fs::write(&config, &self.config)?;
        let socket = self.directory.join("buildkitd.sock");
        let address = format!("unix://{}", socket.display());
        let log = self.directory.join("buildkitd.log");
        let mut child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(self.directory.join("state"))
            .args(["--addr", &address])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stderr = child.stderr.take().context("the daemon has no standard error")?;
        let file = File::options().create(true).append(true).open(&log)?;
        let ready = follow(stderr, file);
        let daemon = Daemon { child: Some(child), is_ours: self.program.is_none(), address, log };
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(daemon),
            Err(_) => bail!("{} did not start:\n{}", program.display(), daemon.log()),
        }
    }
}

/// Copies the daemon's log to `file`; the channel speaks when the daemon is ready and closes when it has ended.
fn follow(stderr: impl std::io::Read + Send + 'static, mut file: File) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line);
            // The log is for people: losing it must not stop the daemon's pipe from being read.
            let _ = writeln!(file, "{text}");
            if text.contains(READY) {
                let _ = sender.send(());
            }
        }
    });
    receiver
}

/// Waits for the end of `child`; if it takes too long, `end` is called and must bring it about.
fn wait_within(
    child: &mut Child,
    patience: Duration,
    end: impl FnOnce() -> Result<()>,
) -> Result<(std::process::ExitStatus, bool)> {
    let (sender, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let status = child.wait();
            let _ = sender.send(());
            status
        });
        let late = ended.recv_timeout(patience).is_err();
        if late {
            end()?;
        }
        let status = waiter.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
        Ok((status, late))
    })
}

impl Daemon {
    /// Where clients call it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it has logged so far, over all its lives in this directory.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it as a power cut would: no handler runs. Waits for its end.
    pub fn kill(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until it ends by itself, which it was started to do by a signal.
    pub fn crash(mut self, patience: Duration) -> Result<()> {
        let mut child = self.child.take().context("the daemon is not running")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let (status, late) = wait_within(&mut child, patience, || kill(pid, Signal::SIGKILL).map_err(Into::into))?;
        if late {
            bail!("the daemon did not crash within {patience:?}:\n{}", self.log());
        }
        if status.code().is_some() {
            bail!("the daemon ended with {status} and did not crash:\n{}", self.log());
        }
        Ok(())
    }

    /// Asks it to stop and waits for its end; an error if it must be killed or fails.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = Pid::from_raw(child.id().try_into()?);
        kill(pid, Signal::SIGTERM)?;
        let (status, late) = wait_within(&mut child, PATIENCE, || kill(pid, Signal::SIGKILL).map_err(Into::into))?;
        if late {
            bail!("the daemon did not stop within {PATIENCE:?}:\n{}", self.log());
        }
        if self.is_ours && !status.success() {
            bail!("the daemon stopped with {status}:\n{}", self.log());
        }
        Ok(())
    }

    /// Runs our `buildctl` against it and returns its standard output and error, and whether it succeeded.
    pub fn buildctl<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Outcome> {
        self.client(&programs::ours("buildctl")?, arguments)
    }

    /// Runs the client `program` against it.
    pub fn client<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Outcome> {
        let output = Command::new(program)
            .args(["--addr", &self.address])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        Ok(Outcome::of(&output))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("stop the daemon: {error:#}");
        }
    }
}

/// How a client ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Outcome {
    /// How a program ended that was run to its end.
    pub fn of(output: &std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Itself, or an error with what it printed if it failed.
    pub fn success(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        bail!("exit code {:?}:\n{}{}", self.code, self.stdout, self.stderr)
    }

    /// What it printed on standard error, or an error if it succeeded.
    pub fn failure(self) -> Result<String> {
        match self.code {
            Some(0) | None => {
                bail!("exit code {:?}, which is not a failure:\n{}{}", self.code, self.stdout, self.stderr)
            }
            Some(_) => Ok(self.stderr),
        }
    }
}
