//! The library behind `buildctl`: talks to a daemon, serves it the session, draws the progress of builds.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod connection;
pub mod progress;
pub mod size;
pub mod source;
pub mod status;

pub use connection::{Client, ClientError, PruneOptions, Target};
