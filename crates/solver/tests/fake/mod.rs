//! Operations that are made up, and a world to run them in. The result of an operation is a text.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use castor_oci::Digest;
use castor_progress::{Event, Sink};
use castor_solver::{
    BoxError, Built, Cache, CacheMap, ContentKey, Cx, Dep, Edge, Graph, Job, JobOptions, MemoryCache, Operation,
    Outputs, Prepare, Private, ResultStore, SolveError, Solver, SolverOptions, Vertex,
};
use castor_task::Scope;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub type Text = Arc<str>;

/// What all operations of a test report to.
#[derive(Default)]
pub struct Diary {
    pub executed: Mutex<Vec<String>>,
    pub hashed: Mutex<Vec<String>>,
    pub mapped: Mutex<Vec<String>>,
    running: Mutex<HashMap<Digest, usize>>,
    pub overlaps: AtomicUsize,
}

impl Diary {
    pub fn runs(&self, name: &str) -> usize {
        self.executed.lock().iter().filter(|run| *run == name).count()
    }

    pub fn executed(&self) -> Vec<String> {
        let mut executed = self.executed.lock().clone();
        executed.sort();
        executed
    }

    fn enter(&self, name: &str, vertex: Digest) {
        self.executed.lock().push(name.to_owned());
        let mut running = self.running.lock();
        let count = running.entry(vertex).or_default();
        *count += 1;
        if *count > 1 {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self, vertex: Digest) {
        *self.running.lock().entry(vertex).or_default() -= 1;
    }

    pub fn running(&self) -> usize {
        self.running.lock().values().sum()
    }
}

/// Something to wait for.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// An operation that is made up.
#[derive(Clone)]
pub struct Fake {
    pub name: String,
    pub digest: Digest,
    pub volatile: bool,
    pub private: Option<Private>,
    pub extra_maps: Vec<Digest>,
    pub inputs: Vec<Edge>,
    pub by_content: Vec<bool>,
    pub selector: Option<Digest>,
    pub ignore_cache: bool,
    pub outputs: usize,
    pub says: Option<String>,
    /// Says this and what its inputs said.
    pub label: Option<String>,
    pub fails: Option<String>,
    pub gate: Option<Gate>,
    pub started: Arc<Notify>,
    pub delay: Duration,
    pub stubborn: Duration,
    pub fails_without: Option<String>,
    pub panics: bool,
    /// How its inputs are made ready.
    pub prepare: Option<Preparing>,
    pub vertex: Digest,
    diary: Arc<Diary>,
}

impl Fake {
    pub fn edge(&self, output: usize) -> Edge {
        Edge { vertex: self.vertex, output }
    }

    pub fn on(mut self, inputs: &[&Fake]) -> Self {
        self.inputs = inputs.iter().map(|input| input.edge(0)).collect();
        self.by_content = vec![false; inputs.len()];
        self
    }

    pub fn content(mut self) -> Self {
        self.by_content.iter_mut().for_each(|by_content| *by_content = true);
        self
    }

    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// The operation's digest, where it differs from the vertex's.
    pub fn op(mut self, digest: &str) -> Self {
        self.digest = Digest::of(digest);
        self
    }

    pub fn says(mut self, text: &str) -> Self {
        self.says = Some(text.to_owned());
        self
    }

    pub fn fails(mut self, text: &str) -> Self {
        self.fails = Some(text.to_owned());
        self
    }

    pub fn gated(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    pub fn preparing(mut self, prepare: Preparing) -> Self {
        self.prepare = Some(prepare);
        self
    }

    pub fn ignoring_cache(mut self) -> Self {
        self.ignore_cache = true;
        self
    }

    fn to_vertex(&self) -> Vertex<Text> {
        Vertex {
            digest: self.vertex,
            name: self.name.clone(),
            op: Arc::new(self.clone()),
            inputs: self.inputs.clone(),
            ignore_cache: self.ignore_cache,
            group: None,
        }
    }
}

struct Hash(String, Arc<Diary>);

#[async_trait]
impl ContentKey<Text> for Hash {
    async fn content_key(&self, _: &Cx, input: &Text) -> Result<Option<Digest>, BoxError> {
        self.1.hashed.lock().push(self.0.clone());
        Ok(Some(Digest::of(format!("content {input}"))))
    }
}

/// Makes inputs ready, as it were.
#[derive(Debug, Clone, Copy, Default)]
pub struct Preparing {
    pub waits: bool,
    pub reports: bool,
    pub fails: bool,
}

#[async_trait]
impl Prepare<Text> for Preparing {
    async fn needed(&self, _: &Text) -> bool {
        true
    }

    async fn waits(&self, _: &Text) -> bool {
        self.waits
    }

    async fn prepare(&self, cx: &Cx, _: &Text) -> Result<(), BoxError> {
        if self.reports {
            cx.reporter().start("fetching", "", 0).finish();
        }
        if self.fails { Err("it is gone".into()) } else { Ok(()) }
    }
}

struct Running<'a>(&'a Fake);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.diary.leave(self.0.vertex);
    }
}

#[async_trait]
impl Operation<Text> for Fake {
    async fn cache_map(&self, _: &Cx, index: usize) -> Result<(CacheMap<Text>, bool), BoxError> {
        self.diary.mapped.lock().push(self.name.clone());
        let dep = |by_content: &bool| Dep {
            selector: self.selector,
            content: by_content.then(|| Arc::new(Hash(self.name.clone(), self.diary.clone())) as Arc<_>),
            prepare: self.prepare.map(|prepare| Arc::new(prepare) as Arc<_>),
        };
        let digest = if index == 0 { self.digest } else { self.extra_maps[index - 1] };
        let mut map = CacheMap::with_deps(digest, self.by_content.iter().map(dep).collect());
        map.volatile = self.volatile;
        map.private = self.private;
        Ok((map, index == self.extra_maps.len()))
    }

    async fn execute(&self, cx: &Cx, inputs: &[Text]) -> Result<Outputs<Text>, BoxError> {
        self.diary.enter(&self.name, self.vertex);
        let _running = Running(self);
        cx.reporter().log(1, format!("{} runs", self.name).into());
        self.started.notify_one();
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.panics {
            panic!("{} panics", self.name);
        }
        if let Some(gate) = &self.gate {
            tokio::select! {
                () = gate.passed() => {}
                () = cx.token().cancelled() => {
                    tokio::time::sleep(self.stubborn).await;
                    return Err("cancelled in the middle".into());
                }
            }
        }
        if let Some(text) = &self.fails {
            return Err(text.clone().into());
        }
        if self.fails_without.as_ref().is_some_and(|session| !cx.sessions().contains(session)) {
            return Err("no active session".into());
        }
        let labelled = || self.label.as_ref().map(|label| format!("{label}[{}]", inputs.join(",")));
        let text =
            labelled().or_else(|| self.says.clone()).unwrap_or_else(|| format!("{}({})", self.name, inputs.join(",")));
        Ok((0..self.outputs.max(1))
            .map(|index| Some(if index == 0 { text.clone() } else { format!("{text}#{index}") }.into()))
            .collect())
    }
}

/// Results by id.
#[derive(Default)]
pub struct FakeResults {
    pub kept: Mutex<BTreeMap<String, Text>>,
    pub out_of_reach: Mutex<bool>,
}

#[async_trait]
impl ResultStore<Text> for FakeResults {
    async fn save(&self, result: &Text) -> Result<Option<String>, BoxError> {
        let id = format!("{}", Digest::of(result.as_bytes()));
        self.kept.lock().insert(id.clone(), result.clone());
        Ok(Some(id))
    }

    async fn load(&self, _: &Cx, id: &str) -> Result<Option<Text>, BoxError> {
        if *self.out_of_reach.lock() {
            return Err("registry out of reach".into());
        }
        Ok(self.kept.lock().get(id).cloned())
    }
}

/// A sink that keeps everything.
#[derive(Default)]
pub struct Events(pub Mutex<Vec<Event>>);

impl Sink for Events {
    fn send(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl Events {
    pub fn logs(&self) -> Vec<(Digest, String)> {
        let events = self.0.lock();
        let logs = events.iter().filter_map(|event| match event {
            Event::Log(log) => Some((log.vertex, String::from_utf8_lossy(&log.data).into_owned())),
            _ => None,
        });
        logs.collect()
    }

    /// The last state of a vertex.
    pub fn vertex(&self, name: &str) -> Option<castor_progress::Vertex> {
        let events = self.0.lock();
        events.iter().rev().find_map(|event| match event {
            Event::Vertex(vertex) if vertex.name == name => Some(vertex.clone()),
            _ => None,
        })
    }
}

/// A solver and what surrounds it.
pub struct World {
    pub diary: Arc<Diary>,
    pub keys: Arc<MemoryCache>,
    pub results: Arc<FakeResults>,
    pub solver: Solver<Text>,
    pub scope: Scope,
    jobs: AtomicUsize,
}

impl World {
    pub fn new() -> Self {
        Self::over(Arc::new(MemoryCache::new("local")), Arc::default())
    }

    fn over(keys: Arc<MemoryCache>, results: Arc<FakeResults>) -> Self {
        let scope = Scope::root("test");
        let options = SolverOptions { scope: scope.clone(), keys: keys.clone(), results: results.clone() };
        Self { diary: Arc::default(), keys, results, solver: Solver::new(options), scope, jobs: AtomicUsize::new(0) }
    }

    /// As after a restart: the stored cache remains.
    pub fn restarted(&self) -> Self {
        Self::over(self.keys.clone(), self.results.clone())
    }

    pub fn cache(&self) -> Cache<Text> {
        Cache { keys: self.keys.clone(), results: self.results.clone() }
    }

    pub fn op(&self, name: &str) -> Fake {
        Fake {
            name: name.to_owned(),
            digest: Digest::of(name),
            volatile: false,
            private: None,
            extra_maps: Vec::new(),
            inputs: Vec::new(),
            by_content: Vec::new(),
            selector: None,
            ignore_cache: false,
            outputs: 1,
            says: None,
            label: None,
            fails: None,
            gate: None,
            started: Arc::default(),
            delay: Duration::ZERO,
            stubborn: Duration::ZERO,
            fails_without: None,
            panics: false,
            prepare: None,
            vertex: Digest::of(format!("vertex {name}")),
            diary: self.diary.clone(),
        }
    }

    pub fn job(&self) -> (Job<Text>, Arc<Events>) {
        let number = self.jobs.fetch_add(1, Ordering::SeqCst);
        let events = Arc::new(Events::default());
        let options = JobOptions {
            id: format!("job {number}"),
            sessions: vec![format!("session {number}")],
            sink: events.clone(),
            attributes: BTreeMap::new(),
        };
        (self.solver.job(options).unwrap(), events)
    }

    /// Builds the last of `ops` in a job of its own.
    pub async fn build(&self, ops: &[&Fake]) -> Result<Built<Text>, SolveError> {
        let (job, _) = self.job();
        let built = build(&job, ops).await;
        job.close().await;
        built
    }

    pub async fn text(&self, ops: &[&Fake]) -> String {
        self.build(ops).await.unwrap().result.to_string()
    }
}

pub fn graph(ops: &[&Fake]) -> Graph<Text> {
    Graph::new(ops.iter().map(|op| op.to_vertex())).unwrap()
}

/// Builds the last of `ops`.
pub async fn build(job: &Job<Text>, ops: &[&Fake]) -> Result<Built<Text>, SolveError> {
    job.build(&graph(ops), ops[ops.len() - 1].edge(0)).await
}
