//! Bringing an image into registries: blobs first, then what names them, so that no registry ever shows half an image.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use castor_blobs::{Blobs, LayerBlob};
use castor_oci::{Digest, Reference};
use castor_progress::Tally;
use castor_registry::{Access, BlobSource, Client, Repository};
use castor_solver::Cx;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::ExportError;
use crate::document::Document;
use crate::image::Assembled;

/// Blobs that are on their way at once; the registry client bounds connections per host itself.
const AT_ONCE: usize = 8;

/// Pushes on behalf of one export.
pub(crate) struct Push<'a> {
    pub(crate) registry: &'a Client,
    pub(crate) blobs: &'a Blobs,
    pub(crate) access: Access,
    pub(crate) cx: &'a Cx,
}

/// A layer's bytes. They are brought here only when a registry really wants them.
struct LayerSource<'a> {
    blobs: &'a Blobs,
    cx: &'a Cx,
    layer: &'a LayerBlob,
    /// Of all layers.
    tally: &'a Tally,
    /// What this one has added to it.
    sent: AtomicU64,
}

#[async_trait]
impl BlobSource for LayerSource<'_> {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let blob = self.blobs.open(self.cx, self.layer).await.map_err(io::Error::other)?;
        Ok(blob.stream(0))
    }

    fn progress(&self, sent: u64) {
        let before = self.sent.swap(sent, Ordering::Relaxed);
        self.tally.add(sent.cast_signed() - before.cast_signed());
    }
}

impl Push<'_> {
    /// Pushes `image` under every name; `by_digest` leaves the tags alone.
    pub(crate) async fn run(
        &self,
        image: &Assembled,
        references: &[Reference],
        by_digest: bool,
    ) -> Result<(), ExportError> {
        for reference in references {
            tokio::select! {
                () = self.cx.token().cancelled() => return Err(ExportError::Cancelled),
                pushed = self.run_one(image, reference, by_digest) => pushed?,
            }
        }
        Ok(())
    }

    async fn run_one(&self, image: &Assembled, reference: &Reference, by_digest: bool) -> Result<(), ExportError> {
        let repository = Repository::from(reference);
        // A layer that stands twice in an image is one blob.
        let layers: BTreeMap<Digest, &LayerBlob> =
            image.layers.iter().map(|layer| (layer.descriptor.digest, layer)).collect();
        let total: u64 = layers.values().map(|layer| layer.descriptor.size).sum();
        let pushing = Tally::start(self.cx.reporter(), "pushing layers", "", total);
        let mut pushes: Vec<BoxFuture<'_, Result<(), ExportError>>> = Vec::with_capacity(layers.len());
        for layer in layers.into_values() {
            pushes.push(Box::pin(self.layer(layer, &repository, reference, &pushing)));
        }
        futures::stream::iter(pushes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        for config in image.configs.iter().chain(&image.extras) {
            let source = Bytes::from(config.bytes.clone());
            self.registry
                .push_blob(&repository, &config.descriptor, &[], &source, &self.access)
                .await
                .map_err(|source| self.failed(reference, config.descriptor.digest, source))?;
        }
        pushing.finish();
        let shown = match by_digest {
            true => repository.to_string(),
            false => format!("{reference}@{}", image.root.descriptor.digest),
        };
        let naming = self.cx.reporter().start(format!("pushing manifest for {shown}"), "", 0);
        for manifest in &image.manifests {
            self.manifest(&untagged(reference, manifest.descriptor.digest)?, manifest, reference).await?;
        }
        let target = match by_digest {
            true => untagged(reference, image.root.descriptor.digest)?,
            false => reference.clone(),
        };
        self.manifest(&target, &image.root, reference).await?;
        naming.finish();
        Ok(())
    }

    async fn layer(
        &self,
        layer: &LayerBlob,
        repository: &Repository,
        reference: &Reference,
        tally: &Tally,
    ) -> Result<(), ExportError> {
        let origins: Vec<Repository> =
            layer.image.iter().flat_map(|image| &image.origins).filter_map(|origin| origin.parse().ok()).collect();
        let source = LayerSource { blobs: self.blobs, cx: self.cx, layer, tally, sent: AtomicU64::new(0) };
        castor_task::crash_point("export");
        let pushed = self.registry.push_blob(repository, &layer.descriptor, &origins, &source, &self.access).await;
        // What was there already is done as well.
        source.progress(layer.descriptor.size);
        pushed.map(drop).map_err(|source| self.failed(reference, layer.descriptor.digest, source))
    }

    async fn manifest(&self, target: &Reference, document: &Document, name: &Reference) -> Result<(), ExportError> {
        let bytes = Bytes::from(document.bytes.clone());
        castor_task::crash_point("export manifest");
        let pushed = self.registry.push_manifest(target, &document.descriptor.media_type, bytes, &self.access).await;
        pushed
            .map(drop)
            .map_err(|source| ExportError::PushManifest { reference: name.to_string(), source: Box::new(source) })
    }

    fn failed(&self, reference: &Reference, digest: Digest, source: castor_registry::Error) -> ExportError {
        ExportError::PushBlob { reference: reference.to_string(), digest, source: Box::new(source) }
    }
}

/// The repository of `reference` and a digest, without a tag.
fn untagged(reference: &Reference, digest: Digest) -> Result<Reference, ExportError> {
    let text = format!("{}@{digest}", reference.repository());
    text.parse().map_err(|error| ExportError::Client(format!("{text}: {error}")))
}
