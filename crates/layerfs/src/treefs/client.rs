//! The daemon's side of the process that serves trees.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use castor_mount::Detached;
use castor_task::Scope;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::wire::{Order, Report, Socket};
use crate::serve::{MAX_READ, ServedLayers};

/// The longest that a new mount may wait for its server: a machine may be busy, and a process that is stopped says nothing.
const START: Duration = Duration::from_secs(60);

/// How the process that serves trees is started: a program that calls [`serve_trees`](super::serve_trees) when it gets
/// these arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProgram {
    /// The program.
    pub path: PathBuf,
    /// What it is called in the list of processes.
    pub name: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A layer of a tree to be served.
pub(crate) struct TreeLayer<'a> {
    /// Its number among the served layers.
    pub number: u64,
    pub data: &'a File,
    pub complete: bool,
}

/// Why a tree could not be mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MountFailure {
    /// The server has ended: another one may do it.
    Ended,
    Other(String),
}

type Post = (Order, Vec<OwnedFd>);

/// The process, as long as it runs.
pub(crate) struct TreeServer {
    pid: u32,
    socket: Arc<Socket>,
    state: Arc<State>,
    /// What is sent by a thread of its own: the daemon never waits for a process that reads nothing.
    post: Sender<Post>,
    trees: AtomicU64,
}

#[derive(Default)]
struct State {
    /// It answers no more.
    ended: AtomicBool,
    /// It was told to end.
    closing: AtomicBool,
    /// Who waits for a tree to be served.
    mounting: Mutex<HashMap<u64, Sender<Result<(), String>>>>,
}

impl TreeServer {
    /// Starts the process; it asks for bytes of `layers`, and fetches run in `scope`.
    pub(crate) fn start(
        program: &ServerProgram,
        layers: Arc<ServedLayers>,
        scope: &Scope,
        runtime: &Handle,
    ) -> Result<Self, String> {
        let failed = |error: io::Error| format!("start {}: {error}", program.path.display());
        let (socket, theirs) = Socket::pair().map_err(failed)?;
        let child = Command::new(&program.path)
            .arg0(&program.name)
            .args(&program.arguments)
            .env_clear()
            .current_dir("/")
            // What a terminal sends to the daemon is not for it: it is wanted as long as the daemon is.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (pid, socket, state) = (child.id(), Arc::new(socket), Arc::new(State::default()));
        let (post, posted) = mpsc::channel();
        let desk = Desk {
            socket: socket.clone(),
            state: state.clone(),
            post: post.clone(),
            layers,
            scope: scope.clone(),
            runtime: runtime.clone(),
        };
        let server = Self { pid, socket: socket.clone(), state, post, trees: AtomicU64::new(0) };
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map_err(failed)
        };
        spawn("tree-server", Box::new(move || desk.run(child)))?;
        spawn("tree-post", Box::new(move || deliver(&socket, &posted)))?;
        Ok(server)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs and listens.
    pub(crate) fn is_alive(&self) -> bool {
        !self.state.ended.load(Ordering::Acquire)
    }

    /// Mounts the tree of `image`, whose devices are `layers`; reads of it wait no longer than `patience`. Blocks.
    pub(crate) fn mount(
        &self,
        image: &File,
        layers: &[TreeLayer<'_>],
        patience: Duration,
    ) -> Result<Detached, MountFailure> {
        let other = |error: String| MountFailure::Other(error);
        let mounted = castor_mount::fuse_tree("castor-tree", MAX_READ).map_err(|e| other(e.to_string()))?;
        let tree = self.trees.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = mpsc::channel();
        self.state.mounting.lock().insert(tree, answer);
        // In this order: who ends it drops the senders after saying so.
        if !self.is_alive() {
            return Err(MountFailure::Ended);
        }
        let failed = |error: io::Error| other(format!("pass files of layers to their server: {error}"));
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let mut posts = vec![(Order::Tree { tree, patience }, vec![mounted.device, read_only(image).map_err(failed)?])];
        for layer in layers {
            let order = Order::Layer { tree, layer: layer.number, complete: layer.complete };
            posts.push((order, vec![read_only(layer.data).map_err(failed)?]));
        }
        posts.push((Order::Serve { tree }, Vec::new()));
        for post in posts {
            self.post.send(post).map_err(|_| MountFailure::Ended)?;
        }
        match answered.recv_timeout(START) {
            Ok(Ok(())) => Ok(mounted.mount),
            Ok(Err(reason)) => Err(MountFailure::Other(reason)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(MountFailure::Ended),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.state.mounting.lock().remove(&tree);
                Err(MountFailure::Other(format!("process {} did not serve it within {START:?}", self.pid)))
            }
        }
    }
}

impl Drop for TreeServer {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Release);
        self.socket.close();
    }
}

/// A descriptor of the same file that cannot write to it.
fn read_only(file: &File) -> io::Result<OwnedFd> {
    File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).map(OwnedFd::from)
}

/// Sends what is posted until nobody posts any more.
fn deliver(socket: &Socket, posted: &Receiver<Post>) {
    for (order, descriptors) in posted {
        let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        if let Err(error) = socket.send(&order, &descriptors) {
            // Whoever reads from the socket finds out, and says it.
            tracing::debug!(%error, "speak to the server of image trees");
        }
    }
}

/// Where what the process says is taken in.
struct Desk {
    socket: Arc<Socket>,
    state: Arc<State>,
    post: Sender<Post>,
    layers: Arc<ServedLayers>,
    scope: Scope,
    runtime: Handle,
}

impl Desk {
    fn run(self, mut child: Child) {
        let failure = loop {
            match self.socket.receive() {
                Ok(Some((report, _))) => self.take(report),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        self.state.ended.store(true, Ordering::Release);
        self.socket.close();
        if failure.is_some() {
            // It cannot be understood, so it is of no use.
            let _ = child.kill();
        }
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        if !self.state.closing.load(Ordering::Acquire) {
            let failure = failure.map(tracing::field::display);
            tracing::warn!(
                pid = child.id(),
                status,
                failure,
                "the server of image trees ended: what it had mounted gives read errors, the next mount starts another"
            );
        }
        self.state.mounting.lock().clear();
    }

    fn take(&self, report: Report) {
        match report {
            Report::Serving { tree } => self.mounted(tree, Ok(())),
            Report::Refused { tree, reason } => self.mounted(tree, Err(reason)),
            Report::Need { read, layer, start, end } => self.need(read, layer, start..end),
            Report::Failed { layer, start, end, cause } => {
                if let Some(served) = self.layers.get(layer) {
                    (served.told)(start..end, Err(&cause));
                }
            }
        }
    }

    fn mounted(&self, tree: u64, outcome: Result<(), String>) {
        if let Some(waiting) = self.state.mounting.lock().remove(&tree) {
            // Who has waited too long is gone.
            let _ = waiting.send(outcome);
        }
    }

    fn need(&self, read: u64, layer: u64, range: Range<u64>) {
        let Some(served) = self.layers.get(layer) else {
            return answer(&self.socket, &self.post, Order::Answer { read, here: false, complete: false });
        };
        // Reading ahead spawns fetches, which needs the runtime.
        let _runtime = self.runtime.enter();
        match served.here(&range) {
            Ok(true) => {
                (served.told)(range, Ok(()));
                let order = Order::Answer { read, here: true, complete: served.all_here() };
                answer(&self.socket, &self.post, order);
            }
            Ok(false) => {
                let (socket, post) = (self.socket.clone(), self.post.clone());
                self.scope.spawn_named(format!("read of served layer {layer}"), async move {
                    let outcome = served.wait(range.clone()).await;
                    (served.told)(range, outcome.as_ref().map(|_| ()).map_err(String::as_str));
                    let order = Order::Answer { read, here: outcome.is_ok(), complete: served.all_here() };
                    answer(&socket, &post, order);
                });
            }
            Err(cause) => {
                (served.told)(range, Err(cause));
                answer(&self.socket, &self.post, Order::Answer { read, here: false, complete: false });
            }
        }
    }
}

/// Answers at once if there is room, else by way of the posting thread.
fn answer(socket: &Socket, post: &Sender<Post>, order: Order) {
    if let Err(error) = socket.try_send(&order)
        && error.kind() == io::ErrorKind::WouldBlock
    {
        // Where it cannot be posted, there is nobody to read it.
        let _ = post.send((order, Vec::new()));
    }
}
