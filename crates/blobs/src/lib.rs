//! The blobs of a ref: what its parts are as layers of an image, and how they become that.
//!
//! A part that is a layer of an image has its blob already, here or in a registry, and keeps it: nothing is fetched to
//! describe it. A part that a step made gets a blob by comparing snapshots: diff → tar → compression → content store.
//! What was made is remembered with the record, one [`LayerBlob`] per form, so that it is made once. With
//! [`Compression::force`] every part is brought to the form that is asked for.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod compression;
mod contents;
mod error;
mod pipeline;
mod rewrite;
mod variants;

use std::sync::Arc;

use castor_content::{Blob, ContentStore, Resource};
use castor_oci::{Descriptor, Digest};
use castor_progress::{Tally, Timestamp};
use castor_solver::Cx;
use castor_store::{ImageLayer, ImmutableRef, Part, PartKind, Store};
use castor_task::{Flight, Scope};

pub use compression::{Compression, Form};
pub use contents::plain_path;
pub use error::BlobError;
use variants::Variant;

/// A part of a ref as a layer of an image.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// Names the blob, with the annotations that images show.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed tar stream. Of a lazy layer it is what its image claims.
    pub diff_id: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// What made it.
    pub description: String,
    /// The layer that the blob is of, when it is an image's own and may not be here.
    pub image: Option<Box<ImageLayer>>,
    record: ImmutableRef,
}

/// A blob that is being made: of which record, in which form, at which level.
type Wanted = (String, Form, Option<u32>);

/// Makes blobs. Clones share their work: a blob that two exports want is made once.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Store,
    flight: Flight<Wanted, Result<Variant, Arc<BlobError>>>,
    tally: Option<Arc<Tally>>,
}

impl Blobs {
    /// Makes the blobs of `store`'s refs; work runs in `scope`.
    pub fn new(store: Store, scope: &Scope) -> Self {
        Self { store, flight: Flight::new(scope), tally: None }
    }

    /// The same, and the bytes of tars that are made into blobs are counted with `tally`.
    #[must_use]
    pub fn counting(&self, tally: &Arc<Tally>) -> Self {
        Self { tally: Some(tally.clone()), ..self.clone() }
    }

    /// Where blobs are.
    pub fn content(&self) -> &Arc<dyn ContentStore> {
        self.store.content()
    }

    /// The layers of `reference`, lowest first, in the form that `compression` asks for.
    pub async fn layers(
        &self,
        cx: &Cx,
        reference: &ImmutableRef,
        compression: Compression,
    ) -> Result<Vec<LayerBlob>, Arc<BlobError>> {
        // All at once: the pools bound how much really runs.
        let parts = reference.parts();
        futures::future::try_join_all(parts.into_iter().map(|part| self.layer(cx, part, compression))).await
    }

    /// The layers of `reference` as [`layers`](Self::layers) would give them, if all of them have their blobs already:
    /// nothing is made and nothing fetched.
    pub async fn existing(
        &self,
        cx: &Cx,
        reference: &ImmutableRef,
        compression: Compression,
    ) -> Result<Option<Vec<LayerBlob>>, Arc<BlobError>> {
        let mut layers = Vec::new();
        for part in reference.parts() {
            if let PartKind::Image(layer) = &part.kind
                && layer.diff_id.is_some()
                && (!compression.force || compression.fits(&layer.descriptor))
            {
                layers.push(self.image_layer(cx, &part, layer).await?);
                continue;
            }
            let Some(variant) = self.remembered(&part, compression).await? else { return Ok(None) };
            layers.push(made(part, variant));
        }
        Ok(Some(layers))
    }

    async fn layer(&self, cx: &Cx, part: Part, compression: Compression) -> Result<LayerBlob, Arc<BlobError>> {
        if let PartKind::Image(layer) = &part.kind
            && (!compression.force || compression.fits(&layer.descriptor))
        {
            return self.image_layer(cx, &part, layer).await;
        }
        let variant = match self.remembered(&part, compression).await? {
            Some(variant) => variant,
            None => {
                let key = (part.record.id().to_owned(), compression.form, compression.level);
                let (work, cx, record) = (self.clone(), cx.clone(), part.clone());
                let made = self.flight.run(key, move |token| async move {
                    work.make(&cx.with_token(token), &record, compression).await.map_err(Arc::new)
                });
                made.await.map_err(|aborted| Arc::new(BlobError::from(aborted)))??
            }
        };
        Ok(made(part, variant))
    }

    /// An image's own layer, as it is.
    async fn image_layer(&self, cx: &Cx, part: &Part, layer: &ImageLayer) -> Result<LayerBlob, Arc<BlobError>> {
        let diff_id = match layer.diff_id {
            Some(diff_id) => diff_id,
            None => self.verified_diff_id(cx, part, layer).await.map_err(Arc::new)?,
        };
        Ok(LayerBlob {
            descriptor: layer.descriptor.clone(),
            diff_id,
            created: layer.created.unwrap_or(part.created),
            description: part.description.clone(),
            image: Some(Box::new(layer.clone())),
            record: part.record.clone(),
        })
    }

    /// The diff ID of a layer whose image claims none: known once all of it was read.
    async fn verified_diff_id(&self, cx: &Cx, part: &Part, layer: &ImageLayer) -> Result<Digest, BlobError> {
        part.record.complete(cx).await?;
        let layers = part.record.layers(cx).await?;
        let verified = layers.last().and_then(|object| object.verified());
        verified.ok_or_else(|| BlobError::NoDiffId { image: layer.image.clone(), layer: layer.descriptor.digest })
    }

    /// A blob of the part that was made before and still is here: of the form asked for, or of any if none was forced.
    async fn remembered(&self, part: &Part, compression: Compression) -> Result<Option<Variant>, Arc<BlobError>> {
        for variant in variants::remembered(&part.record, compression) {
            let here = self.store.content().info(&variant.descriptor.digest).await.map_err(BlobError::from)?;
            if here.is_some() {
                return Ok(Some(variant));
            }
        }
        Ok(None)
    }

    async fn make(&self, cx: &Cx, part: &Part, compression: Compression) -> Result<Variant, BlobError> {
        let wanted = self.wanted(&part.record, compression).await?;
        let variant = match &part.kind {
            PartKind::Image(layer) => {
                let blob = self.image_blob(cx, &part.record, layer).await?;
                pipeline::convert(wanted, blob).await?
            }
            PartKind::Change | PartKind::Difference => {
                let (lower, upper) = part.record.compared(cx).await?;
                pipeline::compare(wanted, self.store.differ(), lower, upper).await?
            }
        };
        part.record.hold(Resource::Blob(variant.descriptor.digest)).await?;
        variants::remember(&part.record, compression, &variant);
        Ok(variant)
    }

    /// A blob that is held by `record` from its first moment: the collector may run at any time.
    async fn wanted(&self, record: &ImmutableRef, compression: Compression) -> Result<pipeline::Wanted, BlobError> {
        let (content, tally) = (self.store.content().clone(), self.tally.clone());
        Ok(pipeline::Wanted { content, compression, lease: record.lease().await?, tally })
    }

    /// The bytes of a layer's blob, brought here if they are not.
    pub async fn open(&self, cx: &Cx, layer: &LayerBlob) -> Result<Blob, BlobError> {
        match &layer.image {
            Some(image) => self.image_blob(cx, &layer.record, image).await,
            None => Ok(self.store.content().open(&layer.descriptor.digest).await?),
        }
    }

    async fn image_blob(&self, cx: &Cx, record: &ImmutableRef, layer: &ImageLayer) -> Result<Blob, BlobError> {
        let digest = &layer.descriptor.digest;
        match self.store.content().open(digest).await {
            Err(castor_content::Error::NotFound(_)) => {}
            here => return Ok(here?),
        }
        record.fetch_blob(cx).await?;
        Ok(self.store.content().open(digest).await?)
    }
}

/// A blob that was made here, as a layer.
fn made(part: Part, variant: Variant) -> LayerBlob {
    LayerBlob {
        descriptor: variant.descriptor,
        diff_id: variant.diff_id,
        created: part.created,
        description: part.description,
        image: None,
        record: part.record,
    }
}
