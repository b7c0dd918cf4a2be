//! Bringing in what is known of a cache: manifest and records, no layers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use castor_oci::{Descriptor, Digest, History, Index, Manifest, Reference, media_type};
use castor_registry::{Access, Client, Repository};
use castor_session::SessionError;
use castor_session::content::RemoteStore;
use castor_solver::Cx;
use futures::TryStreamExt as _;
use serde::Deserialize;

use crate::config::{self, CacheConfig, CacheLayer};
use crate::error::RemoteCacheError;
use crate::imported::{Attrs, Blobs, ImportParts, Imported, annotate, described};
use crate::options::Source;
use crate::records::Records;

/// Manifests and configs are not larger.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Images of one index that may carry records.
const MAX_IMAGES: usize = 64;
/// Indexes within indexes are not nested deeper.
const MAX_NESTING: usize = 4;
/// How long a client's session is waited for.
const WAIT: Duration = Duration::from_secs(5);
/// Annotation of manifests that are about another one, not images.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Where documents are read from.
enum Reader {
    Registry { client: Client, reference: Reference, access: Access },
    Client(RemoteStore),
}

impl Reader {
    /// A manifest, verified.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, RemoteCacheError> {
        match self {
            Self::Registry { client, reference, access } => Ok(client.manifest(reference, descriptor, access).await?),
            Self::Client(_) => self.blob(descriptor).await,
        }
    }

    /// A small blob, verified.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, RemoteCacheError> {
        let Descriptor { digest, size, .. } = *descriptor;
        if size > MAX_DOCUMENT {
            return Err(RemoteCacheError::TooLarge { digest, size, limit: MAX_DOCUMENT });
        }
        match self {
            Self::Registry { client, reference, access } => {
                Ok(client.blob(&Repository::from(reference), descriptor, access).bytes(MAX_DOCUMENT).await?)
            }
            Self::Client(store) => {
                let mut bytes = BytesMut::new();
                let mut pieces = store.read(&digest, 0, 0);
                while let Some(piece) = pieces.try_next().await? {
                    if (bytes.len() + piece.len()) as u64 > MAX_DOCUMENT {
                        let size = (bytes.len() + piece.len()) as u64;
                        return Err(RemoteCacheError::TooLarge { digest, size, limit: MAX_DOCUMENT });
                    }
                    bytes.extend_from_slice(&piece);
                }
                let found = Digest::of(&bytes);
                if found != digest {
                    let reason = format!("its digest is {found}");
                    return Err(RemoteCacheError::Read { from: "the client".into(), digest, reason });
                }
                Ok(bytes.freeze())
            }
        }
    }
}

/// An image's config, as far as records need it.
#[derive(Deserialize)]
struct InlineConfig {
    #[serde(default)]
    rootfs: castor_oci::RootFs,
    #[serde(default)]
    history: Option<Vec<History>>,
    #[serde(rename = "moby.buildkit.cache.v0", default)]
    cache: Option<String>,
}

/// An import, as a frontend asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    kind: String,
    attrs: Attrs,
    source: Option<Source>,
}

impl ImportOptions {
    /// Reads what an import is asked for with. Only what castor does not do is refused here: an import that cannot be
    /// had fails later, and the build goes on without it.
    pub fn parse(kind: &str, attrs: &Attrs) -> Result<Self, RemoteCacheError> {
        let source = match Source::parse(kind, attrs) {
            Err(error @ RemoteCacheError::Unsupported { .. }) => return Err(error),
            source => source.ok(),
        };
        Ok(Self { kind: kind.to_owned(), attrs: attrs.clone(), source })
    }

    /// Names it: imports of equal names are equal.
    pub fn id(&self) -> String {
        match (&self.source, self.attrs.get("ref")) {
            (Some(Source::Registry { .. }), Some(reference)) => reference.clone(),
            _ => {
                let list: Vec<String> = self.attrs.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("{}:{}", self.kind, &Digest::of(list.join(",")).hex()[..16])
            }
        }
    }

    /// What its vertex is called.
    pub fn name(&self) -> String {
        format!("importing cache manifest from {}", self.id())
    }
}

/// Imports the caches of `options`: one, or one for each image that carries records. Reports to `cx`.
pub async fn import(
    parts: &ImportParts,
    options: &ImportOptions,
    cx: &Cx,
    access: Access,
    session: &str,
) -> Result<Vec<Arc<Imported>>, RemoteCacheError> {
    let source = match &options.source {
        Some(source) => source.clone(),
        None => Source::parse(&options.kind, &options.attrs)?,
    };
    let work = resolve(parts, source, cx, access, session);
    tokio::select! {
        imported = work => imported,
        () = cx.token().cancelled() => Err(RemoteCacheError::Cancelled),
    }
}

fn unconfigured(kind: &'static str, error: RemoteCacheError) -> RemoteCacheError {
    RemoteCacheError::Configure { kind, source: Box::new(error) }
}

async fn resolve(
    parts: &ImportParts,
    source: Source,
    cx: &Cx,
    access: Access,
    session: &str,
) -> Result<Vec<Arc<Imported>>, RemoteCacheError> {
    let (reader, root, blobs, from, place) = match source {
        Source::Registry { reference, insecure } => {
            let (client, access) = (parts.registry.clone(), access.with_insecure(insecure));
            let root =
                client.resolve(&reference, &access).await.map_err(|error| unconfigured("registry", error.into()))?;
            let repository = Repository::from(&reference);
            let from = reference.to_string();
            let place = format!("registry {repository} {insecure}");
            let blobs = Blobs::Registry { client: client.clone(), repository, insecure };
            (Reader::Registry { client, reference, access }, root, blobs, from, place)
        }
        Source::Client { directory, digest } => {
            let configured = |error: SessionError| unconfigured("local", error.into());
            let caller = parts.sessions.get(session, WAIT).await.map_err(configured)?;
            let name = format!("local:{directory}");
            let store = RemoteStore::new(caller, name.as_str());
            let missing = || RemoteCacheError::Read {
                from: directory.clone(),
                digest,
                reason: "the client does not have it".into(),
            };
            let info = store.info(&digest).await.map_err(configured)?;
            let info = info.ok_or_else(|| unconfigured("local", missing()))?;
            let root = Descriptor::new("", digest, u64::try_from(info.size).unwrap_or(u64::MAX));
            let place = format!("local {session} {directory}");
            let blobs = Blobs::Client { session: session.to_owned(), store: name };
            (Reader::Client(store), root, blobs, directory, place)
        }
    };
    // Equal names mean equal content, and equal ways to it.
    let name = |digest: Digest| format!("import {place} {digest}");
    let invalid = |reason: String| RemoteCacheError::Manifest { from: from.clone(), reason };
    let bytes = reader.manifest(&root).await?;
    let document = Document::parse(&bytes).map_err(invalid)?;
    cx.reporter().start(format!("inferred cache manifest type: {}", document.media_type()), "", 0).finish();
    let (config, layers) = match &document {
        Document::Index(index) => {
            let (configs, layers): (Vec<_>, Vec<_>) =
                index.manifests.iter().cloned().partition(|one| one.media_type == config::MEDIA_TYPE);
            (configs.into_iter().next_back(), layers)
        }
        Document::Manifest(manifest) => {
            let config = Some(&manifest.config).filter(|config| config.media_type == config::MEDIA_TYPE);
            (config.cloned(), manifest.layers.clone())
        }
    };
    if let Some(config) = config {
        let config = CacheConfig::parse(&reader.blob(&config).await?)?;
        let records = Records::new(&config, &described(layers))?;
        return Ok(vec![Arc::new(Imported::new(name(root.digest), from, records, blobs, parts.clone()))]);
    }
    let mut imported = Vec::new();
    for manifest in images(&reader, document, root.digest).await.map_err(|error| match error {
        Images::Failed(error) => error,
        Images::Invalid(reason) => invalid(reason),
    })? {
        let Some((config, layers)) = inline(&reader, &manifest.1).await? else { continue };
        let (from, blobs) = (from.clone(), blobs.clone());
        let records = Records::new(&config, &layers)?;
        imported.push(Arc::new(Imported::new(name(manifest.0), from, records, blobs, parts.clone())));
    }
    Ok(imported)
}

/// What a manifest says it is, or must be.
enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

impl Document {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "mediaType", default)]
            media_type: String,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let failed = |error: serde_json::Error| error.to_string();
        let shape: Shape = serde_json::from_slice(bytes).map_err(failed)?;
        if media_type::is_index(&shape.media_type) || shape.media_type.is_empty() && shape.manifests.is_some() {
            return Ok(Self::Index(serde_json::from_slice(bytes).map_err(failed)?));
        }
        if !shape.media_type.is_empty() && !media_type::is_manifest(&shape.media_type) {
            return Err(format!("media type {:?}", shape.media_type));
        }
        Ok(Self::Manifest(Box::new(serde_json::from_slice(bytes).map_err(failed)?)))
    }

    fn media_type(&self) -> &str {
        let (said, default) = match self {
            Self::Index(index) => (&index.media_type, media_type::OCI_INDEX),
            Self::Manifest(manifest) => (&manifest.media_type, media_type::OCI_MANIFEST),
        };
        if said.is_empty() { default } else { said }
    }
}

enum Images {
    Failed(RemoteCacheError),
    Invalid(String),
}

/// The manifests of all images below `document`.
async fn images(reader: &Reader, document: Document, digest: Digest) -> Result<Vec<(Digest, Manifest)>, Images> {
    let mut found = Vec::new();
    let mut level = vec![(digest, document)];
    for _ in 0..MAX_NESTING {
        let mut below = Vec::new();
        for (digest, document) in level {
            match document {
                Document::Manifest(manifest) => found.push((digest, *manifest)),
                Document::Index(index) => below.extend(index.manifests),
            }
        }
        below.retain(|one| !one.annotations.contains_key(REFERENCE_TYPE));
        below.dedup_by_key(|one| one.digest);
        if found.len() + below.len() > MAX_IMAGES {
            return Err(Images::Invalid(format!("more than {MAX_IMAGES} images")));
        }
        if below.is_empty() {
            return Ok(found);
        }
        level = Vec::new();
        for one in below {
            let bytes = reader.manifest(&one).await.map_err(Images::Failed)?;
            level.push((one.digest, Document::parse(&bytes).map_err(Images::Invalid)?));
        }
    }
    Err(Images::Invalid(format!("indexes are nested deeper than {MAX_NESTING}")))
}

/// The records that an image carries, and its layers; `None` if it carries none.
async fn inline(
    reader: &Reader,
    manifest: &Manifest,
) -> Result<Option<(CacheConfig, HashMap<Digest, Descriptor>)>, RemoteCacheError> {
    if manifest.layers.is_empty() {
        return Ok(None);
    }
    let bytes = reader.blob(&manifest.config).await?;
    let invalid = |reason: String| RemoteCacheError::Manifest { from: manifest.config.digest.to_string(), reason };
    let config: InlineConfig = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    let Some(records) = config.cache else { return Ok(None) };
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        tracing::warn!(config = %manifest.config.digest, "image with cache records has not one diff ID for each layer");
        return Ok(None);
    }
    let records = STANDARD.decode(records).map_err(|error| invalid(format!("moby.buildkit.cache.v0: {error}")))?;
    let records = serde_json::from_slice(&records).map_err(|error| invalid(error.to_string()))?;
    let history = config.history.unwrap_or_default();
    let mut history = history.iter().filter(|entry| !entry.empty_layer);
    let mut layers = manifest.layers.clone();
    for (layer, diff_id) in layers.iter_mut().zip(&config.rootfs.diff_ids) {
        annotate(layer, *diff_id, history.next());
    }
    let stack = layers.iter().zip(-1..).map(|(layer, parent)| CacheLayer { blob: layer.digest, parent });
    let config = CacheConfig { layers: stack.collect(), records };
    Ok(Some((config, described(layers))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> Attrs {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_registry_import_is_named_by_its_reference() {
        let options = ImportOptions::parse("registry", &attrs(&[("ref", "example.com/a:1")])).unwrap();
        assert_eq!(options.name(), "importing cache manifest from example.com/a:1");
        let one = ImportOptions::parse("local", &attrs(&[("src", "a"), ("digest", "x")])).unwrap();
        let two = ImportOptions::parse("local", &attrs(&[("src", "b"), ("digest", "x")])).unwrap();
        assert!(one.id().starts_with("local:") && one.id() != two.id());
        assert!(ImportOptions::parse("gha", &attrs(&[])).is_err());
        assert!(ImportOptions::parse("unheard", &attrs(&[])).is_ok());
    }

    #[test]
    fn documents_are_known_by_their_form() {
        let index = Document::parse(br#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        assert_eq!(index.media_type(), media_type::OCI_INDEX);
        let digest = Digest::of("x");
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"a","digest":"{digest}","size":1}},"layers":null}}"#);
        assert_eq!(Document::parse(manifest.as_bytes()).unwrap().media_type(), media_type::OCI_MANIFEST);
        assert!(Document::parse(b"{}").is_err() && Document::parse(br#"{"mediaType":"text/plain"}"#).is_err());
    }
}
