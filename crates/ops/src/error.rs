//! What can go wrong in an op.

use std::fmt;
use std::sync::Arc;

use castor_executor::ExecError;
use castor_layerfs::ReadError;
use castor_session::SessionError;
use castor_store::StoreError;

use crate::bridge::code;
use crate::files::FileError;
use crate::git::GitError;
use crate::web::WebError;

/// Why an op failed. Messages are those that users see.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The op makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// castor does not do this yet.
    #[error("{0} is not supported by castor yet")]
    Unsupported(String),
    /// A step failed, and the host cannot run programs of its platform.
    #[error("{source} (a step for {wanted} on {host}: {reason})")]
    Platform {
        /// How it failed.
        source: Box<OpError>,
        /// The platform of the step.
        wanted: String,
        /// The host's.
        host: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The build may not do this.
    #[error("{0} is not allowed")]
    NotAllowed(&'static str),
    /// No client has the secret.
    #[error("secret {0}: not found")]
    NoSecret(String),
    /// A client did not answer as it should.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A file action failed.
    #[error("{source}")]
    File {
        /// Which action of the op.
        action: usize,
        /// Why.
        source: FileError,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(Arc<castor_registry::Error>),
    /// A failure that several were told of.
    #[error(transparent)]
    Shared(Arc<OpError>),
    /// An image is not what it claims to be, or not what was asked for.
    #[error("{0}")]
    Image(String),
    /// A file did not come from its web server.
    #[error(transparent)]
    Web(#[from] WebError),
    /// A repository could not be fetched or checked out.
    #[error(transparent)]
    Git(#[from] GitError),
    /// No client has the SSH agent.
    #[error("no SSH key {0:?} forwarded from the client")]
    NoAgent(String),
    /// Something failed because layers could not be read.
    #[error("{source}: {}", Reads(.reads))]
    Layers {
        /// What failed.
        source: Box<OpError>,
        /// The reads that failed, with image, layer, file and cause.
        reads: Vec<ReadError>,
    },
    /// A step saw read errors of layers and said nothing.
    #[error("layers could not be read: {}", Reads(.0))]
    Unnoticed(Vec<ReadError>),
    /// Nobody wants it any more.
    #[error("context canceled")]
    Cancelled,
}

/// A few of many: a step that lost its registry fails in many reads at once.
struct Reads<'a>(&'a [ReadError]);

impl fmt::Display for Reads<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (index, read) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{read}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, "; and {more} more"),
            _ => Ok(()),
        }
    }
}

impl OpError {
    /// The gRPC code.
    pub fn code(&self) -> i32 {
        match self {
            Self::Unsupported(_) => code::UNIMPLEMENTED,
            Self::Cancelled | Self::Store(StoreError::Cancelled) => code::CANCELLED,
            Self::Exec(error) if error.is_canceled() => code::CANCELLED,
            Self::File { source: FileError::Cancelled, .. } => code::CANCELLED,
            Self::Session(error) => error.code() as i32,
            Self::Git(error) if error.is_cancelled() => code::CANCELLED,
            Self::Web(WebError::Secret(_, error)) => error.code() as i32,
            Self::Layers { source, .. } | Self::Platform { source, .. } => source.code(),
            Self::Shared(error) => error.code(),
            _ => code::UNKNOWN,
        }
    }

    /// With what is known of failed reads.
    pub(crate) fn with_reads(self, reads: Vec<ReadError>) -> Self {
        if reads.is_empty() { self } else { Self::Layers { source: Box::new(self), reads } }
    }
}

impl From<castor_registry::Error> for OpError {
    fn from(error: castor_registry::Error) -> Self {
        Self::Registry(Arc::new(error))
    }
}
