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
    if let Some(found) = parse_gzip(tail, blob_size) {
        return found;
    }
    if let Some(found) = parse_zstd(tail, blob_size) {
        return found;
    }
    Err(FooterError::None)
}

/// The three gzip footers: an empty member whose extra field says where the TOC is.
fn parse_gzip(tail: &[u8], blob_size: u64) -> Option<Result<Footer, FooterError>> {
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    const TRAILER: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    let offset = |digits: &[u8]| {
        let hex = |number: u64, digit: &u8| match digit {
            b'0'..=b'9' => Some(number << 4 | u64::from(digit - b'0')),
            b'a'..=b'f' => Some(number << 4 | u64::from(digit - b'a' + 10)),
            _ => None,
        };
        digits.iter().try_fold(0, hex)
    };
    for (kind, extra_size) in [(Kind::Estargz, 26usize), (Kind::Legacy, 22), (Kind::External, 21)] {
        let size = HEADER.len() + 2 + extra_size + TRAILER.len();
        let Some(footer) = tail.len().checked_sub(size).map(|start| &tail[start..]) else { continue };
        let extra = footer
            .strip_prefix(&HEADER)
            .and_then(|rest| rest.strip_suffix(&TRAILER))
            .and_then(|rest| rest.strip_prefix(&(extra_size as u16).to_le_bytes()));
        let Some(extra) = extra else { continue };
        let field = |length: u16| extra.strip_prefix(b"SG").and_then(|rest| rest.strip_prefix(&length.to_le_bytes()));
        let digits = match kind {
            Kind::External if field(17) == Some(b"STARGZEXTERNALTOC") => {
                let payload_end = blob_size.saturating_sub(size as u64);
                return Some(Ok(Footer { kind, size: size as u64, toc: None, payload_end }));
            }
            Kind::Estargz => field(22).and_then(|rest| rest.strip_suffix(b"STARGZ")),
            Kind::Legacy => extra.strip_suffix(b"STARGZ"),
            _ => None,
        };
        // Sixteen digits fill 64 bits, so this cannot overflow.
        let Some(offset) = digits.and_then(offset) else { continue };
        return Some(gzip_footer(kind, offset, size as u64, blob_size));
    }
    None
}

fn gzip_footer(kind: Kind, offset: u64, size: u64, blob_size: u64) -> Result<Footer, FooterError> {
    let invalid = |what| Err(FooterError::Invalid { kind, what });
    let Some(compressed_size) = blob_size.checked_sub(size).and_then(|end| end.checked_sub(offset)) else {
        return invalid("the TOC lies outside of the blob");
    };
    if compressed_size == 0 {
        return invalid("the TOC is empty");
    }
    if compressed_size > MAX_TOC {
        return invalid("the TOC is larger than 150 MiB");
    }
    let toc = TocLocation { codec: Codec::Gzip, offset, compressed_size, size: None, payload_end: offset };
    Ok(Footer { kind, size, toc: Some(toc), payload_end: offset })
}

/// The two zstd footers, each in a skippable frame of its own.
fn parse_zstd(tail: &[u8], blob_size: u64) -> Option<Result<Footer, FooterError>> {
    const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
    for (kind, length, magic) in
        [(Kind::ZstdChunked, 40usize, b"GnUlInUx"), (Kind::ZstdChunkedTarSplit, 64, b"GNUlInUx")]
    {
        let size = length + 8;
        let Some(frame) = tail.len().checked_sub(size).map(|start| &tail[start..]) else { continue };
        let body = frame
            .strip_prefix(&SKIPPABLE)
            .and_then(|rest| rest.strip_prefix(&(length as u32).to_le_bytes()))
            .and_then(|body| body.strip_suffix(magic));
        let Some((numbers, _)) = body.map(<[u8]>::as_chunks::<8>) else { continue };
        let number = |at: usize| u64::from_le_bytes(numbers[at]);
        let (offset, compressed_size, toc_size) = (number(0), number(1), number(2));
        let end = blob_size.saturating_sub(size as u64);
        if let Err(what) = check_zstd(offset, compressed_size, toc_size, number(3), end) {
            return Some(Err(FooterError::Invalid { kind, what }));
        }
        let payload_end = offset - 8;
        let toc = TocLocation { codec: Codec::Zstd, offset, compressed_size, size: Some(toc_size), payload_end };
        return Some(Ok(Footer { kind, size: size as u64, toc: Some(toc), payload_end }));
    }
    None
}

/// Checks what a footer, or an annotation in its place, says of a zstd:chunked TOC that must end before `end`.
pub(crate) fn check_zstd(
    offset: u64,
    compressed_size: u64,
    size: u64,
    form: u64,
    end: u64,
) -> Result<(), &'static str> {
    if form != 1 {
        return Err("unknown form of TOC");
    }
    // The TOC lies in a skippable frame, whose header is of 8 bytes.
    if offset < 8 || compressed_size == 0 || offset.checked_add(compressed_size).is_none_or(|toc_end| toc_end > end) {
        return Err("the TOC lies outside of the blob");
    }
    if compressed_size > MAX_TOC || size > MAX_TOC {
        return Err("the TOC is larger than 150 MiB");
    }
    Ok(())
}

/// The 51 bytes that end an eStargz blob whose TOC is at `offset`.
pub(crate) fn estargz(offset: u64) -> [u8; 51] {
    let mut footer = [0; 51];
    let mut at = 0;
    let digits = format!("{offset:016x}STARGZ");
    for part in [
        &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0][..],
        digits.as_bytes(),
        &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        footer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    footer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_it_writes() {
        let mut blob = vec![0; 1000];
        blob.extend(estargz(700));
        let footer = parse(&blob[blob.len() - MAX_SIZE..], 1051).unwrap();
        assert_eq!((footer.kind, footer.size, footer.payload_end), (Kind::Estargz, 51, 700));
        assert_eq!(footer.toc.map(|toc| (toc.offset, toc.compressed_size)), Some((700, 300)));
        for offset in [1000, 1001, u64::MAX] {
            let result = parse(&estargz(offset), 1051);
            assert!(matches!(result, Err(FooterError::Invalid { kind: Kind::Estargz, .. })), "{offset}");
        }
        assert_eq!(parse(&blob[..1050], 1050), Err(FooterError::None));
        assert_eq!(parse(b"", 0), Err(FooterError::None));
    }
}
