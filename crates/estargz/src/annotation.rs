//! Annotations of a layer's descriptor that concern its TOC.

use std::collections::BTreeMap;

use castor_oci::Digest;

use crate::footer::TocLocation;

/// Digest of the uncompressed TOC.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Size of the uncompressed blob.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";
/// In an image of TOCs: the layer that a TOC belongs to.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/stargz/layer.digest";
/// Digest of the compressed TOC, as the stargz-snapshotter writes it.
pub const ZSTD_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
/// Place of the TOC, as the stargz-snapshotter writes it.
pub const ZSTD_POSITION: &str = "io.containers.zstd-chunked.manifest-position";
/// Digest of the compressed TOC, as containers/storage writes it.
pub const ZSTD_CHECKSUM_CONTAINERS: &str = "io.github.containers.zstd-chunked.manifest-checksum";
/// Place of the TOC, as containers/storage writes it.
pub const ZSTD_POSITION_CONTAINERS: &str = "io.github.containers.zstd-chunked.manifest-position";
/// Place of the tar-split data, as containers/storage writes it.
pub const ZSTD_TARSPLIT_CONTAINERS: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// What a TOC is verified by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TocDigest {
    /// Digest of the uncompressed TOC.
    Uncompressed(Digest),
    /// Digest of the compressed TOC.
    Compressed(Digest),
}

/// An annotation that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid annotation {key}={value:?}")]
pub struct AnnotationError {
    /// Its key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
}

/// What the annotations say the TOC is verified by; `None`: nothing, so the layer must not be used lazily.
/// The digest of the uncompressed TOC is preferred.
pub fn toc_digest(annotations: &BTreeMap<String, String>) -> Result<Option<TocDigest>, AnnotationError> {
    let _ = annotations;
    todo!()
}

/// Where the annotations say the TOC is (zstd:chunked only); saves reading the footer.
pub fn toc_location(
    annotations: &BTreeMap<String, String>,
    blob_size: u64,
) -> Result<Option<TocLocation>, AnnotationError> {
    let _ = (annotations, blob_size);
    todo!()
}
