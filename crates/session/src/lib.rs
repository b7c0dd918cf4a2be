//! The session: what the daemon asks of its client while it builds.
//!
//! A client opens a stream to the daemon and serves gRPC on it. [`Sessions`] is
//! the daemon's half: it keeps a [`Caller`] for every such client, and [`Group`]
//! stands for all clients that wait for the same piece of work, any of which may
//! answer. The calls are in modules of their own:
//!
//! - [`filesync`] receives a directory that the client shares,
//! - [`filesend`] sends a result, as a tree or as a stream of bytes,
//! - [`auth`] asks who the client is at a registry,
//! - [`secrets`], [`ssh`], [`content`], [`upload`], [`exporters`] and [`policy`]
//!   for the rest.
//!
//! [`client`] is the other half, as `buildctl` uses it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod calls;
pub mod client;
mod error;
mod group;
mod health;
mod sessions;

pub use calls::{auth, content, exporters, filesend, filesync, policy, secrets, ssh, upload};
pub use error::SessionError;
pub use group::Group;
pub use sessions::{Caller, SessionStream, Sessions};

/// Metadata keys of a session.
pub(crate) mod key {
    pub const ID: &str = "x-docker-expose-session-uuid";
    pub const SHARED_KEY: &str = "x-docker-expose-session-sharedkey";
    pub const METHOD: &str = "x-docker-expose-session-grpc-method";
    pub const HEALTH_TIMEOUT: &str = "x-buildkit-session-health-custom-timeout";

    pub const DIR_NAME: &str = "dir-name";
    pub const INCLUDE: &str = "include-patterns";
    pub const EXCLUDE: &str = "exclude-patterns";
    pub const FOLLOW: &str = "followpaths";

    pub const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";
    pub const EXPORTER_METADATA: &str = "exporter-md-";
    pub const MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
    pub const STORE_ID: &str = "buildkit-attachable-store-id";
    pub const SSH_ID: &str = "buildkit.ssh.id";
    pub const URL_PATH: &str = "urlpath";
    pub const URL_HOST: &str = "urlhost";
}
