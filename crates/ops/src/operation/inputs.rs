//! How inputs matter, as the solver wants it.

use std::sync::Arc;

use async_trait::async_trait;
use castor_oci::Digest;
use castor_solver::{BoxError, ContentKey, Cx, Dep, Prepare};
use castor_store::{ChecksumOptions, ImmutableRef};

use crate::OpError;
use crate::identity::{self, InputKey, Selector};
use crate::path;

/// Inputs that are looked into: they are made ready first, and may be known by their content.
pub(super) fn looked_into(keys: Vec<InputKey>) -> Vec<Dep<ImmutableRef>> {
    let content = |selectors: Vec<Selector>| Arc::new(Content(selectors)) as Arc<dyn ContentKey<ImmutableRef>>;
    keys.into_iter()
        .map(|key| Dep {
            selector: key.selector,
            content: key.content.map(content),
            prepare: Some(Arc::new(Ready) as Arc<dyn Prepare<ImmutableRef>>),
        })
        .collect()
}

/// Inputs that are only stacked: nothing of them is touched.
pub(super) fn stacked(count: usize) -> Vec<Dep<ImmutableRef>> {
    (0..count).map(|_| Dep::definition()).collect()
}

struct Ready;

#[async_trait]
impl Prepare<ImmutableRef> for Ready {
    async fn needed(&self, input: &ImmutableRef) -> bool {
        input.is_lazy().await
    }

    async fn waits(&self, input: &ImmutableRef) -> bool {
        input.is_being_fetched().await
    }

    async fn prepare(&self, cx: &Cx, input: &ImmutableRef) -> Result<(), BoxError> {
        input.ready(cx).await.map_err(|error| OpError::from(error).into())
    }
}

struct Content(Vec<Selector>);

#[async_trait]
impl ContentKey<ImmutableRef> for Content {
    async fn content_key(&self, cx: &Cx, input: &ImmutableRef) -> Result<Option<Digest>, BoxError> {
        let whole = [Selector::default()];
        let selectors = if self.0.is_empty() { &whole } else { self.0.as_slice() };
        let checksums = selectors.iter().map(|selector| async move {
            if input.is_scratch() {
                return nothing(&path::absolute(&selector.path));
            }
            let options = ChecksumOptions {
                follow_links: selector.follow_links,
                wildcard: selector.wildcard,
                include_patterns: selector.include_patterns.clone(),
                exclude_patterns: selector.exclude_patterns.clone(),
                required_paths: selector.required_paths.clone(),
            };
            let digest = input.checksum(cx, &path::absolute(&selector.path), &options).await;
            digest.map_err(OpError::from)
        });
        let digests = futures::future::try_join_all(checksums).await?;
        Ok(Some(identity::content(&digests)))
    }
}

/// The content of `path` in nothing at all: as `BuildKit`, which asks no tree then, computes it and fails.
fn nothing(path: &str) -> Result<Digest, OpError> {
    if path == "/" {
        return Ok(Digest::of(b""));
    }
    Err(OpError::Invalid(format!("failed to calculate checksum of ref : {path}: no such file or directory")))
}
