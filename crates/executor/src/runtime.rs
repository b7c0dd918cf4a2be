//! The OCI runtime as a program: which one, its commands, how it is started.

#![allow(unsafe_code)] // The death signal and the mounts of a child can only be set between fork and exec.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::cgroup;
use crate::error::ExecError;

/// How long a command that should be quick may take.
const QUICK: Duration = Duration::from_secs(20);

/// Names that are tried if none is configured.
const CANDIDATES: [&str; 2] = ["buildkit-runc", "runc"];

/// Which program it is; they differ in their options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// runc, and whatever takes its options.
    Runc,
    /// crun.
    Crun,
}

/// The runtime and where it keeps its state.
#[derive(Debug)]
pub struct Runtime {
    binary: PathBuf,
    flavour: Flavour,
    state: PathBuf,
    spawner: Spawner,
}

impl Runtime {
    /// Finds the runtime; `state` is an existing directory.
    pub fn find(binary: Option<&Path>, state: PathBuf) -> Result<Self, ExecError> {
        let not_found = |name: &Path| ExecError::Spawn {
            binary: name.to_path_buf(),
            source: io::Error::new(io::ErrorKind::NotFound, "not found in PATH"),
        };
        let binary = match binary {
            Some(name) => look_up(name).ok_or_else(|| not_found(name))?,
            None => CANDIDATES
                .iter()
                .find_map(|name| look_up(Path::new(name)))
                .ok_or_else(|| not_found(Path::new(CANDIDATES[1])))?,
        };
        let version = std::process::Command::new(&binary)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ExecError::Spawn { binary: binary.clone(), source })?;
        let crun = String::from_utf8_lossy(&version.stdout).starts_with("crun");
        let flavour = if crun { Flavour::Crun } else { Flavour::Runc };
        let hide_unified = flavour == Flavour::Crun && cgroup::unified_has_controllers();
        let spawner =
            Spawner::start(hide_unified).map_err(|source| ExecError::Spawn { binary: binary.clone(), source })?;
        Ok(Self { binary, flavour, state, spawner })
    }

    /// The program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where it keeps its state: a directory per container.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A command with the runtime's global options; its log goes to `log`, so that what it prints is the process's.
    fn command(&self, log: Option<&Path>) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.state);
        // What is between the daemon and its service manager is not the container's.
        for variable in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        command
    }

    /// `run`: creates, starts and waits for a container.
    pub fn run(&self, id: &str, bundle: &Path) -> Command {
        let mut command = self.command(Some(&bundle.join("log.json")));
        command.arg("run").arg("--bundle").arg(bundle).arg("--pid-file").arg(bundle.join("pid"));
        if self.flavour == Flavour::Runc {
            // Its cgroup stays until `delete`, and tells whether memory was short.
            command.arg("--keep");
        }
        command.arg(id);
        command
    }

    /// `exec`: one more process in a container.
    pub fn exec(&self, id: &str, process: &Path, pid_file: &Path, log: &Path) -> Command {
        let mut command = self.command(Some(log));
        command.arg("exec").arg("--process").arg(process).arg("--pid-file").arg(pid_file).arg(id);
        command
    }

    /// Starts a command; it dies with the daemon. Blocks for as long as starting a program takes.
    pub async fn spawn(&self, command: Command) -> Result<Child, ExecError> {
        self.spawner.spawn(command).await.map_err(|source| ExecError::Spawn { binary: self.binary.clone(), source })
    }

    /// Kills every process of a container.
    pub async fn kill(&self, id: &str) -> Result<(), ExecError> {
        self.quick("kill", id, |command| command.args(["kill", "--all", id, "KILL"])).await.map(drop)
    }

    /// Removes a container, with all of its processes; it need not exist.
    pub async fn delete(&self, id: &str) -> Result<(), ExecError> {
        match self.quick("delete", id, |command| command.args(["delete", "--force", id])).await {
            Err(ExecError::Runtime { message, .. }) if is_absence(&message) => Ok(()),
            other => other.map(drop),
        }
    }

    /// What the container is doing: `created`, `running`, `stopped`; nothing if there is none.
    pub async fn status(&self, id: &str) -> Result<Option<String>, ExecError> {
        #[derive(serde::Deserialize)]
        struct State {
            status: String,
        }
        match self.quick("state", id, |command| command.args(["state", id])).await {
            Ok(output) => Ok(serde_json::from_slice::<State>(&output).ok().map(|state| state.status)),
            Err(ExecError::Runtime { .. }) => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn quick(
        &self,
        name: &'static str,
        container: &str,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Vec<u8>, ExecError> {
        let failed = |message: String| ExecError::Runtime {
            binary: self.binary.clone(),
            command: name,
            container: container.to_owned(),
            message,
        };
        let mut command = self.command(None);
        arguments(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = self.spawn(command).await?;
        let output = tokio::time::timeout(QUICK, child.wait_with_output())
            .await
            .map_err(|_| failed(format!("no answer in {} s", QUICK.as_secs())))?
            .map_err(|err| failed(err.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn is_absence(message: &str) -> bool {
    message.contains("does not exist") || message.contains("No such file or directory")
}

/// The exit code as a shell gives it.
pub fn exit_code(status: ExitStatus) -> u32 {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u32,
        (None, Some(signal)) => 128 + signal as u32,
        (None, None) => crate::UNKNOWN_EXIT_CODE,
    }
}

fn look_up(name: &Path) -> Option<PathBuf> {
    let executable = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if name.components().count() > 1 {
        return executable(name).then(|| name.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsStr::new(crate::DEFAULT_PATH).to_owned());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// Starts programs that die with the daemon, each in a process group of its own.
///
/// They are started from one thread that lives as long as the spawner: a child's death signal comes when the *thread*
/// that started it ends, and the runtime's threads come and go.
#[derive(Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
    /// Children do not see the second version's hierarchy: crun refuses a host where both versions have controllers.
    hide_unified: bool,
    /// The children's umask; the daemon itself has none.
    umask: Option<u32>,
}

struct Request {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

impl Spawner {
    /// A spawner of programs that make files with the usual modes.
    pub fn new() -> io::Result<Self> {
        Ok(Self { umask: Some(0o022), ..Self::start(false)? })
    }

    fn start(hide_unified: bool) -> io::Result<Self> {
        let (requests, incoming) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            for Request { mut command, runtime, answer } in incoming {
                let _guard = runtime.enter();
                // Nobody waits any more: then the child, dropped, is left to the caller's clean-up.
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Self { requests, hide_unified, umask: None })
    }

    /// Starts a program.
    pub async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        // A group of its own: a terminal's interrupt is for the daemon, which ends its children in order.
        command.process_group(0);
        let (hide_unified, umask) = (self.hide_unified, self.umask);
        // SAFETY: between fork and exec only async-signal-safe calls are made: system calls, no allocation.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                if let Some(umask) = umask {
                    rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
                }
                if hide_unified { hide_unified_hierarchy() } else { Ok(()) }
            });
        }
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts programs is gone");
        let request = Request { command, runtime: Handle::current(), answer };
        self.requests.send(request).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Unmounts the second version's hierarchy in a mount namespace of the calling process's own. For a child that has not
/// executed its program yet: makes system calls only.
fn hide_unified_hierarchy() -> io::Result<()> {
    // SAFETY: the child has one thread and shares no memory-safety relevant state through its mount namespace.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    // Without this the unmount would be the host's too.
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::unmount(cgroup::UNIFIED, UnmountFlags::DETACH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up() {
        assert!(look_up(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(look_up(Path::new("/bin/sh")), Some("/bin/sh".into()));
        assert_eq!(look_up(Path::new("no-such-program")), None);
        let missing = Runtime::find(Some(Path::new("no-such-program")), "/tmp".into()).unwrap_err();
        assert_eq!(missing.to_string(), "start the OCI runtime \"no-such-program\": not found in PATH");
    }

    #[tokio::test]
    async fn children_have_a_death_signal() {
        let spawner = Spawner::start(false).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]);
        let status = spawner.spawn(command).await.unwrap().wait().await.unwrap();
        assert_eq!(exit_code(status), 7);
    }
}
