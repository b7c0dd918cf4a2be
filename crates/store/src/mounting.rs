//! Refs as directories.

use std::path::{Path, PathBuf};

/// A ref that is mounted, until this is dropped.
///
/// Reading it may wait for a registry: only in [`castor_task::reading`], never on a runtime thread.
#[derive(Debug)]
pub struct Mounting {
    path: PathBuf,
}

impl Mounting {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
