//! Where requests for a registry go: its mirrors and itself, with the HTTP client for each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::{Certificate, Identity, Url};

use crate::{Config, Error, HostConfig};

/// How long an endpoint that could not be reached is tried after the others.
const DOWN: Duration = Duration::from_secs(10);

const HTTPS: u8 = 0;
const HTTP: u8 = 1;
/// HTTPS until it fails, then HTTP; the first that works is kept.
const EITHER: u8 = 2;
/// HTTPS has failed just now and HTTP has not answered yet.
const FALLEN_BACK: u8 = 3;

/// One place that may answer for a registry.
pub(crate) struct Endpoint {
    /// Network host with port.
    pub host: String,
    /// What stands between `/v2` and the repository: a mirror's path, with a leading slash, or nothing.
    prefix: String,
    /// The registry a mirror is asked for.
    pub namespace: Option<String>,
    pub http: reqwest::Client,
    scheme: AtomicU8,
    down: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({}{})", self.host, self.prefix)
    }
}

impl Endpoint {
    /// The URL of `rest` (`blobs/sha256:...`) of the repository `path`.
    pub fn url(&self, path: &str, rest: &str) -> Result<Url, Error> {
        let scheme = match self.scheme.load(Ordering::Relaxed) {
            HTTP | FALLEN_BACK => "http",
            _ => "https",
        };
        let text = format!("{scheme}://{}/v2{}/{path}/{rest}", self.host, self.prefix);
        let mut url = Url::parse(&text).map_err(|e| self.config_error(format!("{text}: {e}")))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The repository `path` as this endpoint calls it.
    pub fn repository(&self, path: &str) -> String {
        format!("{}/{path}", self.prefix).trim_start_matches('/').to_owned()
    }

    /// Whether a failed HTTPS connection may be tried again over HTTP, at once.
    pub fn fall_back(&self) -> bool {
        self.turn(EITHER, FALLEN_BACK)
    }

    /// Nobody listens: the next attempt begins with HTTPS again, if HTTP never answered.
    pub fn unreachable(&self) {
        self.turn(FALLEN_BACK, EITHER);
    }

    /// It answered: from now on it is what it is.
    pub fn answered(&self) {
        let _ = self.turn(EITHER, HTTPS) || self.turn(FALLEN_BACK, HTTP);
        *self.down.lock() = None;
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.scheme.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub fn set_down(&self) {
        *self.down.lock() = Some(Instant::now());
    }

    fn is_down(&self) -> bool {
        self.down.lock().is_some_and(|since| since.elapsed() < DOWN)
    }

    fn config_error(&self, detail: String) -> Error {
        Error::Config { host: self.host.clone(), detail }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct EndpointsKey {
    host: String,
    purpose: Purpose,
    insecure: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ClientKey {
    /// The host whose certificates it has, if that host has any.
    host: Option<String>,
    insecure: bool,
    direct: bool,
}

/// All endpoints and HTTP clients, made when they are first needed.
#[derive(Debug)]
pub(crate) struct Hosts {
    config: Arc<Config>,
    endpoints: Mutex<HashMap<EndpointsKey, Arc<[Arc<Endpoint>]>>>,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

impl Hosts {
    pub fn new(config: Arc<Config>) -> Result<Self, Error> {
        // Without a default provider reqwest panics; a binary that wants another one has installed it by now.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let hosts = Self { config, endpoints: Mutex::default(), clients: Mutex::default() };
        // Certificate files that cannot be read are told at start, not in the middle of a build.
        for (host, settings) in &hosts.config.hosts {
            if has_certificates(settings) {
                hosts.client(host, false)?;
            }
        }
        Ok(hosts)
    }

    /// The endpoints for `host` (as users write it), best first: those that were not reached lately stand last.
    pub fn endpoints(&self, host: &str, purpose: Purpose, insecure: bool) -> Result<Vec<Arc<Endpoint>>, Error> {
        let key = EndpointsKey { host: host.to_owned(), purpose, insecure };
        let known = self.endpoints.lock().get(&key).cloned();
        let all = match known {
            Some(all) => all,
            None => {
                let made = self.make_endpoints(host, purpose, insecure)?;
                Arc::clone(self.endpoints.lock().entry(key).or_insert(made))
            }
        };
        let (mut up, down): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|endpoint| !endpoint.is_down());
        up.extend(down);
        Ok(up)
    }

    fn make_endpoints(&self, host: &str, purpose: Purpose, insecure: bool) -> Result<Arc<[Arc<Endpoint>]>, Error> {
        let mut made = Vec::new();
        if purpose == Purpose::Pull
            && let Some(settings) = self.config.hosts.get(host)
        {
            for mirror in &settings.mirrors {
                let mirror = mirror.trim_start_matches("https://").trim_start_matches("http://");
                let (network, path) = mirror.split_once('/').unwrap_or((mirror, ""));
                let path = path.trim_matches('/');
                let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
                made.push(self.endpoint(network, network, prefix, Some(host.to_owned()), false)?);
            }
        }
        let network = if host == "docker.io" { "registry-1.docker.io" } else { host };
        made.push(self.endpoint(host, network, String::new(), None, insecure)?);
        Ok(made.into())
    }

    fn endpoint(
        &self,
        configured: &str,
        network: &str,
        prefix: String,
        namespace: Option<String>,
        insecure: bool,
    ) -> Result<Arc<Endpoint>, Error> {
        let settings = self.config.hosts.get(configured);
        let plain = insecure || settings.and_then(|s| s.http).unwrap_or_else(|| is_loopback(network));
        let insecure = insecure || settings.and_then(|s| s.insecure).unwrap_or(false);
        let scheme = match (plain, insecure) {
            (true, true) => EITHER,
            (true, false) => HTTP,
            (false, _) => HTTPS,
        };
        Ok(Arc::new(Endpoint {
            host: network.to_owned(),
            prefix,
            namespace,
            http: self.client(configured, insecure)?,
            scheme: AtomicU8::new(scheme),
            down: Mutex::new(None),
        }))
    }

    /// The client for a URL that no endpoint names: a redirect's target, a token server.
    pub fn client_for(&self, url: &Url) -> Result<reqwest::Client, Error> {
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let insecure = self.config.hosts.get(&host).and_then(|s| s.insecure).unwrap_or(false);
        self.client(&host, insecure)
    }

    fn client(&self, host: &str, insecure: bool) -> Result<reqwest::Client, Error> {
        let settings = self.config.hosts.get(host).filter(|settings| has_certificates(settings));
        // As Go does, loopback is never asked through a proxy.
        let direct = is_loopback(host);
        let key = ClientKey { host: settings.map(|_| host.to_owned()), insecure, direct };
        if let Some(client) = self.clients.lock().get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(host, settings, insecure, direct)?;
        Ok(self.clients.lock().entry(key).or_insert(client).clone())
    }

    fn build(
        &self,
        host: &str,
        settings: Option<&HostConfig>,
        insecure: bool,
        direct: bool,
    ) -> Result<reqwest::Client, Error> {
        let fail = |detail: String| Error::Config { host: host.to_owned(), detail };
        let (authorities, identities) = match settings {
            Some(settings) => certificates(settings).map_err(fail)?,
            None => (Vec::new(), Vec::new()),
        };
        let builder = |roots_of_system: bool| {
            let mut builder = reqwest::Client::builder()
                .user_agent(&self.config.user_agent)
                .connect_timeout(self.config.connect_timeout)
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(30))
                .http2_initial_stream_window_size(4 << 20)
                .http2_initial_connection_window_size(16 << 20)
                .retry(reqwest::retry::never())
                .referer(false);
            if direct {
                builder = builder.no_proxy();
            }
            if insecure {
                builder = builder.tls_danger_accept_invalid_certs(true);
            }
            builder = if roots_of_system {
                builder.tls_certs_merge(authorities.iter().cloned())
            } else {
                builder.tls_certs_only(authorities.iter().cloned())
            };
            // rustls offers one identity; further ones have no way to be chosen.
            if let Some(identity) = identities.first() {
                builder = builder.identity(identity.clone());
            }
            builder.build()
        };
        match builder(true) {
            Ok(client) => Ok(client),
            // A machine without any certificate authority can still use plain HTTP, and those that are configured.
            Err(first) => builder(false).map_err(|_| fail(crate::error::chain(&first))),
        }
    }
}

fn has_certificates(settings: &HostConfig) -> bool {
    !(settings.ca.is_empty() && settings.keypairs.is_empty() && settings.tls_config_dirs.is_empty())
}

fn certificates(settings: &HostConfig) -> Result<(Vec<Certificate>, Vec<Identity>), String> {
    let mut authorities = settings.ca.clone();
    let mut pairs: Vec<_> = settings.keypairs.iter().map(|pair| (pair.cert.clone(), pair.key.clone())).collect();
    for dir in &settings.tls_config_dirs {
        let entries = std::fs::read_dir(dir).map_err(|e| format!("read {}: {e}", dir.display()))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") => pairs.push((path.clone(), path.with_extension("key"))),
                _ => {}
            }
        }
    }
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()));
    let mut certificates = Vec::new();
    for path in &authorities {
        let found = Certificate::from_pem_bundle(&read(path)?)
            .map_err(|e| format!("certificate authority {}: {}", path.display(), crate::error::chain(&e)))?;
        if found.is_empty() {
            return Err(format!("certificate authority {}: no certificate in it", path.display()));
        }
        certificates.extend(found);
    }
    let mut identities = Vec::new();
    for (cert, key) in &pairs {
        let pem = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
        let identity = Identity::from_pem(&pem).map_err(|e| {
            format!("client certificate {} with {}: {}", cert.display(), key.display(), crate::error::chain(&e))
        })?;
        identities.push(identity);
    }
    Ok((certificates, identities))
}

/// Whether `host`, with or without port, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if host.matches(':').count() == 1 => host.split(':').next().unwrap_or_default(),
        None => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "127.evil.example", "localhost.example:5", "10.0.0.1:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn endpoints_in_order_with_their_urls() {
        let mut config = Config::default();
        config.hosts.insert(
            "docker.io".into(),
            HostConfig { mirrors: vec!["mirror.example/hub".into(), "127.0.0.1:5000".into()], ..HostConfig::default() },
        );
        config.hosts.insert("mirror.example".into(), HostConfig { http: Some(true), ..HostConfig::default() });
        let hosts = Hosts::new(Arc::new(config)).unwrap();
        let urls = |purpose, insecure| -> Vec<String> {
            let endpoints = hosts.endpoints("docker.io", purpose, insecure).unwrap();
            endpoints.iter().map(|e| e.url("library/x", "tags/list").unwrap().to_string()).collect()
        };
        assert_eq!(
            urls(Purpose::Pull, false),
            [
                "http://mirror.example/v2/hub/library/x/tags/list?ns=docker.io",
                "http://127.0.0.1:5000/v2/library/x/tags/list?ns=docker.io",
                "https://registry-1.docker.io/v2/library/x/tags/list",
            ]
        );
        assert_eq!(urls(Purpose::Push, false), ["https://registry-1.docker.io/v2/library/x/tags/list"]);
        hosts.endpoints("docker.io", Purpose::Pull, false).unwrap()[0].set_down();
        assert!(urls(Purpose::Pull, false)[2].contains("mirror.example"), "one that is down is tried last");
        assert!(hosts.endpoints("docker.io", Purpose::Push, true).unwrap()[0].fall_back());
        assert_eq!(urls(Purpose::Push, true), ["http://registry-1.docker.io/v2/library/x/tags/list"]);
    }

    #[test]
    fn unreadable_certificates_are_told_at_once() {
        let mut config = Config::default();
        let settings = HostConfig { ca: vec!["/nonexistent/ca.pem".into()], ..HostConfig::default() };
        config.hosts.insert("r.example".into(), settings);
        let error = Hosts::new(Arc::new(config)).unwrap_err().to_string();
        assert!(error.contains("r.example") && error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
