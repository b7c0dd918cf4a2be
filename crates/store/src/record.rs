//! What is known of a ref.

use std::collections::BTreeMap;
use std::fmt;

use castor_layerfs::LayerId;
use castor_progress::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::ImageLayer;

/// The id of a record: 25 characters, as BuildKit's.
pub type RecordId = String;

/// What a record is for; decides how long it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum RecordType {
    /// Made by castor for itself.
    #[serde(rename = "internal")]
    Internal,
    /// An image of a frontend.
    #[serde(rename = "frontend")]
    Frontend,
    /// Files that a client sent.
    #[serde(rename = "source.local")]
    LocalSource,
    /// A checkout of a git repository.
    #[serde(rename = "source.git.checkout")]
    GitCheckout,
    /// A cache mount.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
    /// Anything else.
    #[default]
    #[serde(rename = "regular")]
    Regular,
}

impl RecordType {
    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
            Self::Regular => "regular",
        }
    }

    /// Reads what [`as_str`](Self::as_str) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Internal, Self::Frontend, Self::LocalSource, Self::GitCheckout, Self::CacheMount, Self::Regular]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a new record is to be.
#[derive(Debug, Clone, Default)]
pub struct RecordOptions {
    /// What users read in `du`, and in the history of an image.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// When it was made, if not now.
    pub created: Option<Timestamp>,
    /// Stays when nobody holds it any more. Without it a record goes with its last ref, unless a result is kept for the
    /// cache (then the record is retained from that moment on).
    pub retain: bool,
}

impl RecordOptions {
    /// A regular record with a description.
    pub fn described(description: impl Into<String>) -> Self {
        Self { description: description.into(), ..Self::default() }
    }
}

/// A record as `du` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordInfo {
    /// Its id.
    pub id: RecordId,
    /// Whether it can be written to.
    pub mutable: bool,
    /// Whether somebody holds it, or something made of it.
    pub in_use: bool,
    /// Bytes on disk; 0 for a writable one in use, which changes.
    pub size: i64,
    /// The records it is made of.
    pub parents: Vec<RecordId>,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last let go of.
    pub last_used: Option<Timestamp>,
    /// How often it was let go of.
    pub usage_count: i64,
    /// What it is.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Whether something outside of the store uses it too.
    pub shared: bool,
}

/// What a record is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Body {
    /// A layer of an image on another record.
    Image { layer: Box<ImageLayer>, parent: Option<RecordId> },
    /// The change that a step made; the snapshot of the record's name is committed.
    Change { parent: Option<RecordId> },
    /// A writable record: the snapshot of the record's name is active.
    Active { parent: Option<RecordId> },
    /// Several, stacked.
    Merge { parts: Vec<RecordId> },
    /// What the one has on top of the other.
    Slice { lower: Option<RecordId>, upper: Option<RecordId> },
}

impl Body {
    pub(crate) fn parents(&self) -> Vec<RecordId> {
        match self {
            Self::Image { parent, .. } | Self::Change { parent } | Self::Active { parent } => {
                parent.iter().cloned().collect()
            }
            Self::Merge { parts } => parts.clone(),
            Self::Slice { lower, upper } => lower.iter().chain(upper).cloned().collect(),
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        matches!(self, Self::Active { .. })
    }
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) body: Body,
    /// The records that give it one layer or diff each, lowest first, itself included where it is one of them.
    #[serde(default)]
    pub(crate) parts: Vec<RecordId>,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) record_type: RecordType,
    pub(crate) created: Timestamp,
    #[serde(default)]
    pub(crate) last_used: Option<Timestamp>,
    #[serde(default)]
    pub(crate) usage_count: i64,
    #[serde(default)]
    pub(crate) size: Option<u64>,
    #[serde(default)]
    pub(crate) retain: bool,
    /// What the record is found by again: a shared key of a local source, the id of a cache mount.
    #[serde(default)]
    pub(crate) key: Option<String>,
    /// The snapshots made for it beside the one of its own name.
    #[serde(default)]
    pub(crate) snapshots: Vec<String>,
    /// The layer object of an image layer, once it was made.
    #[serde(default)]
    pub(crate) layer: Option<LayerId>,
    /// What other crates keep with the record.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}
