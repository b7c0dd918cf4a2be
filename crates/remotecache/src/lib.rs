//! Caches outside of the daemon: what is known of results, and their layers, in a registry, in a directory of the client,
//! or in an image.
//!
//! [`import()`] reads the records of such a cache; an [`Imported`] answers the solver's look-ups and makes refs of its
//! results, whose layers are fetched when something wants them. [`export()`] writes the records that lead to a result, and
//! [`InlineRecords`] makes those that an image carries in its config. The form is BuildKit's, version 0
//! ([`CacheConfig`]), and both read what the other wrote.
//!
//! Who names a cache trusts it: that a record leads to certain layers is what the cache says. What is exported was made
//! here or imported: never under a claim that was not verified (see [`castor_solver::CacheMap::private`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chains;
mod collect;
mod config;
mod error;
mod export;
mod import;
mod imported;
mod inline;
mod options;
mod records;

pub use collect::ExportParts;
pub use config::{
    CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult, ChainedResult, ConfigError, MEDIA_TYPE,
};
pub use error::RemoteCacheError;
pub use export::{ExportTargets, export};
pub use import::{ImportOptions, import};
pub use imported::{ImportParts, Imported};
pub use inline::InlineRecords;
pub use options::{ExportOptions, Mode};
