//! The difference of two refs that are not one on top of the other.
//!
//! It is computed as an image's layer is: compared into a tar stream, which becomes a blob and a layer object. So
//! whiteouts come out right wherever it is stacked.

use std::io::Write;
use std::sync::Arc;

use castor_layerfs::Layer;
use castor_oci::{Descriptor, Digest};
use castor_solver::Cx;

use crate::record::Body;
use crate::refs::{DIFFERENCE, object};
use crate::rows::Rec;
use crate::{ImageLayer, ImmutableRef, StoreError};

/// The label under which the digest and size of the blob are kept.
const LABEL: &str = "difference";

/// Bytes on their way into the content store.
struct Into(castor_content::Writer);

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// The layer object of the difference that `rec` is.
pub(crate) async fn layer(of: &ImmutableRef, rec: &Arc<Rec>, cx: &Cx) -> Result<Arc<Layer>, StoreError> {
    let inner = of.store();
    let known = rec.row.lock().layer;
    let descriptor = match remembered(of) {
        Some(descriptor) => descriptor,
        None => make(of, rec, cx).await?,
    };
    let layer = ImageLayer {
        diff_id: Some(descriptor.digest),
        descriptor,
        origins: Vec::new(),
        image: "a difference of build results".to_owned(),
        want: DIFFERENCE,
        created_by: String::new(),
        created: None,
    };
    object(inner, rec, &layer, known, cx).await
}

fn descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor::new(castor_oci::media_type::OCI_LAYER, digest, size)
}

fn remembered(of: &ImmutableRef) -> Option<Descriptor> {
    let label = of.label(LABEL)?;
    let (digest, size) = label.split_once(' ')?;
    Some(descriptor(digest.parse().ok()?, size.parse().ok()?))
}

async fn make(of: &ImmutableRef, rec: &Rec, cx: &Cx) -> Result<Descriptor, StoreError> {
    let inner = of.store();
    debug_assert!(matches!(rec.body(), Body::Slice { .. }));
    let (lower, upper) = of.compared(cx).await?;
    let Some(upper) = upper else {
        return Err(StoreError::Kind { id: rec.id.clone(), wanted: "a difference from something" });
    };
    let content = |error: castor_content::Error| StoreError::Content(error.to_string());
    let writer = inner.config.content.writer().await.map_err(content)?;
    let shared = Shared(Arc::new(parking_lot::Mutex::new(Some(Into(writer)))));
    let out: Box<dyn Write + Send> = Box::new(shared.clone());
    let (out, _) = inner.config.differ.diff(lower.as_ref(), &upper, out).await?;
    drop(out);
    let taken = shared.0.lock().take();
    let Some(Into(writer)) = taken else {
        return Err(StoreError::Content("writer of a difference is gone".to_owned()));
    };
    // Held from its first moment: the collector may run at any time.
    let lease = inner.leased(&rec.id).await?;
    let commit = castor_content::Commit { lease: Some(lease), ..Default::default() };
    let info = writer.commit(None, commit).await.map_err(content)?;
    of.set_label(LABEL, Some(&format!("{} {}", info.digest, info.size)));
    Ok(descriptor(info.digest, info.size))
}

/// A writer that is got back after others have boxed it.
#[derive(Clone)]
struct Shared(Arc<parking_lot::Mutex<Option<Into>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut *self.0.lock() {
            Some(writer) => writer.write(bytes),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().as_mut().map_or(Ok(()), Write::flush)
    }
}
