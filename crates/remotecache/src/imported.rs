//! An imported cache: look-ups in its records, and its results as refs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castor_content::{Commit, Labels};
use castor_layerfs::Lazy;
use castor_oci::{Descriptor, Digest};
use castor_registry::{Access, Client, Priority, Repository};
use castor_session::Sessions;
use castor_session::auth::SessionCredentials;
use castor_session::content::RemoteStore;
use castor_solver::{BoxError, CacheError, CacheSource, Cx, KeyId, KeyInfo, Link, Record, ResultStore};
use castor_store::{ImageLayer, ImmutableRef, RecordOptions, Store};
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::error::RemoteCacheError;
use crate::records::Records;

/// Annotation with a layer's diff ID.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Annotation with the time at which a layer was made.
pub(crate) const CREATED_AT: &str = "buildkit/createdat";
/// Annotation with what made a layer.
pub(crate) const DESCRIPTION: &str = "buildkit/description";

/// How long blobs on their way into a ref are kept if the daemon forgets them.
const HOLD: Duration = Duration::from_secs(3600);
/// How long a client's session is waited for.
const WAIT: Duration = Duration::from_secs(5);

/// Where the blobs of an imported cache are.
#[derive(Clone)]
pub(crate) enum Blobs {
    /// In a repository.
    Registry { client: Client, repository: Repository, insecure: bool },
    /// In a directory of the client with this session.
    Client { session: String, store: String },
}

/// What imported results are made with.
#[derive(Clone)]
pub struct ImportParts {
    /// Registries.
    pub registry: Client,
    /// Clients.
    pub sessions: Sessions,
    /// Where results go.
    pub store: Store,
    /// Whether layers may be mounted before they are here, for whoever wants the work of a context.
    pub lazy: Arc<dyn Fn(&Cx) -> Lazy + Send + Sync>,
}

impl fmt::Debug for ImportParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ImportParts")
    }
}

/// An imported cache.
pub struct Imported {
    name: String,
    /// What it was imported from, for messages.
    from: String,
    parts: ImportParts,
    blobs: Blobs,
    records: Records,
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported")
            .field("name", &self.name)
            .field("records", &self.records.len())
            .finish_non_exhaustive()
    }
}

impl Imported {
    pub(crate) fn new(name: String, from: String, records: Records, blobs: Blobs, parts: ImportParts) -> Self {
        Self { name, from, parts, blobs, records }
    }

    /// What it has.
    pub(crate) fn records(&self) -> &Records {
        &self.records
    }

    /// The repository that the blobs are in, if they are in one.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match &self.blobs {
            Blobs::Registry { repository, .. } => Some(repository),
            Blobs::Client { .. } => None,
        }
    }

    /// The bytes of a layer, not verified.
    pub(crate) async fn read(
        &self,
        cx: &Cx,
        layer: &Descriptor,
    ) -> Result<BoxStream<'static, std::io::Result<Bytes>>, RemoteCacheError> {
        let failed = |error: &dyn fmt::Display| RemoteCacheError::Read {
            from: self.from.clone(),
            digest: layer.digest,
            reason: error.to_string(),
        };
        match &self.blobs {
            Blobs::Registry { client, repository, insecure } => {
                let group = self.parts.sessions.group(cx.sessions());
                let access = Access::new(Arc::new(SessionCredentials::new(group))).with_insecure(*insecure);
                let body = client.blob(repository, layer, &access).full(Priority::Bulk).await;
                let body = body.map_err(|error| failed(&error))?;
                Ok(body.into_stream().map(|piece| piece.map_err(std::io::Error::other)).boxed())
            }
            Blobs::Client { session, store } => {
                let caller = self.parts.sessions.get(session, WAIT).await.map_err(|error| failed(&error))?;
                let pieces = RemoteStore::new(caller, store.as_str()).read(&layer.digest, 0, 0);
                Ok(pieces.map(|piece| piece.map_err(std::io::Error::other)).boxed())
            }
        }
    }

    /// Whether layers have to be here before anything is made of them: their place cannot be asked later, when the
    /// client is gone, or is not known to be asked in the way that the import says.
    fn at_once(&self) -> bool {
        !matches!(self.blobs, Blobs::Registry { insecure: false, .. })
    }

    /// Brings a layer here.
    async fn fetch(&self, cx: &Cx, layer: &Descriptor, lease: &str) -> Result<(), RemoteCacheError> {
        let content = self.parts.store.content();
        let commit = Commit { lease: Some(lease.to_owned()), ..Commit::default() };
        if content.hold(&layer.digest, &commit).await?.is_some() {
            return Ok(());
        }
        let mut task =
            cx.reporter().start(layer.digest.to_string(), "importing", i64::try_from(layer.size).unwrap_or(i64::MAX));
        let name = format!("import-{}-{:016x}", layer.digest, rand::random::<u64>());
        let ingest = content.ingest(&name, layer).await?;
        let fill = async {
            let mut pieces = self.read(cx, layer).await?;
            let mut offset = 0;
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| RemoteCacheError::Read {
                    from: self.from.clone(),
                    digest: layer.digest,
                    reason: error.to_string(),
                })?;
                let length = piece.len() as u64;
                ingest.write(offset, piece).await?;
                offset += length;
                task.update(i64::try_from(offset).unwrap_or(i64::MAX));
            }
            ingest.commit(commit).await?;
            Ok(())
        };
        let filled = tokio::select! {
            filled = fill => filled,
            () = cx.token().cancelled() => Err(RemoteCacheError::Cancelled),
        };
        if filled.is_err()
            && let Err(error) = ingest.discard().await
        {
            tracing::debug!(%error, digest = %layer.digest, "drop an import that failed");
        }
        filled
    }

    /// The result with these layers.
    async fn result(&self, cx: &Cx, chain: &[&Descriptor]) -> Result<ImmutableRef, RemoteCacheError> {
        let want = match (self.parts.lazy)(cx) {
            // Who asks for lazy layers means those of images; a step's result that is not lazy is better than the step.
            Lazy::Require => Lazy::Prefer,
            want => want,
        };
        let origins: Vec<String> = self.repository().map(Repository::to_string).into_iter().collect();
        let layers = chain.iter().map(|descriptor| {
            let annotation = |key: &str| descriptor.annotations.get(key);
            let mut plain = (*descriptor).clone();
            for internal in [UNCOMPRESSED, CREATED_AT, DESCRIPTION] {
                plain.annotations.remove(internal);
            }
            ImageLayer {
                descriptor: plain,
                origins: if self.at_once() { Vec::new() } else { origins.clone() },
                image: self.from.clone(),
                diff_id: annotation(UNCOMPRESSED).and_then(|text| text.parse().ok()),
                want,
                created_by: annotation(DESCRIPTION).cloned().unwrap_or_default(),
                created: annotation(CREATED_AT).and_then(|text| text.parse().ok()),
            }
        });
        let layers: Vec<ImageLayer> = layers.collect();
        let described = chain.last().map(|top| format!("imported {}", top.digest)).unwrap_or_default();
        let options = RecordOptions::described(described);
        if !self.at_once() {
            return Ok(self.parts.store.from_image(layers, options).await?);
        }
        let leases = self.parts.store.leases();
        let lease = format!("import-{:016x}", rand::random::<u64>());
        leases.create_lease(&lease, Labels::new(), Some(HOLD)).await?;
        let made = async {
            let fetches = chain.iter().map(|layer| self.fetch(cx, layer, &lease));
            futures::future::try_join_all(fetches).await?;
            Ok(self.parts.store.from_image(layers, options).await?)
        };
        let made = made.await;
        // From here on the records hold the blobs.
        leases.delete_lease(&lease).await?;
        made
    }
}

#[async_trait]
impl CacheSource for Imported {
    fn name(&self) -> &str {
        &self.name
    }

    async fn targets(&self, queries: &[(KeyId, Link)]) -> Result<Vec<Vec<KeyId>>, CacheError> {
        let follow = |(from, link): &(KeyId, Link)| {
            let to = KeyInfo { digest: link.digest, output: link.output }.record_digest();
            self.records.follow(from, to, link.input, link.selector)
        };
        Ok(queries.iter().map(follow).collect())
    }

    async fn records(&self, keys: &[KeyId]) -> Result<Vec<Vec<Record>>, CacheError> {
        Ok(keys.iter().map(|key| self.records.results(key).to_vec()).collect())
    }

    /// A record tells its operation's digest and output in one, so it is not known which they are.
    async fn info(&self, _: &KeyId) -> Result<Option<KeyInfo>, CacheError> {
        Ok(None)
    }

    async fn backlinks(&self, _: &KeyId) -> Result<Vec<(KeyId, Link)>, CacheError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl ResultStore<ImmutableRef> for Imported {
    /// An import is never written to.
    async fn save(&self, _: &ImmutableRef) -> Result<Option<String>, BoxError> {
        Ok(None)
    }

    async fn load(&self, cx: &Cx, id: &str) -> Result<Option<ImmutableRef>, BoxError> {
        match self.records.layers(id) {
            Some(chain) => Ok(Some(self.result(cx, &chain).await?)),
            None => Ok(None),
        }
    }
}

/// The layers that a manifest describes, by digest.
pub(crate) fn described(layers: impl IntoIterator<Item = Descriptor>) -> HashMap<Digest, Descriptor> {
    layers.into_iter().map(|layer| (layer.digest, layer)).collect()
}

/// What an image's history says of its layers, as annotations.
pub(crate) fn annotate(layer: &mut Descriptor, diff_id: Digest, history: Option<&castor_oci::History>) {
    let mut add = |key: &str, value: &str| layer.annotations.insert(key.to_owned(), value.to_owned());
    add(UNCOMPRESSED, &diff_id.to_string());
    if let Some(history) = history {
        if let Some(created) = &history.created {
            add(CREATED_AT, created);
        }
        if !history.created_by.is_empty() {
            add(DESCRIPTION, &history.created_by);
        }
    }
}

/// Attributes as they came.
pub(crate) type Attrs = BTreeMap<String, String>;
