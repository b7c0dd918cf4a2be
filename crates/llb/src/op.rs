//! The ops, typed. Indexes are checked against the op's inputs when a definition is decoded.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::source::Source;

/// What a vertex does.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Brings something in from outside.
    Source(SourceOp),
    /// Runs a process.
    Exec(ExecOp),
    /// Changes files.
    File(FileOp),
    /// Stacks its inputs.
    Merge(MergeOp),
    /// What changed between two inputs.
    Diff(DiffOp),
    /// Builds a definition found in an input.
    Build(BuildOp),
    /// Its inputs under another digest.
    Passthrough(PassthroughOp),
}

/// A source.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceOp {
    /// Scheme and name, as sent.
    pub identifier: String,
    /// Attributes, as sent; unknown ones are ignored.
    pub attrs: BTreeMap<String, String>,
    /// What both say.
    pub source: Source,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecOp {
    /// The process itself.
    pub meta: Meta,
    /// Its mounts, the root among them.
    pub mounts: Vec<Mount>,
    /// Its network.
    pub network: NetMode,
    /// Its privileges.
    pub security: SecurityMode,
    /// Secrets in its environment.
    pub secret_env: Vec<SecretEnv>,
    /// Devices by CDI name.
    pub cdi_devices: Vec<CdiDevice>,
}

impl ExecOp {
    /// The root mount. Decoding guarantees that there is one.
    pub fn root(&self) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.dest == "/")
    }
}

/// What a process runs with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User, `name[:group]` or ids; empty is root.
    pub user: String,
    /// Proxy settings, passed on but no part of the cache key.
    pub proxy_env: Option<ProxyEnv>,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Host name; empty is `buildkitsandbox`.
    pub hostname: String,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Parent of the control group.
    pub cgroup_parent: String,
    /// Remove also the parents that were made for mount points.
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes that count as success; empty is zero alone.
    pub valid_exit_codes: Vec<i32>,
}

/// A host name and its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIp {
    /// The name.
    pub host: String,
    /// The address.
    pub ip: String,
}

/// A resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name, such as `nofile`.
    pub name: String,
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// Proxies of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`.
    pub http_proxy: String,
    /// `HTTPS_PROXY`.
    pub https_proxy: String,
    /// `FTP_PROXY`.
    pub ftp_proxy: String,
    /// `NO_PROXY`.
    pub no_proxy: String,
    /// `ALL_PROXY`.
    pub all_proxy: String,
}

/// The network of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NetMode {
    /// The worker's default.
    #[default]
    Unset,
    /// The host's.
    Host,
    /// None but loopback.
    None,
}

/// The privileges of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SecurityMode {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities.
    Insecure,
}

/// A secret in the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretEnv {
    /// Which secret.
    pub id: String,
    /// Name of the variable.
    pub name: String,
    /// Its absence is no error.
    pub optional: bool,
}

/// A CDI device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CdiDevice {
    /// Its name.
    pub name: String,
    /// Its absence is no error.
    pub optional: bool,
}

/// A mount of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The input it shows; `None` is scratch.
    pub input: Option<usize>,
    /// Path in the input.
    pub selector: String,
    /// Where it is mounted.
    pub dest: String,
    /// The output that its changes become; `None` drops them.
    pub output: Option<usize>,
    /// Read-only.
    pub readonly: bool,
    /// What is mounted.
    pub kind: MountKind,
    /// A result to mount, in gateway containers.
    pub result_id: String,
    /// Whether its content counts for the cache key.
    pub content_cache: ContentCache,
}

/// What is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// An input.
    #[default]
    Bind,
    /// A secret.
    Secret(SecretMount),
    /// An ssh agent.
    Ssh(SecretMount),
    /// A cache mount.
    Cache(CacheMount),
    /// Memory.
    Tmpfs {
        /// Size in bytes; 0 is the default.
        size: i64,
    },
}

/// A secret, or an ssh agent's socket, as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretMount {
    /// Which one.
    pub id: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode.
    pub mode: u32,
    /// Its absence is no error.
    pub optional: bool,
}

/// A directory kept from build to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheMount {
    /// Its name.
    pub id: String,
    /// Who may use it at once.
    pub sharing: CacheSharing,
}

/// Who may use a cache mount at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// Everybody.
    #[default]
    Shared,
    /// One; others get another directory.
    Private,
    /// One; others wait.
    Locked,
}

/// Whether the content of a mount counts for the cache key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ContentCache {
    /// If it is read-only or has a selector.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// Changes of files, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileOp {
    /// The changes.
    pub actions: Vec<FileAction>,
}

/// What a file action works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum FileInput {
    /// Nothing.
    #[default]
    Scratch,
    /// An input of the op.
    Input(usize),
    /// The result of an earlier action.
    Action(usize),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAction {
    /// What is changed.
    pub input: FileInput,
    /// What is copied from.
    pub secondary_input: FileInput,
    /// The output that the result becomes; `None` keeps it inside the op.
    pub output: Option<usize>,
    /// The change.
    pub kind: FileActionKind,
}

/// What a file action does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileActionKind {
    /// Copies from the secondary input.
    Copy(Copy),
    /// Writes a file.
    Mkfile(Mkfile),
    /// Makes a directory.
    Mkdir(Mkdir),
    /// Removes a path.
    Rm(Rm),
    /// Makes a symbolic link.
    Symlink(Symlink),
}

/// A copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// Path in the source, perhaps a pattern.
    pub src: String,
    /// Path in the destination; a trailing slash makes it a directory.
    pub dest: String,
    /// Owner of what is copied.
    pub owner: Option<Chown>,
    /// Mode of what is copied; -1 keeps it.
    pub mode: i32,
    /// Follow a link that `src` is.
    pub follow_symlink: bool,
    /// Copy what is in the directory, not the directory.
    pub dir_copy_contents: bool,
    /// Unpack local archives, as Docker's ADD does.
    pub attempt_unpack: bool,
    /// Make the parents of `dest`.
    pub create_dest_path: bool,
    /// `src` may be a pattern.
    pub allow_wildcard: bool,
    /// A pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Modification time in nanoseconds; -1 keeps it.
    pub timestamp: i64,
    /// Copy only what these match.
    pub include_patterns: Vec<String>,
    /// Do not copy what these match.
    pub exclude_patterns: Vec<String>,
    /// Replace what is in the way, whatever its kind.
    pub always_replace_existing_dest_paths: bool,
    /// Symbolic mode, such as `u+x`; wins over `mode`.
    pub mode_str: String,
    /// Paths that must exist in the source.
    pub required_paths: Vec<String>,
}

/// A new file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mkfile {
    /// Its path.
    pub path: String,
    /// Its mode.
    pub mode: i32,
    /// Its content.
    pub data: Bytes,
    /// Its owner.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds; -1 is now.
    pub timestamp: i64,
}

/// A new directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mkdir {
    /// Its path.
    pub path: String,
    /// Its mode.
    pub mode: i32,
    /// Make its parents, and accept that it exists.
    pub make_parents: bool,
    /// Its owner.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds; -1 is now.
    pub timestamp: i64,
}

/// A removal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rm {
    /// The path, perhaps a pattern.
    pub path: String,
    /// Its absence is no error.
    pub allow_not_found: bool,
    /// `path` may be a pattern.
    pub allow_wildcard: bool,
}

/// A new symbolic link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symlink {
    /// What it points at.
    pub oldpath: String,
    /// Its path.
    pub newpath: String,
    /// Its owner.
    pub owner: Option<Chown>,
    /// Its time in nanoseconds; -1 is now.
    pub timestamp: i64,
}

/// Who shall own something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chown {
    /// The user.
    pub user: Option<UserOpt>,
    /// The group.
    pub group: Option<UserOpt>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserOpt {
    /// By name, looked up in the passwd and group files of an input.
    Name {
        /// The name.
        name: String,
        /// Whose files.
        input: FileInput,
    },
    /// By number.
    Id(u32),
}

/// A merge, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergeOp {
    /// Indexes of inputs.
    pub inputs: Vec<usize>,
}

/// A difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffOp {
    /// What to subtract; `None` is scratch.
    pub lower: Option<usize>,
    /// From what; `None` is scratch.
    pub upper: Option<usize>,
}

/// A nested build.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BuildOp {
    /// The input that builds; -1 is castor itself.
    pub builder: i64,
    /// Inputs by name.
    pub inputs: BTreeMap<String, i64>,
    /// Attributes.
    pub attrs: BTreeMap<String, String>,
}

/// Its inputs, unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassthroughOp {
    /// What makes its digest differ.
    pub id: String,
    /// For each output, the input it is.
    pub outputs: Vec<usize>,
}
