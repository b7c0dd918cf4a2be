//! Why a build failed.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use castor_oci::Digest;

use crate::GraphError;

/// What operations fail with.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Where in the life of a vertex something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Computing the cache map.
    CacheMap,
    /// Making an input ready.
    Prepare(usize),
    /// Computing the content-based key of an input.
    ContentKey(usize),
    /// Executing.
    Execute,
}

/// Why a build failed. Cheap to clone: all who wait for a vertex get the same.
///
/// It reads as BuildKit's would; [`SolveError::vertex`] says which vertex failed, so that callers can add the place in
/// the source.
#[derive(Clone)]
pub struct SolveError(Arc<SolveErrorKind>);

/// The kinds of [`SolveError`].
#[derive(Debug)]
pub enum SolveErrorKind {
    /// An operation failed.
    Operation {
        /// The vertex.
        vertex: Digest,
        /// What users call it.
        name: String,
        /// What it was doing.
        stage: Stage,
        /// Why.
        source: Arc<BoxError>,
    },
    /// The job was cancelled.
    Cancelled,
    /// The vertex has no such output.
    NoOutput {
        /// The vertex.
        vertex: Digest,
        /// The output.
        output: usize,
    },
    /// Not a graph.
    Graph(GraphError),
    /// A fault of the solver or a panic of an operation.
    Internal {
        /// The vertex.
        vertex: Digest,
        /// What happened.
        message: String,
    },
}

impl SolveError {
    /// What kind of error it is.
    pub fn kind(&self) -> &SolveErrorKind {
        &self.0
    }

    /// The vertex that failed.
    pub fn vertex(&self) -> Option<Digest> {
        match &*self.0 {
            SolveErrorKind::Operation { vertex, .. }
            | SolveErrorKind::NoOutput { vertex, .. }
            | SolveErrorKind::Internal { vertex, .. } => Some(*vertex),
            SolveErrorKind::Cancelled | SolveErrorKind::Graph(_) => None,
        }
    }

    /// The error of the operation, where one failed; callers downcast it.
    pub fn operation_error(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        match &*self.0 {
            SolveErrorKind::Operation { source, .. } => Some(&***source),
            _ => None,
        }
    }

    /// Whether the job was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(*self.0, SolveErrorKind::Cancelled)
    }

    /// The job was cancelled.
    pub fn cancelled() -> Self {
        Self(Arc::new(SolveErrorKind::Cancelled))
    }

    pub(crate) fn operation(vertex: Digest, name: &str, stage: Stage, source: Arc<BoxError>) -> Self {
        Self(Arc::new(SolveErrorKind::Operation { vertex, name: name.to_owned(), stage, source }))
    }

    pub(crate) fn internal(vertex: Digest, message: impl Into<String>) -> Self {
        Self(Arc::new(SolveErrorKind::Internal { vertex, message: message.into() }))
    }

    /// What the vertex's own line says: the operation's message alone.
    pub(crate) fn vertex_message(&self) -> String {
        match &*self.0 {
            SolveErrorKind::Operation { source, .. } => source.to_string(),
            _ => self.to_string(),
        }
    }
}

impl From<SolveErrorKind> for SolveError {
    fn from(kind: SolveErrorKind) -> Self {
        Self(Arc::new(kind))
    }
}

impl From<GraphError> for SolveError {
    fn from(error: GraphError) -> Self {
        SolveErrorKind::Graph(error).into()
    }
}

impl fmt::Display for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            SolveErrorKind::Operation { stage: Stage::CacheMap, source, .. } => {
                write!(f, "failed to load cache key: {source}")
            }
            SolveErrorKind::Operation { stage: Stage::ContentKey(_) | Stage::Prepare(_), source, .. } => {
                write!(f, "failed to compute cache key: {source}")
            }
            SolveErrorKind::Operation { stage: Stage::Execute, source, .. } => write!(f, "{source}"),
            SolveErrorKind::Cancelled => f.write_str("context canceled"),
            SolveErrorKind::NoOutput { vertex, output } => write!(f, "vertex {vertex} has no output {output}"),
            SolveErrorKind::Graph(error) => write!(f, "invalid graph: {error}"),
            SolveErrorKind::Internal { vertex, message } => write!(f, "internal error in vertex {vertex}: {message}"),
        }
    }
}

impl fmt::Debug for SolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Error for SolveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.0 {
            SolveErrorKind::Operation { source, .. } => Some(&***source),
            SolveErrorKind::Graph(error) => Some(error),
            _ => None,
        }
    }
}
