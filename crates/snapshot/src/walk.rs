//! The changes between two trees, as BuildKit's differ sees them.
//!
//! *Which* paths changed is read from the upper directory of an overlay, *what* they are from the mounted view: an upper
//! entry may be only metadata, or the content of a directory that was below another name.
//!
//! The rules, in walking order (names of a directory sorted by bytes, a directory right before what it contains):
//! - a whiteout whose name the lower tree has is a deletion;
//! - an entry that the lower tree has as well, and that is the same there, is no change: same type, mode, owner, device and
//!   capabilities, and unless it is a directory same size and time, and where both times have whole seconds same content;
//! - a directory that is opaque, or was moved here, and that the lower tree has too is compared entry by entry;
//! - sockets are left out.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::SnapshotError;

/// A change of one path, relative to the root.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is gone.
    Delete(PathBuf),
    /// It is new or other than before.
    Put {
        path: PathBuf,
        meta: Metadata,
        /// Where the inode number in `meta` is from: numbers are compared only among equals.
        source: Source,
    },
    /// It is the same, but has other names: if one of these changed, this is a link to it.
    Same { path: PathBuf, meta: Metadata },
}

/// Which tree an entry's inode number belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    Upper,
    View,
}

/// Who takes changes.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Change) -> Result<(), SnapshotError>;

/// Directories deeper than this are no honest work, and the walk is recursive.
const MAX_DEPTH: usize = 2048;

fn io_error(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::io(verb, path, source)
}

/// Changes of an overlay: `upper` is its upper directory, `view` the mounted overlay, `base` the mounted lower tree.
pub(crate) fn overlay(upper: &Path, view: &Path, base: &Path, each: Each<'_>) -> Result<(), SnapshotError> {
    Walk { upper, view, base }.directory(Path::new(""), 0, each)
}

/// Changes between two whole trees.
pub(crate) fn trees(base: &Path, view: &Path, each: Each<'_>) -> Result<(), SnapshotError> {
    Walk { upper: view, view, base }.compare(Path::new(""), 0, each)
}

struct Walk<'a> {
    upper: &'a Path,
    view: &'a Path,
    base: &'a Path,
}

impl Walk<'_> {
    fn directory(&self, dir: &Path, depth: usize, each: Each<'_>) -> Result<(), SnapshotError> {
        let here = self.upper.join(dir);
        too_deep(&here, depth)?;
        for name in names(&here)? {
            let path = dir.join(&name);
            let upper = self.upper.join(&path);
            let meta = std::fs::symlink_metadata(&upper).map_err(io_error("stat", &upper))?;
            let below = stat(&self.base.join(&path))?;
            if is_whiteout(&meta) {
                if below.is_some() {
                    each(Change::Delete(path))?;
                }
                continue;
            }
            if meta.file_type().is_socket() {
                continue;
            }
            let same = match &below {
                Some(below) => {
                    // Metadata-only copies have the data of the lower file: nothing to compare.
                    let data = meta.is_file() && xattr(&upper, "trusted.overlay.metacopy")?.is_some();
                    same(below, &meta, &self.base.join(&path), &self.view.join(&path), data)?
                }
                None => false,
            };
            if !same {
                each(Change::Put { path: path.clone(), meta: meta.clone(), source: Source::Upper })?;
            }
            if !meta.is_dir() {
                continue;
            }
            let moved = xattr(&upper, "trusted.overlay.redirect")?.is_some();
            let opaque = is_opaque(&upper)?;
            match below.is_some_and(|below| below.is_dir()) {
                true if moved || opaque => self.compare(&path, depth + 1, each)?,
                false if moved => self.all(&path, depth + 1, each)?,
                _ => self.directory(&path, depth + 1, each)?,
            }
        }
        Ok(())
    }

    /// Compares a directory that both trees have.
    fn compare(&self, dir: &Path, depth: usize, each: Each<'_>) -> Result<(), SnapshotError> {
        let (base, view) = (self.base.join(dir), self.view.join(dir));
        too_deep(&view, depth)?;
        let (old, new) = (names(&base)?, names(&view)?);
        let all: BTreeSet<&OsString> = old.iter().chain(&new).collect();
        for name in all {
            let path = dir.join(name);
            let (base, view) = (base.join(name), view.join(name));
            let (below, above) = (stat(&base)?, stat(&view)?);
            let Some(meta) = above else {
                if below.is_some() {
                    each(Change::Delete(path))?;
                }
                continue;
            };
            if meta.file_type().is_socket() {
                continue;
            }
            let directories = below.as_ref().is_some_and(Metadata::is_dir) && meta.is_dir();
            let same = match &below {
                Some(below) => same(below, &meta, &base, &view, false)?,
                None => false,
            };
            if !same {
                each(Change::Put { path: path.clone(), meta: meta.clone(), source: Source::View })?;
            } else if !meta.is_dir() && meta.nlink() > 1 {
                each(Change::Same { path: path.clone(), meta: meta.clone() })?;
            }
            if directories {
                self.compare(&path, depth + 1, each)?;
            } else if meta.is_dir() {
                self.all(&path, depth + 1, each)?;
            }
        }
        Ok(())
    }

    /// All that a directory of the view holds is new.
    fn all(&self, dir: &Path, depth: usize, each: Each<'_>) -> Result<(), SnapshotError> {
        let view = self.view.join(dir);
        too_deep(&view, depth)?;
        for name in names(&view)? {
            let path = dir.join(&name);
            let Some(meta) = stat(&view.join(&name))? else { continue };
            if meta.file_type().is_socket() {
                continue;
            }
            let directory = meta.is_dir();
            each(Change::Put { path: path.clone(), meta, source: Source::View })?;
            if directory {
                self.all(&path, depth + 1, each)?;
            }
        }
        Ok(())
    }
}

fn too_deep(path: &Path, depth: usize) -> Result<(), SnapshotError> {
    if depth > MAX_DEPTH {
        return Err(SnapshotError::io("walk", path, io::Error::other("more than 2048 directories in each other")));
    }
    Ok(())
}

/// The names in a directory, sorted by bytes.
fn names(dir: &Path) -> Result<Vec<OsString>, SnapshotError> {
    let entries = std::fs::read_dir(dir).map_err(io_error("list", dir))?;
    let mut names = entries
        .map(|entry| entry.map(|e| e.file_name()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(io_error("list", dir))?;
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

fn stat(path: &Path) -> Result<Option<Metadata>, SnapshotError> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(SnapshotError::io("stat", path, error)),
    }
}

pub(crate) fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// The value of an extended attribute, if there is one.
pub(crate) fn xattr(path: &Path, name: &str) -> Result<Option<Vec<u8>>, SnapshotError> {
    let mut value = vec![0u8; 256];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(rustix::io::Errno::RANGE) if value.len() < 128 << 10 => value.resize(128 << 10, 0),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(SnapshotError::io("read attribute of", path, error.into())),
        }
    }
}

/// The names of a file's extended attributes.
pub(crate) fn xattr_names(path: &Path) -> Result<Vec<CString>, SnapshotError> {
    let mut list = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(SnapshotError::io("list attributes of", path, error.into())),
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

/// Whether an entry is what it was.
fn same(below: &Metadata, above: &Metadata, base: &Path, view: &Path, same_data: bool) -> Result<bool, SnapshotError> {
    let facts = |m: &Metadata| (m.mode(), m.uid(), m.gid(), m.rdev());
    if facts(below) != facts(above) {
        return Ok(false);
    }
    if xattr(base, "security.capability")? != xattr(view, "security.capability")? {
        return Ok(false);
    }
    if above.is_dir() {
        return Ok(true);
    }
    if below.size() != above.size() || below.mtime() != above.mtime() {
        return Ok(false);
    }
    if below.mtime_nsec() != 0 || above.mtime_nsec() != 0 {
        return Ok(below.mtime_nsec() == above.mtime_nsec());
    }
    // Times of whole seconds may have been cut: only the content tells.
    if above.file_type().is_symlink() {
        let target = |path: &Path| std::fs::read_link(path).map_err(io_error("read link", path));
        return Ok(target(base)? == target(view)?);
    }
    if same_data || above.size() == 0 || !above.is_file() {
        return Ok(true);
    }
    same_content(base, view)
}

fn same_content(a: &Path, b: &Path) -> Result<bool, SnapshotError> {
    let open = |path: &Path| File::open(path).map_err(io_error("open", path));
    let (mut first, mut second) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0u8; 128 << 10], vec![0u8; 128 << 10]);
    loop {
        let got = fill(&mut first, &mut left).map_err(io_error("read", a))?;
        if got != fill(&mut second, &mut right).map_err(io_error("read", b))? || left[..got] != right[..got] {
            return Ok(false);
        }
        if got == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn is_opaque(dir: &Path) -> Result<bool, SnapshotError> {
    Ok(xattr(dir, "trusted.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

/// What a diff's directory takes on disk, and whether it is bound to what it was made on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Measure {
    pub size: u64,
    pub inodes: u64,
    pub bound: bool,
    /// It has directories that hide all that lies below them.
    pub opaque: bool,
}

/// Measures a diff's directory. Blocks.
pub(crate) fn measure(root: &Path) -> Result<Measure, SnapshotError> {
    walk_diff(root, &mut |_| Ok(()))
}

/// Measures the directory of a diff on nothing, whose directories hide nothing: overlayfs marks new ones all the same, and
/// elsewhere they would. Blocks.
pub(crate) fn measure_on_nothing(root: &Path) -> Result<Measure, SnapshotError> {
    let measure = walk_diff(root, &mut |dir| {
        rustix::fs::lremovexattr(dir, c"trusted.overlay.opaque").map_err(|e| io_error("unmark", dir)(e.into()))
    })?;
    Ok(Measure { bound: false, opaque: false, ..measure })
}

fn walk_diff(
    root: &Path,
    each_opaque: &mut dyn FnMut(&Path) -> Result<(), SnapshotError>,
) -> Result<Measure, SnapshotError> {
    let mut measure = Measure::default();
    let mut linked = std::collections::HashSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut empty = true;
        for entry in std::fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let entry = entry.map_err(io_error("list", &dir))?;
            let path = entry.path();
            let meta = std::fs::symlink_metadata(&path).map_err(io_error("stat", &path))?;
            empty = false;
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
                continue;
            }
            measure.inodes += 1;
            measure.size += meta.blocks() * 512;
            if meta.is_dir() {
                measure.bound |= xattr(&path, "trusted.overlay.redirect")?.is_some();
                if is_opaque(&path)? {
                    each_opaque(&path)?;
                    measure.opaque = true;
                }
                todo.push(path);
            } else if meta.is_file() {
                measure.bound |= xattr(&path, "trusted.overlay.metacopy")?.is_some();
            }
        }
        // A copy of one below, of which nothing may have changed: then it is no change elsewhere either.
        measure.bound |= empty && dir != root && !is_opaque(&dir)?;
    }
    Ok(measure)
}

/// A path in a tar: without a leading slash, with one at the end of a directory.
pub(crate) fn tar_name(path: &Path, directory: bool) -> Vec<u8> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if directory {
        name.push(b'/');
    }
    name
}

/// The name of the whiteout of `path`.
pub(crate) fn whiteout_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".wh.");
    name.push(path.file_name().unwrap_or(OsStr::new("")));
    path.with_file_name(name)
}
