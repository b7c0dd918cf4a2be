//! Single flight: many ask, one works.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Scope, panic_message};

/// Work that ended without a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Aborted {
    /// The work panicked.
    #[error("internal error: panic: {0}")]
    Panicked(String),
    /// The runtime dropped the task.
    #[error("the task was dropped before it ended")]
    Dropped,
}

/// Runs at most one piece of work per key at a time; all who ask for the key meanwhile get its value.
///
/// The work runs in a task of its own. When the last one who waits leaves (its future is dropped), the work's token is
/// cancelled; who asks for the key before it has ended waits for that end and then starts anew, so two pieces of work
/// for one key never overlap. Nothing is remembered after the work has ended.
pub struct Flight<K, V> {
    scope: Scope,
    table: Arc<Mutex<HashMap<K, Arc<Entry<V>>>>>,
}

impl<K, V> Clone for Flight<K, V> {
    fn clone(&self) -> Self {
        Self { scope: self.scope.clone(), table: self.table.clone() }
    }
}

impl<K, V> fmt::Debug for Flight<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("scope", &self.scope.path()).field("running", &self.table.lock().len()).finish()
    }
}

struct Entry<V> {
    token: CancellationToken,
    /// Counted under the table's lock.
    waiters: Mutex<usize>,
    done: watch::Receiver<Option<Result<V, Aborted>>>,
}

/// One who waits; leaving is dropping it.
struct Waiter<V> {
    entry: Arc<Entry<V>>,
}

impl<V> Drop for Waiter<V> {
    fn drop(&mut self) {
        let mut waiters = self.entry.waiters.lock();
        *waiters -= 1;
        if *waiters == 0 {
            self.entry.token.cancel();
        }
    }
}

impl<K, V> Flight<K, V>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A table whose work runs in `scope`.
    pub fn new(scope: &Scope) -> Self {
        Self { scope: scope.clone(), table: Arc::default() }
    }

    /// Joins the work for `key`, or begins it with `work`, and waits for its value.
    ///
    /// `work` gets the token that is cancelled when nobody waits any more or the scope ends.
    pub async fn run<F, W>(&self, key: K, work: W) -> Result<V, Aborted>
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut work = Some(work);
        loop {
            match self.join(&key, &mut work) {
                Joined::Waiting(waiter) => {
                    let mut done = waiter.entry.done.clone();
                    let value = done.wait_for(Option::is_some).await.ok().and_then(|value| value.clone());
                    return value.unwrap_or(Err(Aborted::Dropped));
                }
                // Nobody wanted it any more: let it end, its value is that of a cancelled task.
                Joined::Ending(mut done) => {
                    let _ = done.wait_for(Option::is_some).await;
                }
            }
        }
    }

    /// How many pieces of work are under way.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn join<F, W>(&self, key: &K, work: &mut Option<W>) -> Joined<V>
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let mut table = self.table.lock();
        if let Some(entry) = table.get(key) {
            let mut waiters = entry.waiters.lock();
            if *waiters == 0 {
                return Joined::Ending(entry.done.clone());
            }
            *waiters += 1;
            return Joined::Waiting(Waiter { entry: entry.clone() });
        }
        let Some(work) = work.take() else {
            // The work is taken only where this returns `Waiting`, which ends the caller's loop.
            unreachable!("work of a flight is begun once");
        };
        let (send, done) = watch::channel(None);
        let token = self.scope.token().child_token();
        let entry = Arc::new(Entry { token: token.clone(), waiters: Mutex::new(1), done });
        table.insert(key.clone(), entry.clone());
        // Removes the entry before anybody sees the value, also when the task is dropped.
        let landing = Landing { table: self.table.clone(), key: key.clone() };
        let future = work(token);
        self.scope.spawn_named("flight", async move {
            let value = AssertUnwindSafe(future).catch_unwind().await;
            drop(landing);
            send.send_replace(Some(value.map_err(|payload| Aborted::Panicked(panic_message(payload.as_ref())))));
        });
        Joined::Waiting(Waiter { entry })
    }
}

enum Joined<V> {
    Waiting(Waiter<V>),
    Ending(watch::Receiver<Option<Result<V, Aborted>>>),
}

struct Landing<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Arc<Entry<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_ask_and_one_works() {
        let flight = Flight::<u8, usize>::new(&Scope::root("test"));
        let count = Arc::new(AtomicUsize::new(0));
        let asks = (0..10).map(|_| {
            let count = count.clone();
            flight.run(1, |_| async move {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst) + 1
            })
        });
        let values = futures::future::join_all(asks).await;
        assert!(values.iter().all(|value| value == &Ok(1)), "{values:?}");
        assert!(flight.is_empty());
    }

    #[tokio::test]
    async fn the_last_waiter_cancels_and_the_next_starts_anew_after_the_end() {
        let scope = Scope::root("test");
        let flight = Flight::<u8, &str>::new(&scope);
        let overlap = Arc::new(AtomicUsize::new(0));
        let (first, second) = (overlap.clone(), overlap.clone());
        let (started, mut was_started) = tokio::sync::mpsc::channel(1);
        let ask = flight.run(1, |token| async move {
            first.fetch_add(1, Ordering::SeqCst);
            started.send(()).await.ok();
            token.cancelled().await;
            tokio::task::yield_now().await;
            first.fetch_sub(1, Ordering::SeqCst);
            "cancelled"
        });
        tokio::select! {
            _ = ask => panic!("not cancelled"),
            _ = was_started.recv() => {}
        }
        let value = flight
            .run(1, |_| async move {
                assert_eq!(second.load(Ordering::SeqCst), 0, "two at once");
                "anew"
            })
            .await;
        assert_eq!(value, Ok("anew"));
        scope.close(Duration::from_secs(1)).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_for_everybody() {
        let flight = Flight::<u8, ()>::new(&Scope::root("test"));
        let (a, b) = tokio::join!(
            flight.run(1, |_| async {
                tokio::task::yield_now().await;
                panic!("boom")
            }),
            flight.run(1, |_| async {})
        );
        assert_eq!((a, b), (Err(Aborted::Panicked("boom".into())), Err(Aborted::Panicked("boom".into()))));
        assert_eq!(flight.run(1, |_| async {}).await, Ok(()));
    }
}
