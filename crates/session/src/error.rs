//! What can go wrong with a session.

use castor_fsutil::{TransferError, code_name};
use castor_wire::Failure;
use tonic::{Code, Status};

/// A call that the client did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The client has not opened a session of that name, or not in time.
    #[error("no active session for {id}: context deadline exceeded")]
    NotFound {
        /// The session's id.
        id: String,
    },
    /// Nobody who waits for this work has a session.
    #[error("no active sessions")]
    NoneActive,
    /// A session of that name is there already.
    #[error("session {id} already exists")]
    Exists {
        /// The session's id.
        id: String,
    },
    /// The session ended.
    #[error("session {id} is closed: {reason}")]
    Closed {
        /// The session's id.
        id: String,
        /// Why.
        reason: String,
    },
    /// The client does not share directories.
    #[error("no local sources enabled")]
    NoLocalSources,
    /// The client does not serve the method.
    #[error("method {method} not supported by the client")]
    Unsupported {
        /// The method's path.
        method: &'static str,
    },
    /// The client answered with an error.
    #[error("{}", unary(.0))]
    Status(Box<Status>),
    /// The client ended a stream with an error.
    #[error("rpc error: code = {} desc = {}", code_name(.0.code()), .0.message())]
    Stream(Box<Status>),
    /// A tree could not be transferred.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The client took too long.
    #[error("{doing}: context deadline exceeded")]
    Timeout {
        /// What was waited for.
        doing: &'static str,
    },
    /// The client answered nonsense.
    #[error("invalid {what} from the client: {why}")]
    Invalid {
        /// What was asked for.
        what: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// The connection could not be set up.
    #[error("set up the session's connection: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A file or socket of this side failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was done.
        doing: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl SessionError {
    /// The code that tells the kind of error to a client.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::NoneActive | Self::Closed { .. } | Self::Transport(_) => Code::Unavailable,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Unsupported { .. } => Code::Unimplemented,
            Self::Status(status) | Self::Stream(status) => status.code(),
            Self::Transfer(TransferError::Status(status)) => status.code(),
            Self::Transfer(TransferError::Cancelled) => Code::Cancelled,
            Self::Timeout { .. } => Code::DeadlineExceeded,
            Self::NoLocalSources | Self::Transfer(_) | Self::Invalid { .. } | Self::Io { .. } => Code::Unknown,
        }
    }

    /// Whether the client said that it does not have what was asked for.
    pub fn is_absent(&self) -> bool {
        matches!(self.code(), Code::NotFound | Code::Unimplemented)
    }

    /// The error for another client, with the details that came with it.
    ///
    /// As in BuildKit, the message of a single answer is passed on as it is, and
    /// that of a stream with the words of gRPC around it.
    pub fn to_failure(&self) -> Failure {
        match self {
            Self::Status(status) => Failure::from_status(status),
            Self::Stream(status) => worded(status, self.to_string()),
            Self::Transfer(TransferError::Status(status)) => worded(status, self.to_string()),
            error => Failure::new(error.code(), error.to_string()),
        }
    }
}

fn worded(status: &Status, message: String) -> Failure {
    let mut failure = Failure::from_status(status);
    failure.message = message;
    failure
}

/// A code that says nothing is not said.
fn unary(status: &Status) -> String {
    match status.code() {
        Code::Ok | Code::Unknown => status.message().to_owned(),
        code => format!("{}: {}", code_name(code), status.message()),
    }
}
