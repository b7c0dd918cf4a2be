//! The executor that starts an OCI runtime.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitStatus as ChildStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use castor_task::{Scope, StillRunning};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::bundle::{self, Bundle, InMemory, Plan};
use crate::cni::{Cni, CniConfig};
use crate::error::{ExecError, ExitStatus};
use crate::process::{Meta, Network, Process, Stdio};
use crate::rooted::Root;
use crate::runtime::{Runtime, exit_code};
use crate::stdio::{Pumps, Streams};
use crate::{Executor, cgroup, spec, user};

/// How long a killed container may take to be gone before its runtime is killed too.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts at killing, and two looks at a container that is starting.
const PAUSE: Duration = Duration::from_millis(50);

/// How long output may still come after a process was killed.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// How processes are run.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where bundles and the runtime's state are kept; made if it is missing.
    pub root: PathBuf,
    /// The runtime, as a path or a name in `PATH`; `buildkit-runc` or `runc` if there is none.
    pub binary: Option<PathBuf>,
    /// What [`Network::Sandbox`] gives.
    pub sandbox_network: SandboxNetwork,
    /// How [`SandboxNetwork::Cni`] makes networks.
    pub cni: Option<CniConfig>,
    /// Settings for `/etc/resolv.conf` that replace the host's.
    pub dns: Dns,
    /// The cgroup below which containers' are made.
    pub cgroup_parent: String,
    /// The AppArmor profile of sandboxed processes; empty for none.
    pub apparmor_profile: String,
}

/// What a process gets that asks for no particular network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// The host's: there is no other provider on this host.
    #[default]
    Host,
    /// A loopback interface alone.
    None,
    /// What CNI's plugins make, by [`Config::cni`].
    Cni,
}

/// Settings for `/etc/resolv.conf`; what is empty is as on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Options.
    pub options: Vec<String>,
    /// Domains that names are looked up in.
    pub search_domains: Vec<String>,
}

/// Runs processes with runc or crun.
#[derive(Debug, Clone)]
pub struct Runc {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    runtime: Runtime,
    /// Makes networks, where they are made.
    cni: Option<Arc<Cni>>,
    /// The containers that run, with their roots.
    running: Mutex<HashMap<String, Running>>,
    /// Numbers processes that are run in containers.
    processes: AtomicU64,
    /// All that is done for processes; whoever waits for one may go, the clean-up may not.
    scope: Scope,
}

#[derive(Debug, Clone)]
struct Running {
    root: PathBuf,
    meta: Meta,
}

impl Runc {
    /// An executor that keeps its state in `config.root`. Blocks while it asks the runtime what it is.
    pub fn new(config: Config) -> Result<Self, ExecError> {
        let state = config.root.join("runtime");
        for dir in [&state, &bundle::bundles(&config.root)] {
            bundle::make_dir(dir)?;
        }
        if !config.apparmor_profile.is_empty() && !apparmor_is_enabled() {
            return Err(ExecError::Invalid(format!(
                "AppArmor is not supported on this host, but the profile '{}' was specified",
                config.apparmor_profile
            )));
        }
        let runtime = Runtime::find(config.binary.as_deref(), state)?;
        if config.sandbox_network == SandboxNetwork::Host {
            tracing::debug!("using host network as the default");
        }
        let cni = match (config.sandbox_network, &config.cni) {
            (SandboxNetwork::Cni, Some(cni)) => Some(Arc::new(Cni::open(cni, config.root.join("net"))?)),
            (SandboxNetwork::Cni, None) => return Err(ExecError::Network("CNI is not configured".to_owned())),
            (SandboxNetwork::Host | SandboxNetwork::None, _) => None,
        };
        let shared = Shared {
            config,
            runtime,
            cni,
            running: Mutex::default(),
            processes: AtomicU64::new(0),
            scope: Scope::root("executor"),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The runtime's program.
    pub fn binary(&self) -> &Path {
        self.shared.runtime.binary()
    }

    /// Removes the containers, mounts and bundles that a killed daemon left. To be called before the first process, by
    /// the one daemon that has the state directory.
    pub async fn recover(&self) -> Result<(), ExecError> {
        let state = self.shared.runtime.state().to_path_buf();
        let listed = fs::read_dir(&state).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        for entry in listed.map_err(|err| ExecError::setup(format!("read {state:?}"), err))? {
            let id = entry.file_name().to_string_lossy().into_owned();
            tracing::info!(container = id, "removing a container that was left behind");
            if let Err(error) = self.shared.runtime.delete(&id).await {
                // Nothing is built with it: no reason not to start.
                tracing::warn!(container = id, %error, "remove a container that was left behind");
            }
        }
        let root = self.shared.config.root.clone();
        let recovered = castor_task::blocking(move || bundle::recover(&root)).await;
        recovered.map_err(|err| ExecError::setup("remove old bundles", err))?;
        match &self.shared.cni {
            Some(cni) => cni.begin().await,
            None => Ok(()),
        }
    }

    /// Kills what runs and waits until it is gone, at most for `limit`.
    pub async fn close(&self, limit: Duration) -> Result<(), StillRunning> {
        let closed = self.shared.scope.close(limit).await;
        if let Some(cni) = &self.shared.cni {
            cni.end().await;
        }
        closed
    }

    /// The containers that run now.
    pub fn running(&self) -> Vec<String> {
        self.shared.running.lock().keys().cloned().collect()
    }
}

#[async_trait]
impl Executor for Runc {
    async fn run(
        &self,
        mut process: Process,
        started: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError> {
        if process.id.is_empty() {
            process.id = new_id();
        }
        check(&process)?;
        let display = process.meta.display();
        let shared = self.shared.clone();
        let work = |cancel| async move { shared.run(process, started, &cancel).await };
        self.shared.outlive(cancel, work).await.map_err(|err| err.of(display))
    }

    async fn exec(
        &self,
        container: &str,
        meta: Meta,
        stdio: Stdio,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError> {
        let display = meta.display();
        let shared = self.shared.clone();
        let container = container.to_owned();
        let work = |cancel| async move { shared.exec(&container, meta, stdio, &cancel).await };
        self.shared.outlive(cancel, work).await.map_err(|err| match err {
            // The container is what the caller named; its process was never begun.
            err @ (ExecError::NotFound(_) | ExecError::Stopped(_)) => err,
            err => err.of(display),
        })
    }
}

impl Shared {
    /// Does `work` in a task of its own: whoever drops the call must not leave a container behind, so the work goes on,
    /// cancelled, until it has cleaned up. It is cancelled with the executor too.
    async fn outlive<F>(
        &self,
        cancel: &CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), ExecError>
    where
        F: Future<Output = Result<(), ExecError>> + Send + 'static,
    {
        let cancel = cancel.child_token();
        let _cancelled_when_dropped = cancel.clone().drop_guard();
        let work = work(cancel.clone());
        let closing = self.scope.token().clone();
        let task = self.scope.spawn_named("process", async move {
            let mut work = pin!(work);
            tokio::select! {
                result = &mut work => return result,
                () = closing.cancelled() => cancel.cancel(),
            }
            work.await
        });
        task.await.unwrap_or_else(|err| Err(ExecError::setup("run a process", std::io::Error::other(err))))
    }

    async fn run(
        self: Arc<Self>,
        process: Process,
        started: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError> {
        let id = process.id.clone();
        let display = process.meta.display();
        if cancel.is_cancelled() {
            return Err(ExecError::Canceled { process: display });
        }
        let valid = process.meta.valid_exit_codes.clone();
        let _registration = self.register(&process)?;
        let (mut plan, stdio) = Plan::of(process);
        let network = match &self.cni {
            Some(cni) if plan.meta.network == Network::Sandbox => Some(cni.acquire(&self.scope).await?),
            _ => None,
        };
        plan.network = network.as_ref().map(|network| network.path().to_owned());
        let ended = self.run_bundle(&id, plan, stdio, started, cancel).await;
        if let (Some(cni), Some(network)) = (&self.cni, network) {
            cni.release(network).await;
        }
        let (status, memory, output) = ended?;
        if cancel.is_cancelled() {
            return Err(ExecError::Canceled { process: display });
        }
        judge(status, memory, &valid, display.clone())?;
        output.map_err(|source| ExecError::Output { process: display, source })
    }

    /// Makes the bundle, runs the container in it, and removes both: how it ended, whether memory was short, and what
    /// became of its output.
    async fn run_bundle(
        self: &Arc<Self>,
        id: &str,
        plan: Plan,
        stdio: Stdio,
        started: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<(ChildStatus, bool, std::io::Result<()>), ExecError> {
        let tty = plan.meta.tty;
        let preparing = self.clone();
        let name = id.to_owned();
        // The root may be lazy: reading it must not hold up the runtime's threads.
        let bundle = castor_task::reading(move || Bundle::prepare(&name, &preparing.config, &plan)).await?;

        let ended = self.supervise(id, &bundle, stdio, tty, started, cancel).await;
        let memory = {
            let path = bundle.cgroup.clone();
            let failed = ended.as_ref().is_ok_and(|(status, _)| !status.success());
            failed && castor_task::blocking(move || cgroup::out_of_memory(&path)).await
        };
        let deleted = self.runtime.delete(id).await;
        castor_task::reading(move || bundle.close()).await;
        let (status, output) = ended?;
        if !cancel.is_cancelled() {
            deleted?;
        }
        Ok((status, memory, output))
    }

    /// Starts the container, waits for its end and for that of its output.
    async fn supervise(
        &self,
        id: &str,
        bundle: &Bundle,
        stdio: Stdio,
        tty: bool,
        started: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<(ChildStatus, std::io::Result<()>), ExecError> {
        let mut command = self.runtime.run(id, &bundle.dir);
        let streams = Streams::attach(stdio, tty, &mut command)
            .map_err(|err| ExecError::setup("open the streams of a process", err))?;
        let mut child = self.runtime.spawn(command).await?;
        let mut pumps =
            streams.start(&mut child).map_err(|err| ExecError::setup("open the streams of a process", err))?;
        if let Some(started) = started {
            // Whoever wanted to know may be gone.
            let _ = started.send(());
        }
        let status = self.wait(&mut child, &mut pumps, cancel, Target::Container(id)).await?;
        Ok((status, finish(&mut pumps, cancel).await))
    }

    async fn exec(
        self: Arc<Self>,
        id: &str,
        meta: Meta,
        stdio: Stdio,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError> {
        let display = meta.display();
        if meta.args.is_empty() {
            return Err(ExecError::Invalid("no arguments".to_owned()));
        }
        let running = self.await_running(id, cancel, &display).await?;
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        let dir = bundle::bundles(&self.config.root).join(id);
        let file = |suffix: &str| dir.join(format!("exec-{number}.{suffix}"));
        let (pid_file, log_file) = (file("pid"), file("log"));
        let (tty, valid) = (meta.tty, meta.valid_exit_codes.clone());
        // Kept until the process has ended: the runtime reads it when it likes.
        let described = castor_task::reading(move || describe(&dir, &running, meta)).await?;

        let mut command = self.runtime.exec(id, &described.path(), &pid_file, &log_file);
        let streams = Streams::attach(stdio, tty, &mut command)
            .map_err(|err| ExecError::setup("open the streams of a process", err))?;
        let mut child = self.runtime.spawn(command).await?;
        let mut pumps =
            streams.start(&mut child).map_err(|err| ExecError::setup("open the streams of a process", err))?;
        let status = self.wait(&mut child, &mut pumps, cancel, Target::PidFile(&pid_file)).await;
        let output = finish(&mut pumps, cancel).await;
        for path in [pid_file, log_file] {
            // The bundle may be gone by now.
            let _ = fs::remove_file(path);
        }
        let status = status?;
        if cancel.is_cancelled() {
            return Err(ExecError::Canceled { process: display });
        }
        judge(status, false, &valid, display.clone())?;
        output.map_err(|source| ExecError::Output { process: display, source })
    }

    /// Waits for the end of `child`, passing on signals and sizes; kills `target` when cancelled.
    async fn wait(
        &self,
        child: &mut Child,
        pumps: &mut Pumps,
        cancel: &CancellationToken,
        target: Target<'_>,
    ) -> Result<ChildStatus, ExecError> {
        let runtime = self.runtime.binary();
        let failed = |source| ExecError::Spawn { binary: runtime.to_path_buf(), source };
        let mut resize = pumps.resize.take();
        let mut signals = pumps.signals.take();
        loop {
            tokio::select! {
                status = child.wait() => return status.map_err(failed),
                () = cancel.cancelled() => break,
                Some(size) = receive(&mut resize) => {
                    pumps.set_size(size);
                    signal(child, Signal::WINCH);
                }
                Some(number) = receive(&mut signals) => match Signal::from_named_raw(number) {
                    Some(Signal::KILL) => self.kill(target).await,
                    // The runtime passes it on.
                    Some(named) => signal(child, named),
                    None => tracing::warn!(number, "unknown signal"),
                },
            }
        }
        // The container may not exist yet, so one attempt is not enough.
        let deadline = tokio::time::Instant::now() + KILL_PATIENCE;
        while tokio::time::Instant::now() < deadline {
            self.kill(target).await;
            if let Ok(status) = tokio::time::timeout(PAUSE, child.wait()).await {
                return status.map_err(failed);
            }
        }
        tracing::warn!(?target, "the runtime does not end; killing it");
        child.start_kill().map_err(failed)?;
        child.wait().await.map_err(failed)
    }

    async fn kill(&self, target: Target<'_>) {
        match target {
            Target::Container(id) => {
                if let Err(err) = self.runtime.kill(id).await {
                    tracing::debug!(container = id, %err, "kill");
                }
            }
            Target::PidFile(path) => {
                let pid =
                    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
                // The runtime, which has not ended, is the parent of that process: the number is still its.
                if let Some(pid) = pid {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    }

    fn register(self: &Arc<Self>, process: &Process) -> Result<Registration, ExecError> {
        let running = Running { root: process.root.path.clone(), meta: process.meta.clone() };
        let mut all = self.running.lock();
        if all.contains_key(&process.id) {
            return Err(ExecError::Invalid(format!("container {} exists", process.id)));
        }
        all.insert(process.id.clone(), running);
        Ok(Registration { shared: self.clone(), id: process.id.clone() })
    }

    /// Waits until a container that was asked for runs.
    async fn await_running(&self, id: &str, cancel: &CancellationToken, display: &str) -> Result<Running, ExecError> {
        let mut seen = false;
        loop {
            let known = self.running.lock().get(id).cloned();
            let Some(running) = known else {
                let id = id.to_owned();
                return Err(if seen { ExecError::Stopped(id) } else { ExecError::NotFound(id) });
            };
            seen = true;
            match self.runtime.status(id).await?.as_deref() {
                Some("running") => return Ok(running),
                Some("stopped") => return Err(ExecError::Stopped(id.to_owned())),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = cancel.cancelled() => return Err(ExecError::Canceled { process: display.to_owned() }),
            }
        }
    }
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Target<'a> {
    Container(&'a str),
    /// The process whose number the runtime wrote there.
    PidFile(&'a Path),
}

/// Keeps a container known while it runs.
struct Registration {
    shared: Arc<Shared>,
    id: String,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.running.lock().remove(&self.id);
    }
}

/// Waits for the rest of the output; not for long once the process was killed.
async fn finish(pumps: &mut Pumps, cancel: &CancellationToken) -> std::io::Result<()> {
    tokio::select! {
        result = pumps.finish() => return result,
        () = cancel.cancelled() => {}
    }
    tokio::time::timeout(DRAIN_PATIENCE, pumps.finish()).await.unwrap_or(Ok(()))
}

fn judge(status: ChildStatus, out_of_memory: bool, valid: &[i32], process: String) -> Result<(), ExecError> {
    let code = exit_code(status);
    let accepted = if valid.is_empty() { code == 0 } else { valid.iter().any(|&valid| valid as u32 == code) };
    if accepted { Ok(()) } else { Err(ExecError::Exit { process, status: ExitStatus { code, out_of_memory } }) }
}

/// What `runtime exec` takes: what the container's first process was, with what `meta` says otherwise.
fn describe(dir: &Path, running: &Running, meta: Meta) -> Result<InMemory, ExecError> {
    let config = dir.join("config.json");
    let bytes = fs::read(&config).map_err(|err| ExecError::setup(format!("read {config:?}"), err))?;
    let invalid = |err: &dyn std::fmt::Display| ExecError::Invalid(format!("container specification: {err}"));
    let spec: oci_spec::runtime::Spec = serde_json::from_slice(&bytes).map_err(|err| invalid(&err))?;
    let mut process = spec.process().clone().ok_or_else(|| invalid(&"no process"))?;
    if !meta.user.is_empty() && meta.user != running.meta.user {
        let root = Root::open(&running.root).map_err(|err| ExecError::setup("open the container's root", err))?;
        let user = user::lookup(&root, &meta.user)?;
        process.set_user(spec::user(&user).map_err(|err| invalid(&err))?);
    }
    process.set_terminal(Some(meta.tty));
    process.set_args(Some(meta.args));
    if !meta.cwd.is_empty() {
        process.set_cwd(Path::new("/").join(meta.cwd));
    }
    if !meta.env.is_empty() {
        process.set_env(Some(spec::environment(&meta.env)));
    }
    let json = serde_json::to_vec(&process).map_err(|err| invalid(&err))?;
    InMemory::new(&json)
}

fn check(process: &Process) -> Result<(), ExecError> {
    let id = &process.id;
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !id.chars().all(letter) || !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || id.len() > 128 {
        return Err(ExecError::Invalid(format!("container id {id:?}")));
    }
    if process.meta.args.is_empty() {
        return Err(ExecError::Invalid("no arguments".to_owned()));
    }
    if process.meta.network == Network::Host {
        tracing::debug!(container = id, "enabling HostNetworking");
    }
    Ok(())
}

/// A new name: BuildKit's are 25 letters and digits.
pub(crate) fn new_id() -> String {
    let mut bytes = [0u8; 16];
    // The kernel's generator is ready by the time a daemon runs.
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(filled.ok(), Some(bytes.len()));
    let mut number = u128::from_le_bytes(bytes);
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        id.push(char::from(digits[(number % 36) as usize]));
        number /= 36;
    }
    id
}

async fn receive<T>(channel: &mut Option<tokio::sync::mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(receiver) => match receiver.recv().await {
            Some(value) => Some(value),
            None => {
                *channel = None;
                std::future::pending().await
            }
        },
        None => std::future::pending().await,
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
    if let Some(pid) = pid {
        // It may have just ended.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn apparmor_is_enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let id = new_id();
        assert_eq!(id.len(), 25);
        assert_ne!(id, new_id());
    }
}
