//! The bridge of one build: what its frontends, builtin or at the client, may ask of it. Each frontend has one of its own,
//! so that what it asked for is known apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_exporter::BuildResult;
use castor_frontend::FrontendRequest;
use castor_llb::{Definition, Graph, Limits};
use castor_ops::bridge::{
    CacheImport, ContainerMount, ContainerRequest, FrontendPolicy, Program, ReadDir, ReadFile, SourceMeta,
    SourceMetaRequest, WorkerInfo,
};
use castor_ops::{Bridge, BridgeError, Container, ContainerParts, LazyRef, Refs, SolveRequest, SolveResult};
use castor_progress::{Event, Reporter, Timestamp, Warning};
use castor_proto::fsutil::Stat;
use castor_proto::pb;
use castor_solver::{Cx, Edge, Job, KeyId};
use castor_store::ImmutableRef;
use castor_task::CancellationToken;
use parking_lot::Mutex;

use crate::entitlements::Granted;
use crate::provenance::{Asked, Capture, ImageSource, Trail};
use crate::remote_cache::{self, Client, Imports};
use crate::{Daemon, Request};

/// How many frontends of one build may run at once: the bound for those that call each other without end.
const MAX_FRONTENDS: usize = 256;

/// One build, as one of its frontends sees it.
pub(crate) struct BuildBridge {
    build: Arc<Shared>,
    /// What this frontend asked for.
    trail: Arc<Trail>,
}

/// What all bridges of a build share.
struct Shared {
    daemon: Arc<Daemon>,
    request: Arc<Request>,
    job: Arc<Job<ImmutableRef>>,
    granted: Granted,
    token: CancellationToken,
    /// Frontends that are running.
    frontends: Mutex<usize>,
    /// What the client itself asked for, and all below.
    root: Arc<Trail>,
    started: Timestamp,
    /// The caches that are looked into besides the daemon's own.
    imports: Imports,
    /// The keys in the daemon's cache of refs that were computed, by their ids.
    keys: Mutex<BTreeMap<String, Vec<KeyId>>>,
}

impl BuildBridge {
    pub(crate) fn new(
        daemon: Arc<Daemon>,
        request: Arc<Request>,
        job: Arc<Job<ImmutableRef>>,
        granted: Granted,
        token: CancellationToken,
    ) -> Arc<Self> {
        let root = Trail::root(Asked {
            frontend: request.frontend.clone(),
            options: request.options.clone(),
            inputs: request.inputs.clone(),
        });
        let trail = root.clone();
        let build = Shared {
            daemon,
            request,
            job,
            granted,
            token,
            frontends: Mutex::new(0),
            root,
            started: Timestamp::now(),
            imports: Imports::default(),
            keys: Mutex::default(),
        };
        Self::with_trail(Arc::new(build), trail)
    }

    fn with_trail(build: Arc<Shared>, trail: Arc<Trail>) -> Arc<Self> {
        Arc::new(Self { build, trail })
    }

    /// The same build for work that is the daemon's own: what it asks for is no part of the result.
    pub(crate) fn apart(&self) -> Arc<Self> {
        Self::with_trail(self.build.clone(), Trail::root(Asked::default()))
    }

    /// What the client and all frontends asked for.
    pub(crate) fn trail(&self) -> &Arc<Trail> {
        &self.build.root
    }

    /// When the build began.
    pub(crate) fn started(&self) -> Timestamp {
        self.build.started
    }

    /// What the build imports.
    pub(crate) fn imports(&self) -> &Imports {
        &self.build.imports
    }

    /// On whose behalf caches are read and written.
    pub(crate) fn client(&self) -> Client<'_> {
        let Shared { daemon, request, job, token, .. } = self.build.as_ref();
        Client { daemon, session: &request.session, sink: job.sink(), token: token.clone() }
    }

    /// For each platform of `computed`, which is what came of `result`, the keys in the daemon's cache.
    pub(crate) fn roots(&self, result: &SolveResult, computed: &BuildResult) -> Vec<Vec<KeyId>> {
        let keys = self.build.keys.lock();
        let of = |reference: Option<&LazyRef>| {
            reference.and_then(|reference| keys.get(reference.id())).cloned().unwrap_or_default()
        };
        match &result.refs {
            Refs::Single(reference) => vec![of(reference.as_ref())],
            Refs::Map(refs) => {
                computed.platforms.iter().map(|platform| of(refs.get(&platform.id).and_then(Option::as_ref))).collect()
            }
        }
    }

    /// A context outside of the solver, which reports to `reporter`.
    pub(crate) fn cx(&self, reporter: Reporter) -> Cx {
        Cx::standalone(self.build.token.clone(), reporter, vec![self.build.request.session.clone()])
    }

    /// Checks a definition and makes it a ref; nothing is computed. An empty one is scratch.
    fn load(&self, definition: Definition, imports: Vec<CacheImport>) -> Result<Option<LazyRef>, BridgeError> {
        if definition.is_empty() {
            return Ok(None);
        }
        let policy = &self.build.request.policy;
        let denied =
            |error| BridgeError::unknown(format!("failed to load LLB: error evaluating the source policy: {error}"));
        let definition = policy.apply(definition).map_err(denied)?;
        let graph = Graph::decode(&definition.to_pb(), &Limits::default())
            .map_err(|error| BridgeError::unknown(format!("failed to load LLB: {error}")))?;
        // Refused here rather than when it is computed, which may be never.
        self.build.daemon.ops.load(&graph, self.build.granted.for_ops())?;
        let reference = LazyRef::new(castor_ops::random_id(), definition, Arc::new(graph));
        self.trail.made_ref(&reference);
        self.build.imports.ask(reference.id(), imports);
        Ok(Some(reference))
    }

    /// Computes a ref. What the build has computed before is at hand.
    pub(crate) async fn compute(&self, reference: &LazyRef) -> Result<ImmutableRef, BridgeError> {
        let Some(result) = reference.graph().result else { return Ok(self.build.daemon.store.scratch()) };
        let graph = self.build.daemon.ops.load(reference.graph(), self.build.granted.for_ops())?;
        let graph = graph.with_caches(self.build.imports.get(&self.client(), reference.id()).await);
        let edge = Edge { vertex: result.vertex, output: result.output };
        let built = self.build.job.build(&graph, edge).await;
        let built = built
            .map_err(|error| castor_ops::failure(&error, reference.graph(), reference.definition().source.as_ref()))?;
        self.build.root.computed(reference.id());
        self.trail.computed(reference.id());
        self.build.keys.lock().insert(reference.id().to_owned(), built.keys);
        Ok(built.result)
    }

    /// A look-up of the source that the policy makes of the one asked for.
    fn judged(&self, mut request: SourceMetaRequest) -> Result<SourceMetaRequest, BridgeError> {
        let policy = &self.build.request.policy;
        if !policy.is_empty() {
            let mut source = pb::SourceOp {
                identifier: std::mem::take(&mut request.identifier),
                attrs: std::mem::take(&mut request.attrs),
            };
            let failed = |error| BridgeError::unknown(format!("could not resolve image due to policy: {error}"));
            policy.judge(&mut source).map_err(failed)?;
            (request.identifier, request.attrs) = (source.identifier, source.attrs);
        }
        Ok(request)
    }

    /// Runs a frontend over a bridge of its own.
    async fn run_frontend(&self, request: SolveRequest) -> Result<SolveResult, BridgeError> {
        let _running = Running::new(&self.build.frontends)?;
        let asked = Asked {
            frontend: request.frontend.clone(),
            options: request.options.clone(),
            inputs: request.inputs.clone(),
        };
        let trail = self.trail.below(asked);
        let bridge = Self::with_trail(self.build.clone(), trail.clone());
        let frontend =
            FrontendRequest { options: request.options, inputs: request.inputs, cache_imports: request.cache_imports };
        let result = castor_frontend::solve(bridge, &request.frontend, frontend).await?;
        let daemon = &self.build.daemon;
        for reference in result.all_refs() {
            trail.made_ref(reference);
        }
        for reference in result.refs.iter() {
            let pins = |vertex: &_| daemon.ops.pins().get(vertex);
            if let Some(request) = Capture::request_for(&trail, reference, &pins, &daemon.made) {
                daemon.made.remember(reference.definition(), request);
            }
        }
        self.trail.adopt(trail);
        Ok(result)
    }
}

#[async_trait]
impl Bridge for BuildBridge {
    async fn solve(&self, request: SolveRequest) -> Result<SolveResult, BridgeError> {
        remote_cache::check_imports(&request.cache_imports)?;
        let evaluate = request.evaluate;
        let definition = request.definition.clone().unwrap_or_default();
        let result = match (request.frontend.is_empty(), definition.is_empty()) {
            (true, _) => {
                let loaded = self.load(definition, request.cache_imports)?;
                if let Some(reference) = &loaded {
                    self.build.daemon.ops.forget_caches(reference.graph()).await;
                }
                SolveResult { refs: Refs::Single(loaded), ..SolveResult::default() }
            }
            (false, true) => self.run_frontend(request).await?,
            (false, false) => {
                return Err(BridgeError::unknown("cannot solve with both Definition and Frontend specified"));
            }
        };
        if evaluate {
            for reference in result.all_refs() {
                self.compute(reference).await?;
            }
        }
        Ok(result)
    }

    async fn resolve_source(&self, request: SourceMetaRequest) -> Result<SourceMeta, BridgeError> {
        let sessions = vec![self.build.request.session.clone()];
        let request = self.judged(request)?;
        let platform = request.platform.clone();
        let ops = &self.build.daemon.ops;
        let meta = ops.resolve_source(request, sessions, self.build.job.sink(), self.build.token.clone()).await?;
        if let Some(image) = &meta.image {
            self.trail.saw_image(ImageSource::looked_up(&meta.identifier, platform, image.digest));
        }
        Ok(meta)
    }

    async fn evaluate(&self, reference: &LazyRef) -> Result<(), BridgeError> {
        self.compute(reference).await.map(drop)
    }

    async fn read_file(&self, reference: &LazyRef, request: ReadFile) -> Result<Bytes, BridgeError> {
        let computed = self.compute(reference).await?;
        self.build.daemon.ops.read_file(&self.cx(Reporter::discard()), &computed, request).await
    }

    async fn read_dir(&self, reference: &LazyRef, request: ReadDir) -> Result<Vec<Stat>, BridgeError> {
        let computed = self.compute(reference).await?;
        self.build.daemon.ops.read_dir(&self.cx(Reporter::discard()), &computed, request).await
    }

    async fn stat_file(&self, reference: &LazyRef, path: &str) -> Result<Stat, BridgeError> {
        let computed = self.compute(reference).await?;
        self.build.daemon.ops.stat_file(&self.cx(Reporter::discard()), &computed, path).await
    }

    async fn archive_time(&self, reference: &LazyRef, path: &str) -> Result<Option<i64>, BridgeError> {
        let computed = self.compute(reference).await?;
        self.build.daemon.ops.archive_time(&self.cx(Reporter::discard()), &computed, path).await
    }

    async fn run(&self, root: &LazyRef, program: Program) -> Result<(), BridgeError> {
        let computed = self.compute(root).await?;
        self.build.daemon.ops.run_program(&self.cx(Reporter::discard()), &computed, program).await
    }

    async fn container(&self, request: ContainerRequest) -> Result<Arc<Container>, BridgeError> {
        let mut mounts = Vec::with_capacity(request.mounts.len());
        for ContainerMount { mount, reference } in request.mounts {
            let input = match &reference {
                Some(reference) => Some(self.compute(reference).await?),
                None => None,
            };
            mounts.push((mount, input));
        }
        let ContainerRequest { network, hostname, extra_hosts, .. } = request;
        let parts = ContainerParts { mounts, network, hostname, extra_hosts };
        let Shared { daemon, granted, .. } = self.build.as_ref();
        Ok(daemon.ops.container(&self.cx(Reporter::discard()), parts, granted.for_ops()).await?)
    }

    fn warn(&self, warning: Warning) {
        self.build.job.sink().send(Event::Warning(warning));
    }

    fn inputs(&self) -> BTreeMap<String, Definition> {
        self.build.request.inputs.clone()
    }

    fn options(&self) -> BTreeMap<String, String> {
        self.build.request.options.clone()
    }

    fn session(&self) -> String {
        self.build.request.session.clone()
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        vec![self.build.daemon.worker.clone()]
    }

    fn frontends(&self) -> FrontendPolicy {
        self.build.daemon.ops.frontends()
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
