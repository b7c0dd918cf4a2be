//! A file from a web server as a source.

use async_trait::async_trait;
use castor_llb::HttpSource;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs};
use castor_store::ImmutableRef;
use tokio::sync::OnceCell;

use crate::web::{Found, WebError, file_name, show_date};
use crate::worker::Worker;
use crate::{OpError, identity};

pub(crate) struct Http {
    worker: Worker,
    source: HttpSource,
    /// What was found when the cache was asked: the step is about that and nothing newer.
    found: OnceCell<Found>,
}

impl Http {
    pub(crate) fn new(worker: Worker, source: HttpSource) -> Self {
        Self { worker, source, found: OnceCell::new() }
    }

    /// Looks at the server once.
    async fn find(&self, cx: &Cx) -> Result<&Found, OpError> {
        self.found.get_or_try_init(|| self.worker.web().find(&self.worker, cx, &self.source)).await
    }
}

#[async_trait]
impl Operation<ImmutableRef> for Http {
    async fn cache_map(&self, cx: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        let source = &self.source;
        super::refuse_attribute("http", source.unsupported)?;
        let key = if source.checksum.is_empty() {
            let found = self.find(cx).await?;
            self.worker.pins().set(cx.vertex(), found.checksum.to_string());
            let modified = found.modified.and_then(show_date);
            identity::http(source, &found.name, &found.checksum.to_string(), modified.as_deref())
        } else {
            self.worker.pins().set(cx.vertex(), source.checksum.clone());
            // What it must be says what it is; nobody need be asked.
            identity::http(source, &file_name(source)?, &source.checksum, None)
        };
        Ok((CacheMap::new(identity::source(&key.to_string())), true))
    }

    async fn execute(&self, cx: &Cx, _: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let found = self.find(cx).await?;
        let expected = &self.source.checksum;
        if !expected.is_empty() && found.checksum.to_string() != *expected {
            return Err(OpError::from(WebError::Mismatch { found: found.checksum, expected: expected.clone() }).into());
        }
        Ok(vec![Some(found.file.clone())])
    }
}
