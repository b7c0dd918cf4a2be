//! Annotations of a layer's descriptor that concern its TOC.

use std::collections::BTreeMap;

use castor_oci::Digest;

use crate::Codec;
use crate::footer::{TocLocation, check_zstd};

/// Digest of the uncompressed TOC.
pub const TOC_DIGEST: &str = castor_oci::ANNOTATION_TOC_DIGEST;
/// Digest of the compressed TOC, as the stargz-snapshotter writes it.
pub const ZSTD_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
/// Place of the TOC, as the stargz-snapshotter writes it.
pub const ZSTD_POSITION: &str = "io.containers.zstd-chunked.manifest-position";
/// Digest of the compressed TOC, as containers/storage writes it.
pub const ZSTD_CHECKSUM_CONTAINERS: &str = "io.github.containers.zstd-chunked.manifest-checksum";
/// Place of the TOC, as containers/storage writes it.
pub const ZSTD_POSITION_CONTAINERS: &str = "io.github.containers.zstd-chunked.manifest-position";

/// In the descriptor of a layer that asks to be used although nothing verifies it (stargz of CRFS); it counts only where the
/// configuration allows it.
pub const SKIP_VERIFY: &str = "containerd.io/snapshot/remote/stargz.skipverify";
/// In the descriptor of an external TOC: the digest of the layer that it belongs to.
pub const TOC_OF_LAYER: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What a TOC is verified by: all that is given must be right, and one must be given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TocDigests {
    /// Digest of the uncompressed TOC.
    pub uncompressed: Option<Digest>,
    /// Digest of the compressed TOC (zstd:chunked).
    pub compressed: Option<Digest>,
}

impl TocDigests {
    /// Whether there is nothing to verify a TOC by: such a layer must not be used lazily.
    pub const fn is_empty(&self) -> bool {
        self.uncompressed.is_none() && self.compressed.is_none()
    }

    /// The digest that names the TOC in the identity of a layer: two layers with the same one have the same TOC.
    pub const fn identity(&self) -> Option<Digest> {
        match self.uncompressed {
            None => self.compressed,
            uncompressed => uncompressed,
        }
    }
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

/// What the annotations say the TOC is verified by.
pub fn toc_digests(annotations: &BTreeMap<String, String>) -> Result<TocDigests, AnnotationError> {
    let digest = |key| match annotations.get(key) {
        None => Ok(None),
        Some(value) => value.parse().map(Some).map_err(|_| AnnotationError { key, value: value.clone() }),
    };
    let compressed = match digest(ZSTD_CHECKSUM_CONTAINERS)? {
        None => digest(ZSTD_CHECKSUM)?,
        found => found,
    };
    Ok(TocDigests { uncompressed: digest(TOC_DIGEST)?, compressed })
}

/// Where the annotations say the TOC is (zstd:chunked only); saves reading the footer.
pub fn toc_location(
    annotations: &BTreeMap<String, String>,
    blob_size: u64,
) -> Result<Option<TocLocation>, AnnotationError> {
    for key in [ZSTD_POSITION_CONTAINERS, ZSTD_POSITION] {
        if let Some(value) = annotations.get(key) {
            let location = parse_position(value, blob_size);
            return location.map(Some).ok_or_else(|| AnnotationError { key, value: value.clone() });
        }
    }
    Ok(None)
}

/// `OFFSET:COMPRESSED:UNCOMPRESSED:1`
fn parse_position(value: &str, blob_size: u64) -> Option<TocLocation> {
    let mut numbers = [0u64; 4];
    let mut parts = value.split(':');
    for number in &mut numbers {
        let part = parts.next()?;
        // `parse` alone would take a sign.
        *number = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())??;
    }
    let [offset, compressed_size, size, form] = numbers;
    if parts.next().is_some() || check_zstd(offset, compressed_size, size, form, blob_size).is_err() {
        return None;
    }
    let payload_end = offset - 8;
    Some(TocLocation { codec: Codec::Zstd, offset, compressed_size, size: Some(size), payload_end })
}
