//! A whole blob that is here.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use castor_archive::ReadAt;
use castor_archive::read_at::SliceReader;

use crate::Codec;
use crate::annotation::{self, AnnotationError};
use crate::footer::{self, Footer, FooterError};
use crate::toc::{self, Toc, TocError};

/// A blob with its TOC.
#[derive(Debug)]
pub struct Opened {
    /// Its footer, unless annotations told where the TOC is.
    pub footer: Option<Footer>,
    /// Its TOC.
    pub toc: Toc,
}

/// Why a blob cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No footer.
    #[error(transparent)]
    Footer(#[from] FooterError),
    /// No TOC.
    #[error(transparent)]
    Toc(#[from] TocError),
    /// Malformed annotations.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The blob cannot be read.
    #[error("read layer blob: {0}")]
    Io(#[from] io::Error),
    /// The TOC lies elsewhere and was not given.
    #[error("the layer's TOC is not in its blob")]
    External,
    /// Nothing says what the TOC must be.
    #[error("no annotation to verify the TOC by")]
    Unverifiable,
}

/// Opens a blob: footer, TOC, verified by `annotations`, all chunks verifiable. `external` is the TOC blob of a
/// layer that has it apart.
pub fn open(
    blob: &dyn ReadAt,
    annotations: &BTreeMap<String, String>,
    external: Option<&[u8]>,
) -> Result<Opened, OpenError> {
    let digests = annotation::toc_digests(annotations)?;
    let blob_size = blob.size()?;
    let mut footer = None;
    let location = match annotation::toc_location(annotations, blob_size)? {
        Some(location) => Some(location),
        None => {
            let mut tail = vec![0; footer::MAX_SIZE.min(usize::try_from(blob_size).unwrap_or(usize::MAX))];
            let start = blob_size - tail.len() as u64;
            blob.read_exact_at(&mut tail, start)?;
            footer.insert(footer::parse(&tail, blob_size)?).toc
        }
    };
    if digests.is_empty() {
        return Err(OpenError::Unverifiable);
    }
    let (json, codec, payload_end) = match location {
        Some(location) => {
            let mut compressed = vec![0; location.compressed_size as usize];
            blob.read_exact_at(&mut compressed, location.offset)?;
            (toc::decode(&location, &compressed, &digests)?, location.codec, location.payload_end)
        }
        None => {
            let json = toc::decode_external(external.ok_or(OpenError::External)?, &digests)?;
            (json, Codec::Gzip, footer.map_or(blob_size, |footer| footer.payload_end))
        }
    };
    let toc = Toc::parse(&json, codec, payload_end)?;
    toc.check_verifiable()?;
    Ok(Opened { footer, toc })
}

/// The tar that an eStargz or zstd:chunked blob was made of, without the TOC: for compressing it another way.
pub fn tar_of<'a>(blob: impl ReadAt + Send + 'a, footer: &Footer) -> io::Result<Box<dyn Read + Send + 'a>> {
    let codec = match footer.toc.map(|toc| toc.codec) {
        Some(Codec::Zstd) => castor_archive::Codec::Zstd,
        Some(Codec::Gzip) | None => castor_archive::Codec::Gzip,
    };
    let payload = SliceReader::new(blob, 0, footer.payload_end);
    if footer.payload_end == 0 {
        return Ok(Box::new(payload));
    }
    castor_archive::codec::decoder(codec, BufReader::with_capacity(64 << 10, payload))
}
