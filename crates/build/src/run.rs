//! The life of one build.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use castor_exporter::{
    ArchiveExporter, ArchiveKind, BuildResult, ExportCx, Exporter, ImageExporter, InlineCache, LocalExporter, Response,
    TarExporter,
};
use castor_frontend::Gateway;
use castor_oci::{Descriptor, Digest};
use castor_ops::bridge::{CacheImport, code};
use castor_ops::{Bridge, BridgeError, Refs, SolveRequest, SolveResult};
use castor_progress::{Event, Reporter, Sink, Timestamp, Vertex, Warning};
use castor_proto::{control as wire, rpc};
use castor_registry::Access;
use castor_remotecache::InlineRecords;
use castor_session::auth::SessionCredentials;
use castor_solver::{Job, JobOptions};
use castor_store::ImmutableRef;
use castor_task::CancellationToken;
use parking_lot::Mutex;

use crate::bridge::BuildBridge;
use crate::daemon::Traced;
use crate::entitlements::Granted;
use crate::history::{Ended, Results};
use crate::provenance::{Facts, Known, Wishes};
use crate::remote_cache::Exports;
use crate::{ActiveBuild, Builds, Daemon, ExporterRequest, Request, TraceContext};

/// Prefix of the frontend's metadata that is passed to the client.
const FRONTEND_METADATA: &str = "frontend.";
/// The build argument that sets the time of everything exported.
const EPOCH_OPTION: &str = "build-arg:SOURCE_DATE_EPOCH";
/// Where an exporter tells what it made.
const DESCRIPTOR: &str = "containerimage.descriptor";
/// How long a cancelled build may take to notice.
const GRACE: Duration = Duration::from_secs(30);
/// Options of a build that steps may ask for with `Cx::attributes`.
const STEP_ATTRIBUTES: [&str; 1] = ["lazy"];

/// One build.
pub struct Build {
    daemon: Arc<Daemon>,
    request: Arc<Request>,
    token: CancellationToken,
    /// What came of it so far, for its record.
    results: Mutex<Option<Results>>,
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Build").field(&self.request.id).finish()
    }
}

impl Build {
    /// A build of `request` that ends early when `token` is cancelled.
    pub fn new(daemon: Arc<Daemon>, request: Request, token: CancellationToken) -> Self {
        Self { daemon, request: Arc::new(request.direct()), token, results: Mutex::new(None) }
    }

    /// Runs it, from request to response.
    pub async fn run(self) -> Result<Response, BridgeError> {
        // 1: open the job.
        let request = &self.request;
        let active = self
            .daemon
            .builds
            .begin(request)
            .map_err(|error| BridgeError::new(code::ALREADY_EXISTS, error.to_string()))?;
        let mut entry = Entry { builds: &self.daemon.builds, id: &request.id, recorded: false };
        let trace = request.trace.unwrap_or_else(|| TraceContext::new(&castor_ops::random_id()));
        self.daemon.traces.begin(trace.trace);
        let outcome = match self.open(active.journal.clone()) {
            Ok((job, granted)) => {
                let bridge =
                    BuildBridge::new(self.daemon.clone(), request.clone(), job.clone(), granted, self.token.clone());
                let outcome = self.build_or_cancel(&bridge, &job).await;
                self.close(job, bridge).await;
                outcome
            }
            Err(error) => Err(error),
        };
        // 7: write it down.
        active.journal.end();
        entry.recorded = self.record(&active, outcome.as_ref().err()).await;
        self.daemon.trace_later(Traced {
            context: trace,
            id: request.id.clone(),
            started: active.started,
            ended: Timestamp::now(),
            error: outcome.as_ref().err().map(|error| error.message.clone()),
            journal: active.journal,
        });
        drop(entry);
        self.daemon.collect_soon();
        outcome
    }

    fn open(&self, sink: Arc<dyn Sink>) -> Result<(Arc<Job<ImmutableRef>>, Granted), BridgeError> {
        let granted = Granted::new(&self.request.entitlements, &self.daemon.allowed)?;
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
        let caches = Exports::parse(&self.request.cache_exports)?;
        let wishes = Wishes::of(&self.request.options).map_err(|error| BridgeError::unknown(error.to_string()))?;
        // 2, 3: the frontend's result, still lazy.
        let mut result = self.frontend(bridge).await?;
        if let Some(wanted) = &wishes.sbom {
            self.scan(bridge, &mut result, wanted).await?;
        }
        // 4: everything that it needs.
        let mut computed = self.compute(bridge, &result).await?;
        self.attest(bridge, &result, &mut computed, !exporters.is_empty()).await?;
        self.state(bridge, &result, &mut computed, wishes).await?;
        self.verify(&computed, exporters.len(), job);
        let roots = bridge.roots(&result, &computed);
        let cache_parts = self.daemon.export_parts(bridge.imports().all());
        let inline: Option<Arc<dyn InlineCache>> =
            caches.inline().then(|| Arc::new(InlineRecords { parts: cache_parts.clone(), roots: roots.clone() }) as _);
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
            .map(|(index, exporter)| self.export(index, exporter.as_ref(), &computed, bridge, job, inline.clone()));
        for (index, part) in futures::future::try_join_all(exports).await?.into_iter().enumerate() {
            self.note_exported(index, &part);
            response.extend(part);
        }
        // 6: what is known now, for other daemons. The images' blobs exist: caches take the same.
        let client = bridge.client();
        response.extend(caches.run(&client, &cache_parts, &roots.concat()).await?);
        Ok(response)
    }

    /// Says what the result was made of: to its exporters what the client wants attested, to its record everything.
    async fn state(
        &self,
        bridge: &BuildBridge,
        result: &SolveResult,
        computed: &mut BuildResult,
        wishes: Wishes,
    ) -> Result<(), BridgeError> {
        let facts = Facts {
            invocation: castor_ops::random_id(),
            started: bridge.started(),
            builder: self.daemon.native.clone(),
            dockerfile: castor_frontend::DOCKERFILE_VERSION,
        };
        let pins = |vertex: &Digest| self.daemon.ops.pins().get(vertex);
        let known = Known::of(bridge.trail(), result, computed, facts, (&pins, &self.daemon.made));
        if let Some(wanted) = &wishes.provenance {
            known.attest(computed, wanted).map_err(|error| BridgeError::unknown(error.to_string()))?;
        }
        if self.request.internal {
            return Ok(());
        }
        let metadata = result.metadata.clone();
        // Definitions may be large, and all of this one is written out.
        let provenance = castor_task::blocking(move || known.for_record(&wishes)).await;
        *self.results.lock() = Some(Results { metadata, provenance, ..Results::default() });
        Ok(())
    }

    /// Notes what an exporter made.
    fn note_exported(&self, index: usize, response: &Response) {
        let descriptor = response.get(DESCRIPTOR).and_then(|text| exported(text));
        if let (Some(descriptor), Some(results)) = (descriptor, self.results.lock().as_mut()) {
            results.exported.insert(i64::try_from(index).unwrap_or(i64::MAX), descriptor);
        }
    }

    /// Writes the record of a build that ended; whether there is one.
    async fn record(&self, active: &ActiveBuild, error: Option<&BridgeError>) -> bool {
        if active.internal {
            return false;
        }
        let results = self.results.lock().take();
        let (record, journal) = (active.record.clone(), active.journal.clone());
        let ended = Ended { record, journal, error: error.map(status), results };
        match self.daemon.history.save(ended).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(build = active.record.r#ref, %error, "write the record of a build");
                false
            }
        }
    }

    /// Runs the frontend, or waits for the client that is one itself.
    async fn frontend(&self, bridge: &Arc<BuildBridge>) -> Result<SolveResult, BridgeError> {
        let request = &self.request;
        if request.frontend.is_empty() && request.definition.is_none() {
            let gateway = Gateway::new(bridge.clone() as Arc<dyn Bridge>);
            let _reachable = self.daemon.gateways.register(request.id.clone(), gateway.clone());
            let outcome = tokio::select! {
                () = self.token.cancelled() => Err(BridgeError::new(code::CANCELLED, "context canceled")),
                outcome = gateway.outcome() => outcome,
            };
            gateway.close().await;
            return outcome;
        }
        let solve = SolveRequest {
            definition: request.definition.clone(),
            frontend: request.frontend.clone(),
            options: request.options.clone(),
            inputs: request.inputs.clone(),
            cache_imports: self
                .request
                .cache_imports
                .iter()
                .map(|import| CacheImport { kind: import.kind.clone(), attrs: import.attrs.clone() })
                .collect(),
            evaluate: false,
        };
        bridge.solve(solve).await
    }

    /// What `result` is for each platform, nothing of it computed.
    pub(crate) fn outline(&self, result: &SolveResult) -> Result<BuildResult, BridgeError> {
        let metadata = result.metadata.clone();
        let outline = match &result.refs {
            Refs::Single(_) => BuildResult::single(None, metadata, &self.daemon.native),
            Refs::Map(refs) => BuildResult::map(refs.keys().map(|id| (id.clone(), None)).collect(), metadata),
        };
        outline.map_err(|error| BridgeError::unknown(error.to_string()))
    }

    /// What the client asks for.
    pub(crate) fn request(&self) -> &Request {
        &self.request
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
        // A name is the frontend's to resolve, which says what it found with its result.
        let is_said = |text: &&String| text.is_empty() || text.parse::<i64>().is_ok();
        if let Some(epoch) = self.request.options.get(EPOCH_OPTION).filter(is_said) {
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
        inline_cache: Option<Arc<dyn InlineCache>>,
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
            inline_cache,
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
    /// Its record is written.
    recorded: bool,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.builds.end(self.id, self.recorded);
    }
}

/// The descriptor that an exporter tells the client.
fn exported(text: &str) -> Option<wire::Descriptor> {
    let bytes = STANDARD.decode(text).ok()?;
    let descriptor: Descriptor = serde_json::from_slice(&bytes).ok()?;
    Some(wire::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).ok()?,
        annotations: descriptor.annotations,
    })
}

fn status(error: &BridgeError) -> rpc::Status {
    rpc::Status { code: error.code, message: error.message.clone(), details: error.details.clone() }
}
