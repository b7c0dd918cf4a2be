//! What can go wrong with a process.

use std::fmt;
use std::io;
use std::net::AddrParseError;
use std::path::PathBuf;

use crate::quote::Quoted;

/// The exit code that stands for "not known": the process never started, or its end was not seen.
pub const UNKNOWN_EXIT_CODE: u32 = 255;

/// Why a process was not run, or not run to a good end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It ran and ended with a code that the caller does not accept. The text is what users see as the step's error.
    #[error("process {} did not complete successfully: {status}", Quoted(.process))]
    Exit {
        /// Its arguments, joined by spaces.
        process: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It was cancelled; whatever it had started is dead.
    #[error("process {} did not complete successfully: context canceled", Quoted(.process))]
    Canceled {
        /// Its arguments, joined by spaces.
        process: String,
    },
    /// It was not run, or its end was not seen.
    #[error("process {} did not complete successfully: {source}", Quoted(.process))]
    Failed {
        /// Its arguments, joined by spaces.
        process: String,
        /// Why.
        source: Box<ExecError>,
    },
    /// The call to run it made no sense.
    #[error("invalid process: {0}")]
    Invalid(String),
    /// Something in the preparation of its container failed.
    #[error("{what}: {source}")]
    Setup {
        /// What was being done, to what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The network of a container could not be made.
    #[error("failed to set up the network: {0}")]
    Network(String),
    /// The user or group to run as does not exist.
    #[error(transparent)]
    User(#[from] crate::user::UserError),
    /// A configured name server is not an address.
    #[error("bad nameserver address {address:?}")]
    NameServer {
        /// What was configured.
        address: String,
        /// Why it is not one.
        source: AddrParseError,
    },
    /// The OCI runtime was not found or could not be started.
    #[error("start the OCI runtime {binary:?}: {source}")]
    Spawn {
        /// The runtime.
        binary: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The OCI runtime refused a command.
    #[error("{binary:?} {command} {container}: {message}")]
    Runtime {
        /// The runtime.
        binary: PathBuf,
        /// Its subcommand.
        command: &'static str,
        /// The container.
        container: String,
        /// What it said.
        message: String,
    },
    /// There is no running container of that name.
    #[error("container {0} not found")]
    NotFound(String),
    /// The container ended before a process could be started in it.
    #[error("container {0} has stopped")]
    Stopped(String),
    /// What the process printed could not be passed on.
    #[error("pass on the output of {process}: {source}")]
    Output {
        /// Its arguments, joined by spaces.
        process: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl ExecError {
    /// Says which process it was, unless that is said already.
    pub(crate) fn of(self, process: String) -> Self {
        match self {
            Self::Exit { .. } | Self::Canceled { .. } | Self::Failed { .. } => self,
            other => Self::Failed { process, source: Box::new(other) },
        }
    }

    pub(crate) fn setup(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Setup { what: what.into(), source: source.into() }
    }

    /// The exit code, if the process ran and ended.
    pub fn exit_code(&self) -> Option<u32> {
        match self {
            Self::Exit { status, .. } => Some(status.code),
            _ => None,
        }
    }

    /// It was cancelled.
    pub fn is_canceled(&self) -> bool {
        matches!(self, Self::Canceled { .. })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; 128 + n if signal n ended it.
    pub code: u32,
    /// The kernel killed something in its container for want of memory.
    pub out_of_memory: bool,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.out_of_memory { f.write_str("cannot allocate memory") } else { write!(f, "exit code: {}", self.code) }
    }
}
