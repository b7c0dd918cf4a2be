//! What a tree of files is, as one comparable value.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use castor_oci::{Digest, Hasher};

/// All entries of a tree by path: kind, mode, owner, size, links, and the content's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    /// Reads the tree under `root`.
    pub fn read(root: &Path) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut first_names = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(directory) = open.pop() {
            let path = root.join(&directory);
            let mut names: Vec<_> = fs::read_dir(&path)
                .with_context(|| format!("list {}", path.display()))?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<Result<_>>()?;
            names.sort();
            for name in names {
                let relative = directory.join(&name);
                let described = describe(root, &relative, &mut first_names)?;
                if root.join(&relative).symlink_metadata()?.is_dir() {
                    open.push(relative.clone());
                }
                entries.insert(relative, described);
            }
        }
        Ok(Self(entries))
    }

    /// One digest of it all.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        for (path, described) in &self.0 {
            hasher.update(format!("{}\0{described}\n", path.display()).as_bytes());
        }
        hasher.finish()
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is different in `other`, a line each; empty if the two are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for path in self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path))) {
            let (here, there) = (self.0.get(path), other.0.get(path));
            if here != there {
                lines.push(format!("{}: {here:?} / {there:?}", path.display()));
            }
        }
        lines
    }
}

fn describe(root: &Path, relative: &Path, first_names: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<String> {
    let path = root.join(relative);
    let metadata = path.symlink_metadata().with_context(|| format!("look at {}", path.display()))?;
    let mut text = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
    if metadata.is_symlink() {
        let target = fs::read_link(&path)?;
        text.push_str(&format!(" -> {}", target.display()));
    } else if metadata.is_file() {
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        text.push_str(&format!(" {} {}", content.len(), Digest::of(&content)));
        if metadata.nlink() > 1 {
            let first = first_names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.to_owned());
            text.push_str(&format!(" = {}", first.display()));
        }
    } else if !metadata.is_dir() {
        text.push_str(&format!(" device {:x}", metadata.rdev()));
    }
    Ok(text)
}
