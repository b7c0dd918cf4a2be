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
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>>;
}

impl<T: Tree + ?Sized> Tree for Arc<T> {
    fn walk(&self, visit: Visit<'_>) -> Result<(), WalkError> {
        (**self).walk(visit)
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        (**self).open(path)
    }
}

/// Trees side by side, each in a directory of its own.
#[derive(Default)]
pub struct Subdirectories {
    trees: BTreeMap<Bytes, (Stat, Arc<dyn Tree>)>,
}

impl Subdirectories {
    /// Puts a tree into the directory that `stat` describes. Its path must be a
    /// single name that is not yet taken.
    pub fn insert(&mut self, stat: Stat, tree: Arc<dyn Tree>) -> io::Result<()> {
        let name = stat.path.clone();
        if !path::is_inside(&name) || name.contains(&b'/') || !mode::is_dir(stat.mode) {
            let message = format!("invalid directory {:?}", path::display(&name));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if self.trees.contains_key(&name) {
            let message = format!("duplicate directory {:?}", path::display(&name));
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
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
                let below = |path: &[u8]| [name.as_ref(), b"/", path].concat();
                stat.path = below(&stat.path).into();
                if !stat.linkname.is_empty() {
                    if !mode::is_symlink(stat.mode) {
                        stat.linkname = below(&stat.linkname).into();
                    } else if stat.linkname.starts_with(b"/") {
                        stat.linkname = path::clean([b"/", name.as_ref(), &stat.linkname].concat()).into();
                    }
                }
                visit(stat)
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let slash = path.iter().position(|byte| *byte == b'/').ok_or(io::ErrorKind::NotFound)?;
        let (name, rest) = (&path[..slash], &path[slash + 1..]);
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

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
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

    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        match self.upper.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.lower.open(path),
            result => result,
        }
    }
}
