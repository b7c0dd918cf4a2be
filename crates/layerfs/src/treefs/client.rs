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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

use castor_erofs::Image;
use castor_mount::Detached;
use castor_task::Scope;
use fuser::INodeNo;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::files::{nid_of, path_of, pieces};
use super::wire::{Lost, Order, Report, Socket};
use crate::layer::Core;
use crate::map::Map;
use crate::serve::{MAX_READ, ServedLayers};

/// The longest that a new mount may wait for its server: a machine may be busy, and a process that is stopped says nothing.
const START: Duration = Duration::from_secs(60);

/// How the process that serves trees is started: a program that calls [`serve_trees`](super::serve_trees) when it gets
/// these arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProgram {
    /// The program.
    pub path: PathBuf,
    /// What it is called in the list of processes; one that only keeps devices has `-keeper` behind it.
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
    /// Whose readers are to be told why they get errors; none for a probe.
    pub core: Option<&'a Arc<Core>>,
}

/// What readers of a server that has ended are told.
const ENDED: &str = "the server of image trees ended";

/// Why a tree could not be mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MountFailure {
    /// The server has ended: another one may do it.
    Ended,
    Other(String),
}

type Post = (Order, Vec<OwnedFd>);

/// The process that serves, and the one that keeps devices, as long as they run.
pub(crate) struct TreeServer {
    server: Process,
    keeper: Process,
    state: Arc<State>,
    trees: AtomicU64,
}

/// One of them, as the daemon speaks to it.
#[derive(Clone)]
struct Process {
    pid: u32,
    socket: Arc<Socket>,
    /// What is sent by a thread of its own: the daemon never waits for a process that reads nothing.
    post: Sender<Post>,
}

#[derive(Default)]
struct State {
    /// One of the two answers no more.
    ended: AtomicBool,
    /// Held while it is told that a reader has its bytes, and while the end is noted: what is lost is told of later.
    telling: Mutex<()>,
    /// They were told to end.
    closing: AtomicBool,
    /// Who waits for a tree to be served.
    mounting: Mutex<HashMap<u64, Sender<Result<(), String>>>>,
    /// The trees that are mounted.
    mounted: Mutex<HashMap<u64, Arc<Known>>>,
}

/// What the daemon knows of a tree.
struct Known {
    image: Image<Map>,
    layers: Vec<Weak<Core>>,
}

impl Known {
    /// Notes that somebody did not get this.
    fn lose(&self, what: &Lost) {
        let nid = |node: u64| nid_of(&self.image, INodeNo(node));
        let named = |name: Option<String>| {
            // Which of the layers it is of, nobody knows.
            if let Some(core) = self.layers.last().and_then(Weak::upgrade) {
                core.lose(None, name.as_deref().unwrap_or("?"), ENDED);
            }
        };
        match what {
            Lost::Bytes { node, offset, size } => {
                let pieces = pieces(&self.image, self.layers.len(), nid(*node), *offset, *size).unwrap_or_default();
                for (layer, range) in pieces.into_iter().filter_map(|piece| piece.place) {
                    if let Some(core) = self.layers[layer].upgrade() {
                        core.lose(Some(range), "?", ENDED);
                    }
                }
            }
            Lost::Name { directory, name } => {
                named(path_of(&self.image, nid(*directory)).map(|directory| format!("{directory}/{name}")));
            }
            Lost::Inode { node } => named(path_of(&self.image, nid(*node)).map(|path| format!("{path}/"))),
        }
    }
}

/// A tree that a server serves, until this is dropped.
pub(crate) struct Tree {
    server: Arc<TreeServer>,
    number: u64,
}

impl Tree {
    /// Whether it can be read.
    pub(crate) fn is_alive(&self) -> bool {
        self.server.is_alive()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.server.forget(self.number);
    }
}

impl TreeServer {
    /// Starts the process; it asks for bytes of `layers`, and fetches run in `scope`.
    pub(crate) fn start(
        program: &ServerProgram,
        layers: Arc<ServedLayers>,
        scope: &Scope,
        runtime: &Handle,
    ) -> Result<Self, String> {
        let state = Arc::new(State::default());
        // The keeper first: it is to be told of the server's end.
        let (keeper, kept) = Process::start(program, "-keeper")?;
        let (server, served) = Process::start(program, "")?;
        let desk = |process: &Process, is_server| Desk {
            process: process.clone(),
            keeper: keeper.clone(),
            is_server,
            state: state.clone(),
            layers: layers.clone(),
            scope: scope.clone(),
            runtime: runtime.clone(),
        };
        for (process, child, name) in [(&keeper, kept, "tree-keeper"), (&server, served, "tree-server")] {
            let desk = desk(process, name == "tree-server");
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || desk.run(child))
                .map_err(|error| format!("start {}: {error}", program.path.display()))?;
        }
        Ok(Self { server, keeper, state, trees: AtomicU64::new(0) })
    }

    /// The process id of the one that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid
    }

    /// Whether it runs and listens.
    pub(crate) fn is_alive(&self) -> bool {
        !self.state.ended.load(Ordering::Acquire)
    }

    /// Mounts the tree of `image`, whose devices are `layers`; reads of it wait no longer than `patience`. Blocks.
    pub(crate) fn mount(
        self: &Arc<Self>,
        image: &File,
        layers: &[TreeLayer<'_>],
        patience: Duration,
    ) -> Result<(Detached, Tree), MountFailure> {
        let other = |error: String| MountFailure::Other(error);
        let known = Known {
            image: Image::open(Map::of(image).map_err(|e| other(e.to_string()))?).map_err(|e| other(e.to_string()))?,
            layers: layers.iter().map(|layer| layer.core.map(Arc::downgrade).unwrap_or_default()).collect(),
        };
        let mounted = castor_mount::fuse_tree("castor-tree", MAX_READ).map_err(|e| other(e.to_string()))?;
        let number = self.trees.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = mpsc::channel();
        self.state.mounting.lock().insert(number, answer);
        self.state.mounted.lock().insert(number, Arc::new(known));
        // From here on, whatever becomes of it, it is forgotten in the end.
        let tree = Tree { server: self.clone(), number };
        // In this order: who ends it drops the senders after saying so.
        if !self.is_alive() {
            return Err(MountFailure::Ended);
        }
        let failed = |error: io::Error| other(format!("pass files of layers to their server: {error}"));
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let device = mounted.device.try_clone().map_err(failed)?;
        let to_keeper = [(Order::Keep { tree: number }, vec![device])];
        let image = read_only(image).map_err(failed)?;
        let mut to_server = vec![(Order::Tree { tree: number, patience }, vec![mounted.device, image])];
        for layer in layers {
            let order = Order::Layer { tree: number, layer: layer.number, complete: layer.complete };
            to_server.push((order, vec![read_only(layer.data).map_err(failed)?]));
        }
        to_server.push((Order::Serve { tree: number }, Vec::new()));
        for (process, posts) in [(&self.keeper, Vec::from(to_keeper)), (&self.server, to_server)] {
            for post in posts {
                process.post.send(post).map_err(|_| MountFailure::Ended)?;
            }
        }
        // Once both have said that they have it, this process has the device no more.
        for pid in [self.keeper.pid, self.server.pid] {
            match answered.recv_timeout(START) {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return Err(MountFailure::Other(reason)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(MountFailure::Ended),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.state.mounting.lock().remove(&number);
                    return Err(MountFailure::Other(format!("process {pid} did not serve it within {START:?}")));
                }
            }
        }
        self.state.mounting.lock().remove(&number);
        Ok((mounted.mount, tree))
    }

    /// A tree is not mounted any more.
    fn forget(&self, tree: u64) {
        self.state.mounted.lock().remove(&tree);
        // Where there is no keeper, there is nothing to forget.
        let _ = self.keeper.post.send((Order::Forget { tree }, Vec::new()));
    }
}

impl Drop for TreeServer {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Release);
        self.server.socket.close();
        self.keeper.socket.close();
    }
}

impl Process {
    /// Starts one, with this behind its name; what it is to do, it is told.
    fn start(program: &ServerProgram, more: &str) -> Result<(Self, Child), String> {
        let mut name = program.name.clone();
        name.push(more);
        let failed = |error: io::Error| format!("start {}: {error}", program.path.display());
        let (socket, theirs) = Socket::pair().map_err(failed)?;
        let child = Command::new(&program.path)
            .arg0(&name)
            .args(&program.arguments)
            .env_clear()
            .current_dir("/")
            // What a terminal sends to the daemon is not for it: it is wanted as long as the daemon is.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let socket = Arc::new(socket);
        let (post, posted) = mpsc::channel();
        let process = Self { pid: child.id(), socket: socket.clone(), post };
        std::thread::Builder::new()
            .name("tree-post".into())
            .spawn(move || deliver(&socket, &posted))
            .map_err(failed)?;
        Ok((process, child))
    }

    /// Answers at once if there is room, else by way of the posting thread.
    fn answer(&self, order: Order) {
        if let Err(error) = self.socket.try_send(&order)
            && error.kind() == io::ErrorKind::WouldBlock
        {
            // Where it cannot be posted, there is nobody to read it.
            let _ = self.post.send((order, Vec::new()));
        }
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

/// Where what one of the processes says is taken in.
struct Desk {
    process: Process,
    keeper: Process,
    /// Whether it is the one that serves.
    is_server: bool,
    state: Arc<State>,
    layers: Arc<ServedLayers>,
    scope: Scope,
    runtime: Handle,
}

impl Desk {
    fn run(self, mut child: Child) {
        let failure = loop {
            match self.process.socket.receive() {
                Ok(Some((report, _))) => self.take(report),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        {
            let _telling = self.state.telling.lock();
            self.state.ended.store(true, Ordering::Release);
        }
        self.process.socket.close();
        if failure.is_some() {
            // It cannot be understood, so it is of no use.
            let _ = child.kill();
        }
        if self.is_server {
            // Where there is no keeper any more either, the kernel answers.
            let _ = self.keeper.post.send((Order::Mourn, Vec::new()));
        }
        self.state.mounting.lock().clear();
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        if self.state.closing.load(Ordering::Acquire) {
            return;
        }
        let (pid, failure) = (child.id(), failure.map(tracing::field::display));
        if self.is_server {
            tracing::warn!(
                pid,
                status,
                failure,
                "the server of image trees ended: what it had mounted gives read errors, the next mount starts another"
            );
        } else {
            tracing::warn!(pid, status, failure, "the keeper of image trees ended: the next mount starts another");
        }
    }

    fn take(&self, report: Report) {
        match report {
            Report::Serving { tree } | Report::Kept { tree } => self.mounted(tree, Ok(())),
            Report::Refused { tree, reason } => self.mounted(tree, Err(reason)),
            Report::Need { read, layer, start, end } => self.need(read, layer, start..end),
            Report::Failed { layer, start, end, cause } => {
                if let Some(served) = self.layers.get(layer) {
                    (served.told)(start..end, Err(&cause));
                }
            }
            Report::Lost { tree, what } => {
                let known = self.state.mounted.lock().get(&tree).cloned();
                if let Some(known) = known {
                    known.lose(&what);
                }
                self.process.answer(Order::Noted { tree });
            }
        }
    }

    fn mounted(&self, tree: u64, outcome: Result<(), String>) {
        if let Some(waiting) = self.state.mounting.lock().get(&tree) {
            // Who has waited too long is gone.
            let _ = waiting.send(outcome);
        }
    }

    fn need(&self, read: u64, layer: u64, range: Range<u64>) {
        let Some(served) = self.layers.get(layer) else {
            return self.process.answer(Order::Answer { read, here: false, complete: false });
        };
        // Reading ahead spawns fetches, which needs the runtime.
        let _runtime = self.runtime.enter();
        match served.here(&range) {
            Ok(true) => {
                (served.told)(range, Ok(()));
                self.process.answer(Order::Answer { read, here: true, complete: served.all_here() });
            }
            Ok(false) => {
                let (process, state) = (self.process.clone(), self.state.clone());
                self.scope.spawn_named(format!("read of served layer {layer}"), async move {
                    let outcome = served.wait(range.clone()).await;
                    {
                        let _telling = state.telling.lock();
                        // Who has waited for a server that has ended does not get it.
                        if outcome.is_err() || !state.ended.load(Ordering::Acquire) {
                            (served.told)(range, outcome.as_ref().map(|_| ()).map_err(String::as_str));
                        }
                    }
                    process.answer(Order::Answer { read, here: outcome.is_ok(), complete: served.all_here() });
                });
            }
            Err(cause) => {
                (served.told)(range, Err(cause));
                self.process.answer(Order::Answer { read, here: false, complete: false });
            }
        }
    }
}
