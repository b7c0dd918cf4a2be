//! A TCP relay that makes a near registry far.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How slow the relay is.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelayOptions {
    /// Added to each round trip, half a direction, and to connecting.
    pub round_trip: Duration,
    /// Bytes a second in each direction, for all connections together; `None` is unlimited.
    pub bandwidth: Option<u64>,
}

/// Passes connections on to a target, slower, and counts. Ends when dropped.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    options: RelayOptions,
    up: Direction,
    down: Direction,
    requests: AtomicU64,
    connections: AtomicU64,
    is_cut: AtomicBool,
    cut: Notify,
}

#[derive(Debug, Default)]
struct Direction {
    bytes: AtomicU64,
    /// When the line is free again.
    free: Mutex<Option<Instant>>,
}

impl Direction {
    /// When `length` bytes are through, if they queue up now.
    fn through(&self, length: usize, bandwidth: Option<u64>) -> Instant {
        let now = Instant::now();
        let Some(bandwidth) = bandwidth else { return now };
        let mut free = self.free.lock();
        let begin = free.map_or(now, |free| free.max(now));
        let end = begin + Duration::from_secs_f64(length as f64 / bandwidth as f64);
        *free = Some(end);
        end
    }
}

impl Relay {
    /// Starts a relay to `target` on a free port of loopback.
    pub async fn start(target: SocketAddr, options: RelayOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            options,
            up: Direction::default(),
            down: Direction::default(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, _serving: serving }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes passed to clients so far.
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.bytes.load(Ordering::Relaxed)
    }

    /// Bytes passed to the target so far.
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.bytes.load(Ordering::Relaxed)
    }

    /// HTTP/1 requests seen so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Sets the counters to zero.
    pub fn reset(&self) {
        let shared = &self.shared;
        for counter in [&shared.up.bytes, &shared.down.bytes, &shared.requests, &shared.connections] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Cuts all connections and refuses new ones until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        self.shared.cut.notify_waiters();
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else { return };
        if shared.is_cut.load(Ordering::SeqCst) {
            continue;
        }
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let cut = shared.cut.notified();
            let mut cut = std::pin::pin!(cut);
            // Listens from here on: a cut between this and the first poll is not missed.
            cut.as_mut().enable();
            tokio::select! {
                () = connection(client, &shared) => {}
                () = cut => {}
            }
        });
    }
}

async fn connection(client: TcpStream, shared: &Arc<Shared>) {
    // The handshake with the far end.
    tokio::time::sleep(shared.options.round_trip).await;
    let Ok(target) = TcpStream::connect(shared.target).await else { return };
    let _ = (client.set_nodelay(true), target.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (target_read, target_write) = target.into_split();
    tokio::join!(
        pump(client_read, target_write, &shared.up, shared, true),
        pump(target_read, client_write, &shared.down, shared, false),
    );
}

/// Passes bytes on: each piece waits for its turn on the line, and then for half a round trip.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    direction: &Direction,
    shared: &Shared,
    is_up: bool,
) {
    const PIECE: usize = 16 << 10;
    /// How far the reading end may be ahead of the line. Timers tick in milliseconds, and a piece takes less: waiting for
    /// each would make the line slower than it says.
    const BURST: Duration = Duration::from_millis(10);
    // Pieces on the way; enough for 1 Gbit/s over 100 ms.
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(1024);
    let read = async {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    if is_up && begins_request(&piece) {
                        shared.requests.fetch_add(1, Ordering::Relaxed);
                    }
                    let through = direction.through(n, shared.options.bandwidth);
                    if through > Instant::now() + BURST {
                        tokio::time::sleep_until(through - BURST).await;
                    }
                    let due = through + shared.options.round_trip / 2;
                    if sender.send((due, piece.freeze())).await.is_err() {
                        break;
                    }
                }
            }
        }
        drop(sender);
    };
    let write = async {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                break;
            }
            direction.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown().await;
        receiver.close();
    };
    tokio::join!(read, write);
}

/// Whether a request's first line stands at the start: clients send a head in one write and wait for the answer.
fn begins_request(piece: &[u8]) -> bool {
    const METHODS: [&[u8]; 6] = [b"GET ", b"HEAD ", b"PUT ", b"POST ", b"PATCH ", b"DELETE "];
    METHODS.iter().any(|method| piece.starts_with(method))
        && piece.split(|byte| *byte == b'\r').next().is_some_and(|line| line.ends_with(b" HTTP/1.1"))
}
