//! An image as a source: resolved, not fetched.

use std::sync::Arc;

use async_trait::async_trait;
use castor_layerfs::Lazy;
use castor_llb::ImageSource;
use castor_oci::{Descriptor, Digest, Platform, Reference, chain_ids};
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs, Private};
use castor_store::{ImageLayer, ImmutableRef, RecordOptions, RecordType};

use super::private_digest;
use crate::images::{ResolvedImage, layer_history};
use crate::layout::Layout;
use crate::openers::{access, group};
use crate::worker::Worker;
use crate::{OpError, identity};

pub(crate) struct Image {
    pub(crate) worker: Worker,
    pub(crate) source: ImageSource,
    pub(crate) platform: Platform,
    /// Session and store of the client's layout that has the image; `None`: a registry has it.
    pub(crate) layout: Option<(String, String)>,
}

/// What of an image counts.
struct Chosen {
    reference: Reference,
    resolved: Arc<ResolvedImage>,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl Image {
    fn layout(&self, cx: &Cx) -> Option<Layout> {
        let (session, store) = self.layout.as_ref()?;
        let sessions = self.worker.sessions();
        Some(Layout::new(sessions, group(sessions, cx), session, store))
    }

    /// Whether layers may be lazy: those of a layout may not, because its client will be gone.
    fn wants_lazy(&self, cx: &Cx) -> Lazy {
        if self.layout.is_some() { Lazy::Never } else { self.worker.wants_lazy(cx) }
    }

    async fn choose(&self, cx: &Cx) -> Result<Chosen, OpError> {
        let reference: Reference =
            self.source.reference.parse().map_err(|error| {
                OpError::Invalid(format!("invalid image reference {}: {error}", self.source.reference))
            })?;
        let resolved = match self.layout(cx) {
            Some(layout) => Arc::new(layout.resolve(&reference, &self.platform).await?),
            None => self
                .worker
                .images()
                .resolve(
                    &reference,
                    &self.platform,
                    self.source.resolve_mode,
                    access(self.worker.sessions(), cx),
                    &cx.sessions().join(","),
                    cx.token(),
                )
                .await
                .map_err(OpError::Shared)?,
        };
        self.worker.pins().set(cx.reporter().vertex(), resolved.root.digest.to_string());
        if let Some(checksum) = self.source.checksum
            && checksum != resolved.root.digest
        {
            return Err(OpError::Image(format!(
                "image digest {} for {reference} does not match expected checksum {checksum}",
                resolved.root.digest
            )));
        }
        let mut layers = resolved.manifest.layers.clone();
        let mut diff_ids = resolved.config.rootfs.diff_ids.clone();
        if let Some(limit) = self.source.layer_limit {
            if limit > layers.len() {
                return Err(OpError::Image(format!(
                    "layer limit {limit} is greater than the number of layers in the image {}",
                    layers.len()
                )));
            }
            if diff_ids.len() < limit {
                return Err(OpError::Image(format!("image has {} layers, limit is {limit}", diff_ids.len())));
            }
            layers.truncate(limit);
            diff_ids.truncate(limit);
        }
        Ok(Chosen { reference, resolved, layers, diff_ids })
    }

    async fn load(&self, cx: &Cx, chosen: &Chosen, want: Lazy) -> Result<ImmutableRef, OpError> {
        let store = self.worker.store();
        if chosen.layers.is_empty() {
            return Ok(store.scratch());
        }
        if chosen.diff_ids.len() != chosen.layers.len() {
            return Err(OpError::Image(format!(
                "image {} has {} layers and {} diff IDs",
                chosen.reference,
                chosen.layers.len(),
                chosen.diff_ids.len()
            )));
        }
        let mut history = layer_history(&chosen.resolved.config).into_iter();
        let image = chosen.reference.to_string();
        let origin = self.layout(cx).map_or_else(|| chosen.reference.repository(), |layout| layout.origin());
        let layers = chosen
            .layers
            .iter()
            .zip(&chosen.diff_ids)
            .map(|(descriptor, diff_id)| {
                let (created_by, created) = history.next().unwrap_or_default();
                ImageLayer {
                    descriptor: descriptor.clone(),
                    origins: vec![origin.clone()],
                    image: image.clone(),
                    diff_id: Some(*diff_id),
                    want,
                    created_by,
                    created,
                }
            })
            .collect();
        let record_type = RecordType::parse(&self.source.record_type).unwrap_or_default();
        let options =
            RecordOptions { record_type, ..RecordOptions::described(format!("pulled from {}", chosen.reference)) };
        Ok(store.from_image(layers, options).await?)
    }

    /// What tells the image from another one that claims the same content, while nobody has checked.
    async fn private(&self, cx: &Cx, chosen: &Chosen) -> Result<Option<Private>, OpError> {
        let want = self.wants_lazy(cx);
        // Layers that are fetched first are verified before anything sees them.
        let engine = self.worker.store().engine();
        let countable = chosen.diff_ids.len() == chosen.layers.len();
        if !countable || want == Lazy::Never || chosen.layers.iter().all(|layer| engine.lazy_identity(layer).is_none())
        {
            return Ok(None);
        }
        let parts =
            chosen.layers.iter().zip(&chosen.diff_ids).map(|(layer, diff_id)| match engine.lazy_identity(layer) {
                Some(toc) => format!("{diff_id} {} {toc}", layer.digest),
                None => format!("{diff_id} {}", layer.digest),
            });
        let digest = private_digest(parts);
        let verified = self.load(cx, chosen, want).await?.is_verified().await;
        Ok(Some(Private { digest: identity::source(&digest.to_string()), verified }))
    }
}

#[async_trait]
impl Operation<ImmutableRef> for Image {
    async fn cache_map(&self, cx: &Cx, index: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        let task = cx.reporter().start(format!("resolve {}", self.source.reference), "", 0);
        let chosen = self.choose(cx).await?;
        task.finish();
        if chosen.resolved.stale {
            cx.reporter().warn(format!(
                "registry of {} cannot be reached: using the image as it was known before",
                chosen.reference
            ));
        }
        // The manifest's key as well: it names blobs, and what was seen of them so far are tables that may lie.
        let private = self.private(cx, &chosen).await?;
        let by_layers = index > 0 && chosen.resolved.config.rootfs.kind == "layers";
        let chain = chain_ids(&chosen.diff_ids).last().copied().filter(|_| by_layers);
        let Some(chain) = chain else {
            let manifest = chosen.resolved.root.digest;
            let key = identity::image_manifest(manifest, &self.platform, self.source.layer_limit);
            let map = CacheMap { private, ..CacheMap::new(identity::source(&key.to_string())) };
            return Ok((map, index > 0));
        };
        Ok((CacheMap { private, ..CacheMap::new(identity::source(&chain.to_string())) }, true))
    }

    async fn execute(&self, cx: &Cx, _: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let chosen = self.choose(cx).await?;
        Ok(vec![Some(self.load(cx, &chosen, self.wants_lazy(cx)).await?)])
    }
}
