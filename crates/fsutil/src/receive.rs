//! The half that makes a directory equal to what is announced.

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use castor_oci::Digest;
use futures::StreamExt as _;
use futures::future::pending;
use futures::stream::BoxStream;
use prost::Message as _;
use tokio::sync::{Notify, mpsc};

use crate::write::{CAPABILITY, Contents, Destination, Written};
use crate::{Link, Packet, PacketType, Progress, Stat, TransferError, Validator, Walk, compare_paths, mode, path};

/// When an entry that is already there counts as the announced one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// If type, permissions, owner, device, link and, but for directories, size
    /// and time are equal.
    #[default]
    Metadata,
    /// Never.
    None,
}

/// Changes the details of an entry before they are compared and written; false
/// leaves the entry alone.
pub type StatMap = Arc<dyn Fn(&[u8], &mut Stat) -> bool + Send + Sync>;

/// Whether an entry is transferred with its contents.
pub type StatFilter = Arc<dyn Fn(&[u8], &Stat) -> bool + Send + Sync>;

/// A hash over an entry as it arrives. The entry's header is already in it.
pub trait ContentHash: Send {
    /// More of the contents.
    fn update(&mut self, bytes: &[u8]);
    /// The digest.
    fn finish(self: Box<Self>) -> Digest;
}

/// One thing that was done to the destination.
#[derive(Debug)]
pub enum Change<'a> {
    /// An entry is there as announced.
    Written {
        /// What was announced.
        stat: &'a Stat,
        /// The digest over its header and contents.
        digest: Digest,
    },
    /// A path and all below it is gone.
    Removed {
        /// The path.
        path: &'a [u8],
    },
}

/// Watches what is done to the destination. Called from several threads; a
/// file's change comes after its contents, so not in the order of the walk.
pub trait Observer: Send + Sync + 'static {
    /// A hash primed with the entry's header, as announced.
    fn hash(&self, stat: &Stat) -> Box<dyn ContentHash>;

    /// Something was done. An error fails the transfer.
    fn changed(&self, change: Change<'_>) -> Result<(), String>;
}

/// How to receive.
#[derive(Clone, Default)]
pub struct ReceiveOptions {
    /// Never remove, and replace all that is announced.
    pub merge: bool,
    /// When to leave an entry as it is.
    pub differ: Differ,
    /// Changes what is written.
    pub map: Option<StatMap>,
    /// Only entries that it lets through are written; the details of all are
    /// saved in a file of the destination.
    pub metadata_only: Option<StatFilter>,
    /// Is told of the packets' bytes.
    pub progress: Option<Progress>,
    /// Watches the changes.
    pub observer: Option<Arc<dyn Observer>>,
    /// Kept until no thread works on the destination any more, even if the
    /// transfer is dropped: what keeps the destination mounted.
    pub hold: Option<Arc<dyn Any + Send + Sync>>,
}

/// Files that are written at the same time, each by one thread.
const WRITERS: usize = 4;
/// Pieces that wait for one writer.
const PIECES: usize = 64;
/// Announcements that wait for the disk.
const ANNOUNCED: usize = 512;
/// How long a peer has for taking note of an error.
const PARTING: Duration = Duration::from_secs(2);
/// The file that holds the details of a tree whose files were not all
/// transferred.
const METADATA: &str = ".fsutil-metadata";

/// Receives a tree into the directory `dest`, which must exist.
///
/// Nothing the peer sends can touch anything outside of it. Returns after the
/// peer has ended its stream, and not before the last thread has left the
/// directory.
///
/// Whoever reads the link waits for nothing but the local disk: announcements
/// and contents go to threads that never wait for the peer, since their
/// requests go into a queue without bound (one number for every file that is
/// new). So a peer that sends without reading is read from all the same.
pub async fn receive(link: Link, dest: &Path, options: ReceiveOptions) -> Result<(), TransferError> {
    let Link { mut incoming, outgoing } = link;
    let destination = Destination::open(dest)?;
    let (alive, mut ended) = mpsc::channel(1);
    let result = transfer(&mut incoming, &outgoing, destination, options, alive, &mut ended).await;
    // What would feed the threads is gone; nothing is ever sent here, and the
    // last of them closes it.
    while ended.recv().await.is_some() {}
    let Err(error) = result else { return Ok(()) };
    if matches!(error, TransferError::Status(_) | TransferError::Peer { .. } | TransferError::Closed { .. }) {
        return Err(error);
    }
    let message = Packet { r#type: PacketType::PacketErr as i32, data: error.to_string().into(), ..Packet::default() };
    // The peer learns the reason if it still listens.
    let _ = tokio::time::timeout(PARTING, async move {
        let _ = outgoing.send(message).await;
        drop(outgoing);
        while let Some(Ok(_)) = incoming.next().await {}
    })
    .await;
    Err(error)
}

/// How far the threads are.
#[derive(Default)]
struct State {
    /// Files whose contents will be asked for and are not complete.
    outstanding: usize,
    /// Every announcement was followed.
    applied: bool,
    /// All is lost.
    failed: Option<TransferError>,
}

/// The state, and a bell for its changes.
#[derive(Default)]
struct Tally {
    state: Mutex<State>,
    bell: Notify,
}

impl Tally {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.bell.notify_one();
    }

    /// Of several failures the first counts.
    fn fail(&self, error: TransferError) {
        self.note(|state| {
            state.failed.get_or_insert(error);
        });
    }
}

/// What the peer announces.
enum Announcement {
    Entry(u32, Stat),
    /// There is no more. Without it the announcements were cut off, and what is
    /// missing must not be taken for removed.
    End,
}

/// A file whose contents were asked for.
struct Pending {
    stat: Stat,
    mode: u32,
    time: i64,
}

/// What the threads of one transfer share.
struct Shared {
    options: ReceiveOptions,
    pending: Mutex<HashMap<u32, Pending>>,
    tally: Arc<Tally>,
    /// Closes when the last thread has ended.
    _alive: mpsc::Sender<()>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, HashMap<u32, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observed(&self, path: &[u8], change: Change<'_>) -> Result<(), TransferError> {
        match &self.options.observer {
            Some(observer) => observer
                .changed(change)
                .map_err(|message| TransferError::Observer { path: path::display(path).into_owned(), message }),
            None => Ok(()),
        }
    }

    fn hash(&self, stat: &Stat) -> Option<Box<dyn ContentHash>> {
        self.options.observer.as_ref().map(|observer| observer.hash(stat))
    }
}

async fn transfer(
    incoming: &mut BoxStream<'static, Result<Packet, tonic::Status>>,
    outgoing: &mpsc::Sender<Packet>,
    destination: Destination,
    options: ReceiveOptions,
    alive: mpsc::Sender<()>,
    ended: &mut mpsc::Receiver<()>,
) -> Result<(), TransferError> {
    let (requests, mut requested) = mpsc::unbounded_channel();
    let (announce, announced) = mpsc::channel(ANNOUNCED);
    let progress = options.progress.clone();
    let tally = Arc::new(Tally::default());
    let shared = Arc::new(Shared { options, pending: Mutex::default(), tally: tally.clone(), _alive: alive });
    let mut writers =
        Writers { shared: Arc::clone(&shared), queues: [const { None }; WRITERS], root: destination.share()? };
    {
        let (shared, requests) = (Arc::clone(&shared), requests.clone());
        thread("apply changes", move || match Applier::new(destination, &shared, requests).run(announced) {
            Ok(()) => shared.tally.note(|state| state.applied = true),
            Err(error) => shared.tally.fail(error),
        })?;
    }
    drop(shared);

    let read = async move {
        let (mut next, mut received) = (0u32, 0u64);
        let mut announce = Some(announce);
        loop {
            let packet = match incoming.next().await {
                None => return Err(TransferError::Closed { peer: "sender" }),
                Some(packet) => packet?,
            };
            received += packet.encoded_len() as u64;
            if let Some(progress) = &progress {
                progress(received);
            }
            // An unknown kind must not pass for the default, which could mean
            // that there is no more to come.
            let kind = PacketType::try_from(packet.r#type)
                .map_err(|_| TransferError::protocol("sender", format!("unknown packet type {}", packet.r#type)))?;
            match kind {
                PacketType::PacketStat => {
                    let Some(queue) = &announce else {
                        return Err(TransferError::protocol("sender", "an entry after the last one"));
                    };
                    let last = packet.stat.is_none();
                    let announcement = packet.stat.map_or(Announcement::End, |stat| Announcement::Entry(next, stat));
                    next = next.wrapping_add(1);
                    if queue.send(announcement).await.is_err() {
                        // The thread has failed and says so itself.
                        return pending().await;
                    }
                    if last {
                        announce = None;
                    }
                }
                PacketType::PacketData => writers.write(packet.id, packet.data).await?,
                PacketType::PacketErr => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(TransferError::Peer { peer: "sender", message });
                }
                PacketType::PacketFin => break,
                PacketType::PacketReq => {}
            }
        }
        while let Some(packet) = incoming.next().await {
            packet?;
        }
        Ok(())
    };
    let ask = async {
        loop {
            // The end of the queue is the end of the transfer.
            let next = requested.recv().await;
            let kind = if next.is_some() { PacketType::PacketReq } else { PacketType::PacketFin };
            let packet = Packet { r#type: kind as i32, id: next.unwrap_or_default(), ..Packet::default() };
            if outgoing.send(packet).await.is_err() {
                // The connection is gone; its error comes from reading.
                return pending().await;
            }
            if next.is_none() {
                return Ok(());
            }
        }
    };
    let complete = async move {
        loop {
            {
                let mut state = tally.state();
                if let Some(error) = state.failed.take() {
                    return Err(error);
                }
                if state.applied && state.outstanding == 0 {
                    break;
                }
            }
            tokio::select! {
                () = tally.bell.notified() => {}
                // The threads ended without a word: one panicked.
                None = ended.recv() => return Err(TransferError::Cancelled),
            }
        }
        drop(requests);
        Ok(())
    };
    tokio::try_join!(read, ask, complete).map(|_| ())
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), TransferError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(|_| ())
        .map_err(|source| TransferError::write("start a thread to", name, source))
}

/// The threads that write contents. One file is always written by the same.
struct Writers {
    shared: Arc<Shared>,
    queues: [Option<mpsc::Sender<(u32, Bytes)>>; WRITERS],
    root: Destination,
}

impl Writers {
    async fn write(&mut self, id: u32, data: Bytes) -> Result<(), TransferError> {
        let slot = &mut self.queues[id as usize % WRITERS];
        let queue = match slot {
            Some(queue) => queue,
            None => {
                let (queue, pieces) = mpsc::channel(PIECES);
                let (root, shared) = (self.root.share()?, Arc::clone(&self.shared));
                thread("write files", move || {
                    if let Err(error) = write_files(&root, &shared, pieces) {
                        shared.tally.fail(error);
                    }
                })?;
                slot.insert(queue)
            }
        };
        match queue.send((id, data)).await {
            Ok(()) => Ok(()),
            Err(_) => pending().await,
        }
    }
}

struct Arriving {
    pending: Pending,
    contents: Contents,
    hash: Option<Box<dyn ContentHash>>,
}

/// Files that arrive at one writer at the same time. A sender reads four.
const MOST_ARRIVING: usize = 256;

fn write_files(
    root: &Destination,
    shared: &Shared,
    mut pieces: mpsc::Receiver<(u32, Bytes)>,
) -> Result<(), TransferError> {
    let mut files: HashMap<u32, Arriving> = HashMap::new();
    while let Some((id, data)) = pieces.blocking_recv() {
        if !files.contains_key(&id) {
            let pending = shared.pending().remove(&id);
            let pending =
                pending.ok_or_else(|| TransferError::protocol("sender", format!("invalid file request {id}")))?;
            if files.len() >= MOST_ARRIVING {
                return Err(TransferError::protocol("sender", "too many files at once"));
            }
            let (contents, hash) = (root.open_contents(&pending.stat.path)?, shared.hash(&pending.stat));
            files.insert(id, Arriving { pending, contents, hash });
        }
        if !data.is_empty() {
            if let Some(file) = files.get_mut(&id) {
                file.contents
                    .append(&data)
                    .map_err(|error| TransferError::write("write", &file.pending.stat.path, error))?;
                if let Some(hash) = &mut file.hash {
                    hash.update(&data);
                }
            }
        } else if let Some(Arriving { pending, contents, hash }) = files.remove(&id) {
            let path = &pending.stat.path;
            contents
                .finish(pending.mode, pending.time, pending.stat.xattrs.get(CAPABILITY))
                .map_err(|error| TransferError::write("finish", path, error))?;
            if let Some(hash) = hash {
                shared.observed(path, Change::Written { stat: &pending.stat, digest: hash.finish() })?;
            }
            shared.tally.note(|state| state.outstanding -= 1);
        }
    }
    Ok(())
}

/// Follows the announcements: compares them with what is there and makes the
/// difference.
struct Applier<'a> {
    destination: Destination,
    shared: &'a Shared,
    requests: mpsc::UnboundedSender<u32>,
    /// What is there, beside what is announced. None when merging.
    existing: Option<Walk>,
    /// The first of it that was not compared yet.
    current: Option<Stat>,
    /// The announced directories that the walk is in, with their times.
    open: Vec<(Bytes, i64)>,
    /// The directories something was changed in.
    touched: HashMap<Bytes, i64>,
}

impl<'a> Applier<'a> {
    fn new(destination: Destination, shared: &'a Shared, requests: mpsc::UnboundedSender<u32>) -> Self {
        let (open, touched) = (Vec::new(), HashMap::new());
        Self { destination, shared, requests, existing: None, current: None, open, touched }
    }

    fn run(mut self, mut announced: mpsc::Receiver<Announcement>) -> Result<(), TransferError> {
        if !self.shared.options.merge {
            self.existing = Some(Walk::from_fd(self.destination.walkable()?)?);
            self.advance()?;
        }
        let mut validator = Validator::new();
        let mut withheld = self.shared.options.metadata_only.clone().map(Withheld::new);
        loop {
            match announced.blocking_recv() {
                None => return Err(TransferError::Cancelled),
                Some(Announcement::End) => break,
                Some(Announcement::Entry(id, stat)) => match &mut withheld {
                    None => {
                        validator.check(&stat)?;
                        self.take(id, stat)?;
                    }
                    Some(withheld) => {
                        if stat.path == METADATA {
                            continue;
                        }
                        validator.check(&stat)?;
                        for (id, stat) in withheld.pass(id, stat) {
                            self.take(id, stat)?;
                        }
                    }
                },
            }
        }
        self.remove_until(None)?;
        for (path, time) in std::mem::take(&mut self.touched) {
            self.destination.set_time(&path, time)?;
        }
        if let Some(withheld) = withheld {
            self.destination.write_own(METADATA, &withheld.records)?;
        }
        Ok(())
    }

    /// Follows one announcement.
    fn take(&mut self, id: u32, stat: Stat) -> Result<(), TransferError> {
        self.remove_until(Some(&stat.path))?;
        let dir = path::split(&stat.path).0;
        while self.open.last().is_some_and(|(open, _)| open != dir) {
            self.open.pop();
        }
        let mut wanted = stat.clone();
        let write = self.shared.options.map.as_ref().is_none_or(|map| map(&stat.path, &mut wanted));
        let old = self.current.take_if(|current| current.path == stat.path);
        let same = old.as_ref().is_some_and(|old| is_same(old, &wanted, self.shared.options.differ));
        if let Some(old) = &old {
            // What was below a directory goes with it.
            if mode::is_dir(old.mode)
                && !mode::is_dir(wanted.mode)
                && write
                && let Some(existing) = &mut self.existing
            {
                existing.skip();
            }
        }
        if write && !same {
            self.change(id, &stat, &wanted)?;
        }
        if mode::is_dir(wanted.mode) {
            // The time of a directory alone is no change that anybody is told
            // of, but it is what was announced.
            if write && old.as_ref().is_some_and(|old| old.mod_time != wanted.mod_time) {
                self.touched.insert(stat.path.clone(), wanted.mod_time);
            }
            self.open.push((stat.path, wanted.mod_time));
        }
        if old.is_some() {
            self.advance()?;
        }
        Ok(())
    }

    fn change(&mut self, id: u32, stat: &Stat, wanted: &Stat) -> Result<(), TransferError> {
        self.touch_parent();
        match self.destination.write(wanted)? {
            Written::WithoutContents => {
                let pending = Pending { stat: stat.clone(), mode: wanted.mode, time: wanted.mod_time };
                self.shared.pending().insert(id, pending);
                self.shared.tally.note(|state| state.outstanding += 1);
                self.requests.send(id).map_err(|_| TransferError::Cancelled)
            }
            Written::Complete => {
                if mode::is_dir(wanted.mode) {
                    self.touched.insert(wanted.path.clone(), wanted.mod_time);
                }
                match self.shared.hash(stat) {
                    Some(hash) => self.shared.observed(&stat.path, Change::Written { stat, digest: hash.finish() }),
                    None => Ok(()),
                }
            }
        }
    }

    /// Removes what is there but was not announced, up to `path`.
    fn remove_until(&mut self, path: Option<&[u8]>) -> Result<(), TransferError> {
        while let Some(current) = &self.current {
            if path.is_some_and(|path| compare_paths(&current.path, path).is_ge()) {
                break;
            }
            let gone = current.path.clone();
            if let Some(existing) = &mut self.existing {
                existing.skip();
            }
            let remove = match &self.shared.options.map {
                Some(map) => map(&gone, &mut Stat::default()),
                None => true,
            };
            if remove {
                let dir = path::split(&gone).0;
                while self.open.last().is_some_and(|(open, _)| open != dir) {
                    self.open.pop();
                }
                self.touch_parent();
                self.destination.remove(&gone)?;
                self.shared.observed(&gone, Change::Removed { path: &gone })?;
            }
            self.advance()?;
        }
        Ok(())
    }

    fn touch_parent(&mut self) {
        if let Some((dir, time)) = self.open.last()
            && !self.touched.contains_key(dir)
        {
            self.touched.insert(dir.clone(), *time);
        }
    }

    fn advance(&mut self) -> Result<(), TransferError> {
        self.current = None;
        while let Some(walk) = &mut self.existing {
            let Some(step) = walk.step() else {
                self.existing = None;
                break;
            };
            let step = step?;
            if let Some(stat) = walk.stat(&step)? {
                self.current = Some(stat);
                break;
            }
        }
        Ok(())
    }
}

/// Entries that are only recorded, and the directories that are made once
/// something in them is transferred.
struct Withheld {
    filter: StatFilter,
    records: Vec<u8>,
    directories: Vec<(u32, Stat)>,
}

impl Withheld {
    fn new(filter: StatFilter) -> Self {
        Self { filter, records: Vec::new(), directories: Vec::new() }
    }

    /// Records the entry; gives what is to be transferred.
    fn pass(&mut self, id: u32, stat: Stat) -> Vec<(u32, Stat)> {
        let length = u32::try_from(stat.encoded_len()).unwrap_or(u32::MAX);
        self.records.extend_from_slice(&length.to_le_bytes());
        self.records.extend_from_slice(&stat.encode_to_vec());
        let dir = path::split(&stat.path).0;
        while self.directories.last().is_some_and(|(_, open)| dir != open.path && !path::is_below(dir, &open.path)) {
            self.directories.pop();
        }
        if (self.filter)(&stat.path, &stat) {
            let mut passed = std::mem::take(&mut self.directories);
            passed.push((id, stat));
            return passed;
        }
        if mode::is_dir(stat.mode) {
            self.directories.push((id, stat));
        }
        Vec::new()
    }
}

/// Attributes do not count: many file systems add some of their own.
fn is_same(old: &Stat, new: &Stat, differ: Differ) -> bool {
    let same_contents = mode::is_dir(old.mode) || (old.size == new.size && old.mod_time == new.mod_time);
    differ == Differ::Metadata
        && same_contents
        && old.mode == new.mode
        && old.uid == new.uid
        && old.gid == new.gid
        && old.devmajor == new.devmajor
        && old.devminor == new.devminor
        && old.linkname == new.linkname
}
