//! Graphs written with `State`, compared with what BuildKit's Go client wrote for the same ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use base64::Engine as _;
use castor_llb::op::{CacheSharing, MountKind};
use castor_llb::state::{
    Action, Constraints, CopyOptions, ImageOptions, LocalOptions, MarshalError, MountOptions, Owner, Run,
};
use castor_llb::{CapSet, Definition, Graph, Limits, LlbError, MarshalOptions, Op, State, display_name};
use castor_oci::Platform;
use castor_proto::pb;
use prost::Message as _;

fn golden(name: &str) -> pb::Definition {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/definitions.json");
    let cases: Vec<BTreeMap<String, String>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = &cases.iter().find(|case| case["name"] == name).unwrap()["definition"];
    pb::Definition::decode(base64::engine::general_purpose::STANDARD.decode(text).unwrap().as_slice()).unwrap()
}

fn marshal(state: &State) -> Definition {
    let platform = Platform::new("linux", "amd64", "");
    state.marshal(&MarshalOptions { platform, caps: None, unique: String::new() }).unwrap()
}

fn decode(definition: &Definition) -> Result<Graph, LlbError> {
    Graph::decode_with(&definition.to_pb(), &Limits::default(), &CapSet::buildkit())
}

fn image(name: &str) -> State {
    State::image(name, &ImageOptions::default(), Constraints::new())
}

fn run(state: &State, args: &[&str]) -> State {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    state.run(Run { args, ..Run::default() }).root().clone()
}

#[test]
fn file_operations_are_written_as_by_buildkit() {
    let mkfile = |path: &str, mode, data: &'static str| Action::Mkfile {
        path: path.into(),
        mode,
        data: data.into(),
        owner: None,
        timestamp: None,
    };
    let rm = |path: &str, allow_not_found| Action::Rm { path: path.into(), allow_not_found, allow_wildcard: false };
    let actions = vec![
        Action::Mkdir {
            path: "/d/e".into(),
            mode: 0o751,
            parents: true,
            owner: Some(Owner::ids(3, 4)),
            timestamp: None,
        },
        mkfile("/d/f", 0o600, "hi"),
        Action::Symlink { oldpath: "/d/f".into(), newpath: "/l".into(), owner: None, timestamp: None },
        mkfile("/gone", 0o644, ""),
        rm("/gone", false),
        rm("/never", true),
    ];
    let got = marshal(&State::scratch().file(actions, Constraints::new())).to_pb();
    let mut want = golden("cachekeys/llb-file-ops");
    // BuildKit tells of a vertex from no place that it has none, which says nothing.
    want.source.as_mut().unwrap().locations.retain(|_, places| !places.locations.is_empty());
    assert_eq!(got, want);
}

#[test]
fn definitions_survive_being_states() {
    for name in ["cachekeys/llb-merge-diff", "cachekeys/llb-exec-mounts", "llb/copy-forms"] {
        let wire = golden(name);
        let definition = Definition::from_pb(wire.clone());
        let again = marshal(&State::from_definition(&definition).unwrap());
        // Other walks may emit independent vertices in another order.
        let sorted = |ops: &[bytes::Bytes]| {
            let mut ops = ops.to_vec();
            ops.sort();
            ops
        };
        assert_eq!(sorted(&again.ops), sorted(&wire.def), "{name}");
        assert_eq!(again.head().unwrap(), definition.head().unwrap());
        assert_eq!(again.source.unwrap_or_default().locations, wire.source.unwrap_or_default().locations);
    }
}

#[test]
fn mounts_are_sorted_and_have_outputs_of_their_own() {
    let base = image("base");
    let mount = |readonly| MountOptions { readonly, ..MountOptions::default() };
    let cache = MountOptions { cache: Some(("id".into(), CacheSharing::Locked)), ..MountOptions::default() };
    let exec = base.run(Run {
        args: vec!["x".into()],
        mounts: vec![
            ("/z".into(), image("z"), mount(false)),
            ("/a".into(), base.clone(), mount(false)),
            ("/c".into(), State::scratch(), cache),
            ("/r".into(), image("z"), mount(true)),
        ],
        ..Run::default()
    });
    let graph = decode(&marshal(exec.mount(0).unwrap())).unwrap();
    assert_eq!(graph.result.unwrap().output, 2);
    let Op::Exec(op) = &graph.vertices.last().unwrap().op else { panic!("no exec") };
    let dests: Vec<&str> = op.mounts.iter().map(|mount| mount.dest.as_str()).collect();
    assert_eq!(dests, ["/", "/a", "/c", "/r", "/z"]);
    assert_eq!(op.mounts.iter().map(|mount| mount.output).collect::<Vec<_>>(), [Some(0), Some(1), None, None, Some(2)]);
    // One image twice is one input.
    assert_eq!(graph.vertices.last().unwrap().inputs.len(), 2);
    assert!(matches!(op.mounts[2].kind, MountKind::Cache(_)));
    // What is read-only comes out as it went in, a cache not at all.
    assert_eq!(marshal(exec.mount(3).unwrap()).head().unwrap(), marshal(&image("z")).head().unwrap());
    let options = MarshalOptions::default();
    assert!(matches!(exec.mount(2).unwrap().marshal(&options), Err(MarshalError::NoOutput(_))));
}

#[test]
fn states_can_be_given_later() {
    let (state, late) = State::late();
    let copied = State::scratch().file(
        vec![Action::Copy { from: state, src: "a".into(), dest: "/".into(), options: Box::<CopyOptions>::default() }],
        Constraints::new(),
    );
    assert_eq!(copied.marshal(&MarshalOptions::default()).unwrap_err(), MarshalError::Unset);
    late.set(&State::local("context", &LocalOptions { session: "s".into(), ..Default::default() }, Constraints::new()));
    assert_eq!(decode(&marshal(&copied)).unwrap().vertices.len(), 2);
}

#[test]
fn names_tell_what_a_vertex_does() {
    let merged = State::merge(&[run(&image("a"), &["b", "c"]), image("d")], Constraints::new());
    let graph = decode(&marshal(&State::diff(&image("a"), &merged, Constraints::new()))).unwrap();
    let names: Vec<&str> = graph.vertices.iter().map(display_name).collect();
    let (a, d) = ("docker-image://docker.io/library/a:latest", "docker-image://docker.io/library/d:latest");
    assert_eq!(names, [a, "b c", d, &format!("merge (b c, {d})"), &format!("diff ({a}) -> (merge (b c, {d}))")]);
    let named = image("a").file(
        vec![Action::Rm { path: "/x".into(), allow_not_found: false, allow_wildcard: false }],
        Constraints::new().name("mine"),
    );
    assert_eq!(display_name(decode(&marshal(&named)).unwrap().vertices.last().unwrap()), "mine");
}

#[test]
fn scratch_merges_and_diffs_vanish() {
    assert!(State::merge(&[State::scratch(), State::scratch()], Constraints::new()).is_scratch());
    let one = State::merge(&[State::scratch(), image("a")], Constraints::new());
    assert_eq!(marshal(&one), marshal(&image("a")));
    assert_eq!(marshal(&State::diff(&State::scratch(), &image("a"), Constraints::new())), marshal(&image("a")));
    assert!(marshal(&State::scratch()).is_empty());
}

#[test]
fn long_chains_need_no_deep_stack() {
    let state = (0..50_000).fold(image("a"), |state, _| run(&state, &["x"]));
    let definition = marshal(&state);
    assert_eq!(decode(&definition).unwrap().vertices.len(), 50_001);
}

#[test]
fn refuses_broken_definitions() {
    let good = marshal(&run(&image("a"), &["x"])).to_pb();
    let decode = |definition: &pb::Definition| Graph::decode(definition, &Limits::default()).map(drop);
    assert_eq!(decode(&good), Ok(()));
    assert_eq!(decode(&pb::Definition::default()).unwrap_err().to_string(), "invalid empty definition");
    let only_last = pb::Definition { def: good.def[2..].to_vec(), ..good.clone() };
    assert_eq!(decode(&only_last).unwrap_err().to_string(), "invalid LLB with 1 vertexes");
    let missing = pb::Definition { def: good.def[1..].to_vec(), ..good.clone() };
    assert!(matches!(decode(&missing), Err(LlbError::MissingInput(_))));
    let mut no_result = good.clone();
    *no_result.def.last_mut().unwrap() = bytes::Bytes::from_static(b"\x5a\x00");
    assert_eq!(decode(&no_result), Err(LlbError::NoResult));
    let garbage = pb::Definition { def: vec![bytes::Bytes::from_static(b"\xff")], ..good.clone() };
    assert!(matches!(decode(&garbage), Err(LlbError::Parse(_))));
    let small = Limits { ops: 2, ..Limits::default() };
    assert!(matches!(Graph::decode(&good, &small), Err(LlbError::Limit { .. })));
    let mut capable = good.clone();
    let metadata = capable.metadata.values_mut().next().unwrap();
    metadata.caps.insert("source.git.bundle".into(), true);
    assert_eq!(
        decode(&capable).unwrap_err().to_string(),
        "requested feature source.git.bundle is not supported by build server"
    );
}

#[test]
fn exec_ops_are_checked() {
    let mut op = pb::ExecOp { meta: Some(pb::Meta::default()), ..pb::ExecOp::default() };
    let check = |op: &pb::ExecOp| {
        let raw = pb::Op { op: Some(pb::op::Op::Exec(op.clone())), ..pb::Op::default() }.encode_to_vec();
        let input = pb::Input { digest: castor_oci::Digest::of(&raw).to_string(), index: 0 };
        let last = pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec();
        let definition = pb::Definition { def: vec![raw.into(), last.into()], ..pb::Definition::default() };
        Graph::decode(&definition, &Limits::default()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(check(&op), Err("invalid exec op with no args".into()));
    op.meta.as_mut().unwrap().args.push("x".into());
    assert_eq!(check(&op), Err("invalid exec op with no mounts".into()));
    op.mounts.push(pb::Mount { dest: "/x".into(), input: -1, ..pb::Mount::default() });
    assert_eq!(check(&op), Err("invalid exec op with no rootfs".into()));
    op.mounts[0].dest = "/".into();
    assert_eq!(check(&op), Ok(()));
    op.mounts[0].input = 3;
    assert_eq!(check(&op), Err("invalid exec op with input index 3".into()));
}
