//! Records inside of the image that they are of.

use async_trait::async_trait;
use castor_blobs::{Compression, LayerBlob};
use castor_exporter::{InlineCache, InlineError};
use castor_oci::Digest;
use castor_solver::{Cx, KeyId};

use crate::chains::{self, Found, Node};
use crate::collect::ExportParts;
use crate::config::{CacheRecord, CacheResult, ChainedResult};
use crate::options::Mode;

/// Makes the records that an image carries.
#[derive(Debug, Clone)]
pub struct InlineRecords {
    /// What records are taken from.
    pub parts: ExportParts,
    /// Per platform of the result, its keys.
    pub roots: Vec<Vec<KeyId>>,
}

#[async_trait]
impl InlineCache for InlineRecords {
    async fn records(
        &self,
        cx: &Cx,
        platform: usize,
        layers: &[LayerBlob],
        compression: Compression,
    ) -> Result<Option<Vec<u8>>, InlineError> {
        let Some(roots) = self.roots.get(platform) else { return Ok(None) };
        let nodes = self.parts.collect(cx, roots, Mode::Min, compression).await;
        let nodes = nodes.map_err(|error| InlineError(error.to_string()))?;
        let layers: Vec<(Digest, Digest)> =
            layers.iter().map(|layer| (layer.descriptor.digest, layer.diff_id)).collect();
        Ok(records(&nodes, &layers))
    }
}

/// The records of `nodes` as they stand in an image with `layers` (blob and diff ID of each); `None` if none of their
/// results is of these layers.
fn records(nodes: &[Node], layers: &[(Digest, Digest)]) -> Option<Vec<u8>> {
    let (order, positions) = chains::sorted(nodes);
    let mut any = false;
    let records: Vec<CacheRecord> = order
        .iter()
        .map(|index| {
            let node = &nodes[*index];
            let mut record = CacheRecord {
                results: Vec::new(),
                chains: Vec::new(),
                digest: node.record.digest,
                inputs: chains::inputs(&node.record.inputs, &positions),
            };
            if let Some((found, places)) = node.result.as_ref().and_then(|found| Some((found, places(found, layers)?)))
            {
                any = true;
                let created = found.created;
                match places.last() {
                    // The image's own order: its uppermost layer says it all.
                    Some(top) if places.iter().copied().eq(0..=*top) => {
                        record.results.push(CacheResult { layer: *top, created });
                    }
                    _ => record.chains.push(ChainedResult { layers: places, created }),
                }
            }
            record
        })
        .collect();
    // Strings, numbers and lists always serialise.
    any.then(|| serde_json::to_vec(&records).unwrap_or_default())
}

/// Where in the image each layer of a result stands; `None` if one is not in it.
fn places(found: &Found, layers: &[(Digest, Digest)]) -> Option<Vec<usize>> {
    let place = |layer: &chains::Layer, expected: usize| {
        let same =
            |(blob, diff_id): &(Digest, Digest)| *blob == layer.descriptor.digest || Some(*diff_id) == layer.diff_id;
        // Of several equal ones, that which keeps the order.
        if layers.get(expected).is_some_and(same) {
            return Some(expected);
        }
        layers.iter().position(same)
    };
    found.layers.iter().enumerate().map(|(index, layer)| place(layer, index)).collect()
}

#[cfg(test)]
mod tests {
    use castor_oci::Descriptor;
    use castor_progress::Timestamp;
    use castor_solver::ExportRecord;

    use super::*;
    use crate::chains::{Layer, Origin};

    fn node(name: &str, layers: &[&str]) -> Node {
        let layer = |name: &&str| Layer {
            descriptor: Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", Digest::of(*name), 1),
            diff_id: Some(Digest::of(format!("diff {name}"))),
            origin: Origin::Nowhere,
        };
        let found = Found { layers: layers.iter().map(layer).collect(), created: Timestamp::UNIX_EPOCH };
        let record =
            ExportRecord { id: KeyId::new(name), digest: Digest::of(name), inputs: Vec::new(), results: Vec::new() };
        Node { record, result: (!layers.is_empty()).then_some(found) }
    }

    fn image(layers: &[&str]) -> Vec<(Digest, Digest)> {
        layers.iter().map(|name| (Digest::of(*name), Digest::of(format!("diff {name}")))).collect()
    }

    fn read(nodes: &[Node], layers: &[(Digest, Digest)]) -> Vec<CacheRecord> {
        serde_json::from_slice(&records(nodes, layers).unwrap()).unwrap()
    }

    #[test]
    fn results_are_told_by_the_images_layers() {
        let read = read(&[node("one", &["a", "b"])], &image(&["a", "b", "c"]));
        assert_eq!((read[0].results[0].layer, read[0].chains.len()), (1, 0));
    }

    #[test]
    fn another_order_is_a_chain_and_what_is_not_in_the_image_is_left_out() {
        let nodes = [node("one", &["c", "a"]), node("two", &["a", "x"])];
        let read = read(&nodes, &image(&["a", "b", "c"]));
        let of = |name: &str| read.iter().find(|record| record.digest == Digest::of(name)).unwrap();
        assert_eq!(of("one").chains[0].layers, [2, 0]);
        assert!(of("two").chains.is_empty() && of("two").results.is_empty());
        assert!(records(&nodes[1..], &image(&["a"])).is_none());
    }

    #[test]
    fn a_layer_in_another_form_is_known_by_its_content() {
        let other: Vec<_> = image(&["a"]).into_iter().map(|(_, diff_id)| (Digest::of("zstd"), diff_id)).collect();
        assert_eq!(read(&[node("one", &["a"])], &other)[0].results[0].layer, 0);
    }
}
