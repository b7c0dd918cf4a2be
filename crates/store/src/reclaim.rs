//! What goes before any record does: bytes of layers that a registry has.
//!
//! The compressed bytes first, for a layer can be mounted without them; then the data of layers that nobody uses. Their
//! records stay, and so does all that was built on them: who wants a layer next fetches of it what they need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use castor_content::{LABEL_GC_REF, Resource};
use castor_layerfs::{LayerError, LayerId};
use castor_oci::Digest;
use castor_progress::Timestamp;

use crate::StoreError;
use crate::prune::Run;
use crate::record::Body;
use crate::rows::Rec;
use crate::store::Inner;
use crate::usage::{in_use, info, last_uses};

/// How long an unmount that is under way is waited for.
const UNMOUNTING: Duration = Duration::from_secs(10);

/// A layer that nobody uses and that can be had again.
struct Idle {
    layer: LayerId,
    records: Vec<Arc<Rec>>,
    last_used: Option<Timestamp>,
}

impl Idle {
    /// Whether somebody has come meanwhile.
    fn is_wanted(&self) -> bool {
        self.records.iter().any(|rec| rec.handles() > 0)
    }
}

/// Whether a registry has the layer of the record. What only a client has is there as long as the client is.
fn can_be_had_again(rec: &Rec) -> bool {
    match &rec.row.lock().body {
        Body::Image { layer, .. } => layer.origins.iter().any(|origin| !origin.contains("://")),
        _ => false,
    }
}

impl Run<'_> {
    /// Drops such bytes until no more than `keep` are left.
    pub(crate) async fn reclaim(&mut self, keep: u64) -> Result<(), StoreError> {
        if self.used <= keep {
            return Ok(());
        }
        let idle = self.idle_layers();
        if idle.is_empty() {
            return Ok(());
        }
        self.unmounted().await;
        let engine = self.inner.config.engine.clone();
        let wanted = Wanted::of(self.inner).await?;
        let mut touched = HashSet::new();
        for layer in &idle {
            if self.used <= keep {
                break;
            }
            if layer.is_wanted() {
                continue;
            }
            let blob = layer.layer.blob;
            let freed = engine.drop_compressed(blob, !wanted.elsewhere(blob, layer)).await;
            self.account(layer, freed, "compressed bytes of", &mut touched);
        }
        for layer in &idle {
            if self.used <= keep {
                break;
            }
            if layer.is_wanted() {
                continue;
            }
            let freed = engine.drop_data(layer.layer).await;
            self.account(layer, freed, "data of", &mut touched);
        }
        self.pruned.layers += touched.len();
        Ok(())
    }

    /// Waits for what is being unmounted, which goes on after the last user has gone. Not for ever: what stays mounted
    /// gives nothing.
    async fn unmounted(&self) {
        let records = self.inner.records.all();
        let used = in_use(&records);
        let unmounted = async {
            for rec in records.iter().filter(|rec| !used.contains(&rec.id)) {
                rec.mountpoint.unmounted().await;
            }
        };
        let _ = tokio::time::timeout(UNMOUNTING, unmounted).await;
    }

    /// Takes note of what a layer gave; one that cannot give anything keeps no other from it.
    fn account(
        &mut self,
        layer: &Idle,
        freed: Result<Option<u64>, LayerError>,
        what: &str,
        touched: &mut HashSet<LayerId>,
    ) {
        let bytes = match freed {
            Ok(Some(bytes @ 1..)) => bytes,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(layer = %layer.layer, %error, "drop {what} a layer that nobody uses");
                return;
            }
        };
        self.used = self.used.saturating_sub(bytes);
        self.pruned.bytes += bytes;
        touched.insert(layer.layer);
        tracing::debug!(layer = %layer.layer, bytes, "dropped {what} a layer that nobody uses");
        if let Some(rec) = layer.records.first() {
            let mut told = info(rec, false, bytes);
            told.description = format!("{what} {}", told.description);
            (self.report)(told);
        }
    }

    /// The layers that may give something, the one that was not used for longest first.
    fn idle_layers(&self) -> Vec<Idle> {
        let records = self.inner.records.all();
        let (used, last) = (in_use(&records), last_uses(&records));
        let mut layers: BTreeMap<LayerId, Vec<Arc<Rec>>> = BTreeMap::new();
        for rec in records {
            let layer = rec.row.lock().layer;
            if let Some(layer) = layer {
                layers.entry(layer).or_default().push(rec);
            }
        }
        let gives = |rec: &Arc<Rec>| {
            !used.contains(&rec.id) && can_be_had_again(rec) && self.is_meant(rec, last.get(&rec.id).copied())
        };
        let mut idle: Vec<Idle> = layers
            .into_iter()
            .filter(|(_, records)| records.iter().all(gives))
            .map(|(layer, records)| {
                let last_used = records.iter().filter_map(|rec| last.get(&rec.id).copied()).max();
                Idle { layer, records, last_used }
            })
            .collect();
        idle.sort_by_key(|layer| layer.last_used);
        idle
    }
}

/// Who wants blobs.
struct Wanted {
    leases: HashMap<Digest, Vec<String>>,
    /// Blobs that other blobs refer to.
    referred: HashSet<Digest>,
}

impl Wanted {
    async fn of(inner: &Inner) -> Result<Self, StoreError> {
        let content = |error: castor_content::Error| StoreError::Content(error.to_string());
        let mut leases: HashMap<Digest, Vec<String>> = HashMap::new();
        for (lease, resource) in inner.config.leases.held().await.map_err(content)? {
            if let Resource::Blob(digest) = resource {
                leases.entry(digest).or_default().push(lease);
            }
        }
        let infos = inner.config.content.walk().await.map_err(content)?;
        let labels = infos.iter().flat_map(|info| &info.labels);
        let referred =
            labels.filter(|(key, _)| key.starts_with(LABEL_GC_REF)).filter_map(|(_, value)| value.parse().ok());
        Ok(Self { leases, referred: referred.collect() })
    }

    /// Whether somebody beside the records of an idle layer wants the blob.
    fn elsewhere(&self, blob: Digest, layer: &Idle) -> bool {
        let own = |lease: &String| layer.records.iter().any(|rec| Inner::lease(&rec.id) == *lease);
        self.referred.contains(&blob) || self.leases.get(&blob).is_some_and(|leases| !leases.iter().all(own))
    }
}
