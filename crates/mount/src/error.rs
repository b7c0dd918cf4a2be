//! What can go wrong with a mount.

use std::io;

/// A mount, or a part of making it, that failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {what}: {source}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
pub struct MountError {
    /// What was tried.
    pub verb: &'static str,
    /// With what.
    pub what: String,
    /// What the kernel logged about it, if anything.
    pub detail: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl MountError {
    pub(crate) fn new(verb: &'static str, what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { verb, what: what.into(), detail: String::new(), source: source.into() }
    }

    pub(crate) fn with_detail(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    /// The error number of the kernel's answer.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}
