//! Which records and results a cache gets.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use castor_blobs::{Blobs, Compression, LayerBlob};
use castor_oci::media_type;
use castor_solver::{CacheSource, Cx, ExportInput, ExportRecord, KeyId, Record, ResultStore};
use castor_store::ImmutableRef;
use futures::StreamExt as _;

use crate::chains::{self, Found, Layer, Node, Origin};
use crate::error::RemoteCacheError;
use crate::imported::{CREATED_AT, Imported, UNCOMPRESSED};
use crate::options::Mode;

/// Records whose blobs are made at once; the pools bound how much really runs.
const AT_ONCE: usize = 8;

/// What an export takes from.
#[derive(Clone)]
pub struct ExportParts {
    /// The local cache's keys.
    pub keys: Arc<dyn CacheSource>,
    /// The local cache's results.
    pub results: Arc<dyn ResultStore<ImmutableRef>>,
    /// Their blobs.
    pub blobs: Blobs,
    /// What the build imported: results that were not needed here are passed on.
    pub imports: Vec<Arc<Imported>>,
}

impl std::fmt::Debug for ExportParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportParts").field("imports", &self.imports).finish_non_exhaustive()
    }
}

impl ExportParts {
    /// The records that lead to the results with the keys `roots`, and their layers.
    ///
    /// The keys are those that results may be stored under: what was made on layers that nobody has verified has a key of
    /// its own that says so, and is exported under that.
    pub(crate) async fn collect(
        &self,
        cx: &Cx,
        roots: &[KeyId],
        mode: Mode,
        compression: Compression,
    ) -> Result<Vec<Node>, RemoteCacheError> {
        let records = chains::sound(castor_solver::export(self.keys.as_ref(), roots).await?);
        let roots: HashSet<&KeyId> = roots.iter().collect();
        let matches = self.matches(&records);
        let records = chains::sound(self.with_imported_ways(records, &matches));
        let matches = self.matches(&records);
        let find = async |index: usize, make: bool| -> Result<Option<Found>, RemoteCacheError> {
            let record: &ExportRecord = &records[index];
            // What has no inputs is had from where it is.
            if record.inputs.is_empty() {
                return Ok(None);
            }
            match self.result(cx, record, &matches[index], make, compression).await {
                Err(RemoteCacheError::Cancelled) => Err(RemoteCacheError::Cancelled),
                Err(error) if roots.contains(&record.id) => Err(error),
                Err(error) => {
                    tracing::warn!(record = %record.digest, %error, "result not exported to cache");
                    Ok(None)
                }
                found => found,
            }
        };
        let mut results: Vec<Option<Found>> = vec![None; records.len()];
        if mode == Mode::Max {
            let found = futures::stream::iter(0..records.len()).map(|index| find(index, true)).buffered(AT_ONCE);
            let found: Vec<_> = found.collect().await;
            results = found.into_iter().collect::<Result<_, _>>()?;
        } else {
            // The uppermost results are made; below them, those are taken that are there.
            let mut make: Vec<bool> = records.iter().map(|record| roots.contains(&record.id)).collect();
            for index in (0..records.len()).rev() {
                results[index] = find(index, make[index]).await?;
                if make[index] && results[index].is_none() {
                    records[index].inputs.iter().flatten().for_each(|input| make[input.link] = true);
                }
            }
        }
        Ok(records.into_iter().zip(results).map(|(record, result)| Node { record, result }).collect())
    }

    /// Per record, the records of imports that are the same: of equal name, and led to by the same.
    fn matches(&self, records: &[ExportRecord]) -> Vec<Vec<(usize, KeyId)>> {
        let mut matches: Vec<Vec<(usize, KeyId)>> = Vec::with_capacity(records.len());
        for record in records {
            let mut own = Vec::new();
            for (number, import) in self.imports.iter().enumerate() {
                if record.inputs.is_empty() {
                    own.extend(import.records().root(record.digest).map(|id| (number, id)));
                    continue;
                }
                let mut common: Option<HashSet<KeyId>> = None;
                for (input, alternatives) in record.inputs.iter().enumerate() {
                    let mut reached = HashSet::new();
                    for alternative in alternatives {
                        let from = matches[alternative.link].iter().filter(|(of, _)| *of == number);
                        for (_, id) in from {
                            reached.extend(import.records().follow(id, record.digest, input, alternative.selector));
                        }
                    }
                    common = Some(match common {
                        Some(common) => &common & &reached,
                        None => reached,
                    });
                }
                let mut common: Vec<KeyId> = common.into_iter().flatten().collect();
                common.sort();
                own.extend(common.into_iter().map(|id| (number, id)));
            }
            matches.push(own);
        }
        matches
    }

    /// `records` with all ways to them that imports know: where a key by definition was enough here, keys by content are
    /// passed on.
    fn with_imported_ways(&self, mut records: Vec<ExportRecord>, matches: &[Vec<(usize, KeyId)>]) -> Vec<ExportRecord> {
        let mut places: HashMap<(usize, KeyId), usize> = HashMap::new();
        let mut pending = Vec::new();
        for (index, (number, id)) in
            matches.iter().enumerate().flat_map(|(index, own)| own.iter().map(move |one| (index, one)))
        {
            places.entry((*number, id.clone())).or_insert(index);
            pending.push((index, *number, id.clone()));
        }
        while let Some((index, number, id)) = pending.pop() {
            let import = self.imports[number].records();
            for (input, alternatives) in import.inputs(&id).iter().enumerate() {
                for (selector, from) in alternatives {
                    let Some(digest) = import.digest(from) else { continue };
                    let link = *places.entry((number, from.clone())).or_insert_with(|| {
                        let id = KeyId::new(format!("import {number} {from}"));
                        records.push(ExportRecord { id, digest, inputs: Vec::new(), results: Vec::new() });
                        pending.push((records.len() - 1, number, from.clone()));
                        records.len() - 1
                    });
                    let inputs = &mut records[index].inputs;
                    inputs.resize(inputs.len().max(input + 1), Vec::new());
                    let way = ExportInput { selector: *selector, link };
                    if !inputs[input].contains(&way) {
                        inputs[input].push(way);
                    }
                }
            }
        }
        records
    }

    /// The best result of a record: one that is here, or else one that was imported.
    async fn result(
        &self,
        cx: &Cx,
        record: &ExportRecord,
        matches: &[(usize, KeyId)],
        make: bool,
        compression: Compression,
    ) -> Result<Option<Found>, RemoteCacheError> {
        let mut local: Vec<&Record> = record.results.iter().collect();
        local.sort_by_key(|result| std::cmp::Reverse(result.created));
        for result in local {
            if cx.token().is_cancelled() {
                return Err(RemoteCacheError::Cancelled);
            }
            let loaded = self.results.load(cx, &result.id).await;
            let loaded = loaded
                .map_err(|error| RemoteCacheError::Result { id: result.id.clone(), reason: error.to_string() })?;
            let Some(reference) = loaded else { continue };
            let layers = match make {
                true => Some(self.blobs.layers(cx, &reference, compression).await?),
                false => self.blobs.existing(cx, &reference, compression).await?,
            };
            if let Some(layers) = layers.filter(|layers| !layers.is_empty()) {
                let layers = layers.into_iter().map(described).collect();
                return Ok(Some(Found { layers, created: result.created }));
            }
        }
        let found = matches.iter().find_map(|(number, id)| {
            let import = &self.imports[*number];
            let (created, layers) = import.records().newest(id)?;
            let layer = |descriptor: &castor_oci::Descriptor| {
                let mut descriptor = descriptor.clone();
                descriptor.media_type = media_type::to_oci(&descriptor.media_type).to_owned();
                let diff_id = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
                Layer { descriptor, diff_id, origin: Origin::Import(import.clone()) }
            };
            Some(Found { layers: layers.into_iter().map(layer).collect(), created })
        });
        Ok(found)
    }
}

/// A layer with what importers want to know of it.
fn described(blob: LayerBlob) -> Layer {
    let mut descriptor = blob.descriptor.clone();
    descriptor.platform = None;
    descriptor.media_type = media_type::to_oci(&descriptor.media_type).to_owned();
    descriptor.annotations.insert(UNCOMPRESSED.to_owned(), blob.diff_id.to_string());
    descriptor.annotations.insert(CREATED_AT.to_owned(), blob.created.to_string());
    Layer { descriptor, diff_id: Some(blob.diff_id), origin: Origin::Blob(Box::new(blob)) }
}
