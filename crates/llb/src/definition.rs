//! The unit in which graphs travel.

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::Digest;
use castor_proto::pb;
use prost::Message;

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

/// A source, on its own.
#[derive(Debug, Clone, PartialEq)]
pub struct OnlySource {
    /// Its identifier.
    pub identifier: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
    /// What makes it, and nothing else.
    pub definition: Definition,
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

    /// The source that everything in it is made of, if that is a single one.
    pub fn only_source(&self) -> Result<Option<OnlySource>, LlbError> {
        let mut only = None;
        for raw in &self.ops {
            let op = <pb::Op as Message>::decode(raw.clone()).map_err(|e| LlbError::Parse(e.to_string()))?;
            let Some(pb::op::Op::Source(source)) = op.op else { continue };
            if only.is_some() {
                return Ok(None);
            }
            let input = pb::Input { digest: Digest::of(raw).to_string(), index: 0 };
            let last = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
            let definition = Self { ops: vec![raw.clone(), last.into()], ..Self::default() };
            only = Some(OnlySource { identifier: source.identifier, attrs: source.attrs, definition });
        }
        Ok(only)
    }

    /// Whether there is nothing in it: the definition of scratch.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Digest of the vertex that the result comes from; `None` for scratch.
    pub fn head(&self) -> Result<Option<Digest>, LlbError> {
        let Some(last) = self.ops.last() else { return Ok(None) };
        let op = <pb::Op as Message>::decode(last.clone()).map_err(|e| LlbError::Parse(e.to_string()))?;
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
    fn the_only_source_is_found_behind_what_is_made_of_it() {
        use crate::state::{Action, Constraints, CopyOptions, HttpOptions};
        use crate::{MarshalOptions, State};
        let http = |url| State::http(url, &HttpOptions::default(), Constraints::new());
        let copy = |from: State| {
            let options = Box::new(CopyOptions::default());
            vec![Action::Copy { from, src: "/a".into(), dest: "/".into(), options }]
        };
        let one = State::scratch().file(copy(http("https://x/a")), Constraints::new());
        let found = one.marshal(&MarshalOptions::default()).unwrap().only_source().unwrap().unwrap();
        assert_eq!(found.identifier, "https://x/a");
        let alone = http("https://x/a").marshal(&MarshalOptions::default()).unwrap();
        assert_eq!(found.definition.head().unwrap(), alone.head().unwrap());
        let two = one.file(copy(http("https://x/b")), Constraints::new());
        assert_eq!(two.marshal(&MarshalOptions::default()).unwrap().only_source().unwrap(), None);
        assert_eq!(Definition::default().only_source().unwrap(), None);
    }

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
