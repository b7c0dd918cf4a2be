//! Readers of layers' blobs at registries, on behalf of the clients that want them.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_layerfs::{BlobOpener, FetchError, Priority, RangeBody, RegistryOpener, external_toc};
use castor_oci::{Digest, Reference};
use castor_registry::{Access, Client, Repository};
use castor_session::auth::SessionCredentials;
use castor_session::{Group, Sessions};
use castor_solver::Cx;
use castor_store::{ImageLayer, Openers};

use crate::layout::{Layout, LayoutOpener};

/// The sessions of whoever wants the work of `cx`, as they are at each moment.
pub(crate) fn group(sessions: &Sessions, cx: &Cx) -> Group {
    let cx = cx.clone();
    sessions.live_group(Arc::new(move || cx.sessions()))
}

/// Access with the credentials of whoever wants the work of `cx`.
pub(crate) fn access(sessions: &Sessions, cx: &Cx) -> Access {
    Access::new(Arc::new(SessionCredentials::new(group(sessions, cx))))
}

/// Makes readers of blobs at registries.
#[derive(Clone)]
pub struct RegistryOpeners {
    client: Client,
    sessions: Sessions,
}

impl RegistryOpeners {
    /// Readers by `client`, with the credentials of `sessions`.
    pub fn new(client: Client, sessions: Sessions) -> Self {
        Self { client, sessions }
    }
}

impl std::fmt::Debug for RegistryOpeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryOpeners")
    }
}

impl Openers for RegistryOpeners {
    fn opener(&self, layer: &ImageLayer, cx: &Cx) -> Arc<dyn BlobOpener> {
        let group = group(&self.sessions, cx);
        let own = access(&self.sessions, cx);
        let sources = layer
            .origins
            .iter()
            .filter_map(|origin| {
                let repository: Repository = origin.parse().ok()?;
                let reader = |access: &Access| {
                    RegistryOpener::new(self.client.blob(&repository, &layer.descriptor, access), origin.clone())
                };
                Some(Source { own: reader(&own), anyone: reader(&Access::proved()) })
            })
            .collect();
        let layouts: Vec<Layout> =
            layer.origins.iter().filter_map(|origin| Layout::of_origin(origin, &self.sessions, &group)).collect();
        let elsewhere = layouts.len() < layer.origins.len();
        let opener = Arc::new(LayerOpener {
            layer: layer.descriptor.digest,
            image: layer.image.clone(),
            group,
            sources,
            client: self.client.clone(),
            access: own,
        });
        if layouts.is_empty() {
            return opener;
        }
        Arc::new(LayoutOpener { digest: layer.descriptor.digest, layouts, rest: opener, elsewhere })
    }
}

/// One repository that has the blob.
#[derive(Debug)]
struct Source {
    /// With the credentials of the build's clients.
    own: RegistryOpener,
    /// With those of whoever has proved access: a mounted layer outlives the build that opened it.
    anyone: RegistryOpener,
}

struct LayerOpener {
    layer: Digest,
    image: String,
    group: Group,
    sources: Vec<Source>,
    client: Client,
    access: Access,
}

#[async_trait]
impl BlobOpener for LayerOpener {
    async fn range(&self, range: Range<u64>, priority: Priority) -> Result<RangeBody, FetchError> {
        let mut last = FetchError::new(format!("no repository of {} is known", self.image));
        for source in &self.sources {
            let own = match self.group.is_alive() {
                true => Some(source.own.range(range.clone(), priority).await),
                false => None,
            };
            let answer = match own {
                // The session may have ended meanwhile. With other credentials only a refusal becomes another answer: a
                // registry that is out of reach is so for everybody, and is not waited for twice.
                Some(Err(own)) if own.denied || !self.group.is_alive() => {
                    let answer = source.anyone.range(range.clone(), priority).await;
                    // What the build's own client was told says more.
                    answer.map_err(|error| if self.group.is_alive() { own } else { error })
                }
                Some(answer) => answer,
                None => source.anyone.range(range.clone(), priority).await,
            };
            match answer {
                Ok(body) => return Ok(body),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn describe(&self) -> String {
        self.image.clone()
    }

    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        // Only a layer that is being opened needs it, and then somebody's session is alive.
        let image: Reference =
            self.image.parse().map_err(|error| FetchError::new(format!("{}: {error}", self.image)))?;
        external_toc(&self.client, &image, self.layer, &self.access).await
    }

    fn distrust(&self) {
        for source in &self.sources {
            source.own.distrust();
            source.anyone.distrust();
        }
    }
}
