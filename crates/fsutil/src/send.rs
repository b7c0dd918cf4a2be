//! The half that announces a tree and serves its contents.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as queue};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{Packet, PacketType, TransferError, Tree, WalkError, mode, path};

/// A connection to the other half. Dropping it ends this side's stream.
pub struct Link {
    /// What the peer sends; its end is the end of the peer's stream.
    pub incoming: BoxStream<'static, Result<Packet, tonic::Status>>,
    /// What is sent to the peer.
    pub outgoing: mpsc::Sender<Packet>,
}

/// Is told the number of bytes transferred so far; from any thread.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Files that are read at the same time.
const READERS: usize = 4;
/// Bytes of a file in one packet.
const PIECE: usize = 32 << 10;

/// Sends `tree` over `link`.
///
/// Returns once the peer has all it wants. The link is given back with the
/// peer's stream still open, for what may follow on it: a status.
///
/// Requests are taken at any time and wait in a queue without bound, which
/// holds at most one number for every announced file: were they left on the
/// link while the threads here wait for the peer to take data, a peer that does
/// the same would wait forever.
pub async fn send(link: Link, tree: Arc<dyn Tree>, progress: Option<Progress>) -> Result<Link, TransferError> {
    let Link { mut incoming, outgoing } = link;
    // Each thread tells of one error at most.
    let (events, mut happened) = mpsc::channel(READERS + 1);
    let shared = Arc::new(Shared {
        tree,
        outgoing: outgoing.clone(),
        files: Mutex::default(),
        sent: AtomicU64::new(0),
        progress,
        stop: AtomicBool::new(false),
    });
    let _stop = StopOnDrop(Arc::clone(&shared));
    spawn("announce tree", &shared, &events, Shared::announce)?;
    let mut readers = Readers::new(&shared, events);
    loop {
        let error = tokio::select! {
            packet = incoming.next() => match packet {
                None => return Err(TransferError::Closed { peer: "receiver" }),
                Some(Err(status)) => return Err(status.into()),
                Some(Ok(packet)) => match PacketType::try_from(packet.r#type) {
                    Ok(PacketType::PacketReq) => match readers.queue(packet.id) {
                        Ok(()) => continue,
                        Err(error) => error,
                    },
                    Ok(PacketType::PacketFin) => {
                        let fin = Packet { r#type: PacketType::PacketFin as i32, ..Packet::default() };
                        // A peer that is gone already has all it wanted.
                        let _ = outgoing.send(fin).await;
                        return Ok(Link { incoming, outgoing });
                    }
                    Ok(PacketType::PacketErr) => {
                        let message = String::from_utf8_lossy(&packet.data).into_owned();
                        return Err(TransferError::Peer { peer: "receiver", message });
                    }
                    Ok(PacketType::PacketStat | PacketType::PacketData) => continue,
                    Err(_) => TransferError::protocol("receiver", format!("unknown packet type {}", packet.r#type)),
                },
            },
            Some(failure) = happened.recv() => match failure {
                // The peer reads no more; its own words are still to come.
                TransferError::Cancelled => continue,
                error => error,
            },
        };
        let message =
            Packet { r#type: PacketType::PacketErr as i32, data: error.to_string().into(), ..Packet::default() };
        let _ = outgoing.send(message).await;
        return Err(error);
    }
}

/// What the threads of one transfer work on.
struct Shared {
    tree: Arc<dyn Tree>,
    outgoing: mpsc::Sender<Packet>,
    /// The announced files that were not requested yet.
    files: Mutex<HashMap<u32, Bytes>>,
    sent: AtomicU64,
    progress: Option<Progress>,
    stop: AtomicBool,
}

/// Lets the threads end with the transfer, whether it is complete or dropped.
struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The work of a thread. Waiting for the peer may take as long as the peer
/// likes, so it is a thread of its own and none of a pool that others need.
fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    events: &mpsc::Sender<TransferError>,
    work: impl FnOnce(&Shared) -> Result<(), TransferError> + Send + 'static,
) -> Result<(), TransferError> {
    let (shared, events) = (Arc::clone(shared), events.clone());
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            if let Err(error) = work(&shared) {
                // Nobody listens once the transfer is over.
                let _ = events.try_send(error);
            }
        })
        .map(|_| ())
        .map_err(|source| TransferError::Read { path: format!("thread to {name}"), source })
}

struct Readers {
    shared: Arc<Shared>,
    events: mpsc::Sender<TransferError>,
    requests: queue::Sender<(u32, Bytes)>,
    waiting: Arc<Mutex<queue::Receiver<(u32, Bytes)>>>,
    count: usize,
}

impl Readers {
    fn new(shared: &Arc<Shared>, events: mpsc::Sender<TransferError>) -> Self {
        let (requests, waiting) = queue::channel();
        Self { shared: Arc::clone(shared), events, requests, waiting: Arc::new(Mutex::new(waiting)), count: 0 }
    }

    fn queue(&mut self, id: u32) -> Result<(), TransferError> {
        let path = self.shared.lock_files().remove(&id);
        let path = path.ok_or_else(|| TransferError::protocol("receiver", format!("invalid file id {id}")))?;
        if self.count < READERS {
            let waiting = Arc::clone(&self.waiting);
            spawn("read files", &self.shared, &self.events, move |shared| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // The queue ends with the transfer.
                    let Ok((id, path)) = next else { return Ok(()) };
                    shared.serve(id, &path)?;
                }
            })?;
            self.count += 1;
        }
        // The queue lives as long as the readers' end, which is held here.
        let _ = self.requests.send((id, path));
        Ok(())
    }
}

impl Shared {
    fn lock_files(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Bytes>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, packet: Packet) -> Result<(), TransferError> {
        let size = packet.encoded_len() as u64;
        self.post_uncounted(packet)?;
        let sent = self.sent.fetch_add(size, Ordering::Relaxed) + size;
        if let Some(progress) = &self.progress {
            progress(sent);
        }
        Ok(())
    }

    /// Sends a packet that marks an end: BuildKit counts none of those, and users see the count.
    fn post_uncounted(&self, packet: Packet) -> Result<(), TransferError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(TransferError::Cancelled);
        }
        self.outgoing.blocking_send(packet).map_err(|_| TransferError::Cancelled)
    }

    /// Announces every entry. Its place in the order is its number, whether it
    /// can be requested or not.
    fn announce(&self) -> Result<(), TransferError> {
        let mut next = 0u32;
        let mut failed = None;
        let walked = self.tree.walk(&mut |stat| {
            if mode::is_regular(stat.mode) {
                self.lock_files().insert(next, stat.path.clone());
            }
            next = next.wrapping_add(1);
            let packet = Packet { stat: Some(stat), ..Packet::default() };
            self.post(packet).map_err(|error| {
                failed = Some(error);
                WalkError::Stopped
            })
        });
        match failed {
            Some(error) => return Err(error),
            None => walked?,
        }
        self.post_uncounted(Packet::default())
    }

    /// Sends the contents of a file; an empty piece is their end.
    ///
    /// What is no file any more is empty: a socket is announced as a file, and a
    /// file may be gone. One that cannot be read is an error; the other side
    /// would build with an empty file otherwise.
    fn serve(&self, id: u32, path: &[u8]) -> Result<(), TransferError> {
        let read = |source| TransferError::Read { path: path::display(path).into_owned(), source };
        let data = |data| Packet { r#type: PacketType::PacketData as i32, id, data, ..Packet::default() };
        match self.tree.open(path) {
            Ok(mut file) => {
                let mut buffer = vec![0; PIECE];
                loop {
                    let count = match file.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(count) => count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(read(error)),
                    };
                    self.post(data(Bytes::copy_from_slice(&buffer[..count])))?;
                }
            }
            Err(error) if is_no_file(&error) => {}
            Err(error) => return Err(read(error)),
        }
        self.post_uncounted(data(Bytes::new()))
    }
}

fn is_no_file(error: &io::Error) -> bool {
    const NO_DEVICE_OR_ADDRESS: i32 = 6;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_DEVICE_OR_ADDRESS)
}
