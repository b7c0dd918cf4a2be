//! Finding a build by its id. Clients start Solve and Ping at once, so whoever asks first waits a little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use castor_ops::BridgeError;
use castor_ops::bridge::code;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use super::build::Gateway;

/// The request header with the build's id.
pub const BUILD_ID_HEADER: &str = "buildkit-controlapi-buildid";

/// How long a call waits for its build to appear.
const PATIENCE: Duration = Duration::from_secs(3);

/// Finds the build that a call is for.
#[async_trait]
pub trait Locate: Send + Sync + 'static {
    /// The build, by the call's metadata.
    async fn locate(&self, metadata: &MetadataMap) -> Result<Arc<Gateway>, BridgeError>;
}

/// The builds that are in gateway mode, by id.
#[derive(Debug, Clone)]
pub struct Gateways(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    builds: Mutex<HashMap<String, Arc<Gateway>>>,
    changed: watch::Sender<()>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self(Arc::new(Inner { builds: Mutex::default(), changed: watch::channel(()).0 }))
    }
}

/// A registration; dropping it ends it.
#[derive(Debug)]
pub struct Registered {
    gateways: Gateways,
    id: String,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.gateways.0.builds.lock().remove(&self.id);
    }
}

impl Gateways {
    /// Makes the build `id` reachable for as long as the registration lives. Ids are those of jobs, of which there is
    /// one at a time.
    #[must_use]
    pub fn register(&self, id: impl Into<String>, gateway: Arc<Gateway>) -> Registered {
        let id = id.into();
        self.0.builds.lock().insert(id.clone(), gateway);
        self.0.changed.send_replace(());
        Registered { gateways: self.clone(), id }
    }

    /// The build `id`; waits a little for it to appear.
    pub async fn get(&self, id: &str) -> Option<Arc<Gateway>> {
        let mut changed = self.0.changed.subscribe();
        let find = || self.0.builds.lock().get(id).cloned();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = find() {
                    return Some(found);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
    }
}

#[async_trait]
impl Locate for Gateways {
    async fn locate(&self, metadata: &MetadataMap) -> Result<Arc<Gateway>, BridgeError> {
        let mut ids = metadata.get_all(BUILD_ID_HEADER).iter();
        let id = match (ids.next(), ids.next()) {
            (Some(id), None) => id.to_str().unwrap_or_default(),
            _ => "",
        };
        if id.is_empty() {
            return Err(BridgeError::unknown("no buildid found in context"));
        }
        match self.get(id).await {
            Some(gateway) => Ok(gateway),
            None => Err(BridgeError::new(code::NOT_FOUND, format!("no such job {id}"))),
        }
    }
}

/// One build that needs no finding: for a connection that belongs to it.
#[async_trait]
impl Locate for Arc<Gateway> {
    async fn locate(&self, _: &MetadataMap) -> Result<Arc<Gateway>, BridgeError> {
        Ok(self.clone())
    }
}
