//! Unpacking, as ADD does with local archives: the rules are those of Docker's `Untar`.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use castor_archive::decompress;
use castor_archive::tar::{Header, Kind, Reader};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec};
use rustix::io::Errno;

use super::error::FileError;
use super::owner::Owner;
use super::tree::{Time, Tree, chown, clean, is_dir, make_dir, proc_path, set_time};

/// Unpacks the archive `src` of `from` into the directory `dst` of `to`. False, and nothing is done, if it is none.
pub(super) fn unpack(
    from: &Tree,
    src: &Path,
    to: &Tree,
    dst: &Path,
    owner: Option<Owner>,
    time: Option<Time>,
) -> Result<bool, FileError> {
    let path = from.lookup(src)?;
    let Some(stat) = from.stat(&path)? else { return Ok(false) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let open = || from.root().open_file(&path).map_err(|error| FileError::io("open", &path)(error.source));
    let Ok((_, stream)) = decompress(open()?) else { return Ok(false) };
    let mut reader = Reader::new(stream).allow_sparse();
    let Ok(Some(first)) = reader.next() else { return Ok(false) };

    let dir = to.lookup(dst)?;
    to.mkdir_all(&dir, 0o755, owner, time)?;
    Unpacker { to, dir, owner, dirs: Vec::new() }.run(reader, first)?;
    Ok(true)
}

struct Unpacker<'a> {
    to: &'a Tree,
    /// Where the archive's root is. Its links are followed within the whole tree's root, which contains it.
    dir: PathBuf,
    owner: Option<Owner>,
    /// Directories and their times, set last, because each new entry changes them.
    dirs: Vec<(PathBuf, Timespec)>,
}

impl Unpacker<'_> {
    fn run<R: Read>(mut self, mut reader: Reader<R>, first: Header) -> Result<(), FileError> {
        let mut next = Some(first);
        while let Some(header) = next {
            self.entry(&header, &mut reader)?;
            next = reader.next().map_err(|error| FileError::Other(format!("unpack archive: {error}")))?;
        }
        for (path, time) in &self.dirs {
            let (parent, name) = self.to.parent("chtimes", path)?;
            set_time(&parent, &name, *time, *time).map_err(FileError::at("chtimes", path))?;
        }
        Ok(())
    }

    fn inside(&self, name: &[u8]) -> PathBuf {
        let name = clean(Path::new(std::ffi::OsStr::from_bytes(name)));
        match name.strip_prefix("/") {
            Ok(below) if !below.as_os_str().is_empty() => self.dir.join(below),
            _ => self.dir.clone(),
        }
    }

    /// The archive's path with links of directories followed. What they lead to stays in the tree, but a link out of
    /// the unpacked directory is refused.
    fn resolve(&self, path: &Path) -> Result<PathBuf, FileError> {
        let real = self.to.lookup_parent(path)?;
        if real != self.dir && !real.starts_with(&self.dir) {
            return Err(FileError::Other(format!("{:?} is outside of {:?}", path.display(), self.dir.display())));
        }
        Ok(real)
    }

    fn entry<R: Read>(&mut self, header: &Header, data: &mut R) -> Result<(), FileError> {
        let asked = self.inside(&header.path);
        if asked != self.dir
            && let Some(parent) = asked.parent()
        {
            let parent = self.to.lookup(parent)?;
            if self.to.stat(&parent)?.is_none() {
                self.to.mkdir_all(&parent, 0o755, Some(Owner::default()), None)?;
            }
        }
        let path = if asked == self.dir { asked } else { self.resolve(&asked)? };
        let directory = header.kind == Kind::Directory;
        let mut exists = false;
        if let Some(existing) = self.to.stat(&path)? {
            if is_dir(&existing) && path == self.dir {
                return Ok(());
            }
            exists = is_dir(&existing) && directory;
            if !exists {
                self.to.remove_all(&path)?;
            }
        }
        let (parent, name) = self.to.parent("open", &path)?;
        let at = (&parent, name.as_os_str());
        self.create(header, at, &path, exists, data)?;

        let owner = self.owner.unwrap_or(Owner { uid: truncate(header.uid), gid: truncate(header.gid) });
        chown(at.0, at.1, owner).map_err(FileError::at("lchown", &path))?;
        self.xattrs(header, at, &path)?;
        let mode = Mode::from_raw_mode(header.mode & 0o7777);
        // A link has no mode of its own, and neither has another name of one.
        if !(header.kind == Kind::Symlink || header.kind == Kind::Hardlink && self.is_symlink(&path)?) {
            rustix::fs::chmodat(at.0, at.1, mode, AtFlags::empty()).map_err(FileError::at("chmod", &path))?;
        }
        let time = Timespec { tv_sec: header.mtime.seconds, tv_nsec: header.mtime.nanoseconds.into() };
        // A second name has the times of the first.
        if header.kind != Kind::Hardlink {
            set_time(at.0, at.1, time, time).map_err(FileError::at("chtimes", &path))?;
        }
        if directory {
            self.dirs.push((path, time));
        }
        Ok(())
    }

    fn is_symlink(&self, path: &Path) -> Result<bool, FileError> {
        Ok(self.to.stat(path)?.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink))
    }

    fn create<R: Read>(
        &self,
        header: &Header,
        (parent, name): (&OwnedFd, &std::ffi::OsStr),
        path: &Path,
        exists: bool,
        data: &mut R,
    ) -> Result<(), FileError> {
        let mode = Mode::from_raw_mode(header.mode & 0o7777);
        match header.kind {
            Kind::Directory if exists => Ok(()),
            Kind::Directory => make_dir(parent, name, header.mode & 0o777).map_err(FileError::at("mkdir", path)),
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(parent, name, flags, mode).map_err(FileError::at("open", path))?;
                let mut file = std::fs::File::from(fd);
                let copied =
                    std::io::copy(&mut data.take(header.size), &mut file).map_err(FileError::io("write", path))?;
                if copied != header.size {
                    return Err(FileError::Other(format!("unpack {}: unexpected EOF", path.display())));
                }
                Ok(())
            }
            Kind::Hardlink => {
                let target = self.resolve(&self.inside(&header.link))?;
                let (dir, first) = self.to.parent("link", &target)?;
                rustix::fs::linkat(&dir, &first, parent, name, AtFlags::empty()).map_err(FileError::at("link", path))
            }
            Kind::Symlink => {
                let link = Path::new(std::ffi::OsStr::from_bytes(&header.link));
                rustix::fs::symlinkat(link, parent, name).map_err(FileError::at("symlink", path))
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match header.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(header.dev_major, header.dev_minor);
                rustix::fs::mknodat(parent, name, kind, mode, device).map_err(FileError::at("mknod", path))
            }
        }
    }

    fn xattrs(
        &self,
        header: &Header,
        (parent, name): (&OwnedFd, &std::ffi::OsStr),
        path: &Path,
    ) -> Result<(), FileError> {
        for (key, value) in header.xattrs() {
            let file = proc_path(parent, name);
            match rustix::fs::lsetxattr(&file, key, value, rustix::fs::XattrFlags::empty()) {
                // Not every file system takes every attribute.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(errno) => return Err(FileError::at("lsetxattr", path)(errno)),
            }
        }
        Ok(())
    }
}

fn truncate(id: u64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}
