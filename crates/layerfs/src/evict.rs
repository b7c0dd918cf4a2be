//! Giving space back: what of a layer can be had again goes, and the layer stays known.
//!
//! Only layers that nobody uses give something, and no reader can see bytes that are not there: `presence` says durably
//! that nothing is here *before* the data goes, and `data` is replaced by an empty file rather than emptied. Whoever still
//! had the old one would read its old bytes. A crash in between leaves bytes that nobody counts on.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Weak};

use castor_oci::Digest;

use crate::complete::ingest_name;
use crate::engine::{GRACE, LayerEngine, Live, Shared};
use crate::error::LayerError;
use crate::layer::Core;
use crate::origin::Origin;
use crate::presence::{self, Presence};
use crate::source::LayerId;
use crate::tree::Tree;
use crate::unpack::with_sources;

impl LayerEngine {
    /// Bytes on disk that are kept of a blob that is not whole yet.
    pub async fn partial(&self, blob: Digest) -> Result<u64, LayerError> {
        let space = self.shared.content.ingest_space(&ingest_name(blob)).await;
        space.map_err(|error| LayerError::State(with_sources(&error)))
    }

    /// Drops the compressed bytes that are kept of a blob; the blob itself too with `whole`, which is for who knows that
    /// nobody else wants it. Returns the bytes freed, `None` if a layer of the blob is in use.
    pub async fn drop_compressed(&self, blob: Digest, whole: bool) -> Result<Option<u64>, LayerError> {
        let shared = &self.shared;
        let gate = shared.gate(blob);
        let _one = gate.lock().await;
        if !shared.retire(blob).await {
            return Ok(None);
        }
        let state = |error: castor_content::Error| LayerError::State(with_sources(&error));
        let mut freed = shared.content.discard(&ingest_name(blob)).await.map_err(state)?;
        if whole && let Some(info) = shared.content.info(&blob).await.map_err(state)? {
            match shared.content.delete(&blob).await {
                Ok(()) => freed += info.size,
                // Somebody was faster.
                Err(castor_content::Error::NotFound(_)) => {}
                Err(error) => return Err(state(error)),
            }
        }
        Ok(Some(freed))
    }

    /// Drops the data of a layer. Where its chunks can be fetched one by one, its tree stays and it is lazy again; else the
    /// object goes, to be made anew by whoever wants it. Returns the bytes freed, `None` if the layer is in use.
    pub async fn drop_data(&self, id: LayerId) -> Result<Option<u64>, LayerError> {
        let shared = &self.shared;
        let gate = shared.gate(id.blob);
        let _one = gate.lock().await;
        if !shared.retire(id.blob).await {
            return Ok(None);
        }
        let before = self.usage(id)?;
        let dir = shared.layer_dir(id);
        let emptied = castor_task::blocking(move || empty(&dir)).await.map_err(|error| {
            let dir = shared.layer_dir(id);
            LayerError::io("empty", dir, error)
        })?;
        if !emptied {
            self.delete_object(id).await?;
        }
        Ok(Some(before.saturating_sub(self.usage(id)?)))
    }
}

/// Makes the object in `dir` one of which nothing is here. False if it has no chunks that could be fetched and verified one
/// by one. Blocks.
fn empty(dir: &Path) -> io::Result<bool> {
    if !dir.exists() {
        return Ok(true);
    }
    // What is damaged goes as a whole.
    let (Ok(origin), Ok(tree)) = (Origin::read(&dir.join("origin")), Tree::open(&dir.join("tree"))) else {
        return Ok(false);
    };
    if tree.codec().is_none() || origin.unverified {
        return Ok(tree.data_size() == 0);
    }
    let data = dir.join("data");
    if std::fs::metadata(&data).is_ok_and(|meta| meta.blocks() == 0) {
        return Ok(true);
    }
    let chunks = u64::from(tree.chunks());
    presence::write(&dir.join("presence"), chunks, false, &Presence::empty(chunks).snapshot())?;
    File::open(dir)?.sync_all()?;
    castor_task::crash_point("presence cleared");
    let new = dir.join("data.new");
    let file = File::create(&new)?;
    file.set_len(tree.data_size())?;
    file.sync_all()?;
    std::fs::rename(&new, &data)?;
    File::open(dir)?.sync_all()?;
    Ok(true)
}

impl Shared {
    /// Closes the layers of a blob, whose gate the caller has, if nobody uses them: afterwards nothing of this process
    /// touches their files, and what they were fetching has ended.
    pub(crate) async fn retire(&self, blob: Digest) -> bool {
        let closed = {
            let mut live = self.live.lock();
            let ids: Vec<LayerId> = live.keys().filter(|id| id.blob == blob).copied().collect();
            let used = ids.iter().filter_map(|id| live.get(id)).any(Live::is_used);
            if used {
                return false;
            }
            ids.iter().filter_map(|id| live.remove(id)).collect::<Vec<_>>()
        };
        // Dropped without the lock: that ends their fetches, and may take a while.
        drop(closed);
        let cores: Vec<Arc<Core>> = {
            let cores = self.cores.lock();
            cores.iter().filter(|(id, _)| id.blob == blob).filter_map(|(_, core)| core.upgrade()).collect()
        };
        for core in cores {
            if !self.ended(&core).await {
                return false;
            }
        }
        true
    }

    /// Waits until nothing works on the files of the object `id` for a layer that was closed before.
    pub(crate) async fn settle(&self, id: LayerId) {
        let core = self.cores.lock().get(&id).and_then(Weak::upgrade);
        if let Some(core) = core {
            self.ended(&core).await;
        }
    }

    /// Ends what works for a closed layer. False if it does not end.
    async fn ended(&self, core: &Arc<Core>) -> bool {
        if core.is_gone() {
            // Its files have no name any more: what is done to them concerns nobody.
            return true;
        }
        match core.scope.close(GRACE).await {
            Ok(()) => true,
            Err(still) => {
                tracing::warn!(layer = %core.id, %still, "a layer that was closed is still being worked on");
                false
            }
        }
    }

    /// Takes the files of the object `id` away from whoever still has the layer: they write to them no more under this
    /// name. What was being fetched for nobody has ended afterwards.
    pub(crate) async fn abandon(&self, id: LayerId) {
        let Some(core) = self.cores.lock().remove(&id).and_then(|core| core.upgrade()) else { return };
        let this = core.clone();
        castor_task::blocking(move || this.leave_files()).await;
        if core.scope.token().is_cancelled()
            && let Err(still) = core.scope.close(GRACE).await
        {
            tracing::warn!(layer = %id, %still, "a layer that goes is still being fetched");
        }
    }
}
