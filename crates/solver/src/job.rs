//! The solver and its jobs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use castor_oci::Digest;
use castor_progress::Sink;
use castor_task::{CancellationToken, Scope};
use parking_lot::Mutex;

use crate::context::Member;
use crate::execution::Executions;
use crate::state::{Level, Shared, VertexState};
use crate::{CacheStore, Edge, Graph, GraphError, JobSink, KeyId, ResultStore, SolveError};

/// What a solver is made of.
pub struct SolverOptions<R> {
    /// Where its tasks run.
    pub scope: Scope,
    /// The local cache's keys.
    pub keys: Arc<dyn CacheStore>,
    /// The local cache's results.
    pub results: Arc<dyn ResultStore<R>>,
}

impl<R> fmt::Debug for SolverOptions<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SolverOptions").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// What a job brings.
pub struct JobOptions {
    /// Names the job among those of the solver.
    pub id: String,
    /// The client's sessions.
    pub sessions: Vec<String>,
    /// Where its progress goes.
    pub sink: Arc<dyn Sink>,
    /// What operations may ask for with [`crate::Cx::attributes`].
    pub attributes: BTreeMap<String, String>,
}

impl fmt::Debug for JobOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOptions").field("id", &self.id).field("sessions", &self.sessions).finish_non_exhaustive()
    }
}

/// A job of this name exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job ID {0} exists")]
pub struct JobExists(pub String);

/// What a job built.
#[derive(Debug, Clone)]
pub struct Built<R> {
    /// The result.
    pub result: R,
    /// Its keys in the local cache, for [`crate::export`]. Empty if it cannot be cached.
    pub keys: Vec<KeyId>,
}

/// A vertex that somebody wants, for a person who looks for what hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VertexReport {
    /// The vertex.
    pub digest: Digest,
    /// What users call it.
    pub name: String,
    /// How many jobs want it.
    pub jobs: usize,
    /// Its tasks.
    pub running: Vec<String>,
}

struct Inner<R> {
    shared: Arc<Shared<R>>,
    table: Mutex<Table<R>>,
}

struct Table<R> {
    states: HashMap<Digest, Arc<VertexState<R>>>,
    /// Vertices that were cancelled and may not have ended; the next of the same identity waits for them.
    ending: HashMap<Digest, Arc<VertexState<R>>>,
    jobs: HashMap<String, u64>,
}

/// Runs graphs of operations for jobs. Clones are handles of the same solver.
pub struct Solver<R> {
    inner: Arc<Inner<R>>,
}

impl<R> Clone for Solver<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<R> fmt::Debug for Solver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.inner.table.lock();
        f.debug_struct("Solver").field("vertices", &table.states.len()).field("jobs", &table.jobs).finish()
    }
}

impl<R: Clone + Send + Sync + 'static> Solver<R> {
    /// A solver without jobs.
    pub fn new(options: SolverOptions<R>) -> Self {
        let shared = Shared {
            scope: options.scope,
            keys: options.keys,
            results: options.results,
            executions: Executions::default(),
            counter: AtomicU64::new(0),
        };
        let table = Table { states: HashMap::new(), ending: HashMap::new(), jobs: HashMap::new() };
        Self { inner: Arc::new(Inner { shared: Arc::new(shared), table: Mutex::new(table) }) }
    }

    /// Begins a job.
    pub fn job(&self, options: JobOptions) -> Result<Job<R>, JobExists> {
        let number = self.inner.shared.number();
        let mut table = self.inner.table.lock();
        if table.jobs.contains_key(&options.id) {
            return Err(JobExists(options.id));
        }
        table.jobs.insert(options.id.clone(), number);
        let member = Member { job: number, sessions: options.sessions, attributes: options.attributes };
        Ok(Job {
            inner: self.inner.clone(),
            id: options.id,
            number,
            member: Arc::new(member),
            sink: Arc::new(JobSink::new(options.sink)),
            token: CancellationToken::new(),
            states: Mutex::default(),
        })
    }

    /// The local cache's keys.
    pub fn keys(&self) -> &Arc<dyn CacheStore> {
        &self.inner.shared.keys
    }

    /// How many executions are under way.
    pub fn executions(&self) -> usize {
        self.inner.shared.executions.len()
    }

    /// The vertices that somebody wants.
    pub fn report(&self) -> Vec<VertexReport> {
        let states: Vec<_> = self.inner.table.lock().states.values().cloned().collect();
        let mut reports: Vec<_> = states
            .iter()
            .map(|state| VertexReport {
                digest: state.vertex.digest,
                name: state.vertex.name.clone(),
                jobs: state.audience.len(),
                running: state.running(),
            })
            .collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name).then(a.digest.cmp(&b.digest)));
        reports
    }
}

/// A client's build. What it built stays at hand until it is closed or dropped.
pub struct Job<R: Clone + Send + Sync + 'static> {
    inner: Arc<Inner<R>>,
    id: String,
    number: u64,
    member: Arc<Member>,
    sink: Arc<JobSink>,
    token: CancellationToken,
    states: Mutex<HashMap<Digest, Arc<VertexState<R>>>>,
}

impl<R: Clone + Send + Sync + 'static> fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.id).field("vertices", &self.states.lock().len()).finish_non_exhaustive()
    }
}

impl<R: Clone + Send + Sync + 'static> Job<R> {
    /// The job's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the job's progress goes; callers report their own vertices here too.
    pub fn sink(&self) -> Arc<dyn Sink> {
        self.sink.clone()
    }

    /// Cancelled with the job.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Solves an output of a vertex of `graph`. What the job has solved before is not solved again.
    pub async fn build(&self, graph: &Graph<R>, edge: Edge) -> Result<Built<R>, SolveError> {
        let state = self.attach(graph, edge)?;
        let target = state.edge(edge.output);
        let view = tokio::select! {
            biased;
            () = self.token.cancelled() => return Err(SolveError::cancelled()),
            view = target.reach(Level::Complete) => view?,
        };
        let main = self.inner.shared.keys.name();
        let keys = view.keys.iter().filter(|key| key.own && key.is_in(main)).map(|key| key.id.clone()).collect();
        match view.result {
            Some(Ok(result)) => Ok(Built { result, keys }),
            Some(Err(error)) => Err(error),
            None => Err(SolveError::internal(edge.vertex, "completed without a result")),
        }
    }

    /// Ends the job's builds with an error. Vertices that other jobs want go on.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Ends the job and waits until everything that ran for it alone has ended.
    pub async fn close(self) {
        let ending = self.leave();
        for state in &ending {
            state.ended().await;
        }
        self.inner.forget(&ending);
    }

    /// Takes part in all that `edge` needs.
    fn attach(&self, graph: &Graph<R>, edge: Edge) -> Result<Arc<VertexState<R>>, SolveError> {
        if self.token.is_cancelled() {
            return Err(SolveError::cancelled());
        }
        let mut table = self.inner.table.lock();
        let mut own = self.states.lock();
        // Per vertex digest, its state; inputs come before what needs them.
        let mut placed = HashMap::<Digest, Arc<VertexState<R>>>::new();
        for vertex in graph.order([edge.vertex]) {
            let inputs: Vec<_> = vertex
                .inputs
                .iter()
                .filter_map(|input| Some((placed.get(&input.vertex)?.clone(), input.output)))
                .collect();
            let id = identity(vertex.digest, vertex.ignore_cache, &inputs);
            let fits = |state: &&Arc<VertexState<R>>| state.has_inputs(&inputs);
            let mut state = own.get(&id).filter(fits).cloned();
            if state.is_none() {
                // What failed for another job is tried anew for this one.
                state = table.states.get(&id).filter(fits).filter(|state| !state.has_failed()).cloned();
            }
            let state = state.unwrap_or_else(|| {
                let predecessor = table.ending.get(&id).cloned();
                let shared = self.inner.shared.clone();
                let state = VertexState::new(id, vertex.clone(), shared, inputs, predecessor);
                table.states.insert(id, state.clone());
                state
            });
            state.add_caches(&graph.caches);
            if state.audience.enter(self.member.clone()) {
                state.recorder.subscribe(self.number, self.sink.clone());
            }
            own.insert(id, state.clone());
            placed.insert(vertex.digest, state);
        }
        placed
            .get(&edge.vertex)
            .cloned()
            .ok_or_else(|| SolveError::from(GraphError::UnknownInput { vertex: edge.vertex, input: edge.vertex }))
    }

    /// Leaves all vertices; those that nobody else wants are cancelled and returned.
    fn leave(&self) -> Vec<Arc<VertexState<R>>> {
        self.token.cancel();
        let mut table = self.inner.table.lock();
        let states = std::mem::take(&mut *self.states.lock());
        let mut ending = Vec::new();
        for (id, state) in states {
            state.recorder.unsubscribe(self.number);
            if state.audience.leave(self.number) {
                continue;
            }
            if table.states.get(&id).is_some_and(|current| Arc::ptr_eq(current, &state)) {
                table.states.remove(&id);
            }
            state.scope.cancel();
            table.ending.insert(id, state.clone());
            ending.push(state);
        }
        if table.jobs.get(&self.id) == Some(&self.number) {
            table.jobs.remove(&self.id);
        }
        drop(table);
        // One level at a time, or a long chain would be dropped recursively.
        let inputs: Vec<_> = ending.iter().flat_map(|state| state.take_inputs()).collect();
        drop(inputs);
        self.sink.finish();
        ending
    }
}

impl<R> Inner<R> {
    fn forget(&self, ended: &[Arc<VertexState<R>>]) {
        let mut table = self.table.lock();
        for state in ended {
            if table.ending.get(&state.id).is_some_and(|current| Arc::ptr_eq(current, state)) {
                table.ending.remove(&state.id);
            }
        }
    }
}

impl<R: Clone + Send + Sync + 'static> Drop for Job<R> {
    fn drop(&mut self) {
        let ending = self.leave();
        if ending.is_empty() {
            return;
        }
        // Whoever drops a job does not wait; something must, or the table of ending vertices would grow.
        if tokio::runtime::Handle::try_current().is_ok() {
            let inner = self.inner.clone();
            self.inner.shared.scope.spawn_named("end of a dropped job", async move {
                for state in &ending {
                    state.ended().await;
                }
                inner.forget(&ending);
            });
        } else {
            self.inner.forget(&ending);
        }
    }
}

/// Names a vertex across jobs: its digest, unless it or what it needs ignores the cache.
fn identity<R: Clone + Send + Sync + 'static>(
    digest: Digest,
    ignore_cache: bool,
    inputs: &[(Arc<VertexState<R>>, usize)],
) -> Digest {
    if !ignore_cache && inputs.iter().all(|(state, _)| state.id == state.vertex.digest) {
        return digest;
    }
    let mut text = format!("{digest} {ignore_cache}");
    for (state, _) in inputs {
        text.push_str(&format!(" {}", state.id));
    }
    Digest::of(text)
}
