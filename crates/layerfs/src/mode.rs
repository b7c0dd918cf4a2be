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
use castor_mount::Device;
use castor_task::Scope;

use crate::serve::{Served, Server};

/// A way of mounting an image tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// EROFS over the data files themselves: all layers complete, no server.
    Erofs,
    /// EROFS over files that castor's own FUSE file system serves.
    ErofsFuse,
}

impl Mode {
    /// Its name in configuration, log and `debug workers`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::ErofsFuse => "erofs+fuse",
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
        [Self::Erofs, Self::ErofsFuse]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("unknown mode {text:?}: want erofs or erofs+fuse"))
    }
}

/// What the probe found.
#[derive(Debug, Clone)]
pub struct Modes {
    /// How complete layers are mounted; or why they cannot be.
    pub complete: Result<Mode, String>,
    /// How lazy layers are mounted; or why they cannot be (all layers are then eager, and say so).
    pub lazy: Result<Mode, String>,
}

impl Modes {
    /// The mode of lazy layers, or why there is none, as text.
    pub fn lazy_text(&self) -> String {
        match &self.lazy {
            Ok(mode) => mode.name().to_owned(),
            Err(reason) => reason.clone(),
        }
    }
}

/// Finds out, by trying under `root`, what can be mounted; starts the server of lazy layers if that works. Blocks.
pub(crate) fn probe(root: &Path, wanted: Option<Mode>, scope: &Scope) -> (Modes, Option<Server>) {
    let files = match Files::make(root) {
        Ok(files) => files,
        Err(reason) => return (Modes { complete: Err(reason.clone()), lazy: Err(reason) }, None),
    };
    if let Err(reason) = files.read(&Device::File(files.data.as_fd())) {
        let reason = format!("EROFS over files in {} does not work here: {reason}", root.display());
        return (Modes { complete: Err(reason.clone()), lazy: Err(reason) }, None);
    }
    let complete = Ok(Mode::Erofs);
    if wanted == Some(Mode::Erofs) {
        return (Modes { complete, lazy: Err("mode erofs is configured, which serves no lazy layers".into()) }, None);
    }
    let served = Server::start(scope).and_then(|server| {
        let data = files.data.try_clone().map_err(|e| e.to_string())?;
        let deadline = Duration::from_secs(10);
        server.add(0, Served::new(PAYLOAD.len() as u64, Arc::new(data), None, deadline, Box::new(|_, _| {})));
        let name = Server::name(0);
        let read = files.read(&Device::In(server.directory(), &name));
        server.remove(0);
        read.map(|()| server)
    });
    match served {
        Ok(server) => (Modes { complete, lazy: Ok(Mode::ErofsFuse) }, Some(server)),
        Err(reason) => (Modes { complete, lazy: Err(format!("lazy layers cannot be served here: {reason}")) }, None),
    }
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

    fn read(&self, device: &Device<'_>) -> Result<(), String> {
        let mount =
            castor_mount::erofs(self.image.as_fd(), std::slice::from_ref(device), false).map_err(|e| e.to_string())?;
        let fd = rustix::fs::openat(&mount, "probe", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            .map_err(|e| format!("open a file of it: {e}"))?;
        let mut bytes = Vec::new();
        File::from(fd).read_to_end(&mut bytes).map_err(|e| format!("read a file of it: {e}"))?;
        if bytes != PAYLOAD { Err("a file of it has wrong content".into()) } else { Ok(()) }
    }
}
