//! How image trees are mounted on this machine: probed once, by trying in place.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use castor_erofs::{Attributes, Body, DeviceSlot, Extent, Tree, write_image};
use castor_mount::{Backing, Detached, Device};

use crate::serve::{DataServer, Served};
use crate::serving::Serving;
use crate::treefs::{MountFailure, TreeLayer};

/// A way of mounting an image tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// EROFS over the data files themselves: all layers complete, no server.
    Erofs,
    /// The same over loop devices, for kernels and state directories that have nothing else.
    ErofsLoop,
    /// EROFS over files that castor's own FUSE file system serves.
    ErofsFuse,
    /// The same over loop devices.
    ErofsFuseLoop,
    /// castor's own FUSE file system, served by a process of its own.
    Fuse,
}

impl Mode {
    /// All, best first.
    pub const ALL: [Self; 5] = [Self::Erofs, Self::ErofsLoop, Self::ErofsFuse, Self::ErofsFuseLoop, Self::Fuse];

    /// Its name in configuration, log and `debug workers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::ErofsLoop => "erofs+loop",
            Self::ErofsFuse => "erofs+fuse",
            Self::ErofsFuseLoop => "erofs+fuse+loop",
            Self::Fuse => "fuse",
        }
    }

    /// What EROFS reads its files through.
    pub(crate) fn backing(self) -> Backing {
        match self {
            Self::ErofsLoop | Self::ErofsFuseLoop => Backing::Loops,
            Self::Erofs | Self::ErofsFuse | Self::Fuse => Backing::Files,
        }
    }

    /// The modes that a configured one allows for complete layers and for lazy ones.
    fn allowed(wanted: Option<Self>) -> (&'static [Self], &'static [Self]) {
        match wanted {
            None => (&[Self::Erofs, Self::ErofsLoop, Self::Fuse], &[Self::ErofsFuse, Self::ErofsFuseLoop, Self::Fuse]),
            Some(Self::Erofs) => (&[Self::Erofs], &[]),
            Some(Self::ErofsLoop) => (&[Self::ErofsLoop], &[]),
            Some(Self::ErofsFuse) => (&[Self::Erofs], &[Self::ErofsFuse]),
            Some(Self::ErofsFuseLoop) => (&[Self::ErofsLoop], &[Self::ErofsFuseLoop]),
            Some(Self::Fuse) => (&[Self::Fuse], &[Self::Fuse]),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("unknown mode {text:?}: want one of {}", names.join(", "))
        })
    }
}

/// What the probe found.
#[derive(Debug, Clone)]
pub struct Modes {
    /// How complete layers are mounted; or why they cannot be.
    pub complete: Result<Mode, String>,
    /// How lazy layers are mounted; or why they cannot be (all layers are then eager, and say so).
    pub lazy: Result<Mode, String>,
    /// Better modes that do not work here, and why.
    pub passed_over: Vec<(Mode, String)>,
}

impl Modes {
    /// The mode of complete layers, or why there is none, as text.
    pub fn complete_text(&self) -> String {
        text(&self.complete)
    }

    /// The mode of lazy layers, or why there is none, as text.
    pub fn lazy_text(&self) -> String {
        text(&self.lazy)
    }
}

fn text(mode: &Result<Mode, String>) -> String {
    match mode {
        Ok(mode) => mode.name().to_owned(),
        Err(reason) => reason.clone(),
    }
}

/// Finds out, by trying under `root`, what can be mounted, of what `wanted` allows. Blocks.
pub(crate) fn probe(root: &Path, wanted: Option<Mode>, serving: &Serving) -> Modes {
    let mut passed_over = Vec::new();
    let files = match Files::make(root) {
        Ok(files) => files,
        Err(reason) => return Modes { complete: Err(reason.clone()), lazy: Err(reason), passed_over },
    };
    let mut first = |modes: &[Mode]| {
        let before = passed_over.len();
        for mode in modes {
            match files.try_mode(*mode, serving) {
                Ok(()) => return Ok(*mode),
                Err(reason) => passed_over.push((*mode, reason)),
            }
        }
        let reasons: Vec<String> =
            passed_over.split_off(before).into_iter().map(|(mode, reason)| format!("{mode}: {reason}")).collect();
        Err(reasons.join("; "))
    };
    let (complete, lazy) = Mode::allowed(wanted);
    let complete =
        first(complete).map_err(|reasons| format!("layers in {} cannot be mounted here: {reasons}", root.display()));
    let lazy = match (lazy, wanted) {
        ([], Some(mode)) => Err(format!("mode {mode} is configured, which serves no lazy layers")),
        (modes, _) => first(modes).map_err(|reasons| format!("lazy layers cannot be served here: {reasons}")),
    };
    Modes { complete, lazy, passed_over }
}

const PAYLOAD: &[u8; 4096] = &[0x5a; 4096];

/// A tree of one file, to be mounted and read.
struct Files {
    image: File,
    data: File,
}

impl Files {
    fn make(root: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("prepare the probe in {}: {e}", root.display());
        let file = |name: &str| {
            let path = root.join(name);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            // The descriptor is enough: nothing is left behind.
            std::fs::remove_file(&path)?;
            Ok(file)
        };
        let (mut image, mut data) = (file("probe.erofs").map_err(failed)?, file("probe.data").map_err(failed)?);
        data.write_all(PAYLOAD).map_err(failed)?;
        let mut tree = Tree::new(Attributes { mode: 0o755, ..Attributes::default() });
        let body = Body::File { size: PAYLOAD.len() as u64, extent: Extent::Device { device: 1, offset: 0 } };
        let none: [(&[u8], &[u8]); 0] = [];
        tree.insert(tree.root(), b"probe", &Attributes::default(), &body, none).map_err(|e| e.to_string())?;
        let slot = DeviceSlot { tag: b"probe".to_vec(), size: PAYLOAD.len() as u64 };
        write_image(&tree, &[slot], *b"castor probe \x80\x80\x80", &mut image).map_err(|e| e.to_string())?;
        Ok(Self { image, data })
    }

    fn try_mode(&self, mode: Mode, serving: &Serving) -> Result<(), String> {
        // No layer has this number.
        const NUMBER: u64 = 0;
        let erofs = |device: &Device<'_>| {
            let devices = std::slice::from_ref(device);
            castor_mount::erofs(self.image.as_fd(), devices, false, mode.backing()).map_err(|e| e.to_string())
        };
        if matches!(mode, Mode::Erofs | Mode::ErofsLoop) {
            return check(&erofs(&Device::File(self.data.as_fd()))?);
        }
        let data = Arc::new(self.data.try_clone().map_err(|e| e.to_string())?);
        let served = Served::new(PAYLOAD.len() as u64, data, None, PATIENCE, Box::new(|_, _| {}));
        serving.layers.add(NUMBER, served);
        let mounted = match mode {
            Mode::Fuse => serving.trees().and_then(|server| {
                let layer = TreeLayer { number: NUMBER, data: &self.data, complete: false, core: None };
                let mounted = server.mount(&self.image, &[layer], PATIENCE).map_err(|failure| match failure {
                    MountFailure::Ended => "its server ended at once".to_owned(),
                    MountFailure::Other(reason) => reason,
                });
                mounted.map(|(mount, tree)| (Some(tree), mount))
            }),
            _ => {
                let server = serving.data();
                let mounted =
                    server.and_then(|server| erofs(&Device::In(server.directory(), &DataServer::name(NUMBER))));
                mounted.map(|mount| (None, mount))
            }
        };
        let outcome = mounted.and_then(|(_tree, mount)| check(&mount));
        serving.layers.remove(NUMBER);
        outcome
    }
}

/// How long a read of the probe may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the probe's file in a mount.
fn check(mount: &Detached) -> Result<(), String> {
    let fd = rustix::fs::openat(mount, "probe", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
        .map_err(|e| format!("open a file of it: {e}"))?;
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes).map_err(|e| format!("read a file of it: {e}"))?;
    if bytes != PAYLOAD { Err("a file of it has wrong content".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_known_by_their_names() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse::<Mode>(), Ok(mode));
        }
        let error = "erofs+ublk".parse::<Mode>().unwrap_err();
        assert!(error.contains("erofs, erofs+loop, erofs+fuse, erofs+fuse+loop, fuse"), "{error}");
    }
}
