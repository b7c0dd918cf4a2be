//! Results leave the daemon: as images pushed to registries, as archives, as directories at the client.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod annotations;
mod archive;
mod document;
mod error;
mod files;
mod image;
mod options;
mod push;
mod tally;
mod result;

use std::collections::BTreeMap;

use async_trait::async_trait;
use castor_registry::Access;
use castor_solver::Cx;

pub use annotations::ImageAnnotations;
pub use archive::{ArchiveExporter, ArchiveKind};
pub use error::ExportError;
pub use files::{LocalExporter, TarExporter};
pub use image::ImageExporter;
pub use options::{ImageOptions, OptionError};
pub use result::{Attestation, BuildResult, PlatformResult, ResultError};

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
}

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
