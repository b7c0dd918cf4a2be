//! Resolving images: what a reference names, without fetching any layer.
//!
//! Manifests and configurations are kept in the database. A registry is asked each time what a reference means, which
//! also proves that the asker may have it; what is known already is not read again. Where the registry cannot be reached,
//! the reference means what it meant when it was last asked for, unless the client insists on an answer (`pull`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use castor_llb::ResolveMode;
use castor_metadb::{Batch, KeyValue};
use castor_oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, Reference};
use castor_registry::{Access, Client};
use castor_task::{CancellationToken, Flight, Scope, blocking};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::OpError;

/// Configurations are not larger.
const MAX_CONFIG: u64 = 8 << 20;
/// How long an answer about a tag is good for: the look-ups of one build agree, and those of the next one ask again.
const FRESH: Duration = Duration::from_secs(5);
const TABLE: &str = "ops.images";

/// An image of one platform, as resolved.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// What the reference names: an index or a manifest.
    pub root: Descriptor,
    /// The platform's manifest.
    pub manifest: Manifest,
    manifest_bytes: Bytes,
    /// The image configuration's bytes.
    pub config_bytes: Bytes,
    /// The image configuration.
    pub config: ImageConfig,
    /// The registry could not be reached, and this is what the reference meant when it was last asked.
    pub stale: bool,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    root: Descriptor,
    manifest: String,
    config: String,
}

impl ResolvedImage {
    /// Reads the documents of an image called `what`.
    pub(crate) fn parse(
        root: Descriptor,
        manifest_bytes: Bytes,
        config_bytes: Bytes,
        what: &str,
    ) -> Result<Self, OpError> {
        let invalid = |part: &str, error: &dyn std::fmt::Display| {
            OpError::Image(format!("failed to parse {part} of {what}: {error}"))
        };
        let manifest = serde_json::from_slice(&manifest_bytes).map_err(|error| invalid("manifest", &error))?;
        let config = serde_json::from_slice(&config_bytes).map_err(|error| invalid("image config", &error))?;
        Ok(Self { root, manifest, manifest_bytes, config_bytes, config, stale: false })
    }
}

type Answer = Result<Arc<ResolvedImage>, Arc<OpError>>;

/// Resolves images and remembers what it found.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    db: Arc<dyn KeyValue>,
    flight: Flight<String, Answer>,
    fresh: Mutex<HashMap<String, (Instant, Arc<ResolvedImage>)>>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Images")
    }
}

impl Images {
    /// Resolves by `client`; keeps answers in `db`. Look-ups run in `scope`.
    pub fn new(client: Client, db: Arc<dyn KeyValue>, scope: &Scope) -> Self {
        Self { inner: Arc::new(Inner { client, db, flight: Flight::new(scope), fresh: Mutex::default() }) }
    }

    /// The image that `reference` names for `platform`. `who` tells apart those who may not share answers: the
    /// sessions that `access` is of.
    pub async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        access: Access,
        who: &str,
        token: &CancellationToken,
    ) -> Result<Arc<ResolvedImage>, Arc<OpError>> {
        let key = |meant: &str| format!("{meant}\0{}\0{who}", whole(platform));
        let asked = key(&meaning(reference));
        if let Some(fresh) = self.fresh(&asked, mode) {
            return Ok(fresh);
        }
        let (inner, reference, platform) = (self.inner.clone(), reference.clone(), platform.clone());
        let repository = reference.repository();
        let flight = self.inner.flight.run(format!("{asked}\0{}", mode.as_str()), move |_| async move {
            inner.look_up(&reference, &platform, mode, &access).await.map_err(Arc::new)
        });
        let answer = tokio::select! {
            () = token.cancelled() => return Err(Arc::new(OpError::Cancelled)),
            answer = flight => answer.map_err(|aborted| Arc::new(OpError::Image(aborted.to_string())))??,
        };
        // The next question of a build is about the digest that the tag was found to mean.
        let found = key(&by_digest(&repository, answer.root.digest));
        let mut fresh = self.inner.fresh.lock();
        fresh.retain(|_, (at, _)| at.elapsed() < FRESH);
        fresh.insert(asked, (Instant::now(), answer.clone()));
        fresh.insert(found, (Instant::now(), answer.clone()));
        Ok(answer)
    }

    fn fresh(&self, key: &str, mode: ResolveMode) -> Option<Arc<ResolvedImage>> {
        let fresh = self.inner.fresh.lock();
        let (at, image) = fresh.get(key)?;
        (at.elapsed() < FRESH && !(image.stale && mode == ResolveMode::ForcePull)).then(|| image.clone())
    }
}

/// What a reference means: with a digest, its tag says nothing.
fn meaning(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => by_digest(&reference.repository(), digest),
        None => reference.to_string(),
    }
}

fn by_digest(repository: &str, digest: Digest) -> String {
    format!("{repository}@{digest}")
}

impl Inner {
    async fn look_up(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        access: &Access,
    ) -> Result<Arc<ResolvedImage>, OpError> {
        let repository = reference.repository();
        let key = |meant: &str| format!("{meant}\0{}", whole(platform));
        let root = match self.client.resolve(reference, access).await {
            Ok(root) => root,
            Err(error) if mode != ResolveMode::ForcePull && error.is_transient() => {
                let Some(known) = self.kept(key(&meaning(reference))).await else { return Err(error.into()) };
                tracing::warn!(%reference, %error, "registry cannot be reached, using what is known of the image");
                return Ok(Arc::new(ResolvedImage { stale: true, ..known }));
            }
            Err(error) => return Err(error.into()),
        };
        let pinned = key(&by_digest(&repository, root.digest));
        if let Some(known) = self.kept(pinned.clone()).await {
            self.keep([key(&meaning(reference))], &known);
            return Ok(Arc::new(known));
        }
        let image = self.client.image_at(reference, root, platform, access).await?;
        let config = self.client.blob(&reference.into(), &image.manifest.config, access).bytes(MAX_CONFIG).await?;
        let what = reference.to_string();
        let resolved = ResolvedImage::parse(image.root, image.manifest_bytes, config, &what)?;
        self.keep([key(&meaning(reference)), pinned], &resolved);
        Ok(Arc::new(resolved))
    }

    async fn kept(&self, key: String) -> Option<ResolvedImage> {
        let db = self.db.clone();
        blocking(move || {
            let row: Kept = serde_json::from_slice(&db.get(TABLE, key.as_bytes()).ok()??).ok()?;
            let manifest = STANDARD.decode(row.manifest).ok()?;
            let config = STANDARD.decode(row.config).ok()?;
            // The row was verified when it was written; a damaged one is none.
            let parsed = ResolvedImage::parse(row.root, manifest.into(), config.into(), &key).ok()?;
            (Digest::of(&parsed.config_bytes) == parsed.manifest.config.digest).then_some(parsed)
        })
        .await
    }

    fn keep<const N: usize>(&self, keys: [String; N], image: &ResolvedImage) {
        let row = Kept {
            root: image.root.clone(),
            manifest: STANDARD.encode(&image.manifest_bytes),
            config: STANDARD.encode(&image.config_bytes),
        };
        let Ok(value) = serde_json::to_vec(&row) else { return };
        let mut batch = Batch::new();
        for key in keys {
            batch.put(TABLE, key.as_bytes(), value.clone());
        }
        self.db.write_soon(batch);
    }
}

/// Where each layer comes from, by the image's history: what made it and when.
pub(crate) fn layer_history(config: &ImageConfig) -> Vec<(String, Option<castor_progress::Timestamp>)> {
    config
        .history
        .iter()
        .filter(|entry| !entry.empty_layer)
        .map(|entry| {
            let created = entry.created.as_deref().and_then(|text| text.parse().ok());
            (entry.created_by.clone(), created)
        })
        .collect()
}

/// A platform with the version of its system, by which images of an index may differ.
fn whole(platform: &Platform) -> String {
    match (platform.os_version.as_str(), platform.os_features.as_slice()) {
        ("", []) => platform.to_string(),
        (version, features) => format!("{platform}({version}+{})", features.join("+")),
    }
}
