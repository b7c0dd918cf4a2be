//! The life of one build.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castor_exporter::{
    ArchiveExporter, ArchiveKind, BuildResult, ExportCx, Exporter, ImageExporter, LocalExporter, Response, TarExporter,
};
use castor_frontend::Gateway;
use castor_oci::Digest;
use castor_ops::bridge::code;
use castor_ops::{Bridge, BridgeError, Refs, SolveRequest, SolveResult};
use castor_progress::{Event, Reporter, Sink, Timestamp, Vertex, Warning};
use castor_proto::rpc;
use castor_registry::Access;
use castor_session::auth::SessionCredentials;
use castor_solver::{Job, JobOptions};
use castor_store::ImmutableRef;
use castor_task::CancellationToken;

use crate::bridge::BuildBridge;
use crate::entitlements::Granted;
use crate::{Builds, Daemon, ExporterRequest, Request};

/// Prefix of the frontend's metadata that is passed to the client.
const FRONTEND_METADATA: &str = "frontend.";
/// The build argument that sets the time of everything exported.
const EPOCH_OPTION: &str = "build-arg:SOURCE_DATE_EPOCH";
/// How long a cancelled build may take to notice.
const GRACE: Duration = Duration::from_secs(30);
/// Options of a build that steps may ask for with `Cx::attributes`.
const STEP_ATTRIBUTES: [&str; 1] = ["lazy"];

/// One build.
pub struct Build {
    daemon: Arc<Daemon>,
    request: Arc<Request>,
    token: CancellationToken,
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Build").field(&self.request.id).finish()
    }
}

impl Build {
    /// A build of `request` that ends early when `token` is cancelled.
    pub fn new(daemon: Arc<Daemon>, request: Request, token: CancellationToken) -> Self {
        Self { daemon, request: Arc::new(request), token }
    }

    /// Runs it, from request to response.
    pub async fn run(self) -> Result<Response, BridgeError> {
        // 1: open the job.
        let request = &self.request;
        let journal = self
            .daemon
            .builds
            .begin(request)
            .map_err(|error| BridgeError::new(code::ALREADY_EXISTS, error.to_string()))?;
        let mut entry = Entry::new(&self.daemon.builds, &request.id);
        let outcome = match self.open(journal) {
            Ok((job, granted)) => {
                let bridge =
                    BuildBridge::new(self.daemon.clone(), request.clone(), job.clone(), granted, self.token.clone());
                let outcome = self.build_or_cancel(&bridge, &job).await;
                self.close(job, bridge).await;
                outcome
            }
            Err(error) => Err(error),
        };
        entry.error = outcome.as_ref().err().map(status);
        drop(entry);
        self.daemon.collect_soon();
        outcome
    }

    fn open(&self, sink: Arc<dyn Sink>) -> Result<(Arc<Job<ImmutableRef>>, Granted), BridgeError> {
        let granted = Granted::new(&self.request.entitlements, &self.daemon.allowed)?;
        self.refuse_what_is_not_here()?;
        let attributes: BTreeMap<String, String> = STEP_ATTRIBUTES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.request.options.get(*name)?.clone())))
            .collect();
        if let Some(lazy) = attributes.get("lazy")
            && !matches!(lazy.as_str(), "prefer" | "require" | "never")
        {
            return Err(BridgeError::unknown(format!("option lazy={lazy}: want prefer, require or never")));
        }
        let options =
            JobOptions { id: self.request.id.clone(), sessions: vec![self.request.session.clone()], sink, attributes };
        let job = self
            .daemon
            .solver
            .job(options)
            .map_err(|error| BridgeError::new(code::ALREADY_EXISTS, error.to_string()))?;
        Ok((Arc::new(job), granted))
    }

    /// What a client may ask for and castor does not do yet is refused by name before anything is built.
    fn refuse_what_is_not_here(&self) -> Result<(), BridgeError> {
        if let Some(export) = self.request.cache_exports.first() {
            let message = format!("cache export of type {:?} is not supported by castor yet", export.kind);
            return Err(BridgeError::unimplemented(message));
        }
        if let Some(import) = self.request.cache_imports.first() {
            let message = format!("cache import of type {:?} is not supported by castor yet", import.kind);
            return Err(BridgeError::unimplemented(message));
        }
        Ok(())
    }

    /// 2 to 5. A build whose client leaves is told so and ends by itself; nothing is dropped half way.
    async fn build_or_cancel(
        &self,
        bridge: &Arc<BuildBridge>,
        job: &Arc<Job<ImmutableRef>>,
    ) -> Result<Response, BridgeError> {
        let mut build = pin!(self.build(bridge, job));
        tokio::select! {
            outcome = &mut build => return outcome,
            () = self.token.cancelled() => job.cancel(),
        }
        if tokio::time::timeout(GRACE, build).await.is_err() {
            tracing::warn!(build = self.request.id, "a cancelled build did not end within {GRACE:?}");
        }
        Err(BridgeError::new(code::CANCELLED, "context canceled"))
    }

    async fn build(&self, bridge: &Arc<BuildBridge>, job: &Arc<Job<ImmutableRef>>) -> Result<Response, BridgeError> {
        let exporters = self.exporters()?;
        // 2, 3: the frontend's result, still lazy.
        let result = self.frontend(bridge).await?;
        // 4: everything that it needs.
        let computed = self.compute(bridge, &result).await?;
        self.verify(&computed, exporters.len(), job);
        // 5: out.
        let mut response: Response = result
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with(FRONTEND_METADATA))
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        let exports = exporters
            .iter()
            .enumerate()
            .map(|(index, exporter)| self.export(index, exporter.as_ref(), &computed, bridge, job));
        for part in futures::future::try_join_all(exports).await? {
            response.extend(part);
        }
        Ok(response)
    }

    /// Runs the frontend, or waits for the client that is one itself.
    async fn frontend(&self, bridge: &Arc<BuildBridge>) -> Result<SolveResult, BridgeError> {
        let request = &self.request;
        if request.frontend.is_empty() && request.definition.is_none() {
            let gateway = Gateway::new(bridge.clone() as Arc<dyn Bridge>);
            let _reachable = self.daemon.gateways.register(request.id.clone(), gateway.clone());
            return tokio::select! {
                () = self.token.cancelled() => Err(BridgeError::new(code::CANCELLED, "context canceled")),
                outcome = gateway.outcome() => outcome,
            };
        }
        let solve = SolveRequest {
            definition: request.definition.clone(),
            frontend: request.frontend.clone(),
            options: request.options.clone(),
            inputs: request.inputs.clone(),
            cache_imports: Vec::new(),
            evaluate: false,
        };
        bridge.solve(solve).await
    }

    async fn compute(&self, bridge: &BuildBridge, result: &SolveResult) -> Result<BuildResult, BridgeError> {
        let compute = async |reference: &Option<castor_ops::LazyRef>| match reference {
            Some(reference) => bridge.compute(reference).await.map(Some),
            None => Ok(None),
        };
        let metadata: BTreeMap<String, Bytes> = result.metadata.clone();
        let computed = match &result.refs {
            Refs::Single(reference) => BuildResult::single(compute(reference).await?, metadata, &self.daemon.native),
            Refs::Map(refs) => {
                let all = refs
                    .iter()
                    .map(|(id, reference)| async { Ok::<_, BridgeError>((id.clone(), compute(reference).await?)) });
                let refs = futures::future::try_join_all(all).await?.into_iter().collect();
                BuildResult::map(refs, metadata)
            }
        };
        computed.map_err(|error| BridgeError::unknown(error.to_string()))
    }

    /// Warns of a result that is not for the platforms asked for: at the first exporter's vertex, or at one of its own.
    fn verify(&self, result: &BuildResult, exporters: usize, job: &Job<ImmutableRef>) {
        let requested = self.request.options.get("platform").map(String::as_str);
        let warnings = crate::verify::platforms(requested, result);
        if warnings.is_empty() {
            return;
        }
        let (sink, digest) = (job.sink(), self.export_vertex(0));
        let now = Some(Timestamp::now());
        let name = "Verifying build result".to_owned();
        let vertex = Vertex { digest: Some(digest), name, started: now, completed: now, ..Vertex::default() };
        if exporters == 0 {
            sink.send(Event::Vertex(vertex));
        }
        for short in warnings {
            sink.send(Event::Warning(Warning {
                vertex: digest,
                level: 0,
                short: short.into(),
                detail: Vec::new(),
                url: String::new(),
                source: None,
                ranges: Vec::new(),
            }));
        }
    }

    /// Names the vertex of an exporter.
    fn export_vertex(&self, index: usize) -> Digest {
        Digest::of(format!("{}-export-{index}", self.request.session))
    }

    fn exporters(&self) -> Result<Vec<Box<dyn Exporter>>, BridgeError> {
        self.request.exporters.iter().map(|request| self.exporter(request)).collect()
    }

    fn exporter(&self, request: &ExporterRequest) -> Result<Box<dyn Exporter>, BridgeError> {
        let mut attrs = request.attrs.clone();
        if let Some(epoch) = self.request.options.get(EPOCH_OPTION) {
            attrs.entry("source-date-epoch".into()).or_insert_with(|| epoch.clone());
        }
        let daemon = &self.daemon;
        let archive = |kind| {
            let (blobs, registry) = (daemon.blobs.clone(), daemon.registry.clone());
            ArchiveExporter::new(kind, blobs, registry, daemon.sessions.clone(), &attrs)
                .map(|exporter| Box::new(exporter) as _)
        };
        let exporter: Result<Box<dyn Exporter>, _> = match request.kind.as_str() {
            "image" => ImageExporter::new(daemon.blobs.clone(), daemon.registry.clone(), &attrs)
                .map(|exporter| Box::new(exporter) as _),
            "local" => LocalExporter::new(daemon.sessions.clone(), &attrs).map(|exporter| Box::new(exporter) as _),
            "tar" => TarExporter::new(daemon.sessions.clone(), &attrs).map(|exporter| Box::new(exporter) as _),
            "oci" => archive(ArchiveKind::Oci),
            "docker" => archive(ArchiveKind::Docker),
            kind => return Err(BridgeError::unknown(format!("exporter {kind:?} could not be found"))),
        };
        exporter.map_err(|error| BridgeError::unknown(error.to_string()))
    }

    /// Runs one exporter as a vertex of its own.
    async fn export(
        &self,
        index: usize,
        exporter: &dyn Exporter,
        result: &BuildResult,
        bridge: &BuildBridge,
        job: &Job<ImmutableRef>,
    ) -> Result<Response, BridgeError> {
        let session = &self.request.session;
        let mut vertex = Vertex {
            digest: Some(self.export_vertex(index)),
            name: exporter.name().to_owned(),
            started: Some(Timestamp::now()),
            ..Vertex::default()
        };
        let sink = job.sink();
        sink.send(Event::Vertex(vertex.clone()));
        let reporter = Reporter::new(vertex.digest.unwrap_or(Digest::of("")), sink.clone());
        let credentials = SessionCredentials::new(self.daemon.sessions.group(vec![session.clone()]));
        let cx = ExportCx {
            cx: bridge.cx(reporter),
            access: Access::new(Arc::new(credentials)),
            session: session.clone(),
            index,
        };
        let exported = exporter.export(&cx, result).await;
        vertex.completed = Some(Timestamp::now());
        if let Err(error) = &exported {
            vertex.error = error.to_string();
        }
        sink.send(Event::Vertex(vertex));
        exported.map_err(|error| BridgeError::unknown(error.to_string()))
    }

    /// Ends the job: what nobody else wants is cancelled, and has ended when this returns.
    async fn close(&self, job: Arc<Job<ImmutableRef>>, bridge: Arc<BuildBridge>) {
        job.cancel();
        drop(bridge);
        match Arc::try_unwrap(job) {
            Ok(job) => job.close().await,
            // A frontend call that is still being answered holds it; the job ends when that does.
            Err(job) => drop(job),
        }
    }
}

/// A build's place among those under way; it ends with this, also where the build panics.
struct Entry<'a> {
    builds: &'a Builds,
    id: &'a str,
    /// What the build failed with.
    error: Option<rpc::Status>,
}

impl<'a> Entry<'a> {
    fn new(builds: &'a Builds, id: &'a str) -> Self {
        Self { builds, id, error: Some(status(&BridgeError::unknown("the build was lost"))) }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.builds.end(self.id, self.error.take());
    }
}

fn status(error: &BridgeError) -> rpc::Status {
    rpc::Status { code: error.code, message: error.message.clone(), details: error.details.clone() }
}
