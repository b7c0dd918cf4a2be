//! Op digests and selectors against records that BuildKit exported for the same definitions.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use castor_llb::op::Op;
use castor_llb::{CapSet, Graph, Limits, Source, Vertex};
use castor_oci::{Digest, Platform, chain_ids};
use castor_ops::identity;
use castor_proto::pb;
use prost::Message as _;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    definition: String,
    records: Vec<Record>,
    session: Option<String>,
}

#[derive(Deserialize)]
struct Record {
    digest: Digest,
    inputs: Vec<Vec<Link>>,
}

#[derive(Deserialize)]
struct Link {
    link: usize,
    selector: Option<Digest>,
}

#[derive(Deserialize)]
struct Images {
    images: Vec<Image>,
    multi: Digest,
}

#[derive(Deserialize)]
struct Image {
    image: String,
    manifest: Digest,
    arch: String,
    diff_ids: Vec<Digest>,
}

fn cases() -> Vec<Case> {
    include_str!("../testdata/cachekeys.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn graph(case: &Case) -> Graph {
    let bytes = base64::engine::general_purpose::STANDARD.decode(&case.definition).unwrap();
    let definition = pb::Definition::decode(bytes.as_slice()).unwrap();
    Graph::decode_with(&definition, &Limits::default(), &CapSet::buildkit()).unwrap()
}

fn raw(vertex: &Vertex) -> pb::op::Op {
    pb::Op::decode(vertex.raw.clone()).unwrap().op.unwrap()
}

/// The digest of an op and how its inputs matter; `None` for sources.
fn key(vertex: &Vertex) -> Option<(Digest, Vec<identity::InputKey>)> {
    let plain = vec![identity::InputKey::default(); vertex.inputs.len()];
    let count = vertex.inputs.len();
    Some(match raw(vertex) {
        pb::op::Op::Exec(op) => {
            let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
            (identity::exec(&op, &platform), identity::exec_inputs(&op, count).unwrap())
        }
        pb::op::Op::File(op) => (identity::file(&op, count), identity::file_inputs(&op, count).unwrap()),
        pb::op::Op::Merge(op) => (identity::merge(&op), plain),
        pb::op::Op::Diff(op) => (identity::diff(&op), plain),
        pb::op::Op::Passthrough(op) => (identity::passthrough(&op), plain),
        _ => return None,
    })
}

fn record_digest(op: Digest, output: usize) -> Digest {
    Digest::of(format!("{op}@{output}"))
}

#[test]
fn digests_are_those_of_buildkit() {
    let images: Images = serde_json::from_str(include_str!("../testdata/images.json")).unwrap();
    let mut wrong = Vec::new();
    for case in cases() {
        let graph = graph(&case);
        let records: BTreeMap<Digest, &Record> = case.records.iter().map(|record| (record.digest, record)).collect();
        let mut wanted: BTreeMap<Digest, BTreeSet<usize>> = BTreeMap::new();
        let edges = graph.vertices.iter().flat_map(|vertex| &vertex.inputs).chain(&graph.result);
        for edge in edges {
            wanted.entry(edge.vertex).or_default().insert(edge.output);
        }
        let mut seen = BTreeSet::new();
        for vertex in &graph.vertices {
            let outputs = wanted[&vertex.digest].clone();
            let Some((digest, inputs)) = key(vertex) else {
                for digest in source_keys(vertex, &images, &case) {
                    seen.insert(digest);
                    if !records.contains_key(&digest) {
                        wrong.push(format!("{}: {}: no record {digest}", case.name, vertex.name));
                    }
                }
                continue;
            };
            for output in outputs {
                let record = record_digest(digest, output);
                seen.insert(record);
                let Some(record) = records.get(&record) else {
                    wrong.push(format!("{}: {}: no record", case.name, vertex.name));
                    continue;
                };
                assert_eq!(record.inputs.len(), inputs.len(), "{}: {}", case.name, vertex.name);
                for (links, key) in record.inputs.iter().zip(&inputs) {
                    // Links from keys by definition carry the selector, links from keys by content do not.
                    let ours: BTreeSet<_> = links.iter().filter_map(|link| link.selector).collect();
                    let selectors = key.selector.into_iter().collect::<BTreeSet<_>>();
                    if !ours.is_subset(&selectors) {
                        wrong.push(format!("{}: {}: selector {ours:?} not {selectors:?}", case.name, vertex.name));
                    }
                    assert!(links.iter().all(|link| link.link < case.records.len()));
                }
            }
        }
        // What is left are keys by content, which other tests explain; each leads somewhere and comes from nowhere.
        for (digest, record) in &records {
            if !seen.contains(digest) && !record.inputs.is_empty() {
                wrong.push(format!("{}: {digest} unexplained", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn source_keys(vertex: &Vertex, images: &Images, case: &Case) -> Vec<Digest> {
    let Op::Source(op) = &vertex.op else { return Vec::new() };
    match &op.source {
        Source::Image(source) => {
            let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
            let name = source.reference.split('@').next().unwrap().strip_prefix("golden.test/").unwrap();
            let named = images.images.iter().find(|image| image.image == name).map(|image| image.manifest);
            let digest = source.reference.split_once('@').map(|(_, digest)| digest.parse().unwrap());
            let digest = digest.or(named).unwrap_or(images.multi);
            let image = images
                .images
                .iter()
                .find(|image| {
                    let of_index = digest == images.multi && image.image.starts_with("multi-");
                    image.manifest == digest || of_index && image.arch == platform.architecture
                })
                .unwrap_or_else(|| panic!("{name} {digest}"));
            let manifest = identity::image_manifest(digest, &platform, source.layer_limit).to_string();
            let chain = chain_ids(&image.diff_ids).last().unwrap().to_string();
            [manifest, chain].map(|key: String| record_digest(identity::source(&key), 0)).to_vec()
        }
        Source::Local(source) => {
            // Volatile: never recorded. The session is part of it.
            let key = identity::local(&source.name, &source.session, source);
            assert!(key.starts_with("session:") && case.session.is_some());
            Vec::new()
        }
        Source::Http(source) => {
            // What the server of these cases has; all was modified at the same time.
            let (name, digest) = match source.url.rsplit('/').next().unwrap() {
                "arc.tar" => ("arc.tar", "c5fa63e1dbd988099a4363bc97ebb8b0e2d7a2737afdc4074c9c5034549746af"),
                name => (name, "c5acc4ae7d85cda11df11e6bc0c06ab55bffbd2b3db121d0a9e3ebb98bd98cac"),
            };
            let modified = source.checksum.is_empty().then_some("Tue, 14 Nov 2023 22:13:20 GMT");
            let key = identity::http(source, name, &format!("sha256:{digest}"), modified).to_string();
            // Copied as a whole, the file is known by its content alone.
            let record = record_digest(identity::source(&key), 0);
            if case.records.iter().any(|known| known.digest == record) { vec![record] } else { Vec::new() }
        }
        _ => Vec::new(),
    }
}
