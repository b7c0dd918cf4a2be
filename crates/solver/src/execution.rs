//! Executions: at most one at a time per cache key, whatever vertices want it.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use castor_oci::Digest;
use castor_progress::{Reporter, Sink, Timestamp};
use castor_task::CancellationToken;
use castor_task::{Aborted, panic_message};
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::context::Audience;
use crate::lookup::{Alternative, KeyRef, Place, Query, find_keys, log};
use crate::progress::Renamed;
use crate::state::{Shared, VertexState};
use crate::{BoxError, CacheMap, CacheUpdate, Cx, KeyId, KeyInfo, Operation, Outputs, Record, Recorder};

/// An output and its keys.
pub(crate) struct Output<R> {
    pub(crate) result: R,
    pub(crate) keys: Vec<KeyRef>,
}

/// What an execution made.
pub(crate) struct Executed<R> {
    pub(crate) outputs: Vec<Option<Output<R>>>,
}

/// How an execution ended.
pub(crate) enum Outcome<R> {
    Executed(Arc<Executed<R>>),
    Failed(Arc<BoxError>),
    Aborted(Aborted),
    /// Its result turned up in the cache before it began.
    Superseded,
}

impl<R> Clone for Outcome<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Executed(executed) => Self::Executed(executed.clone()),
            Self::Failed(error) => Self::Failed(error.clone()),
            Self::Aborted(aborted) => Self::Aborted(aborted.clone()),
            Self::Superseded => Self::Superseded,
        }
    }
}

enum Phase<R> {
    Waiting,
    Running,
    Done(Outcome<R>),
}

/// Under which keys a vertex's outputs are stored, and by which its execution is recognised.
pub(crate) struct Identity<R> {
    pub(crate) maps: Vec<Arc<CacheMap<R>>>,
    /// Per cache map, per input: its keys.
    pub(crate) inputs: Vec<Vec<Vec<Alternative>>>,
    pub(crate) ignore_cache: bool,
}

type InputKeys = Vec<HashSet<(KeyId, Option<Digest>)>>;

impl<R> Identity<R> {
    /// The operation and, per input, all keys that results may be stored under.
    fn of_execution(&self) -> Option<(Digest, InputKeys)> {
        let map = self.maps.first()?;
        let digest = map.identities().into_iter().find(|(_, own)| *own)?.0;
        let own = |keys: &Vec<Alternative>| {
            let own = keys.iter().filter(|alternative| alternative.key.own);
            own.map(|alternative| (alternative.key.id.clone(), alternative.selector)).collect()
        };
        Some((digest, self.inputs.first()?.iter().map(own).collect()))
    }

    fn volatile(&self) -> bool {
        self.maps.iter().any(|map| map.volatile)
    }
}

/// An execution under way.
pub(crate) struct Execution<R> {
    number: u64,
    digest: Digest,
    inputs: InputKeys,
    /// An execution that ignores the cache serves those who do not, but not the other way round.
    waiters: Mutex<usize>,
    token: CancellationToken,
    audience: Arc<Audience>,
    /// Those who want it, and how often somebody had left each when it joined.
    members: Mutex<Vec<(Arc<Audience>, u64)>>,
    recorder: Arc<Recorder>,
    phase: watch::Sender<Phase<R>>,
}

impl<R> Execution<R> {
    /// Waits for the end if nobody wants it any more; otherwise it goes on for others.
    pub(crate) async fn ended_if_abandoned(&self) {
        if *self.waiters.lock() == 0 {
            let _ = self.phase.subscribe().wait_for(|phase| matches!(phase, Phase::Done(_))).await;
        }
    }

    fn matches(&self, inputs: &InputKeys) -> bool {
        self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(|(a, b)| !a.is_disjoint(b))
    }
}

/// One who waits for an execution. When the last one is dropped, the execution is cancelled.
pub(crate) struct Waiter<R> {
    pub(crate) execution: Arc<Execution<R>>,
}

impl<R> Waiter<R> {
    /// Waits until it runs, or has ended without.
    pub(crate) async fn started(&self) {
        let _ = self.execution.phase.subscribe().wait_for(|phase| !matches!(phase, Phase::Waiting)).await;
    }

    /// Waits for the end.
    pub(crate) async fn done(&self) -> Outcome<R> {
        let mut phase = self.execution.phase.subscribe();
        match phase.wait_for(|phase| matches!(phase, Phase::Done(_))).await.as_deref() {
            Ok(Phase::Done(outcome)) => outcome.clone(),
            _ => Outcome::Aborted(Aborted::Dropped),
        }
    }

    /// Whether any job that wanted it when this one asked has left since.
    pub(crate) fn somebody_left(&self) -> bool {
        self.execution.members.lock().iter().any(|(audience, before)| audience.departures() != *before)
    }
}

impl<R> Drop for Waiter<R> {
    fn drop(&mut self) {
        let mut waiters = self.execution.waiters.lock();
        *waiters -= 1;
        if *waiters == 0 {
            self.execution.token.cancel();
        }
    }
}

/// The executions under way, by operation.
pub(crate) struct Executions<R> {
    running: Mutex<HashMap<Digest, Vec<Arc<Execution<R>>>>>,
}

impl<R> Default for Executions<R> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

/// What one who wants an execution gets.
pub(crate) enum Entered<R> {
    /// Another vertex is at it.
    Joined(Waiter<R>),
    /// Another was at it and is being cancelled: wait for its end and ask again.
    Ending(Arc<Execution<R>>),
    /// Nobody is: begin it.
    New(Slot<R>),
}

/// The right to begin an execution. Dropping it tells those who joined meanwhile to look into the cache again.
pub(crate) struct Slot<R> {
    shared: Arc<Shared<R>>,
    waiter: Option<Waiter<R>>,
}

impl<R> Drop for Slot<R> {
    fn drop(&mut self) {
        if let Some(waiter) = &self.waiter {
            end(&self.shared, &waiter.execution, Outcome::Superseded);
        }
    }
}

fn end<R>(shared: &Shared<R>, execution: &Execution<R>, outcome: Outcome<R>) {
    let mut running = shared.executions.running.lock();
    if let Some(same) = running.get_mut(&execution.digest) {
        same.retain(|other| other.number != execution.number);
        if same.is_empty() {
            running.remove(&execution.digest);
        }
    }
    drop(running);
    execution.phase.send_replace(Phase::Done(outcome));
}

impl<R: Clone + Send + Sync + 'static> Executions<R> {
    /// Joins the execution that `identity` describes, or gets the right to begin it, on behalf of `state`.
    pub(crate) fn enter(&self, state: &VertexState<R>, identity: &Identity<R>) -> Option<Entered<R>> {
        let (digest, inputs) = identity.of_execution()?;
        let mut running = self.running.lock();
        let same = running.entry(digest).or_default();
        let other = same.iter().find(|other| other.matches(&inputs));
        if let Some(other) = other.filter(|_| !identity.ignore_cache && !identity.volatile()) {
            let mut waiters = other.waiters.lock();
            if *waiters == 0 {
                return Some(Entered::Ending(other.clone()));
            }
            *waiters += 1;
            drop(waiters);
            welcome(other, state);
            return Some(Entered::Joined(Waiter { execution: other.clone() }));
        }
        let execution = Arc::new(Execution {
            number: state.shared.number(),
            digest,
            inputs,
            waiters: Mutex::new(1),
            token: state.shared.scope.token().child_token(),
            audience: Arc::default(),
            members: Mutex::default(),
            recorder: Arc::default(),
            phase: watch::Sender::new(Phase::Waiting),
        });
        welcome(&execution, state);
        same.push(execution.clone());
        Some(Entered::New(Slot { shared: state.shared.clone(), waiter: Some(Waiter { execution }) }))
    }

    /// How many executions are under way.
    pub(crate) fn len(&self) -> usize {
        self.running.lock().values().map(Vec::len).sum()
    }
}

/// Lets the jobs of `state` see the execution, and the execution use theirs.
fn welcome<R: Clone + Send + Sync + 'static>(execution: &Execution<R>, state: &VertexState<R>) {
    execution.audience.join(state.audience.clone());
    execution.members.lock().push((state.audience.clone(), state.audience.departures()));
    let sink = Renamed { digest: state.vertex.digest, sink: state.recorder.clone() };
    execution.recorder.subscribe(state.number, Arc::new(sink));
}

impl<R: Clone + Send + Sync + 'static> Slot<R> {
    /// Begins the execution of `state`'s operation on `inputs`; what it makes is stored under the keys of `identity`.
    pub(crate) fn begin(mut self, state: &VertexState<R>, identity: Identity<R>, inputs: Vec<R>) -> Option<Waiter<R>> {
        let waiter = self.waiter.take()?;
        let execution = waiter.execution.clone();
        let sink: Arc<dyn Sink> = execution.recorder.clone();
        let cx = Cx::new(
            execution.token.clone(),
            Reporter::new(state.vertex.digest, sink),
            state.vertex.name.as_str(),
            execution.audience.clone(),
        );
        let (shared, op) = (self.shared.clone(), state.vertex.op.clone());
        let name = format!("execute {}", state.vertex.name);
        self.shared.scope.spawn_named(name, async move {
            let work = run(&execution, op, &cx, &inputs);
            let outcome = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(outputs)) => Outcome::Executed(Arc::new(save(&shared, &identity, outputs).await)),
                Ok(Err(error)) => Outcome::Failed(Arc::new(error)),
                Err(payload) => Outcome::Aborted(Aborted::Panicked(panic_message(payload.as_ref()))),
            };
            // Stored first, then out of the table: who looks after that finds it in the cache.
            end(&shared, &execution, outcome);
        });
        Some(waiter)
    }
}

async fn run<R>(
    execution: &Execution<R>,
    op: Arc<dyn Operation<R>>,
    cx: &Cx,
    inputs: &[R],
) -> Result<Outputs<R>, BoxError> {
    let _permit = op.acquire(cx).await?;
    execution.phase.send_replace(Phase::Running);
    op.execute(cx, inputs).await
}

/// Stores the outputs. Failures are logged: the results are good without.
async fn save<R: Clone + Send + Sync + 'static>(
    shared: &Shared<R>,
    identity: &Identity<R>,
    outputs: Outputs<R>,
) -> Executed<R> {
    let mut update = CacheUpdate::default();
    let mut saved = Vec::with_capacity(outputs.len());
    for (index, output) in outputs.into_iter().enumerate() {
        let Some(result) = output else {
            saved.push(None);
            continue;
        };
        let keys = keys_for_output(shared, identity, index, &mut update).await;
        let storable: Vec<_> = keys.iter().filter(|key| key.own && key.is_in(shared.keys.name())).collect();
        if !storable.is_empty() {
            match shared.results.save(&result).await {
                Ok(Some(id)) => {
                    let record = Record { id, created: Timestamp::now() };
                    update.results.extend(storable.iter().map(|key| (key.id.clone(), record.clone())));
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "result not kept for the cache"),
            }
        }
        saved.push(Some(Output { result, keys }));
    }
    if !update.is_empty() {
        log(shared.keys.update(update).await);
    }
    Executed { outputs: saved }
}

/// The keys of an output that was just made, with what has to be stored for them added to `update`.
async fn keys_for_output<R>(
    shared: &Shared<R>,
    identity: &Identity<R>,
    index: usize,
    update: &mut CacheUpdate,
) -> Vec<KeyRef> {
    let mut keys = Vec::new();
    let output = index as i64;
    let nowhere = || KeyRef { id: KeyId::random(), place: Place::Nowhere, own: true };
    for (map, inputs) in identity.maps.iter().zip(&identity.inputs) {
        if inputs.is_empty() {
            keys.extend(map.roots(index));
            if !map.volatile {
                let own = map.identities().into_iter().filter(|(_, own)| *own);
                update.keys.extend(own.map(|(digest, _)| (KeyId::root(digest, output), KeyInfo { digest, output })));
            }
            continue;
        }
        if map.volatile {
            keys.push(nowhere());
            continue;
        }
        for (digest, _) in map.identities().into_iter().filter(|(_, own)| *own) {
            let query = Query { digest, output, inputs };
            let mut known = Vec::new();
            if !identity.ignore_cache {
                known = find_keys::<R>(shared.keys.as_ref(), &[], &query).await;
            }
            // What ignores the cache gets a key of its own: nothing that was made of the old result is found by it.
            let id = known.into_iter().find(|key| key.own).map_or_else(KeyId::random, |key| key.id);
            match query.links_to(shared.keys.name(), &id) {
                Some(links) => {
                    update.keys.push((id.clone(), KeyInfo { digest, output }));
                    update.keys.extend(content_keys(&query));
                    update.links.extend(links);
                    keys.push(KeyRef { id, place: Place::Source(shared.keys.name().into()), own: true });
                }
                None => keys.push(nowhere()),
            }
        }
    }
    keys
}

/// The content-based keys among the inputs: nobody else stores what they are.
pub(crate) fn content_keys(query: &Query<'_>) -> Vec<(KeyId, KeyInfo)> {
    let all = query.inputs.iter().flatten();
    all.filter_map(|alternative| alternative.content.map(|digest| (alternative.key.id.clone(), digest)))
        .map(|(id, digest)| (id, KeyInfo { digest, output: crate::CONTENT_OUTPUT }))
        .collect()
}
