//! Processes.

use super::node::{Kind, Node, Output, Slot};
use super::{Constraints, State, Values};
use crate::op::{CacheSharing, CdiDevice, ContentCache, NetMode, ProxyEnv, SecurityMode};

/// How to mount a state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Read-only.
    pub readonly: bool,
    /// Path in the state.
    pub selector: String,
    /// Keep the directory from build to build under this name.
    pub cache: Option<(String, CacheSharing)>,
    /// Memory of this many bytes (0: the default) instead of a state.
    pub tmpfs: Option<i64>,
    /// Drop what is written.
    pub no_output: bool,
    /// Whether the content counts for the cache key.
    pub content_cache: ContentCache,
}

/// How to give a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretOptions {
    /// Which.
    pub id: String,
    /// As this file.
    pub target: Option<String>,
    /// As this variable.
    pub env: Option<String>,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Mode of the file.
    pub mode: u32,
    /// Its absence is no error.
    pub optional: bool,
}

/// How to give an ssh agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SshOptions {
    /// Which.
    pub id: String,
    /// Its socket; empty is `/run/buildkit/ssh_agent.N`.
    pub target: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Mode of the socket.
    pub mode: u32,
    /// Its absence is no error.
    pub optional: bool,
}

/// A process to run on a state.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Program and arguments.
    pub args: Vec<String>,
    /// More variables.
    pub env: Vec<(String, String)>,
    /// Its directory, if another than the state's.
    pub dir: Option<String>,
    /// Its user, if another than the state's.
    pub user: Option<String>,
    /// Mounts: where, what, how.
    pub mounts: Vec<(String, State, MountOptions)>,
    /// Secrets.
    pub secrets: Vec<SecretOptions>,
    /// Ssh agents.
    pub ssh: Vec<SshOptions>,
    /// Devices.
    pub cdi_devices: Vec<CdiDevice>,
    /// Proxies.
    pub proxy: Option<ProxyEnv>,
    /// The root is read-only.
    pub readonly_root: bool,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// More resource limits.
    pub ulimits: Vec<(String, i64, i64)>,
    /// Parent of the control group, if another than the state's.
    pub cgroup_parent: Option<String>,
    /// Network, if another than the state's.
    pub network: Option<NetMode>,
    /// Privileges, if others than the state's.
    pub security: Option<SecurityMode>,
    /// Exit codes that count as success.
    pub valid_exit_codes: Vec<i32>,
    /// The rest.
    pub constraints: Constraints,
}

/// A mount as it was added.
#[derive(Debug)]
pub(crate) struct ExecMount {
    pub(crate) target: String,
    pub(crate) source: Option<Output>,
    pub(crate) options: MountOptions,
}

impl ExecMount {
    /// Whether the mount makes an output.
    pub(crate) fn has_output(&self) -> bool {
        let options = &self.options;
        !options.no_output && !options.readonly && options.cache.is_none() && options.tmpfs.is_none()
    }
}

/// A process in the making.
#[derive(Debug)]
pub(crate) struct Exec {
    /// In the order in which they were added; the root is the first.
    pub(crate) mounts: Vec<ExecMount>,
    /// Indexes of `mounts`, sorted by target.
    pub(crate) order: Vec<usize>,
    pub(crate) secrets: Vec<SecretOptions>,
    pub(crate) ssh: Vec<SshOptions>,
    pub(crate) cdi_devices: Vec<CdiDevice>,
    pub(crate) proxy: Option<ProxyEnv>,
    pub(crate) values: Values,
}

impl Exec {
    /// Index of the output that the mount at `position` becomes.
    pub(crate) fn output_index(&self, position: usize) -> Option<usize> {
        self.order.iter().filter(|&&mount| self.mounts[mount].has_output()).position(|&mount| mount == position)
    }
}

/// What a process leaves behind.
#[derive(Debug, Clone)]
pub struct ExecState {
    root: State,
    mounts: Vec<State>,
}

impl ExecState {
    /// The root file system after it.
    pub fn root(&self) -> &State {
        &self.root
    }

    /// The mount at `index` of [`Run::mounts`] after it.
    pub fn mount(&self, index: usize) -> Option<&State> {
        self.mounts.get(index)
    }
}

impl State {
    /// Runs a process.
    #[must_use]
    pub fn run(&self, run: Run) -> ExecState {
        let mut base = self.clone();
        for (name, value) in &run.env {
            base = base.env(name, value);
        }
        if let Some(dir) = &run.dir {
            base = base.dir(dir);
        }
        if let Some(user) = &run.user {
            base = base.user(user);
        }
        let mut values = Values::clone(&base.values);
        values.args = run.args;
        for (host, ip) in run.extra_hosts {
            values.extra_hosts.push(crate::op::HostIp { host, ip });
        }
        for (name, soft, hard) in run.ulimits {
            values.ulimits.push(crate::op::Ulimit { name, soft, hard });
        }
        if let Some(parent) = run.cgroup_parent {
            values.cgroup_parent = parent;
        }
        values.network = run.network.unwrap_or(values.network);
        values.security = run.security.unwrap_or(values.security);
        if !run.valid_exit_codes.is_empty() {
            values.valid_exit_codes = run.valid_exit_codes;
        }

        let root = ExecMount {
            target: "/".into(),
            source: self.output.clone(),
            options: MountOptions { readonly: run.readonly_root, ..MountOptions::default() },
        };
        let sources: Vec<State> = run.mounts.iter().map(|(_, state, _)| state.clone()).collect();
        let mounts: Vec<ExecMount> = std::iter::once(root)
            .chain(run.mounts.into_iter().map(|(target, state, options)| ExecMount {
                target,
                source: state.output,
                options,
            }))
            .collect();
        let mut order: Vec<usize> = (0..mounts.len()).collect();
        order.sort_by(|&a, &b| mounts[a].target.cmp(&mounts[b].target));
        let mut deps: Vec<Output> = Vec::new();
        for source in order.iter().filter_map(|&mount| mounts[mount].source.as_ref()) {
            if !deps.iter().any(|known| known.same(source)) {
                deps.push(source.clone());
            }
        }
        let readonly: Vec<bool> = mounts.iter().map(|mount| mount.options.readonly).collect();
        let exec = Exec {
            mounts,
            order,
            secrets: run.secrets,
            ssh: run.ssh,
            cdi_devices: run.cdi_devices,
            proxy: run.proxy,
            values,
        };
        let node = Output::of(Node::new(Kind::Exec(Box::new(exec)), deps, run.constraints)).node;
        // What is read-only comes out as it went in.
        let after = |position: usize, before: &State| {
            if readonly[position] {
                return before.clone();
            }
            before.with_output(Some(Output { node: node.clone(), slot: Slot::Mount(position) }))
        };
        ExecState {
            root: after(0, self),
            mounts: sources.iter().enumerate().map(|(index, state)| after(index + 1, state)).collect(),
        }
    }
}
