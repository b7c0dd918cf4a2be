//! Trees that can be sent.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::{Stat, WalkError, compare_paths, mode, path};

/// Is shown the entries of a tree.
pub type Visit<'a> = &'a mut dyn FnMut(Stat) -> Result<(), WalkError>;

/// A tree of files: announced in order, read by path.
pub trait Tree: Send + Sync + 'static {
    /// Shows every entry, parents before children, siblings by name, a hard
    /// link after the file it is one to. Blocks.
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError>;

    /// Opens a regular file that was shown. Blocks.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>>;
}

impl<T: Tree + ?Sized> Tree for Arc<T> {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        (**self).walk(visit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        (**self).open(path)
    }
}

/// Trees side by side, each in a directory of its own.
#[derive(Default)]
pub struct Subdirectories {
    trees: BTreeMap<String, (Stat, Arc<dyn Tree>)>,
}

impl Subdirectories {
    /// Puts a tree into the directory that `stat` describes. Its path must be a
    /// single name that is not yet taken.
    pub fn insert(&mut self, stat: Stat, tree: Arc<dyn Tree>) -> io::Result<()> {
        let name = stat.path.clone();
        if !path::is_inside(&name) || name.contains('/') || !mode::is_dir(stat.mode) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid directory {name:?}")));
        }
        if self.trees.contains_key(&name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("duplicate directory {name:?}")));
        }
        self.trees.insert(name, (stat, tree));
        Ok(())
    }
}

impl Tree for Subdirectories {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        for (name, (stat, tree)) in &self.trees {
            visit(stat.clone())?;
            tree.walk(&mut |mut stat| {
                stat.path = format!("{name}/{}", stat.path);
                if !stat.linkname.is_empty() {
                    if !mode::is_symlink(stat.mode) {
                        stat.linkname = format!("{name}/{}", stat.linkname);
                    } else if stat.linkname.starts_with('/') {
                        stat.linkname = path::clean(&format!("/{name}{}", stat.linkname));
                    }
                }
                visit(stat)
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        let (name, rest) = path.split_once('/').ok_or(io::ErrorKind::NotFound)?;
        self.trees.get(name).ok_or(io::ErrorKind::NotFound)?.1.open(rest)
    }
}

/// Files from memory. Directories above them must be inserted too.
#[derive(Default, Clone)]
pub struct Files {
    entries: Vec<(Stat, Bytes)>,
}

impl Files {
    /// Adds an entry; the size is that of `contents`. A path that is already
    /// there is replaced.
    pub fn insert(&mut self, mut stat: Stat, contents: impl Into<Bytes>) {
        let contents = contents.into();
        if mode::is_regular(stat.mode) {
            stat.size = i64::try_from(contents.len()).unwrap_or(i64::MAX);
        }
        match self.entries.binary_search_by(|(other, _)| compare_paths(&other.path, &stat.path)) {
            Ok(at) => self.entries[at] = (stat, contents),
            Err(at) => self.entries.insert(at, (stat, contents)),
        }
    }
}

impl Tree for Files {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        self.entries.iter().try_for_each(|(stat, _)| visit(stat.clone()))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        match self.entries.binary_search_by(|(other, _)| compare_paths(&other.path, path)) {
            Ok(at) => Ok(Box::new(self.entries[at].1.clone().reader())),
            Err(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// A tree with files from memory laid over it.
pub struct Overlaid {
    /// The tree below.
    pub lower: Arc<dyn Tree>,
    /// What hides equal paths of it.
    pub upper: Files,
}

impl Tree for Overlaid {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        let mut upper = self.upper.entries.iter().peekable();
        self.lower.walk(&mut |stat| {
            while let Some((over, _)) = upper.next_if(|(over, _)| compare_paths(&over.path, &stat.path).is_lt()) {
                visit(over.clone())?;
            }
            match upper.next_if(|(over, _)| over.path == stat.path) {
                // A directory keeps its own details: only its contents grow.
                Some((over, _)) if mode::is_dir(over.mode) && mode::is_dir(stat.mode) => visit(stat),
                Some((over, _)) => visit(over.clone()),
                None => visit(stat),
            }
        })?;
        upper.try_for_each(|(over, _)| visit(over.clone()))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        match self.upper.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.lower.open(path),
            result => result,
        }
    }
}
