//! Writable refs.

use std::sync::Arc;

use castor_solver::Cx;

use crate::{HashObserver, ImmutableRef, Mounting, StoreError};

/// How a cache mount is shared between steps that run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// All write to the same.
    #[default]
    Shared,
    /// Each has its own.
    Private,
    /// One after the other.
    Locked,
}

/// A handle of a writable record. Clones are the same handle; the record is let go of with the last.
#[derive(Debug, Clone)]
pub struct MutableRef {}

impl MutableRef {
    /// The record's id.
    pub fn id(&self) -> &str {
        todo!()
    }

    /// Mounts it, writable.
    pub async fn mount(&self, cx: &Cx) -> Result<Arc<Mounting>, StoreError> {
        let _ = cx;
        todo!()
    }

    /// Ends writing: the change becomes an immutable record. No [`Mounting`] of it may be left.
    pub async fn commit(self) -> Result<ImmutableRef, StoreError> {
        todo!()
    }

    /// An immutable look at it, while the record stays writable for later ([`crate::Store::retained`]). It becomes a
    /// committed one when something is made of it.
    pub async fn freeze(self) -> Result<ImmutableRef, StoreError> {
        todo!()
    }

    /// Keeps the record after the last handle, to be found again by `key`.
    pub async fn retain_as(&self, key: &str) -> Result<(), StoreError> {
        let _ = key;
        todo!()
    }

    /// What watches a transfer into it, so that [`ImmutableRef::checksum`] need not read the files again. Changes are
    /// relative to the record's root.
    pub async fn observer(&self) -> Result<Arc<HashObserver>, StoreError> {
        todo!()
    }

    /// Changes what users read.
    pub fn describe(&self, description: &str) {
        let _ = description;
        todo!()
    }
}
