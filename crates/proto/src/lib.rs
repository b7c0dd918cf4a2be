//! The wire types of the BuildKit protocols, as prost messages and tonic
//! services.
//!
//! The schemas are in the repository's `proto` folder; `src/generated` is made
//! from them by `cargo run -p castor-proto --example regenerate` and a test
//! holds the two together. Payloads are [`bytes::Bytes`], maps are
//! `BTreeMap`s, so that an encoded message is the same every time.
//!
//! The names here are short; each module says which protobuf package it is.
//! [`errdefs`] is the exception: those details travel as JSON and are written
//! by hand.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod errdefs;
pub mod gojson;
pub mod protojson;

#[rustfmt::skip]
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::large_futures, unused_qualifications, rustdoc::all)]
mod generated;

#[doc(inline)]
pub use generated::pb;

/// `moby.buildkit.v1`: the daemon's own service, [`control::control_server`]
/// and [`control::control_client`].
pub mod control {
    pub use crate::generated::moby::buildkit::v1::*;
}

/// `moby.buildkit.v1.types`: workers.
pub mod types {
    pub use crate::generated::moby::buildkit::v1::types::*;
}

/// `moby.buildkit.v1.apicaps`: optional features.
pub mod apicaps {
    pub use crate::generated::moby::buildkit::v1::apicaps::*;
}

/// `moby.buildkit.v1.frontend`: the bridge between a frontend and its build.
pub mod gateway {
    pub use crate::generated::moby::buildkit::v1::frontend::*;
}

/// `moby.buildkit.v1.sourcepolicy`: rules over sources.
pub mod sourcepolicy {
    pub use crate::generated::moby::buildkit::v1::sourcepolicy::*;
}

/// `moby.buildkit.v1.sourcepolicy.policysession`: a client's judgement of a
/// source.
pub mod policysession {
    pub use crate::generated::moby::buildkit::v1::sourcepolicy::policysession::*;
}

/// `moby.filesync.v1`: FileSync, FileSend and Auth, all served by a client.
pub mod filesync {
    pub use crate::generated::moby::filesync::v1::*;
}

/// `moby.buildkit.secrets.v1`: secrets, served by a client.
pub mod secrets {
    pub use crate::generated::moby::buildkit::secrets::v1::*;
}

/// `moby.sshforward.v1`: SSH agents, served by a client.
pub mod sshforward {
    pub use crate::generated::moby::sshforward::v1::*;
}

/// `moby.upload.v1`: byte streams, served by a client.
pub mod upload {
    pub use crate::generated::moby::upload::v1::*;
}

/// `moby.exporter.v1`: exporters that a client adds.
pub mod session_exporter {
    pub use crate::generated::moby::exporter::v1::*;
}

/// `fsutil.types`: the packets of a tree transfer.
pub mod fsutil {
    pub use crate::generated::fsutil::types::*;
}

/// `containerd.services.content.v1`: blobs by digest.
pub mod content {
    pub use crate::generated::containerd::services::content::v1::*;
}

/// `google.rpc`: errors with details.
pub mod rpc {
    pub use crate::generated::google::rpc::*;
}

/// `grpc.health.v1`: whether a peer is alive.
pub mod health {
    pub use tonic_health::pb::*;
}

pub use prost_types::{Any, FieldMask, Timestamp};
