//! Tokens for registries, fetched by the client so that its secrets stay here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use castor_proto::filesync::FetchTokenRequest;
use reqwest::{Certificate, Client, Identity, StatusCode, Url};
use serde::Deserialize;

use super::docker::Login;

/// What a registry's token server answers at most.
const LARGEST: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a token is good for if nobody says.
const DEFAULT_LIFETIME: i64 = 60;

/// Certificates for one registry's token server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM files with authorities.
    pub authorities: Vec<PathBuf>,
    /// PEM files with a certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Take any certificate.
    pub insecure: bool,
}

/// A token that could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("token server {realm:?}: {source}")]
    Realm { realm: String, source: url::ParseError },
    #[error("read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("fetch a token from {realm}: {}", chain(.source))]
    Http { realm: String, source: reqwest::Error },
    #[error("failed to fetch {kind} token: unexpected status from {method} request to {realm}: {status}")]
    Status { kind: &'static str, method: &'static str, realm: String, status: StatusCode },
    #[error("answer of {realm}: {why}")]
    Answer { realm: String, why: String },
}

/// The library leaves the cause out of its own text.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// A token and what is known of its life, in seconds.
pub(super) struct Fetched {
    pub token: String,
    pub expires_in: i64,
    pub issued_at: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
    expires_in: Option<f64>,
    issued_at: Option<String>,
}

/// Fetches tokens.
pub(super) struct Fetcher {
    tls: BTreeMap<String, TlsFiles>,
}

impl Fetcher {
    pub(super) fn new(tls: BTreeMap<String, TlsFiles>) -> Self {
        // Without a provider reqwest panics; a program that wants another one
        // has installed it by now.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Self { tls }
    }

    /// Asks the token server for a token. With a secret the OAuth way comes
    /// first; servers that do not have it are asked the old way.
    pub(super) async fn fetch(&self, request: &FetchTokenRequest, login: &Login) -> Result<Fetched, TokenError> {
        let url =
            Url::parse(&request.realm).map_err(|source| TokenError::Realm { realm: request.realm.clone(), source })?;
        let client = self.client(&request.host, &request.realm).await?;
        let secret = if login.identity_token.is_empty() { &login.password } else { &login.identity_token };
        if !secret.is_empty() {
            match post(&client, &url, request, login).await {
                Err(TokenError::Status { status, .. })
                    if (status == StatusCode::METHOD_NOT_ALLOWED && login.identity_token.is_empty())
                        || status == StatusCode::NOT_FOUND
                        || status == StatusCode::UNAUTHORIZED => {}
                result => return result,
            }
        }
        get(&client, url, request, login).await
    }

    async fn client(&self, host: &str, realm: &str) -> Result<Client, TokenError> {
        let http = |source| TokenError::Http { realm: realm.to_owned(), source };
        let mut builder = Client::builder().timeout(PATIENCE).user_agent("castor");
        if Url::parse(realm).is_ok_and(|url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))) {
            builder = builder.no_proxy();
        }
        if let Some(files) = self.tls.get(host) {
            for path in &files.authorities {
                builder = builder.tls_certs_merge([Certificate::from_pem(&read(path).await?).map_err(http)?]);
            }
            if let Some((certificate, key)) = &files.identity {
                let mut pem = read(certificate).await?;
                pem.extend(read(key).await?);
                builder = builder.identity(Identity::from_pem(&pem).map_err(http)?);
            }
            builder = builder.tls_danger_accept_invalid_certs(files.insecure);
        }
        builder.build().map_err(http)
    }
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>, TokenError> {
    tokio::fs::read(path).await.map_err(|source| TokenError::Read { path: path.to_owned(), source })
}

async fn post(client: &Client, url: &Url, request: &FetchTokenRequest, login: &Login) -> Result<Fetched, TokenError> {
    let call = client.post(url.clone()).header("content-type", "application/x-www-form-urlencoded; charset=utf-8");
    answer(call.body(form(request, login)), "oauth", "POST", request).await
}

fn form(request: &FetchTokenRequest, login: &Login) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("client_id", &request.client_id);
    if login.identity_token.is_empty() {
        form.append_pair("grant_type", "password")
            .append_pair("username", &login.user)
            .append_pair("password", &login.password);
    } else {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", &login.identity_token);
    }
    form.append_pair("service", &request.service);
    if !request.scopes.is_empty() {
        form.append_pair("scope", &request.scopes.join(" "));
    }
    form.finish()
}

async fn get(client: &Client, mut url: Url, request: &FetchTokenRequest, login: &Login) -> Result<Fetched, TokenError> {
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
    }
    let mut call = client.get(url);
    let mut kind = "anonymous";
    if !login.password.is_empty() {
        call = call.basic_auth(&login.user, Some(&login.password));
        kind = "basic";
    }
    answer(call, kind, "GET", request).await
}

async fn answer(
    call: reqwest::RequestBuilder,
    kind: &'static str,
    method: &'static str,
    request: &FetchTokenRequest,
) -> Result<Fetched, TokenError> {
    let realm = || request.realm.clone();
    // The URL of an error would show the query, which is none of the reader's.
    let http = |source: reqwest::Error| TokenError::Http { realm: realm(), source: source.without_url() };
    let mut response = call.send().await.map_err(http)?;
    let status = response.status();
    if !status.is_success() {
        return Err(TokenError::Status { kind, method, realm: realm(), status });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(http)? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST {
            return Err(TokenError::Answer { realm: realm(), why: "it is too large".into() });
        }
    }
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| TokenError::Answer { realm: realm(), why: error.to_string() })?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(TokenError::Answer { realm: realm(), why: "no token in it".into() });
    }
    let expires_in = match answer.expires_in {
        #[allow(clippy::cast_possible_truncation)] // Saturates, and so long a life is forever.
        Some(seconds) if seconds >= 1.0 => seconds as i64,
        _ => DEFAULT_LIFETIME,
    };
    let issued_at =
        answer.issued_at.and_then(|text| text.parse::<jiff::Timestamp>().ok()).map_or(0, |at| at.as_second());
    Ok(Fetched { token, expires_in, issued_at })
}
