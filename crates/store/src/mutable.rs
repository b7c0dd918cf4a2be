//! Writable refs.

use std::fmt;
use std::sync::{Arc, Weak};

use castor_snapshot::SnapshotId;
use castor_solver::Cx;

use crate::refs::{Handle, commit};
use crate::store::Inner;
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
#[derive(Clone)]
pub struct MutableRef {
    inner: Arc<Inner>,
    handle: Arc<Handle>,
}

impl fmt::Debug for MutableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MutableRef").field(&self.id()).finish()
    }
}

impl MutableRef {
    pub(crate) fn new(inner: Arc<Inner>, handle: Arc<Handle>) -> Self {
        Self { inner, handle }
    }

    pub(crate) fn downgrade(&self) -> Weak<Handle> {
        Arc::downgrade(&self.handle)
    }

    /// The record's id.
    pub fn id(&self) -> &str {
        &self.handle.rec.id
    }

    /// Mounts it, writable. All who want it at once share one mount.
    pub async fn mount(&self, cx: &Cx) -> Result<Arc<Mounting>, StoreError> {
        let rec = &self.handle.rec;
        let id = SnapshotId::new(rec.id.as_str());
        // What it is on may have been made by a daemon before this one, or for a client that is gone.
        ImmutableRef::new(self.inner.clone(), Some(self.handle.clone())).lower().ready(cx).await?;
        tokio::select! {
            mounting = rec.mountpoint.mount(&self.inner, Some(id), &rec.id, true) => mounting,
            () = cx.token().cancelled() => Err(StoreError::Cancelled),
        }
    }

    /// Ends writing: the change becomes an immutable record. Waits until no [`Mounting`] of it is left.
    pub async fn commit(self) -> Result<ImmutableRef, StoreError> {
        let rec = &self.handle.rec;
        crate::contenthash::received(&self.inner, rec).await;
        let mut known = rec.snapshot.lock().await;
        *known = Some(commit(&self.inner, rec).await?);
        drop(known);
        Ok(ImmutableRef::new(self.inner.clone(), Some(self.handle.clone())))
    }

    /// An immutable look at it, while the record stays writable for later ([`crate::Store::retained`]). It becomes a
    /// committed one when something is made of it. Waits until no [`Mounting`] of it is left.
    pub async fn freeze(self) -> Result<ImmutableRef, StoreError> {
        self.handle.rec.mountpoint.unmounted().await;
        crate::contenthash::received(&self.inner, &self.handle.rec).await;
        Ok(ImmutableRef::new(self.inner.clone(), Some(self.handle.clone())))
    }

    /// Keeps the record after the last handle, to be found again by `key`.
    pub async fn retain_as(&self, key: &str) -> Result<(), StoreError> {
        self.inner.records.change(&self.handle.rec, |row| {
            row.key = Some(key.to_owned());
            row.retain = true;
        });
        Ok(())
    }

    /// Ends [`retain_as`](Self::retain_as): the record goes with its last handle.
    pub async fn abandon(self) {
        self.inner.records.change(&self.handle.rec, |row| {
            row.key = None;
            row.retain = false;
        });
    }

    /// What watches a transfer into it, so that [`ImmutableRef::checksum`] need not read the files again. Changes are
    /// relative to the record's root. Take one for each transfer, before anything is written.
    pub async fn observer(&self) -> Result<Arc<HashObserver>, StoreError> {
        let rec = &self.handle.rec;
        let empty = rec.mountpoint.take_fresh() && rec.parts().is_empty();
        crate::contenthash::observer(&self.inner, rec, empty).await
    }

    /// Changes what users read.
    pub fn describe(&self, description: &str) {
        self.inner.records.change(&self.handle.rec, |row| description.clone_into(&mut row.description));
    }
}
