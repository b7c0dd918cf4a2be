//! Changes of files.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use castor_llb::op::{Chown, FileAction, FileActionKind, FileInput, FileOp, UserOpt};
use castor_oci::Digest;
use castor_solver::{BoxError, CacheMap, Cx, Operation, Outputs, Permit};
use castor_store::{ImmutableRef, Mounting, MutableRef, RecordOptions};
use castor_task::reading;

use super::inputs::looked_into;
use super::reads::{Reads, judge};
use crate::OpError;
use crate::files::{self, CopyOptions, FileError, Owner, Tree};
use crate::identity::InputKey;
use crate::worker::Worker;

pub(crate) struct File {
    pub(crate) worker: Worker,
    pub(crate) op: Arc<FileOp>,
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) inputs: Vec<InputKey>,
}

/// The state of something that actions work on.
#[derive(Clone)]
enum Value {
    /// Final.
    Committed(ImmutableRef),
    /// Being changed, by one action after another.
    Open(Arc<Mounting>, MutableRef),
}

/// One run of the op.
struct Run<'a> {
    op: &'a File,
    cx: &'a Cx,
    inputs: &'a [ImmutableRef],
    /// Actions whose result has more than one user, or is an output: it is committed.
    shared: Vec<bool>,
    results: HashMap<usize, Value>,
}

impl File {
    async fn run(&self, cx: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, OpError> {
        let reads = Reads::watch(&self.worker, cx, inputs).await?;
        let run = Run { op: self, cx, inputs, shared: self.shared(), results: HashMap::new() };
        let result = Box::pin(run.run()).await;
        judge(result, reads.finish().await)
    }

    fn shared(&self) -> Vec<bool> {
        let mut users = vec![0; self.op.actions.len()];
        for action in &self.op.actions {
            for input in [action.input, action.secondary_input] {
                if let FileInput::Action(index) = input
                    && let Some(count) = users.get_mut(index)
                {
                    *count += 1;
                }
            }
        }
        let shared = |(users, action): (usize, &FileAction)| users > 1 || action.output.is_some();
        users.into_iter().zip(&self.op.actions).map(shared).collect()
    }
}

impl Run<'_> {
    async fn run(mut self) -> Result<Outputs<ImmutableRef>, OpError> {
        let actions = &self.op.op.actions;
        let wanted: Vec<(usize, usize)> =
            actions.iter().enumerate().filter_map(|(index, action)| Some((action.output?, index))).collect();
        let Some(outputs) = wanted.iter().map(|(output, _)| output + 1).max() else {
            return Err(OpError::Invalid("no outputs specified".to_owned()));
        };
        for index in self.order(&wanted)? {
            self.action(index).await?;
        }
        let mut results = vec![None; outputs];
        for (output, index) in wanted {
            match self.results.get(&index) {
                Some(Value::Committed(result)) if results[output].is_none() => results[output] = Some(result.clone()),
                Some(Value::Committed(_)) => return Err(OpError::Invalid(format!("duplicate output {output}"))),
                _ => return Err(OpError::Invalid(format!("missing output index {output}"))),
            }
        }
        if let Some(missing) = results.iter().position(Option::is_none) {
            return Err(OpError::Invalid(format!("missing output index {missing}")));
        }
        Ok(results)
    }

    /// The actions that outputs need, in an order in which each comes after what it works on.
    fn order(&self, wanted: &[(usize, usize)]) -> Result<Vec<usize>, OpError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let actions = &self.op.op.actions;
        let mut marks = vec![Mark::New; actions.len()];
        let mut order = Vec::new();
        let mut stack: Vec<usize> = wanted.iter().rev().map(|&(_, index)| index).collect();
        while let Some(&index) = stack.last() {
            match marks[index] {
                Mark::Done => {
                    stack.pop();
                }
                Mark::Open => {
                    marks[index] = Mark::Done;
                    order.push(index);
                    stack.pop();
                }
                Mark::New => {
                    marks[index] = Mark::Open;
                    for needed in needs(&actions[index]).into_iter().rev() {
                        match marks.get(needed) {
                            Some(Mark::New) => stack.push(needed),
                            Some(Mark::Done) => {}
                            Some(Mark::Open) => return Err(OpError::Invalid(format!("loop from index {needed}"))),
                            None => return Err(OpError::Invalid(format!("invalid input index {needed}"))),
                        }
                    }
                }
            }
        }
        Ok(order)
    }

    fn value(&self, input: FileInput) -> Result<Option<Value>, OpError> {
        match input {
            FileInput::Scratch => Ok(None),
            FileInput::Input(index) => match self.inputs.get(index) {
                Some(input) => Ok(Some(Value::Committed(input.clone()))),
                None => Err(OpError::Invalid(format!("invalid input index {index}, {} provided", self.inputs.len()))),
            },
            FileInput::Action(index) => match self.results.get(&index) {
                Some(value) => Ok(Some(value.clone())),
                None => Err(OpError::Invalid(format!("invalid input index of action {index}"))),
            },
        }
    }

    /// Something to read from.
    async fn mounted(&self, input: FileInput) -> Result<Arc<Mounting>, OpError> {
        match self.value(input)? {
            Some(Value::Open(mounting, _)) => Ok(mounting),
            Some(Value::Committed(input)) => Ok(input.mount(self.cx).await?),
            None => Ok(self.op.worker.store().scratch().mount(self.cx).await?),
        }
    }

    /// Something to change: what the action before left open, or a new layer.
    async fn opened(&mut self, input: FileInput) -> Result<(MutableRef, Arc<Mounting>), OpError> {
        let base = match self.value(input)? {
            Some(Value::Open(mounting, writable)) => {
                if let FileInput::Action(index) = input {
                    self.results.remove(&index);
                }
                return Ok((writable, mounting));
            }
            Some(Value::Committed(base)) => Some(base).filter(|base| !base.is_scratch()),
            None => None,
        };
        let options = RecordOptions::described(self.op.name.clone());
        let writable = self.op.worker.store().new_mutable(self.cx, base.as_ref(), options).await?;
        let mounting = writable.mount(self.cx).await?;
        Ok((writable, mounting))
    }

    async fn action(&mut self, index: usize) -> Result<(), OpError> {
        let action = self.op.op.actions[index].clone();
        let owner = self.owner(&action, index).await?;
        let source = match &action.kind {
            FileActionKind::Copy(_) => Some(self.mounted(action.secondary_input).await?),
            _ => None,
        };
        let (writable, target) = self.opened(action.input).await?;
        let (kind, target_of, token) = (action.kind, target.clone(), self.cx.token().clone());
        let done = reading(move || apply(&kind, source.as_deref(), &target_of, owner, &token)).await;
        done.map_err(|source| OpError::File { action: index, source })?;
        let value = if self.shared[index] {
            drop(target);
            Value::Committed(writable.commit().await?)
        } else {
            Value::Open(target, writable)
        };
        self.results.insert(index, value);
        Ok(())
    }

    /// Who shall own what the action makes.
    async fn owner(&self, action: &FileAction, index: usize) -> Result<Option<Owner>, OpError> {
        let Some(Chown { user, group }) = chown(&action.kind) else { return Ok(None) };
        let mut owner = Owner::default();
        match user {
            None => {}
            Some(UserOpt::Id(id)) => owner = Owner { uid: *id, gid: *id },
            Some(UserOpt::Name { name, input }) => {
                // A name that is not there means root.
                let found = self.look_up(*input, name, index, files::user_by_name).await?;
                owner = found.unwrap_or_default();
            }
        }
        match group {
            None => {}
            Some(UserOpt::Id(id)) => owner.gid = *id,
            Some(UserOpt::Name { name, input }) => {
                if let Some(gid) = self.look_up(*input, name, index, files::group_by_name).await? {
                    owner.gid = gid;
                }
            }
        }
        Ok(Some(owner))
    }

    async fn look_up<T: Send + 'static>(
        &self,
        input: FileInput,
        name: &str,
        index: usize,
        find: fn(&Tree, &str) -> Result<Option<T>, FileError>,
    ) -> Result<Option<T>, OpError> {
        if input == FileInput::Scratch {
            return Err(OpError::Invalid("invalid user index: -1".to_owned()));
        }
        let (mounting, name) = (self.mounted(input).await?, name.to_owned());
        let found = reading(move || find(&Tree::open(mounting.path())?, &name)).await;
        found.map_err(|source| OpError::File { action: index, source })
    }
}

/// The actions that an action works on.
fn needs(action: &FileAction) -> Vec<usize> {
    let mut inputs = vec![action.input, action.secondary_input];
    if let Some(chown) = chown(&action.kind) {
        for user in [&chown.user, &chown.group] {
            if let Some(UserOpt::Name { input, .. }) = user {
                inputs.push(*input);
            }
        }
    }
    let index = |input| match input {
        FileInput::Action(index) => Some(index),
        FileInput::Scratch | FileInput::Input(_) => None,
    };
    inputs.into_iter().filter_map(index).collect()
}

fn chown(kind: &FileActionKind) -> Option<&Chown> {
    match kind {
        FileActionKind::Copy(copy) => copy.owner.as_ref(),
        FileActionKind::Mkfile(file) => file.owner.as_ref(),
        FileActionKind::Mkdir(dir) => dir.owner.as_ref(),
        FileActionKind::Symlink(link) => link.owner.as_ref(),
        FileActionKind::Rm(_) => None,
    }
}

fn apply(
    kind: &FileActionKind,
    source: Option<&Mounting>,
    target: &Mounting,
    owner: Option<Owner>,
    token: &castor_task::CancellationToken,
) -> Result<(), FileError> {
    let tree = Tree::open(target.path())?;
    match kind {
        FileActionKind::Copy(action) => {
            let Some(source) = source else { return Err(FileError::Other("copy from nothing".to_owned())) };
            files::copy(&Tree::open(source.path())?, &tree, &CopyOptions { action, owner, token })
        }
        FileActionKind::Mkfile(action) => files::mkfile(&tree, action, owner),
        FileActionKind::Mkdir(action) => files::mkdir(&tree, action, owner),
        FileActionKind::Rm(action) => files::rm(&tree, action),
        FileActionKind::Symlink(action) => files::symlink(&tree, action, owner),
    }
}

#[async_trait]
impl Operation<ImmutableRef> for File {
    async fn cache_map(&self, _: &Cx, _: usize) -> Result<(CacheMap<ImmutableRef>, bool), BoxError> {
        Ok((CacheMap::with_deps(self.digest, looked_into(self.inputs.clone())), true))
    }

    async fn execute(&self, cx: &Cx, inputs: &[ImmutableRef]) -> Result<Outputs<ImmutableRef>, BoxError> {
        Ok(self.run(cx, inputs).await?)
    }

    async fn acquire(&self, cx: &Cx) -> Result<Permit, BoxError> {
        Ok(self.worker.acquire(cx).await?)
    }
}
