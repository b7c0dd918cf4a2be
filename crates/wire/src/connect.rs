//! The client's end of connections.

use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{Address, CONNECTION_WINDOW, ClientTls, HEADER_LIST, STREAM_WINDOW, TlsError};

/// A daemon that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection.
    #[error("connect to {address}: {source}")]
    Connect {
        /// The daemon's address.
        address: Address,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An address that only a daemon can use.
    #[error("cannot connect to {0}")]
    NotDialable(Address),
    /// The certificates are unusable, or the daemon's is not trusted.
    #[error("connect to {address}: {source}")]
    Tls {
        /// The daemon's address.
        address: Address,
        /// What is wrong.
        source: TlsError,
    },
    /// What answers does not speak HTTP/2.
    #[error("connect to {address}: {source}")]
    Transport {
        /// The daemon's address.
        address: Address,
        /// What is wrong.
        source: tonic::transport::Error,
    },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The settings of every connection that this side opens. The authority is one
/// that every HTTP/2 implementation takes, also where the connection is a unix
/// socket.
pub fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADER_LIST)
}

/// Connects to the daemon at `address`. The channel connects anew if the
/// connection is lost.
pub async fn dial(address: &Address, tls: Option<&ClientTls>, timeout: Duration) -> Result<Channel, DialError> {
    let dialer = Dialer::new(address, tls)?;
    // The first connection is made here, so that its error is precise.
    let mut first = Some(match tokio::time::timeout(timeout, dialer.connect()).await {
        Ok(connected) => connected?,
        Err(_) => {
            return Err(DialError::Connect { address: address.clone(), source: io::ErrorKind::TimedOut.into() });
        }
    });
    let connector = service_fn(move |_: Uri| {
        let ready = first.take();
        let dialer = dialer.clone();
        async move {
            match ready {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dialer.connect().await.map(TokioIo::new),
            }
        }
    });
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|source| DialError::Transport { address: address.clone(), source })
}

/// Connects without speaking: for passing bytes through.
pub async fn dial_raw(
    address: &Address,
    tls: Option<&ClientTls>,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, DialError> {
    Dialer::new(address, tls)?.connect().await
}

#[derive(Clone)]
struct Dialer {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dialer {
    fn new(address: &Address, tls: Option<&ClientTls>) -> Result<Self, DialError> {
        let failed = |source| DialError::Tls { address: address.clone(), source };
        let tls = match (address, tls) {
            (Address::Tcp(_), Some(tls)) => {
                let name = tls.server_name.as_deref().or(address.host()).unwrap_or_default().to_owned();
                let config = tls.load().map_err(failed)?;
                let name = ServerName::try_from(name.clone()).map_err(|_| failed(TlsError::Name(name)))?;
                Some((TlsConnector::from(config), name))
            }
            _ => None,
        };
        Ok(Self { address: address.clone(), tls })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, DialError> {
        let failed = |source| DialError::Connect { address: self.address.clone(), source };
        match &self.address {
            Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Address::Tcp(text) => {
                let stream = TcpStream::connect(text).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                match &self.tls {
                    None => Ok(Box::new(stream)),
                    Some((connector, name)) => {
                        let stream = connector.connect(name.clone(), stream).await.map_err(|source| {
                            DialError::Tls { address: self.address.clone(), source: TlsError::Handshake(source) }
                        })?;
                        Ok(Box::new(stream))
                    }
                }
            }
            Address::Inherited => Err(DialError::NotDialable(self.address.clone())),
        }
    }
}
