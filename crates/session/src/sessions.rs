//! The sessions of a daemon.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use castor_proto::control::BytesMessage;
use castor_task::{CancellationToken, Scope};
use castor_wire::{Outgoing, channel_over, tunnel};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::health::Health;
use crate::{Group, SessionError, key};

/// How many methods and how long an id a client may name.
const MAX_METHODS: usize = 256;
const MAX_ID: usize = 256;

/// All sessions of a daemon, by id.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    scope: Scope,
    live: Mutex<HashMap<String, Caller>>,
    /// Moves on whenever a session appears.
    arrivals: watch::Sender<u64>,
}

/// A client that answers calls.
#[derive(Clone)]
pub struct Caller {
    session: Arc<Session>,
}

struct Session {
    id: String,
    shared_key: String,
    methods: HashSet<String>,
    channel: Channel,
    closed: CancellationToken,
    reason: OnceLock<String>,
}

/// What goes to the client: the answer to its call that opened the session. It
/// ends when the session does.
pub struct SessionStream(Outgoing);

impl Sessions {
    /// No sessions yet. Those to come end with `scope`.
    pub fn new(scope: Scope) -> Self {
        let inner = Inner { scope, live: Mutex::default(), arrivals: watch::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// Opens the session that a client asks for: `metadata` and `incoming` are
    /// of its call, the stream is the answer.
    pub async fn open(
        &self,
        metadata: &MetadataMap,
        incoming: impl Stream<Item = Result<BytesMessage, Status>> + Send + 'static,
    ) -> Result<SessionStream, SessionError> {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let id = text(key::ID);
        if id.is_empty() || id.len() > MAX_ID {
            return Err(SessionError::Invalid { what: "session id", why: format!("it has {} bytes", id.len()) });
        }
        let methods = metadata
            .get_all(key::METHOD)
            .iter()
            .take(MAX_METHODS)
            .filter_map(|value| value.to_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
        if self.inner.live.lock().contains_key(&id) {
            return Err(SessionError::Exists { id });
        }
        let closed = self.inner.scope.token().child_token();
        let (tunnel, outgoing) = tunnel(incoming, closed.clone());
        let session = Session {
            shared_key: text(key::SHARED_KEY),
            methods,
            channel: channel_over(tunnel).await?,
            closed,
            reason: OnceLock::new(),
            id: id.clone(),
        };
        let caller = Caller { session: Arc::new(session) };
        {
            let mut live = self.inner.live.lock();
            if live.contains_key(&id) {
                return Err(SessionError::Exists { id });
            }
            live.insert(id.clone(), caller.clone());
        }
        self.inner.arrivals.send_modify(|count| *count += 1);
        tracing::debug!(session = id, methods = caller.session.methods.len(), "session opened");
        let health = Health::from_metadata(metadata);
        let sessions = self.clone();
        self.inner.scope.spawn_named(format!("session {id}"), async move { sessions.watch(caller, health).await });
        Ok(SessionStream(outgoing))
    }

    /// Watches over a session until its end and takes it out of the list.
    async fn watch(&self, caller: Caller, health: Health) {
        let session = &caller.session;
        tokio::select! {
            () = session.closed.cancelled() => {}
            reason = health.watch(&session.channel) => {
                tracing::warn!(session = session.id, reason, "session ended");
                let _ = session.reason.set(reason);
            }
        }
        session.closed.cancel();
        self.inner.live.lock().remove(&session.id);
        tracing::debug!(session = session.id, "session closed");
    }

    /// The session `id`, which may have a `prefix:` in front; waits for it at
    /// most that long.
    ///
    /// A client opens its session and asks for a build at the same time, so
    /// either may come first.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Caller, SessionError> {
        let id = bare(id);
        let mut arrivals = self.inner.arrivals.subscribe();
        let found = tokio::time::timeout(wait, async {
            loop {
                if let Some(caller) = self.now(id) {
                    return caller;
                }
                if arrivals.changed().await.is_err() {
                    futures::future::pending::<()>().await;
                }
            }
        });
        found.await.map_err(|_| SessionError::NotFound { id: id.to_owned() })
    }

    /// The session `id` if it is there.
    pub fn now(&self, id: &str) -> Option<Caller> {
        let caller = self.inner.live.lock().get(bare(id)).cloned();
        caller.filter(|caller| !caller.session.closed.is_cancelled())
    }

    /// The group of these sessions.
    pub fn group(&self, ids: impl IntoIterator<Item = String>) -> Group {
        let ids: Vec<String> = ids.into_iter().collect();
        Group::new(self.clone(), Arc::new(move || ids.clone()))
    }

    /// A group whose sessions come and go: `ids` is asked anew for each call.
    pub fn live_group(&self, ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>) -> Group {
        Group::new(self.clone(), ids)
    }

    /// How many sessions there are.
    pub fn count(&self) -> usize {
        self.inner.live.lock().len()
    }
}

/// A prefix tells apart the vertices of one session; it is no part of its id.
fn bare(id: &str) -> &str {
    match id.split_once(':') {
        Some((_, rest)) if !rest.is_empty() => rest,
        _ => id,
    }
}

impl Caller {
    /// The session's id.
    pub fn id(&self) -> &str {
        &self.session.id
    }

    /// What makes directories of several sessions the same to the client: a key
    /// for keeping what was received.
    pub fn shared_key(&self) -> &str {
        &self.session.shared_key
    }

    /// Whether the client serves the method, `/package.Service/Method` in any
    /// case.
    pub fn supports(&self, method: &str) -> bool {
        self.session.methods.contains(&method.to_ascii_lowercase())
    }

    /// The connection to the client's services.
    pub fn channel(&self) -> Channel {
        self.session.channel.clone()
    }

    /// Cancelled when the session ends.
    pub fn closed(&self) -> &CancellationToken {
        &self.session.closed
    }

    /// Ends the session.
    pub fn close(&self, reason: impl Into<String>) {
        let _ = self.session.reason.set(reason.into());
        self.session.closed.cancel();
    }

    /// Awaits a call for as long as the session lives.
    ///
    /// When it ends, the call may fail by the connection before the session is
    /// known to be closed; what is told then is that.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, SessionError>
    where
        E: Into<SessionError>,
    {
        tokio::select! {
            biased;
            result = call => result.map_err(|error| {
                if self.session.closed.is_cancelled() { self.gone() } else { error.into() }
            }),
            () = self.session.closed.cancelled() => Err(self.gone()),
        }
    }

    fn gone(&self) -> SessionError {
        let reason = self.session.reason.get().cloned().unwrap_or_else(|| "the client closed it".to_owned());
        SessionError::Closed { id: self.session.id.clone(), reason }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("id", &self.session.id).finish_non_exhaustive()
    }
}

impl Stream for SessionStream {
    type Item = Result<BytesMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx).map(|message| message.map(Ok))
    }
}
