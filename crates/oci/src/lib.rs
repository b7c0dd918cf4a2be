//! OCI image types with stable bytes: what castor reads from registries, names content by, and writes back.
//!
//! Pure: no IO. Maps are ordered and unknown fields are kept, so that the same value always serialises to the same
//! bytes and re-written documents lose nothing.

mod chain;
mod digest;
mod image;
pub mod media_type;
mod platform;
mod reference;

pub use chain::{ChainId, chain_ids};
pub use digest::{Digest, DigestError, Hasher};
pub use image::{
    Annotations, ContainerConfig, Descriptor, HealthConfig, History, ImageConfig, Index, Manifest, RootFs,
};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};

/// Annotation of a layer descriptor: digest of the uncompressed TOC JSON of an eStargz or zstd:chunked layer.
pub const ANNOTATION_TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Annotation of a layer descriptor: size in bytes (decimal) of the whole decompressed layer.
pub const ANNOTATION_UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
