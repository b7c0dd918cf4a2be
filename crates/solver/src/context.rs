//! What an operation sees of the jobs that want it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use castor_oci::Digest;
use castor_progress::Reporter;
use castor_task::CancellationToken;
use parking_lot::Mutex;

/// What a job brings to the operations that it wants.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) job: u64,
    pub(crate) sessions: Vec<String>,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// The jobs that want something, live: they come and go while it runs.
#[derive(Debug, Default)]
pub struct Audience {
    members: Mutex<Vec<Arc<Member>>>,
    departures: AtomicU64,
    /// Audiences that joined this one because they want the same execution.
    joined: Mutex<Vec<Arc<Audience>>>,
}

impl Audience {
    pub(crate) fn enter(&self, member: Arc<Member>) -> bool {
        let mut members = self.members.lock();
        let new = members.iter().all(|present| present.job != member.job);
        if new {
            members.push(member);
        }
        new
    }

    /// Returns whether anybody is left.
    pub(crate) fn leave(&self, job: u64) -> bool {
        let mut members = self.members.lock();
        members.retain(|member| member.job != job);
        self.departures.fetch_add(1, Ordering::SeqCst);
        !members.is_empty()
    }

    pub(crate) fn join(&self, other: Arc<Audience>) {
        self.joined.lock().push(other);
    }

    /// Changes whenever somebody leaves.
    pub(crate) fn departures(&self) -> u64 {
        self.departures.load(Ordering::SeqCst)
    }

    /// How many jobs there are.
    pub(crate) fn len(&self) -> usize {
        self.members.lock().len()
    }

    fn all(&self) -> Vec<Arc<Member>> {
        let mut members = self.members.lock().clone();
        let joined = self.joined.lock().clone();
        members.extend(joined.iter().flat_map(|audience| audience.all()));
        members
    }
}

/// What an operation sees of the world while it works.
#[derive(Clone)]
pub struct Cx {
    token: CancellationToken,
    reporter: Reporter,
    name: Arc<str>,
    audience: Arc<Audience>,
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("vertex", &self.reporter.vertex()).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cx {
    pub(crate) fn new(
        token: CancellationToken,
        reporter: Reporter,
        name: impl Into<Arc<str>>,
        audience: Arc<Audience>,
    ) -> Self {
        Self { token, reporter, name: name.into(), audience }
    }

    /// A context outside of any job: for work that uses the same functions as operations do.
    pub fn standalone(token: CancellationToken, reporter: Reporter, sessions: Vec<String>) -> Self {
        let audience = Audience::default();
        audience.enter(Arc::new(Member { job: 0, sessions, attributes: BTreeMap::new() }));
        Self::new(token, reporter, "", Arc::new(audience))
    }

    /// A context that nobody listens to and nobody cancels: for tests.
    pub fn discard() -> Self {
        Self::standalone(CancellationToken::new(), Reporter::discard(), Vec::new())
    }

    /// The same context with another token.
    #[must_use]
    pub fn with_token(&self, token: CancellationToken) -> Self {
        Self { token, ..self.clone() }
    }

    /// The same context, but what is reported goes elsewhere.
    pub(crate) fn with_reporter(&self, reporter: Reporter) -> Self {
        Self { reporter, ..self.clone() }
    }

    /// Cancelled when nobody wants the work any more. The work then ends soon, by itself.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Reports to all jobs that want the work, also to those that join later.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// The vertex.
    pub fn vertex(&self) -> Digest {
        self.reporter.vertex()
    }

    /// What users call the vertex.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sessions of all jobs that want the work at this moment, the eldest first. Ask again when one is gone.
    pub fn sessions(&self) -> Vec<String> {
        let mut sessions = Vec::new();
        for session in self.audience.all().iter().flat_map(|member| &member.sessions) {
            if !sessions.contains(session) {
                sessions.push(session.clone());
            }
        }
        sessions
    }

    /// The values that the jobs have for an attribute, the eldest job first.
    pub fn attributes(&self, name: &str) -> Vec<String> {
        self.audience.all().iter().filter_map(|member| member.attributes.get(name).cloned()).collect()
    }
}
