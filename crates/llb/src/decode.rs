//! Wire ops → typed ops.

use castor_oci::{Digest, Platform};
use castor_proto::pb;

use crate::graph::Limits;
use crate::op::{
    BuildOp, CacheMount, CacheSharing, CdiDevice, Chown, ContentCache, Copy, DiffOp, ExecOp, FileAction,
    FileActionKind, FileInput, FileOp, HostIp, MergeOp, Meta, Mkdir, Mkfile, Mount, MountKind, NetMode, Op,
    PassthroughOp, ProxyEnv, Rm, SecretEnv, SecretMount, SecurityMode, SourceOp, Symlink, Ulimit, UserOpt,
};
use crate::{LlbError, Source};

/// The wire's platform, normalised.
pub(crate) fn platform(wire: &pb::Platform) -> Platform {
    Platform {
        architecture: wire.architecture.clone(),
        os: wire.os.clone(),
        os_version: wire.os_version.clone(),
        os_features: wire.os_features.clone(),
        variant: wire.variant.clone(),
    }
    .normalize()
}

fn invalid(kind: &'static str, problem: impl Into<String>) -> LlbError {
    LlbError::Invalid { kind, problem: problem.into() }
}

/// An index into `count` inputs; -1 is none.
fn input(kind: &'static str, index: i64, count: usize) -> Result<Option<usize>, LlbError> {
    match usize::try_from(index) {
        Ok(index) if index < count => Ok(Some(index)),
        Err(_) if index == -1 => Ok(None),
        _ => Err(invalid(kind, format!("with input index {index}"))),
    }
}

/// An output index; -1 is none.
fn output(kind: &'static str, index: i64, parts: usize) -> Result<Option<usize>, LlbError> {
    match usize::try_from(index) {
        Ok(index) if index < parts => Ok(Some(index)),
        Err(_) if index == -1 => Ok(None),
        _ => Err(invalid(kind, format!("with output index {index}"))),
    }
}

/// Decodes one op and checks all that can be checked without its inputs.
pub(crate) fn decode_op(wire: pb::Op, digest: Digest, limits: &Limits) -> Result<Op, LlbError> {
    let inputs = wire.inputs.len();
    let check = |kind, parts: usize| {
        if parts > limits.parts { Err(LlbError::Limit { what: kind, limit: limits.parts }) } else { Ok(()) }
    };
    match wire.op {
        None => Err(LlbError::UnknownOp(digest)),
        Some(pb::op::Op::Source(source)) => Ok(Op::Source(SourceOp {
            source: Source::parse(&source.identifier, &source.attrs)?,
            identifier: source.identifier,
            attrs: source.attrs,
        })),
        Some(pb::op::Op::Exec(exec)) => {
            check("mounts of an exec op", exec.mounts.len())?;
            exec_op(exec, inputs).map(Op::Exec)
        }
        Some(pb::op::Op::File(file)) => {
            check("actions of a file op", file.actions.len())?;
            file_op(file, inputs).map(Op::File)
        }
        Some(pb::op::Op::Build(build)) => Ok(Op::Build(BuildOp {
            builder: build.builder,
            inputs: build.inputs.into_iter().map(|(name, wire)| (name, wire.input)).collect(),
            attrs: build.attrs,
        })),
        Some(pb::op::Op::Merge(merge)) => {
            let index = |wire: &pb::MergeInput| {
                input("merge", wire.input, inputs)?.ok_or_else(|| invalid("merge", "with a scratch input"))
            };
            Ok(Op::Merge(MergeOp { inputs: merge.inputs.iter().map(index).collect::<Result<_, _>>()? }))
        }
        Some(pb::op::Op::Diff(diff)) => match (diff.lower, diff.upper) {
            (Some(lower), Some(upper)) => Ok(Op::Diff(DiffOp {
                lower: input("diff", lower.input, inputs)?,
                upper: input("diff", upper.input, inputs)?,
            })),
            _ => Err(invalid("diff", "with nil lower or upper input")),
        },
        Some(pb::op::Op::Passthrough(passthrough)) => {
            if passthrough.id.is_empty() {
                return Err(invalid("passthrough", "with no id"));
            }
            if passthrough.outputs.is_empty() {
                return Err(invalid("passthrough", "with no outputs"));
            }
            let index = |&wire: &i64| {
                input("passthrough", wire, inputs)?.ok_or_else(|| invalid("passthrough", "with a scratch output"))
            };
            let outputs = passthrough.outputs.iter().map(index).collect::<Result<_, _>>()?;
            Ok(Op::Passthrough(PassthroughOp { id: passthrough.id, outputs }))
        }
    }
}

fn exec_op(wire: pb::ExecOp, inputs: usize) -> Result<ExecOp, LlbError> {
    let network = match wire.network() {
        pb::NetMode::Unset => NetMode::Unset,
        pb::NetMode::Host => NetMode::Host,
        pb::NetMode::None => NetMode::None,
    };
    let security = match wire.security() {
        pb::SecurityMode::Sandbox => SecurityMode::Sandbox,
        pb::SecurityMode::Insecure => SecurityMode::Insecure,
    };
    if pb::NetMode::try_from(wire.network).is_err() {
        return Err(LlbError::Mode { what: "network", mode: wire.network });
    }
    if pb::SecurityMode::try_from(wire.security).is_err() {
        return Err(LlbError::Mode { what: "security", mode: wire.security });
    }
    let meta = wire.meta.ok_or_else(|| invalid("exec", "with no meta"))?;
    if meta.args.is_empty() {
        return Err(invalid("exec", "with no args"));
    }
    if wire.mounts.is_empty() {
        return Err(invalid("exec", "with no mounts"));
    }
    if !wire.mounts.iter().any(|mount| mount.dest == "/") {
        return Err(invalid("exec", "with no rootfs"));
    }
    let parts = wire.mounts.len();
    Ok(ExecOp {
        meta: exec_meta(meta),
        mounts: wire.mounts.into_iter().map(|mount| exec_mount(mount, inputs, parts)).collect::<Result<_, _>>()?,
        network,
        security,
        secret_env: wire
            .secretenv
            .into_iter()
            .map(|env| SecretEnv { id: env.id, name: env.name, optional: env.optional })
            .collect(),
        cdi_devices: wire
            .cdi_devices
            .into_iter()
            .map(|device| CdiDevice { name: device.name, optional: device.optional })
            .collect(),
    })
}

fn exec_meta(wire: pb::Meta) -> Meta {
    Meta {
        args: wire.args,
        env: wire.env,
        cwd: wire.cwd,
        user: wire.user,
        proxy_env: wire.proxy_env.map(|proxy| ProxyEnv {
            http_proxy: proxy.http_proxy,
            https_proxy: proxy.https_proxy,
            ftp_proxy: proxy.ftp_proxy,
            no_proxy: proxy.no_proxy,
            all_proxy: proxy.all_proxy,
        }),
        extra_hosts: wire.extra_hosts.into_iter().map(|host| HostIp { host: host.host, ip: host.ip }).collect(),
        hostname: wire.hostname,
        ulimits: wire
            .ulimit
            .into_iter()
            .map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
            .collect(),
        cgroup_parent: wire.cgroup_parent,
        remove_mount_stubs_recursive: wire.remove_mount_stubs_recursive,
        valid_exit_codes: wire.valid_exit_codes,
    }
}

/// A mount of a container that a frontend starts: what it shows is named by an id, and nothing comes of it.
pub fn container_mount(mut wire: pb::Mount) -> Result<Mount, LlbError> {
    (wire.input, wire.output) = (-1, -1);
    exec_mount(wire, 0, 0)
}

fn exec_mount(wire: pb::Mount, inputs: usize, parts: usize) -> Result<Mount, LlbError> {
    let mount_type = pb::MountType::try_from(wire.mount_type)
        .map_err(|_| invalid("exec", format!("with mount type {}", wire.mount_type)))?;
    let kind = match mount_type {
        pb::MountType::Bind => MountKind::Bind,
        pb::MountType::Secret => MountKind::Secret(wire.secret_opt.map_or_else(SecretMount::default, |secret| {
            let pb::SecretOpt { id, uid, gid, mode, optional } = secret;
            SecretMount { id, uid, gid, mode, optional }
        })),
        pb::MountType::Ssh => MountKind::Ssh(wire.ssh_opt.map_or_else(SecretMount::default, |ssh| {
            let pb::SshOpt { id, uid, gid, mode, optional } = ssh;
            SecretMount { id, uid, gid, mode, optional }
        })),
        pb::MountType::Cache => {
            let cache = wire.cache_opt.unwrap_or_default();
            let sharing = match cache.sharing() {
                pb::CacheSharingOpt::Shared => CacheSharing::Shared,
                pb::CacheSharingOpt::Private => CacheSharing::Private,
                pb::CacheSharingOpt::Locked => CacheSharing::Locked,
            };
            MountKind::Cache(CacheMount { id: cache.id, sharing })
        }
        pb::MountType::Tmpfs => MountKind::Tmpfs { size: wire.tmpfs_opt.map_or(0, |tmpfs| tmpfs.size) },
    };
    let content_cache = match pb::MountContentCache::try_from(wire.content_cache) {
        Ok(pb::MountContentCache::On) => ContentCache::On,
        Ok(pb::MountContentCache::Off) => ContentCache::Off,
        _ => ContentCache::Default,
    };
    // Secrets and ssh agents are sent without output index, which reads as 0; they have none.
    let output = match kind {
        MountKind::Secret(_) | MountKind::Ssh(_) => None,
        _ => output("exec", wire.output, parts)?,
    };
    Ok(Mount {
        input: input("exec", wire.input, inputs)?,
        selector: wire.selector,
        dest: wire.dest,
        output,
        readonly: wire.readonly,
        kind,
        result_id: wire.result_id,
        content_cache,
    })
}

/// What is in reach of the file action at `position`.
#[derive(Clone, Copy)]
struct Reach {
    inputs: usize,
    position: usize,
}

impl Reach {
    fn input(self, index: i64) -> Result<FileInput, LlbError> {
        match usize::try_from(index) {
            Ok(index) if index < self.inputs => Ok(FileInput::Input(index)),
            Ok(index) if index - self.inputs < self.position => Ok(FileInput::Action(index - self.inputs)),
            Err(_) if index == -1 => Ok(FileInput::Scratch),
            _ => Err(invalid("file", format!("with input index {index}"))),
        }
    }

    fn user(self, wire: Option<pb::UserOpt>) -> Result<Option<UserOpt>, LlbError> {
        match wire.and_then(|user| user.user) {
            None => Ok(None),
            Some(pb::user_opt::User::ById(id)) => Ok(Some(UserOpt::Id(id))),
            Some(pb::user_opt::User::ByName(user)) => {
                Ok(Some(UserOpt::Name { name: user.name, input: self.input(user.input)? }))
            }
        }
    }

    fn owner(self, wire: Option<pb::ChownOpt>) -> Result<Option<Chown>, LlbError> {
        wire.map(|chown| Ok(Chown { user: self.user(chown.user)?, group: self.user(chown.group)? })).transpose()
    }
}

fn file_op(wire: pb::FileOp, inputs: usize) -> Result<FileOp, LlbError> {
    if wire.actions.is_empty() {
        return Err(invalid("file", "with no actions"));
    }
    let parts = wire.actions.len();
    let action = |(position, action): (usize, pb::FileAction)| {
        let reach = Reach { inputs, position };
        Ok(FileAction {
            input: reach.input(action.input)?,
            secondary_input: reach.input(action.secondary_input)?,
            output: output("file", action.output, parts)?,
            kind: file_action(action.action, reach)?,
        })
    };
    Ok(FileOp { actions: wire.actions.into_iter().enumerate().map(action).collect::<Result<_, LlbError>>()? })
}

fn file_action(wire: Option<pb::file_action::Action>, reach: Reach) -> Result<FileActionKind, LlbError> {
    use pb::file_action::Action;
    Ok(match wire {
        None => return Err(invalid("file", "with an action of no kind")),
        Some(Action::Copy(copy)) => FileActionKind::Copy(Copy {
            src: copy.src,
            dest: copy.dest,
            owner: reach.owner(copy.owner)?,
            mode: copy.mode,
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack: copy.attempt_unpack_docker_compatibility,
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
        Some(Action::Mkfile(file)) => FileActionKind::Mkfile(Mkfile {
            path: file.path,
            mode: file.mode,
            data: file.data,
            owner: reach.owner(file.owner)?,
            timestamp: file.timestamp,
        }),
        Some(Action::Mkdir(dir)) => FileActionKind::Mkdir(Mkdir {
            path: dir.path,
            mode: dir.mode,
            make_parents: dir.make_parents,
            owner: reach.owner(dir.owner)?,
            timestamp: dir.timestamp,
        }),
        Some(Action::Rm(rm)) => FileActionKind::Rm(Rm {
            path: rm.path,
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        Some(Action::Symlink(link)) => FileActionKind::Symlink(Symlink {
            oldpath: link.oldpath,
            newpath: link.newpath,
            owner: reach.owner(link.owner)?,
            timestamp: link.timestamp,
        }),
    })
}
