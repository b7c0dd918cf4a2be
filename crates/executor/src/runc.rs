//! The executor that starts an OCI runtime.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{ExecError, Executor, Meta, Process, Stdio};

/// How processes are run.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where bundles and the runtime's state are kept.
    pub root: PathBuf,
    /// The runtime, as a path or a name in `PATH`; `buildkit-runc` or `runc` if there is none.
    pub binary: Option<PathBuf>,
    /// What [`Network::Sandbox`](crate::Network::Sandbox) gives.
    pub sandbox_network: SandboxNetwork,
    /// Settings for `/etc/resolv.conf` that replace the host's.
    pub dns: Dns,
    /// The cgroup below which containers' are made.
    pub cgroup_parent: String,
    /// The AppArmor profile of sandboxed processes.
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
#[derive(Debug)]
pub struct Runc {}

impl Runc {
    /// An executor that keeps its state in `config.root`.
    pub fn new(_config: Config) -> Result<Self, ExecError> {
        todo!()
    }

    /// Removes the containers, mounts and bundles that a killed daemon left; to be called before the first process.
    pub async fn recover(&self) -> Result<(), ExecError> {
        todo!()
    }
}

#[async_trait]
impl Executor for Runc {
    async fn run(&self, _: Process, _: Option<oneshot::Sender<()>>, _: &CancellationToken) -> Result<(), ExecError> {
        todo!()
    }

    async fn exec(&self, _: &str, _: Meta, _: Stdio, _: &CancellationToken) -> Result<(), ExecError> {
        todo!()
    }
}
