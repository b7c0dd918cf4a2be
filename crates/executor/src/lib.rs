//! Runs processes in containers.
//!
//! [`Executor`] is the worker trait; [`Runc`] implements it by starting an OCI runtime, runc or crun. Whatever happens
//! to a call (a cancelled build, a process that does not die at once, a runtime that fails), when it returns the
//! container is gone, with all processes in it and all mounts made for it. What a killed daemon leaves behind is removed
//! by [`Runc::recover`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bundle;
mod cgroup;
mod cni;
pub mod emulation;
mod error;
mod logs;
mod mounts;
mod process;
mod quote;
mod resolver;
mod rooted;
mod runc;
mod runtime;
mod seccomp;
mod spec;
mod stdio;
mod stubs;
pub mod user;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use cgroup::prepare as prepare_cgroups;
pub use cni::{CniConfig, CniNetwork};
pub use error::{ExecError, ExitStatus, UNKNOWN_EXIT_CODE};
pub use logs::{LogLimits, log_output, step_outputs};
pub use process::{
    ExecMount, HostIp, Input, Meta, MountSource, Network, Output, Process, Resources, RootMount, Secret, Security,
    Stdio, Ulimit, WindowSize,
};
pub use quote::Quoted;
pub use runc::{Config, Dns, Runc, SandboxNetwork};
pub use runtime::Spawner;

/// The host name of a container that was given none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// The `PATH` of a process that was given none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs processes.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Runs `process` in a new container and waits for its end. `started` is told when it runs.
    ///
    /// When this returns, the container is gone, and all output was passed on. A cancelled process is killed with all
    /// that it started.
    async fn run(
        &self,
        process: Process,
        started: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError>;

    /// Runs one more process in the container that a concurrent [`run`](Self::run) made, and waits for its end. Of
    /// `meta`, what is empty is as in the container's first process.
    async fn exec(
        &self,
        container: &str,
        meta: Meta,
        stdio: Stdio,
        cancel: &CancellationToken,
    ) -> Result<(), ExecError>;
}
