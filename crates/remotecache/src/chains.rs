//! The records of a result, on their way into a cache config.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use castor_blobs::LayerBlob;
use castor_oci::{Descriptor, Digest};
use castor_progress::Timestamp;
use castor_solver::{ExportInput, ExportRecord};

use crate::config::{CacheConfig, CacheInput, CacheLayer, CacheRecord, CacheResult};
use crate::imported::Imported;

/// Where a layer's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// Here, or at the registry that its image is of.
    Blob(Box<LayerBlob>),
    /// In another cache.
    Import(Arc<Imported>),
    /// Nowhere: in tests.
    #[cfg(test)]
    Nowhere,
}

/// A layer of a result.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// As the cache's manifest describes it.
    pub(crate) descriptor: Descriptor,
    /// Digest of its uncompressed tar stream.
    pub(crate) diff_id: Option<Digest>,
    pub(crate) origin: Origin,
}

/// A result: its layers, lowest first.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) layers: Vec<Layer>,
    pub(crate) created: Timestamp,
}

/// A record and the best of its results.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) record: ExportRecord,
    pub(crate) result: Option<Found>,
}

/// `records` without those that nobody could ever match, because some input of theirs has nothing to stand there, and
/// without links that lead in a circle, which no reader accepts; each record comes after those it links to.
pub(crate) fn sound(records: Vec<ExportRecord>) -> Vec<ExportRecord> {
    let mut records: Vec<Option<ExportRecord>> = records.into_iter().map(Some).collect();
    let mut order = Vec::with_capacity(records.len());
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        Above,
        Done,
    }
    let mut seen = vec![Seen::No; records.len()];
    // Depth first, without recursion: chains are thousands long.
    for start in 0..records.len() {
        let mut stack = vec![(start, false)];
        while let Some((index, entered)) = stack.pop() {
            if entered {
                seen[index] = Seen::Done;
                order.push(index);
                continue;
            }
            if seen[index] != Seen::No {
                continue;
            }
            seen[index] = Seen::Above;
            stack.push((index, true));
            let Some(record) = &mut records[index] else { continue };
            for alternatives in &mut record.inputs {
                alternatives.retain(|input| seen[input.link] != Seen::Above);
            }
            let links = record.inputs.iter().flatten().map(|input| input.link);
            stack.extend(links.filter(|link| seen[*link] == Seen::No).map(|link| (link, false)));
        }
    }
    let mut places: Vec<Option<usize>> = vec![None; records.len()];
    let mut kept = Vec::with_capacity(records.len());
    for index in order {
        let Some(mut record) = records[index].take() else { continue };
        let had_inputs = !record.inputs.is_empty();
        for alternatives in &mut record.inputs {
            // What comes later in the order, or is gone, has no place.
            alternatives.retain(|input| places[input.link].is_some());
            for input in alternatives.iter_mut() {
                input.link = places[input.link].unwrap_or_default();
            }
        }
        if had_inputs && record.inputs.iter().any(Vec::is_empty) {
            continue;
        }
        places[index] = Some(kept.len());
        kept.push(record);
    }
    kept
}

/// What names a layer together with all below it.
fn stack_ids(layers: &[Layer]) -> Vec<Digest> {
    let mut below = None;
    let mut ids = Vec::with_capacity(layers.len());
    for layer in layers {
        let id = Digest::of(format!(
            "{} {}",
            layer.descriptor.digest,
            below.map_or_else(String::new, |id: Digest| id.to_string())
        ));
        below = Some(id);
        ids.push(id);
    }
    ids
}

/// A layer, what it stands on, and its place.
struct Placed<'a> {
    layer: &'a Layer,
    id: Digest,
    below: Option<Digest>,
}

/// The config of `nodes`, and its layers in the config's order. Equal nodes make equal bytes, whatever their order.
pub(crate) fn config(nodes: &[Node]) -> (CacheConfig, Vec<Layer>) {
    let mut placed: HashMap<Digest, Placed<'_>> = HashMap::new();
    let mut tops: Vec<Option<Digest>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let layers = node.result.as_ref().map(|found| found.layers.as_slice()).unwrap_or_default();
        let ids = stack_ids(layers);
        for (place, (layer, id)) in layers.iter().zip(&ids).enumerate() {
            let below = place.checked_sub(1).map(|below| ids[below]);
            placed.entry(*id).or_insert(Placed { layer, id: *id, below });
        }
        tops.push(ids.last().copied());
    }
    let mut stack: Vec<Placed<'_>> = placed.into_values().collect();
    stack.sort_by_key(|placed| (placed.layer.descriptor.digest.to_string(), placed.id.to_string()));
    let index: HashMap<Digest, usize> = stack.iter().enumerate().map(|(index, placed)| (placed.id, index)).collect();
    let place = |id: &Digest| index.get(id).copied();
    let layers = stack
        .iter()
        .map(|placed| CacheLayer {
            blob: placed.layer.descriptor.digest,
            parent: placed.below.and_then(|below| place(&below)).map_or(-1, |below| below as i64),
        })
        .collect();

    let (order, positions) = sorted(nodes);
    let records = order
        .iter()
        .map(|index| {
            let node = &nodes[*index];
            let result = node.result.as_ref().zip(tops[*index].as_ref().and_then(place));
            CacheRecord {
                results: result
                    .map(|(found, layer)| CacheResult { layer, created: found.created })
                    .into_iter()
                    .collect(),
                chains: Vec::new(),
                digest: node.record.digest,
                inputs: inputs(&node.record.inputs, &positions),
            }
        })
        .collect();
    (CacheConfig { layers, records }, stack.into_iter().map(|placed| placed.layer.clone()).collect())
}

/// Inputs with links to the records' final places.
pub(crate) fn inputs(inputs: &[Vec<ExportInput>], positions: &[usize]) -> Vec<Vec<CacheInput>> {
    let of = |alternatives: &Vec<ExportInput>| {
        let mut list: Vec<CacheInput> = alternatives
            .iter()
            .map(|input| CacheInput { selector: input.selector, link: positions[input.link] })
            .collect();
        list.sort_by_key(|input| (input.link, input.selector.map(|selector| selector.to_string())));
        list.dedup();
        list
    };
    inputs.iter().map(of).collect()
}

/// The order in which records are written, and where each comes to stand.
pub(crate) fn sorted(nodes: &[Node]) -> (Vec<usize>, Vec<usize>) {
    let names: Vec<String> = nodes.iter().map(|node| node.record.digest.to_string()).collect();
    // Of each alternative of each input, what does not depend on the order.
    let outline = |node: &Node| -> Vec<Vec<(String, String)>> {
        let of = |alternatives: &Vec<ExportInput>| {
            let mut list: Vec<_> = alternatives
                .iter()
                .map(|input| {
                    let selector = input.selector.map(|selector| selector.to_string()).unwrap_or_default();
                    (selector, names[input.link].clone())
                })
                .collect();
            list.sort_unstable();
            list
        };
        node.record.inputs.iter().map(of).collect()
    };
    let outlines: Vec<_> = nodes.iter().map(outline).collect();
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (*a, *b);
        let lengths = |index: usize| outlines[index].iter().map(Vec::len).collect::<Vec<_>>();
        names[a]
            .cmp(&names[b])
            .then_with(|| outlines[a].len().cmp(&outlines[b].len()))
            .then_with(|| lengths(a).cmp(&lengths(b)))
            .then_with(|| outlines[a].cmp(&outlines[b]))
            .then(Ordering::Equal)
    });
    let mut positions = vec![0; nodes.len()];
    for (position, index) in order.iter().enumerate() {
        positions[*index] = position;
    }
    (order, positions)
}

#[cfg(test)]
mod tests {
    use castor_solver::KeyId;

    use super::*;

    fn record(name: &str, inputs: &[&[usize]]) -> ExportRecord {
        let link = |link: &usize| ExportInput { selector: None, link: *link };
        ExportRecord {
            id: KeyId::new(name),
            digest: Digest::of(name),
            inputs: inputs.iter().map(|alternatives| alternatives.iter().map(link).collect()).collect(),
            results: Vec::new(),
        }
    }

    fn names(records: &[ExportRecord]) -> Vec<&str> {
        records.iter().map(|record| record.id.as_str()).collect()
    }

    fn layer(name: &str) -> Layer {
        let descriptor = Descriptor::new("application/vnd.oci.image.layer.v1.tar", Digest::of(name), 1);
        Layer { descriptor, diff_id: None, origin: Origin::Nowhere }
    }

    #[test]
    fn records_without_a_way_to_them_are_left_out_with_all_above() {
        let records = vec![record("top", &[&[1]]), record("middle", &[&[2], &[]]), record("root", &[])];
        assert_eq!(names(&sound(records)), ["root"]);
        let records = vec![record("top", &[&[1, 2]]), record("a", &[&[]]), record("b", &[])];
        let kept = sound(records);
        assert_eq!(names(&kept), ["b", "top"]);
        assert_eq!(kept[1].inputs[0], [ExportInput { selector: None, link: 0 }]);
    }

    #[test]
    fn no_link_leads_in_a_circle() {
        let records = vec![record("a", &[&[1, 2]]), record("b", &[&[0, 2]]), record("root", &[])];
        let kept = sound(records);
        assert_eq!(kept.len(), 3);
        for (place, record) in kept.iter().enumerate() {
            assert!(record.inputs.iter().flatten().all(|input| input.link < place), "{kept:?}");
        }
        assert!(sound(vec![record("self", &[&[0]])]).is_empty());
    }

    #[test]
    fn a_long_chain_is_no_deeper_than_a_short_one() {
        let count = 20_000;
        let records = (0..count)
            .map(|number| match number + 1 {
                next if next < count => record(&number.to_string(), &[&[next]]),
                _ => record("root", &[]),
            })
            .collect();
        assert_eq!(sound(records).len(), count);
    }

    #[test]
    fn equal_nodes_make_equal_configs_and_layers_stand_once() {
        let created = Timestamp::UNIX_EPOCH;
        let found = |names: &[&str]| Some(Found { layers: names.iter().map(|name| layer(name)).collect(), created });
        let node = |record, result| Node { record, result };
        let one = [
            node(record("root", &[]), None),
            node(record("a", &[&[0]]), found(&["x"])),
            node(record("b", &[&[1], &[0]]), found(&["x", "y"])),
        ];
        let two = [
            node(record("b", &[&[2], &[1]]), found(&["x", "y"])),
            node(record("root", &[]), None),
            node(record("a", &[&[1]]), found(&["x"])),
        ];
        let (config_one, layers) = config(&one);
        assert_eq!(config_one, config(&two).0);
        assert_eq!((layers.len(), config_one.layers.len(), config_one.records.len()), (2, 2, 3));
        CacheConfig::parse(&config_one.to_bytes()).unwrap();
        let b = config_one.records.iter().find(|record| record.digest == Digest::of("b")).unwrap();
        let chain = config_one.chain(b.results[0].layer).unwrap();
        let blobs: Vec<Digest> = chain.iter().map(|layer| config_one.layers[*layer].blob).collect();
        assert_eq!(blobs, [Digest::of("x"), Digest::of("y")]);
    }
}
