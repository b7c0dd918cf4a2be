//! The process that serves trees.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use castor_erofs::Image;
use fuser::{Errno, ReplyData, Session, SessionACL};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::files::{Files, Layer, Piece, Tree};
use super::keeper::Keeper;
use super::wire::{Order, Report, Socket, short};
use crate::map::Map;

/// Threads that take requests of one tree.
const THREADS_PER_TREE: usize = 2;
/// Threads that answer reads that have waited.
const ANSWERERS: usize = 2;
/// How often it is looked whether those who wait still want to.
const LOOK: Duration = Duration::from_millis(50);
/// How much longer than the daemon this process waits: the daemon knows the reason.
const SLACK: Duration = Duration::from_secs(5);

/// Serves trees, or keeps their devices, as the other end of standard input, a socket of the daemon's, says. When that is
/// closed, what was mounted is served on from what is here, until nobody uses it any more.
///
/// The whole life of a process: it changes the process's capabilities, limits and signals.
pub fn serve_trees() -> io::Result<()> {
    confine()?;
    let socket = Arc::new(Socket::of(io::stdin().as_fd().try_clone_to_owned()?));
    let desk = Arc::new(Desk {
        socket: socket.clone(),
        reads: Mutex::default(),
        parked: Condvar::new(),
        next: AtomicU64::new(0),
        alone: AtomicBool::new(false),
        trees: Mutex::new(0),
        unmounted: Condvar::new(),
    });
    let (ready, answers) = mpsc::channel();
    let answers = Arc::new(Mutex::new(answers));
    for number in 0..ANSWERERS {
        let (desk, answers) = (desk.clone(), answers.clone());
        spawn(format!("answer-{number}"), move || desk.answer_all(&answers))?;
    }
    let watching = desk.clone();
    spawn("watch".into(), move || watching.watch())?;
    let outcome = take_orders(&desk, &ready);
    desk.alone.store(true, Ordering::SeqCst);
    desk.give_up(|_| true);
    mask_signals(libc::SIG_UNBLOCK);
    desk.unmounted();
    outcome
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name).spawn(work).map(drop)
}

/// Gives up what is not needed to read open files, and makes sure that this process does not end before the daemon.
fn confine() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
    mask_signals(libc::SIG_BLOCK);
    // Each layer of each tree is an open file.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// Holds back what asks a process to end, or lets it through. A service manager that stops the daemon signals all its
/// processes; this one is wanted until the daemon has ended, and then does as it was told meanwhile.
#[allow(unsafe_code)] // there is no safe form
fn mask_signals(how: i32) {
    // SAFETY: the set is made by `sigemptyset` before anything else looks at it, and lives until the last call has returned;
    // threads that are started later inherit the mask.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// A tree of which not everything was said.
struct Coming {
    device: OwnedFd,
    image: File,
    patience: Duration,
    layers: Vec<Layer>,
}

/// Does what the daemon says until it is gone.
fn take_orders(desk: &Arc<Desk>, ready: &Sender<Read>) -> io::Result<()> {
    let mut coming: HashMap<u64, Coming> = HashMap::new();
    let mut keeper = Keeper::new(desk.socket.clone());
    while let Some((order, mut descriptors)) = desk.socket.receive::<Order>()? {
        let mut descriptor = || descriptors.pop().ok_or_else(|| invalid("a descriptor is missing"));
        match order {
            Order::Tree { tree, patience } => {
                let (image, device) = (File::from(descriptor()?), descriptor()?);
                let patience = Duration::from_millis(patience);
                coming.insert(tree, Coming { device, image, patience, layers: Vec::new() });
            }
            Order::Layer { tree, layer, complete } => {
                let data = File::from(descriptor()?);
                let tree = coming.get_mut(&tree).ok_or_else(|| invalid("a layer of no tree"))?;
                tree.layers.push(Layer { number: layer, data, complete: AtomicBool::new(complete) });
            }
            Order::Serve { tree } => {
                let parts = coming.remove(&tree).ok_or_else(|| invalid("no tree of that number"))?;
                let serving = Serving::begin(desk);
                spawn(format!("tree-{tree}"), move || serve(tree, parts, &serving.0))?;
            }
            Order::Answer { read, here, complete } => desk.answered(read, here, complete, ready),
            Order::Keep { tree } => keeper.keep(tree, descriptor()?)?,
            Order::Forget { tree } => keeper.forget(tree),
            Order::Mourn => keeper.mourn()?,
            Order::Noted { tree } => keeper.noted(tree),
        }
    }
    Ok(())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One of the trees that are served: this process does not end before the last.
struct Serving(Arc<Desk>);

impl Serving {
    fn begin(desk: &Arc<Desk>) -> Self {
        *desk.trees.lock() += 1;
        Self(desk.clone())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        *self.0.trees.lock() -= 1;
        self.0.unmounted.notify_all();
    }
}

/// Serves one tree until it is unmounted.
fn serve(number: u64, parts: Coming, desk: &Arc<Desk>) {
    let session = (|| {
        let image = Image::open(Map::of(&parts.image).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        if image.superblock().devices.len() != parts.layers.len() {
            let (devices, layers) = (image.superblock().devices.len(), parts.layers.len());
            return Err(format!("an image of {devices} devices with {layers} layers"));
        }
        let tree = Arc::new(Tree { number, image, layers: parts.layers, patience: parts.patience });
        let mut config = fuser::Config::default();
        config.n_threads = Some(THREADS_PER_TREE);
        config.acl = SessionACL::All;
        let files = Files { tree: tree.clone(), desk: desk.clone() };
        Session::from_fd(files, parts.device, SessionACL::All, config).map_err(|e| e.to_string())
    })();
    let session = match session {
        Ok(session) => session,
        Err(reason) => return desk.report(&Report::Refused { tree: number, reason: short(reason) }),
    };
    desk.report(&Report::Serving { tree: number });
    // It ends when the tree is unmounted.
    let _ = session.run();
    desk.give_up(|read| read.tree.number == number);
}

/// A read that waits.
pub(super) struct Read {
    tree: Arc<Tree>,
    pieces: Vec<Piece>,
    /// Who reads: a thread, by its number; 0 for one that cannot be seen from here.
    pid: u32,
    /// Answers that are still to come.
    left: usize,
    since: Instant,
    reply: ReplyData,
}

/// Where reads wait for the daemon's answer.
pub(super) struct Desk {
    socket: Arc<Socket>,
    reads: Mutex<HashMap<u64, Read>>,
    parked: Condvar,
    next: AtomicU64,
    /// The daemon is gone: nobody knows what is here but for layers that are complete.
    alone: AtomicBool,
    /// How many trees are served.
    trees: Mutex<usize>,
    unmounted: Condvar,
}

impl Desk {
    /// Lets a read wait for `unsure`, and asks the daemon for it.
    pub(super) fn park(
        &self,
        tree: Arc<Tree>,
        pieces: Vec<Piece>,
        unsure: Vec<(u64, Range<u64>)>,
        pid: u32,
        reply: ReplyData,
    ) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let read = Read { tree, pieces, pid, left: unsure.len(), since: Instant::now(), reply };
        self.reads.lock().insert(number, read);
        // In this order: who is left alone gives up what waits after saying so.
        if self.alone.load(Ordering::SeqCst) {
            return self.give_up(|_| true);
        }
        self.parked.notify_one();
        for (layer, range) in unsure {
            self.report(&Report::Need { read: number, layer, start: range.start, end: range.end });
        }
    }

    /// Tells the daemon of a read that failed here.
    pub(super) fn failed(&self, layer: u64, range: Range<u64>, cause: String) {
        self.report(&Report::Failed { layer, start: range.start, end: range.end, cause: short(cause) });
    }

    fn report(&self, report: &Report) {
        // Where the daemon is gone, the main thread finds out, and ends what waits.
        let _ = self.socket.send(report, &[]);
    }

    fn answered(&self, number: u64, here: bool, complete: bool, ready: &Sender<Read>) {
        let mut reads = self.reads.lock();
        let Some(read) = reads.get_mut(&number) else { return };
        if !here {
            if let Some(read) = reads.remove(&number) {
                drop(reads);
                read.reply.error(Errno::EIO);
            }
            return;
        }
        if complete && let [Piece { place: Some((layer, _)), .. }] = &read.pieces[..] {
            read.tree.layers[*layer].complete.store(true, Ordering::Release);
        }
        read.left -= 1;
        if read.left == 0
            && let Some(read) = reads.remove(&number)
        {
            // Those who take them live as long as this process.
            let _ = ready.send(read);
        }
    }

    fn answer_all(&self, answers: &Mutex<Receiver<Read>>) {
        loop {
            let next = answers.lock().recv();
            let Ok(read) = next else { return };
            if let Some((layer, range, cause)) = read.tree.answer(&read.pieces, read.reply) {
                self.failed(layer, range, cause);
            }
        }
    }

    /// Waits until no tree is served.
    fn unmounted(&self) {
        let mut trees = self.trees.lock();
        while *trees > 0 {
            self.unmounted.wait(&mut trees);
        }
    }

    /// Answers reads that are waited for in vain with EIO.
    fn give_up(&self, which: impl Fn(&Read) -> bool) {
        let given_up: Vec<Read> = self.reads.lock().extract_if(|_, read| which(read)).map(|(_, read)| read).collect();
        for read in given_up {
            read.reply.error(Errno::EIO);
        }
    }

    /// Ends reads whose time is over or whose reader is to be killed. A reader that waits for a page dies by itself; one
    /// that the kernel lets wait for this process only does when it is answered.
    fn watch(&self) {
        let pause = Condvar::new();
        let mut reads = self.reads.lock();
        loop {
            if reads.is_empty() {
                self.parked.wait(&mut reads);
            }
            // Nobody rings it: looking at some reads now and then is enough.
            pause.wait_for(&mut reads, LOOK);
            let mut late = Vec::new();
            let mut readers: HashMap<u32, bool> = HashMap::new();
            for (number, read) in reads.iter() {
                let waited = read.since.elapsed();
                if waited > read.tree.patience + SLACK {
                    late.push(*number);
                } else if waited >= LOOK && read.pid != 0 {
                    readers.insert(read.pid, false);
                }
            }
            for number in late {
                if let Some(read) = reads.remove(&number) {
                    for (layer, range) in read.tree.unsure(&read.pieces) {
                        self.failed(layer, range, "the daemon did not answer".into());
                    }
                    read.reply.error(Errno::EIO);
                }
            }
            // Looking takes a while; nobody must wait for it.
            MutexGuard::unlocked(&mut reads, || {
                for (pid, dying) in &mut readers {
                    *dying = is_dying(*pid);
                }
            });
            let doomed: Vec<u64> = reads
                .iter()
                .filter(|(_, read)| readers.get(&read.pid).is_some_and(|dying| *dying))
                .map(|(number, _)| *number)
                .collect();
            for number in doomed {
                if let Some(read) = reads.remove(&number) {
                    // Others who wait for the same page ask again.
                    read.reply.error(Errno::EINTR);
                }
            }
        }
    }
}

/// Whether a thread has ended, or will when the kernel lets it.
fn is_dying(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => pending_kill(&status),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether `/proc/<pid>/status` tells of a SIGKILL that is to be delivered.
fn pending_kill(status: &str) -> bool {
    const SIGKILL: u64 = 1 << 8;
    status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_among_other_signals() {
        let status = |thread: &str, process: &str| {
            format!("Name:\tcat\nSigQ:\t1/7\nSigPnd:\t{thread}\nShdPnd:\t{process}\nSigBlk:\t0000000000000100\n")
        };
        assert!(!pending_kill(&status("0000000000000000", "0000000000004200")));
        assert!(pending_kill(&status("0000000000000100", "0000000000000000")));
        assert!(pending_kill(&status("0000000000000000", "0000000000004102")));
        assert!(!pending_kill(""));
        assert!(!is_dying(std::process::id()));
    }
}
