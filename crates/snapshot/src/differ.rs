//! The differ of castor's own worker: a change as a layer's tar stream, header for header what BuildKit writes.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use castor_archive::Timestamp;
use castor_archive::tar::{Header, Kind, Writer};

use crate::error::SnapshotError;
use crate::local::LocalSnapshotter;
use crate::traits::{DiffStats, Differ, Element, SnapshotId};
use crate::walk::{self, Change, Source, tar_name, whiteout_path, xattr};

/// Compares snapshots of a [`LocalSnapshotter`].
#[derive(Debug)]
pub struct LocalDiffer {
    snapshots: Arc<LocalSnapshotter>,
}

impl LocalDiffer {
    /// A differ over `snapshots`.
    pub fn new(snapshots: Arc<LocalSnapshotter>) -> Self {
        Self { snapshots }
    }
}

#[async_trait]
impl Differ for LocalDiffer {
    async fn diff(
        &self,
        lower: Option<&SnapshotId>,
        upper: &SnapshotId,
        out: Box<dyn Write + Send>,
    ) -> Result<(Box<dyn Write + Send>, DiffStats), SnapshotError> {
        let find = |id: &SnapshotId| self.snapshots.elements(id);
        let below = lower.map(find).transpose()?.unwrap_or_default();
        let above = find(upper)?;
        let comparison = self.snapshots.comparison(&below, &above).await?;
        // It may read what has yet to be fetched.
        castor_task::reading(move || {
            let mut tar = TarSink::new(Counting { out, bytes: 0 }, comparison.view().to_owned());
            comparison.each(&mut |change| tar.take(change))?;
            let (counting, entries) = tar.finish()?;
            Ok((counting.out, DiffStats { entries, bytes: counting.bytes }))
        })
        .await
    }
}

/// Whether `upper` is `lower` and one change on top of it.
pub(crate) fn single_change(lower: &[Element], upper: &[Element]) -> Option<crate::traits::DiffId> {
    match upper.strip_prefix(lower)? {
        [Element::Diff(id)] => Some(*id),
        _ => None,
    }
}

struct Counting<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes changes as a tar.
pub(crate) struct TarSink<W: Write> {
    tar: Writer<W>,
    view: PathBuf,
    entries: u64,
    /// Directories that are in the tar.
    written: BTreeSet<PathBuf>,
    /// First name of each file with several.
    first: HashMap<(Source, u64), PathBuf>,
    /// Unchanged names of files with several, until one of these changes.
    unchanged: HashMap<u64, Vec<PathBuf>>,
}

impl<W: Write> TarSink<W> {
    pub(crate) fn new(out: W, view: PathBuf) -> Self {
        Self {
            tar: Writer::new(out),
            view,
            entries: 0,
            written: BTreeSet::new(),
            first: HashMap::new(),
            unchanged: HashMap::new(),
        }
    }

    pub(crate) fn take(&mut self, change: Change) -> Result<(), SnapshotError> {
        match change {
            Change::Delete(path) => {
                self.parents(&path)?;
                // A header of zeros but for the name.
                let header = Header { path: tar_name(&whiteout_path(&path), false), ..Header::default() };
                self.write(&header, None)
            }
            Change::Same { path, meta } => match self.first.get(&(Source::View, meta.ino())).cloned() {
                Some(first) => self.link(&path, &meta, &first),
                None => {
                    self.unchanged.entry(meta.ino()).or_default().push(path);
                    Ok(())
                }
            },
            Change::Put { path, meta, source } => {
                if meta.is_dir() || meta.nlink() < 2 {
                    return self.put(&path, &meta);
                }
                if let Some(first) = self.first.get(&(source, meta.ino())).cloned() {
                    return self.link(&path, &meta, &first);
                }
                self.first.insert((source, meta.ino()), path.clone());
                self.put(&path, &meta)?;
                let others = match source {
                    Source::View => self.unchanged.remove(&meta.ino()).unwrap_or_default(),
                    Source::Upper => Vec::new(),
                };
                for other in others {
                    self.link(&other, &meta, &path)?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn finish(self) -> Result<(W, u64), SnapshotError> {
        Ok((self.tar.finish().map_err(SnapshotError::Write)?, self.entries))
    }

    /// The directories that a path is in, as far as they are not in the tar yet.
    fn parents(&mut self, path: &Path) -> Result<(), SnapshotError> {
        let mut missing: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .take_while(|parent| !self.written.contains(*parent))
            .collect();
        missing.reverse();
        for parent in missing {
            let full = self.view.join(parent);
            let meta = std::fs::symlink_metadata(&full).map_err(|e| SnapshotError::io("stat", &full, e))?;
            self.entry(parent, &meta)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, meta: &Metadata) -> Result<(), SnapshotError> {
        self.parents(path)?;
        self.entry(path, meta)
    }

    fn link(&mut self, path: &Path, meta: &Metadata, first: &Path) -> Result<(), SnapshotError> {
        self.parents(path)?;
        let mut header = self.header(path, meta)?;
        header.kind = Kind::Hardlink;
        header.size = 0;
        header.link = tar_name(first, false);
        self.write(&header, None)
    }

    fn entry(&mut self, path: &Path, meta: &Metadata) -> Result<(), SnapshotError> {
        if meta.is_dir() {
            self.written.insert(path.to_owned());
        }
        let header = self.header(path, meta)?;
        let data = (header.kind == Kind::File && header.size > 0).then(|| self.view.join(path));
        self.write(&header, data.as_deref())
    }

    fn header(&self, path: &Path, meta: &Metadata) -> Result<Header, SnapshotError> {
        let full = self.view.join(path);
        let kind = meta.file_type();
        let mut header = Header {
            path: tar_name(path, kind.is_dir()),
            mode: meta.mode() & 0o7777,
            uid: u64::from(meta.uid()),
            gid: u64::from(meta.gid()),
            // Whole seconds, as older tars could only have them.
            mtime: Timestamp::from_seconds(meta.mtime()),
            ..Header::default()
        };
        header.kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&full).map_err(|e| SnapshotError::io("read link", &full, e))?;
            header.link = target.as_os_str().as_bytes().to_vec();
            Kind::Symlink
        } else if kind.is_char_device() || kind.is_block_device() {
            header.dev_major = rustix::fs::major(meta.rdev());
            header.dev_minor = rustix::fs::minor(meta.rdev());
            if kind.is_char_device() { Kind::CharDevice } else { Kind::BlockDevice }
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            header.size = meta.size();
            Kind::File
        };
        if let Some(capability) = xattr(&full, "security.capability")? {
            header.push_xattr(b"security.capability", &capability);
        }
        Ok(header)
    }

    fn write(&mut self, header: &Header, data: Option<&Path>) -> Result<(), SnapshotError> {
        self.entries += 1;
        let Some(path) = data else {
            return self.tar.append(header, &mut io::empty()).map_err(SnapshotError::Write);
        };
        let mut file = File::open(path).map_err(|e| SnapshotError::io("open", path, e))?;
        let mut failed = None;
        let mut reader = Reporting { file: &mut file, failed: &mut failed };
        let written = self.tar.append(header, &mut reader);
        match (written, failed) {
            (_, Some(error)) => Err(SnapshotError::io("read", path, error)),
            (written, None) => written.map_err(SnapshotError::Write),
        }
    }
}

/// Tells a failure of the file from one of the output.
struct Reporting<'a> {
    file: &'a mut File,
    failed: &'a mut Option<io::Error>,
}

impl io::Read for Reporting<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                *self.failed = Some(error);
            }
            kind.into()
        })
    }
}

/// A comparison that is ready to run: both trees mounted.
pub(crate) struct Comparison {
    pub upper: Option<PathBuf>,
    pub base: Scratch,
    pub view: Scratch,
}

impl Comparison {
    pub(crate) fn view(&self) -> &Path {
        self.view.path()
    }

    /// Gives every change to `each`. Blocks, and may wait for missing bytes.
    pub(crate) fn each(&self, each: walk::Each<'_>) -> Result<(), SnapshotError> {
        match &self.upper {
            Some(upper) => walk::overlay(upper, self.view.path(), self.base.path(), each),
            None => walk::trees(self.base.path(), self.view.path(), each),
        }
    }
}

/// A mount at a directory that exists for it alone.
pub(crate) struct Scratch {
    path: PathBuf,
    mounted: Option<castor_mount::Mounted>,
}

impl Scratch {
    pub(crate) fn new(path: PathBuf, mounted: castor_mount::Mounted) -> Self {
        Self { path, mounted: Some(mounted) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.mounted.take());
        if let Err(error) = std::fs::remove_dir(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "remove mount point");
        }
    }
}
