//! Mounted image trees.

use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Weak};

use castor_mount::{Backing, Detached, Device};
use castor_oci::Digest;
use parking_lot::Mutex;

use crate::engine::Shared;
use crate::error::LayerError;
use crate::image::{self, Base};
use crate::layer::{Layer, Object};
use crate::mode::Mode;
use crate::serve::{DataServer, MAX_READ};
use crate::serving::Dependence;
use crate::source::LayerId;
use crate::tree::Tree;
use crate::treefs::{MountFailure, TreeLayer};

/// The mounted tree of a list of layers: an overlay lower. Nothing of it is visible in any mount namespace.
///
/// Whoever mounts an overlay on it keeps it for as long as that is mounted: when it goes, reads that wait for missing
/// bytes are answered with EIO.
pub struct ImageTree {
    /// `None` only while it is being dropped.
    mount: Option<Detached>,
    layers: Vec<Arc<Layer>>,
    /// Numbers of the layers that are served, not read from their files.
    served: Vec<u64>,
    dependence: Dependence,
    shared: Arc<Shared>,
    users: Users,
}

type Users = Arc<Mutex<HashMap<u64, usize>>>;

impl std::fmt::Debug for ImageTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<LayerId> = self.layers.iter().map(|layer| layer.id()).collect();
        f.debug_struct("ImageTree").field("layers", &ids).field("served", &self.served).finish_non_exhaustive()
    }
}

impl ImageTree {
    /// The detached mount.
    #[expect(clippy::expect_used, reason = "the mount is only taken when the value is dropped")]
    pub fn mount(&self) -> &Detached {
        self.mount.as_ref().expect("an image tree in use is mounted")
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// Whether reading it needs a server: this process or one that it has started.
    pub fn is_served(&self) -> bool {
        !matches!(self.dependence, Dependence::Files)
    }

    /// Whether another mount of the same layers would be better: the server is gone, or would not be needed.
    fn is_outdated(&self) -> bool {
        let server_for_nothing =
            matches!(self.dependence, Dependence::Data(_)) && self.layers.iter().all(|layer| layer.is_complete());
        server_for_nothing || !self.dependence.is_alive()
    }
}

impl Drop for ImageTree {
    fn drop(&mut self) {
        let mut users = self.users.lock();
        for number in &self.served {
            let left = users.get_mut(number).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                users.remove(number);
                // An unmount waits, unkillably, for pages that are being read.
                self.shared.serving.layers.release(*number);
            }
        }
        drop(users);
        drop(self.mount.take());
    }
}

/// The trees that are mounted.
#[derive(Default)]
pub(crate) struct Trees {
    mounted: Mutex<HashMap<Digest, Weak<ImageTree>>>,
    /// One at a time is built and mounted: the read-ahead setting is found by what has just appeared.
    building: tokio::sync::Mutex<()>,
    users: Users,
}

impl Trees {
    /// The mounted tree of `layers`, all of which are ready.
    pub(crate) async fn get(
        &self,
        shared: &Arc<Shared>,
        layers: Vec<Arc<Layer>>,
        base: Base,
    ) -> Result<Arc<ImageTree>, LayerError> {
        let ids: Vec<LayerId> = layers.iter().map(|layer| layer.id()).collect();
        let name = image::name(&ids, base);
        let _one = self.building.lock().await;
        let mounted = self.mounted.lock().get(&name).and_then(Weak::upgrade);
        if let Some(tree) = mounted.filter(|tree| !tree.is_outdated()) {
            return Ok(tree);
        }
        if let Err(reason) = &shared.modes().complete {
            return Err(LayerError::Mount(reason.clone()));
        }
        let path = shared.config.root.join("trees").join(format!("{}.erofs", name.hex()));
        let in_use = self.in_use();
        let (this, users) = (shared.clone(), self.users.clone());
        let tree = castor_task::blocking(move || {
            tidy(path.parent().unwrap_or(&path), &in_use, KEPT);
            mount(&this, layers, base, name, &path, users)
        })
        .await?;
        let tree = Arc::new(tree);
        let mut mounted = self.mounted.lock();
        mounted.retain(|_, tree| tree.strong_count() > 0);
        mounted.insert(name, Arc::downgrade(&tree));
        Ok(tree)
    }

    /// Deletes all images that are not mounted: layers are going, and nothing tells whose images are theirs.
    pub(crate) async fn forget(&self, shared: &Shared) {
        let _one = self.building.lock().await;
        let (dir, in_use) = (shared.config.root.join("trees"), self.in_use());
        castor_task::blocking(move || tidy(&dir, &in_use, 0)).await;
    }

    fn in_use(&self) -> HashSet<Digest> {
        let mounted = self.mounted.lock();
        mounted.iter().filter(|(_, tree)| tree.strong_count() > 0).map(|(name, _)| *name).collect()
    }
}

/// Images that are kept for the next time they are wanted.
const KEPT: usize = 256;

/// Deletes the oldest images that are not mounted but for `kept` of them.
fn tidy(dir: &Path, in_use: &HashSet<Digest>, kept: usize) {
    let in_use: HashSet<String> = in_use.iter().map(|name| format!("{}.erofs", name.hex())).collect();
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut images: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().to_str().is_some_and(|name| in_use.contains(name)))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort();
    for (_, path) in images.iter().take(images.len().saturating_sub(kept)) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "delete image tree");
        }
    }
}

/// Builds the image if it is not there, and mounts it. Blocks.
fn mount(
    shared: &Arc<Shared>,
    layers: Vec<Arc<Layer>>,
    base: Base,
    name: Digest,
    path: &Path,
    users: Users,
) -> Result<ImageTree, LayerError> {
    let objects = layers
        .iter()
        .map(|layer| layer.core.object.get().ok_or(LayerError::Unknown(layer.id())))
        .collect::<Result<Vec<_>, _>>()?;
    let trees: Vec<&Tree> = objects.iter().map(|object| &*object.tree).collect();
    if !path.exists() {
        image::build(&trees, name, base, path).map_err(LayerError::Mount)?;
    }
    let image = std::fs::File::open(path).map_err(|e| LayerError::io("open", path, e))?;
    // Asked once: a layer may become complete any moment.
    let parts: Vec<Part<'_>> = layers
        .iter()
        .zip(&objects)
        .filter(|(_, object)| object.tree.data_size() > 0)
        .map(|(layer, object)| Part { layer, object, complete: layer.is_complete() })
        .collect();
    let modes = shared.modes();
    let lazy = parts.iter().find(|part| !part.complete);
    let mode = match lazy {
        None => modes.complete.clone().map_err(LayerError::Mount)?,
        Some(part) => modes
            .lazy
            .clone()
            .map_err(|reason| LayerError::Mount(format!("layer {} is not complete: {reason}", part.layer.id())))?,
    };
    let (mounted, dependence) = match mode {
        Mode::Fuse => mount_fuse(shared, &image, &parts)?,
        _ => mount_erofs(shared, &image, &parts, mode)?,
    };
    for fetcher in objects.iter().filter_map(|object| object.fetcher.as_ref()).filter(|_| shared.config.prefetch) {
        fetcher.prefetch();
    }
    let mut served: Vec<u64> = parts.iter().filter(|part| !part.complete).map(|part| part.layer.core.number).collect();
    served.sort_unstable();
    served.dedup();
    {
        let mut users = users.lock();
        for number in &served {
            *users.entry(*number).or_default() += 1;
        }
    }
    Ok(ImageTree { mount: Some(mounted), layers, served, dependence, shared: shared.clone(), users })
}

/// A layer of an image, with a device of its own.
struct Part<'a> {
    layer: &'a Layer,
    object: &'a Object,
    complete: bool,
}

/// Mounts an image as EROFS.
fn mount_erofs(
    shared: &Shared,
    image: &std::fs::File,
    parts: &[Part<'_>],
    mode: Mode,
) -> Result<(Detached, Dependence), LayerError> {
    let names: Vec<_> = parts.iter().map(|part| DataServer::name(part.layer.core.number)).collect();
    let server = match mode {
        Mode::ErofsFuse | Mode::ErofsFuseLoop => Some(shared.serving.data().map_err(LayerError::Mount)?),
        Mode::Erofs | Mode::ErofsLoop | Mode::Fuse => None,
    };
    let devices: Vec<Device<'_>> = parts
        .iter()
        .zip(&names)
        .map(|(part, name)| match &server {
            Some(server) if !part.complete => Device::In(server.directory(), name),
            _ => Device::File(part.object.data.as_fd()),
        })
        .collect();
    let before = server.is_some().then(devices_with_read_ahead);
    let mounted = castor_mount::erofs(image.as_fd(), &devices, devices.is_empty(), mode.backing())
        .map_err(|error| LayerError::Mount(error.to_string()))?;
    if let Some(before) = before {
        match mode.backing() {
            Backing::Files => raise_read_ahead(devices_with_read_ahead().difference(&before)),
            Backing::Loops => raise_read_ahead(device_of(&mounted).iter()),
        }
    }
    Ok((mounted, server.map_or(Dependence::Files, Dependence::Data)))
}

/// Mounts an image as a FUSE file system of another process.
fn mount_fuse(
    shared: &Shared,
    image: &std::fs::File,
    parts: &[Part<'_>],
) -> Result<(Detached, Dependence), LayerError> {
    let layers: Vec<TreeLayer<'_>> = parts
        .iter()
        .map(|part| TreeLayer {
            number: part.layer.core.number,
            data: &part.object.data,
            complete: part.complete,
            core: Some(&part.layer.core),
        })
        .collect();
    let patience = shared.config.read_deadline;
    let mut again = true;
    loop {
        let server = shared.serving.trees().map_err(LayerError::Mount)?;
        match server.mount(image, &layers, patience) {
            Ok((mounted, tree)) => {
                raise_read_ahead(device_of(&mounted).iter());
                return Ok((mounted, Dependence::Trees(tree)));
            }
            // One that was killed meanwhile is replaced; twice is no accident.
            Err(MountFailure::Ended) if std::mem::take(&mut again) => {}
            Err(MountFailure::Ended) => return Err(LayerError::Mount("the server of image trees ended".into())),
            Err(MountFailure::Other(reason)) => return Err(LayerError::Mount(reason)),
        }
    }
}

const BDI: &str = "/sys/class/bdi";

fn devices_with_read_ahead() -> HashSet<String> {
    let Ok(entries) = std::fs::read_dir(BDI) else { return HashSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("erofs-")).collect()
}

/// The name of a mount's device there, where it is that of the file system.
fn device_of(mount: &Detached) -> Option<String> {
    let device = rustix::fs::fstat(mount).ok()?.st_dev;
    Some(format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}

/// Lets a mount read ahead as far as the server answers at once. A served read costs a switch of processes, so larger ones
/// pay; if the setting cannot be found, reads are only smaller.
fn raise_read_ahead<'a>(devices: impl Iterator<Item = &'a String>) {
    for name in devices {
        let path = Path::new(BDI).join(name).join("read_ahead_kb");
        if let Err(error) = std::fs::write(&path, (MAX_READ >> 10).to_string()) {
            tracing::debug!(path = %path.display(), %error, "set read-ahead");
        }
    }
}
