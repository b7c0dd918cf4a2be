//! What can be wrong with a definition.

use castor_oci::Digest;

use crate::caps::CapError;

/// Why a definition is refused. The wording is BuildKit's where users see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlbError {
    /// No ops at all.
    #[error("invalid empty definition")]
    Empty,
    /// An op that is no protobuf message.
    #[error("failed to parse llb proto op: {0}")]
    Parse(String),
    /// The result and nothing to compute it from, or less.
    #[error("invalid LLB with {0} vertexes")]
    TooFew(usize),
    /// A mode that does not exist.
    #[error("invalid {what} mode {mode}")]
    Mode {
        /// Of what.
        what: &'static str,
        /// The number on the wire.
        mode: i32,
    },
    /// The last op names no result.
    #[error("invalid LLB with no inputs on last vertex")]
    NoResult,
    /// An op names an input that is not in the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// An output index below zero.
    #[error("invalid input {input} output index {index}")]
    NegativeIndex {
        /// Which input.
        input: usize,
        /// The index.
        index: i64,
    },
    /// More bytes, ops or inputs than castor takes.
    #[error("definition exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
    /// An op that makes no sense.
    #[error("invalid {kind} op {problem}")]
    Invalid {
        /// The kind of op.
        kind: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An op without a kind, or of a kind that castor does not know.
    #[error("could not resolve op {0}: unknown kind")]
    UnknownOp(Digest),
    /// A source identifier with a scheme that nobody knows.
    #[error("unsupported source scheme in {0:?}")]
    UnknownScheme(String),
    /// An attribute of a source that cannot be read.
    #[error("invalid value {value:?} of {attribute} in source {identifier}: {problem}")]
    Attribute {
        /// The source.
        identifier: String,
        /// The attribute.
        attribute: String,
        /// What it says.
        value: String,
        /// Why that is wrong.
        problem: String,
    },
    /// A capability that castor does not have.
    #[error(transparent)]
    Capability(#[from] CapError),
    /// A graph that [`State`](crate::State) cannot write.
    #[error("{0}")]
    Marshal(#[from] MarshalError),
}

/// Why a [`State`](crate::State) cannot be marshalled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarshalError {
    /// An exec without arguments.
    #[error("arguments are required")]
    NoArguments,
    /// An output of a tmpfs or of a mount without output was used.
    #[error("mount for {0} can't be used as a parent")]
    NoOutput(String),
    /// A file op without actions.
    #[error("action is required")]
    NoActions,
    /// A source without identifier.
    #[error("source identifier can't be empty")]
    NoIdentifier,
    /// An image reference that does not parse.
    #[error("failed to parse image reference {reference:?}: {problem}")]
    Reference {
        /// The reference.
        reference: String,
        /// Why.
        problem: String,
    },
    /// More bytes than a daemon takes.
    #[error("definition exceeds the limit of {0} bytes")]
    TooLarge(usize),
    /// A state that was promised and never given.
    #[error("a deferred state was used but never set")]
    Unset,
    /// A definition that cannot be built upon.
    #[error("invalid definition used as a state: {0}")]
    Definition(String),
}
