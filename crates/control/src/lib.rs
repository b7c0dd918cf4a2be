//! The services that clients call, the debug address, and shutdown.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod content;
mod convert;
mod debug;
mod history;
mod serve;
mod service;

pub use debug::{DebugError, Insight, serve as serve_debug};
pub use serve::serve;
pub use service::ControlService;
