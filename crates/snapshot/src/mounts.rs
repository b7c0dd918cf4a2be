//! What is needed to mount a snapshot.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use castor_layerfs::{ImageTree, Layer};
use castor_mount::{Lower, Mounted, Overlay, Upper, bind};
use parking_lot::Mutex;

use crate::error::SnapshotError;
use crate::local::Pins;
use crate::traits::DiffId;

/// A read-only layer of a mount.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// An image tree.
    Tree(Arc<ImageTree>),
    /// The directory of a diff.
    Dir(PathBuf),
}

/// A snapshot ready to be mounted. It keeps what it is made of from being removed.
#[derive(Debug, Clone)]
pub struct Mounts {
    /// Lowest first.
    pub(crate) parts: Vec<Part>,
    pub(crate) upper: Option<ActiveDir>,
    /// A directory that is always empty: an overlay needs two layers.
    pub(crate) empty: PathBuf,
    pub(crate) pins: Arc<Pins>,
    pub(crate) active: Arc<ActiveMounts>,
}

/// The directory of an active snapshot's own change.
#[derive(Debug, Clone)]
pub(crate) struct ActiveDir {
    pub id: DiffId,
    pub dir: PathBuf,
}

/// The overlays of active snapshots: two overlays on one upper directory are undefined, so all users of an active snapshot
/// share one, and get bind mounts of it.
#[derive(Debug, Default)]
pub(crate) struct ActiveMounts {
    slots: Mutex<HashMap<DiffId, Arc<Slot>>>,
}

/// The overlay of one active snapshot. Its lock is held while the overlay is made and while it is taken down: who comes
/// between the last user's leaving and the unmount waits, instead of mounting on directories that are about to go.
#[derive(Debug, Default)]
struct Slot {
    overlay: Mutex<SharedOverlay>,
}

#[derive(Debug, Default)]
struct SharedOverlay {
    users: usize,
    mounted: Option<Mounted>,
}

/// One user of a shared overlay; the last one takes it down.
#[derive(Debug)]
struct Share {
    id: DiffId,
    path: PathBuf,
    slot: Arc<Slot>,
    active: Arc<ActiveMounts>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut overlay = self.slot.overlay.lock();
        overlay.users -= 1;
        if overlay.users > 0 {
            return;
        }
        drop(overlay.mounted.take());
        let _ = std::fs::remove_dir(&self.path);
        drop(overlay);
        self.active.forget(self.id);
    }
}

impl ActiveMounts {
    fn slot(&self, id: DiffId) -> Arc<Slot> {
        self.slots.lock().entry(id).or_default().clone()
    }

    /// Drops the slot of `id` if nobody uses it or is about to. Only [`Self::slot`] hands out new references to a slot,
    /// under the same lock.
    fn forget(&self, id: DiffId) {
        let mut slots = self.slots.lock();
        let idle = |slot: &Arc<Slot>| slot.overlay.try_lock().is_some_and(|overlay| overlay.users == 0);
        if slots.get(&id).is_some_and(|slot| Arc::strong_count(slot) <= 2 && idle(slot)) {
            slots.remove(&id);
        }
    }
}

/// Keeps what a mount is made of.
struct Hold {
    _parts: Vec<Part>,
    _pins: Arc<Pins>,
}

impl Mounts {
    /// Mounts it at the directory `target`: writable if the snapshot is active. Blocks: not for a runtime thread.
    pub fn mount_at(&self, target: &Path) -> Result<Mounted, SnapshotError> {
        match &self.upper {
            Some(upper) => self.bind_active(upper, target, false),
            None => self.mount_view(target),
        }
    }

    /// Mounts it read-only at `target`, even if it is active. Blocks.
    pub fn mount_read_only_at(&self, target: &Path) -> Result<Mounted, SnapshotError> {
        match &self.upper {
            Some(upper) => self.bind_active(upper, target, true),
            None => self.mount_view(target),
        }
    }

    /// Whether it is writable.
    pub fn writable(&self) -> bool {
        self.upper.is_some()
    }

    /// The layers in it, for progress and read errors.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.parts.iter().flat_map(|part| match part {
            Part::Tree(tree) => tree.layers(),
            Part::Dir(_) => &[],
        })
    }

    /// Whether reading it may wait for a registry.
    pub fn is_lazy(&self) -> bool {
        self.layers().any(|layer| !layer.is_complete())
    }

    fn hold(&self) -> Arc<Hold> {
        Arc::new(Hold { _parts: self.parts.clone(), _pins: self.pins.clone() })
    }

    fn lowers(&self) -> Vec<Lower<'_>> {
        let parts = self.parts.iter().rev();
        parts
            .map(|part| match part {
                Part::Tree(tree) => Lower::Mount(tree.mount().as_fd()),
                Part::Dir(dir) => Lower::Directory(dir),
            })
            .collect()
    }

    fn mount_view(&self, target: &Path) -> Result<Mounted, SnapshotError> {
        let mut overlay = Overlay { lowers: self.lowers(), ..Overlay::default() };
        while overlay.lowers.len() < 2 {
            // Root attributes come from the uppermost layer, so the empty one goes below; twice the same is refused.
            if overlay.lowers.is_empty() {
                return Ok(bind(&self.empty, false, true)?.attach(target)?.holding(self.hold()));
            }
            overlay.lowers.push(Lower::Directory(&self.empty));
        }
        Ok(overlay.mount()?.attach(target)?.holding(self.hold()))
    }

    fn bind_active(&self, upper: &ActiveDir, target: &Path, read_only: bool) -> Result<Mounted, SnapshotError> {
        let share = self.share(upper)?;
        let mounted = bind(&share.path, false, read_only)?.attach(target)?;
        Ok(mounted.holding(Arc::new(share)))
    }

    /// A share of the overlay of an active snapshot.
    fn share(&self, upper: &ActiveDir) -> Result<Share, SnapshotError> {
        let (slot, path) = (self.active.slot(upper.id), upper.dir.join("mnt"));
        {
            let mut overlay = slot.overlay.lock();
            if overlay.mounted.is_none() {
                overlay.mounted = Some(self.mount_active(upper, &path)?);
            }
            overlay.users += 1;
        }
        Ok(Share { id: upper.id, path, slot, active: self.active.clone() })
    }

    fn mount_active(&self, upper: &ActiveDir, path: &Path) -> Result<Mounted, SnapshotError> {
        let (fs, work) = (upper.dir.join("fs"), upper.dir.join("work"));
        self.adopt_root(&upper.dir, &fs)?;
        // Volatile overlays leave a mark in the work directory that forbids another mount; what they may have lost in a
        // crash of the machine is known from the diff's record instead.
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SnapshotError::io("remove", &work, error));
            }
            _ => {}
        }
        for dir in [work.as_path(), path] {
            match std::fs::create_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(SnapshotError::io("create", dir, error));
                }
                _ => {}
            }
        }
        let mut lowers = self.lowers();
        if lowers.is_empty() {
            lowers.push(Lower::Directory(&self.empty));
        }
        let upper_dirs = Upper { dir: fs, work };
        let overlay = Overlay { lowers, upper: Some(upper_dirs), volatile: true, ..Overlay::default() };
        Ok(overlay.mount()?.attach(path)?.holding(self.hold()))
    }

    /// The root of an overlay has the attributes of its uppermost layer: a new upper takes those of the layer below.
    fn adopt_root(&self, dir: &Path, fs: &Path) -> Result<(), SnapshotError> {
        let mark = dir.join("rooted");
        if mark.exists() {
            return Ok(());
        }
        let from = match self.parts.last() {
            Some(Part::Tree(tree)) => PathBuf::from(format!("/proc/self/fd/{}/.", tree.mount().as_fd().as_raw_fd())),
            Some(Part::Dir(dir)) => dir.clone(),
            None => self.empty.clone(),
        };
        castor_mount::set_attributes(&from, fs).map_err(|e| SnapshotError::io("set attributes of", fs, e))?;
        std::fs::write(&mark, b"").map_err(|e| SnapshotError::io("create", &mark, e))
    }
}
