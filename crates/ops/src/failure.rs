//! A failed build as its client sees it: message, code, and where in which file.

use castor_llb::Graph;
use castor_llb::op::Op;
use castor_proto::errdefs::{Detail, Index, Solve, Source, Vertex};
use castor_proto::{Any, pb, protojson};
use castor_solver::{SolveError, SolveErrorKind, Stage};
use prost::Message as _;

use crate::bridge::code;
use crate::{BridgeError, OpError};

impl BridgeError {
    /// Adds a typed detail.
    pub fn push<D: Detail>(&mut self, detail: &D) {
        if let Ok(value) = serde_json::to_vec(detail) {
            self.details.push(Any { type_url: D::TYPE_URL.to_owned(), value });
        }
    }
}

impl From<OpError> for BridgeError {
    fn from(error: OpError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// What a client is told of `error`, which solving `graph` ended with. `source` is the source map as it was sent.
pub fn failure(error: &SolveError, graph: &Graph, source: Option<&pb::Source>) -> BridgeError {
    let op_error = error.operation_error().and_then(|error| error.downcast_ref::<OpError>());
    let code = match op_error {
        Some(error) => error.code(),
        None if error.is_cancelled() => code::CANCELLED,
        None => code::UNKNOWN,
    };
    let mut failure = BridgeError::new(code, error.to_string());
    let Some(vertex) = error.vertex().and_then(|digest| graph.get(&digest)) else { return failure };
    failure.push(&Vertex { digest: vertex.digest.to_string() });
    let infos = source.map_or(&[][..], |source| &source.infos);
    let locations = source.and_then(|source| source.locations.get(&vertex.digest.to_string()));
    // The last location is the outermost, and comes first.
    for location in locations.iter().flat_map(|locations| &locations.locations).rev() {
        let info = usize::try_from(location.source_index).ok().and_then(|index| infos.get(index));
        if let Some(info) = info {
            failure.push(&Source::new(info, &location.ranges));
        }
    }
    let mut solve = Solve {
        op: pb::Op::decode(vertex.raw.clone()).ok().map(|op| protojson::op(&op)),
        description: vertex.metadata.description.clone(),
        ..Solve::default()
    };
    if let (Op::File(_), Some(OpError::File { action, .. })) = (&vertex.op, op_error) {
        solve.file = Some(Index { index: i64::try_from(*action).unwrap_or_default() });
    }
    if let SolveErrorKind::Operation { stage: Stage::ContentKey(input), .. } = error.kind() {
        solve.cache = Some(Index { index: i64::try_from(*input).unwrap_or_default() });
    }
    failure.push(&solve);
    failure
}
