//! Keys, links and results as they are stored.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use castor_oci::Digest;
use castor_progress::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{BoxError, Cx};

/// The output index in the id of a content-based key.
pub const CONTENT_OUTPUT: i64 = -1;

/// The id of a key.
///
/// A key without inputs has an id that follows from its digest and output ([`KeyId::root`]); it is the same in every
/// source. Others have an id that their source made up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The id of the key without inputs that has this digest and output.
    pub fn root(digest: Digest, output: i64) -> Self {
        Self(Digest::of(format!("{digest}@{output}")).to_string().into())
    }

    /// The id of the key of a volatile operation. It is never stored.
    pub fn volatile(digest: Digest, output: i64) -> Self {
        Self(format!("random:{}", Digest::of(format!("{digest}@{output}")).hex()).into())
    }

    /// The id of a content digest.
    pub fn content(digest: Digest) -> Self {
        Self::root(digest, CONTENT_OUTPUT)
    }

    /// A new id that nobody has.
    pub fn random() -> Self {
        let bytes: [u8; 16] = rand::random();
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// The id `text`, as a source stored it.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How one key leads to another: the operation that takes the one as an input and whose output is the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The digest of the operation.
    pub digest: Digest,
    /// Which of its outputs the target is.
    pub output: i64,
    /// Which of its inputs the origin is.
    pub input: usize,
    /// Which part of the input matters.
    pub selector: Option<Digest>,
}

/// What is known of a key besides its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The digest of the operation.
    pub digest: Digest,
    /// Which of its outputs.
    pub output: i64,
}

impl KeyInfo {
    /// The digest under which BuildKit exports the key.
    pub fn record_digest(&self) -> Digest {
        Digest::of(format!("{}@{}", self.digest, self.output))
    }
}

/// A result that a key has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id in the [`ResultStore`] beside the source.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
}

/// A cache could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("access cache {cache}: {source}")]
pub struct CacheError {
    /// Which.
    pub cache: String,
    /// Why.
    pub source: Arc<dyn std::error::Error + Send + Sync>,
}

/// Keys and the results they have; look-ups only.
///
/// A failure is logged and taken for a miss: no build fails because a cache does.
#[async_trait]
pub trait CacheSource: Send + Sync {
    /// Names the source among all sources of the daemon; equal names mean equal content.
    fn name(&self) -> &str;

    /// For each pair, the keys that the link leads to from the key.
    async fn targets(&self, queries: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, CacheError>;

    /// For each key, the results it has. Only results that exist; one that exists but cannot be had at the moment is
    /// listed.
    async fn records(&self, keys: &[KeyId]) -> Result<Vec<Vec<Record>>, CacheError>;

    /// What is known of `key`; `None` where the source does not know the key.
    async fn info(&self, key: &KeyId) -> Result<Option<KeyInfo>, CacheError>;

    /// The links that lead to `key`, and where from.
    async fn backlinks(&self, key: &KeyId) -> Result<Vec<(KeyId, Link)>, CacheError>;
}

/// A change of a cache, made as a whole.
#[derive(Debug, Clone, Default)]
pub struct CacheUpdate {
    /// Keys that exist from now on.
    pub keys: Vec<(KeyId, KeyInfo)>,
    /// Links: from, how, to.
    pub links: Vec<(KeyId, Link, KeyId)>,
    /// Results.
    pub results: Vec<(KeyId, Record)>,
}

impl CacheUpdate {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.links.is_empty() && self.results.is_empty()
    }
}

/// A cache that the solver writes to.
#[async_trait]
pub trait CacheStore: CacheSource {
    /// Makes a change. Whatever it adds may be there already.
    async fn update(&self, update: CacheUpdate) -> Result<(), CacheError>;

    /// From now on `to` leads wherever `from` leads now, and has its results: `from` was a private key of which it has
    /// now been verified that it is `to` (see [`crate::CacheMap::private`]).
    async fn alias(&self, from: &KeyId, to: &KeyId) -> Result<(), CacheError>;

    /// Forgets the result `id`, because it is gone for good, and the keys that led only to it.
    async fn release(&self, id: &str) -> Result<(), CacheError>;
}

/// Results by id.
#[async_trait]
pub trait ResultStore<R>: Send + Sync {
    /// Keeps `result` and says under which id; `None`: it cannot be kept.
    async fn save(&self, result: &R) -> Result<Option<String>, BoxError>;

    /// The result with this id; `None`: there is none (any more). An error means that it cannot be had now, which is
    /// no reason to forget it.
    async fn load(&self, cx: &Cx, id: &str) -> Result<Option<R>, BoxError>;
}

/// A place where results may come from.
pub struct Cache<R> {
    /// Its keys.
    pub keys: Arc<dyn CacheSource>,
    /// Its results.
    pub results: Arc<dyn ResultStore<R>>,
}

impl<R> Clone for Cache<R> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), results: self.results.clone() }
    }
}

impl<R> fmt::Debug for Cache<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.keys.name()).finish()
    }
}
