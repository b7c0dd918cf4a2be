//! A directory on disk as a tree that can be sent.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::filter::FilterError;
use crate::{Filter, FilterOptions, Mapper, Tree, Visit, Walk, WalkError};

/// A directory seen through a [`Filter`].
pub struct Directory {
    root: PathBuf,
    dir: OwnedFd,
    filter: Filter,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("root", &self.root).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Directory {
    /// The whole of `root`.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, WalkError> {
        let root = root.into();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, &root, flags, Mode::empty())
            .map_err(|source| WalkError::Root { path: root.display().to_string(), source: source.into() })?;
        Ok(Self { root, dir, filter: Filter::all() })
    }

    /// What of `root` the options choose.
    pub fn filtered(root: impl Into<PathBuf>, options: &FilterOptions) -> Result<Self, FilterError> {
        let mut directory = Self::open(root)?;
        directory.filter = Filter::new(&directory.root, options)?;
        Ok(directory)
    }

    /// Changes the details that are shown.
    #[must_use]
    pub fn with_map(mut self, map: Mapper) -> Self {
        self.filter = self.filter.with_map(map);
        self
    }

    /// The directory's path.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Tree for Directory {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, ".", flags, Mode::empty())
            .map_err(|source| WalkError::Root { path: self.root.display().to_string(), source: source.into() })?;
        self.filter.walk(Walk::from_fd(dir)?, visit)
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        // Only what was shown is asked for, so the rules are not asked again: about a single path they can have another
        // answer than in a walk. Not to wait for the writer of a pipe that took the file's place, it does not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(openat2(&self.dir, path, flags, Mode::empty(), resolve)?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(file))
    }
}
