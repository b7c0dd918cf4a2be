//! Bytes of several streams that are one piece of work.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Reporter, Task};

/// What is done sooner is not counted for anybody: nobody would see it, and BuildKit does not count it either.
const QUIET: Duration = Duration::from_secs(1);

/// Between two reports.
const REPORT: Duration = Duration::from_millis(250);

/// Counts bytes for a status of a vertex. While it runs for long, clients see how many there are; once it has ended it
/// looks as BuildKit's does, without any.
#[derive(Debug)]
pub struct Tally {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    task: Option<Task>,
    name: String,
    current: i64,
    total: i64,
    next: Instant,
}

impl Tally {
    /// Begins a piece of work of `total` bytes; 0 if it is not known. `name` says what is being done and may be empty.
    pub fn start(reporter: &Reporter, id: impl Into<String>, name: &str, total: u64) -> Self {
        Self::start_at(reporter, id, name, total, Instant::now())
    }

    fn start_at(reporter: &Reporter, id: impl Into<String>, name: &str, total: u64, now: Instant) -> Self {
        let (task, name) = (Some(reporter.start(id, name, 0)), name.to_owned());
        let total = i64::try_from(total).unwrap_or(i64::MAX);
        let state = State { task, name, current: 0, total, next: now + QUIET };
        Self { state: Mutex::new(state) }
    }

    /// So many bytes more; or fewer, where something was begun anew.
    pub fn add(&self, bytes: i64) {
        self.add_at(bytes, Instant::now());
    }

    fn add_at(&self, bytes: i64, now: Instant) {
        let mut state = self.state.lock();
        state.current = state.current.saturating_add(bytes).max(0);
        let State { task, name, current, total, next } = &mut *state;
        if now >= *next
            && let Some(task) = task
        {
            *next = now + REPORT;
            task.set(name, *current, *total);
        }
    }

    /// Ends it; so does dropping it, and what others still add counts for nobody.
    pub fn finish(&self) {
        let mut state = self.state.lock();
        if let Some(mut task) = state.task.take() {
            task.set(&state.name, 0, 0);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Sink, Status};
    use castor_oci::Digest;
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
        let tally =
            Tally::start_at(&Reporter::new(Digest::of("v"), sink.clone()), "pushing layers", "push", 100, begin);
        for (bytes, when) in [(10, 0), (10, 999), (10, 1000), (10, 1100), (-5, 1300), (10, 2000)] {
            tally.add_at(bytes, at(when));
        }
        tally.finish();
        // Others may still be at it.
        tally.add_at(10, at(9000));
        assert!(sink.0.lock().iter().all(|status| status.name == "push"));
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
        let tally = Tally::start(&Reporter::new(Digest::of("v"), sink.clone()), "x", "", 0);
        drop(tally);
        let seen = sink.0.lock();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|status| (status.current, status.total) == (0, 0)));
    }
}
