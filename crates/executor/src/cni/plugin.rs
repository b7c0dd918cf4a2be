//! One call of one plugin.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::error::ExecError;

/// How long a plugin may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Furnish a namespace.
    Add,
    /// Give back what it took; also where the namespace is gone.
    Del,
}

/// A call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) command: Command,
    pub(super) program: &'a Path,
    pub(super) config: &'a Value,
    pub(super) container: &'a str,
    pub(super) namespace: &'a Path,
    pub(super) interface: &'a str,
}

impl Call<'_> {
    /// Runs it; what the plugin said, if it said anything. `dirs` is where it finds other plugins.
    pub(super) async fn run(&self, dirs: &[PathBuf]) -> Result<Option<Value>, ExecError> {
        let failed = |reason: String| {
            let plugin = self.program.file_name().unwrap_or_default().to_string_lossy();
            ExecError::Network(format!("plugin {plugin:?} failed ({}): {reason}", self.name()))
        };
        let answered = tokio::time::timeout(PATIENCE, self.converse(dirs)).await;
        let output = answered
            .map_err(|_| failed(format!("no answer in {} s", PATIENCE.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(reason(&output.stdout, &output.stderr, output.status)));
        }
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        serde_json::from_slice(&output.stdout).map(Some).map_err(|error| failed(format!("its answer: {error}")))
    }

    fn name(&self) -> &'static str {
        match self.command {
            Command::Add => "ADD",
            Command::Del => "DEL",
        }
    }

    async fn converse(&self, dirs: &[PathBuf]) -> std::io::Result<std::process::Output> {
        let paths = std::env::join_paths(dirs).map_err(std::io::Error::other)?;
        let mut child = tokio::process::Command::new(self.program)
            .env("CNI_COMMAND", self.name())
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", self.namespace)
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", paths)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // One that does not read it has said what it has to say.
            let _ = input.write_all(self.config.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    }
}

/// What a plugin that failed says: an object of CNI's, or whatever it printed.
fn reason(stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    #[derive(serde::Deserialize)]
    struct Said {
        msg: String,
        #[serde(default)]
        details: String,
    }
    if let Ok(said) = serde_json::from_slice::<Said>(stdout) {
        return if said.details.is_empty() { said.msg } else { format!("{}; {}", said.msg, said.details) };
    }
    let printed = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).trim().to_owned();
    if printed.is_empty() { status.to_string() } else { printed }
}
