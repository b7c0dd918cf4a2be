//! Changes as a directory: a diff that stands for itself, on whatever it is stacked.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat};

use crate::error::SnapshotError;
use crate::walk::{Change, Source, xattr, xattr_names};

/// Writes changes into a diff's directory, whiteouts and all.
pub(crate) struct DirSink {
    dir: PathBuf,
    view: PathBuf,
    /// The directory of the one diff that all is from, if it is one.
    upper: Option<PathBuf>,
    /// First name of each file with several.
    first: HashMap<(Source, u64), PathBuf>,
    /// Times of directories, set last: what is made in them changes them.
    directories: Vec<(PathBuf, Metadata)>,
}

fn failed(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |error| SnapshotError::io(verb, path, error)
}

impl DirSink {
    /// Into the directory `dir`, with the content of `view`, for which files of the diff `upper` will do.
    pub(crate) fn new(dir: PathBuf, view: PathBuf, upper: Option<PathBuf>) -> Self {
        Self { dir, view, upper, first: HashMap::new(), directories: Vec::new() }
    }

    pub(crate) fn take(&mut self, change: Change) -> Result<(), SnapshotError> {
        match change {
            Change::Delete(path) => {
                self.parents(&path)?;
                let at = self.dir.join(&path);
                let failed = |e: rustix::io::Errno| SnapshotError::io("create whiteout", &at, e.into());
                mknodat(CWD, &at, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed)?;
                // Overlayfs looks for whiteouts where something may have come from below; elsewhere it would list them.
                let directory = at.parent().unwrap_or(&self.dir);
                lsetxattr(directory, c"trusted.overlay.origin", b"", XattrFlags::empty()).map_err(failed)
            }
            Change::Same { .. } => Ok(()),
            Change::Put { path, meta, source } => {
                self.parents(&path)?;
                let several = meta.nlink() > 1 && !meta.is_dir();
                if several && let Some(first) = self.first.get(&(source, meta.ino())) {
                    let at = self.dir.join(&path);
                    return std::fs::hard_link(self.dir.join(first), &at).map_err(failed("link", &at));
                }
                if several {
                    self.first.insert((source, meta.ino()), path.clone());
                }
                if !several && source == Source::Upper && meta.is_file() && self.link(&path)? {
                    return Ok(());
                }
                self.put(&path, &meta)
            }
        }
    }

    /// Makes the diff's own file another name of what is never written to again, unless it is not all there.
    fn link(&self, path: &Path) -> Result<bool, SnapshotError> {
        let Some(from) = self.upper.as_ref().map(|upper| upper.join(path)) else { return Ok(false) };
        for name in xattr_names(&from)? {
            if castor_archive::layer::is_overlay_xattr(name.to_bytes()) {
                return Ok(false);
            }
        }
        Ok(std::fs::hard_link(&from, self.dir.join(path)).is_ok())
    }

    /// Sets the times of directories, the root's attributes too.
    pub(crate) fn finish(self) -> Result<(), SnapshotError> {
        castor_mount::set_attributes(&self.view, &self.dir).map_err(failed("set attributes of", &self.dir))?;
        for (path, meta) in self.directories.iter().rev() {
            set_times(&self.dir.join(path), meta)?;
        }
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> Result<(), SnapshotError> {
        let mut missing: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .take_while(|parent| !self.dir.join(parent).exists())
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        for parent in missing {
            let full = self.view.join(&parent);
            let meta = std::fs::symlink_metadata(&full).map_err(failed("stat", &full))?;
            self.put(&parent, &meta)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, meta: &Metadata) -> Result<(), SnapshotError> {
        let (from, at) = (self.view.join(path), self.dir.join(path));
        let kind = meta.file_type();
        if kind.is_dir() {
            std::fs::create_dir(&at).map_err(failed("create", &at))?;
            self.directories.push((path.to_owned(), meta.clone()));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&from).map_err(failed("read link", &from))?;
            std::os::unix::fs::symlink(target, &at).map_err(failed("create", &at))?;
        } else if kind.is_file() {
            let mut input = File::open(&from).map_err(failed("open", &from))?;
            let mut output = File::create_new(&at).map_err(failed("create", &at))?;
            io::copy(&mut input, &mut output).map_err(failed("copy", &from))?;
        } else {
            let kind = if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_block_device() {
                FileType::BlockDevice
            } else {
                FileType::Fifo
            };
            mknodat(CWD, &at, kind, Mode::empty(), meta.rdev())
                .map_err(|e| SnapshotError::io("create", &at, e.into()))?;
        }
        lchown(&at, Some(meta.uid()), Some(meta.gid())).map_err(failed("set owner of", &at))?;
        if !meta.file_type().is_symlink() {
            let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
            std::fs::set_permissions(&at, mode).map_err(failed("set mode of", &at))?;
        }
        for name in xattr_names(&from)? {
            if castor_archive::layer::is_overlay_xattr(name.to_bytes()) {
                continue;
            }
            let text = name.to_string_lossy();
            if let Some(value) = xattr(&from, &text)? {
                lsetxattr(&at, name.as_c_str(), &value, XattrFlags::empty())
                    .map_err(|e| SnapshotError::io("set attribute of", &at, e.into()))?;
            }
        }
        if meta.is_dir() { Ok(()) } else { set_times(&at, meta) }
    }
}

fn set_times(path: &Path, meta: &Metadata) -> Result<(), SnapshotError> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| SnapshotError::io("set times of", path, e.into()))
}
