//! Digests of content, equal to BuildKit's.
//!
//! What was read once is kept with the record, in memory and in the database:
//!
//! | table | key | value |
//! |---|---|---|
//! | `store.hashes` | record id `\0` path of a directory, NUL before each component | its entries (module `tree`) |
//!
//! A directory is in the table when all its entries are known. What a client sends is hashed on its way in, so that it
//! is not read again; while that is under way nothing is in the table, for what is there would not survive a crash
//! in the middle.

mod header;
mod observe;
mod scan;
mod select;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;

use castor_metadb::{Batch, KeyValue};
use castor_oci::Digest;
use castor_solver::Cx;
use castor_task::{CancellationToken, blocking, reading};
use parking_lot::{Mutex, MutexGuard};

use crate::rows::Rec;
use crate::store::Inner;
use crate::{ImmutableRef, StoreError};
pub use observe::HashObserver;
use scan::{Scan, ScanError};
use select::{Failure, Selection};
use tree::{Entry, Key, Tree};

const TABLE: &str = "store.hashes";

/// What of a path counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChecksumOptions {
    /// The last link of the path is followed, and links that match a pattern.
    pub follow_links: bool,
    /// The path is a pattern.
    pub wildcard: bool,
    /// Only what matches any of these counts.
    pub include_patterns: Vec<String>,
    /// What matches any of these does not count.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be there.
    pub required_paths: Vec<String>,
}

/// What is known of a record's content.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    tree: Tree,
    /// Hard links that arrived: their key, and that of what they lead to.
    hard_links: Vec<(Key, Key)>,
    /// Whether the database was asked.
    loaded: bool,
    /// A transfer has begun and has not been declared good.
    receiving: bool,
}

impl Hashes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn prefix(id: &str) -> Vec<u8> {
    // The root's key is the bare prefix, and all others begin with a NUL of their own.
    let mut prefix = id.as_bytes().to_vec();
    prefix.push(0);
    prefix
}

fn load(db: &dyn KeyValue, id: &str) -> Tree {
    let mut tree = Tree::default();
    let prefix = prefix(id);
    let stored = match db.scan_prefix(TABLE, &prefix) {
        Ok(stored) => stored,
        Err(error) => {
            tracing::warn!(record = %id, %error, "stored digests cannot be read");
            return tree;
        }
    };
    // In key order, so a directory is known before what is in it.
    for (key, value) in &stored {
        let directory = &key[prefix.len()..];
        if tree.decode(directory, value).is_none() {
            tracing::warn!(record = %id, "stored digests are damaged, not used");
            return Tree::default();
        }
    }
    for (key, _) in &stored {
        tree.set_listed(&key[prefix.len()..]);
    }
    tree
}

fn store(db: &dyn KeyValue, id: &str, tree: &Tree, directories: &[Key]) {
    let mut batch = Batch::new();
    for directory in directories {
        if matches!(tree.get(directory), Some(Entry::Directory { listed: true, .. })) {
            let mut key = prefix(id);
            key.extend_from_slice(directory);
            batch.put(TABLE, key, tree.encode(directory));
        }
    }
    if !batch.is_empty() {
        db.write_soon(batch);
    }
}

fn removal(db: &dyn KeyValue, id: &str) -> Batch {
    let mut batch = Batch::new();
    for (key, _) in db.scan_prefix(TABLE, &prefix(id)).unwrap_or_default() {
        batch.delete(TABLE, key);
    }
    batch
}

/// Drops what is stored of a record.
pub(crate) fn forget(db: &dyn KeyValue, id: &str) {
    let batch = removal(db, id);
    if !batch.is_empty() {
        db.write_soon(batch);
    }
}

/// Begins a transfer into a record: what is known is kept in memory only until [`received`].
pub(crate) async fn observer(inner: &Inner, rec: &Arc<Rec>, empty: bool) -> Result<Arc<HashObserver>, StoreError> {
    let (db, own) = (inner.config.db.clone(), rec.clone());
    let batch = blocking(move || {
        let mut state = own.hashes.lock();
        if state.receiving {
            // The last transfer broke off: nothing is known of what it left.
            *state = State::default();
        } else if !state.loaded {
            state.tree = if empty { Tree::empty() } else { load(db.as_ref(), &own.id) };
        }
        if state.tree.wants_root() {
            // Whoever sends the tree does not send its root.
            state.tree.set_root(Digest::of(""));
        }
        state.loaded = true;
        state.receiving = true;
        removal(db.as_ref(), &own.id)
    })
    .await;
    // Durable before the first file changes.
    inner.config.db.write(batch).await?;
    Ok(Arc::new(HashObserver::new(rec.clone())))
}

/// Declares a transfer good: what it told is what is there.
pub(crate) async fn received(inner: &Inner, rec: &Arc<Rec>) {
    let (db, own) = (inner.config.db.clone(), rec.clone());
    blocking(move || {
        let mut state = own.hashes.lock();
        if !std::mem::take(&mut state.receiving) {
            return;
        }
        for (link, target) in std::mem::take(&mut state.hard_links) {
            if let Some(target @ Entry::File { digest: Some(_) }) = state.tree.get(&target).cloned() {
                state.tree.insert(link, target);
            }
        }
        if state.tree == Tree::empty() {
            // Nothing came at all: then the directory itself is what counts, as BuildKit has it.
            state.tree = Tree::default();
            return;
        }
        let directories: Vec<_> = state.tree.directories().cloned().collect();
        store(db.as_ref(), &own.id, &state.tree, &directories);
    })
    .await;
}

fn compute(
    db: &dyn KeyValue,
    rec: &Rec,
    root: Option<&PathBuf>,
    token: &CancellationToken,
    path: &str,
    options: &ChecksumOptions,
) -> Result<Digest, Failure> {
    let mut state = rec.hashes.lock();
    if !state.loaded {
        state.tree = load(db, &rec.id);
        state.loaded = true;
    }
    let scan = root.map(|root| Scan { root, token });
    let mut selection = Selection { tree: &mut state.tree, scan, missing: Vec::new(), changed: Vec::new() };
    let digest = selection.checksum(path, options);
    let mut changed = std::mem::take(&mut selection.changed);
    changed.sort();
    changed.dedup();
    if !state.receiving {
        store(db, &rec.id, &state.tree, &changed);
    }
    digest
}

/// The digest over the content of `path` in a ref.
pub(crate) async fn checksum(
    of: &ImmutableRef,
    inner: &Inner,
    rec: Option<&Arc<Rec>>,
    cx: &Cx,
    path: &str,
    options: &ChecksumOptions,
) -> Result<Digest, StoreError> {
    let fail = |failure: Failure| match failure {
        Failure::NotFound(path) => StoreError::PathNotFound { record: of.id().to_owned(), path },
        Failure::Invalid(reason) => StoreError::Checksum { record: of.id().to_owned(), reason },
        Failure::NeedsDisk => StoreError::Checksum { record: of.id().to_owned(), reason: "not mounted".to_owned() },
        Failure::Scan(_) if cx.token().is_cancelled() => StoreError::Cancelled,
        Failure::Scan(ScanError { verb, path, source }) => {
            StoreError::Checksum { record: of.id().to_owned(), reason: format!("{verb} {}: {source}", path.display()) }
        }
    };
    let Some(rec) = rec else {
        let (path, options) = (path.to_owned(), options.clone());
        let mut tree = Tree::empty();
        let mut selection = Selection { tree: &mut tree, scan: None, missing: Vec::new(), changed: Vec::new() };
        return selection.checksum(&path, &options).map_err(fail);
    };
    let work = |root: Option<PathBuf>| {
        let (db, rec, token) = (inner.config.db.clone(), rec.clone(), cx.token().clone());
        let (path, options) = (path.to_owned(), options.clone());
        move || compute(db.as_ref(), &rec, root.as_ref(), &token, &path, &options)
    };
    match reading(work(None)).await {
        Err(Failure::NeedsDisk) => {}
        known => return known.map_err(fail),
    }
    let mounting = of.mount(cx).await?;
    let found = reading(work(Some(mounting.path().to_owned()))).await;
    drop(mounting);
    found.map_err(fail)
}

#[cfg(test)]
mod golden;
