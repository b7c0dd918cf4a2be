//! The server's end of connections.

use std::io;
use std::os::fd::FromRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::{Address, CONNECTION_WINDOW, HEADER_LIST, MAX_STREAMS, STREAM_WINDOW, ServerTls, TlsError};

/// How long a peer may take over its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes go on at once.
const HANDSHAKES: usize = 1024;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be made.
    #[error("listen on {address}: {verb}: {source}")]
    Socket {
        /// The address.
        address: Address,
        /// What was tried.
        verb: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody listens there already.
    #[error("listen on {0}: another daemon answers there")]
    InUse(Address),
    /// The certificates are unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How to listen.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// Who owns a unix socket; its mode is 0660.
    pub owner: Option<(u32, u32)>,
    /// Speak TLS, on TCP only.
    pub tls: Option<ServerTls>,
}

/// A socket that waits for connections.
pub struct Listener {
    address: Address,
    socket: Socket,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

impl Listener {
    /// Listens on `address`. A unix socket that nobody answers on is replaced.
    pub fn bind(address: &Address, options: &BindOptions) -> Result<Self, BindError> {
        let failed = |verb, source| BindError::Socket { address: address.clone(), verb, source };
        let acceptor = || match &options.tls {
            Some(tls) => tls.load().map(|config| Some(TlsAcceptor::from(config))),
            None => Ok(None),
        };
        let socket = match address {
            Address::Unix(path) => {
                remove_stale(path, address)?;
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(|source| failed("create directory", source))?;
                }
                let socket = UnixListener::bind(path).map_err(|source| failed("bind", source))?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
                    .map_err(|source| failed("set mode", source))?;
                if let Some((uid, gid)) = options.owner {
                    std::os::unix::fs::chown(path, Some(uid), Some(gid))
                        .map_err(|source| failed("set owner", source))?;
                }
                Socket::Unix(socket)
            }
            Address::Tcp(text) => {
                let socket = std::net::TcpListener::bind(text).map_err(|source| failed("bind", source))?;
                socket.set_nonblocking(true).map_err(|source| failed("set non-blocking", source))?;
                let socket = TcpListener::from_std(socket).map_err(|source| failed("register", source))?;
                Socket::Tcp(socket, acceptor()?)
            }
            Address::Inherited => inherited(acceptor()?).map_err(|source| failed("take over", source))?,
        };
        Ok(Self { address: address.clone(), socket })
    }

    /// Where it listens; with the port that was chosen if none was asked for.
    pub fn address(&self) -> Address {
        match &self.socket {
            Socket::Tcp(socket, _) => {
                socket.local_addr().map_or_else(|_| self.address.clone(), |local| Address::Tcp(local.to_string()))
            }
            Socket::Unix(_) => self.address.clone(),
        }
    }

    /// The connections, with their handshakes done. A peer that fails at its
    /// handshake is dropped; an error is of the listener itself.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        let socket = Arc::new(self.socket);
        let address = self.address;
        let accepted = futures::stream::unfold(socket, |socket| async move {
            let next = socket.accept().await;
            Some((next, socket))
        });
        accepted
            .map(move |accepted| {
                let address = address.clone();
                async move {
                    match accepted {
                        Ok(Accepted::Ready(connection)) => Some(Ok(connection)),
                        Ok(Accepted::Handshake(acceptor, stream)) => handshake(acceptor, stream).await.map(Ok),
                        Err(error) => {
                            // Out of descriptors, most of all: it passes, and
                            // trying at once would only spin.
                            tracing::warn!(%address, %error, "accept a connection");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            None
                        }
                    }
                }
            })
            .buffer_unordered(HANDSHAKES)
            .filter_map(futures::future::ready)
    }
}

enum Accepted {
    Ready(Connection),
    Handshake(TlsAcceptor, TcpStream),
}

impl Socket {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                Ok(Accepted::Ready(Connection(Kind::Unix(stream))))
            }
            Self::Tcp(socket, acceptor) => {
                let (stream, _) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok(match acceptor {
                    Some(acceptor) => Accepted::Handshake(acceptor.clone(), stream),
                    None => Accepted::Ready(Connection(Kind::Tcp(stream))),
                })
            }
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> Option<Connection> {
    let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Connection(Kind::Tls(Box::new(stream)))),
        Ok(Err(error)) => {
            tracing::info!(peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(peer, "TLS handshake took too long");
            None
        }
    }
}

fn remove_stale(path: &Path, address: &Address) -> Result<(), BindError> {
    let failed = |verb, source| BindError::Socket { address: address.clone(), verb, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at the old socket", error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(failed("replace", io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        Ok(_) => {}
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(BindError::InUse(address.clone()));
    }
    std::fs::remove_file(path).map_err(|source| failed("remove the old socket", source))
}

/// The first descriptor that the service manager passes.
#[allow(unsafe_code)] // A descriptor number becomes an owner.
fn inherited(acceptor: Option<TlsAcceptor>) -> io::Result<Socket> {
    const FIRST: i32 = 3;
    let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse::<u32>().ok());
    let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    if pid != Some(std::process::id()) || count == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no sockets were passed to this process"));
    }
    // SAFETY: LISTEN_PID names this process, so by the service manager's protocol the descriptor is open and meant for
    // whoever asks for it; nothing else in this program takes it, and a daemon asks once.
    let socket = unsafe { std::net::TcpListener::from_raw_fd(FIRST) };
    socket.set_nonblocking(true)?;
    if socket.local_addr().is_ok() {
        Ok(Socket::Tcp(TcpListener::from_std(socket)?, acceptor))
    } else {
        let socket = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
        Ok(Socket::Unix(UnixListener::from_std(socket)?))
    }
}

/// A connection from a client.
pub struct Connection(Kind);

enum Kind {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// Who is at the other end, as an extension of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine.
    Local {
        /// Its id, if known.
        pid: Option<i32>,
        /// Its user, if known.
        uid: Option<u32>,
    },
    /// A machine.
    Remote(std::net::SocketAddr),
    /// It has gone already.
    Unknown,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let remote = |stream: &TcpStream| stream.peer_addr().map_or(Peer::Unknown, Peer::Remote);
        match &self.0 {
            Kind::Unix(stream) => {
                stream.peer_cred().map_or(Peer::Unknown, |peer| Peer::Local { pid: peer.pid(), uid: Some(peer.uid()) })
            }
            Kind::Tcp(stream) => remote(stream),
            Kind::Tls(stream) => remote(stream.get_ref().0),
        }
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().0 {
            Kind::Unix($stream) => $call,
            Kind::Tcp($stream) => $call,
            Kind::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Unix(stream) => stream.is_write_vectored(),
            Kind::Tcp(stream) => stream.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A gRPC server with the limits that clients of BuildKit count on.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(HEADER_LIST)
}
