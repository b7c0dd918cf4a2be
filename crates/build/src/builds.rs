//! The builds that are under way, by the client's name for them.
//!
//! Clients ask for the status of a build as they start it, in no particular order, so looking one up waits a little.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use castor_progress::Timestamp;
use castor_proto::control::{BuildHistoryEventType, BuildHistoryRecord};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::history::{self, History};
use crate::{Journal, Request};

/// How long a look-up waits for a build to begin.
const PATIENCE: Duration = Duration::from_secs(6);

/// How many builds that left no record are remembered, for a client that asks for the progress of one that was quick.
const REMEMBERED: usize = 16;

/// A build that is under way.
#[derive(Debug, Clone)]
pub struct ActiveBuild {
    /// What its record says so far.
    pub record: BuildHistoryRecord,
    /// When it began.
    pub started: Timestamp,
    /// Its progress.
    pub journal: Arc<Journal>,
    /// It leaves no record, and is not shown in lists.
    pub internal: bool,
}

#[derive(Debug, Default)]
struct Table {
    active: HashMap<String, ActiveBuild>,
    unrecorded: VecDeque<(String, Arc<Journal>)>,
}

/// The builds of a daemon.
#[derive(Debug)]
pub struct Builds {
    table: Mutex<Table>,
    changed: watch::Sender<()>,
    history: History,
}

/// Where the progress of a build is.
#[derive(Debug)]
pub enum Progress {
    /// The build is under way, or was a moment ago.
    Live(Arc<Journal>),
    /// It ended; its record says where its log is.
    Recorded(Box<BuildHistoryRecord>),
}

/// A build of this name is under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job ID {0} exists")]
pub struct BuildExists(pub String);

impl Builds {
    /// No builds yet; they are recorded in `history`.
    pub fn new(history: History) -> Self {
        Self { table: Mutex::default(), changed: watch::channel(()).0, history }
    }

    /// Enters a build that begins.
    pub fn begin(&self, request: &Request) -> Result<ActiveBuild, BuildExists> {
        let started = Timestamp::now();
        let build = ActiveBuild {
            record: history::begun(request, started),
            started,
            journal: Arc::default(),
            internal: request.internal,
        };
        {
            let mut table = self.table.lock();
            if table.active.contains_key(&request.id) {
                return Err(BuildExists(request.id.clone()));
            }
            table.active.insert(request.id.clone(), build.clone());
        }
        self.changed.send_replace(());
        if !build.internal {
            self.history.tell(BuildHistoryEventType::Started, build.record.clone());
        }
        Ok(build)
    }

    /// Takes a build out of those under way; `recorded` says whether its record is written.
    pub(crate) fn end(&self, id: &str, recorded: bool) {
        let mut table = self.table.lock();
        let Some(build) = table.active.remove(id) else { return };
        build.journal.end();
        if !recorded {
            table.unrecorded.push_back((id.to_owned(), build.journal));
            if table.unrecorded.len() > REMEMBERED {
                table.unrecorded.pop_front();
            }
        }
    }

    /// The progress of the build `id`, which is under way, or ended; waits a little for it to begin.
    pub async fn progress(&self, id: &str) -> Option<Progress> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = self.find(id) {
                    return Some(found);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
    }

    fn find(&self, id: &str) -> Option<Progress> {
        if let Some(build) = self.table.lock().active.get(id) {
            return Some(Progress::Live(build.journal.clone()));
        }
        // Whoever ends writes the record first.
        match self.history.record(id) {
            Ok(Some(record)) => return Some(Progress::Recorded(Box::new(record))),
            Ok(None) => {}
            Err(error) => tracing::warn!(build = id, %error, "look for a build record"),
        }
        let table = self.table.lock();
        let found = table.unrecorded.iter().rev().find(|(name, _)| name == id);
        found.map(|(_, journal)| Progress::Live(journal.clone()))
    }

    /// The builds under way that are not internal, eldest first.
    pub fn list(&self) -> Vec<ActiveBuild> {
        let mut active: Vec<_> = self.active().into_iter().filter(|build| !build.internal).collect();
        active.sort_by_key(|build| build.started);
        active
    }

    /// All builds under way.
    pub fn active(&self) -> Vec<ActiveBuild> {
        self.table.lock().active.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_content::Local;
    use castor_metadb::Memory;

    fn request(id: &str) -> Request {
        Request { id: id.into(), ..Request::default() }
    }

    async fn builds() -> (Builds, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let db = Arc::new(Memory::default());
        let content = Arc::new(Local::open(root.path(), db.clone()).await.unwrap());
        let history = History::new(db, content.clone(), content, crate::HistoryLimits::default());
        (Builds::new(history), root)
    }

    #[tokio::test]
    async fn a_look_up_waits_for_the_build_to_begin() {
        let (builds, _root) = builds().await;
        let builds = Arc::new(builds);
        let asking = tokio::spawn({
            let builds = builds.clone();
            async move { builds.progress("a").await.is_some() }
        });
        tokio::task::yield_now().await;
        builds.begin(&request("a")).unwrap();
        assert!(asking.await.unwrap());
    }

    #[tokio::test]
    async fn a_build_that_never_begins_is_not_found() {
        let (builds, _root) = builds().await;
        tokio::time::pause();
        assert!(builds.progress("nobody").await.is_none());
    }

    #[tokio::test]
    async fn names_are_taken_while_the_build_lives_and_its_progress_is_kept() {
        let (builds, _root) = builds().await;
        builds.begin(&request("a")).unwrap();
        assert_eq!(builds.begin(&request("a")).unwrap_err().to_string(), "job ID a exists");
        builds.end("a", false);
        let Some(Progress::Live(journal)) = builds.progress("a").await else { panic!("not found") };
        assert!(journal.watch().next().await.is_none());
        builds.begin(&request("a")).unwrap();
        assert_eq!(builds.list().len(), 1);
    }
}
