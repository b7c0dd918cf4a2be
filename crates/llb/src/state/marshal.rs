//! States → definitions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use castor_oci::{Digest, Platform};
use castor_proto::pb;
use prost::Message as _;

use super::exec::Exec;
use super::file::{Action, BoundAction, absolute, source_path};
use super::node::{Constraints, Kind, Node, Output, Slot, SourceText};
use super::{Env, MarshalError, State};
use crate::op::{
    CacheMount, Copy, DiffOp, ExecOp, FileAction, FileActionKind, FileInput, FileOp, MergeOp, Meta, Mkdir, Mkfile,
    Mount, MountKind, Op, PassthroughOp, Rm, SecretEnv, SecretMount, SecurityMode, SourceOp, Symlink,
};
use crate::{CapSet, Definition, OpMetadata, Range, Source, encode};

/// The default search path of a Linux image that sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a graph may come to, in bytes of ops; no daemon takes more.
const MAX_BYTES: usize = 64 << 20;

/// What a graph is marshalled for.
#[derive(Debug, Clone)]
pub struct MarshalOptions {
    /// The platform of ops that name none.
    pub platform: Platform,
    /// What the daemon can do; `None` if that is not known.
    pub caps: Option<CapSet>,
    /// Makes local sources without session distinct.
    pub unique: String,
}

impl Default for MarshalOptions {
    fn default() -> Self {
        Self { platform: Platform::host(), caps: None, unique: String::new() }
    }
}

/// A vertex that was written.
struct Written {
    digest: Digest,
    raw: Bytes,
    metadata: OpMetadata,
    locations: Vec<(Arc<SourceText>, Vec<Range>)>,
}

struct Writer<'a> {
    options: &'a MarshalOptions,
    written: HashMap<*const Node, Digest>,
    emitted: HashSet<Digest>,
    definition: Definition,
    bytes: usize,
    files: Vec<Arc<SourceText>>,
    locations: BTreeMap<Digest, Vec<(usize, Vec<Range>)>>,
}

impl State {
    /// Writes the graph that this state is the result of. Scratch has no ops.
    pub fn marshal(&self, options: &MarshalOptions) -> Result<Definition, MarshalError> {
        let Some(result) = self.output.as_ref().map(Output::resolve).transpose()?.flatten() else {
            return Ok(Definition::default());
        };
        let mut writer = Writer {
            options,
            written: HashMap::new(),
            emitted: HashSet::new(),
            definition: Definition::default(),
            bytes: 0,
            files: Vec::new(),
            locations: BTreeMap::new(),
        };
        writer.walk(&result)?;
        let terminal = pb::Op { inputs: vec![writer.input(&result)?], ..pb::Op::default() };
        writer.finish(terminal.encode_to_vec().into())
    }
}

impl Writer<'_> {
    /// Writes `result` and all it needs, inputs first, in a loop.
    fn walk(&mut self, result: &Output) -> Result<(), MarshalError> {
        let mut stack = vec![(result.node.clone(), 0)];
        while let Some((node, next)) = stack.pop() {
            let pointer = Arc::as_ptr(&node);
            if self.written.contains_key(&pointer) {
                continue;
            }
            match node.deps.get(next) {
                Some(dep) => {
                    let dep = dep.resolve()?;
                    stack.push((node, next + 1));
                    if let Some(dep) = dep
                        && !self.written.contains_key(&Arc::as_ptr(&dep.node))
                    {
                        stack.push((dep.node, 0));
                    }
                }
                None => {
                    let vertex = self.write(&node)?;
                    self.written.insert(pointer, vertex.digest);
                    self.bytes += vertex.raw.len();
                    if self.bytes > MAX_BYTES {
                        return Err(MarshalError::TooLarge(MAX_BYTES));
                    }
                    self.add(vertex);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, vertex: Written) {
        self.definition.metadata.entry(vertex.digest).or_default().merge(&vertex.metadata);
        let locations = self.locations.entry(vertex.digest).or_default();
        for (file, ranges) in vertex.locations {
            let same = |known: &Arc<SourceText>| {
                Arc::ptr_eq(known, &file)
                    || (known.filename == file.filename && known.language == file.language && known.data == file.data)
            };
            let index = self.files.iter().position(same).unwrap_or_else(|| {
                self.files.push(file.clone());
                self.files.len() - 1
            });
            locations.push((index, ranges));
        }
        if self.emitted.insert(vertex.digest) {
            self.definition.ops.push(vertex.raw);
        }
    }

    /// The input that stands for an output.
    fn input(&self, output: &Output) -> Result<pb::Input, MarshalError> {
        let digest = self.written.get(&Arc::as_ptr(&output.node)).ok_or(MarshalError::Unset)?;
        let index = match (output.slot, &output.node.kind) {
            (Slot::Index(index), _) => index,
            (Slot::Mount(position), Kind::Exec(exec)) => exec
                .output_index(position)
                .ok_or_else(|| MarshalError::NoOutput(exec.mounts[position].target.clone()))?,
            (Slot::Mount(_), _) => 0,
        };
        Ok(pb::Input { digest: digest.to_string(), index: i64::try_from(index).unwrap_or(i64::MAX) })
    }

    fn write(&self, node: &Node) -> Result<Written, MarshalError> {
        let constraints = &node.constraints;
        match &node.kind {
            Kind::Source { identifier, attrs, error } => {
                if let Some(error) = error {
                    return Err(error.clone());
                }
                self.source(identifier, attrs, constraints.clone())
            }
            Kind::Exec(exec) => self.exec(exec, constraints.clone()),
            Kind::File(actions) => self.file(actions, constraints.clone()),
            Kind::Merge => {
                let inputs: Vec<pb::Input> = self.inputs(&node.deps)?;
                let op = Op::Merge(MergeOp { inputs: (0..inputs.len()).collect() });
                Ok(self.finish_op(op, inputs, constraints.clone(), false))
            }
            Kind::Diff { has_upper } => {
                let inputs = self.inputs(&node.deps)?;
                let op = Op::Diff(DiffOp { lower: Some(0), upper: has_upper.then_some(1) });
                Ok(self.finish_op(op, inputs, constraints.clone(), false))
            }
            Kind::Passthrough { id, outputs } => {
                let inputs = self.inputs(&node.deps)?;
                let op = Op::Passthrough(PassthroughOp { id: id.clone(), outputs: outputs.clone() });
                Ok(self.finish_op(op, inputs, constraints.clone(), false))
            }
            Kind::Encoded { raw, digest, metadata } => Ok(Written {
                digest: *digest,
                raw: raw.clone(),
                metadata: metadata.clone(),
                locations: constraints.locations.clone(),
            }),
            Kind::Late => Err(MarshalError::Unset),
        }
    }

    fn inputs(&self, deps: &[Output]) -> Result<Vec<pb::Input>, MarshalError> {
        let mut inputs = Vec::with_capacity(deps.len());
        for dep in deps {
            if let Some(dep) = dep.resolve()? {
                inputs.push(self.input(&dep)?);
            }
        }
        Ok(inputs)
    }

    /// Adds platform and constraints and encodes.
    fn finish_op(&self, op: Op, inputs: Vec<pb::Input>, constraints: Constraints, platform: bool) -> Written {
        let count = inputs.len();
        let platform =
            platform.then(|| encode::platform(constraints.platform.as_ref().unwrap_or(&self.options.platform)));
        let wire = pb::Op {
            inputs,
            platform,
            constraints: Some(pb::WorkerConstraints { filter: constraints.filters }),
            op: Some(encode::op(op, count)),
        };
        let raw = encode::encode(&wire);
        Written { digest: Digest::of(&raw), raw, metadata: constraints.metadata, locations: constraints.locations }
    }

    fn source(
        &self,
        identifier: &str,
        attrs: &BTreeMap<String, String>,
        mut constraints: Constraints,
    ) -> Result<Written, MarshalError> {
        if identifier.is_empty() {
            return Err(MarshalError::NoIdentifier);
        }
        let mut attrs = attrs.clone();
        if identifier.starts_with("local://") && !attrs.contains_key("local.session") {
            attrs.insert("local.unique".into(), self.options.unique.clone());
            constraints = constraints.with_cap("source.local.unique");
        }
        let platform = identifier.starts_with("docker-image://") || identifier.starts_with("oci-layout://");
        // Only identifier and attributes are written; what they mean does not matter here.
        let op = Op::Source(SourceOp {
            identifier: identifier.to_owned(),
            attrs,
            source: Source::Http(crate::HttpSource::default()),
        });
        Ok(self.finish_op(op, Vec::new(), constraints, platform))
    }

    fn file(&self, actions: &[BoundAction], constraints: Constraints) -> Result<Written, MarshalError> {
        if actions.is_empty() {
            return Err(MarshalError::NoActions);
        }
        let mut inputs: Vec<pb::Input> = Vec::new();
        let mut add = |output: &Option<Output>| -> Result<FileInput, MarshalError> {
            let Some(output) = output.as_ref().map(Output::resolve).transpose()?.flatten() else {
                return Ok(FileInput::Scratch);
            };
            let input = self.input(&output)?;
            let index = inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                inputs.push(input);
                inputs.len() - 1
            });
            Ok(FileInput::Input(index))
        };
        let mut written = Vec::with_capacity(actions.len());
        for (position, bound) in actions.iter().enumerate() {
            let base = add(&bound.base)?;
            let secondary_input = match &bound.action {
                Action::Copy { from, .. } => add(&from.output)?,
                _ => FileInput::Scratch,
            };
            let input = if position == 0 { base } else { FileInput::Action(position - 1) };
            let output = (position + 1 == actions.len()).then_some(0);
            written.push(FileAction { input, secondary_input, output, kind: action_kind(bound, base) });
        }
        Ok(self.finish_op(Op::File(FileOp { actions: written }), inputs, constraints, false))
    }

    fn exec(&self, exec: &Exec, mut constraints: Constraints) -> Result<Written, MarshalError> {
        let values = &exec.values;
        if values.args.is_empty() {
            return Err(MarshalError::NoArguments);
        }
        let mut env = Env::clone(&values.env);
        if let Some(agent) = exec.ssh.first()
            && env.get("SSH_AUTH_SOCK").is_none()
        {
            env.set("SSH_AUTH_SOCK", &agent_target(0, &agent.target));
        }
        let mut caps: Vec<&str> = vec!["exec.meta.base"];
        if let Some(known) = &self.options.caps {
            if known.contains("exec.meta.setsdefaultpath") {
                caps.push("exec.meta.setsdefaultpath");
            } else if env.get("PATH").is_none() {
                env.set("PATH", DEFAULT_PATH);
            }
        }
        caps.extend(exec_caps(exec, constraints.metadata.linux_resources.is_some()));
        for cap in caps {
            constraints = constraints.with_cap(cap);
        }
        if constraints.platform.is_none() {
            constraints.platform.clone_from(&values.platform);
        }

        let (inputs, mut mounts) = self.exec_mounts(exec)?;
        let secret_env = secrets_and_agents(exec, &mut mounts);
        let op = ExecOp {
            meta: Meta {
                args: values.args.clone(),
                env: env.to_vec(),
                cwd: values.dir.clone(),
                user: values.user.clone(),
                proxy_env: exec.proxy.clone(),
                extra_hosts: values.extra_hosts.clone(),
                hostname: values.hostname.clone(),
                ulimits: values.ulimits.clone(),
                cgroup_parent: values.cgroup_parent.clone(),
                remove_mount_stubs_recursive: true,
                valid_exit_codes: values.valid_exit_codes.clone(),
            },
            mounts,
            network: values.network,
            security: values.security,
            secret_env,
            cdi_devices: exec.cdi_devices.clone(),
        };
        Ok(self.finish_op(Op::Exec(op), inputs, constraints, true))
    }

    /// The mounts of a process that are no secrets and agents, and the inputs that they are of.
    fn exec_mounts(&self, exec: &Exec) -> Result<(Vec<pb::Input>, Vec<Mount>), MarshalError> {
        let mut inputs: Vec<pb::Input> = Vec::new();
        let mut mounts = Vec::with_capacity(exec.mounts.len());
        let mut outputs = 0;
        for &position in &exec.order {
            let mount = &exec.mounts[position];
            let mut input = None;
            if let Some(source) = mount.source.as_ref().map(Output::resolve).transpose()?.flatten() {
                let wire = self.input(&source)?;
                input = Some(inputs.iter().position(|known| *known == wire).unwrap_or_else(|| {
                    inputs.push(wire);
                    inputs.len() - 1
                }));
            }
            let output = mount.has_output().then(|| {
                outputs += 1;
                outputs - 1
            });
            let options = &mount.options;
            let kind = match (&options.cache, options.tmpfs) {
                (_, Some(size)) => MountKind::Tmpfs { size },
                (Some((id, sharing)), None) => MountKind::Cache(CacheMount { id: id.clone(), sharing: *sharing }),
                (None, None) => MountKind::Bind,
            };
            mounts.push(Mount {
                input,
                selector: options.selector.clone(),
                dest: mount.target.clone(),
                output,
                readonly: options.readonly,
                kind,
                result_id: String::new(),
                content_cache: options.content_cache,
            });
        }
        Ok((inputs, mounts))
    }

    /// Adds the terminal op, what it needs, and the source map.
    fn finish(mut self, terminal: Bytes) -> Result<Definition, MarshalError> {
        let mut caps = vec!["constraints", "platform"];
        for metadata in self.definition.metadata.values() {
            if metadata.ignore_cache {
                caps.push("meta.ignorecache");
            }
            if !metadata.description.is_empty() {
                caps.push("meta.description");
            }
            if metadata.export_cache.is_some() {
                caps.push("meta.exportcache");
            }
        }
        let metadata = self.definition.metadata.entry(Digest::of(&terminal)).or_default();
        metadata.caps = caps.into_iter().map(|cap| (cap.to_owned(), true)).collect();
        self.definition.ops.push(terminal);

        let infos = self.files.iter().map(|file| pb::SourceInfo {
            filename: file.filename.clone(),
            data: file.data.clone(),
            definition: file.definition.as_ref().map(Definition::to_pb),
            language: file.language.clone(),
        });
        let locations = self.locations.iter().map(|(digest, list)| {
            let locations = list.iter().map(|(file, ranges)| pb::Location {
                source_index: i32::try_from(*file).unwrap_or(i32::MAX),
                ranges: ranges.iter().map(|range| range.to_pb()).collect(),
            });
            (digest.to_string(), pb::Locations { locations: locations.collect() })
        });
        self.definition.source = Some(pb::Source { locations: locations.collect(), infos: infos.collect() });
        Ok(self.definition)
    }
}

fn action_kind(bound: &BoundAction, base: FileInput) -> FileActionKind {
    let time = |timestamp: Option<i64>| timestamp.unwrap_or(-1);
    let dir = bound.dir.as_str();
    match &bound.action {
        Action::Copy { from, src, dest, options } => FileActionKind::Copy(Copy {
            src: source_path(from.get_dir(), src),
            dest: absolute(dir, dest, true),
            owner: options.owner.as_ref().map(|owner| owner.resolve(base)),
            mode: match options.mode {
                _ if !options.mode_str.is_empty() => 0,
                Some(mode) => mode,
                None => -1,
            },
            follow_symlink: options.follow_symlinks,
            dir_copy_contents: options.dir_contents_only,
            attempt_unpack: options.attempt_unpack,
            create_dest_path: options.create_dest_path,
            allow_wildcard: options.allow_wildcard,
            allow_empty_wildcard: options.allow_empty_wildcard,
            timestamp: time(options.timestamp),
            include_patterns: options.include_patterns.clone(),
            exclude_patterns: options.exclude_patterns.clone(),
            always_replace_existing_dest_paths: options.always_replace_existing_dest_paths,
            mode_str: options.mode_str.clone(),
            required_paths: options.required_paths.clone(),
        }),
        Action::Mkfile { path, mode, data, owner, timestamp } => FileActionKind::Mkfile(Mkfile {
            path: absolute(dir, path, false),
            mode: mode & 0o777,
            data: data.clone(),
            owner: owner.as_ref().map(|owner| owner.resolve(base)),
            timestamp: time(*timestamp),
        }),
        Action::Mkdir { path, mode, parents, owner, timestamp } => FileActionKind::Mkdir(Mkdir {
            path: absolute(dir, path, false),
            mode: mode & 0o777,
            make_parents: *parents,
            owner: owner.as_ref().map(|owner| owner.resolve(base)),
            timestamp: time(*timestamp),
        }),
        Action::Rm { path, allow_not_found, allow_wildcard } => FileActionKind::Rm(Rm {
            path: absolute(dir, path, false),
            allow_not_found: *allow_not_found,
            allow_wildcard: *allow_wildcard,
        }),
        Action::Symlink { oldpath, newpath, owner, timestamp } => FileActionKind::Symlink(Symlink {
            oldpath: oldpath.clone(),
            newpath: newpath.clone(),
            owner: owner.as_ref().map(|owner| owner.resolve(base)),
            timestamp: time(*timestamp),
        }),
    }
}

/// Where the socket of an agent is in a process that asks for it at `target`.
fn agent_target(position: usize, target: &str) -> String {
    match target {
        "" => format!("/run/buildkit/ssh_agent.{position}"),
        target => target.to_owned(),
    }
}

/// Adds the mounts of secrets and of agents; gives the secrets of the environment.
fn secrets_and_agents(exec: &Exec, mounts: &mut Vec<Mount>) -> Vec<SecretEnv> {
    let mut secret_env = Vec::new();
    for secret in &exec.secrets {
        if let Some(name) = &secret.env {
            let optional = secret.optional;
            secret_env.push(SecretEnv { id: secret.id.clone(), name: name.clone(), optional });
        }
        if let Some(dest) = &secret.target {
            let (uid, gid, mode) = (secret.uid, secret.gid, secret.mode);
            let secret = SecretMount { id: secret.id.clone(), uid, gid, mode, optional: secret.optional };
            mounts.push(Mount { dest: dest.clone(), kind: MountKind::Secret(secret), ..Mount::default() });
        }
    }
    for (position, ssh) in exec.ssh.iter().enumerate() {
        let (uid, gid, mode) = (ssh.uid, ssh.gid, ssh.mode);
        let agent = SecretMount { id: ssh.id.clone(), uid, gid, mode, optional: ssh.optional };
        let dest = agent_target(position, &ssh.target);
        mounts.push(Mount { dest, kind: MountKind::Ssh(agent), ..Mount::default() });
    }
    secret_env
}

/// Capabilities that a process needs beside the basic one.
fn exec_caps(exec: &Exec, resources: bool) -> Vec<&'static str> {
    let values = &exec.values;
    let mut caps = Vec::new();
    let mut need = |condition: bool, cap: &'static str| {
        if condition {
            caps.push(cap);
        }
    };
    need(!values.valid_exit_codes.is_empty(), "exec.validexitcode");
    need(!values.ulimits.is_empty(), "exec.meta.ulimit");
    need(resources, "exec.meta.linux.resources");
    need(values.network != crate::op::NetMode::Unset, "exec.meta.network");
    need(values.security == SecurityMode::Insecure, "exec.meta.security");
    need(exec.proxy.is_some(), "exec.meta.proxyenv");
    for mount in &exec.mounts {
        let options = &mount.options;
        need(!options.selector.is_empty(), "exec.mount.selector");
        if options.cache.is_some() {
            need(true, "exec.mount.cache");
            need(true, "exec.mount.cache.sharing");
        } else if let Some(size) = options.tmpfs {
            need(true, "exec.mount.tmpfs");
            need(size > 0, "exec.mount.tmpfs.size");
        } else {
            need(mount.source.is_some(), "exec.mount.bind");
        }
        need(options.content_cache != crate::op::ContentCache::Default, "exec.mount.cache.content");
    }
    need(!exec.secrets.is_empty(), "exec.mount.secret");
    need(exec.secrets.iter().any(|secret| secret.env.is_some()), "exec.secretenv");
    need(!exec.ssh.is_empty(), "exec.mount.ssh");
    need(!exec.cdi_devices.is_empty(), "exec.meta.cdi");
    caps
}
