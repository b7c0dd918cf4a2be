//! Layers of images, before anything of them is here.

use std::sync::Arc;

use castor_layerfs::{BlobOpener, Lazy};
use castor_oci::{Descriptor, Digest};
use castor_progress::Timestamp;
use castor_solver::Cx;
use serde::{Deserialize, Serialize};

/// A layer of an image: all that is needed to fetch it, now or after a restart. No secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The descriptor, with its annotations.
    pub descriptor: Descriptor,
    /// The repositories that have the blob (`host/path`), best first.
    pub origins: Vec<String>,
    /// The image it belongs to, for messages.
    pub image: String,
    /// The diff ID that the image's configuration claims.
    pub diff_id: Option<Digest>,
    /// Whether it may be lazy.
    #[serde(default)]
    pub want: Lazy,
    /// What made it, according to the image's history.
    #[serde(default)]
    pub created_by: String,
    /// When, according to the image's history.
    #[serde(default)]
    pub created: Option<Timestamp>,
}

/// Makes readers of layers' blobs, with whatever credentials the jobs have that want them.
pub trait Openers: Send + Sync + 'static {
    /// A reader of `layer`'s blob. It asks `cx` for sessions each time it needs credentials, because jobs come and go.
    fn opener(&self, layer: &ImageLayer, cx: &Cx) -> Arc<dyn BlobOpener>;
}
