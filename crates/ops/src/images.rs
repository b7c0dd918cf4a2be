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
    fn parse(root: Descriptor, manifest: &[u8], config: Bytes, what: &str) -> Result<Self, OpError> {
        let invalid = |part: &str, error: &dyn std::fmt::Display| {
            OpError::Image(format!("failed to parse {part} of {what}: {error}"))
        };
        let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| invalid("manifest", &error))?;
        let parsed: ImageConfig = serde_json::from_slice(&config).map_err(|error| invalid("image config", &error))?;
        Ok(Self { root, manifest, config_bytes: config, config: parsed, stale: false })
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
        let kept_key = format!("{reference}\0{platform}");
        let key = format!("{kept_key}\0{}\0{who}", mode.as_str());
        if let Some(fresh) = self.fresh(&key) {
            return Ok(fresh);
        }
        let (inner, reference, platform) = (self.inner.clone(), reference.clone(), platform.clone());
        let flight = self.inner.flight.run(key.clone(), move |_| async move {
            inner.look_up(&reference, &platform, mode, &access, &kept_key).await.map_err(Arc::new)
        });
        let answer = tokio::select! {
            () = token.cancelled() => return Err(Arc::new(OpError::Cancelled)),
            answer = flight => answer.map_err(|aborted| Arc::new(OpError::Image(aborted.to_string())))??,
        };
        let mut fresh = self.inner.fresh.lock();
        fresh.retain(|_, (at, _)| at.elapsed() < FRESH);
        fresh.insert(key, (Instant::now(), answer.clone()));
        Ok(answer)
    }

    fn fresh(&self, key: &str) -> Option<Arc<ResolvedImage>> {
        let fresh = self.inner.fresh.lock();
        fresh.get(key).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, image)| image.clone())
    }
}

impl Inner {
    async fn look_up(
        &self,
        reference: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        access: &Access,
        key: &str,
    ) -> Result<Arc<ResolvedImage>, OpError> {
        let kept = self.kept(key, reference).await;
        let root = match (self.client.resolve(reference, access).await, kept) {
            (Ok(root), Some(kept)) if kept.root.digest == root.digest => return Ok(Arc::new(kept)),
            (Ok(root), _) => root,
            (Err(error), Some(mut kept)) if mode != ResolveMode::ForcePull && error.is_transient() => {
                tracing::warn!(%reference, %error, "registry cannot be reached, using what is known of the image");
                kept.stale = true;
                return Ok(Arc::new(kept));
            }
            (Err(error), _) => return Err(error.into()),
        };
        let image = self.client.image_at(reference, root, platform, access).await?;
        let config = self.client.blob(&reference.into(), &image.manifest.config, access).bytes(MAX_CONFIG).await?;
        let row = Kept {
            root: image.root.clone(),
            manifest: STANDARD.encode(&image.manifest_bytes),
            config: STANDARD.encode(&config),
        };
        let what = reference.to_string();
        let resolved = ResolvedImage::parse(image.root, &image.manifest_bytes, config, &what)?;
        self.keep(key, &row);
        Ok(Arc::new(resolved))
    }

    async fn kept(&self, key: &str, reference: &Reference) -> Option<ResolvedImage> {
        let (db, key, reference) = (self.db.clone(), key.to_owned(), reference.clone());
        blocking(move || {
            let row: Kept = serde_json::from_slice(&db.get(TABLE, key.as_bytes()).ok()??).ok()?;
            let manifest = STANDARD.decode(row.manifest).ok()?;
            let config = STANDARD.decode(row.config).ok()?;
            // The row was verified when it was written; a damaged one is none.
            let parsed = ResolvedImage::parse(row.root, &manifest, config.into(), &reference.to_string()).ok()?;
            (Digest::of(&parsed.config_bytes) == parsed.manifest.config.digest).then_some(parsed)
        })
        .await
    }

    fn keep(&self, key: &str, row: &Kept) {
        let Ok(value) = serde_json::to_vec(row) else { return };
        let mut batch = Batch::new();
        batch.put(TABLE, key.as_bytes(), value);
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
