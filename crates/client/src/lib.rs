//! The library behind `buildctl`: talks to a daemon, serves it the session, draws the progress of builds.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod connection;
pub mod progress;
pub mod size;
pub mod source;
pub mod status;

pub use build::{BuildOptions, BuildResult, CacheOption, Export, new_id};
pub use castor_proto::errdefs::Source;
pub use castor_session::client::{
    Agents, Destination, DockerConfig, Keychain, KeychainOptions, Secret, Secrets, TlsFiles,
};
pub use castor_task::CancellationToken;
pub use castor_wire::{ClientTls, Failure};

/// The bytes of a text in base64, if it is that.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
pub use connection::{Client, ClientError, PruneOptions, Target, system_words};

/// What a daemon tells of itself and its cache, in the form of the wire.
pub mod records {
    pub use castor_proto::Timestamp;
    pub use castor_proto::control::UsageRecord;
    pub use castor_proto::pb::Platform;
    pub use castor_proto::types::{BuildkitVersion, WorkerRecord};

    /// The time, to the second, as logs have it.
    pub fn now() -> String {
        let now = castor_progress::Timestamp::now();
        castor_progress::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }
}

/// Definitions of builds, and rules for their sources.
pub mod definition;
