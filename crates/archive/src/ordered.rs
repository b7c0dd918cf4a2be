//! Work done by several threads whose results are wanted in the order it was given out.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// A job panicked, and its result is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread panicked")]
pub struct Panicked;

/// A few threads, and a queue of what they are to give.
///
/// With one thread, or none, jobs are done by the caller when it pushes them. Dropping it waits for the jobs
/// that run and forgets the others.
pub struct Ordered<T> {
    jobs: Option<SyncSender<(Job<T>, SyncSender<T>)>>,
    threads: Vec<JoinHandle<()>>,
    results: VecDeque<Receiver<T>>,
}

impl<T> std::fmt::Debug for Ordered<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ordered").field("threads", &self.threads.len()).field("queued", &self.results.len()).finish()
    }
}

impl<T: Send + 'static> Ordered<T> {
    /// Starts up to `threads` threads; fewer if the system has no more.
    pub fn new(threads: usize) -> Self {
        let mut pool = Self { jobs: None, threads: Vec::new(), results: VecDeque::new() };
        if threads < 2 {
            return pool;
        }
        let (jobs, queue) = sync_channel::<(Job<T>, SyncSender<T>)>(threads);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            let work = move || {
                loop {
                    // The lock is held while waiting: whoever waits gets the next job.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((job, result)) = next else { return };
                    // Whoever wanted it may be gone.
                    let _ = result.send(job());
                }
            };
            match std::thread::Builder::new().name(format!("compress-{number}")).spawn(work) {
                Ok(thread) => pool.threads.push(thread),
                Err(_) => break,
            }
        }
        if !pool.threads.is_empty() {
            pool.jobs = Some(jobs);
        }
        pool
    }

    /// Results that are queued, done or not.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether no result is queued.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// Whether enough is queued to keep all threads busy: take a result before pushing more.
    pub fn is_full(&self) -> bool {
        self.results.len() > 2 * self.threads.len()
    }

    /// Gives out a job. Waits if the threads are behind.
    pub fn push(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        let (result, receiver) = sync_channel(1);
        match &self.jobs {
            // If all threads are gone, the job is dropped and its result never comes: `pop` says so.
            Some(jobs) => drop(jobs.send((Box::new(job), result))),
            None => drop(result.send(job())),
        }
        self.results.push_back(receiver);
    }

    /// The result of the oldest job, waiting for it; `None` if there is none.
    pub fn pop(&mut self) -> Option<Result<T, Panicked>> {
        Some(self.results.pop_front()?.recv().map_err(|_| Panicked))
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.results.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by `pop`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        for threads in [0, 1, 2, 5] {
            let mut pool = Ordered::new(threads);
            let mut seen = Vec::new();
            for number in 0..200u32 {
                while pool.is_full() {
                    seen.push(pool.pop().unwrap().unwrap());
                }
                pool.push(move || number * 2);
            }
            while let Some(result) = pool.pop() {
                seen.push(result.unwrap());
            }
            assert_eq!(seen, (0..200).map(|number| number * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let mut pool = Ordered::new(2);
        pool.push(|| -> u32 { panic!("expected by the test") });
        pool.push(|| 1);
        assert_eq!(pool.pop(), Some(Err(Panicked)));
        assert_eq!(pool.pop(), Some(Ok(1)));
        assert_eq!(pool.pop(), None);
    }
}
