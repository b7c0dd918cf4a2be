//! Scopes: trees of named tasks that end together.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A named set of tasks with a cancellation token; scopes form a tree.
///
/// Cancelling a scope cancels its descendants. A scope counts the tasks of its descendants as its own, so a closed
/// scope has nothing running below it either. Clones are handles of the same scope.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
}

struct Inner {
    path: String,
    token: CancellationToken,
    tracker: TaskTracker,
    /// The scopes above, nearest first: a task holds a place in each of their trackers.
    ancestors: Vec<TaskTracker>,
    names: Arc<Mutex<Names>>,
    /// In order of creation. Weak: a scope that nobody holds and nothing runs in needs no closing.
    children: Mutex<Vec<Weak<Inner>>>,
}

/// The names of all running tasks of a tree of scopes.
#[derive(Default)]
struct Names {
    next: u64,
    running: BTreeMap<u64, String>,
}

/// Tasks that did not end in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("still running after {waited:?} in {scope}: {}", names.join(", "))]
pub struct StillRunning {
    /// The scope that was closed.
    pub scope: String,
    /// How long was waited.
    pub waited: Duration,
    /// What is still running, oldest first.
    pub names: Vec<String>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("path", &self.inner.path).field("running", &self.running()).finish()
    }
}

/// Removes a task's name, and its places in the trackers, when the task ends in whatever way.
struct Running {
    names: Arc<Mutex<Names>>,
    id: u64,
    _ancestors: Vec<TaskTrackerToken>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.names.lock().running.remove(&self.id);
    }
}

impl Scope {
    /// A scope without a parent.
    pub fn root(name: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                path: name.into(),
                token: CancellationToken::new(),
                tracker: TaskTracker::new(),
                ancestors: Vec::new(),
                names: Arc::default(),
                children: Mutex::default(),
            }),
        }
    }

    /// A scope below this one, cancelled with it.
    pub fn child(&self, name: impl AsRef<str>) -> Self {
        let parent = &self.inner;
        let mut ancestors = vec![parent.tracker.clone()];
        ancestors.extend(parent.ancestors.iter().cloned());
        let child = Self {
            inner: Arc::new(Inner {
                path: format!("{}/{}", parent.path, name.as_ref()),
                token: parent.token.child_token(),
                tracker: TaskTracker::new(),
                ancestors,
                names: parent.names.clone(),
                children: Mutex::default(),
            }),
        };
        let mut children = parent.children.lock();
        if children.len() == children.capacity() {
            children.retain(|weak| weak.strong_count() > 0);
        }
        children.push(Arc::downgrade(&child.inner));
        child
    }

    /// The path of names from the root, `/` between them.
    pub fn path(&self) -> &str {
        &self.inner.path
    }

    /// Cancelled when the scope is, or one above it.
    pub fn token(&self) -> &CancellationToken {
        &self.inner.token
    }

    /// Asks everything in the scope to end.
    pub fn cancel(&self) {
        self.inner.token.cancel();
    }

    /// Runs `future` as a task of this scope, named by the place of the call.
    ///
    /// The task is not dropped on cancellation: it watches [`Scope::token`] itself.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let place = Location::caller();
        self.spawn_named(format!("{}:{}", place.file(), place.line()), future)
    }

    /// Runs `future` as a task of this scope with a name that a person can read in [`StillRunning`].
    pub fn spawn_named<F>(&self, name: impl fmt::Display, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let inner = &self.inner;
        let id = {
            let mut names = inner.names.lock();
            names.next += 1;
            let id = names.next;
            names.running.insert(id, format!("{}/{name}", inner.path));
            id
        };
        let running = Running {
            names: inner.names.clone(),
            id,
            _ancestors: inner.ancestors.iter().map(TaskTracker::token).collect(),
        };
        // The scope itself stays alive as long as its tasks do, so a parent can close it first.
        let scope = inner.clone();
        inner.tracker.spawn(async move {
            let output = future.await;
            drop(running);
            drop(scope);
            output
        })
    }

    /// The names of the tasks that run in this scope and below it, oldest first.
    pub fn running(&self) -> Vec<String> {
        let prefix = format!("{}/", self.inner.path);
        let names = self.inner.names.lock();
        names.running.values().filter(|name| name.starts_with(&prefix)).cloned().collect()
    }

    /// Waits until nothing runs in the scope, without cancelling anything. Tasks may still be added meanwhile.
    pub async fn idle(&self) {
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
        self.inner.tracker.reopen();
    }

    /// Cancels the scope and waits for its tasks: scopes below it first, the youngest first, then its own. All
    /// together take at most `limit`.
    ///
    /// The order lets what was built on something end before that something does. When the time is up everything is
    /// cancelled and what still runs is named.
    pub async fn close(&self, limit: Duration) -> Result<(), StillRunning> {
        let start = Instant::now();
        let closed = tokio::time::timeout_at(start + limit, async {
            // Depth first, children before parents, without recursion.
            let mut order = Vec::new();
            let mut pending = vec![self.inner.clone()];
            while let Some(scope) = pending.pop() {
                pending.extend(scope.children.lock().iter().filter_map(Weak::upgrade));
                order.push(scope);
            }
            for scope in order.iter().rev().filter(|scope| !Arc::ptr_eq(scope, &self.inner)) {
                scope.token.cancel();
                scope.tracker.close();
                scope.tracker.wait().await;
            }
            self.inner.token.cancel();
            self.inner.tracker.close();
            self.inner.tracker.wait().await;
        })
        .await;
        self.inner.token.cancel();
        match closed {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(StillRunning { scope: self.inner.path.clone(), waited: start.elapsed(), names: self.running() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_cancels_and_waits_for_descendants() {
        let root = Scope::root("daemon");
        let child = root.child("build");
        let grandchild = child.child("step");
        let token = grandchild.token().clone();
        let task = grandchild.spawn_named("exec", async move { token.cancelled().await });
        assert_eq!(root.running(), ["daemon/build/step/exec"]);
        root.close(Duration::from_secs(5)).await.unwrap();
        assert!(task.is_finished() || task.await.is_ok());
        assert!(root.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_is_bounded_and_names_what_runs() {
        let root = Scope::root("daemon");
        let (_keep, stuck) = tokio::sync::oneshot::channel::<()>();
        root.child("a").spawn_named("stuck", async move { stuck.await.ok() });
        let error = root.close(Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(error.names, ["daemon/a/stuck"]);
        assert_eq!(error.waited, Duration::from_secs(3));
        assert!(root.token().is_cancelled());
    }

    #[tokio::test]
    async fn children_end_before_their_parents() {
        let root = Scope::root("daemon");
        let order = Arc::new(Mutex::new(Vec::new()));
        let child = root.child("child");
        for (name, scope) in [("parent", &root), ("child", &child)] {
            let (order, token) = (order.clone(), scope.token().clone());
            scope.spawn(async move {
                token.cancelled().await;
                order.lock().push(name);
            });
        }
        root.close(Duration::from_secs(5)).await.unwrap();
        assert_eq!(*order.lock(), ["child", "parent"]);
    }

    #[tokio::test]
    async fn a_panicking_task_leaves_no_name_behind() {
        let root = Scope::root("daemon");
        assert!(root.spawn(async { panic!("boom") }).await.is_err());
        assert!(root.running().is_empty());
        root.close(Duration::from_secs(1)).await.unwrap();
    }
}
