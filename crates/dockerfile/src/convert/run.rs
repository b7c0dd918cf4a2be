//! RUN.

use std::collections::BTreeMap;

use castor_llb::State;
use castor_llb::op::{CacheSharing, NetMode, SecurityMode};
use castor_llb::state::{Action, Constraints, Env, MountOptions, Owner, Run, SecretOptions, SshOptions, clean, join};

use super::dispatch::{Step, with_arguments};
use super::image::{self, commit};
use super::{Converter, show};
use crate::error::{DockerfileError, Result};
use crate::gofmt::{list, quote};
use crate::instruction::{Mount, MountType, RunProcess, Sharing};
use crate::parser::{parse_heredoc, trim_leading_tabs};

/// The last part of a path, as Go's `path.Base`.
fn base_name(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() { "/" } else { path.rsplit('/').next().unwrap_or(path) }
}

impl Converter<'_> {
    pub(super) fn run(&mut self, step: &Step<'_>, process: &RunProcess) -> Result<()> {
        let position = step.stage;
        // A process may look at everything.
        let paths = self.stages[position].paths;
        self.paths[paths].insert("/".into());

        let state = self.stages[position].state.clone();
        let env = state.get_env();
        let mut run = Run::default();
        let mut shown = step.instruction.code.clone();
        let mut args = self.documents(position, process, &mut run, &mut shown)?;
        if process.line.shell {
            args = image::with_shell(&self.stages[position].image, &args);
        }
        run.args.clone_from(&args);
        run.proxy.clone_from(&self.proxy);
        self.mounts(step, process, &mut run)?;
        if process.security == "insecure" {
            run.security = Some(SecurityMode::Insecure);
        }
        run.network = match process.network.as_str() {
            "none" => Some(NetMode::None),
            "host" => Some(NetMode::Host),
            _ => None,
        };
        self.limits(process, &mut run)?;

        let lexer = self.lexer.raw_quotes().skip_unset();
        let masked = masked(env, process);
        let text = show::uppercase_first(&show::expanded(lexer, &shown, &masked));
        let name = self.prefixed(position, &text, state.get_platform(), Some(env));
        let constraints = Constraints::new()
            .describe("com.docker.dockerfile.v1.command", step.instruction.code.clone())
            .ignore_cache(self.stages[position].no_cache)
            .resources(self.options.linux_resources.clone())
            .name(name);
        run.constraints = self.location(constraints, step.location());
        run.extra_hosts = self.options.extra_hosts.iter().map(|host| (host.host.clone(), host.ip.clone())).collect();

        let after = state.run(run).root().clone();
        let stage = &mut self.stages[position];
        stage.state = after;
        let message = format!("RUN {} # buildkit", with_arguments(&args, &stage.build_args, env));
        commit(&mut stage.image, &message, true, self.epoch);
        Ok(())
    }

    /// The arguments, with the documents behind the command.
    fn documents(
        &self,
        position: usize,
        process: &RunProcess,
        run: &mut Run,
        shown: &mut String,
    ) -> Result<Vec<String>> {
        let line = &process.line;
        let Some(file) = line.files.first() else { return Ok(line.args.clone()) };
        let ([command], true) = (line.args.as_slice(), line.shell) else {
            let args = list(&line.args);
            return Err(DockerfileError::new(format!("parsing produced an invalid run command: {args}")));
        };
        if parse_heredoc(command).ok().flatten().is_none() {
            // The shell knows documents itself.
            let mut text = command.clone();
            for file in &line.files {
                text.push('\n');
                text.push_str(&file.data);
                text.push_str(&file.name);
            }
            return Ok(vec![text]);
        }
        shown.push_str(&format!(" ({})", show::summary(&file.data)));
        let data = if file.chomp { trim_leading_tabs(&file.data) } else { file.data.clone() };
        if !data.starts_with("#!") {
            return Ok(vec![data]);
        }
        // A script with an interpreter of its own becomes a file.
        let platform = self.stages[position].platform.as_ref();
        let constraints = Constraints::new().name("[internal] preparing inline document").platform(platform);
        let script =
            Action::Mkfile { path: file.name.clone(), mode: 0o755, data: data.into(), owner: None, timestamp: None };
        let state = State::scratch().dir("/").file(vec![script], constraints);
        let options = MountOptions { readonly: true, selector: "/".into(), ..MountOptions::default() };
        run.mounts.push(("/dev/pipes/".into(), state, options));
        Ok(vec![join(&["/dev/pipes/", &file.name])])
    }

    /// Limits of the process. What the daemon cannot do is refused, not dropped.
    fn limits(&self, process: &RunProcess, run: &mut Run) -> Result<()> {
        if !process.devices.is_empty() {
            return Err(DockerfileError::new(
                "device feature is only supported in Dockerfile frontend 1.14.0-labs or later",
            ));
        }
        let options = self.options;
        let need = |wanted: bool, what: &str, cap: &str| {
            if wanted && !self.request.caps.contains(cap) {
                return Err(DockerfileError::new(format!("{what} is not supported by the build server ({cap})")));
            }
            Ok(wanted)
        };
        if need(!options.ulimits.is_empty(), "option ulimit", "exec.meta.ulimit")? {
            run.ulimits = options.ulimits.iter().map(|limit| (limit.name.clone(), limit.soft, limit.hard)).collect();
        }
        if need(options.shm_size > 0, "option shm-size", "exec.mount.tmpfs.size")? {
            let mount = MountOptions { tmpfs: Some(options.shm_size), ..MountOptions::default() };
            run.mounts.push(("/dev/shm".into(), State::scratch(), mount));
        }
        if need(!options.cgroup_parent.is_empty(), "option cgroup-parent", "exec.meta.cgroup.parent")? {
            run.cgroup_parent = Some(options.cgroup_parent.clone());
        }
        let limited = options.linux_resources.is_some();
        need(limited, "options memory, memswap and cpu*", "exec.meta.linux.resources")?;
        Ok(())
    }

    fn mounts(&mut self, step: &Step<'_>, process: &RunProcess, run: &mut Run) -> Result<()> {
        for (index, mount) in process.mounts.iter().enumerate() {
            match mount.kind {
                MountType::Secret => {
                    let secret = secret(mount)?;
                    self.stages[step.stage].seen.secret(&secret.id, mount.required, step.location());
                    run.secrets.push(secret);
                }
                MountType::Ssh => {
                    self.stages[step.stage].seen.agent(&mount.id, mount.required, step.location());
                    run.ssh.push(ssh(mount)?);
                }
                _ => self.mount(step, index, mount, run)?,
            }
        }
        Ok(())
    }

    fn mount(&mut self, step: &Step<'_>, index: usize, mount: &Mount, run: &mut Run) -> Result<()> {
        // Caches start empty unless they are told otherwise; the rest comes from the build context.
        let from_stage = !mount.from.is_empty() || mount.kind == MountType::Cache;
        let source = if from_stage { step.sources.get(index).copied() } else { None };
        let mut state = match source {
            None => self.build_context.clone(),
            Some(source) if self.stages[source].dispatched => self.stages[source].state.clone(),
            Some(_) => {
                return Err(DockerfileError::new(format!(
                    "cannot mount from stage {} to {}, stage needs to be defined before current command",
                    quote(&mount.from),
                    quote(&mount.target)
                )));
            }
        };
        let mut options = MountOptions { readonly: mount.readonly, ..MountOptions::default() };
        if mount.kind == MountType::Tmpfs {
            state = State::scratch();
            options.tmpfs = Some(mount.size);
        }
        if !mount.readonly && mount.kind == MountType::Bind {
            options.no_output = self.request.caps.contains("exec.mount.bind.readwrite-nooutput");
        }
        if mount.kind == MountType::Cache {
            let sharing = match mount.sharing {
                None | Some(Sharing::Shared) => CacheSharing::Shared,
                Some(Sharing::Private) => CacheSharing::Private,
                Some(Sharing::Locked) => CacheSharing::Locked,
            };
            let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
            options.cache = Some((format!("{}/{id}", self.options.cache_namespace), sharing));
        }
        let target = if clean(&mount.target).starts_with('/') {
            mount.target.clone()
        } else {
            join(&["/", self.state(step.stage).get_dir(), &mount.target])
        };
        if target == "/" {
            return Err(DockerfileError::new("invalid mount target \"/\""));
        }
        let path = join(&["/", &mount.source]);
        if path != "/" {
            options.selector.clone_from(&path);
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            state = owned_cache(mount, &state);
            options.selector = "/cache".into();
        }
        run.mounts.push((target, state, options));
        match source {
            None => drop(self.stages[step.stage].context_paths.insert(path)),
            Some(source) => {
                let paths = self.stages[source].paths;
                self.paths[paths].insert(path);
            }
        }
        Ok(())
    }
}

/// A cache's first state, if it is to have an owner or a mode.
fn owned_cache(mount: &Mount, state: &State) -> State {
    let mkdir = Action::Mkdir {
        path: "/cache".into(),
        mode: i32::try_from(mount.mode.unwrap_or(0o755)).unwrap_or(0o755),
        parents: false,
        owner: Some(Owner::ids(mount.uid.unwrap_or(0), mount.gid.unwrap_or(0))),
        timestamp: None,
    };
    state.file(vec![mkdir], Constraints::new().name("[internal] setting cache mount permissions"))
}

fn secret(mount: &Mount) -> Result<SecretOptions> {
    let mut id = if mount.source.is_empty() { mount.id.clone() } else { mount.source.clone() };
    if id.is_empty() {
        if mount.target.is_empty() {
            return Err(DockerfileError::new("one of source, target required"));
        }
        base_name(&mount.target).clone_into(&mut id);
    }
    let target = match (mount.target.as_str(), &mount.env) {
        ("", Some(_)) => None,
        ("", None) => Some(format!("/run/secrets/{}", base_name(&id))),
        (target, _) => Some(target.to_owned()),
    };
    Ok(SecretOptions {
        id,
        target,
        env: mount.env.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o400),
        optional: !mount.required,
    })
}

fn ssh(mount: &Mount) -> Result<SshOptions> {
    if !mount.source.is_empty() {
        return Err(DockerfileError::new("ssh does not support source"));
    }
    Ok(SshOptions {
        id: mount.id.clone(),
        target: mount.target.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o600),
        optional: !mount.required,
    })
}

/// The environment as steps' names show it: what comes from secrets is starred out.
fn masked(env: &Env, process: &RunProcess) -> Env {
    let mut masked = env.clone();
    let secrets: BTreeMap<&str, ()> = process
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountType::Secret)
        .filter_map(|mount| mount.env.as_deref().map(|name| (name, ())))
        .collect();
    for name in secrets.keys() {
        masked.set(name, "****");
    }
    masked
}
