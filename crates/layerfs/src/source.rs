//! Where a layer's bytes come from, and what its user wants of it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_oci::{Descriptor, Digest};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

/// What names a layer object: the digest of the blob and, if the layer is read by its TOC, the digest of that.
///
/// Two objects of one blob that trust different TOCs are different layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerId {
    /// Digest of the compressed blob.
    pub blob: Digest,
    /// Digest of the TOC that the layer is read by; none if it was unpacked from its tar stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toc: Option<Digest>,
}

impl LayerId {
    /// The name of the object's directory: hex digits of the blob, then of the TOC.
    pub fn directory(&self) -> String {
        match self.toc {
            Some(toc) => format!("{}-{}", self.blob.hex(), toc.hex()),
            None => self.blob.hex(),
        }
    }

    /// Reads what [`directory`](Self::directory) wrote.
    pub fn from_directory(name: &str) -> Option<Self> {
        let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
        match name.split_once('-') {
            Some((blob, toc)) => Some(Self { blob: digest(blob)?, toc: Some(digest(toc)?) }),
            None => Some(Self { blob: digest(name)?, toc: None }),
        }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.toc {
            Some(toc) => write!(f, "{}@{}", self.blob, toc),
            None => write!(f, "{}", self.blob),
        }
    }
}

impl FromStr for LayerId {
    type Err = castor_oci::DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            Some((blob, toc)) => Ok(Self { blob: blob.parse()?, toc: Some(toc.parse()?) }),
            None => Ok(Self { blob: text.parse()?, toc: None }),
        }
    }
}

/// Whether a layer may be mounted before its bytes are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lazy {
    /// If it can be; else it is fetched first, and the reason is shown.
    #[default]
    Prefer,
    /// It must be: what would be a fallback is an error.
    Require,
    /// Never: every layer is fetched and verified first.
    Never,
}

/// How urgent a fetch is; a source that limits its connections serves the urgent ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A process waits for it.
    Demand,
    /// It is guessed to be wanted soon.
    Ahead,
    /// The rest of a layer.
    Background,
}

/// Why bytes of a blob could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// What happened, with the place.
    pub message: Arc<str>,
    /// Whether it may succeed when tried again soon.
    pub transient: bool,
    /// Whether whoever asked is not allowed to, which another may be.
    pub denied: bool,
}

impl FetchError {
    /// An error that says `message`.
    pub fn new(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into(), transient: false, denied: false }
    }

    /// An error that may pass.
    pub fn transient(message: impl Into<Arc<str>>) -> Self {
        Self { transient: true, ..Self::new(message) }
    }
}

/// The answer to a range request.
pub struct RangeBody {
    /// The bytes that come: what was asked for or, from a source without ranges, the whole blob.
    pub range: Range<u64>,
    /// The source ignored the range and sends the whole blob.
    pub full: bool,
    /// The bytes.
    pub stream: BoxStream<'static, Result<Bytes, FetchError>>,
}

impl fmt::Debug for RangeBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeBody").field("range", &self.range).field("full", &self.full).finish_non_exhaustive()
    }
}

/// Reads ranges of one blob. Retries, credentials, mirrors and redirects are its own business.
#[async_trait]
pub trait BlobOpener: Send + Sync + 'static {
    /// Asks for the bytes `range` of the blob; the whole blob is `0..size`.
    async fn range(&self, range: Range<u64>, priority: Priority) -> Result<RangeBody, FetchError>;

    /// Where it reads from, for messages: a reference of the image or a path.
    fn describe(&self) -> String;

    /// Says that bytes read last were wrong: the next request should go elsewhere, if there is an elsewhere.
    fn distrust(&self) {}

    /// The blob with the TOC of a layer whose TOC lies apart; not verified. The error says where it was looked for.
    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        Err(FetchError::new("nothing tells where"))
    }
}

/// A layer that somebody wants.
#[derive(Clone)]
pub struct LayerSource {
    /// The descriptor, with its annotations.
    pub descriptor: Descriptor,
    /// The repositories that have the blob (`host/path`), best first. Persisted with the object.
    pub origins: Vec<String>,
    /// The image it belongs to, for messages.
    pub image: String,
    /// Reads the blob.
    pub opener: Arc<dyn BlobOpener>,
    /// The diff ID that the image's configuration claims; verified when the tar stream is.
    pub diff_id: Option<Digest>,
    /// Whether it may be lazy.
    pub want: Lazy,
}

impl fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSource")
            .field("digest", &self.descriptor.digest)
            .field("image", &self.image)
            .field("want", &self.want)
            .finish_non_exhaustive()
    }
}
