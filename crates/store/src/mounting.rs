//! Refs as directories.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use castor_layerfs::Layer;
use castor_mount::Mounted;
use castor_snapshot::SnapshotId;
use castor_task::reading;
use tokio::sync::watch;

use crate::StoreError;
use crate::store::Inner;

/// A ref that is mounted, until this is dropped.
///
/// Reading it may wait for a registry: only in [`castor_task::reading`], never on a runtime thread.
#[derive(Debug)]
pub struct Mounting {
    path: PathBuf,
    layers: Vec<Arc<Layer>>,
    mounted: Option<Mounted>,
    /// Counts mounts that are there or being taken away.
    count: watch::Sender<usize>,
}

impl Mounting {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image layers in it, for progress and read errors.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        let (mounted, path, count) = (self.mounted.take(), self.path.clone(), self.count.clone());
        let unmount = move || {
            if let Some(Err(error)) = mounted.map(Mounted::unmount) {
                tracing::warn!(path = %path.display(), %error, "unmount");
            }
            if let Err(error) = std::fs::remove_dir(&path) {
                tracing::debug!(path = %path.display(), %error, "remove mount point");
            }
            count.send_modify(|count| *count -= 1);
        };
        // An unmount can wait for readers: not on a runtime thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(unmount)),
            Err(_) => unmount(),
        }
    }
}

/// How a record is mounted at the moment.
#[derive(Debug)]
pub(crate) struct Mountpoint {
    current: tokio::sync::Mutex<Current>,
    count: watch::Sender<usize>,
    /// Whether its snapshot was just made and nobody asked yet.
    fresh: AtomicBool,
}

#[derive(Debug, Default)]
struct Current {
    read_only: Weak<Mounting>,
    writable: Weak<Mounting>,
}

impl Default for Mountpoint {
    fn default() -> Self {
        Self { current: tokio::sync::Mutex::default(), count: watch::Sender::new(0), fresh: AtomicBool::new(false) }
    }
}

impl Mountpoint {
    /// Says that its snapshot was just made.
    pub(crate) fn made(&self) {
        self.fresh.store(true, Ordering::Relaxed);
    }

    /// Whether its snapshot was just made; true once.
    pub(crate) fn take_fresh(&self) -> bool {
        self.fresh.swap(false, Ordering::Relaxed)
    }

    /// Waits until no mount is left.
    pub(crate) async fn unmounted(&self) {
        // The sender is here, so waiting does not fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// The mount that all share, made if there is none. `None` mounts nothing: an empty directory.
    pub(crate) async fn mount(
        &self,
        inner: &Inner,
        snapshot: Option<SnapshotId>,
        name: &str,
        writable: bool,
    ) -> Result<Arc<Mounting>, StoreError> {
        let mut current = self.current.lock().await;
        let slot = if writable { &mut current.writable } else { &mut current.read_only };
        if let Some(mounting) = slot.upgrade() {
            return Ok(mounting);
        }
        let mounts = match &snapshot {
            Some(id) => Some(inner.config.snapshotter.mounts(id).await?),
            None => None,
        };
        let path = inner.mount_root().join(format!("{name}-{}", inner.number()));
        let layers = mounts.iter().flat_map(|mounts| mounts.layers().cloned()).collect();
        let at = path.clone();
        let mounted = reading(move || {
            std::fs::create_dir_all(&at).map_err(|error| StoreError::io("create mount point", &at, error))?;
            let mounted = match mounts {
                None => return Ok(None),
                Some(mounts) if writable => mounts.mount_at(&at),
                Some(mounts) => mounts.mount_read_only_at(&at),
            };
            match mounted {
                Ok(mounted) => Ok(Some(mounted)),
                Err(error) => {
                    let _ = std::fs::remove_dir(&at);
                    Err(StoreError::from(error))
                }
            }
        })
        .await?;
        self.count.send_modify(|count| *count += 1);
        let mounting = Arc::new(Mounting { path, layers, mounted, count: self.count.clone() });
        *slot = Arc::downgrade(&mounting);
        Ok(mounting)
    }
}
