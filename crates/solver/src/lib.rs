//! Runs a graph of operations: each vertex once, whoever wants it, or not at all where its result is known.
//!
//! The solver knows nothing of files and images. It is generic over the result `R` and meets the rest of the daemon at
//! three traits: [`Operation`] (what a vertex means), [`CacheSource`] (which keys lead to which results) and
//! [`ResultStore`] (results by id).
//!
//! # How a vertex is solved
//! Every wanted output of a vertex ([`Edge`]) has a task of its own, written as a straight line: definition-based keys,
//! look-up; content-based keys, look-up; execution. Tasks wait for each other through watches and never poll each
//! other, so a chain of ten thousand vertices is no deeper than one of two. A task goes only as far as somebody
//! demands: keys are often enough, and then the vertex never runs.
//!
//! # Sharing
//! Vertices are shared between jobs in two tables: by vertex digest (with an identity of its own below a vertex that
//! ignores the cache), and by cache key just before execution, because the contexts of two clients differ in digest and
//! meet in content. A vertex is cancelled, by token, when the last job that wants it leaves, and whoever wants it again
//! waits for that end. A failure that coincides with another job's leaving is tried again, so no job sees the
//! cancellation of another.
//!
//! # Cache keys
//! A key is reached by [`Link`]s from the keys of its inputs: (operation digest, output, input index, selector, input
//! key) → key. A key has one or more ids per [`CacheSource`]; the ids of a vertex are the intersection over its inputs
//! of what their keys lead to. See [`CacheMap::private`] for the one thing that is not BuildKit's: results made on
//! layers that nobody has verified yet.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod context;
mod edge;
mod error;
mod execution;
mod export;
mod graph;
mod job;
mod lookup;
mod memory;
mod operation;
mod progress;
mod state;

pub use cache::{
    CONTENT_OUTPUT, Cache, CacheError, CacheSource, CacheStore, CacheUpdate, KeyId, KeyInfo, Link, Record, ResultStore,
};
pub use context::{Audience, Cx};
pub use error::{BoxError, SolveError, SolveErrorKind, Stage};
pub use export::{ExportInput, ExportRecord, export};
pub use graph::{Edge, Graph, GraphError, Vertex};
pub use job::{Built, Job, JobExists, JobOptions, Solver, SolverOptions, VertexReport};
pub use memory::MemoryCache;
pub use operation::{CacheMap, ContentKey, Dep, Operation, Outputs, Permit, Prepare, Private};
pub use progress::{JobSink, Recorder};
