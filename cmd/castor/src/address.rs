//! A daemon's debug address, and asking it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// The largest answer that is read.
const LARGEST: usize = 256 << 20;

/// Where a daemon tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => f.write_str(host),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.is_empty() {
                bail!("debug address {text:?} names no socket");
            }
            return Ok(Self::Unix(path.into()));
        }
        let host = text.strip_prefix("tcp://").unwrap_or(text);
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if host.contains("://") || port.is_none() {
            bail!("debug address {text:?}: want HOST:PORT, tcp://HOST:PORT or unix://PATH");
        }
        Ok(Self::Tcp(host.to_owned()))
    }
}

impl Address {
    /// The body of the answer to `GET path`.
    pub async fn get(&self, path: &str, patience: Duration) -> Result<Bytes> {
        match tokio::time::timeout(patience, self.ask(path)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer from {self} within {} s", patience.as_secs()),
        }
    }

    async fn ask(&self, path: &str) -> Result<Bytes> {
        let failed = || format!("connect to debug address {self}: does buildkitd run with --debugaddr={self}?");
        match self {
            Self::Tcp(host) => self.converse(TcpStream::connect(host).await.with_context(failed)?, path).await,
            Self::Unix(socket) => self.converse(UnixStream::connect(socket).await.with_context(failed)?, path).await,
        }
    }

    async fn converse<S>(&self, stream: S, path: &str) -> Result<Bytes>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let asked = || format!("ask {self} for {path}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(asked)?;
        let request = Request::get(path)
            .header(header::HOST, "castor")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .with_context(asked)?;
        let answering = async {
            let response = sender.send_request(request).await.with_context(asked)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error)).with_context(asked)?.to_bytes();
            anyhow::Ok((status, body))
        };
        tokio::pin!(connection, answering);
        let (status, body) = tokio::select! {
            answer = &mut answering => answer?,
            ended = &mut connection => {
                ended.with_context(asked)?;
                // The connection ended in order: what it brought is still to be taken.
                answering.await?
            }
        };
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.trim().chars().take(500).collect();
            bail!("{self} answered {path} with {status}: {text}");
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_those_of_the_daemon() {
        for (text, want) in [
            ("127.0.0.1:6060", Address::Tcp("127.0.0.1:6060".into())),
            ("tcp://[::1]:6060", Address::Tcp("[::1]:6060".into())),
            ("unix:///run/debug.sock", Address::Unix("/run/debug.sock".into())),
        ] {
            assert_eq!(text.parse::<Address>().unwrap(), want);
        }
        for text in ["", "6060", "host", "host:x", "http://host:1", "unix://"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
