//! Why a file did not come, in the words of Go's client where users know them.

use std::error::Error as _;

use castor_oci::Digest;
use castor_session::SessionError;
use http::Method;
use reqwest::Url;

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// No URL.
    #[error("parse {0:?}: {1}")]
    Url(String, String),
    /// The server could not be asked.
    #[error("{0}")]
    Request(String),
    /// The server does not give it.
    #[error("invalid response status {0}")]
    Status(u16),
    /// The server says that something is unchanged which it was not asked about.
    #[error("invalid not-modified ETag: {0}")]
    NotModified(String),
    /// The file is another one than the one asked for.
    #[error("digest mismatch {found}: {expected}")]
    Mismatch {
        /// What came.
        found: Digest,
        /// What should have come.
        expected: String,
    },
    /// A header or a secret is no header's value.
    #[error("invalid value of HTTP header {0}")]
    Header(String),
    /// A secret could not be asked for.
    #[error("failed to retrieve HTTP auth secret {0}: {1}")]
    Secret(String, #[source] SessionError),
    /// No client has the secret.
    #[error("failed to retrieve HTTP auth secret {0}: secret {0}: not found")]
    NoSecret(String),
    /// No owner.
    #[error("invalid owner {0} of a file")]
    Owner(i64),
    /// Uploads of clients can only be read.
    #[error("invalid request")]
    Session,
    /// There is no way to ask servers.
    #[error("set up the HTTP client: {0}")]
    Client(String),
    /// The answer broke off.
    #[error("{0}")]
    Body(String),
    /// The file could not be written.
    #[error("write {name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

impl WebError {
    pub(super) fn request(method: &Method, url: &Url, error: &reqwest::Error) -> Self {
        let asked = error.url().unwrap_or(url);
        let method = match *method {
            Method::HEAD => "Head",
            _ => "Get",
        };
        Self::Request(format!("{method} \"{}\": {}", redacted(asked), reason(asked, error)))
    }
}

/// Without the password.
pub(super) fn redacted(url: &Url) -> String {
    if url.password().is_none() {
        return url.to_string();
    }
    let mut shown = url.clone();
    // Only URLs without a host refuse.
    let _ = shown.set_password(Some("xxxxx"));
    shown.to_string()
}

/// The whole chain, the outermost left out where it only repeats the URL.
pub(super) fn cause(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        next = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

fn reason(url: &Url, error: &reqwest::Error) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let what = match io.kind() {
                std::io::ErrorKind::ConnectionRefused => Some("connection refused"),
                std::io::ErrorKind::HostUnreachable => Some("no route to host"),
                std::io::ErrorKind::NetworkUnreachable => Some("network is unreachable"),
                _ => None,
            };
            if let Some(what) = what {
                return format!("dial tcp {host}:{port}: connect: {what}");
            }
            if io.to_string().contains("lookup address information") {
                return format!("dial tcp: lookup {host}: no such host");
            }
        }
        next = error.source();
    }
    if error.is_timeout() && error.is_connect() {
        return format!("dial tcp {host}:{port}: i/o timeout");
    }
    cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusals_are_told_as_go_tells_them() {
        let _ = rustls_provider();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        // A port that was free a moment ago, and on which nobody listens.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url: Url = format!("http://u:secret@127.0.0.1:{port}/x").parse().unwrap();
        let error = client.get(url.clone()).send().await.unwrap_err();
        let told = WebError::request(&Method::GET, &url, &error).to_string();
        let address = format!("127.0.0.1:{port}");
        let want = format!("Get \"http://u:xxxxx@{address}/x\": dial tcp {address}: connect: connection refused");
        // The client takes the user out of the URL that it asks.
        assert_eq!(told.replace("u:xxxxx@", ""), want.replace("u:xxxxx@", ""));
        assert!(!told.contains("secret"), "{told}");
    }

    /// The registry's client installs it in the daemon.
    fn rustls_provider() -> castor_registry::Client {
        castor_registry::Client::new(castor_registry::Config::default()).unwrap()
    }
}
