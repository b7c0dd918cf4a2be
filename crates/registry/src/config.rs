//! What the daemon's configuration says about registries.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How the client behaves; `Config::default()` is usable as it is.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[registry."host"]` of the daemon's configuration, by host.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Bulk transfers at once a host (`[system] maxRegistryConcurrency`); 0 means the default, 4.
    pub max_concurrency: usize,
    /// On-demand range reads and small requests at once a host, beside the bulk transfers; 0 means the default, 16.
    pub on_demand_concurrency: usize,
    /// Time a connection may take to be made.
    pub connect_timeout: Duration,
    /// Time in which no byte may arrive (or leave) before a transfer is given up and tried again.
    pub stall_timeout: Duration,
    /// How often a request is sent before its failure is reported; progress of a body starts the count anew.
    pub max_attempts: u32,
    /// The first pause between attempts; doubles each time, with jitter.
    pub backoff: Duration,
    /// The longest a `Retry-After` is waited for; a longer one is reported as an error at once.
    pub max_retry_after: Duration,
    /// Time that one way to a token (a session's answer, a token server's) may take.
    pub auth_timeout: Duration,
    /// `User-Agent`.
    pub user_agent: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            max_concurrency: 4,
            on_demand_concurrency: 16,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            max_attempts: 5,
            backoff: Duration::from_millis(100),
            max_retry_after: Duration::from_secs(60),
            auth_timeout: Duration::from_secs(15),
            user_agent: concat!("castor/", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}

/// `[registry."host"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Tried in this order before the host itself, for pulls only; `host[:port][/path]`.
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset: only for loopback hosts. Together with `insecure`: HTTPS first, then HTTP.
    pub http: Option<bool>,
    /// Accept any certificate.
    pub insecure: Option<bool>,
    /// PEM files with further certificate authorities.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypairs: Vec<KeyPair>,
    /// Directories in Docker's `certs.d` layout: `*.crt` are authorities, `*.cert` with `*.key` client certificates.
    pub tls_config_dirs: Vec<PathBuf>,
}

/// A client certificate, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate chain.
    pub cert: PathBuf,
}
