//! What is run: a process, its container, its streams.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A process with a container of its own.
pub struct Process {
    /// Names the container; empty for a new name. Letters, digits, `-`, `_` and `.` only.
    pub id: String,
    /// Its root file system.
    pub root: RootMount,
    /// What is mounted above it; the order does not matter, parents are mounted first.
    pub mounts: Vec<ExecMount>,
    /// What is run, and how.
    pub meta: Meta,
    /// Its streams.
    pub stdio: Stdio,
}

/// The root file system: a directory at which the caller has it mounted, in the daemon's mount namespace, until the
/// call that was given it returns.
#[derive(Debug, Clone)]
pub struct RootMount {
    /// The directory.
    pub path: PathBuf,
    /// The process must not write to it.
    pub readonly: bool,
}

/// A mount above the root.
#[derive(Debug, Clone)]
pub struct ExecMount {
    /// What is mounted.
    pub source: MountSource,
    /// A path below the source, resolved inside it; empty or `/` for all of it.
    pub selector: String,
    /// Where it is mounted; relative paths start at `/`.
    pub destination: String,
    /// The process must not write to it.
    pub readonly: bool,
}

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum MountSource {
    /// A file, directory or socket of the daemon's mount namespace.
    Path(PathBuf),
    /// An open file or directory (`O_PATH` is enough), or the root of a detached mount.
    Fd(Arc<OwnedFd>),
    /// An empty file system in memory.
    Tmpfs {
        /// Its largest size in bytes; 0 for the kernel's default.
        size: u64,
    },
    /// A file in memory that never reaches a disk.
    Secret(Secret),
}

/// A file that is only shown to the process.
#[derive(Clone)]
pub struct Secret {
    /// Its content.
    pub data: Bytes,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes, {}:{} {:o})", self.data.len(), self.uid, self.gid, self.mode)
    }
}

/// What is run, and how.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`; entries without `=` are dropped, and `PATH` is added if it is missing.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`, as names of the root's `/etc/passwd` and `/etc/group`; empty for root.
    pub user: String,
    /// Where it starts; created if it is missing. Empty for `/`.
    pub cwd: String,
    /// The container's host name; empty for [`DEFAULT_HOSTNAME`](crate::DEFAULT_HOSTNAME).
    pub hostname: String,
    /// It gets a terminal; its standard error is then part of its standard output.
    pub tty: bool,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// The cgroup below which the container's is made; empty for the executor's default.
    pub cgroup_parent: String,
    /// Limits of the container's cgroup.
    pub resources: Resources,
    /// Which network it sees.
    pub network: Network,
    /// What it may do.
    pub security: Security,
    /// Exit codes that are no error; empty for 0 alone.
    pub valid_exit_codes: Vec<i32>,
    /// Remove the parents of mount points too where the runtime had to make them.
    pub remove_mount_stubs_recursive: bool,
}

impl Meta {
    /// The arguments as error messages show them.
    pub fn display(&self) -> String {
        self.args.join(" ")
    }
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIp {
    /// The name.
    pub host: String,
    /// Its address.
    pub ip: IpAddr,
}

/// A resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name without `RLIMIT_`, in any case: `nofile`.
    pub name: String,
    /// What is enforced; -1 for no limit.
    pub soft: i64,
    /// How far the process may raise it; -1 for no limit.
    pub hard: i64,
}

/// Limits of a cgroup; what is 0 or empty is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of memory and swap.
    pub memory_swap: i64,
    /// Relative weight.
    pub cpu_shares: u64,
    /// Microseconds of one period.
    pub cpu_period: u64,
    /// Microseconds of CPU in one period.
    pub cpu_quota: i64,
    /// CPUs it runs on (`0-2,7`).
    pub cpuset_cpus: String,
    /// Memory nodes it uses.
    pub cpuset_mems: String,
}

/// Which network a process sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// What the daemon is configured to give.
    #[default]
    Sandbox,
    /// The host's.
    Host,
    /// A loopback interface alone.
    None,
}

/// What a process may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    /// What containers usually may.
    #[default]
    Sandbox,
    /// All that the daemon may.
    Insecure,
}

/// Where output goes.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Where input comes from.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// The streams of a process; what is absent is `/dev/null`.
#[derive(Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Option<Input>,
    /// Standard output. Written to as bytes come; shut down at their end.
    pub stdout: Option<Output>,
    /// Standard error, likewise.
    pub stderr: Option<Output>,
    /// New sizes of its terminal.
    pub resize: Option<mpsc::Receiver<WindowSize>>,
    /// Signals to send it.
    pub signals: Option<mpsc::Receiver<i32>>,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}
