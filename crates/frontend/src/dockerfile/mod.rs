//! The builtin `dockerfile.v0`.

mod build;
mod lint;
mod metadata;
mod outline;
mod resolver;

use std::sync::Arc;

use async_trait::async_trait;
use castor_oci::Reference;
use castor_ops::{Bridge, BridgeError, SolveResult};

pub(crate) use resolver::Resolver;

use crate::{Frontend, FrontendRequest};

/// Builds Dockerfiles.
#[derive(Debug, Clone, Copy, Default)]
pub struct DockerfileV0;

#[async_trait]
impl Frontend for DockerfileV0 {
    fn name(&self) -> &'static str {
        "dockerfile.v0"
    }

    async fn solve(&self, bridge: Arc<dyn Bridge>, request: FrontendRequest) -> Result<SolveResult, BridgeError> {
        build::build(bridge, request).await
    }
}

/// Whether a syntax image is Docker's own Dockerfile frontend, which the builtin one stands in for.
pub(crate) fn is_dockerfile_image(source: &str) -> bool {
    let Ok(reference) = source.parse::<Reference>() else { return false };
    let path = reference.path();
    reference.host() == "docker.io" && matches!(path, "docker/dockerfile" | "docker/dockerfile-upstream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_images() {
        for own in ["docker/dockerfile:1", "docker.io/docker/dockerfile", "docker/dockerfile-upstream:master-labs"] {
            assert!(is_dockerfile_image(own), "{own}");
        }
        for other in ["dockerfile", "ghcr.io/docker/dockerfile:1", "docker/dockerfile2", "a b"] {
            assert!(!is_dockerfile_image(other), "{other}");
        }
    }
}
