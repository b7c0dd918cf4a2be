//! What a build reported, kept for whoever asks: each watcher gets everything from the start and then follows.
//!
//! Writing never blocks. A watcher that falls behind skips statuses that newer ones replaced, and nothing else, so
//! memory is bounded by the number of vertices, of status lines, and by the steps' log limit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use castor_oci::Digest;
use castor_progress::{Event, Sink, Timestamp};
use parking_lot::Mutex;
use tokio::sync::watch;

/// The progress of one build.
#[derive(Debug)]
pub struct Journal {
    state: Mutex<State>,
    /// The number of the next event; bumped by every write, and by the end.
    head: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    events: BTreeMap<u64, Event>,
    next: u64,
    /// Where the latest state of a status line that is still moving stands.
    moving: HashMap<(Digest, String), u64>,
    /// Vertices that started and have not completed, by digest, as last reported.
    running: BTreeMap<Digest, castor_progress::Vertex>,
    ended: bool,
}

impl State {
    fn push(&mut self, event: Event) {
        match &event {
            Event::Status(status) => {
                let key = (status.vertex, status.id.clone());
                if let Some(older) = self.moving.remove(&key) {
                    self.events.remove(&older);
                }
                if status.completed.is_none() {
                    self.moving.insert(key, self.next);
                }
            }
            Event::Vertex(vertex) => {
                if let Some(digest) = vertex.digest {
                    if vertex.started.is_some() && vertex.completed.is_none() {
                        self.running.insert(digest, vertex.clone());
                    } else {
                        self.running.remove(&digest);
                    }
                }
            }
            Event::Log(_) | Event::Warning(_) => {}
        }
        self.events.insert(self.next, event);
        self.next += 1;
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self { state: Mutex::default(), head: watch::channel(0).0 }
    }
}

impl Sink for Journal {
    fn send(&self, event: Event) {
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        state.push(event);
        self.head.send_replace(state.next);
    }
}

impl Journal {
    /// Ends the build's progress: vertices that never completed were cancelled, and later events are dropped.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        for (_, mut vertex) in std::mem::take(&mut state.running) {
            vertex.completed = Some(Timestamp::now());
            vertex.error = "context canceled".into();
            state.push(Event::Vertex(vertex));
        }
        state.ended = true;
        self.head.send_modify(|head| *head = state.next + 1);
    }

    /// Everything from the start, then what follows.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher { journal: self.clone(), head: self.head.subscribe(), cursor: 0 }
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().events.values().cloned().collect()
    }

    /// How many steps there are, and how many of them completed.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let mut seen: HashMap<Digest, (bool, bool)> = HashMap::new();
        let mut counts = Counts::default();
        for event in state.events.values() {
            match event {
                Event::Vertex(vertex) => {
                    let Some(digest) = vertex.digest else { continue };
                    let (cached, completed) = seen.entry(digest).or_default();
                    *cached |= vertex.cached;
                    *completed |= vertex.completed.is_some();
                }
                Event::Warning(_) => counts.warnings += 1,
                Event::Status(_) | Event::Log(_) => {}
            }
        }
        counts.cached = seen.values().filter(|(cached, _)| *cached).count();
        counts.completed = seen.values().filter(|(_, completed)| *completed).count();
        counts.total = seen.len();
        counts
    }

    /// Names of the vertices that are running.
    pub fn running(&self) -> Vec<String> {
        self.state.lock().running.values().map(|vertex| vertex.name.clone()).collect()
    }
}

/// What a journal amounts to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps whose result came from the cache.
    pub cached: usize,
    /// Steps that completed.
    pub completed: usize,
    /// Steps in all.
    pub total: usize,
    /// Warnings.
    pub warnings: usize,
}

/// Follows a journal.
#[derive(Debug)]
pub struct Watcher {
    journal: Arc<Journal>,
    head: watch::Receiver<u64>,
    cursor: u64,
}

impl Watcher {
    /// The events since the last call, at least one; `None` once the build has ended and all was seen.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            self.head.mark_unchanged();
            let (events, ended) = {
                let state = self.journal.state.lock();
                let events: Vec<Event> = state.events.range(self.cursor..).map(|(_, event)| event.clone()).collect();
                self.cursor = state.next;
                (events, state.ended)
            };
            if !events.is_empty() {
                return Some(events);
            }
            if ended || self.head.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_progress::{Reporter, Vertex};

    fn vertex(name: &str, completed: bool) -> Event {
        Event::Vertex(Vertex {
            digest: Some(Digest::of(name)),
            name: name.into(),
            started: Some(Timestamp::now()),
            completed: completed.then(Timestamp::now),
            ..Vertex::default()
        })
    }

    #[tokio::test]
    async fn a_late_watcher_sees_everything_but_replaced_statuses() {
        let journal = Arc::new(Journal::default());
        let reporter = Reporter::new(Digest::of("a"), journal.clone());
        journal.send(vertex("a", false));
        let mut task = reporter.start("x", "downloading", 3);
        task.update(1);
        task.update(2);
        reporter.log(1, "out".into());
        let events = journal.watch().next().await.unwrap();
        let statuses: Vec<i64> =
            events.iter().filter_map(|e| if let Event::Status(s) = e { Some(s.current) } else { None }).collect();
        assert_eq!((events.len(), statuses), (3, vec![2]));
    }

    #[tokio::test]
    async fn a_watcher_ends_with_the_build_and_running_steps_are_cancelled() {
        let journal = Arc::new(Journal::default());
        let mut watcher = journal.watch();
        journal.send(vertex("done", true));
        journal.send(vertex("running", false));
        let follow = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(events) = watcher.next().await {
                all.extend(events);
            }
            all
        });
        journal.end();
        journal.send(vertex("late", true));
        let events = follow.await.unwrap();
        let Some(Event::Vertex(last)) = events.last() else { panic!("no vertex") };
        assert_eq!((last.name.as_str(), last.error.as_str(), events.len()), ("running", "context canceled", 3));
        assert_eq!(journal.counts(), Counts { completed: 2, total: 2, ..Counts::default() });
    }
}
