//! LLBBridge: a build as its client, or a frontend in a container, drives it.

mod build;
mod caps;
mod containers;
mod convert;
mod registry;
mod service;

pub use build::Gateway;
pub use registry::{BUILD_ID_HEADER, Gateways, Locate, Registered};
pub use service::BridgeService;
