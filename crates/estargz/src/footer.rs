//! Footers: where the TOC of a blob is.

use crate::Codec;

/// Bytes at the end of a blob that hold any footer.
pub const MAX_SIZE: usize = 72;

/// Largest TOC, compressed and uncompressed.
pub const MAX_TOC: u64 = 150 << 20;

/// The kinds of lazily pullable layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// eStargz: TOC in the blob.
    Estargz,
    /// stargz of CRFS: no chunk digests.
    Legacy,
    /// eStargz whose TOC is another blob.
    External,
    /// zstd:chunked with a 40-byte footer.
    ZstdChunked,
    /// zstd:chunked with a 64-byte footer, which names tar-split data too.
    ZstdChunkedTarSplit,
}

/// Where a TOC lies and in what form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TocLocation {
    /// gzip: a tar with the TOC as its entry; zstd: the TOC alone.
    pub codec: Codec,
    /// Offset of the compressed TOC in the blob.
    pub offset: u64,
    /// Its compressed length.
    pub compressed_size: u64,
    /// Its uncompressed length, where it is told (zstd).
    pub size: Option<u64>,
    /// Where the members or frames of the tar end.
    pub payload_end: u64,
}

/// A footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Footer {
    /// Its kind.
    pub kind: Kind,
    /// Its length.
    pub size: u64,
    /// Where the TOC is; `None` if it is another blob.
    pub toc: Option<TocLocation>,
    /// Where the members or frames of the tar end.
    pub payload_end: u64,
}

/// Why there is no usable footer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// No footer of any kind: an ordinary layer.
    #[error("not a lazily pullable layer: no footer of a known kind")]
    None,
    /// A footer that points out of the blob, or at too much.
    #[error("invalid {kind:?} footer: {what}")]
    Invalid {
        /// Its kind.
        kind: Kind,
        /// What is wrong.
        what: &'static str,
    },
}

/// Finds the footer in the last bytes of a blob ([`MAX_SIZE`] of them, or the whole blob if it is smaller).
pub fn parse(tail: &[u8], blob_size: u64) -> Result<Footer, FooterError> {
    let _ = (tail, blob_size);
    todo!()
}
