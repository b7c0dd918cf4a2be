//! Typed ops → wire ops → bytes, as Go's deterministic marshaller writes them.
//!
//! Fields in the order of their numbers, maps sorted by key, defaults left out: prost does the same, but for two
//! things: the place of a `oneof`, and the empty key or value of a map entry, which Go writes too; see [`encode`].

use std::collections::BTreeMap;

use bytes::Bytes;
use castor_oci::Platform;
use castor_proto::pb;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::op::{
    CacheSharing, Chown, ContentCache, ExecOp, FileActionKind, FileInput, FileOp, Mount, MountKind, NetMode, Op,
    SecurityMode, UserOpt,
};

fn index(index: Option<usize>) -> i64 {
    index.map_or(-1, |index| i64::try_from(index).unwrap_or(i64::MAX))
}

/// The wire's platform.
pub(crate) fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

/// The bytes of a whole op. Go writes what the op does, the members of a `oneof`, behind all other fields.
pub(crate) fn encode(op: &pb::Op) -> Bytes {
    let mut out = pb::Op {
        inputs: op.inputs.clone(),
        platform: op.platform.clone(),
        constraints: op.constraints.clone(),
        op: None,
    }
    .encode_to_vec();
    match &op.op {
        Some(pb::op::Op::Source(source))
            if source.attrs.iter().any(|(key, value)| key.is_empty() || value.is_empty()) =>
        {
            let identifier = source.identifier.clone();
            let mut body = pb::SourceOp { identifier, attrs: BTreeMap::new() }.encode_to_vec();
            for (key, value) in &source.attrs {
                let mut entry = Vec::new();
                string(1, key, &mut entry);
                string(2, value, &mut entry);
                message(2, &entry, &mut body);
            }
            message(3, &body, &mut out);
        }
        what => out.extend(pb::Op { op: what.clone(), ..pb::Op::default() }.encode_to_vec()),
    }
    out.into()
}

fn string(tag: u32, text: &str, out: &mut Vec<u8>) {
    message(tag, text.as_bytes(), out);
}

fn message(tag: u32, body: &[u8], out: &mut Vec<u8>) {
    out.reserve(encoded_len_varint(body.len() as u64) + body.len() + 1);
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

/// The wire's form of what `op` does. `inputs` is the number of its inputs.
pub(crate) fn op(op: Op, inputs: usize) -> pb::op::Op {
    match op {
        Op::Source(source) => pb::op::Op::Source(pb::SourceOp { identifier: source.identifier, attrs: source.attrs }),
        Op::Exec(exec) => pb::op::Op::Exec(exec_op(exec)),
        Op::File(file) => pb::op::Op::File(file_op(file, inputs)),
        Op::Merge(merge) => pb::op::Op::Merge(pb::MergeOp {
            inputs: merge.inputs.into_iter().map(|input| pb::MergeInput { input: index(Some(input)) }).collect(),
        }),
        Op::Diff(diff) => pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: index(diff.lower) }),
            upper: Some(pb::UpperDiffInput { input: index(diff.upper) }),
        }),
        Op::Build(build) => pb::op::Op::Build(pb::BuildOp {
            builder: build.builder,
            inputs: build.inputs.into_iter().map(|(name, input)| (name, pb::BuildInput { input })).collect(),
            def: None,
            attrs: build.attrs,
        }),
        Op::Passthrough(passthrough) => pb::op::Op::Passthrough(pb::PassthroughOp {
            id: passthrough.id,
            outputs: passthrough.outputs.into_iter().map(|input| index(Some(input))).collect(),
        }),
    }
}

fn exec_op(exec: ExecOp) -> pb::ExecOp {
    let meta = exec.meta;
    let network = match exec.network {
        NetMode::Unset => pb::NetMode::Unset,
        NetMode::Host => pb::NetMode::Host,
        NetMode::None => pb::NetMode::None,
    };
    let security = match exec.security {
        SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
        SecurityMode::Insecure => pb::SecurityMode::Insecure,
    };
    pb::ExecOp {
        meta: Some(pb::Meta {
            args: meta.args,
            env: meta.env,
            cwd: meta.cwd,
            user: meta.user,
            proxy_env: meta.proxy_env.map(|proxy| pb::ProxyEnv {
                http_proxy: proxy.http_proxy,
                https_proxy: proxy.https_proxy,
                ftp_proxy: proxy.ftp_proxy,
                no_proxy: proxy.no_proxy,
                all_proxy: proxy.all_proxy,
            }),
            extra_hosts: meta.extra_hosts.into_iter().map(|host| pb::HostIp { host: host.host, ip: host.ip }).collect(),
            hostname: meta.hostname,
            ulimit: meta
                .ulimits
                .into_iter()
                .map(|limit| pb::Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
                .collect(),
            cgroup_parent: meta.cgroup_parent,
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes,
        }),
        mounts: exec.mounts.into_iter().map(mount).collect(),
        network: network.into(),
        security: security.into(),
        secretenv: exec
            .secret_env
            .into_iter()
            .map(|env| pb::SecretEnv { id: env.id, name: env.name, optional: env.optional })
            .collect(),
        cdi_devices: exec
            .cdi_devices
            .into_iter()
            .map(|device| pb::CdiDevice { name: device.name, optional: device.optional })
            .collect(),
    }
}

fn mount(mount: Mount) -> pb::Mount {
    let mut wire = pb::Mount {
        input: index(mount.input),
        selector: mount.selector,
        dest: mount.dest,
        output: index(mount.output),
        readonly: mount.readonly,
        result_id: mount.result_id,
        ..pb::Mount::default()
    };
    let content_cache = match mount.content_cache {
        ContentCache::Default => pb::MountContentCache::Default,
        ContentCache::On => pb::MountContentCache::On,
        ContentCache::Off => pb::MountContentCache::Off,
    };
    wire.content_cache = content_cache.into();
    let mount_type = match mount.kind {
        MountKind::Bind => pb::MountType::Bind,
        MountKind::Secret(secret) => {
            wire.output = 0;
            wire.secret_opt = Some(pb::SecretOpt {
                id: secret.id,
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
                optional: secret.optional,
            });
            pb::MountType::Secret
        }
        MountKind::Ssh(ssh) => {
            wire.output = 0;
            wire.ssh_opt =
                Some(pb::SshOpt { id: ssh.id, uid: ssh.uid, gid: ssh.gid, mode: ssh.mode, optional: ssh.optional });
            pb::MountType::Ssh
        }
        MountKind::Cache(cache) => {
            let sharing = match cache.sharing {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            };
            wire.cache_opt = Some(pb::CacheOpt { id: cache.id, sharing: sharing.into() });
            pb::MountType::Cache
        }
        MountKind::Tmpfs { size } => {
            wire.tmpfs_opt = Some(pb::TmpfsOpt { size });
            pb::MountType::Tmpfs
        }
    };
    wire.mount_type = mount_type.into();
    wire
}

fn file_op(file: FileOp, inputs: usize) -> pb::FileOp {
    let number = |input: FileInput| match input {
        FileInput::Scratch => -1,
        FileInput::Input(input) => index(Some(input)),
        FileInput::Action(action) => index(Some(inputs + action)),
    };
    let user = |user: Option<UserOpt>| {
        user.map(|user| {
            let user = match user {
                UserOpt::Name { name, input } => {
                    pb::user_opt::User::ByName(pb::NamedUserOpt { name, input: number(input) })
                }
                UserOpt::Id(id) => pb::user_opt::User::ById(id),
            };
            pb::UserOpt { user: Some(user) }
        })
    };
    let owner =
        |owner: Option<Chown>| owner.map(|owner| pb::ChownOpt { user: user(owner.user), group: user(owner.group) });
    let kind = |kind: FileActionKind| match kind {
        FileActionKind::Copy(copy) => pb::file_action::Action::Copy(pb::FileActionCopy {
            src: copy.src,
            dest: copy.dest,
            owner: owner(copy.owner),
            mode: copy.mode,
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack_docker_compatibility: copy.attempt_unpack,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: copy.timestamp,
            include_patterns: copy.include_patterns,
            exclude_patterns: copy.exclude_patterns,
            always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
            mode_str: copy.mode_str,
            required_paths: copy.required_paths,
        }),
        FileActionKind::Mkfile(file) => pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: file.path,
            mode: file.mode,
            data: file.data,
            owner: owner(file.owner),
            timestamp: file.timestamp,
        }),
        FileActionKind::Mkdir(dir) => pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: dir.path,
            mode: dir.mode,
            make_parents: dir.make_parents,
            owner: owner(dir.owner),
            timestamp: dir.timestamp,
        }),
        FileActionKind::Rm(rm) => pb::file_action::Action::Rm(pb::FileActionRm {
            path: rm.path,
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        FileActionKind::Symlink(link) => pb::file_action::Action::Symlink(pb::FileActionSymlink {
            oldpath: link.oldpath,
            newpath: link.newpath,
            owner: owner(link.owner),
            timestamp: link.timestamp,
        }),
    };
    pb::FileOp {
        actions: file
            .actions
            .into_iter()
            .map(|action| pb::FileAction {
                input: number(action.input),
                secondary_input: number(action.secondary_input),
                output: index(action.output),
                action: Some(kind(action.kind)),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use castor_oci::Digest;

    use super::*;
    use crate::Limits;
    use crate::decode::decode_op;

    /// Definitions of BuildKit 73ed6825, as its frontend and its Go client wrote them.
    fn definitions() -> Vec<(String, pb::Definition)> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/definitions.json");
        let cases: Vec<BTreeMap<String, String>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let decode = |text: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            pb::Definition::decode(bytes.as_slice()).unwrap()
        };
        cases.into_iter().map(|case| (case["name"].clone(), decode(&case["definition"]))).collect()
    }

    #[test]
    fn ops_of_buildkit_come_out_byte_for_byte() {
        let mut count = 0;
        for (name, definition) in definitions() {
            for raw in &definition.def {
                let mut wire = pb::Op::decode(raw.clone()).unwrap();
                let inputs = wire.inputs.len();
                if wire.op.is_some() {
                    let typed = decode_op(wire.clone(), Digest::of(raw), &Limits::default()).unwrap();
                    wire.op = Some(op(typed, inputs));
                }
                assert_eq!(encode(&wire), raw, "{name}: {wire:?}");
                count += 1;
            }
        }
        assert!(count > 60, "{count}");
    }

    #[test]
    fn empty_map_values_are_written() {
        let attrs = BTreeMap::from([("a".to_owned(), String::new())]);
        let source = pb::op::Op::Source(pb::SourceOp { identifier: "x".into(), attrs });
        let bytes = encode(&pb::Op { op: Some(source), ..pb::Op::default() });
        assert_eq!(bytes.as_ref(), b"\x1a\x0a\x0a\x01x\x12\x05\x0a\x01a\x12\x00");
    }
}
