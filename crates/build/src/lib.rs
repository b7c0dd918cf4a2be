//! One build from request to result: the path that `Build::run` walks, and what it shares with others.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod journal;

pub use journal::{Journal, Watcher};
