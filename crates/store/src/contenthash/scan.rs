//! Reading a mounted tree as far as it is needed.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use castor_oci::Digest;
use castor_task::CancellationToken;
use parking_lot::Mutex;

use super::header::{BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, Header, REGULAR, SYMLINK, permissions};
use super::tree::{Entry, Key, Tree, path_of};

/// How many files are read at once: for files that have to be fetched first the time is mostly waiting.
const READERS: usize = 8;
const BUFFER: usize = 64 << 10;

/// The longest value of an extended attribute; the kernel's limit.
const MAX_XATTR: usize = 64 << 10;

/// A place where a tree can be read. Blocks, perhaps for a registry.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    pub(super) root: &'a Path,
    pub(super) token: &'a CancellationToken,
}

/// Reading failed.
#[derive(Debug)]
pub(super) struct ScanError {
    pub(super) verb: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

impl Scan<'_> {
    /// The file at `key`, all of whose directories are real ones.
    fn place(&self, key: &[u8]) -> PathBuf {
        let relative = path_of(key);
        let relative = relative.strip_prefix(b"/").unwrap_or(&relative);
        self.root.join(std::ffi::OsStr::from_bytes(relative))
    }

    fn error(&self, verb: &'static str, key: &[u8]) -> impl FnOnce(io::Error) -> ScanError {
        let path = PathBuf::from(std::ffi::OsString::from_vec(path_of(key)));
        move |source| ScanError { verb, path, source }
    }

    fn check(&self, key: &[u8]) -> Result<(), ScanError> {
        if self.token.is_cancelled() {
            return Err(self.error("scan", key)(io::Error::other("context canceled")));
        }
        Ok(())
    }

    /// Takes in the entries of a directory.
    pub(super) fn list(&self, tree: &mut Tree, directory: &Key) -> Result<(), ScanError> {
        self.check(directory)?;
        if directory.is_empty() && tree.wants_root() {
            tree.set_root(self.header(directory)?.hasher().finish());
        }
        let place = self.place(directory);
        for entry in std::fs::read_dir(&place).map_err(self.error("read directory", directory))? {
            let entry = entry.map_err(self.error("read directory", directory))?;
            let mut key = directory.clone();
            key.push(0);
            key.extend_from_slice(entry.file_name().as_bytes());
            // Known from its arrival: need not be read again.
            if matches!(tree.get(&key), Some(Entry::File { digest: Some(_) } | Entry::Directory { listed: true, .. })) {
                continue;
            }
            let header = self.header(&key)?;
            let digest = || header.hasher().finish();
            let known = match header.kind {
                DIRECTORY => Entry::Directory { header: digest(), listed: false },
                SYMLINK => Entry::Link { digest: digest(), target: header.link.clone() },
                REGULAR => Entry::File { digest: (header.size == 0).then(digest) },
                _ => Entry::File { digest: Some(digest()) },
            };
            tree.insert(key, known);
        }
        tree.set_listed(directory);
        Ok(())
    }

    fn header(&self, key: &[u8]) -> Result<Header, ScanError> {
        let place = self.place(key);
        let metadata = std::fs::symlink_metadata(&place).map_err(self.error("stat", key))?;
        let kind = kind(&metadata);
        let link = if kind == SYMLINK {
            std::fs::read_link(&place).map_err(self.error("read link", key))?.into_os_string().into_vec()
        } else {
            Vec::new()
        };
        Ok(Header {
            permissions: permissions(kind, metadata.mode()),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: if kind == REGULAR { metadata.len() } else { 0 },
            kind,
            link,
            // Of a device that is found on disk the numbers do not count; of one that was sent they do.
            device: (0, 0),
            xattrs: xattrs(&place).map_err(self.error("read xattrs of", key))?,
        })
    }

    /// Reads the contents of `files`, several at once.
    pub(super) fn read(&self, files: &[Key]) -> Result<Vec<(Key, Digest)>, ScanError> {
        let next = Mutex::new(files.iter());
        let work = || {
            let mut read = Vec::new();
            loop {
                // The lock is held for the step only.
                let Some(key) = next.lock().next() else { return Ok(read) };
                read.push((key.clone(), self.read_one(key)?));
            }
        };
        let workers = READERS.min(files.len()).max(1);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
            let mut all = work()?;
            for other in others {
                let read = other.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
                all.extend(read?);
            }
            Ok(all)
        })
    }

    fn read_one(&self, key: &Key) -> Result<Digest, ScanError> {
        self.check(key)?;
        let mut header = self.header(key)?;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let opened = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(self.place(key));
        let mut file = opened.map_err(self.error("open", key))?;
        header.size = file.metadata().map_err(self.error("stat", key))?.len();
        let mut hasher = header.hasher();
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("read", key)(error)),
            }
            self.check(key)?;
        }
    }
}

fn kind(metadata: &Metadata) -> u8 {
    let kind = metadata.file_type();
    if kind.is_dir() {
        DIRECTORY
    } else if kind.is_symlink() {
        SYMLINK
    } else if kind.is_char_device() {
        CHAR_DEVICE
    } else if kind.is_block_device() {
        BLOCK_DEVICE
    } else if kind.is_fifo() {
        FIFO
    } else if kind.is_file() {
        REGULAR
    } else {
        // A socket: nothing to read, so only its header counts.
        FIFO
    }
}

/// The extended attributes of a file that is not followed.
fn xattrs(place: &Path) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = std::collections::BTreeMap::new();
    let mut names = vec![0; 1024];
    let count = loop {
        match rustix::fs::llistxattr(place, names.as_mut_slice()) {
            Ok(count) => break count,
            Err(rustix::io::Errno::RANGE) if names.len() < MAX_XATTR => names.resize(names.len() * 8, 0),
            // A file system without any has none.
            Err(rustix::io::Errno::NOTSUP) => return Ok(found),
            Err(error) => return Err(error.into()),
        }
    };
    for name in names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 256];
        loop {
            match rustix::fs::lgetxattr(place, name, value.as_mut_slice()) {
                Ok(count) => {
                    value.truncate(count);
                    found.insert(name.to_vec(), value);
                    break;
                }
                Err(rustix::io::Errno::RANGE) if value.len() < MAX_XATTR => value.resize(MAX_XATTR, 0),
                // It may not be read or is gone: as if it were not there.
                Err(_) => break,
            }
        }
    }
    Ok(found)
}
