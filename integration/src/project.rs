//! A directory with a Dockerfile and what it copies.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A build context on disk.
#[derive(Debug, Clone)]
pub struct Project {
    path: PathBuf,
}

impl Project {
    /// A project in the new directory `path` with this Dockerfile.
    pub fn new(path: impl Into<PathBuf>, dockerfile: &str) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Self { path }.file("Dockerfile", dockerfile)
    }

    /// The same with one more file, or with another content of it.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Result<Self> {
        self.write(name, content)?;
        Ok(self)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
