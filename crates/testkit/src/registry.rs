//! An OCI registry in this process, which can be told to misbehave.

mod auth;
mod body;
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use castor_oci::{Descriptor, Digest, Reference};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How the registry wants to know who asks.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A token of the registry's own token server (`/token`). A token is good for the scopes it was asked for.
    Bearer {
        /// User name and password that the token server wants; `None`: it gives tokens to everybody.
        user: Option<(String, String)>,
        /// How long a token is good for.
        lifetime: Duration,
    },
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Default)]
pub struct On {
    /// Method; `None` is any.
    pub method: Option<http::Method>,
    /// Part of the path, such as `/blobs/` or a digest; empty is any.
    pub path: String,
    /// A byte that their `Range` must hold; `None` is any range, or none.
    pub over: Option<u64>,
    /// Requests that match and pass before the fault.
    pub skip: u32,
    /// Requests that get it; 0 is all.
    pub times: u32,
}

impl On {
    /// All requests of `method` whose path contains `path`.
    pub fn new(method: http::Method, path: impl Into<String>) -> Self {
        Self { method: Some(method), path: path.into(), ..Self::default() }
    }

    /// Only those for ranges that hold this byte, however they are cut.
    #[must_use]
    pub fn over(mut self, byte: u64) -> Self {
        self.over = Some(byte);
        self
    }

    /// Only the first `times` of them.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Not the first `skip` of them.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }
}

/// What goes wrong. Faults of bodies are for answers with a blob or manifest.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The body ends with the connection after that many bytes, short of what the head said.
    Cut(u64),
    /// The body stops after that many bytes, and the connection stays open.
    Stall(u64),
    /// No answer at all, and the connection stays open.
    Silence,
    /// The connection is closed without an answer.
    Hangup,
    /// A range is answered with status 200 and the whole blob.
    IgnoreRange,
    /// Status 416.
    Unsatisfiable,
    /// This status, with an optional `Retry-After`.
    Status(u16, Option<String>),
    /// The byte at this offset of the blob is flipped.
    Corrupt(u64),
    /// The body is that many bytes shorter than asked for, and the head says so.
    Short(u64),
    /// `Content-Range` says a range that is shifted by that many bytes.
    ShiftedRange(u64),
    /// The body is claimed to be gzip.
    Encoded,
    /// The answer waits for that long.
    Delay(Duration),
    /// A redirect with this status to this URL.
    Redirect(u16, String),
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Method.
    pub method: http::Method,
    /// Path; of a signed URL it begins with `/signed/`.
    pub path: String,
    /// Query, or nothing.
    pub query: String,
    /// `Range`, as it was sent.
    pub range: Option<String>,
    /// Whether there was an `Authorization`.
    pub authorized: bool,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub bytes: u64,
}

/// Builds a [`Registry`].
#[derive(Debug, Clone, Default)]
pub struct RegistryBuilder {
    auth: Auth,
    signed: Option<Duration>,
    /// What is said of a token's life, if not the truth.
    announced: Option<Duration>,
}

#[derive(Debug, Default)]
struct Repo {
    blobs: BTreeMap<Digest, Bytes>,
    /// By tag and by digest: media type and bytes.
    manifests: HashMap<String, (String, Bytes)>,
}

#[derive(Debug)]
struct Entry {
    logged: Logged,
    sent: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
struct Issued {
    until: Instant,
    scopes: Vec<String>,
}

#[derive(Debug, Default)]
struct Content {
    repos: HashMap<String, Repo>,
    uploads: HashMap<String, Vec<u8>>,
    /// With the number of requests that matched.
    faults: Vec<(On, Fault, u32)>,
    log: Vec<Entry>,
    tokens: HashMap<String, Issued>,
    signatures: HashMap<String, Instant>,
}

#[derive(Debug)]
struct State {
    settings: RegistryBuilder,
    addr: SocketAddr,
    /// Where signed URLs lead.
    storage: SocketAddr,
    next: AtomicU64,
    content: Mutex<Content>,
}

/// The registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    state: Arc<State>,
    /// Aborted on drop, with all connections.
    _serving: JoinSet<()>,
}

impl Registry {
    /// A registry without authentication.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Settings first.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.state.addr
    }

    /// A reference to `name` (`path[:tag]`) here.
    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host()).parse().unwrap()
    }

    /// Puts a blob into the repository `path`.
    pub fn put_blob(&self, path: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.state.repo(path, |repo| repo.blobs.insert(descriptor.digest, bytes));
        descriptor
    }

    /// Puts a manifest into the repository `path` under its digest and, if it is not empty, `tag`.
    pub fn put_manifest(&self, path: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.state.repo(path, |repo| {
            if !tag.is_empty() {
                repo.manifests.insert(tag.to_owned(), (media_type.to_owned(), bytes.clone()));
            }
            repo.manifests.insert(descriptor.digest.to_string(), (media_type.to_owned(), bytes));
        });
        descriptor
    }

    /// The blob, if the repository `path` has it.
    pub fn get_blob(&self, path: &str, digest: &Digest) -> Option<Bytes> {
        self.state.repo(path, |repo| repo.blobs.get(digest).cloned())
    }

    /// Media type and bytes of the manifest under a tag or digest.
    pub fn get_manifest(&self, path: &str, target: &str) -> Option<(String, Bytes)> {
        self.state.repo(path, |repo| repo.manifests.get(target).cloned())
    }

    /// Removes the blob from the repository `path`.
    pub fn remove_blob(&self, path: &str, digest: &Digest) {
        self.state.repo(path, |repo| repo.blobs.remove(digest));
    }

    /// Makes `fault` happen to requests that match `on`; of several, the first that matches.
    pub fn fault(&self, on: On, fault: Fault) {
        self.state.content.lock().faults.push((on, fault, 0));
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state.content.lock().faults.clear();
    }

    /// Makes all tokens and signed URLs given out so far invalid.
    pub fn expire(&self) {
        let mut content = self.state.content.lock();
        content.tokens.clear();
        content.signatures.clear();
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Logged> {
        let content = self.state.content.lock();
        let log = content.log.iter();
        log.map(|entry| Logged { bytes: entry.sent.load(Ordering::Relaxed), ..entry.logged.clone() }).collect()
    }

    /// The requests so far whose path contains `part`.
    pub fn log_of(&self, part: &str) -> Vec<Logged> {
        self.log().into_iter().filter(|logged| logged.path.contains(part)).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.state.content.lock().log.clear();
    }

    /// Bytes of blobs sent so far.
    pub fn blob_bytes(&self) -> u64 {
        self.log_of("/blobs/").iter().map(|logged| logged.bytes).sum()
    }

    /// The parts of the blob that were asked for with `Range`, in order.
    pub fn ranges_of(&self, digest: &Digest) -> Vec<Range<u64>> {
        let asked = self.log_of(&digest.to_string());
        asked.iter().filter(|logged| logged.status == 206).filter_map(Logged::asked_for).collect()
    }
}

impl Logged {
    /// The bytes that were asked for with `Range`.
    pub fn asked_for(&self) -> Option<Range<u64>> {
        bytes_of(self.range.as_deref()?)
    }
}

/// What a `Range` of one range with both ends says.
fn bytes_of(range: &str) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

impl RegistryBuilder {
    /// Sets who may ask.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Says of each token that it is good for `lifetime`, whatever it is.
    #[must_use]
    pub fn announce_lifetime(mut self, lifetime: Duration) -> Self {
        self.announced = Some(lifetime);
        self
    }

    /// Redirects blobs to signed URLs on another port, which are good for `lifetime` and refuse an `Authorization`.
    #[must_use]
    pub fn signed(mut self, lifetime: Duration) -> Self {
        self.signed = Some(lifetime);
        self
    }

    /// Starts it on a free port of loopback.
    pub async fn start(self) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            settings: self,
            addr: listener.local_addr().unwrap(),
            storage: storage.local_addr().unwrap(),
            next: AtomicU64::new(1),
            content: Mutex::default(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&state)));
        serving.spawn(accept(storage, Arc::clone(&state)));
        Registry { state, _serving: serving }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| serve::answer(Arc::clone(&state), request));
            // It ends in an error when a fault says so.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl State {
    fn repo<T>(&self, path: &str, work: impl FnOnce(&mut Repo) -> T) -> T {
        work(self.content.lock().repos.entry(path.to_owned()).or_default())
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The fault for this request, if there is one.
    fn fault(&self, method: &http::Method, path: &str, range: Option<&str>) -> Option<Fault> {
        let mut content = self.content.lock();
        let range = range.and_then(bytes_of);
        for (on, fault, seen) in &mut content.faults {
            if on.method.as_ref().is_some_and(|wanted| wanted != method) || !path.contains(&on.path) {
                continue;
            }
            if on.over.is_some_and(|byte| !range.as_ref().is_some_and(|range| range.contains(&byte))) {
                continue;
            }
            *seen += 1;
            if *seen > on.skip && (on.times == 0 || *seen <= on.skip + on.times) {
                return Some(fault.clone());
            }
        }
        None
    }
}
