//! A cache on its way out: layers first, then what names them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use castor_blobs::Blobs;
use castor_oci::{Annotations, Descriptor, Digest, Index, Manifest, Reference, media_type};
use castor_progress::Tally;
use castor_registry::{Access, BlobSource, Client, Repository};
use castor_session::content::RemoteStore;
use castor_session::{SessionError, Sessions};
use castor_solver::{Cx, KeyId};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::chains::{self, Layer, Origin};
use crate::collect::ExportParts;
use crate::config;
use crate::error::RemoteCacheError;
use crate::options::{ExportOptions, Target};

/// Blobs that are on their way at once.
const AT_ONCE: usize = 8;
/// How long a client's session is waited for.
const WAIT: std::time::Duration = std::time::Duration::from_secs(5);
/// Key of the response: the descriptor of the cache's manifest, as JSON.
const RESPONSE: &str = "cache.manifest";

/// Whom an export may ask.
#[derive(Clone)]
pub struct ExportTargets {
    /// Registries.
    pub registry: Client,
    /// On whose behalf they are asked.
    pub access: Access,
    /// Clients.
    pub sessions: Sessions,
    /// The client's session.
    pub session: String,
}

impl fmt::Debug for ExportTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportTargets").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Where blobs go.
enum Writer {
    Registry { client: Client, reference: Reference, access: Access },
    Client(RemoteStore),
}

/// A layer's bytes. They are read only if whoever gets them does not have them.
struct LayerSource<'a> {
    cx: &'a Cx,
    blobs: &'a Blobs,
    layer: &'a Layer,
    writing: &'a Tally,
    /// What was added to that.
    sent: AtomicU64,
}

impl LayerSource<'_> {
    async fn stream(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        match &self.layer.origin {
            Origin::Blob(blob) => {
                let blob = self.blobs.open(self.cx, blob).await.map_err(io::Error::other)?;
                Ok(blob.stream(0))
            }
            Origin::Import(import) => import.read(self.cx, &self.layer.descriptor).await.map_err(io::Error::other),
            #[cfg(test)]
            Origin::Nowhere => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The repositories that have it.
    fn repositories(&self) -> Vec<Repository> {
        match &self.layer.origin {
            Origin::Blob(blob) => {
                let origins = blob.image.iter().flat_map(|image| &image.origins);
                origins.filter_map(|origin| origin.parse().ok()).collect()
            }
            Origin::Import(import) => import.repository().cloned().into_iter().collect(),
            #[cfg(test)]
            Origin::Nowhere => Vec::new(),
        }
    }
}

#[async_trait]
impl BlobSource for LayerSource<'_> {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        self.stream().await
    }

    fn progress(&self, sent: u64) {
        let before = self.sent.swap(sent, Ordering::Relaxed);
        self.writing.add(sent.cast_signed() - before.cast_signed());
    }
}

impl Writer {
    async fn layer(&self, source: &LayerSource<'_>) -> Result<(), RemoteCacheError> {
        let descriptor = &source.layer.descriptor;
        match self {
            Self::Registry { client, reference, access } => {
                let from = source.repositories();
                client.push_blob(&reference.into(), descriptor, &from, source, access).await?;
            }
            Self::Client(store) => {
                // A client that has it is not sent it, and it need not be here.
                if store.info(&descriptor.digest).await?.is_some() {
                    return Ok(());
                }
                let failed = |source| SessionError::Io { doing: "read blob".to_owned(), source };
                let writing = source.writing;
                let pieces = source.stream().await.map_err(failed)?;
                let pieces = pieces.inspect_ok(move |piece| writing.add(piece.len() as i64));
                store.write(descriptor, BTreeMap::new(), pieces.map_err(failed)).await?;
            }
        }
        Ok(())
    }

    async fn document(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), RemoteCacheError> {
        match self {
            Self::Registry { client, reference, access } => {
                client.push_blob(&reference.into(), descriptor, &[], &bytes, access).await?;
            }
            Self::Client(store) => {
                let pieces = futures::stream::iter([Ok(bytes)]);
                store.write(descriptor, BTreeMap::new(), pieces).await?;
            }
        }
        Ok(())
    }

    async fn manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), RemoteCacheError> {
        match self {
            Self::Registry { client, reference, access } => {
                client.push_manifest(reference, &descriptor.media_type, bytes, access).await?;
                Ok(())
            }
            Self::Client(_) => self.document(descriptor, bytes).await,
        }
    }
}

/// Exports the records that lead to the results with the keys `roots`; reports to `cx`. What it answers belongs into the
/// build's response.
pub async fn export(
    options: &ExportOptions,
    parts: &ExportParts,
    targets: &ExportTargets,
    cx: &Cx,
    roots: &[KeyId],
) -> Result<BTreeMap<String, String>, RemoteCacheError> {
    let work = async {
        let preparing = Arc::new(Tally::start(cx.reporter(), "preparing build cache for export", "", 0));
        let counted = ExportParts { blobs: parts.blobs.counting(&preparing), ..parts.clone() };
        let nodes = counted.collect(cx, roots, options.mode, options.compression).await;
        preparing.finish();
        let nodes = nodes?;
        let (config, layers) = chains::config(&nodes);
        let sending = cx.reporter().start("sending cache export", "", 0);
        let response = if layers.is_empty() {
            cx.reporter().start("skipping cache export for empty result", "", 0).finish();
            BTreeMap::new()
        } else {
            let writer = writer(options, targets).await?;
            send(options, &writer, cx, &parts.blobs, &config.to_bytes(), layers).await?
        };
        sending.finish();
        Ok(response)
    };
    tokio::select! {
        response = work => response,
        () = cx.token().cancelled() => Err(RemoteCacheError::Cancelled),
    }
}

async fn writer(options: &ExportOptions, targets: &ExportTargets) -> Result<Writer, RemoteCacheError> {
    match &options.target {
        Target::Registry { reference, insecure } => Ok(Writer::Registry {
            client: targets.registry.clone(),
            reference: reference.clone(),
            access: targets.access.clone().with_insecure(*insecure),
        }),
        Target::Client { directory } => {
            let caller = targets.sessions.get(&targets.session, WAIT).await?;
            Ok(Writer::Client(RemoteStore::new(caller, format!("local:{directory}"))))
        }
        Target::Inline => Err(RemoteCacheError::Attribute("an inline cache goes with its image".into())),
    }
}

async fn send(
    options: &ExportOptions,
    writer: &Writer,
    cx: &Cx,
    blobs: &Blobs,
    config: &[u8],
    layers: Vec<Layer>,
) -> Result<BTreeMap<String, String>, RemoteCacheError> {
    let failed =
        |what: &'static str| move |error: RemoteCacheError| RemoteCacheError::Write { what, reason: error.to_string() };
    // A layer that stands on several others is one blob.
    let mut seen = HashSet::new();
    let once = layers.iter().filter(|layer| seen.insert(layer.descriptor.digest));
    let writes = once.map(|layer| async move {
        let size = layer.descriptor.size;
        let writing = Tally::start(cx.reporter(), format!("writing layer {}", layer.descriptor.digest), "", size);
        let written = writer.layer(&LayerSource { cx, blobs, layer, writing: &writing, sent: AtomicU64::new(0) }).await;
        writing.finish();
        written.map_err(failed("layer blob"))
    });
    let writes: Vec<_> = writes.collect();
    futures::stream::iter(writes).buffer_unordered(AT_ONCE).try_collect::<()>().await?;

    let descriptor = Descriptor::new(config::MEDIA_TYPE, Digest::of(config), config.len() as u64);
    let writing = cx.reporter().start(format!("writing config {}", descriptor.digest), "", 0);
    let bytes = Bytes::copy_from_slice(config);
    writer.document(&descriptor, bytes).await.map_err(failed("config blob"))?;
    writing.finish();

    let layers = layers.into_iter().map(|layer| layer.descriptor).collect();
    let (kind, bytes) = manifest(options, descriptor, layers)?;
    let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
    let form = if options.image_manifest { "image manifest" } else { "manifest" };
    let writing = cx.reporter().start(format!("writing cache {form} {}", descriptor.digest), "", 0);
    writer.manifest(&descriptor, bytes.into()).await.map_err(failed("manifest blob"))?;
    writing.finish();
    Ok(BTreeMap::from([(RESPONSE.to_owned(), json(&descriptor)?)]))
}

/// The cache's manifest: one with layers, or an index of blobs.
fn manifest(
    options: &ExportOptions,
    config: Descriptor,
    mut layers: Vec<Descriptor>,
) -> Result<(&'static str, Vec<u8>), RemoteCacheError> {
    if options.image_manifest {
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: Annotations::new(),
        };
        return Ok((media_type::OCI_MANIFEST, json(&manifest)?.into_bytes()));
    }
    let kind = if options.oci { media_type::OCI_INDEX } else { media_type::DOCKER_LIST };
    if !options.oci {
        for layer in &mut layers {
            layer.media_type = media_type::to_docker(&layer.media_type).to_owned();
        }
    }
    layers.push(config);
    let index =
        Index { schema_version: 2, media_type: kind.to_owned(), manifests: layers, annotations: Annotations::new() };
    Ok((kind, json(&index)?.into_bytes()))
}

fn json(value: &impl serde::Serialize) -> Result<String, RemoteCacheError> {
    serde_json::to_string(value).map_err(|error| RemoteCacheError::Attribute(format!("write JSON: {error}")))
}
