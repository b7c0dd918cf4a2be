//! The solver's results: refs by id.

use async_trait::async_trait;
use castor_solver::{BoxError, Cx, ResultStore};

use crate::{ImmutableRef, Store, StoreError};

/// Refs as results of the solver. A ref that is kept is retained.
#[derive(Debug, Clone)]
pub struct Results {
    store: Store,
}

impl Results {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

#[async_trait]
impl ResultStore<ImmutableRef> for Results {
    async fn save(&self, result: &ImmutableRef) -> Result<Option<String>, BoxError> {
        if result.is_frozen() {
            // It stays writable for the next transfer; a result of the cache must not change.
            return Ok(None);
        }
        result.retain().await?;
        Ok(Some(result.id().to_owned()))
    }

    async fn load(&self, _: &Cx, id: &str) -> Result<Option<ImmutableRef>, BoxError> {
        match self.store.get(id).await {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
