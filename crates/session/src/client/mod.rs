//! The client's half: services that the daemon calls while it builds.
//!
//! ```no_run
//! # async fn example(channel: tonic::transport::Channel, stop: castor_task::CancellationToken) {
//! use castor_session::client::{Session, SharedDirectories};
//!
//! let scope = castor_task::Scope::root("buildctl");
//! let mut directories = SharedDirectories::default();
//! directories.insert("context", ".".into());
//! let session = Session::new("", scope).share(directories);
//! let id = session.id().to_owned(); // goes into the build's request
//! session.run(channel, stop).await.unwrap();
//! # }
//! ```

mod agent;
mod auth;
mod docker;
mod filesend;
mod filesync;
mod layout;
mod secrets;
mod ssh;
mod stores;
mod token;

use std::convert::Infallible;
use std::time::Duration;

use castor_proto::control::control_client::ControlClient;
use castor_task::{CancellationToken, Scope};
use castor_wire::{limited, serve_over, tunnel};
use futures::{StreamExt as _, TryFutureExt as _};
use rand::Rng as _;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataValue;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::{SessionError, key};

pub use agent::{Key, KeyError};
pub use auth::{Keychain, KeychainOptions};
pub use docker::{DockerConfig, DockerConfigError, EnvironmentError, Login};
pub use filesend::{Destination, Exports, OpenStream};
pub use filesync::SharedDirectories;
pub use layout::{Layout, LayoutError, Name};
pub use secrets::{Secret, Secrets};
pub use ssh::{Agents, Forwarded};
pub use stores::Stores;
pub use token::TlsFiles;

/// How long calls may go on after the end was asked for.
const PARTING: Duration = Duration::from_secs(3);

/// A session to be.
pub struct Session {
    id: String,
    shared_key: String,
    scope: Scope,
    services: RoutesBuilder,
    methods: Vec<&'static str>,
}

impl Session {
    /// A session that serves nothing but its health. `shared_key` is the same
    /// for sessions whose directories are; it may be empty. Tasks run in
    /// `scope`.
    pub fn new(shared_key: impl Into<String>, scope: Scope) -> Self {
        let (_, health) = tonic_health::server::health_reporter();
        let mut services = Routes::builder();
        services.add_service(health);
        Self {
            id: new_id(),
            shared_key: shared_key.into(),
            scope,
            services,
            methods: vec!["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"],
        }
    }

    /// The id that requests of the same client name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Lets the daemon read directories.
    #[must_use]
    pub fn share(mut self, directories: SharedDirectories) -> Self {
        self.services.add_service(directories.service(&self.scope));
        self.methods.extend(["/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.FileSync/TarStream"]);
        self
    }

    /// Takes results from the daemon.
    #[must_use]
    pub fn export(mut self, exports: Exports) -> Self {
        self.services.add_service(exports.service(&self.scope));
        self.methods.push("/moby.filesync.v1.FileSend/DiffCopy");
        self
    }

    /// Lets the daemon act as the user at registries.
    #[must_use]
    pub fn authenticate(mut self, keychain: Keychain) -> Self {
        self.services.add_service(keychain.service());
        self.methods.extend([
            "/moby.filesync.v1.Auth/Credentials",
            "/moby.filesync.v1.Auth/FetchToken",
            "/moby.filesync.v1.Auth/GetTokenAuthority",
            "/moby.filesync.v1.Auth/VerifyTokenAuthority",
        ]);
        self
    }

    /// Lets build steps have secrets.
    #[must_use]
    pub fn secrets(mut self, secrets: Secrets) -> Self {
        self.services.add_service(secrets.service());
        self.methods.push("/moby.buildkit.secrets.v1.Secrets/GetSecret");
        self
    }

    /// Lets build steps use SSH agents.
    #[must_use]
    pub fn agents(mut self, agents: Agents) -> Self {
        self.services.add_service(agents.service());
        self.methods.extend(["/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"]);
        self
    }

    /// Lets the daemon read and write blobs in directories.
    #[must_use]
    pub fn stores(mut self, stores: Stores) -> Self {
        self.services.add_service(stores.service());
        self.methods.extend([
            "/containerd.services.content.v1.Content/Info",
            "/containerd.services.content.v1.Content/Update",
            "/containerd.services.content.v1.Content/List",
            "/containerd.services.content.v1.Content/Delete",
            "/containerd.services.content.v1.Content/Read",
            "/containerd.services.content.v1.Content/Status",
            "/containerd.services.content.v1.Content/ListStatuses",
            "/containerd.services.content.v1.Content/Write",
            "/containerd.services.content.v1.Content/Abort",
        ]);
        self
    }

    /// Serves what the methods above do not: `methods` are the full names,
    /// `/package.Service/Method`, that the daemon may look for.
    #[must_use]
    pub fn serve<S>(mut self, service: S, methods: &[&'static str]) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.services.add_service(service);
        self.methods.extend(methods);
        self
    }

    /// Opens the session at the daemon and serves it until the daemon closes it
    /// or `stop` is cancelled.
    pub async fn run(self, daemon: Channel, stop: CancellationToken) -> Result<(), SessionError> {
        let (give, answer) = oneshot::channel();
        let incoming = async move { answer.await.map_err(|_| Status::cancelled("the session was not opened")) };
        let closed = CancellationToken::new();
        let (tunnel, outgoing) = tunnel(incoming.try_flatten_stream(), closed.clone());
        let mut request = Request::new(outgoing);
        let metadata = request.metadata_mut();
        for (name, text) in [(key::ID, &self.id), (key::SHARED_KEY, &self.shared_key)] {
            let invalid = |_| SessionError::Invalid { what: "session metadata", why: format!("{name} is no header") };
            metadata.insert(name, MetadataValue::try_from(text.as_str()).map_err(invalid)?);
        }
        for method in self.methods {
            metadata.append(key::METHOD, MetadataValue::from_static(method));
        }
        let mut control = limited!(ControlClient::new(daemon));
        let answer = tokio::select! {
            answer = control.session(request) => answer?.into_inner(),
            () = stop.cancelled() => return Ok(()),
        };
        // The tunnel is there to take it.
        let _ = give.send(answer.boxed());
        let served = tokio::select! {
            served = serve_over(tunnel, self.services.routes(), &stop) => served,
            // The daemon has closed its side; what it did not wait for is not
            // waited for here either.
            () = closed.cancelled() => Ok(()),
            () = async { stop.cancelled().await; tokio::time::sleep(PARTING).await } => Ok(()),
        };
        if let Err(error) = served {
            tracing::debug!(%error, session = self.id, "the session's connection ended");
        }
        Ok(())
    }
}

/// As long and of the same characters as the ids of BuildKit's clients.
fn new_id() -> String {
    const LENGTH: usize = 25;
    const CHARACTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    (0..LENGTH).map(|_| char::from(CHARACTERS[random.random_range(0..CHARACTERS.len())])).collect()
}
