//! What each LLB op means: its cache key and its execution; and the [`Bridge`], through which frontends ask for builds.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bridge;
mod error;
pub mod files;
pub mod identity;
pub mod path;

pub use bridge::{Bridge, BridgeError, LazyRef, Refs, SolveRequest, SolveResult};
pub use error::OpError;
