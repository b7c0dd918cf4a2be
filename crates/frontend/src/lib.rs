//! Frontends: what turns a client's request into LLB; and the service through which clients and external frontends
//! drive a build.
//!
//! - [`Frontend`] is what a frontend is, [`solve`] runs one by name: the builtin `dockerfile.v0`, and `gateway.v0` where
//!   it names that.
//! - [`Gateway`] is one build as seen through LLBBridge; [`Gateways`] finds it by the build's id, and [`BridgeService`]
//!   serves it.
//!
//! Everything here talks to the build through [`castor_ops::Bridge`] alone.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod dockerfile;
mod failure;
mod gateway;
mod image;
mod sbom;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use castor_llb::Definition;
use castor_oci::Reference;
use castor_ops::bridge::CacheImport;
use castor_ops::{Bridge, BridgeError, SolveResult};

pub use dockerfile::DockerfileV0;
pub use failure::{from_failure, to_failure};
pub use gateway::{BUILD_ID_HEADER, BridgeService, Gateway, Gateways, Locate, Registered};
pub use sbom::{PREDICATE as SBOM_PREDICATE, SbomOptions, ScanTarget, Scanner};

/// The version of BuildKit's Dockerfile frontend that the builtin one is like; provenance tells it.
pub const DOCKERFILE_VERSION: &str = "1.26.0";

/// What a frontend is asked to do.
#[derive(Debug, Clone, Default)]
pub struct FrontendRequest {
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Definitions that came with the request, by name.
    pub inputs: BTreeMap<String, Definition>,
    /// Caches to look into.
    pub cache_imports: Vec<CacheImport>,
}

/// Something that makes results of a request.
#[async_trait]
pub trait Frontend: Send + Sync {
    /// Its name, as clients write it.
    fn name(&self) -> &'static str;

    /// Does what is asked, by means of the bridge.
    async fn solve(&self, bridge: Arc<dyn Bridge>, request: FrontendRequest) -> Result<SolveResult, BridgeError>;
}

/// Runs the frontend called `name`.
pub async fn solve(bridge: Arc<dyn Bridge>, name: &str, request: FrontendRequest) -> Result<SolveResult, BridgeError> {
    if bridge.frontends().disabled.iter().any(|disabled| disabled == name) {
        return Err(BridgeError::unknown(format!("invalid frontend: {name}")));
    }
    match name {
        "dockerfile.v0" => DockerfileV0.solve(bridge, request).await,
        "gateway.v0" => gateway_v0(bridge, request).await,
        name => Err(BridgeError::unknown(format!("invalid frontend: {name}"))),
    }
}

/// `gateway.v0` runs the frontend in an image, or the builtin one where that is what the image is.
async fn gateway_v0(bridge: Arc<dyn Bridge>, mut request: FrontendRequest) -> Result<SolveResult, BridgeError> {
    if request.options.contains_key("gateway-devel") {
        return Err(BridgeError::unknown("development gateway is no longer supported"));
    }
    let source = request.options.get("source").cloned().unwrap_or_default();
    if source.is_empty() {
        return Err(BridgeError::unknown("no source specified for gateway"));
    }
    let replaced = is_replaced(&request.options, &source);
    if source == "dockerfile.v0" && !replaced {
        // The options say already which frontend this is: its syntax line is not looked at again.
        request.options.entry("cmdline".to_owned()).or_insert_with(|| source.clone());
        return DockerfileV0.solve(bridge, request).await;
    }
    let allowed = bridge.frontends().repositories;
    let repository = source.parse::<Reference>().map(|reference| reference.repository()).unwrap_or_default();
    if !allowed.is_empty() && !allowed.contains(&repository) {
        return Err(BridgeError::unknown(format!("'{source}' is not an allowed gateway source")));
    }
    if !replaced && dockerfile::is_dockerfile_image(&source) {
        let mut result_request = request;
        result_request.options.insert("castor-builtin-for".to_owned(), source);
        return DockerfileV0.solve(bridge, result_request).await;
    }
    image::run(bridge, &source, request).await
}

/// Whether the client gave a context of its own for the image `source`.
fn is_replaced(options: &BTreeMap<String, String>, source: &str) -> bool {
    let name = source.parse::<Reference>().map_or_else(|_| source.to_owned(), |reference| reference.familiar());
    let name = name.strip_suffix(":latest").unwrap_or(&name);
    options.keys().any(|key| {
        key.strip_prefix("context:").and_then(|key| key.split("::").next()).is_some_and(|context| context == name)
    })
}
