//! What can go wrong in an op.

/// Why an op failed. Messages are those that users see.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The op makes no sense.
    #[error("{0}")]
    Invalid(String),
}
