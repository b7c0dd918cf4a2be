//! The caches outside of the daemon that a build reads and writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use castor_oci::Digest;
use castor_ops::BridgeError;
use castor_ops::bridge::CacheImport;
use castor_progress::{Event, Reporter, Sink, Timestamp, Vertex};
use castor_registry::Access;
use castor_remotecache::{ExportOptions, ExportParts, ExportTargets, ImportOptions, ImportParts, Imported};
use castor_session::auth::SessionCredentials;
use castor_solver::{Cache, Cx, KeyId};
use castor_store::ImmutableRef;
use castor_task::CancellationToken;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{CacheRequest, Daemon};

/// The answer of one import, once there is one.
type Answer = Arc<OnceCell<Vec<Arc<Imported>>>>;

/// The caches that a build imports, each once, when something is first looked up in it.
#[derive(Default)]
pub(crate) struct Imports {
    known: Mutex<BTreeMap<String, Answer>>,
    /// Those that a ref was asked for with, by the ref's id.
    asked: Mutex<BTreeMap<String, Vec<CacheImport>>>,
}

/// On whose behalf caches are read and written.
pub(crate) struct Client<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) session: &'a str,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) token: CancellationToken,
}

impl Client<'_> {
    fn cx(&self, vertex: Digest) -> Cx {
        Cx::standalone(self.token.clone(), Reporter::new(vertex, self.sink.clone()), vec![self.session.to_owned()])
    }

    fn access(&self) -> Access {
        let group = self.daemon.sessions.group(vec![self.session.to_owned()]);
        Access::new(Arc::new(SessionCredentials::new(group)))
    }

    /// Shows work as a vertex of its own.
    async fn shown<T, E: std::fmt::Display>(
        &self,
        digest: Digest,
        name: String,
        work: impl AsyncFnOnce(Cx) -> Result<T, E>,
    ) -> Result<T, E> {
        let started = Some(Timestamp::now());
        let mut vertex = Vertex { digest: Some(digest), name, started, ..Vertex::default() };
        self.sink.send(Event::Vertex(vertex.clone()));
        let done = work(self.cx(digest)).await;
        vertex.completed = Some(Timestamp::now());
        if let Err(error) = &done {
            vertex.error = error.to_string();
        }
        self.sink.send(Event::Vertex(vertex));
        done
    }
}

/// What is asked for with an import. What castor does not do is refused before anything is built.
pub(crate) fn check_imports(imports: &[CacheImport]) -> Result<(), BridgeError> {
    for import in imports {
        ImportOptions::parse(&import.kind, &import.attrs).map_err(refused)?;
    }
    Ok(())
}

fn refused(error: castor_remotecache::RemoteCacheError) -> BridgeError {
    match error {
        error @ castor_remotecache::RemoteCacheError::Unsupported { .. } => {
            BridgeError::unimplemented(error.to_string())
        }
        error => BridgeError::unknown(error.to_string()),
    }
}

impl Imports {
    /// Notes which caches are looked into for `reference`.
    pub(crate) fn ask(&self, reference: &str, imports: Vec<CacheImport>) {
        if !imports.is_empty() {
            self.asked.lock().insert(reference.to_owned(), imports);
        }
    }

    /// The caches that are looked into for `reference`. One that cannot be had is told of, and gone on without.
    pub(crate) async fn get(&self, client: &Client<'_>, reference: &str) -> Vec<Cache<ImmutableRef>> {
        let imports = self.asked.lock().get(reference).cloned().unwrap_or_default();
        let found = futures::future::join_all(imports.iter().map(|import| self.one(client, import))).await;
        let caches = found.into_iter().flatten().map(|import| Cache { keys: import.clone(), results: import });
        caches.collect()
    }

    async fn one(&self, client: &Client<'_>, import: &CacheImport) -> Vec<Arc<Imported>> {
        let Ok(options) = ImportOptions::parse(&import.kind, &import.attrs) else { return Vec::new() };
        let answer = self.known.lock().entry(options.id()).or_default().clone();
        let imported = answer.get_or_init(|| async {
            let name = options.name();
            let work = async |cx: Cx| {
                let parts = client.daemon.import_parts();
                castor_remotecache::import(&parts, &options, &cx, client.access(), client.session).await
            };
            client.shown(Digest::of(&name), name, work).await.unwrap_or_else(|error| {
                tracing::debug!(%error, import = options.id(), "import cache");
                Vec::new()
            })
        });
        imported.await.clone()
    }

    /// All that was imported.
    pub(crate) fn all(&self) -> Vec<Arc<Imported>> {
        self.known.lock().values().filter_map(|answer| answer.get()).flatten().cloned().collect()
    }
}

/// The caches that a build writes.
#[derive(Debug, Default)]
pub(crate) struct Exports {
    /// Those that are places of their own.
    places: Vec<ExportOptions>,
    /// The image that is exported carries one.
    inline: bool,
}

impl Exports {
    /// Reads what a client asks for.
    pub(crate) fn parse(requests: &[CacheRequest]) -> Result<Self, BridgeError> {
        let mut exports = Self::default();
        let mut seen = Vec::new();
        for request in requests {
            let options = ExportOptions::parse(&request.kind, &request.attrs).map_err(refused)?;
            if options.is_inline() {
                exports.inline = true;
                continue;
            }
            // Of a registry's, the reference alone counts.
            let reference = request.attrs.get("ref").filter(|_| request.kind == "registry");
            let key = reference.map_or_else(
                || (&request.kind, Some(&request.attrs), None),
                |reference| (&request.kind, None, Some(reference)),
            );
            if seen.contains(&key) {
                return Err(BridgeError::unknown(format!("duplicate cache exports [{}]", request.kind)));
            }
            seen.push(key);
            exports.places.push(options);
        }
        Ok(exports)
    }

    /// Whether images carry a cache.
    pub(crate) fn inline(&self) -> bool {
        self.inline
    }

    /// Writes the records of the results with these keys; answers what the client is told.
    pub(crate) async fn run(
        &self,
        client: &Client<'_>,
        parts: &ExportParts,
        roots: &[KeyId],
    ) -> Result<BTreeMap<String, String>, BridgeError> {
        let exports = self.places.iter().enumerate().map(|(index, options)| async move {
            let digest = Digest::of(format!("{}-cache-{index}", client.session));
            let targets = ExportTargets {
                registry: client.daemon.registry.clone(),
                access: client.access(),
                sessions: client.daemon.sessions.clone(),
                session: client.session.to_owned(),
            };
            let work = async |cx: Cx| castor_remotecache::export(options, parts, &targets, &cx, roots).await;
            match client.shown(digest, options.name().to_owned(), work).await {
                Err(_) if options.ignores_errors() => Ok(BTreeMap::new()),
                exported => exported.map_err(|error| BridgeError::unknown(error.to_string())),
            }
        });
        let mut response = BTreeMap::new();
        for part in futures::future::try_join_all(exports).await? {
            response.extend(part);
        }
        Ok(response)
    }
}

impl Daemon {
    fn import_parts(&self) -> ImportParts {
        let ops = self.ops.clone();
        ImportParts {
            registry: self.registry.clone(),
            sessions: self.sessions.clone(),
            store: self.store.clone(),
            lazy: Arc::new(move |cx| ops.wants_lazy(cx)),
        }
    }

    /// What the caches of a build that imported `imports` are written from.
    pub(crate) fn export_parts(&self, imports: Vec<Arc<Imported>>) -> ExportParts {
        ExportParts {
            keys: Arc::new(self.store.keys().as_ref().clone()),
            results: self.store.results(),
            blobs: self.blobs.clone(),
            imports,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: &str, attrs: &[(&str, &str)]) -> CacheRequest {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        CacheRequest { kind: kind.to_owned(), attrs }
    }

    #[test]
    fn exports_are_told_apart_and_refused_by_name() {
        let registry = request("registry", &[("ref", "example.com/a")]);
        let exports = Exports::parse(&[request("inline", &[]), registry.clone(), request("inline", &[])]).unwrap();
        assert!(exports.inline() && exports.places.len() == 1);
        let same = request("registry", &[("ref", "example.com/a"), ("mode", "max")]);
        assert_eq!(Exports::parse(&[registry, same]).unwrap_err().message, "duplicate cache exports [registry]");
        let refused = Exports::parse(&[request("gha", &[])]).unwrap_err();
        assert_eq!(refused.message, "cache export of type \"gha\" is not supported by castor yet");
        let import = CacheImport { kind: "s3".into(), attrs: BTreeMap::new() };
        assert!(check_imports(&[import]).unwrap_err().message.contains("\"s3\""));
    }
}
