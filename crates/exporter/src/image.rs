//! `type=image`: documents over the layers' blobs, and the push.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use bytes::Bytes;
use castor_blobs::{Blobs, LayerBlob};
use castor_oci::{ANNOTATION_TOC_DIGEST, Descriptor, ImageConfig, Reference, media_type};
use castor_progress::Tally;
use castor_registry::Client;
use jiff::Timestamp;
use serde_json::json;

use crate::annotations::{ImageAnnotations, Place};
use crate::attest::{self, AttestationManifest, Subject};
use crate::document::{self, Document, LayerFacts};
use crate::push::Push;
use crate::sbom;
use crate::{BuildResult, ExportCx, ExportError, Exporter, ImageOptions, OptionError, PlatformResult, Response};

/// Annotations of layers that are between castor, BuildKit and containerd, and leave with no image.
const INTERNAL: [&str; 2] = ["containerd.io/uncompressed", "buildkit/createdat"];
/// The same by prefix: where a layer came from.
const INTERNAL_PREFIX: &str = "containerd.io/distribution.source.";

/// Exports images to registries.
pub struct ImageExporter {
    blobs: Blobs,
    registry: Client,
    options: ImageOptions,
}

impl std::fmt::Debug for ImageExporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageExporter").field("options", &self.options).finish_non_exhaustive()
    }
}

/// An image, ready to be pushed.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// What names the image: its manifest, or the index of its platforms.
    pub(crate) root: Document,
    /// Manifests below an index.
    pub(crate) manifests: Vec<Document>,
    pub(crate) configs: Vec<Document>,
    pub(crate) layers: Vec<LayerBlob>,
    /// What manifests name besides configs and layers: statements.
    pub(crate) extras: Vec<Document>,
}

impl Assembled {
    /// Whether it is an index, and not an image itself.
    fn is_index(&self) -> bool {
        media_type::is_index(&self.root.descriptor.media_type)
    }
}

impl ImageExporter {
    /// An exporter with these attributes.
    pub fn new(blobs: Blobs, registry: Client, attrs: &BTreeMap<String, String>) -> Result<Self, ExportError> {
        let options = ImageOptions::parse(attrs)?;
        if options.push && options.names.is_empty() {
            return Err(ExportError::NoName);
        }
        Ok(Self::with_options(blobs, registry, options))
    }

    pub(crate) fn with_options(blobs: Blobs, registry: Client, options: ImageOptions) -> Self {
        Self { blobs, registry, options }
    }

    pub(crate) fn options(&self) -> &ImageOptions {
        &self.options
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// This exporter with what the frontend said about its result.
    pub(crate) fn for_result(&self, result: &BuildResult) -> Result<Self, ExportError> {
        let mut options = self.options.clone();
        let mut said = ImageAnnotations::default();
        for (key, value) in &result.metadata {
            said.set(key, &String::from_utf8_lossy(value))?;
        }
        options.annotations.merge(said);
        let built = |name: &&str| !result.platforms.iter().any(|platform| platform.platform.to_string() == **name);
        if let Some(missing) = options.annotations.platforms().find(built) {
            return Err(OptionError::NoSuchPlatform(missing.to_owned()).into());
        }
        if !options.oci() && options.annotations.need_oci() {
            return Err(OptionError::AnnotationsNeedOci.into());
        }
        let of_index = [Place::Index, Place::IndexDescriptor].map(|place| options.annotations.of(place, None));
        if !result.multi_platform && of_index.iter().any(|annotations| !annotations.is_empty()) {
            return Err(OptionError::NoIndex.into());
        }
        Ok(Self::with_options(self.blobs.clone(), self.registry.clone(), options))
    }

    /// The image of `result`. `inline` statements are those that are for images only: they need an index where they are
    /// wanted in any case.
    pub(crate) async fn assemble(
        &self,
        cx: &ExportCx,
        result: &BuildResult,
        names: &[Reference],
        inline: bool,
    ) -> Result<Assembled, ExportError> {
        let inline = self.options.attestation_inline.unwrap_or(inline);
        let attested = |platform: &PlatformResult| platform.attestations.iter().any(|one| inline || !one.inline_only);
        let is_index = result.multi_platform || result.platforms.iter().any(attested);
        let any = result.platforms.iter().any(|platform| !platform.attestations.is_empty());
        if is_index && any && !self.options.oci() {
            return Err(OptionError::AttestationsNeedOci.into());
        }
        // How much there is shows when it is made.
        let exporting = Arc::new(Tally::start(cx.cx.reporter(), "exporting layers", "", 0));
        let blobs = self.blobs.counting(&exporting);
        let layers = result.platforms.iter().map(|platform| async {
            match &platform.reference {
                Some(reference) => blobs.layers(&cx.cx, reference, self.options.compression).await,
                None => Ok(Vec::new()),
            }
        });
        let layers = futures::future::try_join_all(layers).await;
        exporting.finish();
        let layers = layers?;
        let mut assembled = Assembled {
            root: self.index(Vec::new()),
            manifests: Vec::new(),
            configs: Vec::new(),
            layers: Vec::new(),
            extras: Vec::new(),
        };
        let say = |text: String| cx.cx.reporter().start(text, "", 0).finish();
        let mut statements = Vec::new();
        for (index, (platform, layers)) in result.platforms.iter().zip(layers).enumerate() {
            // Records tell of layers as they were made, not of those with other times.
            let cache = self.inline_cache(cx, index, &layers).await?;
            let layers = self.rewritten(cx, result, platform, layers).await?;
            self.warn_of_lost_annotations(cx, &layers);
            let epoch = self.options.epoch.of(result, &platform.id)?;
            let (manifest, config) = self.platform_image(platform, &layers, epoch, cache.as_deref())?;
            say(format!("exporting manifest {}", manifest.descriptor.digest));
            say(format!("exporting config {}", config.descriptor.digest));
            if is_index && !platform.attestations.is_empty() {
                let attested = self.attestations(cx, platform, &layers, &manifest.descriptor, names).await?;
                say(format!("exporting attestation manifest {}", attested.manifest.descriptor.digest));
                assembled.extras.extend(attested.blobs);
                statements.push(attested.manifest);
            }
            assembled.manifests.push(manifest);
            assembled.configs.push(config);
            assembled.layers.extend(layers);
        }
        // Images first, then what is said of them.
        assembled.manifests.extend(statements);
        if is_index {
            let descriptors = assembled.manifests.iter().map(|manifest| manifest.descriptor.clone()).collect();
            assembled.root = self.index(descriptors);
            say(format!("exporting manifest list {}", assembled.root.descriptor.digest));
        } else if let Some(only) = assembled.manifests.pop() {
            assembled.root = only;
        }
        Ok(assembled)
    }

    /// The layers with no time later than the epoch, but for those that are the base image's, if that was asked for.
    async fn rewritten(
        &self,
        cx: &ExportCx,
        result: &BuildResult,
        platform: &PlatformResult,
        layers: Vec<LayerBlob>,
    ) -> Result<Vec<LayerBlob>, ExportError> {
        if !self.options.rewrite_timestamp {
            return Ok(layers);
        }
        let said = |key: &str| {
            let of_platform = result.metadata.get(&format!("{key}/{}", platform.id));
            of_platform.or_else(|| result.metadata.get(key).filter(|_| !result.multi_platform))
        };
        let Some(epoch) = self.options.epoch.of(result, &platform.id)? else {
            cx.cx.reporter().warn("rewrite-timestamp is specified, but no source-date-epoch was found");
            return Ok(layers);
        };
        let base =
            said("containerimage.base.config").and_then(|bytes| serde_json::from_slice::<ImageConfig>(bytes).ok());
        let base = base.map(|config| config.rootfs.diff_ids).unwrap_or_default();
        let same = layers.iter().zip(&base).take_while(|(layer, base)| layer.diff_id == **base).count();
        let seconds = epoch.as_second();
        let text = epoch.strftime("%Y-%m-%d %H:%M:%S +0000 UTC");
        let id = format!("rewriting layers with source-date-epoch {seconds} ({text})");
        let rewriting = Arc::new(Tally::start(cx.cx.reporter(), id, "", 0));
        let blobs = self.blobs.counting(&rewriting);
        let blobs = &blobs;
        let rewritten = layers.into_iter().enumerate().map(|(index, layer)| async move {
            if index < same {
                return layer;
            }
            match blobs.rewritten(&cx.cx, layer.clone(), self.options.compression, seconds).await {
                Ok(rewritten) => rewritten,
                // As BuildKit has it: an image with later times is better than none.
                Err(error) => {
                    let digest = layer.descriptor.digest;
                    cx.cx.reporter().warn(format!("times in layer {digest} are not cut to {seconds}: {error}"));
                    layer
                }
            }
        });
        let rewritten = futures::future::join_all(rewritten).await;
        rewriting.finish();
        Ok(rewritten)
    }

    /// The cache records that the image of a platform carries.
    async fn inline_cache(
        &self,
        cx: &ExportCx,
        platform: usize,
        layers: &[LayerBlob],
    ) -> Result<Option<Vec<u8>>, ExportError> {
        let Some(maker) = &cx.inline_cache else { return Ok(None) };
        let preparing = cx.cx.reporter().start("preparing layers for inline cache", "", 0);
        let records = maker.records(&cx.cx, platform, layers, self.options.compression).await?;
        preparing.finish();
        Ok(records)
    }

    /// What is attested of a platform's image, which `target` names.
    async fn attestations(
        &self,
        cx: &ExportCx,
        platform: &PlatformResult,
        layers: &[LayerBlob],
        target: &Descriptor,
        names: &[Reference],
    ) -> Result<AttestationManifest, ExportError> {
        let subject = |name: &Reference| Subject::new(attest::package_url(name, &platform.platform), target.digest);
        let subjects: Vec<Subject> = names.iter().map(subject).collect();
        let mut statements = Vec::with_capacity(platform.attestations.len());
        for attestation in &platform.attestations {
            statements.push(match attestation.is_core {
                true => sbom::with_layers(&self.blobs, &cx.cx, attestation, layers).await?,
                false => attestation.clone(),
            });
        }
        let statements: Vec<_> = statements.iter().collect();
        let artifact = self.options.oci_artifact.unwrap_or(true);
        attest::manifest(&statements, target, &subjects, artifact).map_err(ExportError::Attestation)
    }

    fn index(&self, manifests: Vec<Descriptor>) -> Document {
        let annotations = &self.options.annotations;
        let mut index = document::index(manifests, annotations.of(Place::Index, None), self.options.oci());
        index.descriptor.annotations = annotations.of(Place::IndexDescriptor, None);
        index
    }

    fn platform_image(
        &self,
        platform: &PlatformResult,
        layers: &[LayerBlob],
        epoch: Option<Timestamp>,
        cache: Option<&[u8]>,
    ) -> Result<(Document, Document), ExportError> {
        let oci = self.options.oci();
        let facts: Vec<LayerFacts> = layers
            .iter()
            .map(|layer| LayerFacts {
                diff_id: layer.diff_id,
                created: Some(layer.created),
                description: layer.description.clone(),
            })
            .collect();
        let config = if platform.config.is_empty() { default_config(platform) } else { platform.config.clone() };
        let config = document::image_config(&config, &facts, epoch, cache, oci)?;
        let descriptors = layers.iter().map(|layer| self.exported(&layer.descriptor)).collect();
        let annotations = |place| self.options.annotations.of(place, Some(&platform.platform));
        let mut manifest =
            document::manifest(config.descriptor.clone(), descriptors, annotations(Place::Manifest), oci);
        manifest.descriptor.annotations = annotations(Place::ManifestDescriptor);
        manifest.descriptor.platform = Some(platform.platform.clone());
        Ok((manifest, config))
    }

    /// Whether a layer stays where its image says it is to be had.
    fn stays_elsewhere(&self, layer: &Descriptor) -> bool {
        self.options.prefer_non_distributable && !layer.urls.is_empty()
    }

    /// A layer's descriptor as the manifest shows it.
    fn exported(&self, layer: &Descriptor) -> Descriptor {
        let mut exported = layer.clone();
        exported.platform = None;
        if self.stays_elsewhere(layer) {
            exported.media_type = media_type::non_distributable(&layer.media_type).to_owned();
        } else {
            exported.media_type = media_type::distributable(&layer.media_type).to_owned();
            exported.urls.clear();
        }
        if self.options.oci() {
            exported.media_type = media_type::to_oci(&exported.media_type).to_owned();
            exported
                .annotations
                .retain(|key, _| !INTERNAL.contains(&key.as_str()) && !key.starts_with(INTERNAL_PREFIX));
        } else {
            exported.media_type = media_type::to_docker(&exported.media_type).to_owned();
            exported.annotations.clear();
        }
        exported
    }

    /// Docker's media types have no annotations: eStargz layers become plain ones to whoever pulls them.
    fn warn_of_lost_annotations(&self, cx: &ExportCx, layers: &[LayerBlob]) {
        if self.options.oci() {
            return;
        }
        let lost = layers.iter().filter(|layer| layer.descriptor.annotations.contains_key(ANNOTATION_TOC_DIGEST));
        let count = lost.count();
        if count > 0 {
            cx.cx.reporter().warn(format!(
                "{count} eStargz layer(s) lose their annotations, and cannot be mounted lazily: use oci-mediatypes=true"
            ));
        }
    }
}

/// What an image without a config of its own gets.
fn default_config(platform: &PlatformResult) -> Bytes {
    let mut config = json!({
        "architecture": platform.platform.architecture,
        "os": platform.platform.os,
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    if !platform.platform.variant.is_empty() {
        config["variant"] = json!(platform.platform.variant);
    }
    config.to_string().into()
}

#[async_trait]
impl Exporter for ImageExporter {
    fn name(&self) -> &'static str {
        "exporting to image"
    }

    async fn export(&self, cx: &ExportCx, result: &BuildResult) -> Result<Response, ExportError> {
        let exporter = self.for_result(result)?;
        let references = exporter.options.references(result.text("image.name"))?;
        let mut assembled = exporter.assemble(cx, result, &references, true).await?;
        if exporter.options.push {
            if references.is_empty() {
                return Err(ExportError::NoName);
            }
            assembled.layers.retain(|layer| !exporter.stays_elsewhere(&layer.descriptor));
            let access = cx.access.clone().with_insecure(exporter.options.insecure);
            let push = Push { registry: &exporter.registry, blobs: &exporter.blobs, access, cx: &cx.cx };
            push.run(&assembled, &references, exporter.options.push_by_digest).await?;
        }
        Ok(exporter.response(&assembled, &references))
    }
}

impl ImageExporter {
    pub(crate) fn response(&self, assembled: &Assembled, references: &[Reference]) -> Response {
        let digest = assembled.root.descriptor.digest;
        let mut response = Response::new();
        response.insert("containerimage.digest".into(), digest.to_string());
        if let [config] = assembled.configs.as_slice()
            && !assembled.is_index()
        {
            response.insert("containerimage.config.digest".into(), config.descriptor.digest.to_string());
        }
        // A descriptor serialises: it has string keys only.
        let descriptor = serde_json::to_vec(&assembled.root.descriptor).unwrap_or_default();
        let encoded = base64::engine::general_purpose::STANDARD.encode(descriptor);
        response.insert("containerimage.descriptor".into(), encoded);
        let mut names: Vec<String> = references
            .iter()
            .map(|reference| match self.options.push_by_digest {
                true => format!("{}/{}", reference.host(), reference.path()),
                false => reference.to_string(),
            })
            .collect();
        if let Some(prefix) = &self.options.dangling_prefix
            && (names.is_empty() || !self.options.dangling_empty_only)
        {
            names.push(format!("{prefix}@{digest}"));
        }
        if !names.is_empty() {
            response.insert("image.name".into(), names.join(","));
        }
        response
    }
}
