//! Immutable refs.

use std::sync::Arc;

use castor_content::Resource;
use castor_layerfs::Layer;
use castor_oci::Digest;
use castor_progress::Timestamp;
use castor_snapshot::SnapshotId;
use castor_solver::Cx;

use crate::{ChecksumOptions, ImageLayer, Mounting, RecordInfo, StoreError};

/// A handle of an immutable record, or of nothing at all (scratch). Clones are the same handle; the record is let go of
/// with the last.
#[derive(Debug, Clone)]
pub struct ImmutableRef {}

/// What one part of a ref is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartKind {
    /// A layer of an image.
    Image(Box<ImageLayer>),
    /// The change that a step made.
    Change,
    /// The difference of two refs that are not one on top of the other.
    Difference,
}

/// One of the parts that a ref stacks, each of which becomes a layer of an exported image.
#[derive(Debug, Clone)]
pub struct Part {
    /// The record of this part.
    pub record: ImmutableRef,
    /// What it is.
    pub kind: PartKind,
    /// What made it, for an image's history.
    pub description: String,
    /// When.
    pub created: Timestamp,
}

impl ImmutableRef {
    /// The record's id; empty for scratch.
    pub fn id(&self) -> &str {
        todo!()
    }

    /// Whether it is nothing at all.
    pub fn is_scratch(&self) -> bool {
        todo!()
    }

    /// What `du` would show.
    pub fn info(&self) -> RecordInfo {
        todo!()
    }

    /// The parts it stacks, lowest first. Fetches nothing.
    pub fn parts(&self) -> Vec<Part> {
        todo!()
    }

    /// Whether any of its layers has bytes that are not here. Says nothing about bytes that are being fetched.
    pub async fn is_lazy(&self) -> bool {
        todo!()
    }

    /// Whether the tar streams of all its image layers have been verified: whether its claimed diff IDs are true.
    pub async fn is_verified(&self) -> bool {
        todo!()
    }

    /// The layer objects of its image layers, lowest first: makes those that are not here lazy or begins to fetch them,
    /// reporting to `cx`.
    pub async fn layers(&self, cx: &Cx) -> Result<Vec<Arc<Layer>>, StoreError> {
        let _ = cx;
        todo!()
    }

    /// Makes it ready to be mounted: lazy layers are made known, eager ones fetched.
    pub async fn ready(&self, cx: &Cx) -> Result<(), StoreError> {
        let _ = cx;
        todo!()
    }

    /// Fetches and verifies all that is missing.
    pub async fn complete(&self, cx: &Cx) -> Result<(), StoreError> {
        let _ = cx;
        todo!()
    }

    /// The snapshot of it (made if need be) for [`castor_snapshot::Differ`] and such; `None` for scratch.
    pub async fn snapshot(&self, cx: &Cx) -> Result<Option<SnapshotId>, StoreError> {
        let _ = cx;
        todo!()
    }

    /// The ref below a [`PartKind::Change`] or [`PartKind::Image`] record; scratch if there is none. For a
    /// [`PartKind::Difference`] the lower of the two.
    pub fn lower(&self) -> ImmutableRef {
        todo!()
    }

    /// Mounts it read-only. All who want it at once share one mount.
    pub async fn mount(&self, cx: &Cx) -> Result<Arc<Mounting>, StoreError> {
        let _ = cx;
        todo!()
    }

    /// The digest over the content of `path`, equal to the one that BuildKit computes.
    pub async fn checksum(&self, cx: &Cx, path: &str, options: &ChecksumOptions) -> Result<Digest, StoreError> {
        let _ = (cx, path, options);
        todo!()
    }

    /// Keeps the record after the last handle, until it is pruned.
    pub async fn retain(&self) -> Result<(), StoreError> {
        todo!()
    }

    /// Makes the record's lease hold `resource`: it stays as long as the record.
    pub async fn hold(&self, resource: Resource) -> Result<(), StoreError> {
        let _ = resource;
        todo!()
    }

    /// What another crate keeps with the record.
    pub fn label(&self, name: &str) -> Option<String> {
        let _ = name;
        todo!()
    }

    /// Keeps something with the record; durable soon. `None` removes it.
    pub fn set_label(&self, name: &str, value: Option<&str>) {
        let _ = (name, value);
        todo!()
    }
}
