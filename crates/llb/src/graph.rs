//! A definition, decoded and checked.

use std::collections::HashMap;

use bytes::Bytes;
use castor_oci::{Digest, Platform};
use castor_proto::pb;
use prost::Message as _;

use crate::decode::{decode_op, platform};
use crate::{CapSet, LlbError, Op, OpMetadata, SourceMap, name};

/// What castor takes from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ops in a definition.
    pub ops: usize,
    /// Bytes of all ops together.
    pub bytes: usize,
    /// Inputs of one op.
    pub inputs: usize,
    /// Mounts of one exec or actions of one file op.
    pub parts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ops: 100_000, bytes: 64 << 20, inputs: 10_000, parts: 10_000 }
    }
}

/// One output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: Digest,
    /// Which of its outputs.
    pub output: usize,
}

/// One op and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    /// SHA-256 of `raw`.
    pub digest: Digest,
    /// What it does.
    pub op: Op,
    /// What it needs, in the op's order.
    pub inputs: Vec<Edge>,
    /// The op as it was sent.
    pub raw: Bytes,
    /// The platform, normalised; `None` if the op names none.
    pub platform: Option<Platform>,
    /// Metadata.
    pub metadata: OpMetadata,
    /// What users read.
    pub name: String,
}

/// A checked graph: every vertex that the result needs, inputs before those that need them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    /// The vertices.
    pub vertices: Vec<Vertex>,
    /// The result; `None` is scratch.
    pub result: Option<Edge>,
    /// Where vertices come from in source files.
    pub source_map: SourceMap,
    index: HashMap<Digest, usize>,
}

struct Parsed {
    digest: Digest,
    raw: Bytes,
    op: pb::Op,
    inputs: Vec<Edge>,
}

impl Graph {
    /// Decodes and checks a definition. Capabilities are those of castor's daemon.
    pub fn decode(definition: &pb::Definition, limits: &Limits) -> Result<Self, LlbError> {
        Self::decode_with(definition, limits, &CapSet::supported())
    }

    /// Decodes and checks a definition; ops may need the capabilities `caps`.
    pub fn decode_with(definition: &pb::Definition, limits: &Limits, caps: &CapSet) -> Result<Self, LlbError> {
        let mut parsed = parse(definition, limits)?;
        let result = match parsed.pop() {
            None => return Err(LlbError::Empty),
            Some(_) if parsed.is_empty() => return Err(LlbError::TooFew(1)),
            Some(last) => *last.inputs.first().ok_or(LlbError::NoResult)?,
        };
        let known: HashMap<Digest, usize> = parsed.iter().enumerate().map(|(i, p)| (p.digest, i)).collect();
        let order = topological(&parsed, &known, result)?;

        let mut graph = Self { result: Some(result), ..Self::default() };
        if let Some(source) = &definition.source {
            graph.source_map = SourceMap::from_pb(source);
        }
        let mut slots: Vec<Option<Parsed>> = parsed.into_iter().map(Some).collect();
        for position in order {
            let Some(parsed) = slots[position].take() else { continue };
            let metadata = definition
                .metadata
                .get(&parsed.digest.to_string())
                .map(|metadata| OpMetadata::from_pb(metadata.clone()))
                .unwrap_or_default();
            metadata.caps.keys().try_for_each(|cap| caps.check(cap))?;
            let vertex = graph.vertex(parsed, metadata, limits)?;
            graph.index.insert(vertex.digest, graph.vertices.len());
            graph.vertices.push(vertex);
        }
        Ok(graph)
    }

    fn vertex(&self, parsed: Parsed, metadata: OpMetadata, limits: &Limits) -> Result<Vertex, LlbError> {
        let Parsed { digest, raw, op, inputs } = parsed;
        let platform = op.platform.as_ref().map(platform);
        let count = inputs.len();
        let op = decode_op(op, digest, limits)?;
        let name = match metadata.custom_name() {
            Some(name) => name.to_owned(),
            None => name::of_op(&op, count, |input| {
                inputs.get(input).and_then(|edge| self.get(&edge.vertex)).map_or("", |vertex| vertex.name.as_str())
            }),
        };
        Ok(Vertex { digest, op, inputs, raw, platform, metadata, name })
    }

    /// The vertex with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Vertex> {
        self.index.get(digest).map(|&position| &self.vertices[position])
    }
}

/// Parses every op, without looking into what it does.
fn parse(definition: &pb::Definition, limits: &Limits) -> Result<Vec<Parsed>, LlbError> {
    if definition.def.is_empty() {
        return Err(LlbError::Empty);
    }
    if definition.def.len() > limits.ops {
        return Err(LlbError::Limit { what: "ops", limit: limits.ops });
    }
    if definition.def.iter().map(Bytes::len).sum::<usize>() > limits.bytes {
        return Err(LlbError::Limit { what: "bytes", limit: limits.bytes });
    }
    definition
        .def
        .iter()
        .map(|raw| {
            let mut op = pb::Op::decode(raw.clone()).map_err(|e| LlbError::Parse(e.to_string()))?;
            if op.inputs.len() > limits.inputs {
                return Err(LlbError::Limit { what: "inputs of an op", limit: limits.inputs });
            }
            let inputs = std::mem::take(&mut op.inputs)
                .into_iter()
                .enumerate()
                .map(|(input, wire)| {
                    let output = usize::try_from(wire.index)
                        .map_err(|_| LlbError::NegativeIndex { input, index: wire.index })?;
                    let vertex = wire.digest.parse().map_err(|_| LlbError::MissingInput(wire.digest.clone()))?;
                    Ok(Edge { vertex, output })
                })
                .collect::<Result<_, LlbError>>()?;
            // The decoder of ops checks indexes against this number.
            op.inputs.resize_with(Vec::<Edge>::len(&inputs), pb::Input::default);
            Ok(Parsed { digest: Digest::of(raw), raw: raw.clone(), op, inputs })
        })
        .collect()
}

/// Positions of the vertices that `result` needs, inputs first. A cycle is impossible: digests are hashes.
fn topological(parsed: &[Parsed], known: &HashMap<Digest, usize>, result: Edge) -> Result<Vec<usize>, LlbError> {
    let position =
        |digest: &Digest| known.get(digest).copied().ok_or_else(|| LlbError::MissingInput(digest.to_string()));
    let mut order = Vec::new();
    let mut seen = vec![false; parsed.len()];
    let mut stack = vec![(position(&result.vertex)?, 0)];
    while let Some((vertex, next)) = stack.pop() {
        if next == 0 && std::mem::replace(&mut seen[vertex], true) {
            continue;
        }
        match parsed[vertex].inputs.get(next) {
            Some(edge) => {
                stack.push((vertex, next + 1));
                let input = position(&edge.vertex)?;
                if !seen[input] {
                    stack.push((input, 0));
                }
            }
            None => order.push(vertex),
        }
    }
    Ok(order)
}
