//! Refs and records: what a build's results are kept as, how long, and how their content is identified.
//!
//! A *record* is what is known of a snapshot: type, description, size, use. A *ref* is a handle that keeps a record
//! alive. [`ImmutableRef`]s are lazy: a list of layers and diffs, of which nothing is fetched or mounted until somebody
//! needs it. Making one needs no network, and so does getting one by id after a restart.
//!
//! Beside them this crate keeps the solver's cache in the database ([`KeyCache`], [`Results`]) and computes content
//! hashes that are equal to BuildKit's ([`ImmutableRef::checksum`]).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod contenthash;
mod difference;
mod error;
mod filter;
mod gc;
mod image;
mod keys;
mod layers;
mod mounting;
mod mutable;
mod prune;
mod reclaim;
mod record;
mod refs;
mod results;
mod rows;
mod store;
mod usage;

pub use contenthash::{ChecksumOptions, HashObserver};
pub use error::StoreError;
pub use filter::{Filter, FilterError};
pub use gc::{DiskSpace, GcPolicy, Limits, default_policy};
pub use image::{ImageLayer, Openers};
pub use keys::KeyCache;
pub use layers::LayerUsage;
pub use mounting::Mounting;
pub use mutable::{MutableRef, Sharing};
pub use prune::{PruneOptions, Pruned};
pub use record::{RecordId, RecordInfo, RecordOptions, RecordType};
pub use refs::{ImmutableRef, Part, PartKind};
pub use results::Results;
pub use store::{Store, StoreConfig};
