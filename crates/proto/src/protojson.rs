//! Protobuf's JSON for an operation, as error details carry it.
//!
//! Names are lower camel case, 64-bit numbers are text, enums are names, bytes
//! are base64, and what has its default value is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::pb;

/// An object under construction. Zero values are not added.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn text(mut self, key: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.insert(key.into(), value.into());
        }
        self
    }

    fn texts(mut self, key: &str, values: &[String]) -> Self {
        if !values.is_empty() {
            self.0.insert(key.into(), values.to_vec().into());
        }
        self
    }

    fn small(mut self, key: &str, value: impl Into<i64>) -> Self {
        let value = value.into();
        if value != 0 {
            self.0.insert(key.into(), value.into());
        }
        self
    }

    fn large(mut self, key: &str, value: i64) -> Self {
        if value != 0 {
            self.0.insert(key.into(), value.to_string().into());
        }
        self
    }

    fn flag(mut self, key: &str, value: bool) -> Self {
        if value {
            self.0.insert(key.into(), true.into());
        }
        self
    }

    /// An enum whose number 0 is its default.
    fn name(mut self, key: &str, number: i32, name: Option<&str>) -> Self {
        if number != 0 {
            self.0.insert(key.into(), name.map_or_else(|| number.into(), Value::from));
        }
        self
    }

    fn message(mut self, key: &str, value: Option<Value>) -> Self {
        if let Some(value) = value {
            self.0.insert(key.into(), value);
        }
        self
    }

    fn messages(mut self, key: &str, values: impl Iterator<Item = Value>) -> Self {
        let values: Vec<Value> = values.collect();
        if !values.is_empty() {
            self.0.insert(key.into(), values.into());
        }
        self
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// The JSON of an operation.
pub fn op(op: &pb::Op) -> Value {
    use pb::op::Op;
    let object = Object::default().messages(
        "inputs",
        op.inputs
            .iter()
            .map(|input| Object::default().text("digest", &input.digest).large("index", input.index).done()),
    );
    let object = match &op.op {
        None => object,
        Some(Op::Exec(exec)) => object.message("exec", Some(exec_op(exec))),
        Some(Op::Source(source)) => {
            let value =
                Object::default().text("identifier", &source.identifier).message("attrs", texts_by_name(&source.attrs));
            object.message("source", Some(value.done()))
        }
        Some(Op::File(file)) => {
            let value = Object::default().messages("actions", file.actions.iter().map(file_action));
            object.message("file", Some(value.done()))
        }
        Some(Op::Build(build)) => object.message("build", Some(build_op(build))),
        Some(Op::Merge(merge)) => {
            let inputs = merge.inputs.iter().map(|input| Object::default().large("input", input.input).done());
            object.message("merge", Some(Object::default().messages("inputs", inputs).done()))
        }
        Some(Op::Diff(diff)) => {
            let input = |input: i64| Object::default().large("input", input).done();
            let value = Object::default()
                .message("lower", diff.lower.as_ref().map(|lower| input(lower.input)))
                .message("upper", diff.upper.as_ref().map(|upper| input(upper.input)));
            object.message("diff", Some(value.done()))
        }
        Some(Op::Passthrough(passthrough)) => {
            let outputs = passthrough.outputs.iter().map(|output| output.to_string().into());
            let value = Object::default().text("id", &passthrough.id).messages("outputs", outputs);
            object.message("passthrough", Some(value.done()))
        }
    };
    object
        .message("platform", op.platform.as_ref().map(platform))
        .message(
            "constraints",
            op.constraints.as_ref().map(|constraints| Object::default().texts("filter", &constraints.filter).done()),
        )
        .done()
}

fn texts_by_name(values: &std::collections::BTreeMap<String, String>) -> Option<Value> {
    (!values.is_empty())
        .then(|| values.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect::<Map<_, _>>().into())
}

fn platform(platform: &pb::Platform) -> Value {
    Object::default()
        .text("Architecture", &platform.architecture)
        .text("OS", &platform.os)
        .text("Variant", &platform.variant)
        .text("OSVersion", &platform.os_version)
        .texts("OSFeatures", &platform.os_features)
        .done()
}

fn exec_op(exec: &pb::ExecOp) -> Value {
    Object::default()
        .message("meta", exec.meta.as_ref().map(meta))
        .messages("mounts", exec.mounts.iter().map(mount))
        .name("network", exec.network, pb::NetMode::try_from(exec.network).ok().map(|mode| mode.as_str_name()))
        .name("security", exec.security, pb::SecurityMode::try_from(exec.security).ok().map(|mode| mode.as_str_name()))
        .messages(
            "secretenv",
            exec.secretenv.iter().map(|secret| {
                Object::default()
                    .text("ID", &secret.id)
                    .text("name", &secret.name)
                    .flag("optional", secret.optional)
                    .done()
            }),
        )
        .messages(
            "cdiDevices",
            exec.cdi_devices
                .iter()
                .map(|device| Object::default().text("name", &device.name).flag("optional", device.optional).done()),
        )
        .done()
}

fn meta(meta: &pb::Meta) -> Value {
    let proxy = meta.proxy_env.as_ref().map(|proxy| {
        Object::default()
            .text("httpProxy", &proxy.http_proxy)
            .text("httpsProxy", &proxy.https_proxy)
            .text("ftpProxy", &proxy.ftp_proxy)
            .text("noProxy", &proxy.no_proxy)
            .text("allProxy", &proxy.all_proxy)
            .done()
    });
    Object::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .message("proxyEnv", proxy)
        .messages(
            "extraHosts",
            meta.extra_hosts.iter().map(|host| Object::default().text("Host", &host.host).text("IP", &host.ip).done()),
        )
        .text("hostname", &meta.hostname)
        .messages(
            "ulimit",
            meta.ulimit.iter().map(|limit| {
                Object::default().text("Name", &limit.name).large("Soft", limit.soft).large("Hard", limit.hard).done()
            }),
        )
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .messages("validExitCodes", meta.valid_exit_codes.iter().map(|code| (*code).into()))
        .done()
}

fn mount(mount: &pb::Mount) -> Value {
    let secret = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        Object::default()
            .text("ID", id)
            .small("uid", uid)
            .small("gid", gid)
            .small("mode", mode)
            .flag("optional", optional)
            .done()
    };
    let kind = pb::MountType::try_from(mount.mount_type).ok();
    let content = pb::MountContentCache::try_from(mount.content_cache).ok();
    Object::default()
        .large("input", mount.input)
        .text("selector", &mount.selector)
        .text("dest", &mount.dest)
        .large("output", mount.output)
        .flag("readonly", mount.readonly)
        .name("mountType", mount.mount_type, kind.map(|kind| kind.as_str_name()))
        .message("TmpfsOpt", mount.tmpfs_opt.as_ref().map(|tmpfs| Object::default().large("size", tmpfs.size).done()))
        .message(
            "cacheOpt",
            mount.cache_opt.as_ref().map(|cache| {
                let sharing = pb::CacheSharingOpt::try_from(cache.sharing).ok();
                Object::default()
                    .text("ID", &cache.id)
                    .name("sharing", cache.sharing, sharing.map(|sharing| sharing.as_str_name()))
                    .done()
            }),
        )
        .message(
            "secretOpt",
            mount.secret_opt.as_ref().map(|opt| secret(&opt.id, opt.uid, opt.gid, opt.mode, opt.optional)),
        )
        .message("SSHOpt", mount.ssh_opt.as_ref().map(|opt| secret(&opt.id, opt.uid, opt.gid, opt.mode, opt.optional)))
        .text("resultID", &mount.result_id)
        .name("contentCache", mount.content_cache, content.map(|content| content.as_str_name()))
        .done()
}

fn file_action(action: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let object = Object::default()
        .large("input", action.input)
        .large("secondaryInput", action.secondary_input)
        .large("output", action.output);
    match &action.action {
        None => object,
        Some(Action::Copy(copy)) => object.message("copy", Some(file_copy(copy))),
        Some(Action::Mkfile(file)) => {
            let value = Object::default()
                .text("path", &file.path)
                .small("mode", file.mode)
                .text("data", &STANDARD.encode(&file.data))
                .message("owner", file.owner.as_ref().map(owner))
                .large("timestamp", file.timestamp);
            object.message("mkfile", Some(value.done()))
        }
        Some(Action::Mkdir(dir)) => {
            let value = Object::default()
                .text("path", &dir.path)
                .small("mode", dir.mode)
                .flag("makeParents", dir.make_parents)
                .message("owner", dir.owner.as_ref().map(owner))
                .large("timestamp", dir.timestamp);
            object.message("mkdir", Some(value.done()))
        }
        Some(Action::Rm(rm)) => {
            let value = Object::default()
                .text("path", &rm.path)
                .flag("allowNotFound", rm.allow_not_found)
                .flag("allowWildcard", rm.allow_wildcard);
            object.message("rm", Some(value.done()))
        }
        Some(Action::Symlink(link)) => {
            let value = Object::default()
                .text("oldpath", &link.oldpath)
                .text("newpath", &link.newpath)
                .message("owner", link.owner.as_ref().map(owner))
                .large("timestamp", link.timestamp);
            object.message("symlink", Some(value.done()))
        }
    }
    .done()
}

fn file_copy(copy: &pb::FileActionCopy) -> Value {
    Object::default()
        .text("src", &copy.src)
        .text("dest", &copy.dest)
        .message("owner", copy.owner.as_ref().map(owner))
        .small("mode", copy.mode)
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .large("timestamp", copy.timestamp)
        .texts("includePatterns", &copy.include_patterns)
        .texts("excludePatterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .text("modeStr", &copy.mode_str)
        .texts("requiredPaths", &copy.required_paths)
        .done()
}

fn owner(owner: &pb::ChownOpt) -> Value {
    let user = |user: &pb::UserOpt| match &user.user {
        None => Object::default().done(),
        Some(pb::user_opt::User::ByName(name)) => {
            let value = Object::default().text("name", &name.name).large("input", name.input).done();
            Object::default().message("byName", Some(value)).done()
        }
        // A member of a oneof is written even where it is zero.
        Some(pb::user_opt::User::ById(id)) => Object::default().message("byID", Some((*id).into())).done(),
    };
    Object::default()
        .message("user", owner.user.as_ref().map(user))
        .message("group", owner.group.as_ref().map(user))
        .done()
}

fn build_op(build: &pb::BuildOp) -> Value {
    let inputs: Map<String, Value> = build
        .inputs
        .iter()
        .map(|(name, input)| (name.clone(), Object::default().large("input", input.input).done()))
        .collect();
    let def = build.def.as_ref().map(|definition| {
        Object::default().messages("def", definition.def.iter().map(|op| STANDARD.encode(op).into())).done()
    });
    Object::default()
        .large("builder", build.builder)
        .message("inputs", (!inputs.is_empty()).then_some(Value::Object(inputs)))
        .message("def", def)
        .message("attrs", texts_by_name(&build.attrs))
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_written_as_protobuf_does() {
        let exec = pb::Op {
            inputs: vec![pb::Input { digest: "sha256:aa".into(), index: 1 }, pb::Input::default()],
            op: Some(pb::op::Op::Exec(pb::ExecOp {
                meta: Some(pb::Meta {
                    args: vec!["/bin/sh".into()],
                    cwd: "/".into(),
                    ulimit: vec![pb::Ulimit { name: "nofile".into(), soft: 1024, hard: 2048 }],
                    ..pb::Meta::default()
                }),
                mounts: vec![pb::Mount {
                    input: -1,
                    dest: "/c".into(),
                    mount_type: pb::MountType::Cache as i32,
                    cache_opt: Some(pb::CacheOpt { id: "x".into(), sharing: 2 }),
                    ..pb::Mount::default()
                }],
                network: pb::NetMode::Host as i32,
                ..pb::ExecOp::default()
            })),
            platform: Some(pb::Platform {
                architecture: "amd64".into(),
                os: "linux".into(),
                ..pb::Platform::default()
            }),
            constraints: Some(pb::WorkerConstraints::default()),
        };
        let want = serde_json::json!({
            "inputs": [{"digest": "sha256:aa", "index": "1"}, {}],
            "exec": {
                "meta": {
                    "args": ["/bin/sh"],
                    "cwd": "/",
                    "ulimit": [{"Name": "nofile", "Soft": "1024", "Hard": "2048"}]
                },
                "mounts": [{
                    "input": "-1",
                    "dest": "/c",
                    "mountType": "CACHE",
                    "cacheOpt": {"ID": "x", "sharing": "LOCKED"}
                }],
                "network": "HOST"
            },
            "platform": {"Architecture": "amd64", "OS": "linux"},
            "constraints": {}
        });
        assert_eq!(op(&exec), want);
    }
}
