//! The records of a result, for a remote cache.

use std::collections::HashMap;

use castor_oci::Digest;

use crate::{CacheError, CacheSource, KeyId, Record};

/// A key as an exporter writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRecord {
    /// The id in the source.
    pub id: KeyId,
    /// BuildKit's name of it.
    pub digest: Digest,
    /// Per input of the operation, the keys that may stand there.
    pub inputs: Vec<Vec<ExportInput>>,
    /// The results.
    pub results: Vec<Record>,
}

/// A key in the place of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInput {
    /// Which part of the input matters.
    pub selector: Option<Digest>,
    /// The index of the input's record.
    pub link: usize,
}

/// All keys that lead to `roots`, themselves first; links are indexes into the answer.
pub async fn export(source: &dyn CacheSource, roots: &[KeyId]) -> Result<Vec<ExportRecord>, CacheError> {
    let mut index = HashMap::<KeyId, usize>::new();
    let mut order = Vec::new();
    for root in roots {
        if !index.contains_key(root) {
            index.insert(root.clone(), order.len());
            order.push(root.clone());
        }
    }
    let mut records = Vec::new();
    while let Some(id) = order.get(records.len()).cloned() {
        let info = source.info(&id).await?;
        let mut inputs = Vec::<Vec<ExportInput>>::new();
        for (from, link) in source.backlinks(&id).await? {
            // A key whose origin is not known is left out: nothing could be matched with it. One without inputs is known
            // by its name alone.
            if source.info(&from).await?.is_none() && named(&from).is_none() {
                continue;
            }
            let next = order.len();
            let target = *index.entry(from.clone()).or_insert_with(|| {
                order.push(from);
                next
            });
            inputs.resize(inputs.len().max(link.input + 1), Vec::new());
            inputs[link.input].push(ExportInput { selector: link.selector, link: target });
        }
        let results = source.records(std::slice::from_ref(&id)).await?.pop().unwrap_or_default();
        let digest = info.map(|info| info.record_digest()).or_else(|| named(&id));
        let digest = digest.unwrap_or_else(|| Digest::of(id.as_str()));
        records.push(ExportRecord { id, digest, inputs, results });
    }
    Ok(records)
}

/// BuildKit's name of a key without inputs: that is its id ([`KeyId::root`]).
fn named(id: &KeyId) -> Option<Digest> {
    id.as_str().parse().ok()
}
