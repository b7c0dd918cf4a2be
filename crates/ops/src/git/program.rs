//! Running git: without the host's configuration, with its output shown to the user, and not longer than wanted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use castor_executor::{Output, Spawner, step_outputs};
use castor_solver::Cx;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::GitError;
use super::remote::is_commit;

/// What git says that is read: names of references, objects.
const MAX_OUTPUT: usize = 16 << 20;
/// What it writes to people, as far as an error repeats it.
const MAX_STDERR: usize = 64 << 10;
const PIECE: usize = 16 << 10;
/// How long git may take to end when it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Of the daemon's environment git gets these.
const PROXIES: [&str; 8] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"];

/// Git, with where it works and how it authenticates.
#[derive(Clone)]
pub(super) struct Program<'a> {
    spawner: &'a Spawner,
    cx: &'a Cx,
    git_dir: Option<PathBuf>,
    work_tree: Option<PathBuf>,
    agent: Option<PathBuf>,
    known_hosts: Option<PathBuf>,
    /// A configuration value with a secret in it. Other users see arguments of processes, not their environment.
    header: Option<(String, String)>,
}

impl<'a> Program<'a> {
    pub(super) fn new(
        spawner: &'a Spawner,
        cx: &'a Cx,
        agent: Option<PathBuf>,
        known_hosts: Option<PathBuf>,
        header: Option<(String, String)>,
    ) -> Self {
        Self { spawner, cx, git_dir: None, work_tree: None, agent, known_hosts, header }
    }

    /// The same, on the repository `dir`.
    pub(super) fn on(&self, dir: &Path) -> Self {
        Self { git_dir: Some(dir.to_owned()), ..self.clone() }
    }

    /// The same, on the files in `dir`.
    pub(super) fn in_tree(&self, dir: &Path) -> Self {
        Self { work_tree: Some(dir.to_owned()), ..self.clone() }
    }

    /// Runs git and gives what it said. Servers that cannot give a part of the history, or a commit by its name, are
    /// asked for more.
    pub(super) async fn run(&self, args: &[&str]) -> Result<Vec<u8>, GitError> {
        let mut args: Vec<&str> = args.to_vec();
        loop {
            let error = match self.run_once(&args).await {
                Ok(output) => return Ok(output),
                Err(error) => error,
            };
            let (said, count) = (error.stderr(), args.len());
            if said.contains("--depth") || said.contains("shallow") {
                args.retain(|arg| *arg != "--depth=1");
            }
            let refused = said.contains("not our ref") || said.contains("unadvertised object");
            if args.len() == count
                && refused
                && count > 2
                && args[0] == "fetch"
                && args.last().is_some_and(|last| is_commit(last))
            {
                args.pop();
            }
            if args.len() == count {
                return Err(error);
            }
        }
    }

    /// The same, as text without the end of its line.
    pub(super) async fn line(&self, args: &[&str]) -> Result<String, GitError> {
        let output = self.run(args).await?;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    }

    async fn run_once(&self, args: &[&str]) -> Result<Vec<u8>, GitError> {
        if self.cx.token().is_cancelled() {
            return Err(GitError::Cancelled);
        }
        let start = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => GitError::Start("git: not found in PATH".to_owned()),
            _ => GitError::Start(error.to_string()),
        };
        let mut child = self.spawner.spawn(self.command(args)).await.map_err(start)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let (shown_out, shown_err) = step_outputs(self.cx.reporter());
        let read_out = tee(child.stdout.take(), shown_out, MAX_OUTPUT, false);
        let read_err = tee(child.stderr.take(), shown_err, MAX_STDERR, true);
        let work = async { tokio::join!(read_out, read_err, child.wait()) };
        tokio::pin!(work);
        let (output, stderr, status) = tokio::select! {
            ended = &mut work => ended,
            () = self.cx.token().cancelled() => {
                // The helpers that git started have no other way to learn of it.
                end(group, Signal::TERM);
                if tokio::time::timeout(GRACE, &mut work).await.is_err() {
                    end(group, Signal::KILL);
                    let _ = work.await;
                }
                return Err(GitError::Cancelled);
            }
        };
        // What git left running in the background holds files of a repository that is let go of.
        end(group, Signal::KILL);
        let io = |source| GitError::Io { doing: "run git".to_owned(), source };
        let status = status.map_err(io)?;
        let stderr = String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned();
        if !status.success() {
            return Err(GitError::Failed { stderr, status: describe(status) });
        }
        output.ok_or(GitError::TooMuch(MAX_OUTPUT))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A submodule must not be a directory of the daemon.
        command.args(["-c", "protocol.file.allow=user"]);
        if let Some(tree) = &self.work_tree {
            command.current_dir(tree).arg("--work-tree").arg(tree);
        }
        if let Some(dir) = &self.git_dir {
            command.arg("--git-dir").arg(dir);
        }
        command.args(args);
        command.env_clear();
        let mut ssh = OsString::from("ssh -F /dev/null");
        match &self.known_hosts {
            Some(file) => {
                ssh.push(" -o UserKnownHostsFile=");
                ssh.push(file);
            }
            None => ssh.push(" -o StrictHostKeyChecking=no"),
        }
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| castor_executor::DEFAULT_PATH.into()))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_SSH_COMMAND", ssh)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("HOME", "/dev/null");
        for name in PROXIES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(agent) = &self.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some((option, value)) = &self.header {
            command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", option).env("GIT_CONFIG_VALUE_0", value);
        }
        command
    }
}

fn end(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // It may have ended by itself.
        let _ = kill_process_group(group, signal);
    }
}

/// As Go shows it.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Reads all, shows all, keeps up to `limit`: of more, nothing or, where `clip`, the beginning.
async fn tee(from: Option<impl AsyncRead + Unpin>, mut shown: Output, limit: usize, clip: bool) -> Option<Vec<u8>> {
    let mut kept = Some(Vec::new());
    if let Some(mut from) = from {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            // The log has bounds of its own, and failing to show is no failure.
            let _ = shown.write_all(&buffer[..count]).await;
            if let Some(so_far) = &mut kept {
                let room = limit - so_far.len();
                so_far.extend_from_slice(&buffer[..count.min(room)]);
                if count > room && !clip {
                    kept = None;
                }
            }
        }
    }
    let _ = shown.shutdown().await;
    kept
}
