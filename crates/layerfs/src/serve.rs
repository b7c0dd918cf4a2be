//! The FUSE file system that the data of lazy layers is read through: one for the engine, one file per layer.
//!
//! It is mounted nowhere. EROFS opens `/proc/self/fd/<mount>/l<number>` as a device and from then on its page cache, not
//! this file system's, holds what was read (`FOPEN_DIRECT_IO`). `FUSE_ASYNC_DIO` is a condition: with it readers wait for
//! a page and can be killed; without it they, and a daemon that waits for itself, wait in this file system for ever.
//!
//! A session thread never waits. What is here is answered at once; the rest goes to the layer's fetcher with a deadline,
//! after which the reader gets EIO. When a layer leaves, and before its image tree is unmounted, what is parked is
//! answered: an unmount waits, unkillably, for pages that are being read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use castor_mount::Detached;
use castor_task::Scope;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
    Session, SessionACL,
};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fetch::Fetcher;

/// While a layer's origins are failing (since a read was waited for in vain, none has been answered) a read waits this many
/// times as long as it is since the last failure, and at least the shortest time: a program that goes on after an error,
/// over thousands of files, must not wait the whole time for each, and one that comes later finds out anew.
const IMPATIENCE: u32 = 3;
/// A chunk of the usual 4 MiB takes about this long over a slow link: a fetch that is well must not be called failed.
pub(crate) const SHORTEST: Duration = Duration::from_millis(500);
/// Largest read: EROFS's read-ahead.
pub(crate) const MAX_READ: u32 = 1 << 20;
/// Requests that may wait at the same time, of all layers.
pub(crate) const MAX_BACKGROUND: u16 = 16_384;
/// Names and attributes never change.
const FOREVER: Duration = Duration::from_secs(86_400 * 365);
const ROOT: u64 = 1;
/// Files begin behind the root.
const FIRST: u64 = 2;

/// Takes a range of `data` that was read, or why it could not be.
type Told = Box<dyn Fn(Range<u64>, Result<(), &str>) + Send + Sync>;

/// A layer that is served.
pub(crate) struct Served {
    pub size: u64,
    pub data: Arc<File>,
    /// None: all of it is here.
    pub fetcher: Option<Fetcher>,
    pub deadline: Duration,
    /// Told of every read.
    pub told: Told,
    /// What readers wait for ends with it; renewed by [`Server::release`].
    parked: Mutex<CancellationToken>,
    /// When the last fetch that a reader waited for failed; none if it succeeded.
    failed: Mutex<Option<Instant>>,
}

impl Served {
    pub(crate) fn new(size: u64, data: Arc<File>, fetcher: Option<Fetcher>, deadline: Duration, told: Told) -> Self {
        Self { size, data, fetcher, deadline, told, parked: Mutex::default(), failed: Mutex::default() }
    }

    /// Whether all of `range` is here; notes that a reader uses it if so. Needs the runtime.
    pub(crate) fn here(&self, range: &Range<u64>) -> Result<bool, &'static str> {
        let Some(fetcher) = &self.fetcher else { return Ok(true) };
        // A panic would end the thread that asks, and with it every layer that is served: it costs this read, as it would
        // in a task.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fetcher.here(range)))
            .map_err(|_| "the planner of fetches panicked")
    }

    /// Whether every byte is here.
    pub(crate) fn all_here(&self) -> bool {
        self.fetcher.as_ref().is_none_or(|fetcher| fetcher.presence().all())
    }

    /// Waits until all of `range` is here, until it is known that it cannot be had, or until the layer is released.
    pub(crate) async fn wait(&self, range: Range<u64>) -> Result<(), String> {
        let Some(fetcher) = &self.fetcher else { return Ok(()) };
        let parked = self.parked.lock().clone();
        tokio::select! {
            () = parked.cancelled() => Err("the layer is being unmounted".to_owned()),
            outcome = self.fetch(fetcher, range) => outcome,
        }
    }

    /// Waits until all of `range` is here, as long as is sensible now.
    pub(crate) async fn fetch(&self, fetcher: &Fetcher, range: Range<u64>) -> Result<(), String> {
        let failed = *self.failed.lock();
        let patience = failed.map_or(self.deadline, |at| (at.elapsed() * IMPATIENCE).max(SHORTEST).min(self.deadline));
        let outcome = match tokio::time::timeout(patience, fetcher.need(range)).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) if failed.is_some() => Err(format!("no answer within {patience:.1?}, and none to the read before")),
            Err(_) => Err(format!("no answer within {patience:?}")),
        };
        *self.failed.lock() = outcome.is_err().then(Instant::now);
        outcome
    }
}

/// The layers that are served, by number: those of this file system, and those that a process of their own asks about.
#[derive(Default)]
pub(crate) struct ServedLayers {
    table: RwLock<HashMap<u64, Arc<Served>>>,
}

impl ServedLayers {
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Served>> {
        self.table.read().get(&number).cloned()
    }

    /// Begins to serve a layer under `number`.
    pub(crate) fn add(&self, number: u64, served: Served) {
        self.table.write().insert(number, Arc::new(served));
    }

    /// Serves a layer no more: reads fail from now on.
    pub(crate) fn remove(&self, number: u64) {
        if let Some(served) = self.table.write().remove(&number) {
            served.parked.lock().cancel();
        }
    }

    /// Answers what waits for a layer; later reads wait as before.
    pub(crate) fn release(&self, number: u64) {
        if let Some(served) = self.get(number) {
            std::mem::take(&mut *served.parked.lock()).cancel();
        }
    }

    /// Answers everything.
    pub(crate) fn release_all(&self) {
        for served in self.table.read().values() {
            std::mem::take(&mut *served.parked.lock()).cancel();
        }
    }
}

/// The file system, mounted and served.
pub(crate) struct DataServer {
    mount: Detached,
    ended: Arc<AtomicBool>,
}

impl DataServer {
    /// Mounts it and begins to serve `layers`; fetches run in `scope`. Blocks.
    pub(crate) fn start(layers: Arc<ServedLayers>, scope: &Scope, runtime: &Handle) -> Result<Self, String> {
        let mounted = castor_mount::fuse("castor-layers", MAX_READ).map_err(|e| e.to_string())?;
        let files = Files { layers, scope: scope.clone(), runtime: runtime.clone() };
        let mut config = fuser::Config::default();
        config.n_threads = Some(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4));
        config.acl = SessionACL::Owner;
        let session = Session::from_fd(files, mounted.device, SessionACL::Owner, config).map_err(|e| e.to_string())?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        std::thread::Builder::new()
            .name("layer-server".into())
            .spawn(move || {
                let outcome = session.run();
                // The connection ends with the last mount that uses it, or because somebody ended it from outside.
                tracing::debug!(?outcome, "the layers' file system ended");
                end.store(true, Ordering::Release);
            })
            .map_err(|e| e.to_string())?;
        Ok(Self { mount: mounted.mount, ended })
    }

    /// Whether it answers.
    pub(crate) fn is_alive(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
    }

    /// The directory of the files, for [`castor_mount::Device::In`].
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// The name of a layer's file.
    pub(crate) fn name(number: u64) -> OsString {
        format!("l{number}").into()
    }
}

struct Files {
    layers: Arc<ServedLayers>,
    scope: Scope,
    runtime: Handle,
}

impl Files {
    fn served(&self, node: u64) -> Option<Arc<Served>> {
        self.layers.get(node.checked_sub(FIRST)?)
    }

    fn attributes(node: u64, size: u64) -> FileAttr {
        let root = node == ROOT;
        FileAttr {
            ino: INodeNo(node),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if root { FileType::Directory } else { FileType::RegularFile },
            perm: if root { 0o700 } else { 0o400 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a read from the data file.
fn answer(served: &Served, range: &Range<u64>, reply: ReplyData) {
    BUFFER.with_borrow_mut(|buffer| {
        let length = (range.end - range.start) as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        match read(&served.data, &mut buffer[..length], range.start) {
            Ok(got) => {
                (served.told)(range.clone(), Ok(()));
                reply.data(&buffer[..got]);
            }
            Err(error) => {
                (served.told)(range.clone(), Err(&format!("read data file: {error}")));
                reply.error(Errno::EIO);
            }
        }
    });
}

fn read(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| io::Error::other("the kernel's FUSE has no asynchronous direct IO"))?;
        config.set_max_background(MAX_BACKGROUND).map_err(|n| io::Error::other(format!("max_background: {n}")))?;
        config.set_max_write(MAX_READ).map_err(|n| io::Error::other(format!("max_write: {n}")))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.strip_prefix('l')).and_then(|name| name.parse::<u64>().ok());
        let node = number.map(|number| number + FIRST).filter(|_| parent.0 == ROOT);
        match node.and_then(|node| Some((node, self.served(node)?))) {
            Some((node, served)) => reply.entry(&FOREVER, &Self::attributes(node, served.size), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.served(node.0) {
            Some(served) => reply.attr(&FOREVER, &Self::attributes(node.0, served.size)),
            None if node.0 == ROOT => reply.attr(&FOREVER, &Self::attributes(ROOT, 0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.served(node.0) {
            Some(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(served) = self.served(node.0) else { return reply.error(Errno::EIO) };
        let end = (offset + u64::from(size)).min(served.size);
        let range = offset.min(end)..end;
        // Reading ahead spawns fetches, which needs the runtime.
        let _runtime = self.runtime.enter();
        match served.here(&range) {
            Ok(true) => return answer(&served, &range, reply),
            Ok(false) => {}
            Err(cause) => {
                (served.told)(range, Err(cause));
                return reply.error(Errno::EIO);
            }
        }
        self.scope.spawn_named(format!("read of layer file {}", node.0), async move {
            match served.wait(range.clone()).await {
                Ok(()) => castor_task::blocking(move || answer(&served, &range, reply)).await,
                Err(cause) => {
                    (served.told)(range, Err(&cause));
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // A loop device asks when it is made. There is nothing to write, and the kernel, told so once, never asks again: not
        // of a daemon that is dying.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // As above, for security modules.
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}
