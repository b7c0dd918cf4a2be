//! Writing LLB: [`State`] builds a graph step by step and marshals it.
//!
//! A state is an output of some vertex together with what the next process would run with: environment, directory,
//! user and so on. States are values; each step gives a new one and shares the old graph. [`State::marshal`] writes
//! the bytes that BuildKit's Go client would.

mod exec;
mod file;
mod marshal;
mod node;
mod origin;

use std::sync::Arc;

use castor_oci::{ImageConfig, Platform};

pub use crate::error::MarshalError;
pub use exec::{MountOptions, Run, SecretOptions, SshOptions};
pub use file::{Action, CopyOptions, NameOrId, Owner, clean, join};
pub use marshal::MarshalOptions;
pub use node::{Constraints, Late, SourceText};
pub use origin::{GitOptions, HttpOptions, ImageOptions, LocalOptions, OciLayoutOptions};

pub(crate) use node::Output;
use node::{Kind, Node, Slot};

use crate::op::{HostIp, NetMode, SecurityMode, Ulimit};

/// Variables in the order in which they were last set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(Vec<(String, String)>);

impl Env {
    /// Sets a variable; it becomes the last.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable away.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many variables there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all names and values.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// `NAME=value` in order.
    pub fn to_vec(&self) -> Vec<String> {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// What a process would run with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values {
    pub(crate) args: Vec<String>,
    /// Shared by all states that do not change it.
    pub(crate) env: Arc<Env>,
    pub(crate) dir: String,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) extra_hosts: Vec<HostIp>,
    pub(crate) ulimits: Vec<Ulimit>,
    pub(crate) cgroup_parent: String,
    pub(crate) valid_exit_codes: Vec<i32>,
    pub(crate) network: NetMode,
    pub(crate) security: SecurityMode,
    pub(crate) platform: Option<Platform>,
}

/// A point in a graph, and what the next step starts from.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) output: Option<Output>,
    pub(crate) values: Arc<Values>,
}

impl State {
    /// The empty file system.
    pub fn scratch() -> Self {
        Self::from_output(None)
    }

    fn from_output(output: Option<Output>) -> Self {
        let values = Values { dir: "/".into(), ..Values::default() };
        Self { output: None, values: Arc::new(values) }.with_output(output)
    }

    pub(crate) fn with_output(&self, output: Option<Output>) -> Self {
        let platform = output.as_ref().and_then(|output| output.platform().cloned());
        let mut state = Self { output, values: self.values.clone() };
        if let Some(platform) = platform {
            state = state.platform(&platform);
        }
        state
    }

    /// A state whose graph is given later, through the other half.
    pub fn late() -> (Self, Late) {
        let node = Arc::new(Node::new(Kind::Late, Vec::new(), Constraints::default()));
        let state = Self::from_output(Some(Output { node: node.clone(), slot: Slot::Index(0) }));
        (state, Late(node))
    }

    /// Whether this is the empty file system.
    pub fn is_scratch(&self) -> bool {
        match &self.output {
            None => true,
            Some(output) => matches!(output.resolve(), Ok(None)),
        }
    }

    /// This state's environment, directory and so on, over the file system of `other`.
    #[must_use]
    pub fn with_files_of(&self, other: &Self) -> Self {
        self.with_output(other.output.clone())
    }

    fn with(&self, change: impl FnOnce(&mut Values)) -> Self {
        let mut state = self.clone();
        change(Arc::make_mut(&mut state.values));
        state
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(&self, name: &str, value: &str) -> Self {
        self.with(|values| Arc::make_mut(&mut values.env).set(name, value))
    }

    /// Sets a variable of the environment in place; what was built from this state before keeps its own.
    pub fn set_env(&mut self, name: &str, value: &str) {
        Arc::make_mut(&mut Arc::make_mut(&mut self.values).env).set(name, value);
    }

    /// Enters a directory, seen from the present one.
    #[must_use]
    pub fn dir(&self, dir: &str) -> Self {
        self.with(|values| {
            values.dir = if dir.starts_with('/') { dir.to_owned() } else { join(&["/", &values.dir, dir]) };
        })
    }

    /// Becomes a user.
    #[must_use]
    pub fn user(&self, user: &str) -> Self {
        self.with(|values| user.clone_into(&mut values.user))
    }

    /// Sets the host name.
    #[must_use]
    pub fn hostname(&self, hostname: &str) -> Self {
        self.with(|values| hostname.clone_into(&mut values.hostname))
    }

    /// Adds a resource limit.
    #[must_use]
    pub fn ulimit(&self, name: &str, soft: i64, hard: i64) -> Self {
        self.with(|values| values.ulimits.push(Ulimit { name: name.to_owned(), soft, hard }))
    }

    /// Sets the parent of the control group.
    #[must_use]
    pub fn cgroup_parent(&self, parent: &str) -> Self {
        self.with(|values| parent.clone_into(&mut values.cgroup_parent))
    }

    /// Sets the network.
    #[must_use]
    pub fn network(&self, network: NetMode) -> Self {
        self.with(|values| values.network = network)
    }

    /// Sets the privileges.
    #[must_use]
    pub fn security(&self, security: SecurityMode) -> Self {
        self.with(|values| values.security = security)
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(&self, platform: &Platform) -> Self {
        self.with(|values| values.platform = Some(platform.clone().normalize()))
    }

    /// Takes environment, directory and platform from an image's config.
    #[must_use]
    pub fn image_config(&self, config: &ImageConfig) -> Self {
        let state = self.with(|values| {
            for variable in &config.config.env {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                if !name.is_empty() {
                    Arc::make_mut(&mut values.env).set(name, value);
                }
            }
        });
        let state = state.dir(&config.config.working_dir);
        if config.platform.architecture.is_empty() || config.platform.os.is_empty() {
            return state;
        }
        state.platform(&config.platform)
    }

    /// The environment.
    pub fn get_env(&self) -> &Env {
        &self.values.env
    }

    /// The directory.
    pub fn get_dir(&self) -> &str {
        &self.values.dir
    }

    /// The platform, if it is known.
    pub fn get_platform(&self) -> Option<&Platform> {
        self.values.platform.as_ref()
    }

    /// Stacks states, lowest first. Scratch counts for nothing.
    #[must_use]
    pub fn merge(states: &[Self], constraints: Constraints) -> Self {
        let layers: Vec<&Self> = states.iter().filter(|state| state.output.is_some()).collect();
        match layers.as_slice() {
            [] => Self::scratch(),
            [one] => (*one).clone(),
            [first, ..] => {
                let constraints = constraints.with_cap("mergeop");
                let deps = layers.iter().filter_map(|state| state.output.clone()).collect();
                first.with_output(Some(Output::of(Node::new(Kind::Merge, deps, constraints))))
            }
        }
    }

    /// What `upper` changed over `lower`.
    #[must_use]
    pub fn diff(lower: &Self, upper: &Self, constraints: Constraints) -> Self {
        let Some(below) = &lower.output else {
            return if upper.output.is_none() { Self::scratch() } else { upper.clone() };
        };
        let has_upper = upper.output.is_some();
        let deps = std::iter::once(below.clone()).chain(upper.output.clone()).collect();
        let node = Node::new(Kind::Diff { has_upper }, deps, constraints.with_cap("diffop"));
        lower.with_output(Some(Output::of(node)))
    }

    /// This state under another digest, one that depends on `others` too.
    #[must_use]
    pub fn requires(&self, id: &str, others: &[Self]) -> Self {
        if others.is_empty() {
            return self.clone();
        }
        let deps: Vec<Output> = std::iter::once(self).chain(others).filter_map(|state| state.output.clone()).collect();
        let outputs = if self.output.is_some() { vec![0] } else { Vec::new() };
        let kind = Kind::Passthrough { id: id.to_owned(), outputs };
        self.with_output(Some(Output::of(Node::new(kind, deps, Constraints::default().with_cap("passthroughop")))))
    }
}
