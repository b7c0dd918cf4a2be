//! The bridge of one build: what its frontend, builtin or at the client, may ask of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use castor_frontend::FrontendRequest;
use castor_llb::{Definition, Graph, Limits};
use castor_ops::bridge::{ReadDir, ReadFile, SourceMeta, SourceMetaRequest, WorkerInfo};
use castor_ops::{Bridge, BridgeError, LazyRef, Refs, SolveRequest, SolveResult};
use castor_progress::{Event, Reporter, Warning};
use castor_proto::fsutil::Stat;
use castor_solver::{Cx, Edge, Job};
use castor_store::ImmutableRef;
use castor_task::CancellationToken;
use parking_lot::Mutex;

use crate::entitlements::Granted;
use crate::{Daemon, Request};

/// How many frontends of one build may run at once: the bound for those that call each other without end.
const MAX_FRONTENDS: usize = 256;

/// One build, as its frontend sees it.
pub(crate) struct BuildBridge {
    daemon: Arc<Daemon>,
    request: Arc<Request>,
    job: Arc<Job<ImmutableRef>>,
    granted: Granted,
    token: CancellationToken,
    /// Frontends that are running.
    frontends: Mutex<usize>,
    /// Itself, for the frontends it runs.
    this: Weak<Self>,
}

impl BuildBridge {
    pub(crate) fn new(
        daemon: Arc<Daemon>,
        request: Arc<Request>,
        job: Arc<Job<ImmutableRef>>,
        granted: Granted,
        token: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            daemon,
            request,
            job,
            granted,
            token,
            frontends: Mutex::new(0),
            this: this.clone(),
        })
    }

    /// A context outside of the solver, which reports to `reporter`.
    pub(crate) fn cx(&self, reporter: Reporter) -> Cx {
        Cx::standalone(self.token.clone(), reporter, vec![self.request.session.clone()])
    }

    /// Checks a definition and makes it a ref; nothing is computed. An empty one is scratch.
    fn load(&self, definition: Definition) -> Result<Option<LazyRef>, BridgeError> {
        if definition.is_empty() {
            return Ok(None);
        }
        let graph = Graph::decode(&definition.to_pb(), &Limits::default())
            .map_err(|error| BridgeError::unknown(format!("failed to load LLB: {error}")))?;
        // Refused here rather than when it is computed, which may be never.
        self.daemon.ops.load(&graph, self.granted.for_ops())?;
        Ok(Some(LazyRef::new(castor_ops::random_id(), definition, Arc::new(graph))))
    }

    /// Computes a ref. What the build has computed before is at hand.
    pub(crate) async fn compute(&self, reference: &LazyRef) -> Result<ImmutableRef, BridgeError> {
        let Some(result) = reference.graph().result else { return Ok(self.daemon.store.scratch()) };
        let graph = self.daemon.ops.load(reference.graph(), self.granted.for_ops())?;
        let edge = Edge { vertex: result.vertex, output: result.output };
        let built = self.job.build(&graph, edge).await;
        Ok(built
            .map_err(|error| castor_ops::failure(&error, reference.graph(), reference.definition().source.as_ref()))?
            .result)
    }
}

#[async_trait]
impl Bridge for BuildBridge {
    async fn solve(&self, request: SolveRequest) -> Result<SolveResult, BridgeError> {
        let definition = request.definition.unwrap_or_default();
        let result = if request.frontend.is_empty() {
            let loaded = self.load(definition)?;
            if let Some(reference) = &loaded {
                self.daemon.ops.forget_caches(reference.graph()).await;
            }
            SolveResult { refs: Refs::Single(loaded), metadata: BTreeMap::new() }
        } else {
            if !definition.is_empty() {
                return Err(BridgeError::unknown("cannot solve with both Definition and Frontend specified"));
            }
            let Some(this) = self.this.upgrade() else { return Err(BridgeError::unknown("the build has ended")) };
            let _running = Running::new(&self.frontends)?;
            let frontend = FrontendRequest {
                options: request.options,
                inputs: request.inputs,
                cache_imports: request.cache_imports,
            };
            castor_frontend::solve(this, &request.frontend, frontend).await?
        };
        if request.evaluate {
            for reference in result.refs.iter() {
                self.compute(reference).await?;
            }
        }
        Ok(result)
    }

    async fn resolve_source(&self, request: SourceMetaRequest) -> Result<SourceMeta, BridgeError> {
        let sessions = vec![self.request.session.clone()];
        self.daemon.ops.resolve_source(request, sessions, self.job.sink(), self.token.clone()).await
    }

    async fn evaluate(&self, reference: &LazyRef) -> Result<(), BridgeError> {
        self.compute(reference).await.map(drop)
    }

    async fn read_file(&self, reference: &LazyRef, request: ReadFile) -> Result<Bytes, BridgeError> {
        let computed = self.compute(reference).await?;
        self.daemon.ops.read_file(&self.cx(Reporter::discard()), &computed, request).await
    }

    async fn read_dir(&self, reference: &LazyRef, request: ReadDir) -> Result<Vec<Stat>, BridgeError> {
        let computed = self.compute(reference).await?;
        self.daemon.ops.read_dir(&self.cx(Reporter::discard()), &computed, request).await
    }

    async fn stat_file(&self, reference: &LazyRef, path: &str) -> Result<Stat, BridgeError> {
        let computed = self.compute(reference).await?;
        self.daemon.ops.stat_file(&self.cx(Reporter::discard()), &computed, path).await
    }

    fn warn(&self, warning: Warning) {
        self.job.sink().send(Event::Warning(warning));
    }

    fn inputs(&self) -> BTreeMap<String, Definition> {
        self.request.inputs.clone()
    }

    fn options(&self) -> BTreeMap<String, String> {
        self.request.options.clone()
    }

    fn session(&self) -> String {
        self.request.session.clone()
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        vec![self.daemon.worker.clone()]
    }
}

/// A frontend that is running.
struct Running<'a>(&'a Mutex<usize>);

impl<'a> Running<'a> {
    fn new(count: &'a Mutex<usize>) -> Result<Self, BridgeError> {
        let mut now = count.lock();
        if *now >= MAX_FRONTENDS {
            return Err(BridgeError::unknown(format!("more than {MAX_FRONTENDS} frontends at once")));
        }
        *now += 1;
        Ok(Self(count))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}
