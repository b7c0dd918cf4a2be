//! Results leave the daemon: as images pushed to registries, as archives, as directories at the client.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod annotations;
mod archive;
mod attest;
mod claims;
mod document;
mod epoch;
mod error;
mod files;
mod image;
mod options;
mod push;
mod result;
mod sbom;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use castor_blobs::{Compression, LayerBlob};
use castor_registry::Access;
use castor_solver::Cx;

pub use annotations::ImageAnnotations;
pub use archive::{ArchiveExporter, ArchiveKind};
pub use claims::{Claim, ClaimError, read_claims};
pub use epoch::Epoch;
pub use error::ExportError;
pub use files::{LocalExporter, TarExporter};
pub use image::ImageExporter;
pub use options::{ImageOptions, OptionError};
pub use result::{Attestation, BuildResult, PlatformResult, ResultError, StatementSubject};

/// What an export may use of the build it belongs to.
#[derive(Debug, Clone)]
pub struct ExportCx {
    /// Token, progress and sessions; reports to the exporter's own vertex.
    pub cx: Cx,
    /// On whose behalf registries are asked.
    pub access: Access,
    /// The client's session.
    pub session: String,
    /// The exporter's place among those of the build, by which the client knows where the result goes.
    pub index: usize,
    /// Makes the cache records that images carry, if they are to carry any.
    pub inline_cache: Option<Arc<dyn InlineCache>>,
}

/// Makes cache records for images to carry.
#[async_trait]
pub trait InlineCache: Send + Sync + fmt::Debug {
    /// The records of the result for the platform with this index, whose image has `layers`, made with `compression`; as
    /// JSON. `None`: there are none.
    async fn records(
        &self,
        cx: &Cx,
        platform: usize,
        layers: &[LayerBlob],
        compression: Compression,
    ) -> Result<Option<Vec<u8>>, InlineError>;
}

/// Cache records could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("make inline cache: {0}")]
pub struct InlineError(pub String);

/// What an exporter tells the client: keys and values of the build's response.
pub type Response = BTreeMap<String, String>;

/// Takes a result out of the daemon.
#[async_trait]
pub trait Exporter: Send + Sync {
    /// What its vertex is called: `exporting to image`.
    fn name(&self) -> &'static str;

    /// Exports `result`.
    async fn export(&self, cx: &ExportCx, result: &BuildResult) -> Result<Response, ExportError>;
}
