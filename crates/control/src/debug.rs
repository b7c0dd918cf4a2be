//! The debug address: metrics, and what is in flight.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use castor_task::Scope;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// What the debug address shows; asked anew for each request.
#[tonic::async_trait]
pub trait Insight: Send + Sync + 'static {
    /// Metrics in the Prometheus text format.
    async fn metrics(&self) -> String;
    /// Builds, vertices, fetches and mounts that are in flight.
    async fn in_flight(&self) -> serde_json::Value;
    /// Layers: lazy or eager and why, bytes fetched of size, requests. The error says what cannot be read.
    async fn layers(&self) -> Result<serde_json::Value, String>;
}

/// Why the debug address could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// Of no known form.
    #[error("debug address {0:?}: want host:port, tcp://host:port or unix://path")]
    Address(String),
    /// Listening failed.
    #[error("listen on debug address {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Listens on `address` and serves `insight` until `scope` is cancelled. Returns the address that was bound, which tells
/// the port where port 0 was asked for.
pub async fn serve(address: &str, insight: Arc<dyn Insight>, scope: &Scope) -> Result<String, DebugError> {
    let listen = |source| DebugError::Listen { address: address.to_owned(), source };
    let (listener, bound) = if let Some(path) = address.strip_prefix("unix://") {
        // A socket that a dead daemon left is in the way; the lock of the state directory says that nobody uses it.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        (Listener::Unix(UnixListener::bind(path).map_err(listen)?), address.to_owned())
    } else {
        let host = address.strip_prefix("tcp://").unwrap_or(address);
        if host.contains("://") || !host.contains(':') {
            return Err(DebugError::Address(address.to_owned()));
        }
        let listener = TcpListener::bind(host).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?.to_string();
        (Listener::Tcp(listener), bound)
    };
    let connections = scope.clone();
    scope.spawn_named("debug address", async move {
        loop {
            let accepted = tokio::select! {
                () = connections.token().cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => drop(connections.spawn(converse(stream, insight.clone(), connections.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "accept on debug address");
                    return;
                }
            }
        }
    });
    Ok(bound)
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn converse(stream: Box<dyn Stream>, insight: Arc<dyn Insight>, scope: Scope) {
    let service = service_fn(move |request: Request<Incoming>| {
        let insight = insight.clone();
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), insight.as_ref()).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = scope.token().cancelled() => {}
        outcome = connection => {
            if let Err(error) = outcome {
                tracing::debug!(%error, "debug connection");
            }
        }
    }
}

async fn answer(method: &Method, path: &str, insight: &dyn Insight) -> Response<Full<Bytes>> {
    let json = |value: serde_json::Value| (StatusCode::OK, "application/json", format!("{value:#}\n"));
    let (status, kind, body) = match path {
        _ if method != Method::GET => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
        "/metrics" => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", insight.metrics().await)
        }
        "/debug/inflight" => json(insight.in_flight().await),
        "/debug/layers" => match insight.layers().await {
            Ok(layers) => json(layers),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        "/" => (StatusCode::OK, "text/plain", "/metrics\n/debug/inflight\n/debug/layers\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", format!("{path}: not found\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fake;

    #[tonic::async_trait]
    impl Insight for Fake {
        async fn metrics(&self) -> String {
            "castor_up 1\n".into()
        }
        async fn in_flight(&self) -> serde_json::Value {
            serde_json::json!({"builds": []})
        }
        async fn layers(&self) -> Result<serde_json::Value, String> {
            Err("the disk is gone".into())
        }
    }

    async fn get(address: &str, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn serves_metrics_and_dumps_until_its_scope_ends() {
        let scope = Scope::root("test");
        let address = serve("127.0.0.1:0", Arc::new(Fake), &scope).await.unwrap();
        assert!(get(&address, "/metrics").await.ends_with("castor_up 1\n"));
        assert!(get(&address, "/debug/inflight").await.contains("\"builds\": []"));
        assert!(get(&address, "/nothing").await.starts_with("HTTP/1.1 404"));
        let failed = get(&address, "/debug/layers").await;
        assert!(failed.starts_with("HTTP/1.1 500") && failed.ends_with("the disk is gone\n"), "{failed}");
        scope.close(Duration::from_secs(10)).await.unwrap();
        assert!(tokio::net::TcpStream::connect(&address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_of_no_known_form_is_refused() {
        let scope = Scope::root("test");
        let error = serve("fd://3", Arc::new(Fake), &scope).await.unwrap_err();
        assert!(error.to_string().contains("fd://3"));
    }
}
