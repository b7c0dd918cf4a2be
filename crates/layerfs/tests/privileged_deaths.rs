//! A daemon that is killed while others, and it itself, read what it serves: right bytes or an error, never anything else,
//! and everybody can end. Real mounts and processes, so these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

mod modes;
mod support;

use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use castor_layerfs::{Lazy, Mode};
use castor_mount::Detached;
use castor_progress::Reporter;
use modes::{PATIENCE, comes_true, ends, in_mode, loops, overlay, within};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use support::rand_like::Random;
use support::{Bench, Blob, Source, Tar, estargz, path};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

#[test]
fn the_server_of_image_trees() {
    modes::serve_if_asked();
}

/// The filter, of no test, that turns this program into a daemon; its directory, mode and whether layers are lazy follow.
const DAEMON: &str = "be-a-daemon";

#[test]
fn the_daemon() {
    let mut arguments = std::env::args().skip_while(|argument| argument != DAEMON).skip(1);
    if let (Some(root), Some(mode), Some(lazy)) = (arguments.next(), arguments.next(), arguments.next()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(be_a_daemon(Path::new(&root), mode.parse().unwrap(), lazy == "lazy"));
    }
}

const FILES: usize = 600;

/// A layer of random bytes: the same in every process.
fn layer() -> (Blob, Vec<Vec<u8>>) {
    let mut random = Random::new(7);
    let mut tar = Tar::default();
    let mut contents = Vec::new();
    for number in 0..FILES {
        contents.push(random.bytes(40_000));
        tar = tar.file(&name(number), &contents[number]);
    }
    (estargz(&tar.bytes(), 4 << 20), contents)
}

fn name(number: usize) -> String {
    format!("f{number:05}")
}

/// Mounts the layer, gives the mount to who has started it, and does what that one says.
async fn be_a_daemon(root: &Path, mode: Mode, lazy: bool) {
    let bench = Bench::at_with(root, |config| {
        in_mode(mode)(config);
        config.read_deadline = Duration::from_secs(3600);
    })
    .await;
    let source = Source::new(&layer().0);
    let want = if lazy { Lazy::Require } else { Lazy::Never };
    let layer = bench.engine.layer(source.layer(want), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let server = bench.engine.tree_server().unwrap_or(0).to_le_bytes();
    send(&socket, &server, tree.mount().as_fd());
    socket.set_nonblocking(true).unwrap();
    let (orders, mut answers) = tokio::net::UnixStream::from_std(socket).unwrap().into_split();
    let mut orders = tokio::io::BufReader::new(orders).lines();
    loop {
        let order = tokio::select! {
            order = orders.next_line() => order.unwrap(),
            () = source.stalled.notified() => {
                answers.write_all(b"stalled\n").await.unwrap();
                continue;
            }
        };
        match order.as_deref() {
            Some("stall") => {
                source.faults.lock().stall = Some(0..u64::MAX);
                answers.write_all(b"ok\n").await.unwrap();
            }
            // The daemon itself reads a mount that it serves, and waits.
            Some(file) => {
                let file = path(&tree, file);
                bench.scope.spawn(castor_task::reading(move || std::fs::read(file)));
            }
            // The test has failed.
            None => return,
        }
    }
}

fn send(socket: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let descriptors = [descriptor];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> (u32, OwnedFd) {
    let (mut bytes, mut space) = ([0; 4], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    (u32::from_le_bytes(bytes), descriptor.expect("the daemon has mounted the layer"))
}

/// A daemon, and an overlay on what it has mounted.
struct Victim {
    process: Child,
    socket: UnixStream,
    said: BufReader<UnixStream>,
    /// The process that serves trees, or 0.
    server: u32,
    /// What it has mounted, and an overlay on that.
    mounts: Option<(Detached, OwnedFd)>,
    dir: tempfile::TempDir,
}

impl Victim {
    fn start(mode: Mode, lazy: bool) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), mode, lazy, "")
    }

    /// Starts one in `dir` that crashes at `step`, if that is not empty.
    fn start_in(dir: tempfile::TempDir, mode: Mode, lazy: bool, step: &str) -> Self {
        let (root, empty) = (dir.path().join("state"), dir.path().join("empty"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&empty).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--exact", "the_daemon", DAEMON, root.to_str().unwrap(), mode.name()])
            .arg(if lazy { "lazy" } else { "complete" })
            .env("CASTOR_CRASH_AT", step)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (server, mount) = receive(&socket);
        assert_eq!(server != 0, mode == Mode::Fuse);
        let overlay = overlay(mount.as_fd(), &empty);
        let said = BufReader::new(socket.try_clone().unwrap());
        Self { process, socket, said, server, mounts: Some((overlay, mount)), dir }
    }

    fn order(&mut self, order: &str) {
        self.socket.write_all(format!("{order}\n").as_bytes()).unwrap();
    }

    fn says(&mut self, expected: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), expected);
    }

    fn file(&self, number: usize) -> PathBuf {
        within(&self.mounts.as_ref().unwrap().0, &name(number))
    }

    /// Kills the daemon; it must end.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.dies();
    }

    /// Nobody but the daemon has the mounts any more.
    fn let_go(&mut self) {
        let mounts = self.mounts.take();
        in_time("unmount", move || drop(mounts));
    }

    /// The daemon ends.
    fn dies(&mut self) {
        ends(self.process.id());
        self.process.wait().unwrap();
    }

    /// Unmounts all; nothing may be left but the daemon's directory. A server goes with the last mount.
    fn bury(mut self) -> tempfile::TempDir {
        let root = self.dir.path().to_owned();
        self.let_go();
        if self.server != 0 {
            ends(self.server);
        }
        comes_true("loop devices go with the mounts", || loops(&root).is_empty());
        self.dir
    }
}

/// Runs `work` in a thread of its own, and fails if it does not end.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    later(work).recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn later<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
}

/// The bytes must be right, or the error EIO. Returns whether there were bytes.
fn right(outcome: std::io::Result<Vec<u8>>, expected: &[u8]) -> bool {
    match outcome {
        Ok(bytes) => {
            assert!(bytes == expected, "wrong bytes");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(5), "{error}");
            false
        }
    }
}

fn killed_while_reads_wait(mode: Mode) {
    let (_, contents) = layer();
    let mut victim = Victim::start(mode, true);
    assert_eq!(std::fs::read(victim.file(5)).unwrap(), contents[5]);
    victim.order("stall");
    victim.says("ok");
    // The daemon waits for itself, then others wait for it: a thread, and a process that is killed first.
    victim.order(&name(200));
    victim.says("stalled");
    let file = victim.file(400);
    let waiting = later(move || std::fs::read(file));
    victim.says("stalled");
    let file = std::fs::File::open(victim.file(550)).unwrap();
    let mut reader = Command::new("cat").stdin(file).stdout(Stdio::null()).spawn().unwrap();
    victim.says("stalled");
    reader.kill().unwrap();
    in_time("a reader can be killed", move || reader.wait().unwrap());

    victim.kill();
    let outcome = waiting.recv_timeout(PATIENCE).expect("who has waited for a dead daemon is answered");
    assert!(!right(outcome, &contents[400]), "nobody could know these bytes");
    for (number, known) in [(5, true), (100, false), (400, false), (550, false)] {
        let file = victim.file(number);
        let found = right(in_time("a read ends", move || std::fs::read(file)), &contents[number]);
        assert!(known || !found, "{number}");
    }
    victim.bury();
}

fn killed_under_load(mode: Mode) {
    const READERS: usize = 6;
    let (_, contents) = layer();
    let contents = Arc::new(contents);
    for reads in [1, 60, 400] {
        let mut victim = Victim::start(mode, true);
        let done = Arc::new(AtomicUsize::new(0));
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (contents, done) = (contents.clone(), done.clone());
                let files: Vec<PathBuf> = (0..FILES).map(|number| victim.file(number)).collect();
                later(move || {
                    let mut random = Random::new(100 + reader as u64);
                    let mut failed = 0;
                    // A few reads fail at the moment of the death, all of what nobody knows afterwards.
                    while failed < 50 {
                        let number = random.next() as usize % FILES;
                        let mut bytes = Vec::new();
                        let outcome = std::fs::File::open(&files[number])
                            .and_then(|mut file| file.read_to_end(&mut bytes))
                            .map(|_| bytes);
                        failed += usize::from(!right(outcome, &contents[number]));
                        if done.fetch_add(1, Ordering::Relaxed) > 200_000 {
                            // All was here.
                            return;
                        }
                    }
                })
            })
            .collect();
        comes_true("files are read", || done.load(Ordering::Relaxed) >= reads);
        victim.kill();
        for reader in readers {
            reader.recv_timeout(PATIENCE).expect("readers end, and never read wrong bytes");
        }
        victim.bury();
    }
}

/// The daemon is the only one that has the mount, and waits for itself: its death unmounts what it serves.
fn killed_with_its_mounts(mode: Mode) {
    let mut victim = Victim::start(mode, true);
    victim.order("stall");
    victim.says("ok");
    for number in [200, 400, 550] {
        victim.order(&name(number));
        victim.says("stalled");
    }
    victim.let_go();
    victim.kill();
    victim.bury();
}

/// The daemon dies between two steps of a read; the next one on the same directory gives right bytes only.
fn crashed_at_a_step(mode: Mode) {
    let (_, contents) = layer();
    let contents = Arc::new(contents);
    // The first chunks come with the table of contents; the first two checkpoints are those of the new object.
    for step in ["chunk write:30", "chunk write:100", "presence checkpoint:3", "presence checkpoint:4"] {
        let mut victim = Victim::start_in(tempfile::tempdir().unwrap(), mode, true, step);
        let dead = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (contents, dead) = (contents.clone(), dead.clone());
                let files: Vec<PathBuf> = (0..FILES).map(|number| victim.file(number)).collect();
                later(move || {
                    for number in (reader * 200..FILES).cycle() {
                        right(std::fs::read(&files[number]), &contents[number]);
                        if dead.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                })
            })
            .collect();
        victim.dies();
        dead.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.recv_timeout(PATIENCE).expect("readers end, and never read wrong bytes");
        }
        let dir = victim.bury();
        let mut next = Victim::start_in(dir, mode, true, "");
        for (number, content) in contents.iter().enumerate() {
            assert!(right(std::fs::read(next.file(number)), content), "{step}: {number}");
        }
        next.kill();
        next.bury();
    }
}

/// Where there is no server, or one that need not ask, nothing changes.
fn killed_when_all_is_here(mode: Mode) {
    let (_, contents) = layer();
    let mut victim = Victim::start(mode, false);
    assert_eq!(std::fs::read(victim.file(5)).unwrap(), contents[5]);
    victim.kill();
    for (number, content) in contents.iter().enumerate() {
        let file = victim.file(number);
        assert!(right(in_time("a read ends", move || std::fs::read(file)), content), "{number}");
    }
    victim.bury();
}

macro_rules! deaths {
    ($($module:ident: $mode:expr => $($scenario:ident),*;)*) => {
        $(mod $module {
            use super::*;
            $(
                #[test]
                fn $scenario() {
                    super::$scenario($mode);
                }
            )*
        })*
    };
}

deaths! {
    privileged_erofs: Mode::Erofs => killed_when_all_is_here;
    privileged_erofs_loop: Mode::ErofsLoop => killed_when_all_is_here;
    privileged_erofs_fuse: Mode::ErofsFuse =>
        killed_while_reads_wait, killed_with_its_mounts, killed_under_load, crashed_at_a_step;
    privileged_erofs_fuse_loop: Mode::ErofsFuseLoop =>
        killed_while_reads_wait, killed_with_its_mounts, killed_under_load, crashed_at_a_step;
    privileged_fuse: Mode::Fuse =>
        killed_while_reads_wait, killed_with_its_mounts, killed_under_load, crashed_at_a_step, killed_when_all_is_here;
}

/// The process that serves trees is killed under load, again and again, while its daemon lives.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_server_killed_under_load_gives_no_wrong_byte() {
    let bench = Bench::with(in_mode(Mode::Fuse)).await;
    let (blob, contents) = layer();
    let contents = Arc::new(contents);
    let source = Source::new(&blob);
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let mut last = 0;
    for reads in [1, 30, 300] {
        let tree = loop {
            // Whoever asks before the death was noticed gets the old one.
            let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
            match bench.engine.tree_server() {
                Some(server) if server != last => break tree,
                _ => tokio::task::yield_now().await,
            }
        };
        last = bench.engine.tree_server().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let readers: Vec<_> = (0..6)
            .map(|reader| {
                let (tree, contents, done) = (tree.clone(), contents.clone(), done.clone());
                later(move || {
                    let mut random = Random::new(500 + reader);
                    let mut failed = 0;
                    while failed < 50 {
                        let number = random.next() as usize % FILES;
                        failed += usize::from(!right(std::fs::read(path(&tree, &name(number))), &contents[number]));
                        if done.fetch_add(1, Ordering::Relaxed) > 200_000 {
                            return;
                        }
                    }
                })
            })
            .collect();
        let server = last;
        castor_task::reading(move || {
            comes_true("files are read", || done.load(Ordering::Relaxed) >= reads);
            modes::kill(server);
            ends(server);
            for reader in readers {
                reader.recv_timeout(PATIENCE).expect("readers end, and never read wrong bytes");
            }
        })
        .await;
    }
    drop(layer);
    bench.engine.shutdown().await;
}
