//! What stages are built on: images, contexts, scratch.

use std::collections::BTreeSet;

use castor_llb::State;
use castor_llb::state::{Constraints, ImageOptions};
use castor_oci::{ImageConfig, Platform, Reference};
use futures::future::join_all;

use super::context::NamedContext;
use super::stage::SCRATCH;
use super::{Converter, checks, image};
use crate::error::{DockerfileError, Result};
use crate::gofmt::quote;
use crate::lookup::ImageLookup;
use crate::{platform, suggest};

/// What a look-up found for a stage.
enum Base {
    /// The context that takes the stage's place.
    Stage(State, Option<ImageConfig>),
    /// A context under the name of the base image.
    Context(State, Option<ImageConfig>),
    /// An image: its reference with the digest, and its config.
    Image(String, Box<ImageConfig>),
}

/// What to look up for a stage.
struct Wanted {
    stage: usize,
    /// The name as written.
    original: String,
    reference: Reference,
    platform: Platform,
    reachable: bool,
    context: Option<NamedContext>,
}

impl Converter<'_> {
    /// Resolves what stages are built on; only those that the target needs are looked up.
    pub(super) async fn resolve_bases(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let mut wanted = Vec::new();
        for position in 0..self.stages.len() {
            let stage = &mut self.stages[position];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            let needed = reachable.contains(&position);
            stage.resolved = needed;
            if stage.stage.base == SCRATCH && stage.context.is_none() {
                stage.state = State::scratch();
                stage.image = image::empty(&self.target_platform);
                stage.platform = Some(self.target_platform.clone());
                stage.dispatched |= stage.is_source;
                continue;
            }
            wanted.push(self.want(position, needed));
        }
        let mut found = {
            let this = &*self;
            let look_up = |wanted: Result<Wanted>| async move {
                let wanted = wanted?;
                let location = &this.stages[wanted.stage].stage.location;
                let base = this.look_up(&wanted).await.map_err(|error| error.at(location))?;
                Ok::<_, DockerfileError>((wanted, base))
            };
            join_all(wanted.into_iter().map(look_up)).await
        };
        // Of several that fail BuildKit tells of the last, as it starts that one first.
        if let Some(Err(_)) = found.last() {
            found.rotate_right(1);
        }
        let mut failed = None;
        for found in found {
            match found {
                Ok((wanted, base)) => self.set_base(wanted, base),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn want(&mut self, position: usize, reachable: bool) -> Result<Wanted> {
        let stage = &mut self.stages[position];
        let original = stage.stage.base.clone();
        let location = stage.stage.location.clone();
        let reference: Reference = original.parse().map_err(|error| {
            DockerfileError::new(format!("failed to parse stage name {}: {error}", quote(&original))).at(&location)
        })?;
        stage.stage.base = reference.to_string();
        let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let (own, paths) = (stage.context.clone(), stage.paths);
        let context = match own {
            Some(own) => Some(own),
            None if reachable => {
                let name = self.stages[position].stage.base.clone();
                self.named_context(&name, Some(&platform), paths).map_err(|error| error.at(&location))?
            }
            None => None,
        };
        Ok(Wanted { stage: position, original, reference, platform, reachable, context })
    }

    /// Looks one up. Unreachable stages are not: they are images that nobody will need.
    async fn look_up(&self, wanted: &Wanted) -> Result<Option<Base>> {
        if !wanted.reachable {
            return Ok(None);
        }
        if let Some(context) = &wanted.context {
            let (state, config) = context.load(&self.loader()).await?;
            return Ok(Some(match self.stages[wanted.stage].context {
                Some(_) => Base::Stage(state, config),
                None => Base::Context(state, config),
            }));
        }
        let name = &self.stages[wanted.stage].stage.base;
        let prefix = if self.options.multi_platform {
            format!("[{} internal]", platform::format_all(&wanted.platform))
        } else {
            "[internal]".to_owned()
        };
        let lookup = ImageLookup {
            reference: name.clone(),
            platform: Some(wanted.platform.clone()),
            mode: self.options.resolve_mode,
            log_name: format!("{prefix} load metadata for {name}"),
            oci_layout: None,
        };
        let resolved = self.resolver.image_config(&lookup).await.map_err(|cause| {
            let labels = self.stages.iter().map(|stage| stage.label.as_str()).filter(|label| !label.is_empty());
            let common = common_images();
            let names = labels.chain(common.iter().map(String::as_str));
            let hint = suggest::hint(&wanted.original, names, true);
            DockerfileError::lookup(cause).context(&wanted.original).suffix(&hint)
        })?;
        let reference = if resolved.reference == wanted.reference.to_string() {
            wanted.reference.clone()
        } else {
            resolved.reference.parse().map_err(|error| {
                DockerfileError::new(format!("failed to parse ref {}: {error}", quote(&resolved.reference)))
            })?
        };
        let config = image::parse(&resolved.config)
            .map_err(|error| DockerfileError::new(format!("failed to parse image config: {error}")))?;
        let reference = match resolved.digest {
            Some(digest) => reference.with_digest(digest),
            None => reference,
        };
        Ok(Some(Base::Image(reference.to_string(), Box::new(config))))
    }

    fn set_base(&mut self, wanted: Wanted, base: Option<Base>) {
        let mut platform = wanted.platform.clone();
        let stage = &mut self.stages[wanted.stage];
        stage.dispatched |= stage.is_source;
        let mut is_scratch = false;
        match base {
            Some(Base::Stage(state, config)) => {
                stage.dispatched = true;
                stage.state = state;
                if let Some(mut config) = config {
                    config.created = None;
                    if !config.platform.architecture.is_empty() && !config.platform.os.is_empty() {
                        stage.platform = Some(config.platform.clone());
                    }
                    stage.image = config;
                }
                return;
            }
            Some(Base::Context(state, config)) => {
                let mut config = config.unwrap_or_else(|| image::empty(&platform));
                stage.base_image = Some(config.clone());
                config.created = None;
                stage.image = config;
                stage.state = state.platform(&platform);
                stage.platform = Some(platform);
                return;
            }
            Some(Base::Image(reference, config)) => {
                stage.base_image = Some((*config).clone());
                let mut config = *config;
                config.created = None;
                if stage.platform.is_none() && self.request.target_platform.is_none() {
                    platform = detected(&config.platform, &platform, &self.request.build_platform);
                }
                stage.stage.base = reference;
                is_scratch = config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer);
                stage.image = config;
            }
            None => {}
        }
        if is_scratch {
            stage.state = State::scratch();
            stage.platform = Some(platform);
            return;
        }
        let name = stage.stage.base.clone();
        let shown = self.prefixed(wanted.stage, &format!("FROM {name}"), Some(&platform), None);
        let stage = &self.stages[wanted.stage].stage;
        let constraints = Constraints::new()
            .describe("com.docker.dockerfile.v1.command", stage.code.clone())
            .platform(Some(&platform))
            .name(shown);
        let constraints = self.location(constraints, &stage.location);
        let options = ImageOptions { resolve_mode: self.options.resolve_mode, ..ImageOptions::default() };
        let state = State::image(&name, &options, constraints);
        let stage = &mut self.stages[wanted.stage];
        stage.state = state;
        if wanted.reachable {
            let (expected, actual) = (&platform, &stage.image.platform);
            checks::base_platform(&wanted.original, expected, actual, &stage.stage.location, &self.linter);
        }
        stage.platform = Some(platform);
    }
}

/// The platform of an image where none was asked for: its own, if that can run here.
fn detected(image: &Platform, wanted: &Platform, build: &Platform) -> Platform {
    let same = |platform: &Platform| platform.os == image.os && platform.architecture == image.architecture;
    if !same(wanted) && same(build) { build.clone() } else { wanted.clone() }
}

/// Images that people mistype.
fn common_images() -> Vec<String> {
    ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"]
        .into_iter()
        .flat_map(|name| [name.to_owned(), format!("{name}:latest")])
        .collect()
}
