//! A blob of a registry, or of the content store, as a [`BlobOpener`]; the TOC of a layer that has it apart.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use castor_content::Blob;
use castor_estargz::{annotation, footer};
use castor_oci::{Descriptor, Digest, Index, Manifest, Reference, media_type};
use castor_registry::{Access, BlobReader, Client, Priority as Lane};
use futures::StreamExt as _;

use crate::source::{BlobOpener, FetchError, Priority, RangeBody};
use crate::unpack::with_sources;

/// Reads a blob from a registry.
#[derive(Debug, Clone)]
pub struct RegistryOpener {
    reader: BlobReader,
    name: String,
}

impl RegistryOpener {
    /// Reads by `reader`; `name` is how messages call the place, for example the repository.
    pub fn new(reader: BlobReader, name: impl Into<String>) -> Self {
        Self { reader, name: name.into() }
    }
}

fn error(error: &castor_registry::Error) -> FetchError {
    FetchError { denied: error.is_auth(), ..FetchError::new(with_sources(error)) }
}

#[async_trait]
impl BlobOpener for RegistryOpener {
    async fn range(&self, range: Range<u64>, priority: Priority) -> Result<RangeBody, FetchError> {
        let lane = match priority {
            Priority::Demand | Priority::Ahead => Lane::OnDemand,
            Priority::Background => Lane::Bulk,
        };
        let whole = range == (0..self.reader.descriptor().size);
        let answer = if whole { self.reader.full(lane).await } else { self.reader.range(range, lane).await };
        let body = answer.map_err(|e| error(&e))?;
        let (range, full) = (body.range(), body.is_full());
        let stream = body.into_stream().map(|piece| piece.map_err(|e| error(&e))).boxed();
        Ok(RangeBody { range, full, stream })
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn distrust(&self) {
        self.reader.distrust();
    }
}

/// What is added to an image's tag to name the image that has the TOCs of its layers.
const TOC_TAG: &str = "-esgztoc";
/// Manifests of an index that are looked into.
const MAX_PLATFORMS: usize = 64;

/// Finds the TOC of `layer`, a layer of `image` that has it apart: it is a blob of the image with the same name and
/// `-esgztoc` after the tag. Not verified by anything that `image` says.
pub async fn external_toc(
    client: &Client,
    image: &Reference,
    layer: Digest,
    access: &Access,
) -> Result<Bytes, FetchError> {
    let Some(tag) = image.tag() else {
        return Err(FetchError::new(format!("{image} has no tag that would lead to it")));
    };
    let name = format!("{}:{tag}{TOC_TAG}", image.repository());
    let failed =
        |error: castor_registry::Error| FetchError::new(format!("look for it in {name}: {}", with_sources(&error)));
    let invalid = |error: serde_json::Error| FetchError::new(format!("look for it in {name}: {error}"));
    let toc_image: Reference =
        name.parse().map_err(|error| FetchError::new(format!("look for it in {name}: {error}")))?;
    let root = client.resolve(&toc_image, access).await.map_err(failed)?;
    let bytes = client.manifest(&toc_image, &root, access).await.map_err(failed)?;
    let manifests: Vec<Manifest> = if media_type::is_index(&root.media_type) {
        let index: Index = serde_json::from_slice(&bytes).map_err(invalid)?;
        let mut manifests = Vec::new();
        for child in index.manifests.iter().take(MAX_PLATFORMS) {
            let bytes = client.manifest(&toc_image, child, access).await.map_err(failed)?;
            manifests.push(serde_json::from_slice(&bytes).map_err(invalid)?);
            if toc_of_layer(&manifests, layer).is_some() {
                break;
            }
        }
        manifests
    } else {
        vec![serde_json::from_slice(&bytes).map_err(invalid)?]
    };
    let Some(toc) = toc_of_layer(&manifests, layer) else {
        return Err(FetchError::new(format!("{name} does not have it")));
    };
    let blob = client.blob(&(&toc_image).into(), toc, access);
    blob.bytes(footer::MAX_TOC).await.map_err(failed)
}

fn toc_of_layer(manifests: &[Manifest], layer: Digest) -> Option<&Descriptor> {
    let layer = layer.to_string();
    let mut tocs = manifests.iter().flat_map(|manifest| &manifest.layers);
    tocs.find(|toc| toc.annotations.get(annotation::TOC_OF_LAYER) == Some(&layer))
}

/// Reads a blob that is in the content store.
#[derive(Debug)]
pub(crate) struct ContentOpener(Blob);

impl ContentOpener {
    pub(crate) fn new(blob: Blob) -> Self {
        Self(blob)
    }
}

#[async_trait]
impl BlobOpener for ContentOpener {
    async fn range(&self, range: Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        let left = range.end.saturating_sub(range.start);
        let stream = self.0.stream(range.start).scan(left, |left, piece| {
            let piece = piece.map_err(|e| FetchError::new(e.to_string())).map(|piece: Bytes| {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left -= length as u64;
                piece.slice(..length)
            });
            let done = matches!(&piece, Ok(piece) if piece.is_empty());
            futures::future::ready((!done).then_some(piece))
        });
        Ok(RangeBody { range, full: false, stream: stream.boxed() })
    }

    fn describe(&self) -> String {
        "the content store".into()
    }
}
