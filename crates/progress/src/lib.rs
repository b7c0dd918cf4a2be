//! Progress of a build: vertices and what happens in them, and the sink that everybody reports to.
//!
//! Progress flows up only. A [`Sink`] never blocks and never fails: whoever works must not wait for whoever watches.

mod tally;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use castor_oci::Digest;
pub use jiff::Timestamp;
pub use tally::Tally;

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A vertex appeared, started or completed; always the whole state.
    Vertex(Vertex),
    /// A named piece of work inside a vertex moved on.
    Status(Status),
    /// A vertex printed something.
    Log(Log),
    /// A vertex has something to say to the user.
    Warning(Warning),
}

/// The state of a vertex.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vertex {
    /// Names the vertex.
    pub digest: Option<Digest>,
    /// The vertices it needs.
    pub inputs: Vec<Digest>,
    /// What users read.
    pub name: String,
    /// Its result came from the cache.
    pub cached: bool,
    /// When work began.
    pub started: Option<Timestamp>,
    /// When work ended.
    pub completed: Option<Timestamp>,
    /// Why it failed; empty if it did not.
    pub error: String,
    /// The group it is shown in.
    pub group: Option<Group>,
}

/// Vertices that are shown as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Names the group.
    pub id: String,
    /// What users read.
    pub name: String,
    /// Shown only if a member that is not weak is.
    pub weak: bool,
}

/// The state of one piece of work inside a vertex.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Names it within the vertex, and labels its line.
    pub id: String,
    /// The vertex.
    pub vertex: Digest,
    /// What is being done (`downloading`); may be empty.
    pub name: String,
    /// Units done, bytes mostly.
    pub current: i64,
    /// Units in all; 0 where it is not known.
    pub total: i64,
    /// When this was so.
    pub timestamp: Timestamp,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

/// Output of a vertex.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The vertex.
    pub vertex: Digest,
    /// 1 is standard output, 2 standard error.
    pub stream: i64,
    /// The bytes, as they came.
    pub data: Bytes,
    /// When.
    pub timestamp: Timestamp,
}

/// A warning of a vertex.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// The vertex.
    pub vertex: Digest,
    /// 1 is the highest.
    pub level: i64,
    /// One line.
    pub short: Bytes,
    /// More lines.
    pub detail: Vec<Bytes>,
    /// Where to read on.
    pub url: String,
    /// The file it is about.
    pub source: Option<SourceInfo>,
    /// Where in that file.
    pub ranges: Vec<Range>,
}

/// A source file that vertices come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// Its name.
    pub filename: String,
    /// Its text.
    pub data: Bytes,
    /// Its language.
    pub language: String,
}

/// A range in a source file; lines count from 1, characters from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First line and character.
    pub start: (i32, i32),
    /// Last line and character.
    pub end: (i32, i32),
}

/// Where progress goes.
pub trait Sink: Send + Sync {
    /// Takes an event. Must not block.
    fn send(&self, event: Event);
}

/// A sink that drops everything.
#[derive(Debug, Clone, Copy)]
pub struct Discard;

impl Sink for Discard {
    fn send(&self, _: Event) {}
}

/// Reports what one vertex does.
#[derive(Clone)]
pub struct Reporter {
    vertex: Digest,
    sink: Arc<dyn Sink>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reporter").field(&self.vertex).finish()
    }
}

impl Reporter {
    /// A reporter for `vertex`.
    pub fn new(vertex: Digest, sink: Arc<dyn Sink>) -> Self {
        Self { vertex, sink }
    }

    /// A reporter that nobody listens to.
    pub fn discard() -> Self {
        Self::new(Digest::of(""), Arc::new(Discard))
    }

    /// The vertex reported on.
    pub fn vertex(&self) -> Digest {
        self.vertex
    }

    /// The sink behind it.
    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Begins a piece of work; it is completed when the returned [`Task`] is finished or dropped.
    pub fn start(&self, id: impl Into<String>, name: impl Into<String>, total: i64) -> Task {
        let task = Task {
            reporter: self.clone(),
            status: Status {
                id: id.into(),
                vertex: self.vertex,
                name: name.into(),
                current: 0,
                total,
                timestamp: Timestamp::now(),
                started: Some(Timestamp::now()),
                completed: None,
            },
        };
        task.emit();
        task
    }

    /// Passes on output; stream 1 is standard output, 2 standard error.
    pub fn log(&self, stream: i64, data: Bytes) {
        self.sink.send(Event::Log(Log { vertex: self.vertex, stream, data, timestamp: Timestamp::now() }));
    }

    /// Warns the user in one line.
    pub fn warn(&self, short: impl Into<Bytes>) {
        self.sink.send(Event::Warning(Warning {
            vertex: self.vertex,
            level: 1,
            short: short.into(),
            detail: Vec::new(),
            url: String::new(),
            source: None,
            ranges: Vec::new(),
        }));
    }
}

/// A piece of work under way.
#[derive(Debug)]
pub struct Task {
    reporter: Reporter,
    status: Status,
}

impl Task {
    /// Says how far it is.
    pub fn update(&mut self, current: i64) {
        self.status.current = current;
        self.emit();
    }

    /// Says how far it is, of how much, and under which name.
    pub fn set(&mut self, name: &str, current: i64, total: i64) {
        name.clone_into(&mut self.status.name);
        self.status.current = current;
        self.status.total = total;
        self.emit();
    }

    /// Ends it; so does dropping it.
    pub fn finish(self) {}

    fn emit(&self) {
        let status = Status { timestamp: Timestamp::now(), ..self.status.clone() };
        self.reporter.sink.send(Event::Status(status));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.status.completed = Some(Timestamp::now());
        self.emit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Record(Mutex<Vec<Event>>);

    impl Sink for Record {
        fn send(&self, event: Event) {
            self.0.lock().push(event);
        }
    }

    #[test]
    fn a_dropped_task_is_completed() {
        let sink = Arc::new(Record::default());
        let reporter = Reporter::new(Digest::of("v"), sink.clone());
        let mut task = reporter.start("a", "downloading", 10);
        task.update(10);
        drop(task);
        let events = sink.0.lock();
        let Some(Event::Status(last)) = events.last() else { panic!("no status") };
        assert_eq!((last.current, last.completed.is_some()), (10, true));
    }
}
