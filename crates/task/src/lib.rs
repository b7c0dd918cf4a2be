//! Task scopes, single flight, and the pools blocking work runs in.
//!
//! Nothing is spawned outside a [`Scope`], so whoever closes a scope knows that all work in it has ended, or the names
//! of what has not. Work is cancelled by token, never by dropping its future: work that is half way through a
//! multi-step write must be able to finish or undo it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod crash;
mod flight;
mod pool;
mod scope;

pub use crash::crash_point;
pub use flight::{Aborted, Flight};
pub use pool::{blocking, reading};
pub use scope::{Scope, StillRunning};
pub use tokio_util::sync::CancellationToken;

/// What a panic said, as far as it said anything.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}
