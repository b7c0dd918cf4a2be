//! Who asks: credentials and how they are reached.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

/// User name and secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Basic {
    /// User name; empty when `secret` is an identity (refresh) token.
    pub user: String,
    /// Password or identity token.
    pub secret: String,
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basic").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What is needed to ask a token server for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The registry's network host with its port (`registry-1.docker.io` for Docker Hub).
    pub host: String,
    /// URL of the token server.
    pub realm: String,
    /// Name of the registry at the token server.
    pub service: String,
    /// Scopes such as `repository:library/golang:pull`.
    pub scopes: Vec<String>,
    /// OAuth client.
    pub client_id: String,
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// How long it is good for, from now; the protocol's default is 60 s.
    pub expires_in: Option<Duration>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why credentials could not be had; `Ok(None)` is the answer for "there are none".
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    /// Whoever had them is gone.
    #[error("no active session")]
    Gone,
    /// Asking failed.
    #[error("{0}")]
    Failed(String),
}

/// Where credentials come from: a client's session, or nowhere.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// Names who asks, now; tokens are shared between equal names and with nobody else. A session's id.
    fn identity(&self) -> String;

    /// Whether asking still makes sense; `false` once the session has ended.
    fn is_alive(&self) -> bool {
        true
    }

    /// The same credentials without whatever else the asker holds: the client keeps them, for
    /// [`Access::proved`], when the build that brought them has ended. `None`: these themselves may be kept.
    fn detached(&self) -> Option<Arc<dyn Credentials>> {
        None
    }

    /// User name and secret for `host`, a registry's network host with its port.
    async fn credentials(&self, host: &str) -> Result<Option<Basic>, CredentialsError>;

    /// Lets the client fetch the token, so that its secret never leaves it. `None`: it does not do that, the daemon
    /// shall ask for [`credentials`](Self::credentials) and fetch itself.
    async fn fetch_token(&self, request: &TokenRequest) -> Result<Option<Token>, CredentialsError> {
        let _ = request;
        Ok(None)
    }
}

/// Nobody's credentials.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    fn identity(&self) -> String {
        String::new()
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Basic>, CredentialsError> {
        Ok(None)
    }
}

/// The same user and secret for every host; for tests and tools.
#[derive(Debug, Clone)]
pub struct Fixed(pub Basic);

#[async_trait]
impl Credentials for Fixed {
    fn identity(&self) -> String {
        format!("fixed:{}", self.0.user)
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Basic>, CredentialsError> {
        Ok(Some(self.0.clone()))
    }
}

/// On whose behalf a request is made.
#[derive(Clone)]
pub struct Access {
    pub(crate) who: Who,
    pub(crate) insecure: bool,
}

#[derive(Clone)]
pub(crate) enum Who {
    /// These credentials and no others.
    One(Arc<dyn Credentials>),
    /// Anybody alive who has proved access to the repository.
    Anyone,
}

impl Access {
    /// On behalf of `credentials` alone: what they may not have, the request does not get.
    pub fn new(credentials: Arc<dyn Credentials>) -> Self {
        Self { who: Who::One(credentials), insecure: false }
    }

    /// Without credentials.
    pub fn anonymous() -> Self {
        Self::new(Arc::new(Anonymous))
    }

    /// On behalf of whoever is alive and has proved access to the repository before, and with tokens that they left: for
    /// layers that are mounted already and outlive the build that opened them.
    pub fn proved() -> Self {
        Self { who: Who::Anyone, insecure: false }
    }

    /// Whether plain HTTP and any certificate are accepted for this request (`registry.insecure` of an exporter).
    #[must_use]
    pub fn with_insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match &self.who {
            Who::One(credentials) => credentials.identity(),
            Who::Anyone => "anyone".into(),
        };
        f.debug_struct("Access").field("who", &who).field("insecure", &self.insecure).finish()
    }
}
