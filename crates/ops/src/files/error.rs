//! Errors of file actions, worded as users of BuildKit know them.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file action failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused something.
    #[error("{op} {}: {}", path.display(), reason(source))]
    Path {
        /// What was tried.
        op: &'static str,
        /// The path, as seen in its root.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something that no errno says.
    #[error("{0}")]
    Other(String),
    /// An error and what was being done.
    #[error("{context}: {source}")]
    Context {
        /// What was being done.
        context: String,
        /// Why it failed.
        source: Box<FileError>,
    },
    /// Nobody wants the result any more.
    #[error("context canceled")]
    Cancelled,
}

impl FileError {
    pub(super) fn at(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.as_ref().to_owned();
        move |errno| Self::Path { op, path, source: errno.into() }
    }

    pub(super) fn io(op: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Path { op, path, source }
    }

    pub(super) fn context(self, context: impl Into<String>) -> Self {
        Self::Context { context: context.into(), source: Box::new(self) }
    }

    /// The error of the kernel beneath, if it is one.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Path { source, .. } => Some(source),
            Self::Context { source, .. } => source.io_error(),
            Self::Other(_) | Self::Cancelled => None,
        }
    }
}

/// An error of the kernel in Go's words: those of C, with a small first letter and without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_go() {
        let error = FileError::at("open", "/a/b")(rustix::io::Errno::NOENT).context("failed");
        assert_eq!(error.to_string(), "failed: open /a/b: no such file or directory");
    }
}
