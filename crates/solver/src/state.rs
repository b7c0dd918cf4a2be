//! A vertex that somebody wants.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use castor_oci::Digest;
use castor_progress::{Event, Reporter, Sink, Timestamp, Vertex as Shown};
use castor_task::CancellationToken;
use castor_task::{Aborted, Flight, Scope};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::context::Audience;
use crate::execution::{Executed, Execution, Executions};
use crate::lookup::KeyRef;
use crate::{BoxError, Cache, CacheMap, CacheStore, Cx, Recorder, ResultStore, SolveError, Stage, Vertex};

/// What all vertices of a solver share.
pub(crate) struct Shared<R> {
    pub(crate) scope: Scope,
    pub(crate) keys: Arc<dyn CacheStore>,
    pub(crate) results: Arc<dyn ResultStore<R>>,
    pub(crate) executions: Executions<R>,
    pub(crate) counter: AtomicU64,
}

impl<R> Shared<R> {
    /// A number that was not used before.
    pub(crate) fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// How far an output of a vertex has come, or is wanted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing is known.
    Nothing,
    /// Keys by definition.
    Fast,
    /// All keys that can be had without executing.
    Slow,
    /// The result.
    Complete,
}

/// What is known of an output.
#[derive(Clone)]
pub(crate) struct View<R> {
    pub(crate) level: Level,
    pub(crate) keys: Arc<[KeyRef]>,
    pub(crate) result: Option<Result<R, SolveError>>,
}

/// An output of a vertex that somebody wants.
pub(crate) struct EdgeState<R> {
    pub(crate) output: usize,
    /// How many want it, by level.
    demand: watch::Sender<[usize; 4]>,
    view: watch::Receiver<View<R>>,
}

/// One who wants an output; dropping it withdraws the wish.
pub(crate) struct Wanted<R> {
    edge: Arc<EdgeState<R>>,
    level: Level,
}

impl<R> Drop for Wanted<R> {
    fn drop(&mut self) {
        self.edge.demand.send_modify(|demand| demand[self.level as usize] -= 1);
    }
}

impl<R: Clone> EdgeState<R> {
    pub(crate) fn want(self: &Arc<Self>, level: Level) -> Wanted<R> {
        self.demand.send_modify(|demand| demand[level as usize] += 1);
        Wanted { edge: self.clone(), level }
    }

    /// Wants `level` and waits for it.
    pub(crate) async fn reach(self: &Arc<Self>, level: Level) -> Result<View<R>, SolveError> {
        let _wanted = self.want(level);
        let mut view = self.view.clone();
        let failed = |view: &View<R>| matches!(view.result, Some(Err(_)));
        match view.wait_for(|view| view.level >= level || failed(view)).await {
            Ok(view) => match &view.result {
                Some(Err(error)) => Err(error.clone()),
                _ => Ok(view.clone()),
            },
            // The task ended without a word: the solver itself is being torn down.
            Err(_) => Err(SolveError::cancelled()),
        }
    }

    /// Waits until somebody wants at least `level`.
    pub(crate) async fn wanted(&self, level: Level) {
        let mut demand = self.demand.subscribe();
        // The sender is in `self`, so this does not fail.
        let _ = demand.wait_for(|demand| demand[level as usize..].iter().any(|count| *count > 0)).await;
    }

    async fn unwanted(&self, level: Level) {
        let mut demand = self.demand.subscribe();
        let _ = demand.wait_for(|demand| demand[level as usize..].iter().all(|count| *count == 0)).await;
    }

    /// Runs `work` for as long as somebody wants `level`; `None` when all lost interest.
    pub(crate) async fn while_wanted<T>(&self, level: Level, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = work => Some(value),
            () = self.unwanted(level) => None,
        }
    }
}

/// A cache map and whether there are more.
pub(crate) type Maps<R> = (Vec<Arc<CacheMap<R>>>, bool);

/// Work of a vertex that must not be dropped half way, by what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    Map(usize),
    Content(usize),
    Prepare(usize),
    Load(u64),
}

/// What such work yields.
#[derive(Clone)]
pub(crate) enum Yield<R> {
    Map(Arc<CacheMap<R>>, bool),
    Content(Option<Digest>),
    Prepared,
    Loaded(Option<R>),
}

/// A vertex that somebody wants, shared by all who do.
pub(crate) struct VertexState<R> {
    pub(crate) id: Digest,
    pub(crate) number: u64,
    pub(crate) vertex: Arc<Vertex<R>>,
    pub(crate) shared: Arc<Shared<R>>,
    pub(crate) scope: Scope,
    pub(crate) audience: Arc<Audience>,
    pub(crate) recorder: Arc<Recorder>,
    /// Emptied when the last job leaves, so that a long chain is not dropped recursively.
    inputs: Mutex<Vec<(Arc<VertexState<R>>, usize)>>,
    shown: Mutex<Shown>,
    caches: Mutex<Vec<Cache<R>>>,
    edges: Mutex<HashMap<usize, Arc<EdgeState<R>>>>,
    flight: Flight<Work, Result<Yield<R>, Arc<BoxError>>>,
    pub(crate) maps: Mutex<Maps<R>>,
    pub(crate) contents: Mutex<HashMap<usize, Option<Digest>>>,
    prepared: Mutex<HashMap<usize, ()>>,
    /// The outputs, once the vertex has been executed; held while it is.
    pub(crate) executed: tokio::sync::Mutex<Option<Arc<Executed<R>>>>,
    pub(crate) execution: Mutex<Option<Arc<Execution<R>>>>,
    /// The vertex of the same identity that was cancelled before this one and may not have ended.
    predecessor: Mutex<Option<Arc<VertexState<R>>>>,
    failed: Mutex<bool>,
}

impl<R: Clone + Send + Sync + 'static> VertexState<R> {
    pub(crate) fn new(
        id: Digest,
        vertex: Arc<Vertex<R>>,
        shared: Arc<Shared<R>>,
        inputs: Vec<(Arc<Self>, usize)>,
        predecessor: Option<Arc<Self>>,
    ) -> Arc<Self> {
        let scope = shared.scope.child(&vertex.name);
        let recorder = Arc::new(Recorder::default());
        let mut seen = Vec::new();
        for input in &vertex.inputs {
            if !seen.contains(&input.vertex) {
                seen.push(input.vertex);
            }
        }
        let shown = Shown {
            digest: Some(vertex.digest),
            inputs: seen,
            name: vertex.name.clone(),
            group: vertex.group.clone(),
            ..Shown::default()
        };
        recorder.send(Event::Vertex(shown.clone()));
        Arc::new(Self {
            id,
            number: shared.number(),
            flight: Flight::new(&scope),
            vertex,
            shared,
            scope,
            audience: Arc::default(),
            recorder,
            inputs: Mutex::new(inputs),
            shown: Mutex::new(shown),
            caches: Mutex::default(),
            edges: Mutex::default(),
            maps: Mutex::default(),
            contents: Mutex::default(),
            prepared: Mutex::default(),
            executed: tokio::sync::Mutex::default(),
            execution: Mutex::default(),
            predecessor: Mutex::new(predecessor),
            failed: Mutex::default(),
        })
    }

    pub(crate) fn inputs(&self) -> Vec<(Arc<Self>, usize)> {
        self.inputs.lock().clone()
    }

    pub(crate) fn take_inputs(&self) -> Vec<(Arc<Self>, usize)> {
        std::mem::take(&mut self.inputs.lock())
    }

    /// Whether its inputs are these very states.
    pub(crate) fn has_inputs(&self, inputs: &[(Arc<Self>, usize)]) -> bool {
        let own = self.inputs.lock();
        own.len() == inputs.len() && own.iter().zip(inputs).all(|(a, b)| a.1 == b.1 && Arc::ptr_eq(&a.0, &b.0))
    }

    pub(crate) fn has_failed(&self) -> bool {
        *self.failed.lock()
    }

    pub(crate) fn mark_failed(&self) {
        *self.failed.lock() = true;
    }

    pub(crate) fn add_caches(&self, caches: &[Cache<R>]) {
        let mut known = self.caches.lock();
        for cache in caches {
            if known.iter().all(|present| present.keys.name() != cache.keys.name()) {
                known.push(cache.clone());
            }
        }
    }

    pub(crate) fn caches(&self) -> Vec<Cache<R>> {
        self.caches.lock().clone()
    }

    pub(crate) fn reporter(&self) -> Reporter {
        Reporter::new(self.vertex.digest, self.recorder.clone())
    }

    pub(crate) fn cx(&self, token: CancellationToken) -> Cx {
        Cx::new(token, self.reporter(), self.vertex.name.as_str(), self.audience.clone())
    }

    /// The state of an output; its task begins with the first who asks.
    pub(crate) fn edge(self: &Arc<Self>, output: usize) -> Arc<EdgeState<R>> {
        let mut edges = self.edges.lock();
        if let Some(edge) = edges.get(&output) {
            return edge.clone();
        }
        let (publish, view) = watch::channel(View { level: Level::Nothing, keys: Arc::default(), result: None });
        let edge = Arc::new(EdgeState { output, demand: watch::Sender::new([0; 4]), view });
        edges.insert(output, edge.clone());
        self.scope.spawn_named(format_args!("output {output}"), crate::edge::run(self.clone(), edge.clone(), publish));
        edge
    }

    /// Does work that must not be dropped half way, once for all outputs that need it. A failure while somebody left is
    /// tried again, for it may be that somebody's.
    pub(crate) async fn work<F, W>(&self, key: Work, stage: Stage, work: W) -> Result<Yield<R>, SolveError>
    where
        W: Fn(Cx) -> F,
        F: Future<Output = Result<Yield<R>, BoxError>> + Send + 'static,
    {
        loop {
            let departures = self.audience.departures();
            let flight = self.flight.run(key, |token| {
                let future = work(self.cx(token));
                async move { future.await.map_err(Arc::new) }
            });
            match flight.await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(_)) if self.audience.departures() != departures => {}
                Ok(Err(error)) => return Err(self.failure(stage, error)),
                Err(aborted) => return Err(self.aborted(aborted)),
            }
        }
    }

    pub(crate) fn failure(&self, stage: Stage, error: Arc<BoxError>) -> SolveError {
        SolveError::operation(self.vertex.digest, &self.vertex.name, stage, error)
    }

    pub(crate) fn aborted(&self, aborted: Aborted) -> SolveError {
        SolveError::internal(self.vertex.digest, aborted.to_string())
    }

    /// Makes an output ready for use, once.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        output: usize,
        result: &R,
        prepare: Arc<dyn crate::Prepare<R>>,
    ) -> Result<(), SolveError> {
        if self.prepared.lock().contains_key(&output) {
            return Ok(());
        }
        if prepare.needed(result).await {
            let shown = Arc::new(ShownWhenBusy { state: Arc::downgrade(self), phase: Mutex::new(Phase::Quiet) });
            if prepare.waits(result).await {
                shown.show();
            }
            let reporter = Reporter::new(self.vertex.digest, shown.clone());
            let done = self.work(Work::Prepare(output), Stage::Prepare(output), |cx| {
                let (prepare, result) = (prepare.clone(), result.clone());
                let cx = cx.with_reporter(reporter.clone());
                async move { prepare.prepare(&cx, &result).await.map(|()| Yield::Prepared) }
            });
            let done = done.await;
            if done.is_err() {
                shown.show();
            }
            if shown.end() {
                self.completed(false, done.as_ref().err());
            }
            done?;
        }
        self.prepared.lock().insert(output, ());
        Ok(())
    }

    /// Reports that the vertex starts (again).
    pub(crate) fn started(&self) {
        self.starts(false);
    }

    /// Reports that the vertex came from the cache.
    pub(crate) fn loaded(&self) {
        self.starts(true);
        self.completed(true, None);
    }

    fn starts(&self, cached: bool) {
        self.show(|shown| {
            shown.started = Some(Timestamp::now());
            shown.completed = None;
            shown.cached = cached;
            shown.error.clear();
        });
    }

    /// Reports that the vertex has completed.
    pub(crate) fn completed(&self, cached: bool, error: Option<&SolveError>) {
        self.show(|shown| {
            shown.completed = Some(Timestamp::now());
            shown.started = shown.started.or(shown.completed);
            shown.cached = cached;
            shown.error = error.map(SolveError::vertex_message).unwrap_or_default();
        });
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        // Held while the event is sent: states must not overtake each other.
        let mut shown = self.shown.lock();
        change(&mut shown);
        self.recorder.send(Event::Vertex(shown.clone()));
    }

    /// What it is doing, for a person who looks for what hangs.
    pub(crate) fn running(&self) -> Vec<String> {
        self.scope.running()
    }

    /// Waits until the vertex of the same identity before this one has ended.
    pub(crate) async fn predecessor_ended(&self) {
        let predecessor = self.predecessor.lock().clone();
        if let Some(predecessor) = predecessor {
            predecessor.ended().await;
            self.predecessor.lock().take();
        }
    }

    /// Waits until nothing of a cancelled vertex runs any more. An execution that others joined goes on for them.
    pub(crate) async fn ended(&self) {
        self.scope.idle().await;
        let execution = self.execution.lock().clone();
        if let Some(execution) = execution {
            execution.ended_if_abandoned().await;
        }
    }
}

/// The sink of work on a vertex that has completed, and perhaps came from the cache: it is shown as running again only
/// if there is something to see.
struct ShownWhenBusy<R> {
    /// Whoever was told of the sink may keep it for long.
    state: Weak<VertexState<R>>,
    phase: Mutex<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Quiet,
    Shown,
    Over,
}

impl<R: Clone + Send + Sync + 'static> ShownWhenBusy<R> {
    /// Shows the vertex as running.
    fn show(&self) {
        // Held while the event is sent: what is reported comes after it.
        let mut phase = self.phase.lock();
        if *phase == Phase::Quiet {
            *phase = Phase::Shown;
            if let Some(state) = self.state.upgrade() {
                state.started();
            }
        }
    }

    /// The work has ended; whether the vertex is shown as running.
    fn end(&self) -> bool {
        std::mem::replace(&mut *self.phase.lock(), Phase::Over) == Phase::Shown
    }
}

impl<R: Clone + Send + Sync + 'static> Sink for ShownWhenBusy<R> {
    fn send(&self, event: Event) {
        self.show();
        if let Some(state) = self.state.upgrade() {
            state.recorder.send(event);
        }
    }
}
