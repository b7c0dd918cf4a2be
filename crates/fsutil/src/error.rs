//! What can go wrong with a tree.

use std::io;

/// A tree on disk that could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The root is missing or no directory.
    #[error("open directory {path}: {source}")]
    Root {
        /// The root.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An entry could not be read.
    #[error("{verb} {path}: {source}")]
    Entry {
        /// What was tried.
        verb: &'static str,
        /// The entry, relative to the root.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A rule to include or to exclude is malformed.
    #[error("failed to match {kind}: {source}")]
    Match {
        /// `includepatterns` or `excludepatterns`.
        kind: &'static str,
        /// What is wrong with the rule.
        source: crate::BadPattern,
    },
    /// The visitor gave up.
    #[error("the walk was stopped")]
    Stopped,
}

impl WalkError {
    /// An error at an entry.
    pub fn entry(verb: &'static str, path: impl AsRef<[u8]>, source: impl Into<io::Error>) -> Self {
        Self::Entry { verb, path: crate::path::display(&path).into_owned(), source: source.into() }
    }
}

/// A transfer that failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The tree that was to be sent, or the one to be changed, cannot be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The peer reported an error.
    #[error("error from {peer}: {message}")]
    Peer {
        /// `sender` or `receiver`.
        peer: &'static str,
        /// The peer's words.
        message: String,
    },
    /// The connection failed, or the peer's side of the call did. The text is
    /// that of Go's gRPC, which users of BuildKit know.
    #[error("rpc error: code = {} desc = {}", code_name(.0.code()), .0.message())]
    Status(#[from] tonic::Status),
    /// The peer went away before the transfer was complete.
    #[error("the {peer} closed the transfer before it was complete")]
    Closed {
        /// `sender` or `receiver`.
        peer: &'static str,
    },
    /// The peer broke the rules.
    #[error("the {peer} broke the transfer protocol: {what}")]
    Protocol {
        /// `sender` or `receiver`.
        peer: &'static str,
        /// How.
        what: String,
    },
    /// A file could not be read for the peer.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The destination could not be changed.
    #[error("{verb} {path}: {source}")]
    Write {
        /// What was tried.
        verb: &'static str,
        /// The path in the destination.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The observer of the changes failed.
    #[error("record change of {path}: {message}")]
    Observer {
        /// The path.
        path: String,
        /// The observer's words.
        message: String,
    },
    /// The transfer was given up on this side.
    #[error("the transfer was cancelled")]
    Cancelled,
}

impl TransferError {
    pub(crate) fn write(verb: &'static str, path: impl AsRef<[u8]>, source: impl Into<io::Error>) -> Self {
        Self::Write { verb, path: crate::path::display(&path).into_owned(), source: source.into() }
    }

    pub(crate) fn protocol(peer: &'static str, what: impl Into<String>) -> Self {
        Self::Protocol { peer, what: what.into() }
    }
}

/// The name of a code in Go's gRPC.
pub fn code_name(code: tonic::Code) -> String {
    match code {
        tonic::Code::Ok => "OK".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    }
}
