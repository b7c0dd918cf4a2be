//! What all builds of a daemon share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use castor_blobs::Blobs;
use castor_frontend::Gateways;
use castor_oci::Platform;
use castor_ops::Worker;
use castor_ops::bridge::WorkerInfo;
use castor_progress::Timestamp;
use castor_registry::Client;
use castor_session::Sessions;
use castor_solver::Solver;
use castor_store::{GcPolicy, ImmutableRef, Store};
use castor_task::Scope;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use crate::provenance::MadeBefore;
use crate::trace::{TraceContext, of_build, stubs};
use crate::{Builds, History, Journal, Traces};

/// How long after a build the collector waits for the next one to begin.
const COLLECT_AFTER: Duration = Duration::from_secs(1);
/// How often the collector runs at most.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// How often old build records are looked for.
const HISTORY_EVERY: Duration = Duration::from_secs(120);

/// How long clients may take to send their part of a build's trace.
const TRACE_AFTER: Duration = Duration::from_secs(3);

/// A build that ended, and where it stands in a trace.
pub(crate) struct Traced {
    pub(crate) context: TraceContext,
    pub(crate) id: String,
    pub(crate) started: Timestamp,
    pub(crate) ended: Timestamp,
    pub(crate) error: Option<String>,
    pub(crate) journal: Arc<Journal>,
}

/// The parts that builds are made with.
pub struct Parts {
    /// Refs and records.
    pub store: Store,
    /// Blobs of refs.
    pub blobs: Blobs,
    /// Registries.
    pub registry: Client,
    /// Clients.
    pub sessions: Sessions,
    /// What ops mean.
    pub ops: Worker,
    /// What builds.
    pub worker: WorkerInfo,
    /// What builds may be granted.
    pub allowed: BTreeSet<String>,
    /// The collector's rules; none switch it off.
    pub policies: Vec<GcPolicy>,
    /// The record of builds.
    pub history: History,
    /// Traces of builds.
    pub traces: Traces,
}

/// What all builds share.
pub struct Daemon {
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) registry: Client,
    pub(crate) sessions: Sessions,
    pub(crate) ops: Worker,
    pub(crate) worker: WorkerInfo,
    pub(crate) allowed: BTreeSet<String>,
    pub(crate) native: Platform,
    pub(crate) solver: Solver<ImmutableRef>,
    pub(crate) gateways: Gateways,
    pub(crate) builds: Builds,
    pub(crate) history: History,
    pub(crate) traces: Traces,
    pub(crate) made: MadeBefore,
    policies: Vec<GcPolicy>,
    scope: Scope,
    collecting: AtomicBool,
    /// Somebody asked since the collector last began.
    collection_wanted: AtomicBool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("worker", &self.worker).field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("worker", &self.worker).field("solver", &self.solver).finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon made of `parts`; its own tasks run in `scope`.
    pub fn new(parts: Parts, solver: Solver<ImmutableRef>, scope: Scope) -> Arc<Self> {
        let native = parts.worker.platforms.first().cloned().unwrap_or_else(Platform::host);
        let daemon = Arc::new(Self {
            store: parts.store,
            blobs: parts.blobs,
            registry: parts.registry,
            sessions: parts.sessions,
            ops: parts.ops,
            worker: parts.worker,
            allowed: parts.allowed,
            native,
            solver,
            gateways: Gateways::default(),
            builds: Builds::new(parts.history.clone()),
            history: parts.history,
            traces: parts.traces,
            made: MadeBefore::default(),
            policies: parts.policies,
            scope,
            collecting: AtomicBool::new(false),
            collection_wanted: AtomicBool::new(false),
        });
        // What an earlier daemon left may be too much for the rules of this one.
        daemon.collect_soon();
        daemon.keep_history_short();
        daemon
    }

    /// Refs and records.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Clients.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Builds that their clients drive.
    pub fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// The record of builds that ended.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Traces of builds.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Builds by name.
    pub fn builds(&self) -> &Builds {
        &self.builds
    }

    /// What builds.
    pub fn worker(&self) -> &WorkerInfo {
        &self.worker
    }

    /// Registries.
    pub fn registry(&self) -> &Client {
        &self.registry
    }

    /// What runs vertices.
    pub fn solver(&self) -> &Solver<ImmutableRef> {
        &self.solver
    }

    /// The collector's rules.
    pub fn policies(&self) -> &[GcPolicy] {
        &self.policies
    }

    /// Collects garbage a little later, or a while after it was collected last; never not at all.
    pub(crate) fn collect_soon(self: &Arc<Self>) {
        if self.policies.is_empty() {
            return;
        }
        self.collection_wanted.store(true, Ordering::Release);
        if self.collecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (daemon, token) = (self.clone(), self.scope.token().clone());
        self.scope.spawn_named("garbage collection", async move {
            let pause = async |time| {
                tokio::select! {
                    () = token.cancelled() => false,
                    () = tokio::time::sleep(time) => true,
                }
            };
            while pause(COLLECT_AFTER).await {
                daemon.collection_wanted.store(false, Ordering::Release);
                daemon.collect().await;
                if !pause(COLLECT_EVERY).await {
                    break;
                }
                // In this order: who asks from now on begins anew by themselves.
                daemon.collecting.store(false, Ordering::Release);
                if !daemon.collection_wanted.load(Ordering::Acquire) || daemon.collecting.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
            daemon.collecting.store(false, Ordering::Release);
        });
    }

    /// Completes the record of the build `id`: waits for what is still being written.
    pub async fn finalize(&self, id: &str) {
        self.history.finalize(id).await;
    }

    /// Adds the trace to the record of a build that ended, a little later: clients send their part of it last.
    pub(crate) fn trace_later(self: &Arc<Self>, build: Traced) {
        let (daemon, token) = (self.clone(), self.scope.token().clone());
        let record = self.history.keep_open(&build.id);
        self.scope.spawn_named("build trace", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = record.wanted() => {}
                () = tokio::time::sleep(TRACE_AFTER) => {}
            }
            let Traced { context, id, started, ended, error, journal } = build;
            let clients = daemon.traces.end(context.trace);
            let own = of_build(&context, &id, (started, ended), error.as_deref(), &journal.events());
            let spans = stubs(&own, &clients);
            daemon.traces.pass_on(ExportTraceServiceRequest { resource_spans: vec![own] });
            if let Err(error) = daemon.history.save_trace(&id, spans).await {
                tracing::warn!(build = id, %error, "write the trace of a build");
            }
            drop(record);
        });
    }

    /// Removes old build records now and then.
    fn keep_history_short(self: &Arc<Self>) {
        let (history, token) = (self.history.clone(), self.scope.token().clone());
        self.scope.spawn_named("build records", async move {
            loop {
                match history.collect(Timestamp::now()).await {
                    Ok(0) => {}
                    Ok(records) => tracing::debug!(records, "removed old build records"),
                    Err(error) => tracing::warn!(%error, "remove old build records"),
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(HISTORY_EVERY) => {}
                }
            }
        });
    }

    async fn collect(&self) {
        match self.store.gc(&self.policies).await {
            Ok(castor_store::Pruned { records, layers, bytes }) if records > 0 || layers > 0 => {
                tracing::info!(records, layers, bytes, "collected garbage");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "collect garbage"),
        }
    }
}
