//! The library behind `buildctl`: talks to a daemon, serves it the session, draws the progress of builds.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod connection;
mod elsewhere;
mod history;
pub mod progress;
pub mod size;
pub mod source;
pub mod status;
mod stores;

pub use build::{BuildOptions, BuildResult, CacheOption, Export, new_id};
pub use castor_oci::Digest;
pub use castor_proto::errdefs::Source;
pub use castor_session::client::{
    Agents, Destination, DockerConfig, Forwarded, Key, KeyError, Keychain, KeychainOptions, Secret, Secrets, TlsFiles,
};
pub use castor_task::CancellationToken;
pub use castor_wire::{ClientTls, Failure};

/// Bytes in base64.
pub fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The bytes of a text in base64, if it is that.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
pub use connection::{Client, ClientError, PruneOptions, Target, system_words};

/// What a daemon tells of itself and its cache, in the form of the wire.
pub mod records {
    pub use castor_proto::Timestamp;
    pub use castor_proto::control::{
        BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor,
        Exporter, UsageRecord,
    };
    pub use castor_proto::pb::Platform;
    pub use castor_proto::rpc::Status as RpcStatus;
    pub use castor_proto::types::{BuildkitVersion, WorkerRecord};

    /// A time of the wire in this machine's time zone, to the second: `2026-01-02T03:04:05+01:00`, or with `Z` for UTC.
    pub fn local_time(time: Timestamp) -> String {
        zoned_time(time, jiff::tz::TimeZone::system())
    }

    fn zoned_time(time: Timestamp, zone: jiff::tz::TimeZone) -> String {
        let zoned = crate::status::timestamp(time).to_zoned_datetime(zone);
        let format = if zoned.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
        zoned.strftime(format).to_string()
    }

    /// The time, to the second, as logs have it.
    pub fn now() -> String {
        let now = castor_progress::Timestamp::now();
        castor_progress::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn times_have_their_zone() {
            let time = Timestamp { seconds: 1_700_000_000, nanos: 5 };
            assert_eq!(zoned_time(time, jiff::tz::TimeZone::UTC), "2023-11-14T22:13:20Z");
            let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(-3));
            assert_eq!(zoned_time(time, zone), "2023-11-14T19:13:20-03:00");
        }
    }
}

/// Definitions of builds, and rules for their sources.
pub mod definition;
