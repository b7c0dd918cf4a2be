//! The services that clients call, the debug address, and shutdown.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod debug;
mod status;

pub use debug::{DebugError, Insight, serve as serve_debug};
