//! One build from request to result: the path that [`Build::run`] walks, and what it shares with others.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bridge;
mod builds;
mod daemon;
mod entitlements;
mod journal;
mod request;
mod run;
mod verify;

pub use builds::{BuildEvent, BuildExists, BuildRecord, Builds};
pub use daemon::{Daemon, Parts};
pub use entitlements::{NETWORK_HOST, SECURITY_INSECURE};
pub use journal::{Journal, Watcher};
pub use request::{CacheRequest, ExporterRequest, Request};
pub use run::Build;
