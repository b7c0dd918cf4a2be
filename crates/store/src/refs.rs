//! Immutable refs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_content::{Blob, Resource};
use castor_layerfs::{BlobOpener, FetchError, Layer, LayerSource, LayerState, Lazy, Priority, RangeBody, Reliance};
use castor_oci::Digest;
use castor_progress::Timestamp;
use castor_snapshot::{Bases, Element, SnapshotId};
use castor_solver::Cx;
use futures::StreamExt as _;
use futures::future::try_join_all;

use crate::record::Body;
use crate::rows::Rec;
use crate::store::Inner;
use crate::{ChecksumOptions, ImageLayer, Mounting, RecordId, RecordInfo, StoreError};

/// Keeps a record alive.
pub(crate) struct Handle {
    pub(crate) inner: Arc<Inner>,
    pub(crate) rec: Arc<Rec>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.rec.id).finish()
    }
}

impl Handle {
    /// Takes over a handle that was counted already.
    pub(crate) fn new(inner: Arc<Inner>, rec: Arc<Rec>) -> Arc<Self> {
        Arc::new(Self { inner, rec })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let remove = self.inner.records.release(&self.rec);
        self.inner.released.notify_waiters();
        if !remove {
            return;
        }
        let (inner, rec) = (self.inner.clone(), self.rec.clone());
        // Outside of a runtime the record stays until the next start, which removes it.
        if tokio::runtime::Handle::try_current().is_ok() {
            let scope = inner.config.scope.clone();
            let name = format!("remove record {}", rec.id);
            scope.spawn_named(name, async move { inner.remove(&rec).await });
        }
    }
}

/// A handle of an immutable record, or of nothing at all (scratch). Clones are the same handle; the record is let go of
/// with the last.
#[derive(Clone)]
pub struct ImmutableRef {
    inner: Arc<Inner>,
    handle: Option<Arc<Handle>>,
}

impl fmt::Debug for ImmutableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImmutableRef").field(&self.id()).finish()
    }
}

/// What one part of a ref is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartKind {
    /// A layer of an image.
    Image(Box<ImageLayer>),
    /// The change that a step made.
    Change,
    /// The difference of two refs that are not one on top of the other.
    Difference,
}

/// One of the parts that a ref stacks, each of which becomes a layer of an exported image.
#[derive(Debug, Clone)]
pub struct Part {
    /// The record of this part.
    pub record: ImmutableRef,
    /// What it is.
    pub kind: PartKind,
    /// What made it, for an image's history.
    pub description: String,
    /// When.
    pub created: Timestamp,
}

impl ImmutableRef {
    pub(crate) fn new(inner: Arc<Inner>, handle: Option<Arc<Handle>>) -> Self {
        Self { inner, handle }
    }

    pub(crate) fn store(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Whether its record is still writable.
    pub(crate) fn is_frozen(&self) -> bool {
        self.rec().is_some_and(|rec| rec.body().is_active())
    }

    fn rec(&self) -> Option<&Arc<Rec>> {
        self.handle.as_ref().map(|handle| &handle.rec)
    }

    fn other(&self, id: &str) -> Option<Self> {
        Some(Self::new(self.inner.clone(), Some(self.inner.acquire(id)?)))
    }

    /// The record's id; empty for scratch.
    pub fn id(&self) -> &str {
        self.rec().map_or("", |rec| rec.id.as_str())
    }

    /// Whether it is nothing at all.
    pub fn is_scratch(&self) -> bool {
        self.handle.is_none()
    }

    /// What `du` would show, but for the size, which is 0 if it was not computed before.
    pub fn info(&self) -> RecordInfo {
        match self.rec() {
            Some(rec) => crate::usage::info(rec, true, rec.row.lock().size.unwrap_or(0)),
            None => RecordInfo {
                id: String::new(),
                mutable: false,
                in_use: false,
                size: 0,
                parents: Vec::new(),
                created: Timestamp::UNIX_EPOCH,
                last_used: None,
                usage_count: 0,
                description: String::new(),
                record_type: crate::RecordType::Regular,
                shared: false,
            },
        }
    }

    pub(crate) fn part_ids(&self) -> Vec<RecordId> {
        self.rec().map(|rec| rec.parts()).unwrap_or_default()
    }

    /// The parts it stacks, lowest first. Fetches nothing.
    pub fn parts(&self) -> Vec<Part> {
        let Some(own) = self.rec() else { return Vec::new() };
        let part = |id: &RecordId| {
            // What a record is made of exists as long as the record.
            let record = if *id == own.id { self.clone() } else { self.other(id)? };
            let (kind, description, created) = {
                let row = record.rec()?.row.lock();
                let mut description = &row.description;
                let kind = match &row.body {
                    Body::Image { layer, .. } => {
                        if !layer.created_by.is_empty() {
                            description = &layer.created_by;
                        }
                        PartKind::Image(layer.clone())
                    }
                    Body::Change { .. } | Body::Active { .. } | Body::Merge { .. } => PartKind::Change,
                    Body::Slice { .. } => PartKind::Difference,
                };
                (kind, description.clone(), row.created)
            };
            Some(Part { record, kind, description, created })
        };
        self.all_part_ids().iter().filter_map(part).collect()
    }

    /// Its parts, also of one that is frozen and not committed yet.
    fn all_part_ids(&self) -> Vec<RecordId> {
        let mut ids = self.part_ids();
        if let Some(rec) = self.rec().filter(|rec| rec.body().is_active()) {
            ids.push(rec.id.clone());
        }
        ids
    }

    /// Whether any of its layers has bytes that are not here. Says nothing about bytes that are being fetched.
    pub async fn is_lazy(&self) -> bool {
        let layers = self.known_layers().await;
        !layers.iter().all(|(_, layer)| layer.as_ref().is_some_and(|layer| layer.state() == LayerState::Complete))
    }

    /// Whether any of its layers is on its way here because it is needed as a whole.
    pub async fn is_being_fetched(&self) -> bool {
        let eager = |layer: &Arc<Layer>| matches!(layer.state(), LayerState::Eager { .. });
        self.known_layers().await.iter().any(|(_, layer)| layer.as_ref().is_some_and(eager))
    }

    /// Whether the tar streams of all its image layers have been verified to have the diff IDs that its image claims.
    pub async fn is_verified(&self) -> bool {
        let verified = |(claimed, layer): &(ImageLayer, Option<Arc<Layer>>)| {
            let found = layer.as_ref().and_then(|layer| layer.verified());
            found.is_some() && claimed.diff_id.is_none_or(|claimed| found == Some(claimed))
        };
        self.known_layers().await.iter().all(verified)
    }

    /// Its image layers, and their objects as far as there are such.
    async fn known_layers(&self) -> Vec<(ImageLayer, Option<Arc<Layer>>)> {
        let mut layers = Vec::new();
        for part in self.parts() {
            let (Some(rec), PartKind::Image(layer)) = (part.record.rec(), part.kind) else { continue };
            let id = rec.row.lock().layer;
            let object = match id {
                Some(id) => self.inner.config.engine.existing(id).await.ok().flatten(),
                None => None,
            };
            layers.push((*layer, object));
        }
        layers
    }

    /// The layer objects of its image layers, lowest first: makes those that are not here lazy or begins to fetch them,
    /// reporting to `cx`.
    pub async fn layers(&self, cx: &Cx) -> Result<Vec<Arc<Layer>>, StoreError> {
        let parts = self.parts();
        let images = parts.iter().filter(|part| matches!(part.kind, PartKind::Image(_)));
        try_join_all(images.filter_map(|part| part.record.rec()).map(|rec| layer(&self.inner, rec, cx))).await
    }

    /// Makes it ready to be mounted: lazy layers are made known, eager ones fetched.
    pub async fn ready(&self, cx: &Cx) -> Result<(), StoreError> {
        let layers = self.layers(cx).await?;
        let ready = try_join_all(layers.iter().map(|layer| layer.ready()));
        tokio::select! {
            ready = ready => ready.map(|_| ()).map_err(StoreError::from),
            () = cx.token().cancelled() => Err(StoreError::Cancelled),
        }
    }

    /// Fetches and verifies all that is missing.
    pub async fn complete(&self, cx: &Cx) -> Result<(), StoreError> {
        let layers = self.layers(cx).await?;
        let complete = try_join_all(layers.iter().map(|layer| layer.complete()));
        tokio::select! {
            complete = complete => complete.map(|_| ()).map_err(StoreError::from),
            () = cx.token().cancelled() => Err(StoreError::Cancelled),
        }
    }

    /// Brings the blob of an image layer's own record here, verified by its digest: what of it is here already is not
    /// fetched again. The layers below stay as they are.
    pub async fn fetch_blob(&self, cx: &Cx) -> Result<(), StoreError> {
        let Some(rec) = self.rec() else { return Ok(()) };
        let layer = layer(&self.inner, rec, cx).await?;
        tokio::select! {
            fetched = layer.fetch_blob() => fetched.map_err(StoreError::from),
            () = cx.token().cancelled() => Err(StoreError::Cancelled),
        }
    }

    /// The snapshot of it (made if need be) for [`castor_snapshot::Differ`] and such; `None` for scratch.
    ///
    /// Its layers are ready then: lazy ones can be read with `cx`'s credentials, eager ones are here.
    pub async fn snapshot(&self, cx: &Cx) -> Result<Option<SnapshotId>, StoreError> {
        self.settle().await?;
        self.ready(cx).await?;
        let Some(rec) = self.rec() else { return Ok(None) };
        let mut known = rec.snapshot.lock().await;
        if known.is_none() {
            *known = Some(self.make_snapshot(rec, cx).await?);
        }
        Ok(known.clone())
    }

    async fn make_snapshot(&self, rec: &Arc<Rec>, cx: &Cx) -> Result<SnapshotId, StoreError> {
        if matches!(rec.body(), Body::Change { .. } | Body::Active { .. }) {
            return Ok(SnapshotId::new(rec.id.as_str()));
        }
        let parts = self.parts();
        let elements = try_join_all(parts.iter().map(|part| self.element(part, cx))).await?;
        // Named by what is in it: a layer that had to be fetched again in another way makes another list.
        let list: Vec<_> = elements.iter().map(|element| format!("{element:?}")).collect();
        let name = format!("{}-{}", rec.id, &Digest::of(list.join("\n")).hex()[..16]);
        let id = SnapshotId::new(name.as_str());
        let bases = self.bases(&parts, &elements, cx).await?;
        self.inner.config.snapshotter.create(&id, &elements, &bases).await?;
        if !rec.row.lock().snapshots.contains(&name) {
            self.inner.records.change(rec, |row| row.snapshots.push(name));
        }
        Ok(id)
    }

    /// What those layers of images were made on that are not on it here: parts of images, and images above other things.
    async fn bases(&self, parts: &[Part], elements: &[Element], cx: &Cx) -> Result<Bases, StoreError> {
        let mut bases = Bases::new();
        for (index, (part, element)) in parts.iter().zip(elements).enumerate() {
            let (PartKind::Image(_), Element::Layer(id)) = (&part.kind, element) else { continue };
            let image = part.record.part_ids();
            if parts[..=index].iter().map(|part| part.record.id()).eq(image.iter().map(RecordId::as_str)) {
                continue;
            }
            let object = self.inner.config.engine.existing(*id).await?;
            let reliance = object.map_or(Reliance::default(), |object| object.reliance());
            // At the bottom there is nothing that it could hide.
            if !reliance.implies && (index == 0 || !reliance.hides) {
                continue;
            }
            let layers = part.record.layers(cx).await?;
            try_join_all(layers.iter().map(|layer| layer.ready())).await?;
            bases.insert(*id, layers.iter().map(|layer| layer.id()).filter(|below| below != id).collect());
        }
        Ok(bases)
    }

    async fn element(&self, part: &Part, cx: &Cx) -> Result<Element, StoreError> {
        let missing = || StoreError::NotFound(part.record.id().to_owned());
        let rec = part.record.rec().ok_or_else(missing)?;
        match &part.kind {
            PartKind::Image(_) => Ok(Element::Layer(layer(&self.inner, rec, cx).await?.id())),
            PartKind::Change => {
                let id = SnapshotId::new(rec.id.as_str());
                let info = self.inner.config.snapshotter.info(&id).await?;
                info.and_then(|info| info.elements.last().copied()).ok_or_else(missing)
            }
            PartKind::Difference => {
                let layer = Box::pin(crate::difference::layer(&part.record, rec, cx)).await?;
                // Dropped before that, it would stop being unpacked.
                layer.ready().await?;
                Ok(Element::Layer(layer.id()))
            }
        }
    }

    /// The ref below a [`PartKind::Change`] or [`PartKind::Image`] record; scratch if there is none. For a
    /// [`PartKind::Difference`] the lower of the two.
    pub fn lower(&self) -> ImmutableRef {
        let below = self.rec().and_then(|rec| match rec.body() {
            Body::Image { parent, .. } | Body::Change { parent } | Body::Active { parent } => parent,
            Body::Slice { lower, .. } => lower,
            Body::Merge { .. } => None,
        });
        below.and_then(|id| self.other(&id)).unwrap_or_else(|| Self::new(self.inner.clone(), None))
    }

    /// The two snapshots whose comparison is the change of a [`PartKind::Change`] or [`PartKind::Difference`] record.
    pub async fn compared(&self, cx: &Cx) -> Result<(Option<SnapshotId>, Option<SnapshotId>), StoreError> {
        let lower = Box::pin(self.lower().snapshot(cx)).await?;
        let upper = match self.rec().map(|rec| rec.body()) {
            Some(Body::Slice { upper: Some(upper), .. }) => match self.other(&upper) {
                Some(upper) => Box::pin(upper.snapshot(cx)).await?,
                None => return Err(StoreError::NotFound(upper)),
            },
            Some(Body::Slice { upper: None, .. }) => {
                // All of the lower one is gone: that has to be compared with something.
                let nothing = SnapshotId::new("nothing");
                self.inner.config.snapshotter.create(&nothing, &[], &Bases::new()).await?;
                Some(nothing)
            }
            _ => Box::pin(self.snapshot(cx)).await?,
        };
        Ok((lower, upper))
    }

    /// Mounts it read-only. All who want it at once share one mount.
    pub async fn mount(&self, cx: &Cx) -> Result<Arc<Mounting>, StoreError> {
        let Some(rec) = self.rec() else {
            return self.inner.scratch.mount(&self.inner, None, "scratch", false).await;
        };
        let snapshot = if rec.body().is_active() {
            // Frozen: looked at without ending its life as a writable one.
            Some(SnapshotId::new(rec.id.as_str()))
        } else {
            self.snapshot(cx).await?
        };
        tokio::select! {
            mounting = rec.mountpoint.mount(&self.inner, snapshot, &rec.id, false) => mounting,
            () = cx.token().cancelled() => Err(StoreError::Cancelled),
        }
    }

    /// The digest over the content of `path`, equal to the one that BuildKit computes.
    pub async fn checksum(&self, cx: &Cx, path: &str, options: &ChecksumOptions) -> Result<Digest, StoreError> {
        crate::contenthash::checksum(self, &self.inner, self.rec(), cx, path, options).await
    }

    /// Ends the life of a frozen record as a writable one, because something is made of it.
    pub(crate) async fn settle(&self) -> Result<(), StoreError> {
        let Some(rec) = self.rec() else { return Ok(()) };
        if !rec.body().is_active() {
            return Ok(());
        }
        let mut known = rec.snapshot.lock().await;
        // Another may have done it meanwhile.
        if !rec.body().is_active() {
            return Ok(());
        }
        let id = commit(&self.inner, rec).await?;
        *known = Some(id);
        Ok(())
    }

    /// Keeps the record after the last handle, until it is pruned.
    pub async fn retain(&self) -> Result<(), StoreError> {
        self.settle().await?;
        if let Some(rec) = self.rec().filter(|rec| !rec.row.lock().retain) {
            self.inner.records.change(rec, |row| row.retain = true);
        }
        Ok(())
    }

    /// The name of the record's lease, for content that is to stay as long as the record from its first moment. None of
    /// scratch, which has no content.
    pub async fn lease(&self) -> Result<Option<String>, StoreError> {
        match self.rec() {
            Some(rec) => self.inner.leased(&rec.id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes the record's lease hold `resource`: it stays as long as the record.
    pub async fn hold(&self, resource: Resource) -> Result<(), StoreError> {
        match self.rec() {
            Some(rec) => {
                self.inner.hold(&rec.id, &resource).await?;
                self.inner.records.change(rec, |row| row.size = None);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What another crate keeps with the record.
    pub fn label(&self, name: &str) -> Option<String> {
        self.rec()?.row.lock().labels.get(name).cloned()
    }

    /// Keeps something with the record; durable soon. `None` removes it.
    pub fn set_label(&self, name: &str, value: Option<&str>) {
        let Some(rec) = self.rec() else { return };
        self.inner.records.change(rec, |row| match value {
            Some(value) => drop(row.labels.insert(name.to_owned(), value.to_owned())),
            None => drop(row.labels.remove(name)),
        });
    }
}

/// Turns the active snapshot of a record into a committed one of the same name.
pub(crate) async fn commit(inner: &Inner, rec: &Arc<Rec>) -> Result<SnapshotId, StoreError> {
    rec.mountpoint.unmounted().await;
    let id = SnapshotId::new(rec.id.as_str());
    inner.config.snapshotter.commit(&id, &id).await?;
    inner.records.change(rec, |row| {
        if let Body::Active { parent } = &row.body {
            row.body = Body::Change { parent: parent.clone() };
            row.parts.push(rec.id.clone());
        }
        // Found by its key only as long as it is writable.
        if row.key.take().is_some() {
            row.retain = false;
        }
        row.size = None;
    });
    Ok(id)
}

/// The layer object of an image layer.
async fn layer(inner: &Arc<Inner>, rec: &Arc<Rec>, cx: &Cx) -> Result<Arc<Layer>, StoreError> {
    let (body, known) = {
        let row = rec.row.lock();
        (row.body.clone(), row.layer)
    };
    let Body::Image { layer, .. } = body else {
        return Err(StoreError::Kind { id: rec.id.clone(), wanted: "an image layer" });
    };
    object(inner, rec, &layer, known, cx).await
}

/// The layer object of `layer`, which belongs to the record.
pub(crate) async fn object(
    inner: &Arc<Inner>,
    rec: &Arc<Rec>,
    layer: &ImageLayer,
    known: Option<castor_layerfs::LayerId>,
    cx: &Cx,
) -> Result<Arc<Layer>, StoreError> {
    let opener: Arc<dyn BlobOpener> = match inner.config.content.open(&layer.descriptor.digest).await {
        Ok(blob) => {
            let origin = (!layer.origins.is_empty()).then(|| inner.config.openers.opener(layer, cx));
            Arc::new(ContentOpener { blob, origin })
        }
        Err(castor_content::Error::NotFound(_)) => inner.config.openers.opener(layer, cx),
        Err(error) => return Err(StoreError::Content(error.to_string())),
    };
    if let Some(known) = known
        && let Some(object) = inner.config.engine.existing(known).await?
    {
        object.attach(opener);
        return Ok(object);
    }
    let want = match known {
        // Its data was dropped. Snapshots name the object, so it is made again as it was, whatever it could be by now.
        Some(id) if id.toc.is_none() && inner.config.engine.lazy_identity(&layer.descriptor).is_some() => Lazy::Never,
        _ => layer.want,
    };
    let source = LayerSource {
        descriptor: layer.descriptor.clone(),
        origins: layer.origins.clone(),
        image: layer.image.clone(),
        opener,
        diff_id: layer.diff_id,
        want,
    };
    let object = inner.config.engine.layer(source, cx.reporter()).await?;
    inner.records.set_layer(rec, object.id());
    Ok(object)
}

/// Reads a blob that is here.
struct ContentOpener {
    blob: Blob,
    /// Where the rest of what is needed may be: a table of contents that lies apart. None for a layer that was made here.
    origin: Option<Arc<dyn BlobOpener>>,
}

#[async_trait]
impl BlobOpener for ContentOpener {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        let end = range.end.min(self.blob.size());
        let mut left = end.saturating_sub(range.start);
        let stream = self.blob.stream(range.start).map(move |bytes| {
            let mut bytes = bytes.map_err(|error| FetchError::new(error.to_string()))?;
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= bytes.len() as u64;
            Ok(bytes)
        });
        let stream = stream.take_while(|bytes| {
            let more = !matches!(bytes, Ok(bytes) if bytes.is_empty());
            std::future::ready(more)
        });
        Ok(RangeBody { range: range.start..end, full: false, stream: stream.boxed() })
    }

    fn describe(&self) -> String {
        "the content store".to_owned()
    }

    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        match &self.origin {
            Some(origin) => origin.external_toc().await,
            None => Err(FetchError::new("the layer has no origin")),
        }
    }
}

/// How a difference is stored: fetched first, for it is here already.
pub(crate) const DIFFERENCE: Lazy = Lazy::Never;
