//! An operation in Go's JSON, as provenance quotes it: numbers are numbers, enums too, and what the operation is stands
//! under `Op`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::object;
use crate::pb;
use crate::pb::file_action::Action;
use crate::pb::op::Op;

/// The operation; its inputs are the caller's to name.
pub fn op(op: &pb::Op) -> Value {
    let what = match &op.op {
        None => None,
        Some(Op::Exec(exec)) => Some(("exec", exec_op(exec))),
        Some(Op::Source(source)) => Some(("source", source_op(source))),
        Some(Op::File(file)) => Some(("file", list_of("actions", file.actions.iter().map(file_action)))),
        Some(Op::Build(build)) => Some(("build", build_op(build))),
        Some(Op::Merge(merge)) => Some(("merge", list_of("inputs", merge.inputs.iter().map(|i| input(i.input))))),
        Some(Op::Diff(diff)) => Some((
            "diff",
            object([
                ("lower", given(&diff.lower, |lower| input(lower.input))),
                ("upper", given(&diff.upper, |upper| input(upper.input))),
            ]),
        )),
        Some(Op::Passthrough(pass)) => {
            Some(("passthrough", object([("id", json!(pass.id)), ("outputs", json!(pass.outputs))])))
        }
    };
    object([
        ("Op", one_of(what)),
        ("platform", given(&op.platform, platform)),
        ("constraints", given(&op.constraints, |some| object([("filter", json!(some.filter))]))),
    ])
}

/// What is there, written as `write` has it; left out where there is nothing.
fn given<T>(what: &Option<T>, write: impl FnOnce(&T) -> Value) -> Value {
    what.as_ref().map_or(Value::Null, write)
}

/// One of several kinds of a thing, under its name. It stays also where there is none.
fn one_of(kind: Option<(&str, Value)>) -> Value {
    Value::Object(kind.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn list_of(name: &str, values: impl Iterator<Item = Value>) -> Value {
    object([(name, Value::Array(values.collect()))])
}

fn input(input: i64) -> Value {
    object([("input", json!(input))])
}

/// A map, left out where it is empty.
fn texts(values: &std::collections::BTreeMap<String, String>) -> Value {
    if values.is_empty() { Value::Null } else { json!(values) }
}

fn platform(platform: &pb::Platform) -> Value {
    object([
        ("Architecture", json!(platform.architecture)),
        ("OS", json!(platform.os)),
        ("Variant", json!(platform.variant)),
        ("OSVersion", json!(platform.os_version)),
        ("OSFeatures", json!(platform.os_features)),
    ])
}

fn source_op(source: &pb::SourceOp) -> Value {
    object([("identifier", json!(source.identifier)), ("attrs", texts(&source.attrs))])
}

fn exec_op(exec: &pb::ExecOp) -> Value {
    let secret = |env: &pb::SecretEnv| {
        object([("ID", json!(env.id)), ("name", json!(env.name)), ("optional", json!(env.optional))])
    };
    let device = |device: &pb::CdiDevice| object([("name", json!(device.name)), ("optional", json!(device.optional))]);
    object([
        ("meta", given(&exec.meta, meta)),
        ("mounts", exec.mounts.iter().map(mount).collect()),
        ("network", json!(exec.network)),
        ("security", json!(exec.security)),
        ("secretenv", exec.secretenv.iter().map(secret).collect()),
        ("cdiDevices", exec.cdi_devices.iter().map(device).collect()),
    ])
}

fn meta(meta: &pb::Meta) -> Value {
    let proxy = |proxy: &pb::ProxyEnv| {
        object([
            ("http_proxy", json!(proxy.http_proxy)),
            ("https_proxy", json!(proxy.https_proxy)),
            ("ftp_proxy", json!(proxy.ftp_proxy)),
            ("no_proxy", json!(proxy.no_proxy)),
            ("all_proxy", json!(proxy.all_proxy)),
        ])
    };
    let host = |host: &pb::HostIp| object([("Host", json!(host.host)), ("IP", json!(host.ip))]);
    let ulimit = |limit: &pb::Ulimit| {
        object([("Name", json!(limit.name)), ("Soft", json!(limit.soft)), ("Hard", json!(limit.hard))])
    };
    object([
        ("args", json!(meta.args)),
        ("env", json!(meta.env)),
        ("cwd", json!(meta.cwd)),
        ("user", json!(meta.user)),
        ("proxy_env", given(&meta.proxy_env, proxy)),
        ("extraHosts", meta.extra_hosts.iter().map(host).collect()),
        ("hostname", json!(meta.hostname)),
        ("ulimit", meta.ulimit.iter().map(ulimit).collect()),
        ("cgroupParent", json!(meta.cgroup_parent)),
        ("removeMountStubsRecursive", json!(meta.remove_mount_stubs_recursive)),
        ("validExitCodes", json!(meta.valid_exit_codes)),
    ])
}

fn mount(mount: &pb::Mount) -> Value {
    let secret = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        object([
            ("ID", json!(id)),
            ("uid", json!(uid)),
            ("gid", json!(gid)),
            ("mode", json!(mode)),
            ("optional", json!(optional)),
        ])
    };
    let cache = |cache: &pb::CacheOpt| object([("ID", json!(cache.id)), ("sharing", json!(cache.sharing))]);
    object([
        ("input", json!(mount.input)),
        ("selector", json!(mount.selector)),
        ("dest", json!(mount.dest)),
        ("output", json!(mount.output)),
        ("readonly", json!(mount.readonly)),
        ("mountType", json!(mount.mount_type)),
        ("TmpfsOpt", given(&mount.tmpfs_opt, |tmpfs| object([("size", json!(tmpfs.size))]))),
        ("cacheOpt", given(&mount.cache_opt, cache)),
        ("secretOpt", given(&mount.secret_opt, |opt| secret(&opt.id, opt.uid, opt.gid, opt.mode, opt.optional))),
        ("SSHOpt", given(&mount.ssh_opt, |opt| secret(&opt.id, opt.uid, opt.gid, opt.mode, opt.optional))),
        ("resultID", json!(mount.result_id)),
        ("contentCache", json!(mount.content_cache)),
    ])
}

fn file_action(action: &pb::FileAction) -> Value {
    let what = match &action.action {
        None => None,
        Some(Action::Copy(copy)) => Some(("copy", file_copy(copy))),
        Some(Action::Mkfile(file)) => Some((
            "mkfile",
            object([
                ("path", json!(file.path)),
                ("mode", json!(file.mode)),
                ("data", json!(STANDARD.encode(&file.data))),
                ("owner", given(&file.owner, owner)),
                ("timestamp", json!(file.timestamp)),
            ]),
        )),
        Some(Action::Mkdir(dir)) => Some((
            "mkdir",
            object([
                ("path", json!(dir.path)),
                ("mode", json!(dir.mode)),
                ("makeParents", json!(dir.make_parents)),
                ("owner", given(&dir.owner, owner)),
                ("timestamp", json!(dir.timestamp)),
            ]),
        )),
        Some(Action::Rm(rm)) => Some((
            "rm",
            object([
                ("path", json!(rm.path)),
                ("allowNotFound", json!(rm.allow_not_found)),
                ("allowWildcard", json!(rm.allow_wildcard)),
            ]),
        )),
        Some(Action::Symlink(link)) => Some((
            "symlink",
            object([
                ("oldpath", json!(link.oldpath)),
                ("newpath", json!(link.newpath)),
                ("owner", given(&link.owner, owner)),
                ("timestamp", json!(link.timestamp)),
            ]),
        )),
    };
    // Unlike elsewhere these three stay where they are zero.
    json!({
        "input": action.input,
        "secondaryInput": action.secondary_input,
        "output": action.output,
        "Action": one_of(what),
    })
}

fn file_copy(copy: &pb::FileActionCopy) -> Value {
    object([
        ("src", json!(copy.src)),
        ("dest", json!(copy.dest)),
        ("owner", given(&copy.owner, owner)),
        ("mode", json!(copy.mode)),
        ("followSymlink", json!(copy.follow_symlink)),
        ("dirCopyContents", json!(copy.dir_copy_contents)),
        ("attemptUnpackDockerCompatibility", json!(copy.attempt_unpack_docker_compatibility)),
        ("createDestPath", json!(copy.create_dest_path)),
        ("allowWildcard", json!(copy.allow_wildcard)),
        ("allowEmptyWildcard", json!(copy.allow_empty_wildcard)),
        ("timestamp", json!(copy.timestamp)),
        ("include_patterns", json!(copy.include_patterns)),
        ("exclude_patterns", json!(copy.exclude_patterns)),
        ("alwaysReplaceExistingDestPaths", json!(copy.always_replace_existing_dest_paths)),
        ("modeStr", json!(copy.mode_str)),
        ("required_paths", json!(copy.required_paths)),
    ])
}

fn owner(owner: &pb::ChownOpt) -> Value {
    let user = |user: &pb::UserOpt| {
        let inner = match &user.user {
            None => object([]),
            Some(pb::user_opt::User::ByName(name)) => {
                object([("byName", object([("name", json!(name.name)), ("input", json!(name.input))]))])
            }
            Some(pb::user_opt::User::ById(id)) => object([("byId", json!(id))]),
        };
        object([("User", inner)])
    };
    object([("user", given(&owner.user, user)), ("group", given(&owner.group, user))])
}

fn build_op(build: &pb::BuildOp) -> Value {
    let inputs: Map<String, Value> =
        build.inputs.iter().map(|(name, some)| (name.clone(), input(some.input))).collect();
    object([
        ("builder", json!(build.builder)),
        ("inputs", if inputs.is_empty() { Value::Null } else { Value::Object(inputs) }),
        ("def", given(&build.def, super::definition)),
        ("attrs", texts(&build.attrs)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_written_as_go_writes_it() {
        let exec = pb::Op {
            op: Some(Op::Exec(pb::ExecOp {
                meta: Some(pb::Meta { args: vec!["a".into()], cwd: "/".into(), ..pb::Meta::default() }),
                mounts: vec![pb::Mount { input: -1, dest: "/c".into(), mount_type: 3, ..pb::Mount::default() }],
                ..pb::ExecOp::default()
            })),
            platform: Some(pb::Platform {
                architecture: "amd64".into(),
                os: "linux".into(),
                ..pb::Platform::default()
            }),
            constraints: Some(pb::WorkerConstraints::default()),
            ..pb::Op::default()
        };
        let want = json!({
            "Op": {"exec": {
                "meta": {"args": ["a"], "cwd": "/"},
                "mounts": [{"input": -1, "dest": "/c", "mountType": 3}],
            }},
            "platform": {"Architecture": "amd64", "OS": "linux"},
            "constraints": {},
        });
        assert_eq!(op(&exec), want);
        let user = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        let mkdir = pb::FileActionMkDir {
            path: "/a".into(),
            owner: Some(pb::ChownOpt { user: Some(user), group: None }),
            timestamp: -1,
            ..pb::FileActionMkDir::default()
        };
        let action = pb::FileAction { action: Some(Action::Mkdir(mkdir)), ..pb::FileAction::default() };
        let file = pb::Op { op: Some(Op::File(pb::FileOp { actions: vec![action] })), ..pb::Op::default() };
        let want = json!({"Op": {"file": {"actions": [{
            "input": 0, "secondaryInput": 0, "output": 0,
            "Action": {"mkdir": {"path": "/a", "owner": {"user": {"User": {}}}, "timestamp": -1}},
        }]}}});
        assert_eq!(op(&file), want);
    }
}
