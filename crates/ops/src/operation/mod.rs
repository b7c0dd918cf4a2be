//! The ops as operations of the solver.

mod exec;
mod file;
mod git;
mod http;
mod image;
mod inputs;
mod local;
mod mounts;
mod reads;
mod stack;

pub(crate) use exec::{Exec, secret_env};
pub(crate) use file::File;
pub(crate) use git::Git;
pub(crate) use http::Http;
pub(crate) use image::Image;
pub(crate) use local::Local;
pub(crate) use mounts::{Mounts, Preparation};
pub(crate) use stack::{Diff, Merge, Passthrough};

use async_trait::async_trait;
use castor_oci::Digest;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs};
use castor_store::ImmutableRef;

use crate::OpError;

/// An op that castor does not have. It fails where it stands, so that the user sees which line wants it.
pub(crate) struct Refused(pub(crate) String);

#[async_trait]
impl Operation<ImmutableRef> for Refused {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Err(OpError::Unsupported(self.0.clone()).into())
    }

    async fn execute(&self, _: &Cx, _: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        Err(OpError::Unsupported(self.0.clone()).into())
    }
}

/// Fails if a source has an attribute that castor does not heed.
fn refuse_attribute(kind: &str, name: Option<&str>) -> Result<(), OpError> {
    match name {
        Some(name) => Err(OpError::Unsupported(format!("attribute {name} of {kind} sources"))),
        None => Ok(()),
    }
}

/// A digest over what distinguishes two things that share a name in public.
pub(crate) fn private_digest(parts: impl IntoIterator<Item = String>) -> Digest {
    Digest::of(format!("castor.private.v0:{}", parts.into_iter().collect::<Vec<_>>().join("\n")))
}
