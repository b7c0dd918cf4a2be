//! An OCI registry in this process, which can be told to misbehave.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use castor_oci::{Descriptor, Digest, Reference};

/// How the registry wants to know who asks.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A token of the registry's own token server (`/token`).
    Bearer {
        /// User name and password that the token server wants; `None`: it gives tokens to everybody.
        user: Option<(String, String)>,
        /// How long a token is good for.
        lifetime: Duration,
    },
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Default)]
pub struct On {
    /// Method; `None` is any.
    pub method: Option<http::Method>,
    /// Part of the path, such as `/blobs/` or a digest; empty is any.
    pub path: String,
    /// Requests that match and pass before the fault.
    pub skip: u32,
    /// Requests that get it; 0 is all.
    pub times: u32,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The body ends with the connection after that many bytes, short of what the head said.
    Cut(u64),
    /// The body stops after that many bytes, and the connection stays open.
    Stall(u64),
    /// No answer at all, and the connection stays open.
    Silence,
    /// The connection is closed without an answer.
    Hangup,
    /// A range is answered with status 200 and the whole blob.
    IgnoreRange,
    /// Status 416.
    Unsatisfiable,
    /// This status, with an optional `Retry-After`.
    Status(u16, Option<String>),
    /// The byte at this offset of the blob is flipped.
    Corrupt(u64),
    /// The body is that many bytes shorter than head and range ask for, with a consistent head.
    Short(u64),
    /// `Content-Range` says a range that is shifted by that many bytes.
    ShiftedRange(u64),
    /// The body is claimed to be gzip.
    Encoded,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Method.
    pub method: http::Method,
    /// Path.
    pub path: String,
    /// Query, or nothing.
    pub query: String,
    /// `Range`, as it was sent.
    pub range: Option<String>,
    /// Whether there was an `Authorization`.
    pub authorized: bool,
    /// Status of the answer.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub bytes: u64,
}

/// Builds a [`Registry`].
#[derive(Debug, Clone, Default)]
pub struct RegistryBuilder {
    /// Who may ask.
    pub auth: Auth,
    /// Blobs are answered with a redirect to a signed URL on another port, good for that long.
    pub signed: Option<Duration>,
}

/// The registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {}

impl Registry {
    /// A registry without authentication.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Settings first.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.addr().to_string()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        todo!()
    }

    /// A reference to `name` (`path[:tag]`) here.
    pub fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host()).parse().unwrap()
    }

    /// Puts a blob into the repository `path`.
    pub fn put_blob(&self, path: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let _ = (path, media_type, bytes.into());
        todo!()
    }

    /// Puts a manifest into the repository `path` under its digest and, if it is not empty, `tag`.
    pub fn put_manifest(&self, path: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let _ = (path, tag, media_type, bytes.into());
        todo!()
    }

    /// The blob, if the repository `path` has it.
    pub fn get_blob(&self, path: &str, digest: &Digest) -> Option<Bytes> {
        let _ = (path, digest);
        todo!()
    }

    /// Media type and bytes of the manifest under a tag or digest.
    pub fn get_manifest(&self, path: &str, target: &str) -> Option<(String, Bytes)> {
        let _ = (path, target);
        todo!()
    }

    /// Makes `fault` happen to requests that match `on`.
    pub fn fault(&self, on: On, fault: Fault) {
        let _ = (on, fault);
        todo!()
    }

    /// Ends all faults.
    pub fn heal(&self) {
        todo!()
    }

    /// Makes all tokens and signed URLs given out so far invalid.
    pub fn expire(&self) {
        todo!()
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Logged> {
        todo!()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        todo!()
    }

    /// Bytes of blobs sent so far.
    pub fn blob_bytes(&self) -> u64 {
        todo!()
    }

    /// The parts of the blob that were asked for with `Range`, in order.
    pub fn ranges_of(&self, digest: &Digest) -> Vec<Range<u64>> {
        let _ = digest;
        todo!()
    }
}

impl RegistryBuilder {
    /// Sets who may ask.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Redirects blobs to signed URLs.
    #[must_use]
    pub fn signed(mut self, lifetime: Duration) -> Self {
        self.signed = Some(lifetime);
        self
    }

    /// Starts it on a free port of loopback.
    pub async fn start(self) -> Registry {
        todo!()
    }
}
