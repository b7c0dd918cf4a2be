//! One build, from the client's side.
//!
//! Four conversations run at once, in no order that may be relied on: the session, in which the daemon asks for files
//! and credentials; the solve, which lasts as long as the build; the gateway, through which the frontend is asked for and
//! its result returned; and the status, which tells how it goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use castor_progress::Timestamp;
use castor_proto::{control, gateway, pb, sourcepolicy};
use castor_session::client::{Agents, Destination, Exports, Keychain, Secrets, Session, SharedDirectories, Stores};
use castor_task::{CancellationToken, Scope};
use castor_wire::Failure;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::connection::{Client, ClientError};
use crate::status::SolveStatus;
use crate::stores::Directories;

/// Which build a call to the gateway is for.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// How long the daemon may take to say what it can do.
const PING_PATIENCE: Duration = Duration::from_secs(15);

/// How long a build may last after its frontend has failed.
const FAIL_PATIENCE: Duration = Duration::from_secs(5);

/// How long news may be missing after the end of a build.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// How long the session may take to end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What is built, from what, and where it goes.
#[derive(Default)]
pub struct BuildOptions {
    /// Names the build; see [`new_id`].
    pub reference: String,
    /// The frontend; empty if there is a definition.
    pub frontend: String,
    /// A definition instead of a frontend.
    pub definition: Option<pb::Definition>,
    /// Options of the frontend.
    pub attrs: BTreeMap<String, String>,
    /// Where results go.
    pub exports: Vec<Export>,
    /// Where the cache goes.
    pub cache_exports: Vec<CacheOption>,
    /// Where more cache is.
    pub cache_imports: Vec<CacheOption>,
    /// Directories that the daemon may read, by name.
    pub locals: BTreeMap<String, PathBuf>,
    /// OCI layouts that the daemon may read, by name.
    pub layouts: BTreeMap<String, PathBuf>,
    /// Secrets that steps may have.
    pub secrets: Option<Secrets>,
    /// SSH agents that steps may use.
    pub agents: Option<Agents>,
    /// The user's credentials.
    pub keychain: Option<Keychain>,
    /// What the build may do beyond the usual.
    pub entitlements: Vec<String>,
    /// Rules for sources.
    pub source_policy: Option<sourcepolicy::Policy>,
    /// Steps reach the network through the daemon's proxy only.
    pub proxy_network: bool,
}

/// Where a result goes.
#[derive(Clone)]
pub struct Export {
    /// `image`, `local`, `tar`, ...
    pub kind: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
    /// Where it is put on this side, if it comes here.
    pub destination: Option<Destination>,
    /// The directory that becomes an OCI layout with it, if it comes here blob by blob.
    pub layout: Option<PathBuf>,
}

/// A place for cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOption {
    /// `registry`, `local`, `inline`, ...
    pub kind: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
}

/// What came of a build.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BuildResult {
    /// What the exporters say: names, digests.
    pub exporter_response: BTreeMap<String, String>,
    /// What the frontend says.
    pub metadata: BTreeMap<String, Bytes>,
}

/// A new name for a build.
pub fn new_id() -> String {
    use rand::Rng as _;
    const CHARACTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..25).map(|_| char::from(CHARACTERS[random.random_range(0..CHARACTERS.len())])).collect()
}

impl Client {
    /// Builds. News go to `updates` until the build has ended; whoever cancels ends it.
    pub async fn build(
        &self,
        mut options: BuildOptions,
        updates: mpsc::Sender<SolveStatus>,
        cancel: &CancellationToken,
    ) -> Result<BuildResult, ClientError> {
        let listed = tokio::select! {
            listed = self.workers(Vec::new()) => listed,
            // A daemon that does not answer is no reason to wait for ever.
            () = cancel.cancelled() => {
                Err(ClientError::call("failed to list workers")(Status::cancelled("context canceled")))
            }
        };
        let listed = listed.map_err(listing)?;
        if listed.is_empty() {
            return Err(ClientError::Invalid("the daemon has no worker".to_owned()));
        }
        let directories = Directories::open(&mut options)?;
        let scope = Scope::root("build");
        let stores = directories.stores.clone();
        let result = Box::pin(self.converse(options, stores, updates, cancel, &scope)).await;
        // Nothing of a build outlives it.
        if let Err(running) = scope.close(CLOSE_PATIENCE).await {
            tracing::debug!(?running, "the session does not end");
        }
        let result = result?;
        directories.finish(&result)?;
        Ok(result)
    }

    async fn converse(
        &self,
        options: BuildOptions,
        directories: Stores,
        updates: mpsc::Sender<SolveStatus>,
        cancel: &CancellationToken,
        scope: &Scope,
    ) -> Result<BuildResult, ClientError> {
        let session = session(&options, directories, scope)?;
        let attrs = frontend_attrs(&options);
        let request = solve_request(&options, attrs.clone(), session.id());
        let bridge = Bridge { client: self, reference: options.reference.clone() };
        let frontend = gateway_request(options, attrs);

        let (solved, failed, stop) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let give_up = CancellationToken::new();
        let serving = async {
            let served = session.run(self.channel(), stop.clone()).await;
            if let Err(err) = &served {
                tracing::debug!(%err, "session");
                give_up.cancel();
            }
            served.map_err(|err| ClientError::Session(err.to_string()))
        };
        let solving = async {
            let result = tokio::select! {
                response = async { self.control().solve(request).await } => response.map_err(ClientError::call("failed to solve")),
                () = cancel.cancelled() => Err(ClientError::Canceled),
                () = give_up.cancelled() => Err(ClientError::Canceled),
            };
            if result.is_err() {
                failed.cancel();
            }
            solved.cancel();
            stop.cancel();
            result.map(|response| response.into_inner().exporter_response)
        };
        let asking = async {
            let result = tokio::select! {
                result = bridge.run(frontend) => result,
                () = failed.cancelled() => Err(ClientError::Canceled),
            };
            if result.is_err() && tokio::time::timeout(FAIL_PATIENCE, solved.cancelled()).await.is_err() {
                give_up.cancel();
            }
            result
        };
        let watching = self.watch(bridge.reference.clone(), updates, &solved);
        let (served, response, metadata, watched) =
            tokio::join!(Box::pin(serving), Box::pin(solving), Box::pin(asking), Box::pin(watching));
        let exporter_response = match (response, metadata.as_ref().err()) {
            (Ok(response), _) => response,
            (Err(ClientError::Canceled), _) if cancel.is_cancelled() => return Err(canceled()),
            // The build was given up because of what happened elsewhere.
            (Err(ClientError::Canceled), Some(_)) if served.is_ok() => {
                return Err(metadata.err().unwrap_or(ClientError::Canceled));
            }
            (Err(ClientError::Canceled), _) => {
                served?;
                return Err(ClientError::Canceled);
            }
            (Err(err), _) => return Err(err),
        };
        watched?;
        Ok(BuildResult { exporter_response, metadata: metadata? })
    }

    /// Passes on news until there are no more.
    async fn watch(
        &self,
        reference: String,
        updates: mpsc::Sender<SolveStatus>,
        solved: &CancellationToken,
    ) -> Result<(), ClientError> {
        let mut control = self.control();
        let asked = control.status(control::StatusRequest { r#ref: reference });
        let asked = tokio::select! {
            answer = asked => answer,
            () = async { solved.cancelled().await; tokio::time::sleep(STATUS_PATIENCE).await } => return Ok(()),
        };
        let mut stream = asked.map_err(ClientError::call("failed to get status"))?.into_inner();
        let mut shift = Shift::default();
        loop {
            let next = tokio::select! {
                next = stream.message() => next,
                () = async { solved.cancelled().await; tokio::time::sleep(STATUS_PATIENCE).await } => return Ok(()),
            };
            match next {
                Ok(Some(response)) => {
                    // Nobody looks: the build goes on.
                    let _ = updates.send(shift.apply(response.into())).await;
                }
                Ok(None) => return Ok(()),
                Err(status) => return Err(ClientError::call("failed to receive status")(status)),
            }
        }
    }
}

/// A build that was ended here, in the words of one that the daemon ended.
fn canceled() -> ClientError {
    ClientError::call("failed to solve")(Status::cancelled("context canceled"))
}

/// A failure to list the workers, and for what they were listed.
fn listing(err: ClientError) -> ClientError {
    match err {
        ClientError::Call { failure, .. } => {
            ClientError::Call { context: "listing workers for Build: failed to list workers", failure }
        }
        other => other,
    }
}

/// The session with all that the build may use.
fn session(options: &BuildOptions, stores: Stores, scope: &Scope) -> Result<Session, ClientError> {
    let mut session = Session::new("", scope.child("session"));
    if !stores.is_empty() {
        session = session.stores(stores);
    }
    let locals = shared_locals(options)?;
    if !locals.is_empty() {
        let mut directories = SharedDirectories::default();
        for (name, path) in locals {
            directories.insert(name, path);
        }
        session = session.share(directories);
    }
    let mut exports = Exports::default();
    let mut receives = false;
    for (index, export) in options.exports.iter().enumerate() {
        if let Some(destination) = &export.destination {
            exports.insert(index, destination.clone());
            receives = true;
        }
    }
    if receives {
        session = session.export(exports);
    }
    if let Some(keychain) = &options.keychain {
        session = session.authenticate(keychain.clone());
    }
    if let Some(secrets) = &options.secrets {
        session = session.secrets(secrets.clone());
    }
    if let Some(agents) = &options.agents {
        session = session.agents(agents.clone());
    }
    Ok(session)
}

/// The directories that are shared: of a definition's, those that it names.
fn shared_locals(options: &BuildOptions) -> Result<BTreeMap<String, PathBuf>, ClientError> {
    let Some(definition) = &options.definition else { return Ok(options.locals.clone()) };
    let mut shared = BTreeMap::new();
    for bytes in &definition.def {
        let op = pb::Op::decode(bytes.clone())
            .map_err(|err| ClientError::Invalid(format!("failed to parse llb proto op: {err}")))?;
        let Some(pb::op::Op::Source(source)) = op.op else { continue };
        let Some(name) = source.identifier.strip_prefix("local://") else { continue };
        let path = options
            .locals
            .get(name)
            .ok_or_else(|| ClientError::Invalid(format!("local directory {name} not enabled")))?;
        shared.insert(name.to_owned(), path.clone());
    }
    Ok(shared)
}

/// An import of cache as frontends read it.
#[derive(serde::Serialize)]
struct Import {
    #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(rename = "Attrs", skip_serializing_if = "BTreeMap::is_empty")]
    attrs: BTreeMap<String, String>,
}

/// The frontend's options, with the imports of cache in the form in which frontends read them.
fn frontend_attrs(options: &BuildOptions) -> BTreeMap<String, String> {
    let mut attrs = options.attrs.clone();
    if !options.cache_imports.is_empty() {
        let entry = |import: &CacheOption| Import { kind: import.kind.clone(), attrs: import.attrs.clone() };
        let list: Vec<Import> = options.cache_imports.iter().map(entry).collect();
        // Maps of texts always have a JSON form.
        let json = serde_json::to_string(&list).unwrap_or_default();
        attrs.insert("cache-imports".to_owned(), json);
    }
    attrs
}

fn solve_request(options: &BuildOptions, attrs: BTreeMap<String, String>, session: &str) -> control::SolveRequest {
    let cache = |list: &[CacheOption]| {
        let entry = |option: &CacheOption| control::CacheOptionsEntry {
            r#type: option.kind.clone(),
            attrs: option.attrs.clone(),
        };
        list.iter().map(entry).collect()
    };
    let exporters: Vec<control::Exporter> = options
        .exports
        .iter()
        .map(|export| control::Exporter { r#type: export.kind.clone(), attrs: export.attrs.clone() })
        .collect();
    // Daemons of old look at one exporter alone.
    let (exporter_deprecated, exporter_attrs_deprecated) =
        exporters.first().map(|first| (first.r#type.clone(), first.attrs.clone())).unwrap_or_default();
    control::SolveRequest {
        r#ref: options.reference.clone(),
        exporters,
        exporter_deprecated,
        exporter_attrs_deprecated,
        session: session.to_owned(),
        frontend_attrs: attrs,
        cache: Some(control::CacheOptions {
            exports: cache(&options.cache_exports),
            imports: cache(&options.cache_imports),
            ..control::CacheOptions::default()
        }),
        entitlements: options.entitlements.clone(),
        source_policy: options.source_policy.clone(),
        proxy_network: options.proxy_network,
        ..control::SolveRequest::default()
    }
}

fn gateway_request(options: BuildOptions, attrs: BTreeMap<String, String>) -> gateway::SolveRequest {
    let mut frontend_opt = attrs;
    if frontend_opt.contains_key("requestid") {
        frontend_opt
            .entry("frontend.caps".to_owned())
            .or_insert_with(|| "moby.buildkit.frontend.subrequests".to_owned());
    }
    let import = |option: CacheOption| gateway::CacheOptionsEntry { r#type: option.kind, attrs: option.attrs };
    gateway::SolveRequest {
        definition: options.definition,
        frontend: options.frontend,
        frontend_opt,
        allow_result_return: true,
        allow_result_array_ref: true,
        cache_imports: options.cache_imports.into_iter().map(import).collect(),
        ..gateway::SolveRequest::default()
    }
}

/// The build's side of the gateway.
struct Bridge<'a> {
    client: &'a Client,
    reference: String,
}

impl Bridge<'_> {
    /// Asks for the result and returns it; what the frontend says of it comes back.
    async fn run(&self, request: gateway::SolveRequest) -> Result<BTreeMap<String, Bytes>, ClientError> {
        let ping = tokio::time::timeout(PING_PATIENCE, self.ping())
            .await
            .unwrap_or_else(|_| Err(ClientError::call("ping")(Status::deadline_exceeded("context deadline exceeded"))));
        let pong = ping?;
        if !pong.frontend_api_caps.iter().any(|cap| cap.id == "return" && cap.enabled) {
            return Err(ClientError::Invalid("the daemon is too old: it does not take results".to_owned()));
        }
        let solved = async { self.client.gateway().solve(self.call(request)?).await }.await;
        let (returned, outcome) = match solved {
            Ok(response) => {
                let result = response.into_inner().result.unwrap_or_default();
                let metadata = result.metadata.clone();
                (gateway::ReturnRequest { result: Some(with_reference(result)), error: None }, Ok(metadata))
            }
            Err(status) => {
                let failure = Failure::from_status(&status);
                let error = Some(failure.to_rpc());
                let outcome = Err(ClientError::Call { context: "failed to run Build function", failure });
                (gateway::ReturnRequest { result: None, error }, outcome)
            }
        };
        let answer = async { self.client.gateway().r#return(self.call(returned)?).await }.await;
        match (outcome, answer) {
            (Ok(metadata), Ok(_)) => Ok(metadata),
            (Ok(_), Err(status)) => Err(ClientError::call("failed to run Build function")(status)),
            (Err(err), _) => Err(err),
        }
    }

    async fn ping(&self) -> Result<gateway::PongResponse, ClientError> {
        let pong = async { self.client.gateway().ping(self.call(gateway::PingRequest {})?).await }.await;
        Ok(pong.map_err(ClientError::call("ping"))?.into_inner())
    }

    fn call<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let value = MetadataValue::try_from(self.reference.as_str())
            .map_err(|_| Status::invalid_argument("the name of the build is no header"))?;
        request.metadata_mut().insert(BUILD_ID, value);
        Ok(request)
    }
}

/// A result without a reference is returned with an empty one.
fn with_reference(mut result: gateway::Result) -> gateway::Result {
    result.result.get_or_insert_with(|| gateway::result::Result::Ref(gateway::Ref::default()));
    result
}

/// Moves the daemon's times to this machine's clock: the build begins when its first step is heard of.
#[derive(Default)]
struct Shift {
    began: Option<Timestamp>,
    /// What is taken from each time.
    by: Option<jiff::SignedDuration>,
}

impl Shift {
    fn apply(&mut self, mut status: SolveStatus) -> SolveStatus {
        let began = *self.began.get_or_insert_with(Timestamp::now);
        if self.by.is_none() {
            let first = status.vertexes.iter().filter_map(|vertex| vertex.started).next_back();
            self.by = first.map(|started| started.duration_since(began));
        }
        let Some(by) = self.by else { return status };
        let moved = |time: &mut Timestamp| *time = time.checked_sub(by).unwrap_or(*time);
        for vertex in &mut status.vertexes {
            vertex.started.iter_mut().chain(vertex.completed.iter_mut()).for_each(moved);
        }
        for work in &mut status.statuses {
            work.started.iter_mut().chain(work.completed.iter_mut()).for_each(moved);
            moved(&mut work.timestamp);
        }
        status.logs.iter_mut().map(|log| &mut log.timestamp).for_each(moved);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_told_to_the_frontend() {
        let options = BuildOptions {
            cache_imports: vec![CacheOption {
                kind: "registry".into(),
                attrs: [("ref".to_owned(), "example.com/x".to_owned())].into(),
            }],
            ..BuildOptions::default()
        };
        assert_eq!(
            frontend_attrs(&options)["cache-imports"],
            r#"[{"Type":"registry","Attrs":{"ref":"example.com/x"}}]"#
        );
    }

    #[test]
    fn a_definition_shares_what_it_names() {
        let op = |identifier: &str| {
            let source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
            Bytes::from(pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec())
        };
        let mut options = BuildOptions {
            definition: Some(pb::Definition {
                def: vec![op("local://a"), op("https://x")],
                ..pb::Definition::default()
            }),
            locals: [("a".to_owned(), PathBuf::from("/a")), ("b".to_owned(), PathBuf::from("/b"))].into(),
            ..BuildOptions::default()
        };
        assert_eq!(shared_locals(&options).unwrap().keys().collect::<Vec<_>>(), ["a"]);
        options.locals.clear();
        assert_eq!(shared_locals(&options).unwrap_err().to_string(), "local directory a not enabled");
    }

    #[test]
    fn times_are_moved_together() {
        let mut shift = Shift::default();
        let at = |seconds| Timestamp::new(seconds, 0).unwrap();
        let vertex = crate::status::Vertex { started: Some(at(100)), completed: Some(at(103)), ..Default::default() };
        let moved = shift.apply(SolveStatus { vertexes: vec![vertex], ..SolveStatus::default() });
        let (started, completed) = (moved.vertexes[0].started.unwrap(), moved.vertexes[0].completed.unwrap());
        assert!(Timestamp::now().duration_since(started).as_secs() < 5);
        assert_eq!(completed.duration_since(started).as_secs(), 3);
    }
}
