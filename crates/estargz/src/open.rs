//! A whole blob that is here.

use std::collections::BTreeMap;
use std::io::{self, Read};

use castor_archive::ReadAt;

use crate::annotation::AnnotationError;
use crate::footer::{Footer, FooterError};
use crate::toc::{Toc, TocError};

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
    #[error("read layer blob")]
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
    let _ = (blob, annotations, external);
    todo!()
}

/// The tar that an eStargz or zstd:chunked blob was made of, without the TOC: for compressing it another way.
pub fn tar_of<'a>(blob: impl ReadAt + Send + 'a, footer: &Footer) -> io::Result<Box<dyn Read + Send + 'a>> {
    let _ = (blob, footer);
    todo!()
}
