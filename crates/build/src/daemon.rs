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
use castor_registry::Client;
use castor_session::Sessions;
use castor_solver::Solver;
use castor_store::{GcPolicy, ImmutableRef, Store};
use castor_task::Scope;

use crate::Builds;

/// How long after a build the collector waits for the next one to begin.
const COLLECT_AFTER: Duration = Duration::from_secs(1);
/// How often the collector runs at most.
const COLLECT_EVERY: Duration = Duration::from_secs(60);

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
    policies: Vec<GcPolicy>,
    scope: Scope,
    collecting: AtomicBool,
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
        Arc::new(Self {
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
            builds: Builds::default(),
            policies: parts.policies,
            scope,
            collecting: AtomicBool::new(false),
        })
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

    /// Collects garbage a little later, unless that is about to happen anyway.
    pub(crate) fn collect_soon(self: &Arc<Self>) {
        if self.policies.is_empty() || self.collecting.swap(true, Ordering::AcqRel) {
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
            if pause(COLLECT_AFTER).await {
                match daemon.store.gc(&daemon.policies).await {
                    Ok(pruned) if pruned.records > 0 => {
                        tracing::info!(records = pruned.records, bytes = pruned.bytes, "collected garbage");
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "collect garbage"),
                }
                pause(COLLECT_EVERY).await;
            }
            daemon.collecting.store(false, Ordering::Release);
        });
    }
}
