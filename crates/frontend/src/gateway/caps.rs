//! The capabilities of the gateway. What is not here is not offered: clients then do without.

use castor_proto::apicaps::ApiCap;

/// Those of BuildKit that castor has. Left out: files of containers (`gateway.exec.filesystem`).
const GATEWAY: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "reference.attestations",
    "frontend.inputs",
    "gateway.solve.metadata",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "source.metaresolver",
];

pub(super) fn gateway() -> Vec<ApiCap> {
    GATEWAY.iter().map(|id| cap(id, *id == "solve.inlinereturn")).collect()
}

pub(super) fn llb() -> Vec<ApiCap> {
    castor_llb::CapSet::supported().iter().map(|id| cap(id, false)).collect()
}

fn cap(id: &str, deprecated: bool) -> ApiCap {
    ApiCap { id: id.to_owned(), enabled: true, deprecated, ..ApiCap::default() }
}
