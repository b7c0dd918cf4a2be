//! Containers that frontends start: mounts that stay, and any number of processes on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use castor_executor::{ExecError, HostIp, Meta, Network, Process, Security, Stdio};
use castor_llb::op::{self, MountKind, NetMode, SecretEnv, SecurityMode};
use castor_solver::Cx;
use castor_store::ImmutableRef;
use castor_task::CancellationToken;
use tokio::sync::{RwLock, oneshot};

use crate::operation::{Mounts, Preparation, secret_env};
use crate::{BridgeError, Entitlements, OpError, Worker};

/// What a container is made of.
#[derive(Debug, Clone, Default)]
pub struct ContainerParts {
    /// What is mounted, and the result that is shown there; without one, it is an empty directory.
    pub mounts: Vec<(op::Mount, Option<ImmutableRef>)>,
    /// Its network.
    pub network: NetMode,
    /// Its host name; empty for the default one.
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<op::HostIp>,
}

/// A process to run in a container.
pub struct ContainerProcess {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Secrets of the client that are variables of it.
    pub secret_env: Vec<SecretEnv>,
    /// The user it runs as; empty for root, or for that of the container's first process.
    pub user: String,
    /// Where it starts.
    pub cwd: String,
    /// It gets a terminal.
    pub tty: bool,
    /// Its privileges.
    pub security: SecurityMode,
    /// Remove the parents of mount points too where they had to be made.
    pub remove_mount_stubs_recursive: bool,
    /// Its streams.
    pub stdio: Stdio,
}

impl std::fmt::Debug for ContainerProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The environment may hold secrets.
        f.debug_struct("ContainerProcess").field("args", &self.args).finish_non_exhaustive()
    }
}

/// How a process failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct ProcessFailure {
    /// Its exit code, if it ran and ended.
    pub code: Option<u32>,
    /// What is to be said about it.
    pub error: BridgeError,
}

impl From<OpError> for ProcessFailure {
    fn from(error: OpError) -> Self {
        Self { code: None, error: error.into() }
    }
}

impl From<ExecError> for ProcessFailure {
    fn from(error: ExecError) -> Self {
        // Who started it knows what it is.
        let said = match &error {
            ExecError::Exit { status, .. } => status.to_string(),
            ExecError::Failed { source, .. } => source.to_string(),
            error => error.to_string(),
        };
        let code = error.exit_code();
        Self { code, error: BridgeError { message: said, ..BridgeError::from(OpError::from(error)) } }
    }
}

/// A container: its mounts, until it is released. The first process makes it, and it ends with that one.
pub struct Container {
    worker: Worker,
    cx: Cx,
    /// What the executor calls it.
    id: String,
    meta: Meta,
    granted: Entitlements,
    started: AtomicBool,
    released: CancellationToken,
    /// Read while a process runs.
    mounts: RwLock<Option<Mounts>>,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Container").field(&self.id).finish()
    }
}

impl Worker {
    /// Prepares a container; nothing runs in it yet.
    pub async fn container(
        &self,
        cx: &Cx,
        parts: ContainerParts,
        granted: Entitlements,
    ) -> Result<Arc<Container>, OpError> {
        let mut inputs = Vec::new();
        let mut mounts = Vec::with_capacity(parts.mounts.len());
        for (index, (mut mount, input)) in parts.mounts.into_iter().enumerate() {
            mount.input = input.map(|input| {
                inputs.push(input);
                inputs.len() - 1
            });
            // What is written to it is kept as long as the container.
            mount.output = (mount.kind == MountKind::Bind).then_some(index);
            mounts.push(mount);
        }
        let released = cx.token().child_token();
        let cx = cx.with_token(released.clone());
        let preparation = Preparation::new(self, &cx, &["container".to_owned()], "/", &inputs);
        let mounts = preparation.prepare(&mounts).await?;
        let host = |host: &op::HostIp| match host.ip.parse() {
            Ok(ip) => Ok(HostIp { host: host.host.clone(), ip }),
            Err(_) => Err(OpError::Invalid(format!("failed to parse IP {} of extra host {}", host.ip, host.host))),
        };
        let meta = Meta {
            hostname: parts.hostname,
            extra_hosts: parts.extra_hosts.iter().map(host).collect::<Result<_, _>>()?,
            network: match parts.network {
                NetMode::Unset => Network::Sandbox,
                NetMode::Host => Network::Host,
                NetMode::None => Network::None,
            },
            ..Meta::default()
        };
        Ok(Arc::new(Container {
            worker: self.clone(),
            cx,
            id: crate::random_id(),
            meta,
            granted,
            started: AtomicBool::new(false),
            released,
            mounts: RwLock::new(Some(mounts)),
        }))
    }
}

impl Container {
    /// Runs a process and waits for its end. `started` is told, or dropped, when it runs.
    pub async fn run(&self, process: ContainerProcess, started: oneshot::Sender<()>) -> Result<(), ProcessFailure> {
        let mounts = self.mounts.read().await;
        let Some(mounts) = mounts.as_ref() else {
            return Err(OpError::Invalid("the container was released".to_owned()).into());
        };
        let insecure = process.security == SecurityMode::Insecure;
        let refused = [
            (self.meta.network == Network::Host && !self.granted.network_host, "network.host"),
            (insecure && !self.granted.security_insecure, "security.insecure"),
        ];
        if let Some((_, name)) = refused.iter().find(|(refused, _)| *refused) {
            return Err(OpError::NotAllowed(name).into());
        }
        let mut env = process.env;
        let has = |env: &[String], name: &str| env.iter().any(|variable| variable.split('=').next() == Some(name));
        if process.tty && !has(&env, "TERM") {
            env.push("TERM=xterm".to_owned());
        }
        env.extend(secret_env(&self.worker, &self.cx, &process.secret_env).await?);
        let meta = Meta {
            args: process.args,
            env,
            user: process.user,
            cwd: if process.cwd.is_empty() { "/".to_owned() } else { process.cwd },
            tty: process.tty,
            security: if insecure { Security::Insecure } else { Security::Sandbox },
            remove_mount_stubs_recursive: process.remove_mount_stubs_recursive,
            ..self.meta.clone()
        };
        let executor = self.worker.executor();
        if self.started.swap(true, Ordering::AcqRel) {
            drop(started);
            executor.exec(&self.id, meta, process.stdio, &self.released).await?;
        } else {
            let (id, root, mounts) = (self.id.clone(), mounts.root.clone(), mounts.mounts.clone());
            let process = Process { id, root, mounts, meta, stdio: process.stdio };
            executor.run(process, Some(started), &self.released).await?;
        }
        Ok(())
    }

    /// Ends all of its processes, and drops what they wrote.
    pub async fn release(&self) {
        self.released.cancel();
        drop(self.mounts.write().await.take());
    }
}
