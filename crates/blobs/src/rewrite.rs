//! Layers whose times are cut to a moment: built again later, they are the same.

use std::sync::Arc;

use castor_content::Resource;
use castor_oci::Digest;
use castor_solver::Cx;
use serde::{Deserialize, Serialize};

use crate::variants::Variant;
use crate::{BlobError, Blobs, Compression, LayerBlob, pipeline};

/// What BuildKit notes with such a layer: the moment, in seconds since 1970.
const ANNOTATION: &str = "buildkit/rewritten-timestamp";

/// What is remembered with the record, one for each form.
#[derive(Serialize, Deserialize)]
struct Rewritten {
    /// The blob that it was made of.
    from: Digest,
    epoch: i64,
    variant: Variant,
}

impl Blobs {
    /// `layer` with no time later than `epoch`, in seconds since 1970, and in the form that `compression` asks for.
    pub async fn rewritten(
        &self,
        cx: &Cx,
        layer: LayerBlob,
        compression: Compression,
        epoch: i64,
    ) -> Result<LayerBlob, Arc<BlobError>> {
        let is_so = layer.descriptor.annotations.get(ANNOTATION).is_some_and(|at| *at == epoch.to_string());
        if is_so && compression.fits(&layer.descriptor) {
            return Ok(layer);
        }
        let variant = match self.known_rewritten(&layer, compression, epoch).await? {
            Some(variant) => variant,
            None => {
                let key = (format!("{} until {epoch}", layer.descriptor.digest), compression.form, compression.level);
                let (work, cx, of) = (self.clone(), cx.clone(), layer.clone());
                let made = self.flight.run(key, move |token| async move {
                    work.rewrite(&cx.with_token(token), &of, compression, epoch).await.map_err(Arc::new)
                });
                made.await.map_err(|aborted| Arc::new(BlobError::from(aborted)))??
            }
        };
        Ok(LayerBlob { descriptor: variant.descriptor, diff_id: variant.diff_id, image: None, ..layer })
    }

    async fn known_rewritten(
        &self,
        layer: &LayerBlob,
        compression: Compression,
        epoch: i64,
    ) -> Result<Option<Variant>, Arc<BlobError>> {
        let label = layer.record.label(&label(compression));
        let known = label.and_then(|text| serde_json::from_str::<Rewritten>(&text).ok());
        let same = |known: &Rewritten| {
            (known.from, known.epoch, known.variant.level) == (layer.descriptor.digest, epoch, compression.level)
        };
        let Some(known) = known.filter(same) else { return Ok(None) };
        let here = self.store.content().info(&known.variant.descriptor.digest).await.map_err(BlobError::from)?;
        Ok(here.map(|_| known.variant))
    }

    async fn rewrite(
        &self,
        cx: &Cx,
        layer: &LayerBlob,
        compression: Compression,
        epoch: i64,
    ) -> Result<Variant, BlobError> {
        let wanted = self.wanted(&layer.record, compression).await?;
        let blob = self.open(cx, layer).await?;
        let mut variant = pipeline::rewrite(wanted, blob, epoch).await?;
        variant.descriptor.annotations.insert(ANNOTATION.to_owned(), epoch.to_string());
        layer.record.hold(Resource::Blob(variant.descriptor.digest)).await?;
        let made = Rewritten { from: layer.descriptor.digest, epoch, variant: variant.clone() };
        // It serialises: it has string keys only.
        if let Ok(text) = serde_json::to_string(&made) {
            layer.record.set_label(&label(compression), Some(&text));
        }
        Ok(variant)
    }
}

fn label(compression: Compression) -> String {
    format!("rewritten.{}", compression.form.name())
}
