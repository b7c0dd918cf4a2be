//! LLB, the language of build graphs: reading, validating, naming and writing it.
//!
//! # What
//! A client or frontend sends a [`Definition`]: encoded ops, metadata by digest, and a source map. [`Graph::decode`]
//! turns it, once, into typed vertices; nothing behind it sees wire types. [`State`] is the opposite direction: it
//! builds graphs and marshals them to exactly the bytes that BuildKit's Go client would send, so that digests, and
//! with them caches, agree.
//!
//! # Terms
//! A *vertex* is one op with its inputs; its digest is the SHA-256 of the op's bytes as they were sent. An *edge* is
//! one output of a vertex. A *capability* names a feature that an op needs ([`caps`]).
//!
//! # Invariants
//! Digests are taken over the received bytes, never over re-encoded ones. Platforms are normalised after the digest
//! is known. What comes from the wire is bounded in size and count ([`Limits`]), and no walk recurses.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod caps;
mod decode;
mod definition;
mod encode;
mod error;
mod graph;
mod metadata;
mod name;
pub mod op;
mod source;
mod source_map;
pub mod state;

pub use caps::CapSet;
pub use decode::container_mount;
pub use definition::{Definition, OnlySource};
pub use error::LlbError;
pub use graph::{Edge, Graph, Limits, Vertex};
pub use metadata::{LinuxResources, OpMetadata, ProgressGroup};
pub use name::display_name;
pub use op::Op;
pub use source::{
    BlobSource, Differ, GitSource, HttpSource, ImageSource, LocalSource, OciLayoutSource, ResolveMode, Source,
};
pub use source_map::{Location, Position, Range, SourceFile, SourceMap};
pub use state::{MarshalOptions, State};
