//! One build from request to result: the path that [`Build::run`] walks, and what it shares with others.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attested;
mod bridge;
mod builds;
mod daemon;
mod entitlements;
mod history;
mod journal;
mod policy;
mod provenance;
mod remote_cache;
mod request;
mod run;
pub mod status;
mod trace;
mod verify;

pub use builds::{ActiveBuild, BuildExists, Builds, Progress};
pub use daemon::{Daemon, Parts};
pub use entitlements::{NETWORK_HOST, SECURITY_INSECURE};
pub use history::{
    HISTORY_LABEL, History, HistoryError, HistoryFilter, HistoryFilterError, HistoryLimits, Listening, LogReader,
    select,
};
pub use journal::{Counts, Journal, Watcher};
pub use policy::{Policy, PolicyError};
pub use request::{CacheRequest, ExporterRequest, Request};
pub use run::Build;
pub use trace::{TraceContext, Traces};
