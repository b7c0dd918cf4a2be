//! Why a registry did not do what was asked.

use castor_oci::Digest;

/// A failure; the texts are those that BuildKit's users know.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The registry does not have it.
    #[error("{what}: not found")]
    NotFound {
        /// Reference, or repository and digest.
        what: String,
    },
    /// Credentials are missing or wrong.
    #[error("{detail}")]
    Unauthorized {
        /// Reference, or repository and digest.
        what: String,
        /// What the registry or its token server said.
        detail: String,
    },
    /// The registry refuses although it knows who asks.
    #[error("{detail}")]
    Denied {
        /// Reference, or repository and digest.
        what: String,
        /// What the registry said.
        detail: String,
    },
    /// The registry answered with a status that means failure.
    #[error("unexpected status from {method} request to {url}: {status}{detail}")]
    Status {
        /// Reference, or repository and digest.
        what: String,
        /// Method of the request.
        method: String,
        /// Where it went; without the query, which may hold secrets.
        url: String,
        /// Code and text.
        status: http::StatusCode,
        /// What the registry said, with a leading `: `, or nothing.
        detail: String,
    },
    /// No answer: connecting, sending or receiving failed.
    #[error("failed to do request: {method} {url:?}: {cause}")]
    Network {
        /// Reference, or repository and digest.
        what: String,
        /// Method of the request.
        method: String,
        /// Where it went; without the query.
        url: String,
        /// What went wrong, down to the system's words.
        cause: String,
    },
    /// Nothing arrived for too long.
    #[error("failed to do request: {method} {url:?}: no data for {seconds} s")]
    Stalled {
        /// Reference, or repository and digest.
        what: String,
        /// Method of the request.
        method: String,
        /// Where it went; without the query.
        url: String,
        /// How long it was waited.
        seconds: f32,
    },
    /// The answer breaks the protocol or its own headers.
    #[error("{what}: invalid answer of {host}: {detail}")]
    Protocol {
        /// Reference, or repository and digest.
        what: String,
        /// Who answered.
        host: String,
        /// What is wrong.
        detail: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{what}: unexpected digest {found} from {host}, want {wanted}")]
    DigestMismatch {
        /// Reference, or repository and digest.
        what: String,
        /// Who answered.
        host: String,
        /// Digest of what came.
        found: Digest,
        /// Digest that was wanted.
        wanted: Digest,
    },
    /// A manifest or config is larger than anything sensible.
    #[error("{what}: {size} bytes exceed the limit of {limit} bytes")]
    TooLarge {
        /// Reference, or repository and digest.
        what: String,
        /// Its size.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A manifest of a kind castor does not take.
    #[error("{what}: unsupported manifest: {detail}")]
    Unsupported {
        /// Reference, or repository and digest.
        what: String,
        /// Which kind.
        detail: String,
    },
    /// An index has nothing for the platform.
    #[error("no match for platform in manifest {digest}: not found")]
    NoPlatform {
        /// The index.
        digest: Digest,
        /// The platform asked for.
        platform: String,
    },
    /// A blob to be pushed could not be read.
    #[error("{what}: read blob to push: {cause}")]
    Source {
        /// Repository and digest.
        what: String,
        /// What went wrong.
        cause: String,
    },
    /// The configuration cannot be used.
    #[error("registry {host}: {detail}")]
    Config {
        /// The host.
        host: String,
        /// What is wrong.
        detail: String,
    },
}

impl Error {
    /// Whether the registry said that it does not have it.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoPlatform { .. })
    }

    /// Whether credentials are missing, wrong or not sufficient.
    pub fn is_auth(&self) -> bool {
        matches!(self, Self::Unauthorized { .. } | Self::Denied { .. })
    }

    /// Whether trying again later, or elsewhere, may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } | Self::Protocol { .. } => true,
            Self::Status { status, .. } => {
                status.as_u16() == 429 || status.as_u16() == 408 || (status.is_server_error() && status.as_u16() != 501)
            }
            _ => false,
        }
    }
}

/// An error with all its causes on one line: reqwest's own text leaves out what the system said.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
