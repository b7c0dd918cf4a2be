//! Stages → LLB and image config.

use castor_llb::{CapSet, Definition};
use castor_oci::{ImageConfig, Platform};

use crate::error::DockerfileError;
use crate::lint::Warning;
use crate::{MetaResolver, Options};

/// What to convert.
#[derive(Debug)]
pub struct Request<'a> {
    /// The Dockerfile.
    pub dockerfile: &'a [u8],
    /// What the client asks for.
    pub options: &'a Options,
    /// How the Dockerfile itself was had, for the source map ([`dockerfile_source`]).
    pub dockerfile_definition: Option<Definition>,
    /// The platform that the worker runs on natively.
    pub build_platform: Platform,
    /// The platform to build for; `None` is the build platform, and an image of another one is taken as it is.
    pub target_platform: Option<Platform>,
    /// What the daemon can do.
    pub caps: CapSet,
    /// Whether to collect warnings. Of several platforms only the first one's are shown.
    pub lint: bool,
}

/// What a Dockerfile becomes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The graph; empty if the result is scratch.
    pub definition: Definition,
    /// The image's config, without the layers that are made here.
    pub config: ImageConfig,
    /// Config of the image that the target is built on.
    pub base_config: Option<ImageConfig>,
    /// The platform that was built for.
    pub platform: Platform,
    /// `SOURCE_DATE_EPOCH`, seconds.
    pub epoch: Option<i64>,
    /// What is legal but unwise.
    pub warnings: Vec<Warning>,
}

/// Converts a Dockerfile.
pub async fn convert(_request: &Request<'_>, _resolver: &dyn MetaResolver) -> Result<Target, DockerfileError> {
    todo!()
}

/// How to get the Dockerfile (and a `.dockerignore` of its own) from the client: build this and read
/// [`Options::filename`] in it, or its lower-case form if that is called `Dockerfile`.
pub fn dockerfile_source(_options: &Options) -> Result<Definition, DockerfileError> {
    todo!()
}
