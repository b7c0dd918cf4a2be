//! The file `origin` of a layer object: where its bytes can be had, and what is known of them. JSON:
//!
//! | key | |
//! |---|---|
//! | `format` | `castor-layer-origin/1` |
//! | `descriptor` | the layer's descriptor, with its annotations |
//! | `repositories` | `host/path` of the repositories that have the blob, best first |
//! | `image` | the image it was first used for, for messages |
//! | `claimed` | the diff ID that an image's configuration claimed |
//! | `verified` | the diff ID of the tar stream, once that was read |
//! | `refuted` | why the layer never will be verified: what was found when all of it was read |
//! | `unverified` | true for a layer whose TOC, or some of whose chunks, nothing verified when they came |
//! | `eager` | why the layer was fetched before it was mounted; absent for a lazy one |

use std::path::Path;

use castor_oci::{Descriptor, Digest};
use serde::{Deserialize, Serialize};

use crate::presence::replace;

const FORMAT: &str = "castor-layer-origin/1";

/// The content of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Origin {
    format: String,
    pub descriptor: Descriptor,
    pub repositories: Vec<String>,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuted: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eager: Option<String>,
}

impl Origin {
    pub(crate) fn new(
        descriptor: Descriptor,
        repositories: Vec<String>,
        image: String,
        claimed: Option<Digest>,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            descriptor,
            repositories,
            image,
            claimed,
            verified: None,
            refuted: None,
            unverified: false,
            eager: None,
        }
    }

    /// Reads the file; the error says what is wrong with it.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let origin: Self = serde_json::from_slice(&bytes).map_err(|e| format!("parse {}: {e}", path.display()))?;
        if origin.format != FORMAT {
            return Err(format!("{}: format {:?}, want {FORMAT:?}", path.display(), origin.format));
        }
        Ok(origin)
    }

    /// Replaces the file.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        replace(path, &serde_json::to_vec_pretty(self)?)
    }
}
