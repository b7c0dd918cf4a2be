//! Cgroups with little memory, of either version.

use std::path::{Path, PathBuf};

/// A cgroup with little memory; no process must be in it, or below it, when it is dropped.
#[derive(Debug)]
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    /// A cgroup called `name`, at the top, whose processes and their files' pages may take so many bytes.
    pub fn new(name: &str, bytes: u64) -> Self {
        let (old, new) = (PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup"));
        let (parent, file) = if old.exists() { (old, "memory.limit_in_bytes") } else { (new, "memory.max") };
        if file == "memory.max" {
            // Perhaps it is there already, or must not be given on from here: then the next lines say so.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let dir = parent.join(name);
        std::fs::create_dir(&dir).unwrap_or_else(|error| panic!("create {}: {error}", dir.display()));
        let limit = Self(dir);
        std::fs::write(limit.0.join(file), bytes.to_string()).unwrap();
        limit
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let Some(name) = self.0.file_name() else { return };
        remove(&self.0);
        // Who puts containers below it makes it in every hierarchy.
        for top in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove(&top.path().join(name));
        }
    }
}

/// Removes a cgroup and those below it.
fn remove(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
