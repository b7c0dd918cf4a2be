//! The mounts of a process: what is shown to it, and what becomes of its changes.

use std::collections::HashMap;
use std::sync::Arc;

use castor_executor::{ExecMount, MountSource, RootMount, Secret};
use castor_llb::op::{CacheMount, CacheSharing, Mount, MountKind, SecretMount};
use castor_session::ssh::Access;
use castor_session::{SessionError, secrets};
use castor_solver::Cx;
use castor_store::{ImmutableRef, Mounting, MutableRef, RecordOptions, RecordType, Sharing};

use crate::OpError;
use crate::agent::Agent;
use crate::openers::group;
use crate::worker::Worker;

/// What a mount's output becomes.
enum Output {
    /// What the process left.
    Changed(MutableRef),
    /// What went in.
    Same(ImmutableRef),
}

/// Everything mounted for one process. Dropped when the process has ended; outputs are committed then.
pub(crate) struct Mounts {
    pub(crate) root: RootMount,
    pub(crate) mounts: Vec<ExecMount>,
    /// What keeps directories mounted. Dropped before the refs that are mounted.
    mounted: Vec<Arc<Mounting>>,
    outputs: Vec<(usize, Output)>,
    /// Writable refs whose changes are dropped, and cache mounts.
    kept: Vec<MutableRef>,
    /// Sockets of agents.
    agents: Vec<Agent>,
}

/// Makes mounts.
pub(crate) struct Preparation<'a> {
    worker: &'a Worker,
    cx: &'a Cx,
    /// The process, for descriptions.
    command: String,
    cwd: &'a str,
    inputs: &'a [ImmutableRef],
    root: Option<RootMount>,
    done: Mounts,
    caches: HashMap<(String, String), MutableRef>,
}

impl<'a> Preparation<'a> {
    pub(crate) fn new(
        worker: &'a Worker,
        cx: &'a Cx,
        args: &[String],
        cwd: &'a str,
        inputs: &'a [ImmutableRef],
    ) -> Self {
        let root = RootMount { path: "/".into(), readonly: true };
        let done = Mounts {
            root,
            mounts: Vec::new(),
            outputs: Vec::new(),
            kept: Vec::new(),
            mounted: Vec::new(),
            agents: Vec::new(),
        };
        Self { worker, cx, command: args.join(" "), cwd, inputs, root: None, done, caches: HashMap::new() }
    }

    /// Prepares all of `mounts`.
    pub(crate) async fn prepare(mut self, mounts: &[Mount]) -> Result<Mounts, OpError> {
        for mount in mounts {
            self.mount(mount).await?;
        }
        self.done.root = self.root.ok_or_else(|| OpError::Invalid("invalid exec op with no rootfs".to_owned()))?;
        // Parents first.
        self.done.mounts.sort_by(|a, b| a.destination.cmp(&b.destination));
        Ok(self.done)
    }

    async fn mount(&mut self, mount: &Mount) -> Result<(), OpError> {
        let is_root = mount.dest == "/";
        if is_root && mount.kind != MountKind::Bind {
            return Err(OpError::Invalid(format!("invalid mount type {} for {}", kind_name(&mount.kind), mount.dest)));
        }
        let input = match mount.input {
            Some(index) => Some(
                self.inputs.get(index).cloned().ok_or_else(|| OpError::Invalid(format!("missing input {index}")))?,
            ),
            None => None,
        };
        let input = input.filter(|input| !input.is_scratch());
        let source = match &mount.kind {
            MountKind::Bind => Some(self.bind(mount, input, is_root).await?),
            MountKind::Cache(cache) => Some(self.cache(mount, cache, input).await?),
            MountKind::Tmpfs { size } => Some(MountSource::Tmpfs { size: u64::try_from(*size).unwrap_or_default() }),
            MountKind::Secret(secret) => self.secret(secret).await?.map(MountSource::Secret),
            MountKind::Ssh(agent) => self.agent(agent).await?,
        };
        let Some(source) = source else { return Ok(()) };
        if is_root {
            let MountSource::Path(path) = source else {
                return Err(OpError::Invalid("the root of a process must be a directory".to_owned()));
            };
            self.root = Some(RootMount { path, readonly: mount.readonly });
            return Ok(());
        }
        let destination = if mount.dest.starts_with('/') {
            mount.dest.clone()
        } else {
            crate::path::absolute(&format!("{}/{}", self.cwd, mount.dest))
        };
        self.done.mounts.push(ExecMount {
            source,
            selector: mount.selector.clone(),
            destination,
            readonly: mount.readonly,
        });
        Ok(())
    }

    async fn bind(
        &mut self,
        mount: &Mount,
        input: Option<ImmutableRef>,
        is_root: bool,
    ) -> Result<MountSource, OpError> {
        match (mount.output, input) {
            (Some(output), Some(input)) if mount.readonly && !is_root => {
                self.done.outputs.push((output, Output::Same(input.clone())));
                self.read(&input).await
            }
            (Some(output), input) => {
                let (writable, source) = self.write(mount, input.as_ref()).await?;
                self.done.outputs.push((output, Output::Changed(writable)));
                Ok(source)
            }
            (None, None) if is_root => Err(OpError::Invalid(format!("mount {} has no input", mount.dest))),
            (None, Some(input)) if mount.readonly && !is_root => self.read(&input).await,
            // A throw-away copy; also below a read-only root, where mount points have to be made.
            (None, input) => {
                let (writable, source) = self.write(mount, input.as_ref()).await?;
                self.done.kept.push(writable);
                Ok(source)
            }
        }
    }

    async fn read(&mut self, input: &ImmutableRef) -> Result<MountSource, OpError> {
        let mounting = input.mount(self.cx).await?;
        let path = mounting.path().to_owned();
        self.done.mounted.push(mounting);
        Ok(MountSource::Path(path))
    }

    async fn write(
        &mut self,
        mount: &Mount,
        input: Option<&ImmutableRef>,
    ) -> Result<(MutableRef, MountSource), OpError> {
        let options = RecordOptions::described(format!("mount {} from exec {}", mount.dest, self.command));
        let writable = self.worker.store().new_mutable(self.cx, input, options).await?;
        let source = self.mounted(&writable).await?;
        Ok((writable, source))
    }

    async fn mounted(&mut self, writable: &MutableRef) -> Result<MountSource, OpError> {
        let mounting = writable.mount(self.cx).await?;
        let path = mounting.path().to_owned();
        self.done.mounted.push(mounting);
        Ok(MountSource::Path(path))
    }

    async fn cache(
        &mut self,
        mount: &Mount,
        cache: &CacheMount,
        input: Option<ImmutableRef>,
    ) -> Result<MountSource, OpError> {
        if let (Some(output), Some(input)) = (mount.output, &input) {
            self.done.outputs.push((output, Output::Same(input.clone())));
        }
        // Mounts of one process that name the same cache share it, however it is shared with others.
        let key = (cache.id.clone(), input.as_ref().map(|input| input.id().to_owned()).unwrap_or_default());
        if let Some(shared) = self.caches.get(&key).cloned() {
            return self.mounted(&shared).await;
        }
        let mut description = format!("cached mount {} from exec {}", mount.dest, self.command);
        if cache.id != mount.dest {
            description.push_str(&format!(" with id {:?}", cache.id));
        }
        let options = RecordOptions { record_type: RecordType::CacheMount, ..RecordOptions::described(description) };
        let sharing = match cache.sharing {
            CacheSharing::Shared => Sharing::Shared,
            CacheSharing::Private => Sharing::Private,
            CacheSharing::Locked => Sharing::Locked,
        };
        let store = self.worker.store();
        let writable = store.cache_mount(self.cx, &cache.id, input.as_ref(), sharing, options).await?;
        self.caches.insert(key, writable.clone());
        self.done.kept.push(writable.clone());
        self.mounted(&writable).await
    }

    /// A socket behind which is the client's agent. Without one an optional mount is none.
    async fn agent(&mut self, agent: &SecretMount) -> Result<Option<MountSource>, OpError> {
        let access = Access { uid: agent.uid, gid: agent.gid, mode: agent.mode & 0o777 };
        match Agent::open(self.worker, self.cx, &agent.id, access).await {
            Ok(open) => {
                let source = MountSource::Path(open.path().to_owned());
                self.done.agents.push(open);
                Ok(Some(source))
            }
            Err(OpError::NoAgent(_) | OpError::Session(SessionError::Status(_))) if agent.optional => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn secret(&self, secret: &SecretMount) -> Result<Option<Secret>, OpError> {
        if secret.id.is_empty() {
            return Err(OpError::Invalid("secret ID missing from mount options".to_owned()));
        }
        let found = secrets::get(&group(self.worker.sessions(), self.cx), &secret.id).await?;
        match found {
            Some(data) => Ok(Some(Secret { data, uid: secret.uid, gid: secret.gid, mode: secret.mode & 0o777 })),
            None if secret.optional => Ok(None),
            None => Err(OpError::NoSecret(secret.id.clone())),
        }
    }
}

impl Mounts {
    /// Ends everything: unmounts, and makes results of what was asked for. Nothing may use the mounts any more.
    pub(super) async fn commit(self) -> Result<Vec<Option<ImmutableRef>>, OpError> {
        drop(self.mounts);
        drop(self.agents);
        drop(self.mounted);
        drop(self.kept);
        let mut results = Vec::new();
        for (index, output) in self.outputs {
            let result = match output {
                Output::Changed(writable) => writable.commit().await?,
                Output::Same(input) => input,
            };
            if results.len() <= index {
                results.resize_with(index + 1, || None);
            }
            results[index] = Some(result);
        }
        Ok(results)
    }
}

fn kind_name(kind: &MountKind) -> &'static str {
    match kind {
        MountKind::Bind => "BIND",
        MountKind::Secret(_) => "SECRET",
        MountKind::Ssh(_) => "SSH",
        MountKind::Cache(_) => "CACHE",
        MountKind::Tmpfs { .. } => "TMPFS",
    }
}
