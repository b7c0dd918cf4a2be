//! Everything that ops need, and making operations of vertices.

use std::sync::Arc;

use castor_executor::Executor;
use castor_layerfs::Lazy;
use castor_llb::op::{MountKind, NetMode, Op, SecurityMode};
use castor_llb::{ImageSource, Source, Vertex};
use castor_metadb::KeyValue;
use castor_oci::{Digest, Platform};
use castor_progress::Group;
use castor_proto::pb;
use castor_registry::Client;
use castor_session::Sessions;
use castor_solver::{Cx, Graph, Operation, Permit};
use castor_store::{ImmutableRef, Store};
use castor_task::Scope;
use prost::Message as _;
use tokio::sync::Semaphore;

use crate::bridge::FrontendPolicy;
use crate::git::Git;
use crate::images::Images;
use crate::operation::{self, Diff, Exec, File, Http, Image, Local, Merge, Passthrough, Refused};
use crate::web::Web;
use crate::{BridgeError, OpError, Passing, Pins, identity};

/// What a worker is made of.
pub struct WorkerConfig {
    /// Refs and the solver's cache.
    pub store: Store,
    /// Runs processes.
    pub executor: Arc<dyn Executor>,
    /// Registries.
    pub registry: Client,
    /// Clients.
    pub sessions: Sessions,
    /// Where resolved images are remembered.
    pub db: Arc<dyn KeyValue>,
    /// How many processes and file ops run at once; `None` is no limit.
    pub parallelism: Option<usize>,
    /// Platforms whose processes run here, the daemon's own first.
    pub platforms: Vec<Platform>,
    /// Whether layers of images may be lazy, unless a build says otherwise.
    pub lazy: Lazy,
    /// Which frontends may run.
    pub frontends: FrontendPolicy,
    /// Where files and sockets are that pass with the step they are for.
    pub passing: Passing,
    /// Where the worker's own tasks run.
    pub scope: Scope,
}

impl std::fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerConfig").field("platforms", &self.platforms).field("lazy", &self.lazy).finish()
    }
}

/// Does what ops say. Clones are handles of the same worker.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    config: WorkerConfig,
    images: Images,
    web: Web,
    git: Git,
    places: Option<Arc<Semaphore>>,
    pins: Pins,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Worker").field(&self.0.config).finish()
    }
}

/// What a build may do that is not allowed by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// Use the host's network.
    pub network_host: bool,
    /// Run processes with all privileges.
    pub security_insecure: bool,
}

impl Worker {
    /// A worker of these parts.
    pub fn new(config: WorkerConfig) -> Self {
        let images = Images::new(config.registry.clone(), config.db.clone(), &config.scope);
        let places = config.parallelism.map(|places| Arc::new(Semaphore::new(places.max(1))));
        let (web, git) = (Web::new(config.db.clone()), Git::new(config.db.clone()));
        Self(Arc::new(Inner { config, images, web, git, places, pins: Pins::default() }))
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.0.config.store
    }

    /// Clients.
    pub fn sessions(&self) -> &Sessions {
        &self.0.config.sessions
    }

    /// Image look-ups.
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// What sources turned out to be.
    pub fn pins(&self) -> &Pins {
        &self.0.pins
    }

    /// Platforms whose processes run here, the daemon's own first.
    pub fn platforms(&self) -> &[Platform] {
        &self.0.config.platforms
    }

    /// Which frontends may run.
    pub fn frontends(&self) -> FrontendPolicy {
        self.0.config.frontends.clone()
    }

    pub(crate) fn passing(&self) -> &Passing {
        &self.0.config.passing
    }

    pub(crate) fn web(&self) -> &Web {
        &self.0.web
    }

    pub(crate) fn git(&self) -> &Git {
        &self.0.git
    }

    pub(crate) fn executor(&self) -> &Arc<dyn Executor> {
        &self.0.config.executor
    }

    /// Whether layers may be mounted before they are here, for the builds that want what `cx` is for.
    pub fn wants_lazy(&self, cx: &Cx) -> Lazy {
        let asked = cx.attributes("lazy");
        let says = |word: &str| asked.iter().any(|value| value == word);
        // Of builds that share the image, the strictest decides.
        if says("require") {
            Lazy::Require
        } else if says("never") {
            Lazy::Never
        } else if says("prefer") {
            Lazy::Prefer
        } else {
            self.0.config.lazy
        }
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.0.config.scope
    }

    pub(crate) fn can_run(&self, platform: &Platform) -> bool {
        let host = Platform::host();
        let compatible = match (host.architecture.as_str(), platform.architecture.as_str()) {
            (host, wanted) if host == wanted => true,
            ("amd64", "386") | ("arm64", "arm") => true,
            _ => false,
        };
        platform.os == host.os && compatible || self.platforms().contains(platform)
    }

    pub(crate) async fn acquire(&self, cx: &Cx) -> Result<Permit, OpError> {
        let Some(places) = &self.0.places else { return Ok(Permit::none()) };
        tokio::select! {
            () = cx.token().cancelled() => Err(OpError::Cancelled),
            permit = places.clone().acquire_owned() => match permit {
                Ok(permit) => Ok(Permit::new(permit)),
                Err(_) => Err(OpError::Cancelled),
            },
        }
    }

    /// Makes a graph for the solver of a definition's. `entitlements` are those that the build was granted.
    pub fn load(
        &self,
        graph: &castor_llb::Graph,
        entitlements: Entitlements,
    ) -> Result<Graph<ImmutableRef>, BridgeError> {
        let failed = |error: &dyn std::fmt::Display| BridgeError::unknown(format!("failed to load LLB: {error}"));
        let mut vertices = Vec::with_capacity(graph.vertices.len());
        for vertex in &graph.vertices {
            check(vertex, entitlements).map_err(|error| failed(&error))?;
            vertices.push(castor_solver::Vertex {
                digest: vertex.digest,
                name: vertex.name.clone(),
                op: self.operation(vertex).map_err(|error| failed(&error))?,
                inputs: vertex
                    .inputs
                    .iter()
                    .map(|edge| castor_solver::Edge { vertex: edge.vertex, output: edge.output })
                    .collect(),
                ignore_cache: vertex.metadata.ignore_cache,
                group: vertex.metadata.progress_group.as_ref().map(|group| Group {
                    id: group.id.clone(),
                    name: group.name.clone(),
                    weak: group.weak,
                }),
            });
        }
        Graph::new(vertices).map_err(|error| failed(&error))
    }

    /// Forgets the cache mounts of processes that must not use what is known: `--no-cache` means them too. Once for a
    /// definition, because its own processes share what they write.
    pub async fn forget_caches(&self, graph: &castor_llb::Graph) {
        let ignoring = graph.vertices.iter().filter(|vertex| vertex.metadata.ignore_cache);
        let ids: Vec<String> = ignoring
            .filter_map(|vertex| match &vertex.op {
                Op::Exec(exec) => Some(&exec.mounts),
                _ => None,
            })
            .flatten()
            .filter_map(|mount| match &mount.kind {
                MountKind::Cache(cache) => Some(cache.id.clone()),
                _ => None,
            })
            .collect();
        if !ids.is_empty() {
            self.store().forget_cache_mounts(&ids).await;
        }
    }

    /// What a vertex does.
    pub fn operation(&self, vertex: &Vertex) -> Result<Arc<dyn Operation<ImmutableRef>>, OpError> {
        let count = vertex.inputs.len();
        let platform = vertex.platform.clone().unwrap_or_else(Platform::host);
        let (worker, store, name) = (self.clone(), self.store().clone(), vertex.name.clone());
        let wire = pb::Op::decode(vertex.raw.clone())
            .ok()
            .and_then(|op| op.op)
            .ok_or_else(|| OpError::Invalid(format!("invalid op {}", vertex.digest)))?;
        Ok(match (&vertex.op, wire) {
            (Op::Source(op), _) => self.source(&op.source, platform),
            (Op::Exec(op), pb::op::Op::Exec(wire)) => Arc::new(Exec {
                worker,
                op: op.clone(),
                digest: identity::exec(&wire, &platform),
                platform,
                inputs: identity::exec_inputs(&wire, count)?,
                resources: vertex.metadata.linux_resources.clone(),
            }),
            (Op::File(op), pb::op::Op::File(wire)) => Arc::new(File {
                worker,
                op: Arc::new(op.clone()),
                name,
                digest: identity::file(&wire, count),
                inputs: identity::file_inputs(&wire, count)?,
            }),
            (Op::Merge(op), pb::op::Op::Merge(wire)) => {
                Arc::new(Merge { store, digest: identity::merge(&wire), name, inputs: count, parts: op.inputs.clone() })
            }
            (Op::Diff(op), pb::op::Op::Diff(wire)) => Arc::new(Diff {
                store,
                digest: identity::diff(&wire),
                name,
                inputs: count,
                lower: op.lower,
                upper: op.upper,
            }),
            (Op::Passthrough(op), pb::op::Op::Passthrough(wire)) => Arc::new(Passthrough {
                digest: identity::passthrough(&wire),
                inputs: count,
                outputs: op.outputs.clone(),
            }),
            (Op::Build(_), _) => Arc::new(Refused("build op".to_owned())),
            _ => return Err(OpError::Invalid(format!("invalid op {}", vertex.digest))),
        })
    }

    fn source(&self, source: &Source, platform: Platform) -> Arc<dyn Operation<ImmutableRef>> {
        let refused = |kind: &str| Arc::new(Refused(format!("source {kind}"))) as Arc<dyn Operation<ImmutableRef>>;
        match source {
            Source::Image(source) => {
                Arc::new(Image { worker: self.clone(), source: source.clone(), platform, layout: None })
            }
            Source::Local(source) => Arc::new(Local::new(self.clone(), source.clone())),
            Source::Git(source) => Arc::new(operation::Git::new(self.clone(), source.clone())),
            Source::Http(source) => Arc::new(Http::new(self.clone(), source.clone())),
            Source::OciLayout(source) => Arc::new(Image {
                worker: self.clone(),
                source: ImageSource {
                    reference: source.reference.clone(),
                    layer_limit: source.layer_limit,
                    ..ImageSource::default()
                },
                platform,
                layout: Some((source.session.clone(), source.store.clone())),
            }),
            Source::ImageBlob(_) => refused("docker-image+blob"),
            Source::OciLayoutBlob(_) => refused("oci-layout+blob"),
        }
    }
}

/// Whether the build may do what the vertex does.
fn check(vertex: &Vertex, entitlements: Entitlements) -> Result<(), OpError> {
    let Op::Exec(exec) = &vertex.op else { return Ok(()) };
    if exec.network == NetMode::Host && !entitlements.network_host {
        return Err(OpError::NotAllowed("network.host"));
    }
    if exec.security == SecurityMode::Insecure && !entitlements.security_insecure {
        return Err(OpError::NotAllowed("security.insecure"));
    }
    Ok(())
}

/// Names the vertex as which something outside of a graph is shown.
pub(crate) fn vertex_digest(id: &str) -> Digest {
    Digest::of(id)
}
