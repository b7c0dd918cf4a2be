//! The solver's results: refs by id.

/// Refs as results of the solver.
#[derive(Debug)]
pub struct Results {}

use async_trait::async_trait;
use castor_solver::{BoxError, Cx, ResultStore};

use crate::ImmutableRef;

#[async_trait]
impl ResultStore<ImmutableRef> for Results {
    async fn save(&self, result: &ImmutableRef) -> Result<Option<String>, BoxError> {
        let _ = result;
        todo!()
    }

    async fn load(&self, cx: &Cx, id: &str) -> Result<Option<ImmutableRef>, BoxError> {
        let _ = (cx, id);
        todo!()
    }
}
