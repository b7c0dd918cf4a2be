//! A store with everything real below it, and images from a registry in this process.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use castor_content::Local;
use castor_layerfs::{BlobOpener, Lazy, RegistryOpener};
use castor_metadb::KeyValue;
use castor_registry::{Access, Client, Repository};
use castor_solver::Cx;
use castor_store::{ImageLayer, ImmutableRef, MutableRef, Openers, RecordInfo, RecordOptions, Store};
use castor_testkit::{Image, Registry};

pub mod ground;

use ground::{Ground, PATIENCE};

struct Anonymous(Client);

impl Openers for Anonymous {
    fn opener(&self, layer: &ImageLayer, _: &Cx) -> Arc<dyn BlobOpener> {
        let origin = layer.origins.first().cloned().unwrap_or_default();
        let repository: Repository = origin.parse().unwrap();
        Arc::new(RegistryOpener::new(self.0.blob(&repository, &layer.descriptor, &Access::anonymous()), origin))
    }
}

pub struct Lab {
    pub store: Store,
    pub content: Local,
    ground: Ground,
}

impl Lab {
    pub async fn new() -> Self {
        Self::on(Ground::new().await).await
    }

    async fn on(ground: Ground) -> Self {
        let store = ground.store(Arc::new(Anonymous(Ground::registry()))).await;
        Self { store, content: ground.content.as_ref().clone(), ground }
    }

    pub fn cx(&self) -> Cx {
        ground::cx()
    }

    /// The database below.
    pub fn db(&self) -> &Arc<dyn KeyValue> {
        &self.ground.db
    }

    /// Ends it in order, and begins anew over what it left on disk.
    pub async fn restart(self) -> Self {
        let (db, dir) = (self.ground.db.clone(), self.ground.dir.clone());
        self.close().await;
        Self::on(Ground::over(db, dir).await).await
    }

    pub async fn close(self) {
        let Self { store, content, ground } = self;
        drop((store, content));
        ground.close().await;
    }

    /// An image as a client's build would get it.
    pub async fn image(&self, registry: &Registry, image: &Image, name: &str, want: Lazy) -> ImmutableRef {
        let reference = image.put(registry, name);
        let repository = format!("{}/{}", registry.host(), name.split(':').next().unwrap());
        let layers = image.layers.iter().enumerate().map(|(index, layer)| ImageLayer {
            descriptor: layer.descriptor.clone(),
            origins: vec![repository.clone()],
            image: reference.to_string(),
            diff_id: Some(layer.diff_id),
            want,
            created_by: format!("layer {index}"),
            created: None,
        });
        self.store.from_image(layers.collect(), RecordOptions::described("image")).await.unwrap()
    }

    /// A step on `parent` that writes files; an empty text removes one.
    pub async fn step(&self, parent: Option<&ImmutableRef>, name: &str, files: &[(&str, &str)]) -> ImmutableRef {
        let target = self.store.new_mutable(&self.cx(), parent, RecordOptions::described(name)).await.unwrap();
        self.write(&target, files).await;
        target.commit().await.unwrap()
    }

    pub async fn write(&self, target: &MutableRef, files: &[(&str, &str)]) {
        let mounting = target.mount(&self.cx()).await.unwrap();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        castor_task::reading(move || {
            for (path, text) in files {
                let path = mounting.path().join(path);
                if text.is_empty() {
                    std::fs::remove_file(path).unwrap();
                } else {
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::write(path, text).unwrap();
                }
            }
        })
        .await;
    }

    pub async fn files(&self, of: &ImmutableRef) -> BTreeMap<String, String> {
        ground::files(of).await
    }

    pub async fn usage(&self) -> Vec<RecordInfo> {
        self.store.disk_usage(&[]).await.unwrap()
    }

    /// Waits until there are so many records: those that nobody keeps go in the background.
    pub async fn settled(&self, count: usize) -> Vec<RecordInfo> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let records = self.usage().await;
                if records.len() == count {
                    return records;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("not {count} records"))
    }
}

pub fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}
