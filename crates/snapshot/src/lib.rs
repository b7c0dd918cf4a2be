//! Snapshots: ordered lists of image layers and diffs, mountable, active or committed; and the differ.
//!
//! A snapshot is a list of [`Element`]s, lowest first. Merging concatenates lists and slicing takes the end of one; neither
//! touches a file. Mounting turns the runs of layers into image trees and stacks the diffs' directories on them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod copy;
mod differ;
mod error;
mod local;
mod mounts;
mod record;
mod traits;
mod walk;

pub use differ::LocalDiffer;
pub use error::SnapshotError;
pub use local::LocalSnapshotter;
pub use mounts::Mounts;
pub use traits::{Bases, DiffId, DiffStats, Differ, Element, Info, Kind, SnapshotId, Snapshotter, Usage};
