//! Git repositories, by the `git` program.
//!
//! What was fetched of a remote is kept in one bare repository per remote, a record like any other; checkouts are made
//! of it. Repositories are not trusted: git runs without the host's configuration and without submodules from files.

mod checkout;
mod error;
mod fetch;
mod program;
mod remote;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use castor_executor::Spawner;
use castor_llb::GitSource;
use castor_metadb::{Batch, KeyValue};
use castor_session::secrets;
use castor_solver::Cx;
use castor_store::ImmutableRef;
use castor_task::blocking;
use parking_lot::Mutex;

use crate::agent::Agent;
use crate::openers::group;
use crate::{OpError, Passing, Worker, identity};
pub use error::GitError;
use program::Program;
pub(crate) use remote::Resolved;

const TABLE: &str = "ops.git";

/// Git on this machine.
pub(crate) struct Git {
    db: Arc<dyn KeyValue>,
    spawner: OnceLock<Result<Spawner, String>>,
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What a commit, and the tag that named it, consist of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    /// The commit.
    pub(crate) commit: Vec<u8>,
    /// The tag, if there is one.
    pub(crate) tag: Vec<u8>,
}

/// A repository for the time of one operation: how to authenticate, and what to tell whom.
struct Work<'a> {
    worker: &'a Worker,
    cx: &'a Cx,
    source: &'a GitSource,
    /// Runs git with everything that the remote wants.
    program: Program<'a>,
    /// Kept for as long as git may use them.
    _agent: Option<Agent>,
    _known_hosts: Option<tempfile::NamedTempFile>,
}

impl Git {
    pub(crate) fn new(db: Arc<dyn KeyValue>) -> Self {
        Self { db, spawner: OnceLock::new(), locks: Mutex::default() }
    }

    /// Which commit the source means now.
    pub(crate) async fn resolve(&self, worker: &Worker, cx: &Cx, source: &GitSource) -> Result<Resolved, OpError> {
        if let Some(resolved) = remote::known(source)? {
            return Ok(resolved);
        }
        let _one = self.lock(&source.remote).await;
        let work = self.work(worker, cx, source).await?;
        remote::ask(&work).await
    }

    /// The files of the source at what it was found to mean.
    pub(crate) async fn check_out(
        &self,
        worker: &Worker,
        cx: &Cx,
        source: &GitSource,
        resolved: &Resolved,
    ) -> Result<ImmutableRef, OpError> {
        let key = format!("{}:{}", resolved.key(source), source.subdir);
        let _one = self.lock(&key).await;
        if let Some(known) = self.known(worker, &key).await {
            return Ok(known);
        }
        let _repository = self.lock(&source.remote).await;
        let work = self.work(worker, cx, source).await?;
        let repository = fetch::fetch(&work, resolved).await?;
        let files = checkout::check_out(&work, &repository, resolved).await?;
        self.remember(key, files.id().to_owned()).await;
        Ok(files)
    }

    /// The commit that the source means, and its tag, as they are stored.
    pub(crate) async fn objects(
        &self,
        worker: &Worker,
        cx: &Cx,
        source: &GitSource,
        resolved: &mut Resolved,
    ) -> Result<Objects, OpError> {
        let _one = self.lock(&source.remote).await;
        let work = self.work(worker, cx, source).await?;
        let repository = fetch::fetch(&work, resolved).await?;
        fetch::objects(&repository, resolved).await
    }

    /// One at a time for each name.
    async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    async fn work<'a>(&'a self, worker: &'a Worker, cx: &'a Cx, source: &'a GitSource) -> Result<Work<'a>, OpError> {
        let spawner = self.spawner.get_or_init(|| Spawner::new().map_err(|error| error.to_string()));
        let spawner = spawner.as_ref().map_err(|error| GitError::Start(error.clone()))?;
        let agent = match source.mount_ssh_sock.as_str() {
            "" => None,
            id => Some(Agent::open(worker, cx, id, crate::agent::OWN).await?),
        };
        let known_hosts = match source.known_ssh_hosts.as_str() {
            "" => None,
            hosts => Some(write_hosts(worker.passing().clone(), hosts.to_owned()).await?),
        };
        let program = Program::new(
            spawner,
            cx,
            agent.as_ref().map(|agent| agent.path().to_owned()),
            known_hosts.as_ref().map(|file| file.path().to_owned()),
            header(worker, cx, source).await?,
        );
        Ok(Work { worker, cx, source, program, _agent: agent, _known_hosts: known_hosts })
    }

    /// The checkout that was made of the same before, if it is still here.
    async fn known(&self, worker: &Worker, key: &str) -> Option<ImmutableRef> {
        let (db, key) = (self.db.clone(), key.to_owned());
        let row = blocking(move || db.get(TABLE, key.as_bytes()).ok().flatten()).await?;
        worker.store().get(std::str::from_utf8(&row).ok()?).await.ok()
    }

    async fn remember(&self, key: String, record: String) {
        let db = self.db.clone();
        blocking(move || {
            let mut batch = Batch::new();
            batch.put(TABLE, key.as_bytes(), record.into_bytes());
            db.write_soon(batch);
        })
        .await;
    }
}

impl Resolved {
    /// What the cache knows it by.
    pub(crate) fn key(&self, source: &GitSource) -> String {
        // A commit is the same by whatever tag it was named, unless the tag itself is kept.
        let commit = match &self.commit_of_tag {
            Some(commit) if !source.keep_git_dir => commit,
            _ => &self.checksum,
        };
        identity::git(source, commit, &self.reference)
    }
}

async fn write_hosts(passing: Passing, hosts: String) -> Result<tempfile::NamedTempFile, GitError> {
    let written = blocking(move || passing.file(hosts.as_bytes()));
    written.await.map_err(|source| GitError::Io { doing: "write known hosts".to_owned(), source })
}

/// The option that makes git send the client's `Authorization`, if the client has one.
async fn header(worker: &Worker, cx: &Cx, source: &GitSource) -> Result<Option<(String, String)>, OpError> {
    let sessions = group(worker.sessions(), cx);
    let Ok(url) = source.remote.parse::<reqwest::Url>() else { return Ok(None) };
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    };
    let names = [(&source.auth_header_secret, false), (&source.auth_token_secret, true)];
    let given = names.into_iter().filter(|(name, _)| !name.is_empty());
    let specific = given.clone().map(|(name, token)| (format!("{name}.{host}"), token));
    for (name, token) in specific.chain(given.map(|(name, token)| (name.clone(), token))) {
        let Some(secret) = secrets::get(&sessions, &name).await.ok().flatten() else { continue };
        let value = match token {
            true => format!("basic {}", STANDARD.encode([b"x-access-token:", secret.as_ref()].concat())),
            false => String::from_utf8_lossy(&secret).into_owned(),
        };
        let option = format!("http.{}.extraheader", scope(&source.remote));
        return Ok(Some((option, format!("Authorization: {value}"))));
    }
    Ok(None)
}

/// The URLs that the remote's secret is for: submodules are often at the same big host.
fn scope(remote: &str) -> &str {
    let hosts = ["https://github.com/", "https://www.github.com/"];
    hosts.into_iter().find(|host| remote.starts_with(host)).unwrap_or(remote)
}

/// A bare repository with what was fetched.
struct Repository<'a> {
    program: Program<'a>,
    dir: PathBuf,
    // Dropped in this order: nothing is let go of that is still mounted.
    _mounting: Arc<castor_store::Mounting>,
    _record: castor_store::MutableRef,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_for_the_remote_or_for_a_host_that_many_share() {
        assert_eq!(scope("https://github.com/a/b.git"), "https://github.com/");
        assert_eq!(scope("https://github.com.evil/a"), "https://github.com.evil/a");
        assert_eq!(scope("https://h/a"), "https://h/a");
    }
}
