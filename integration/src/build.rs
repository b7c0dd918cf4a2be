//! A build's command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Daemon, Outcome};
use crate::programs;
use crate::project::Project;

/// A build to be run against a daemon with a client's `build` command.
#[derive(Debug, Clone)]
pub struct Build {
    client: Option<PathBuf>,
    address: String,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Build {
    /// The Dockerfile build of `project` on `daemon`, with plain progress.
    pub fn new(daemon: &Daemon, project: &Project) -> Self {
        Self::at(daemon, project.path(), project.path())
    }

    /// A build whose Dockerfile is in another directory than its context.
    pub fn at(daemon: &Daemon, context: &Path, dockerfile: &Path) -> Self {
        let local = |name: &str, path: &Path| {
            let mut text = OsString::from(format!("{name}="));
            text.push(path);
            text
        };
        let mut build =
            Self { client: None, address: daemon.address().to_owned(), arguments: Vec::new(), environment: Vec::new() };
        build
            .arguments
            .extend(["build", "--progress=plain", "--frontend=dockerfile.v0", "--local"].map(OsString::from));
        build.arguments.push(local("context", context));
        build.arguments.push("--local".into());
        build.arguments.push(local("dockerfile", dockerfile));
        build
    }

    /// Uses this client in place of ours.
    #[must_use]
    pub fn client(mut self, program: &Path) -> Self {
        self.client = Some(program.to_owned());
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds `--opt`.
    #[must_use]
    pub fn opt(self, key: &str, value: &str) -> Self {
        self.arg("--opt").arg(format!("{key}={value}"))
    }

    /// Adds `--output`.
    #[must_use]
    pub fn output(self, output: impl Into<String>) -> Self {
        self.arg("--output").arg(output.into())
    }

    /// Writes the result's files into `directory`.
    #[must_use]
    pub fn local_output(self, directory: &Path) -> Self {
        self.output(format!("type=local,dest={}", directory.display()))
    }

    /// Sets a variable of the client's environment.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    fn command(&self) -> Result<Command> {
        let program = match &self.client {
            Some(program) => program.clone(),
            None => programs::ours("buildctl")?,
        };
        let mut command = Command::new(program);
        command
            .args(["--addr", &self.address])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it to its end.
    pub fn run(&self) -> Result<Outcome> {
        let mut command = self.command()?;
        let output = command.output().with_context(|| format!("run {command:?}"))?;
        Ok(Outcome::of(&output))
    }

    /// Starts it, and collects what it prints.
    pub fn start(&self) -> Result<Running> {
        let child = self.spawn()?;
        let pid = Pid::from_raw(child.id().try_into()?);
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        Ok(Running { pid, ended })
    }

    /// Starts it; the caller waits for it, or kills it.
    pub fn spawn(&self) -> Result<Child> {
        let mut command = self.command()?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("start {command:?}"))
    }
}

/// A client's build under way, its output collected.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    ended: mpsc::Receiver<std::io::Result<std::process::Output>>,
}

impl Running {
    /// Waits for its end. One that takes longer hangs: it is killed, and that is an error.
    pub fn wait(self, patience: Duration) -> Result<Outcome> {
        match self.ended.recv_timeout(patience) {
            Ok(output) => Ok(Outcome::of(&output?)),
            Err(_) => {
                kill(self.pid, Signal::SIGKILL)?;
                let output = Outcome::of(&self.ended.recv()??);
                bail!("the build did not end within {patience:?}:\n{}{}", output.stdout, output.stderr)
            }
        }
    }

    /// Cancels it as a user does.
    pub fn cancel(&self) -> Result<()> {
        // It may have ended.
        let _ = kill(self.pid, Signal::SIGINT);
        Ok(())
    }
}
