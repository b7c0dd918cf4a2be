//! Bytes of several streams that are one piece of work.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use castor_progress::{Reporter, Task};

/// What is done sooner is not counted for anybody: nobody would see it, and BuildKit does not count it either.
const QUIET: Duration = Duration::from_secs(1);

/// Between two reports.
const REPORT: Duration = Duration::from_millis(250);

/// Counts bytes for a status of a vertex. While it runs for long, clients see how many there are; once it has ended it
/// looks as BuildKit's does, without any.
#[derive(Debug)]
pub(crate) struct Tally {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    task: Task,
    current: i64,
    total: i64,
    next: Instant,
}

impl Tally {
    /// Begins a piece of work of `total` bytes; 0 if it is not known.
    pub(crate) fn start(reporter: &Reporter, id: impl Into<String>, total: i64) -> Self {
        Self::start_at(reporter, id, total, Instant::now())
    }

    fn start_at(reporter: &Reporter, id: impl Into<String>, total: i64, now: Instant) -> Self {
        let task = reporter.start(id, "", 0);
        let state = State { task, current: 0, total, next: now + QUIET };
        Self { state: Mutex::new(state) }
    }

    /// So many bytes more; or fewer, where something was begun anew.
    pub(crate) fn add(&self, bytes: i64) {
        self.add_at(bytes, Instant::now());
    }

    fn add_at(&self, bytes: i64, now: Instant) {
        let mut state = self.state.lock();
        state.current = state.current.saturating_add(bytes).max(0);
        if now >= state.next {
            state.next = now + REPORT;
            let (current, total) = (state.current, state.total.max(0));
            state.task.set("", current, total);
        }
    }

    /// Ends it; so does dropping it.
    pub(crate) fn finish(self) {}
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.state.get_mut().task.set("", 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_oci::Digest;
    use castor_progress::{Event, Sink, Status};
    use std::sync::Arc;

    #[derive(Default)]
    struct Record(Mutex<Vec<Status>>);

    impl Sink for Record {
        fn send(&self, event: Event) {
            if let Event::Status(status) = event {
                self.0.lock().push(status);
            }
        }
    }

    #[test]
    fn long_work_is_counted_and_ends_without_numbers() {
        let sink = Arc::new(Record::default());
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let tally = Tally::start_at(&Reporter::new(Digest::of("v"), sink.clone()), "pushing layers", 100, begin);
        for (bytes, when) in [(10, 0), (10, 999), (10, 1000), (10, 1100), (-5, 1300), (10, 2000)] {
            tally.add_at(bytes, at(when));
        }
        tally.finish();
        let seen: Vec<(i64, i64, bool)> =
            sink.0.lock().iter().map(|status| (status.current, status.total, status.completed.is_some())).collect();
        assert_eq!(
            seen,
            [(0, 0, false), (30, 100, false), (35, 100, false), (45, 100, false), (0, 0, false), (0, 0, true)]
        );
    }

    #[test]
    fn short_work_is_as_before() {
        let sink = Arc::new(Record::default());
        let tally = Tally::start(&Reporter::new(Digest::of("v"), sink.clone()), "x", 0);
        drop(tally);
        let seen = sink.0.lock();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|status| (status.current, status.total) == (0, 0)));
    }
}
