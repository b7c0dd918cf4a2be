//! The unit in which graphs travel.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::Digest;
use castor_proto::pb;

use crate::{LlbError, OpMetadata};

/// A graph as it is sent: encoded ops in topological order, the last of which names the result.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definition {
    /// The encoded ops.
    pub ops: Vec<Bytes>,
    /// Metadata by digest of the op.
    pub metadata: BTreeMap<Digest, OpMetadata>,
    /// Where ops come from in source files.
    pub source: Option<pb::Source>,
}

impl Definition {
    /// From the wire. Metadata under keys that are no digests is dropped: no op can have them.
    pub fn from_pb(wire: pb::Definition) -> Self {
        Self {
            ops: wire.def,
            metadata: wire
                .metadata
                .into_iter()
                .filter_map(|(digest, metadata)| Some((digest.parse().ok()?, OpMetadata::from_pb(metadata))))
                .collect(),
            source: wire.source,
        }
    }

    /// To the wire.
    pub fn to_pb(&self) -> pb::Definition {
        pb::Definition {
            def: self.ops.clone(),
            metadata: self.metadata.iter().map(|(digest, m)| (digest.to_string(), m.to_pb())).collect(),
            source: self.source.clone().map(without_empty_places),
        }
    }

    /// Whether there is nothing in it: the definition of scratch.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Digest of the vertex that the result comes from; `None` for scratch.
    pub fn head(&self) -> Result<Option<Digest>, LlbError> {
        let Some(last) = self.ops.last() else { return Ok(None) };
        let op = <pb::Op as prost::Message>::decode(last.clone()).map_err(|e| LlbError::Parse(e.to_string()))?;
        let Some(input) = op.inputs.first() else { return Ok(None) };
        input.digest.parse().map(Some).map_err(|_| LlbError::MissingInput(input.digest.clone()))
    }
}
/// Leaves out vertices that come from no place. Protobuf's encoders write such an entry without its value, and clients in
/// Go find a null pointer there.
fn without_empty_places(mut source: pb::Source) -> pb::Source {
    source.locations.retain(|_, places| !places.locations.is_empty());
    for info in &mut source.infos {
        if let Some(definition) = &mut info.definition {
            definition.source = definition.source.take().map(without_empty_places);
        }
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_is_empty_on_the_wire() {
        let place = pb::Locations { locations: vec![pb::Location::default()] };
        let locations = [("a".to_owned(), pb::Locations::default()), ("b".to_owned(), place)].into();
        let inner = pb::Source { locations, infos: Vec::new() };
        let inside = pb::Definition { source: Some(inner.clone()), ..pb::Definition::default() };
        let info = pb::SourceInfo { definition: Some(inside), ..pb::SourceInfo::default() };
        let definition =
            Definition { source: Some(pb::Source { infos: vec![info], ..inner }), ..Definition::default() };
        let source = definition.to_pb().source.unwrap();
        let inside = source.infos[0].definition.as_ref().unwrap().source.as_ref().unwrap();
        for locations in [&source.locations, &inside.locations] {
            assert_eq!(locations.keys().collect::<Vec<_>>(), ["b"]);
        }
    }
}
