//! Progress: recorded per vertex, fanned out to jobs, completed per job.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use castor_oci::Digest;
use castor_progress::{Event, Sink, Timestamp, Vertex};
use parking_lot::Mutex;

/// How many bytes of a vertex's output are kept for those who join later.
const REPLAYED_LOG_BYTES: usize = 4 << 20;

/// A sink that remembers what it was told and repeats it to whoever subscribes later.
#[derive(Default)]
pub struct Recorder {
    state: Mutex<Recorded>,
}

#[derive(Default)]
struct Recorded {
    /// In order of first appearance; states are replaced by later states.
    events: Vec<Event>,
    vertices: HashMap<Digest, usize>,
    statuses: HashMap<(Digest, String), usize>,
    log_bytes: usize,
    subscribers: Vec<(u64, Arc<dyn Sink>)>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("events", &self.state.lock().events.len()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Tells `sink` all that happened so far and from now on. A second subscription of the same `id` changes nothing.
    pub fn subscribe(&self, id: u64, sink: Arc<dyn Sink>) {
        // The lock is held while sinks are told, or events would overtake the replay.
        let mut state = self.state.lock();
        if state.subscribers.iter().all(|(present, _)| *present != id) {
            state.events.iter().for_each(|event| sink.send(event.clone()));
            state.subscribers.push((id, sink));
        }
    }

    /// Tells the subscriber `id` nothing more.
    pub fn unsubscribe(&self, id: u64) {
        self.state.lock().subscribers.retain(|(present, _)| *present != id);
    }
}

impl Recorded {
    fn remember(&mut self, event: &Event) {
        let slot = match event {
            Event::Vertex(vertex) => {
                vertex.digest.map(|digest| *self.vertices.entry(digest).or_insert(self.events.len()))
            }
            Event::Status(status) => {
                let key = (status.vertex, status.id.clone());
                Some(*self.statuses.entry(key).or_insert(self.events.len()))
            }
            Event::Log(log) => {
                self.log_bytes += log.data.len();
                if self.log_bytes > REPLAYED_LOG_BYTES {
                    return;
                }
                None
            }
            Event::Warning(_) => None,
        };
        match slot.and_then(|slot| self.events.get_mut(slot)) {
            Some(place) => *place = event.clone(),
            None => self.events.push(event.clone()),
        }
    }
}

impl Sink for Recorder {
    fn send(&self, event: Event) {
        let mut state = self.state.lock();
        state.remember(&event);
        state.subscribers.iter().for_each(|(_, sink)| sink.send(event.clone()));
    }
}

/// Passes on what happens in an execution as if it happened in the vertex `digest`.
pub(crate) struct Renamed {
    pub(crate) digest: Digest,
    pub(crate) sink: Arc<dyn Sink>,
}

impl Sink for Renamed {
    fn send(&self, mut event: Event) {
        match &mut event {
            Event::Vertex(_) => return,
            Event::Status(status) => status.vertex = self.digest,
            Event::Log(log) => log.vertex = self.digest,
            Event::Warning(warning) => warning.vertex = self.digest,
        }
        self.sink.send(event);
    }
}

/// The sink of a job: completes the stream of vertices as clients expect it.
///
/// An input of a vertex that started was not needed if it has not run by then, and is reported as cached. At the end,
/// what started and did not complete is reported as cancelled.
pub struct JobSink {
    state: Mutex<JobState>,
    sink: Arc<dyn Sink>,
}

#[derive(Default)]
struct JobState {
    vertices: HashMap<Digest, Vertex>,
    /// Vertices whose result came from the cache, and all that those need.
    cached: HashSet<Digest>,
}

impl fmt::Debug for JobSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobSink").finish_non_exhaustive()
    }
}

impl JobSink {
    /// A job's sink in front of `sink`.
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self { state: Mutex::default(), sink }
    }

    /// Completes what has started and not completed, with "context canceled" unless it was cached.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        let JobState { vertices, cached } = &mut *state;
        for vertex in vertices.values_mut().filter(|vertex| vertex.started.is_some() && vertex.completed.is_none()) {
            vertex.completed = Some(Timestamp::now());
            if vertex.error.is_empty() && vertex.digest.is_none_or(|digest| !cached.contains(&digest)) {
                "context canceled".clone_into(&mut vertex.error);
            }
            self.sink.send(Event::Vertex(vertex.clone()));
        }
    }
}

impl JobState {
    /// Takes in a state of a vertex; what is to be reported, in order.
    fn enter(&mut self, vertex: Vertex) -> Vec<Vertex> {
        let mut reported = Vec::new();
        let mut pending = vec![vertex];
        while let Some(vertex) = pending.pop() {
            if vertex.started.is_some() {
                for input in &vertex.inputs {
                    let Some(known) = self.vertices.get(input) else { continue };
                    if known.completed.is_none() && known.started.is_none() && !known.cached {
                        let mut skipped = known.clone();
                        skipped.cached = true;
                        (skipped.started, skipped.completed) = (vertex.started, vertex.started);
                        pending.push(skipped);
                    }
                }
            }
            if let Some(digest) = vertex.digest {
                self.vertices.insert(digest, vertex.clone());
            }
            if vertex.cached {
                self.mark_cached(&vertex);
            }
            reported.push(vertex);
        }
        // Inputs are reported before what needs them.
        reported.reverse();
        reported
    }

    fn mark_cached(&mut self, vertex: &Vertex) {
        let mut pending: Vec<_> = vertex.digest.into_iter().collect();
        while let Some(digest) = pending.pop() {
            if self.cached.insert(digest) {
                pending.extend(self.vertices.get(&digest).into_iter().flat_map(|vertex| vertex.inputs.iter().copied()));
            }
        }
    }
}

impl Sink for JobSink {
    fn send(&self, event: Event) {
        match event {
            Event::Vertex(vertex) => {
                let mut state = self.state.lock();
                for vertex in state.enter(vertex) {
                    self.sink.send(Event::Vertex(vertex));
                }
            }
            event => self.sink.send(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collect(Mutex<Vec<Vertex>>);

    impl Sink for Collect {
        fn send(&self, event: Event) {
            if let Event::Vertex(vertex) = event {
                self.0.lock().push(vertex);
            }
        }
    }

    fn vertex(name: &str, inputs: &[&str]) -> Vertex {
        Vertex {
            digest: Some(Digest::of(name)),
            name: name.into(),
            inputs: inputs.iter().map(Digest::of).collect(),
            ..Vertex::default()
        }
    }

    #[test]
    fn inputs_that_never_ran_are_cached_and_what_never_ended_is_cancelled() {
        let collect = Arc::new(Collect::default());
        let sink = JobSink::new(collect.clone());
        for (name, inputs) in [("a", vec![]), ("b", vec!["a"]), ("c", vec!["b"])] {
            sink.send(Event::Vertex(vertex(name, &inputs)));
        }
        let now = Timestamp::now();
        sink.send(Event::Vertex(Vertex { started: Some(now), ..vertex("c", &["b"]) }));
        sink.finish();
        let seen = collect.0.lock();
        let after: Vec<_> = seen[3..].iter().map(|v| (v.name.as_str(), v.cached, v.error.as_str())).collect();
        assert_eq!(after, [("a", true, ""), ("b", true, ""), ("c", false, ""), ("c", false, "context canceled")]);
    }

    #[test]
    fn a_recorder_replays_states_once_and_logs_in_order() {
        let recorder = Recorder::default();
        for _ in 0..3 {
            recorder.send(Event::Vertex(vertex("a", &[])));
        }
        let collect = Arc::new(Collect::default());
        recorder.subscribe(1, collect.clone());
        recorder.subscribe(1, collect.clone());
        assert_eq!(collect.0.lock().len(), 1);
    }
}
