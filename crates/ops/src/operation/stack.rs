//! Merge, diff and passthrough: they stack what is there, and touch nothing.

use async_trait::async_trait;
use castor_oci::Digest;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs};
use castor_store::{ImmutableRef, RecordOptions, Store};

use super::inputs::stacked;
use crate::OpError;

fn input(inputs: &[ImmutableRef], index: usize) -> Result<ImmutableRef, OpError> {
    inputs.get(index).cloned().ok_or_else(|| OpError::Invalid(format!("missing input {index}")))
}

/// Stacks its inputs.
pub(crate) struct Merge {
    pub(crate) store: Store,
    pub(crate) digest: Digest,
    pub(crate) name: String,
    pub(crate) inputs: usize,
    /// Which inputs, lowest first.
    pub(crate) parts: Vec<usize>,
}

#[async_trait]
impl Operation<ImmutableRef> for Merge {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Ok((CacheMap::with_deps(self.digest, stacked(self.inputs)), true))
    }

    async fn execute(&self, _: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let mut parts = self.parts.iter().map(|&part| input(inputs, part)).collect::<Result<Vec<_>, _>>()?;
        parts.retain(|part| !part.is_scratch());
        if parts.is_empty() {
            return Ok(vec![Some(self.store.scratch())]);
        }
        let options = RecordOptions::described(self.name.clone());
        let merged = self.store.merge(&parts, options).await.map_err(OpError::from)?;
        Ok(vec![Some(merged)])
    }
}

/// What leads from one input to another.
pub(crate) struct Diff {
    pub(crate) store: Store,
    pub(crate) digest: Digest,
    pub(crate) name: String,
    pub(crate) inputs: usize,
    pub(crate) lower: Option<usize>,
    pub(crate) upper: Option<usize>,
}

#[async_trait]
impl Operation<ImmutableRef> for Diff {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Ok((CacheMap::with_deps(self.digest, stacked(self.inputs)), true))
    }

    async fn execute(&self, _: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let side = |index: Option<usize>| match index {
            Some(index) => input(inputs, index),
            None => Ok(self.store.scratch()),
        };
        let (lower, upper) = (side(self.lower)?, side(self.upper)?);
        let result = if lower.is_scratch() {
            upper
        } else if lower.id() == upper.id() {
            self.store.scratch()
        } else {
            let options = RecordOptions::described(self.name.clone());
            self.store.diff(&lower, &upper, options).await.map_err(OpError::from)?
        };
        Ok(vec![Some(result)])
    }
}

/// Its inputs under another digest.
pub(crate) struct Passthrough {
    pub(crate) digest: Digest,
    pub(crate) inputs: usize,
    /// The input that each output is.
    pub(crate) outputs: Vec<usize>,
}

#[async_trait]
impl Operation<ImmutableRef> for Passthrough {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Ok((CacheMap::with_deps(self.digest, stacked(self.inputs)), true))
    }

    async fn execute(&self, _: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        let outputs = self.outputs.iter().map(|&index| input(inputs, index).map(Some));
        Ok(outputs.collect::<Result<_, _>>()?)
    }
}
