//! What a vertex means.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use castor_oci::Digest;

use crate::lookup::{KeyRef, Place};
use crate::{BoxError, Cx, KeyId};

/// The outputs of an execution, by index; `None` where the operation has no such output.
pub type Outputs<R> = Vec<Option<R>>;

/// What a vertex does.
///
/// Methods run in tasks of their own and end soon after [`Cx::token`] is cancelled; they are not dropped half way.
#[async_trait]
pub trait Operation<R>: Send + Sync {
    /// What identifies the operation for the cache. An operation may have several such identities, from cheap to
    /// expensive: `index` counts from 0 and the flag says that this is the last. Those after the first are asked for
    /// only where the first found nothing, and before the vertex runs.
    ///
    /// The number of [`CacheMap::deps`] is that of the vertex's inputs, in order.
    async fn cache_map(&self, cx: &Cx, index: usize) -> Result<(CacheMap<R>, bool), BoxError>;

    /// Does it. `inputs` are the results of the vertex's inputs, in order.
    async fn execute(&self, cx: &Cx, inputs: &[R]) -> Result<Outputs<R>, BoxError>;

    /// Waits for whatever bounds how many executions run at once; held until the execution has ended.
    async fn acquire(&self, cx: &Cx) -> Result<Permit, BoxError> {
        let _ = cx;
        Ok(Permit::none())
    }
}

/// A place among the executions that run at once; given back when dropped.
pub struct Permit(#[expect(dead_code, reason = "held for its drop")] Option<Box<dyn Send + Sync>>);

impl Permit {
    /// No bound.
    pub fn none() -> Self {
        Self(None)
    }

    /// Gives back whatever `guard` holds when dropped.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Some(Box::new(guard)))
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// What identifies an operation for the cache.
pub struct CacheMap<R> {
    /// The digest of the operation, without its inputs.
    pub digest: Digest,
    /// Means something only now (`random:` in BuildKit): never looked up, never stored.
    pub volatile: bool,
    /// The identity that includes what was really seen, where `digest` only says what is *claimed*.
    ///
    /// The digest of an image by its diff IDs is a claim until its layers' tar streams were verified, and lazily they
    /// are not. Set this to a digest over diff IDs *and* blob and TOC digests. Look-ups use both. Results are stored
    /// under `digest` only where [`Private::verified`] is set, else under the private one alone, and so is everything
    /// built on them. Once a later cache map says verified, what was stored under the private one is linked under
    /// `digest` too ([`CacheStore::alias`](crate::CacheStore::alias) does the same at the moment of verification).
    pub private: Option<Private>,
    /// One per input.
    pub deps: Vec<Dep<R>>,
}

/// See [`CacheMap::private`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Private {
    /// The digest that includes what was really seen.
    pub digest: Digest,
    /// Whether it has been verified that the claimed digest is true.
    pub verified: bool,
}

impl<R> CacheMap<R> {
    /// An identity without inputs.
    pub fn new(digest: Digest) -> Self {
        Self { digest, volatile: false, private: None, deps: Vec::new() }
    }

    /// An identity with inputs.
    pub fn with_deps(digest: Digest, deps: Vec<Dep<R>>) -> Self {
        Self { digest, volatile: false, private: None, deps }
    }
}

impl<R> CacheMap<R> {
    /// The digests that stand for the operation, and whether results may be stored under them.
    pub(crate) fn identities(&self) -> Vec<(Digest, bool)> {
        match self.private {
            None => vec![(self.digest, true)],
            Some(private) => vec![(self.digest, private.verified), (private.digest, true)],
        }
    }

    /// The keys of an output, if the operation has no inputs.
    pub(crate) fn roots(&self, output: usize) -> Vec<KeyRef> {
        let output = output as i64;
        if self.volatile {
            return vec![KeyRef { id: KeyId::volatile(self.digest, output), place: Place::Nowhere, own: true }];
        }
        let root = |(digest, own)| KeyRef { id: KeyId::root(digest, output), place: Place::Everywhere, own };
        self.identities().into_iter().map(root).collect()
    }
}

impl<R> Clone for CacheMap<R> {
    fn clone(&self) -> Self {
        Self { digest: self.digest, volatile: self.volatile, private: self.private, deps: self.deps.clone() }
    }
}

impl<R> fmt::Debug for CacheMap<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheMap")
            .field("digest", &self.digest)
            .field("volatile", &self.volatile)
            .field("private", &self.private)
            .field("deps", &self.deps.len())
            .finish()
    }
}

/// How an input matters to an operation.
pub struct Dep<R> {
    /// Which part of the input matters, when it is identified by its definition.
    pub selector: Option<Digest>,
    /// Computes what identifies the input by its content; `None`: only its definition does.
    pub content: Option<Arc<dyn ContentKey<R>>>,
    /// Makes the input ready, before its content is looked at and before the operation runs.
    pub prepare: Option<Arc<dyn Prepare<R>>>,
}

impl<R> Dep<R> {
    /// An input identified by its definition alone.
    pub fn definition() -> Self {
        Self { selector: None, content: None, prepare: None }
    }
}

impl<R> Clone for Dep<R> {
    fn clone(&self) -> Self {
        Self { selector: self.selector, content: self.content.clone(), prepare: self.prepare.clone() }
    }
}

impl<R> fmt::Debug for Dep<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dep")
            .field("selector", &self.selector)
            .field("content", &self.content.is_some())
            .field("prepare", &self.prepare.is_some())
            .field("result", &type_name::<R>())
            .finish()
    }
}

/// Identifies an input by its content.
#[async_trait]
pub trait ContentKey<R>: Send + Sync {
    /// The digest of what matters in `input`; `None`: it has no content-based identity after all.
    async fn content_key(&self, cx: &Cx, input: &R) -> Result<Option<Digest>, BoxError>;
}

/// Makes an input ready for use.
#[async_trait]
pub trait Prepare<R>: Send + Sync {
    /// Whether there is anything to do for `input`.
    async fn needed(&self, input: &R) -> bool;

    /// Whether the work waits for others' work. The vertex that made the input is shown as running again then; otherwise
    /// that happens with the first that the work reports, and never if it has nothing to report.
    async fn waits(&self, input: &R) -> bool {
        let _ = input;
        false
    }

    /// Makes `input` ready. `cx` reports to the vertex that made the input, not to the one that uses it. Called once
    /// per input, not once per user.
    async fn prepare(&self, cx: &Cx, input: &R) -> Result<(), BoxError>;
}
