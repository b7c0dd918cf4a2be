//! Layer objects and image trees: every image layer, lazy or eager, becomes one object on disk; a list of layers becomes
//! one EROFS image of metadata alone, with the layers' data files as its devices.
//!
//! ```text
//! <root>/layers/<blob>[-<toc>]/tree       the layer's entries and chunk table, mapped        (module `tree`)
//!                             /data       file payloads, each at a 4 KiB-aligned place, sparse
//!                             /presence   which chunks of `data` are here                    (module `presence`)
//!                             /origin     descriptor, repositories, verified diff ID         (module `origin`)
//! <root>/trees/<digest>.erofs             image trees, derived and disposable                (module `image`)
//! ```
//!
//! A [`LayerEngine`] owns them, fetches what is missing and serves lazy layers to the kernel.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod compare;
mod complete;
mod download;
mod engine;
mod error;
mod errors;
mod evict;
mod fetch;
mod image;
mod image_tree;
mod layer;
mod map;
mod mode;
mod open;
mod opener;
mod origin;
mod presence;
mod report;
mod serve;
mod serving;
mod source;
mod tree;
mod treefs;
mod unpack;

pub use engine::{Config, LayerEngine};
pub use error::{LayerError, ReadError};
pub use image_tree::ImageTree;
pub use layer::{Layer, LayerState, Progress, Reliance};
pub use mode::{Mode, Modes};
pub use open::{NOT_ASKED, Verification};
pub use opener::{RegistryOpener, external_toc};
pub use report::LayerReport;
pub use source::{BlobOpener, FetchError, LayerId, LayerSource, Lazy, Priority, RangeBody};
pub use treefs::{ServerProgram, serve_trees};
