//! The worker traits of snapshots.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use async_trait::async_trait;
use castor_layerfs::LayerId;
use serde::{Deserialize, Serialize};

use crate::error::SnapshotError;
use crate::mounts::Mounts;

/// Names a snapshot; chosen by whoever makes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// A name. It becomes part of a database key, not of a path.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the change that one step made; its number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub u64);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// A layer of an image.
    Layer(LayerId),
    /// The change of one step.
    Diff(DiffId),
}

/// The layers that layers of an image were made on: the others of their image below them, lowest first.
pub type Bases = BTreeMap<LayerId, Vec<LayerId>>;

/// What a snapshot may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writable, in the making.
    Active,
    /// Final.
    Committed,
    /// A read-only look at a committed one.
    View,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// What it may be used for.
    pub kind: Kind,
    /// Its parts, lowest first; of an active one the last is its own change.
    pub elements: Vec<Element>,
    /// The snapshot that an active one or a view was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
}

/// What a snapshot takes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes.
    pub size: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Keeps snapshots.
#[async_trait]
pub trait Snapshotter: Send + Sync {
    /// Makes a committed snapshot of `elements`, lowest first. The layers' objects must be known to the engine; nothing
    /// is fetched, but what has to be made anew. Of equal elements the last counts, and diffs that were made on something
    /// else do here what they did there; so do layers of which `bases` says what they were made on. The same list under the
    /// same name is no error.
    async fn create(&self, id: &SnapshotId, elements: &[Element], bases: &Bases) -> Result<(), SnapshotError>;

    /// Makes an active snapshot on `parent` (on nothing: empty).
    async fn prepare(&self, id: &SnapshotId, parent: Option<&SnapshotId>) -> Result<(), SnapshotError>;

    /// Makes a read-only look at `parent`.
    async fn view(&self, id: &SnapshotId, parent: &SnapshotId) -> Result<(), SnapshotError>;

    /// Turns the active snapshot `active` into the committed one `id` (which may be the same name). It must not be
    /// mounted for writing any more.
    async fn commit(&self, id: &SnapshotId, active: &SnapshotId) -> Result<(), SnapshotError>;

    /// Makes a committed snapshot that stacks `parts`, lowest first.
    async fn merge(&self, id: &SnapshotId, parts: &[SnapshotId]) -> Result<(), SnapshotError>;

    /// Makes a committed snapshot of what `upper` has on top of `lower` (on nothing: all of it); false, and nothing is
    /// made, if `lower` is not the beginning of `upper`'s list.
    async fn slice(
        &self,
        id: &SnapshotId,
        lower: Option<&SnapshotId>,
        upper: &SnapshotId,
    ) -> Result<bool, SnapshotError>;

    /// What is known of a snapshot; none if there is no such one.
    async fn info(&self, id: &SnapshotId) -> Result<Option<Info>, SnapshotError>;

    /// What is needed to mount it: an active one writable, others read-only. Waits for eager layers to be here.
    async fn mounts(&self, id: &SnapshotId) -> Result<Mounts, SnapshotError>;

    /// What it takes on disk beyond its parent: of a committed one, its last element.
    async fn usage(&self, id: &SnapshotId) -> Result<Usage, SnapshotError>;

    /// Deletes it. What no other snapshot uses of it is deleted as well.
    async fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError>;

    /// All snapshots.
    async fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError>;
}

/// What a diff wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiffStats {
    /// Entries of the layer.
    pub entries: u64,
    /// Bytes of the tar stream.
    pub bytes: u64,
}

/// Compares snapshots.
#[async_trait]
pub trait Differ: Send + Sync {
    /// Writes the changes that lead from `lower` (none: from nothing) to `upper` to `out` as the tar stream of a layer.
    /// Gives `out` back.
    async fn diff(
        &self,
        lower: Option<&SnapshotId>,
        upper: &SnapshotId,
        out: Box<dyn Write + Send>,
    ) -> Result<(Box<dyn Write + Send>, DiffStats), SnapshotError>;
}
