//! The builds that are under way, and the last ones that ended: by the client's name for them.
//!
//! Clients ask for the status of a build as they start it, in no particular order, so looking one up waits a little.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use castor_progress::Timestamp;
use castor_proto::rpc;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Journal, Request};

/// How long a look-up waits for a build to begin.
const PATIENCE: Duration = Duration::from_secs(6);

/// How many builds that ended are remembered.
const REMEMBERED: usize = 50;

/// What is known of one build.
#[derive(Debug, Clone)]
pub struct BuildRecord {
    /// The client's name for it.
    pub id: String,
    /// The frontend.
    pub frontend: String,
    /// The frontend's options.
    pub options: std::collections::BTreeMap<String, String>,
    /// Where its result went.
    pub exporters: Vec<crate::ExporterRequest>,
    /// When it began.
    pub created: Timestamp,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// What it failed with.
    pub error: Option<rpc::Status>,
    /// Its progress.
    pub journal: Arc<Journal>,
    /// It is not shown in lists.
    pub internal: bool,
    /// Counts changes of the record.
    pub generation: i32,
}

/// What happened to a record.
#[derive(Debug, Clone)]
pub enum BuildEvent {
    /// A build began.
    Started(BuildRecord),
    /// A build ended.
    Completed(BuildRecord),
    /// A record was deleted.
    Deleted(BuildRecord),
}

#[derive(Debug, Default)]
struct Table {
    active: HashMap<String, BuildRecord>,
    ended: VecDeque<BuildRecord>,
}

/// The builds of a daemon.
#[derive(Debug)]
pub struct Builds {
    table: Mutex<Table>,
    changed: watch::Sender<()>,
    events: tokio::sync::broadcast::Sender<BuildEvent>,
}

/// A build of this name is under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job ID {0} exists")]
pub struct BuildExists(pub String);

impl Default for Builds {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::channel(()).0, events: tokio::sync::broadcast::channel(64).0 }
    }
}

impl Builds {
    /// Enters a build that begins.
    pub fn begin(&self, request: &Request) -> Result<Arc<Journal>, BuildExists> {
        let record = BuildRecord {
            id: request.id.clone(),
            frontend: request.frontend.clone(),
            options: request.options.clone(),
            exporters: request.exporters.clone(),
            created: Timestamp::now(),
            completed: None,
            error: None,
            journal: Arc::default(),
            internal: request.internal,
            generation: 1,
        };
        let journal = record.journal.clone();
        {
            let mut table = self.table.lock();
            if table.active.contains_key(&request.id) {
                return Err(BuildExists(request.id.clone()));
            }
            table.active.insert(request.id.clone(), record.clone());
        }
        self.changed.send_replace(());
        if !record.internal {
            // Nobody listening is no error.
            let _ = self.events.send(BuildEvent::Started(record));
        }
        Ok(journal)
    }

    /// Moves a build to those that ended.
    pub fn end(&self, id: &str, error: Option<rpc::Status>) {
        let record = {
            let mut table = self.table.lock();
            let Some(mut record) = table.active.remove(id) else { return };
            record.completed = Some(Timestamp::now());
            record.error = error;
            record.generation += 1;
            table.ended.retain(|other| other.id != id);
            table.ended.push_back(record.clone());
            while table.ended.len() > REMEMBERED {
                table.ended.pop_front();
            }
            record
        };
        record.journal.end();
        if !record.internal {
            let _ = self.events.send(BuildEvent::Completed(record));
        }
    }

    /// The progress of the build `id`: under way, or ended and remembered; waits a little for it to begin.
    pub async fn journal(&self, id: &str) -> Option<Arc<Journal>> {
        let mut changed = self.changed.subscribe();
        let find = || {
            let table = self.table.lock();
            let ended = || table.ended.iter().rev().find(|record| record.id == id);
            table.active.get(id).or_else(ended).map(|record| record.journal.clone())
        };
        let wait = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = find() {
                    return Some(found);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
    }

    /// Deletes the record of a build that ended; whether there was one.
    pub fn delete(&self, id: &str) -> bool {
        let deleted = {
            let mut table = self.table.lock();
            let place = table.ended.iter().position(|record| record.id == id);
            place.and_then(|place| table.ended.remove(place))
        };
        if let Some(record) = deleted.clone() {
            let _ = self.events.send(BuildEvent::Deleted(record));
        }
        deleted.is_some()
    }

    /// The builds under way, and those that ended, eldest first. Internal ones are not among them.
    pub fn list(&self) -> (Vec<BuildRecord>, Vec<BuildRecord>) {
        let table = self.table.lock();
        let mut active: Vec<_> = table.active.values().filter(|record| !record.internal).cloned().collect();
        active.sort_by_key(|record| record.created);
        (active, table.ended.iter().filter(|record| !record.internal).cloned().collect())
    }

    /// All builds under way.
    pub fn active(&self) -> Vec<BuildRecord> {
        self.table.lock().active.values().cloned().collect()
    }

    /// What happens from now on. A listener that falls far behind misses events.
    pub fn events(&self) -> tokio::sync::broadcast::Receiver<BuildEvent> {
        self.events.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> Request {
        Request { id: id.into(), ..Request::default() }
    }

    #[tokio::test]
    async fn a_look_up_waits_for_the_build_to_begin() {
        let builds = Arc::new(Builds::default());
        let asking = tokio::spawn({
            let builds = builds.clone();
            async move { builds.journal("a").await.is_some() }
        });
        tokio::task::yield_now().await;
        builds.begin(&request("a")).unwrap();
        assert!(asking.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_that_never_begins_is_not_found() {
        assert!(Builds::default().journal("nobody").await.is_none());
    }

    #[tokio::test]
    async fn names_are_taken_while_the_build_lives_and_its_progress_is_kept() {
        let builds = Builds::default();
        builds.begin(&request("a")).unwrap();
        assert_eq!(builds.begin(&request("a")).unwrap_err().to_string(), "job ID a exists");
        builds.end("a", None);
        assert!(builds.journal("a").await.unwrap().watch().next().await.is_none());
        builds.begin(&request("a")).unwrap();
        assert_eq!(builds.list().1.len(), 1);
        assert!(builds.delete("a") && !builds.delete("a"));
    }
}
