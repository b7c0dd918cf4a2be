//! A git repository as a source.

use async_trait::async_trait;
use castor_llb::GitSource;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs};
use castor_store::ImmutableRef;
use tokio::sync::OnceCell;

use crate::git::Resolved;
use crate::worker::Worker;
use crate::{OpError, identity};

pub(crate) struct Git {
    worker: Worker,
    source: GitSource,
    /// What it was found to mean when the cache was asked: the step is about that and nothing newer.
    resolved: OnceCell<Resolved>,
}

impl Git {
    pub(crate) fn new(worker: Worker, source: GitSource) -> Self {
        Self { worker, source, resolved: OnceCell::new() }
    }

    /// Asks the remote once.
    async fn resolve(&self, cx: &Cx) -> Result<&Resolved, OpError> {
        self.resolved.get_or_try_init(|| self.worker.git().resolve(&self.worker, cx, &self.source)).await
    }
}

#[async_trait]
impl Operation<ImmutableRef> for Git {
    async fn cache_map(&self, cx: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        super::refuse_attribute("git", self.source.unsupported)?;
        let resolved = self.resolve(cx).await?;
        self.worker.pins().set(cx.vertex(), resolved.checksum.clone());
        let key = resolved.key(&self.source);
        Ok((CacheMap::new(identity::source(&key)), true))
    }

    async fn execute(&self, cx: &Cx, _: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let resolved = self.resolve(cx).await?;
        let files = self.worker.git().check_out(&self.worker, cx, &self.source, resolved).await?;
        Ok(vec![Some(files)])
    }
}
