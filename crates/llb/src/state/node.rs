//! The graph behind states.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use castor_oci::{Digest, Platform};

use super::exec::Exec;
use super::file::{Action, BoundAction};
use crate::error::MarshalError;
use crate::{Definition, OpMetadata, ProgressGroup, Range};

/// A source file that vertices may come from.
#[derive(Debug, Clone, Default)]
pub struct SourceText {
    /// Its name.
    pub filename: String,
    /// Its language, in GitHub Linguist's words.
    pub language: String,
    /// Its text.
    pub data: Bytes,
    /// How the file itself is had.
    pub definition: Option<Definition>,
}

/// What does not change what an op does: its platform, name, group, place in the source.
#[derive(Debug, Clone, Default)]
pub struct Constraints {
    pub(crate) platform: Option<Platform>,
    pub(crate) filters: Vec<String>,
    pub(crate) metadata: OpMetadata,
    pub(crate) locations: Vec<(Arc<SourceText>, Vec<Range>)>,
}

impl Constraints {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The platform to run on or to take.
    #[must_use]
    pub fn platform(mut self, platform: Option<&Platform>) -> Self {
        if let Some(platform) = platform {
            self.platform = Some(platform.clone());
        }
        self
    }

    /// The name that users read.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.describe("llb.customname", name)
    }

    /// A text beside the op.
    #[must_use]
    pub fn describe(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.description.insert(key.to_owned(), value.into());
        self
    }

    /// Whether not to look into the cache.
    #[must_use]
    pub fn ignore_cache(mut self, ignore: bool) -> Self {
        self.metadata.ignore_cache |= ignore;
        self
    }

    /// Whether to export the result with the cache.
    #[must_use]
    pub fn export_cache(mut self, export: bool) -> Self {
        self.metadata.export_cache = Some(export);
        self
    }

    /// The group that the vertex is shown in.
    #[must_use]
    pub fn group(mut self, group: Option<ProgressGroup>) -> Self {
        if group.is_some() {
            self.metadata.progress_group = group;
        }
        self
    }

    /// Where in a source file the op comes from.
    #[must_use]
    pub fn location(mut self, file: &Arc<SourceText>, ranges: Vec<Range>) -> Self {
        self.locations.push((file.clone(), ranges));
        self
    }

    /// Limits of the process.
    #[must_use]
    pub fn resources(mut self, limits: Option<crate::LinuxResources>) -> Self {
        if limits.is_some() {
            self.metadata.linux_resources = limits;
        }
        self
    }

    /// Which workers may run it.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filters.push(filter.into());
        self
    }

    pub(crate) fn with_cap(mut self, cap: &str) -> Self {
        self.metadata.caps.insert(cap.to_owned(), true);
        self
    }
}

/// One output of a node.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) node: Arc<Node>,
    pub(crate) slot: Slot,
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// By its index.
    Index(usize),
    /// By the mount of an exec, whose index is known once mounts are sorted.
    Mount(usize),
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind {
    Source {
        identifier: String,
        attrs: BTreeMap<String, String>,
        error: Option<MarshalError>,
    },
    Exec(Box<Exec>),
    File(Vec<BoundAction>),
    Merge,
    Diff {
        has_upper: bool,
    },
    Passthrough {
        id: String,
        outputs: Vec<usize>,
    },
    /// An op of somebody else's definition.
    Encoded {
        raw: Bytes,
        digest: Digest,
        metadata: OpMetadata,
    },
    /// To be given later.
    Late,
}

/// A vertex in the making. `deps` are all outputs that it uses, in the order in which BuildKit walks them.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) deps: Vec<Output>,
    pub(crate) constraints: Constraints,
    late: OnceLock<Option<Output>>,
}

impl Node {
    pub(crate) fn new(kind: Kind, deps: Vec<Output>, constraints: Constraints) -> Self {
        Self { kind, deps, constraints, late: OnceLock::new() }
    }
}

impl Node {
    /// Moves all outputs that the node holds to `rest`.
    fn release(&mut self, rest: &mut Vec<Output>) {
        rest.append(&mut self.deps);
        rest.extend(self.late.take().flatten());
        match &mut self.kind {
            Kind::Exec(exec) => rest.extend(exec.mounts.iter_mut().filter_map(|mount| mount.source.take())),
            Kind::File(actions) => {
                for bound in actions {
                    rest.extend(bound.base.take());
                    if let Action::Copy { from, .. } = &mut bound.action {
                        rest.extend(from.output.take());
                    }
                }
            }
            _ => {}
        }
    }
}

impl Drop for Node {
    /// Chains of nodes are as long as users' files; they are taken apart in a loop, not by recursion.
    fn drop(&mut self) {
        let mut rest = Vec::new();
        self.release(&mut rest);
        while let Some(output) = rest.pop() {
            if let Some(mut node) = Arc::into_inner(output.node) {
                node.release(&mut rest);
            }
        }
    }
}

impl Output {
    pub(crate) fn of(node: Node) -> Self {
        Self { node: Arc::new(node), slot: Slot::Index(0) }
    }

    /// The platform that a state at this output gets.
    pub(crate) fn platform(&self) -> Option<&Platform> {
        match self.node.kind {
            Kind::Source { .. } | Kind::Exec(_) | Kind::Encoded { .. } => self.node.constraints.platform.as_ref(),
            _ => None,
        }
    }

    /// The output behind states given later; `None` is scratch.
    pub(crate) fn resolve(&self) -> Result<Option<Self>, MarshalError> {
        let mut output = self.clone();
        while matches!(output.node.kind, Kind::Late) {
            match output.node.late.get() {
                None => return Err(MarshalError::Unset),
                Some(None) => return Ok(None),
                Some(Some(next)) => {
                    let next = next.clone();
                    output = next;
                }
            }
        }
        Ok(Some(output))
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.node, &other.node) && self.slot == other.slot
    }
}

/// The other half of [`State::late`](super::State::late).
#[derive(Debug, Clone)]
pub struct Late(pub(super) Arc<Node>);

impl Late {
    /// Says what the state is. Only the first time counts, and it must not be built on the state itself.
    pub fn set(&self, state: &super::State) {
        let own = |output: &Output| Arc::ptr_eq(&output.node, &self.0);
        if state.output.as_ref().is_some_and(own) {
            return;
        }
        // A second value is ignored, as the documentation says.
        drop(self.0.late.set(state.output.clone()));
    }
}
