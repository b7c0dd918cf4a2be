//! A worker with everything real but the processes: those are a few made-up commands on the mounted files.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use castor_executor::{ExecError, Executor, ExitStatus, Meta, MountSource, Process, Stdio};
use castor_layerfs::Lazy;
use castor_llb::{CapSet, Graph, Limits, MarshalOptions, State};
use castor_oci::Platform;
use castor_ops::{BridgeError, Entitlements, RegistryOpeners, Worker, WorkerConfig, failure};
use castor_progress::{Event, Sink};
use castor_session::Sessions;
use castor_solver::{Cx, Edge, JobOptions, Solver, SolverOptions};
use castor_store::{ImmutableRef, Store};
use castor_task::CancellationToken;
use parking_lot::Mutex;
use tokio::sync::oneshot;

#[path = "../../../store/tests/lab/ground.rs"]
mod ground;

use ground::Ground;

/// Runs `write PATH TEXT`, `append PATH TEXT`, `copy FROM TO`, `exit N`, `mode PATH`, `env` and `;` between them.
#[derive(Default)]
pub struct Commands {
    pub runs: AtomicUsize,
    pub last: Mutex<Option<Meta>>,
}

impl Commands {
    fn resolve(process: &Process, path: &str) -> PathBuf {
        let below = |destination: &str| {
            let rest = path.strip_prefix(destination)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
        };
        for mount in process.mounts.iter().rev() {
            let Some(rest) = below(&mount.destination) else { continue };
            let MountSource::Path(source) = &mount.source else { continue };
            let full = source.join(mount.selector.trim_start_matches('/'));
            return if rest.is_empty() { full } else { full.join(rest) };
        }
        process.root.path.join(path.trim_start_matches('/'))
    }

    fn secret<'a>(process: &'a Process, path: &str) -> Option<&'a Bytes> {
        process.mounts.iter().find(|mount| mount.destination == path).and_then(|mount| match &mount.source {
            MountSource::Secret(secret) => Some(&secret.data),
            _ => None,
        })
    }

    fn run_one(process: &Process, command: &[&str]) -> Result<(), u32> {
        let failed = |_: std::io::Error| 1u32;
        match command {
            ["write", path, text] => std::fs::write(Self::resolve(process, path), text).map_err(failed),
            ["append", path, text] => {
                let file = Self::resolve(process, path);
                let before = std::fs::read_to_string(&file).unwrap_or_default();
                std::fs::write(file, format!("{before}{text}")).map_err(failed)
            }
            ["copy", from, to] => {
                let data = match Self::secret(process, from) {
                    Some(data) => data.to_vec(),
                    None => std::fs::read(Self::resolve(process, from)).map_err(failed)?,
                };
                std::fs::write(Self::resolve(process, to), data).map_err(failed)
            }
            ["try", from] => {
                let _ = std::fs::read(Self::resolve(process, from));
                Ok(())
            }
            ["exit", code] => Err(code.parse().unwrap()),
            other => panic!("no such command: {other:?}"),
        }
    }
}

#[async_trait]
impl Executor for Commands {
    async fn run(
        &self,
        process: Process,
        _: Option<oneshot::Sender<()>>,
        _: &CancellationToken,
    ) -> Result<(), ExecError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        *self.last.lock() = Some(process.meta.clone());
        let name = process.meta.display();
        let code = castor_task::reading(move || {
            let args = process.meta.args.clone();
            let mut result = Ok(());
            for command in args.split(|word| word == ";") {
                let command: Vec<&str> = command.iter().map(String::as_str).collect();
                result = result.and_then(|()| Self::run_one(&process, &command));
            }
            result.err()
        })
        .await;
        match code {
            None => Ok(()),
            Some(code) => Err(ExecError::Exit { process: name, status: ExitStatus { code, out_of_memory: false } }),
        }
    }

    async fn exec(&self, _: &str, _: Meta, _: Stdio, _: &CancellationToken) -> Result<(), ExecError> {
        unreachable!("nothing runs in containers here")
    }
}

/// Remembers everything that was reported.
#[derive(Default)]
pub struct Seen(pub Mutex<Vec<Event>>);

impl Sink for Seen {
    fn send(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl Seen {
    /// Names of completed vertices: whether each came from the cache, and its error.
    pub fn vertices(&self) -> BTreeMap<String, (bool, String)> {
        let events = self.0.lock();
        let vertex = |event: &Event| match event {
            Event::Vertex(vertex) if vertex.completed.is_some() => {
                Some((vertex.name.clone(), (vertex.cached, vertex.error.clone())))
            }
            _ => None,
        };
        events.iter().filter_map(vertex).collect()
    }

    /// Ids and names of statuses.
    pub fn statuses(&self) -> Vec<(String, String)> {
        let events = self.0.lock();
        let status = |event: &Event| match event {
            Event::Status(status) => Some((status.id.clone(), status.name.clone())),
            _ => None,
        };
        events.iter().filter_map(status).collect()
    }
}

pub struct Lab {
    pub worker: Worker,
    pub solver: Solver<ImmutableRef>,
    pub store: Store,
    pub commands: Arc<Commands>,
    ground: Ground,
    jobs: AtomicUsize,
}

impl Lab {
    pub async fn new(lazy: Lazy) -> Self {
        let ground = Ground::new().await;
        let registry = Ground::registry();
        let sessions = Sessions::new(ground.scope.child("sessions"));
        let store = ground.store(Arc::new(RegistryOpeners::new(registry.clone(), sessions.clone()))).await;
        let scope = ground.scope.child("solver");
        let solver = Solver::new(SolverOptions { scope, keys: store.keys(), results: store.results() });
        let commands = Arc::new(Commands::default());
        let worker = Worker::new(WorkerConfig {
            store: store.clone(),
            executor: commands.clone(),
            registry,
            sessions,
            db: ground.db.clone(),
            parallelism: Some(2),
            platforms: vec![Platform::host()],
            lazy,
            frontends: castor_ops::bridge::FrontendPolicy::default(),
            passing: castor_ops::Passing::open(ground.dir.path().join("passing")).unwrap(),
            scope: ground.scope.child("ops"),
        });
        Self { worker, solver, store, commands, ground, jobs: AtomicUsize::new(0) }
    }

    /// Builds a state as one job.
    pub async fn build(&self, state: &State) -> (Result<ImmutableRef, BridgeError>, Arc<Seen>) {
        self.build_for(state, &[]).await
    }

    /// Builds a state as one job of these sessions.
    pub async fn build_for(&self, state: &State, sessions: &[&str]) -> (Result<ImmutableRef, BridgeError>, Arc<Seen>) {
        self.build_as(state, sessions, &[]).await
    }

    /// Builds a state as one job of these sessions with these options.
    pub async fn build_as(
        &self,
        state: &State,
        sessions: &[&str],
        attributes: &[(&str, &str)],
    ) -> (Result<ImmutableRef, BridgeError>, Arc<Seen>) {
        let options = MarshalOptions { caps: Some(CapSet::supported()), ..MarshalOptions::default() };
        let definition = state.marshal(&options).unwrap();
        let graph = Graph::decode(&definition.to_pb(), &Limits::default()).unwrap();
        let seen = Arc::new(Seen::default());
        let loaded = match self.worker.load(&graph, Entitlements::default()) {
            Ok(loaded) => loaded,
            Err(error) => return (Err(error), seen),
        };
        let job = self
            .solver
            .job(JobOptions {
                id: format!("job{}", self.jobs.fetch_add(1, Ordering::SeqCst)),
                sessions: sessions.iter().map(|id| (*id).to_owned()).collect(),
                sink: seen.clone(),
                attributes: attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            })
            .unwrap();
        let result = graph.result.unwrap();
        let built = job.build(&loaded, Edge { vertex: result.vertex, output: result.output }).await;
        let built =
            built.map(|built| built.result).map_err(|error| failure(&error, &graph, definition.source.as_ref()));
        job.close().await;
        (built, seen)
    }

    pub fn cx(&self) -> Cx {
        ground::cx()
    }

    pub async fn files(&self, result: &ImmutableRef) -> BTreeMap<String, String> {
        ground::files(result).await
    }

    pub async fn close(self) {
        let Self { worker, solver, store, ground, .. } = self;
        drop((solver, worker, store));
        ground.close().await;
    }
}
