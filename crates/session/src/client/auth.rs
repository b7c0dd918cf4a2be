//! Who the user is at registries.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use castor_proto::filesync::auth_server::{Auth, AuthServer};
use castor_proto::filesync::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::docker::{DockerConfig, Login};
use super::token::{Fetcher, TlsFiles};

/// How long what a helper said counts; some hand out tokens that end after
/// five minutes.
const FRESH: Duration = Duration::from_secs(4 * 60 + 50);

/// Where credentials are.
#[derive(Debug, Clone, Default)]
pub struct KeychainOptions {
    /// Docker's `config.json`; without it the user is nobody anywhere.
    pub config: Option<PathBuf>,
    /// Credentials in the form of that file's `auths`, which come before it: what `DOCKER_AUTH_CONFIG` holds.
    pub environment: Option<String>,
    /// Certificates for token servers, by the registry's host.
    pub tls: BTreeMap<String, TlsFiles>,
    /// Hands the daemon secrets instead of tokens.
    pub no_tokens: bool,
}

/// The user's credentials.
#[derive(Clone)]
pub struct Keychain {
    inner: Arc<Inner>,
}

struct Inner {
    options: KeychainOptions,
    fetcher: Fetcher,
    /// Proves to a daemon that two questions are answered by the same client.
    seed: [u8; 32],
    /// One question to a helper at a time, and its answer for the next. Some
    /// helpers hang when asked twice at once.
    logins: Mutex<HashMap<String, (Instant, Login)>>,
}

impl Keychain {
    /// The credentials that the options name. Nothing is read yet.
    pub fn new(options: KeychainOptions) -> Self {
        let fetcher = Fetcher::new(options.tls.clone());
        Self { inner: Arc::new(Inner { options, fetcher, seed: rand::random(), logins: Mutex::default() }) }
    }

    pub(super) fn service(self) -> AuthServer<Self> {
        AuthServer::new(self)
    }
}

impl Inner {
    async fn login(&self, host: &str) -> Result<Login, Status> {
        let mut logins = self.logins.lock().await;
        if let Some((since, login)) = logins.get(host)
            && since.elapsed() < FRESH
        {
            return Ok(login.clone());
        }
        let failed = |error: super::DockerConfigError| Status::unknown(error.to_string());
        let environment = match self.options.environment.as_deref().map(DockerConfig::from_environment) {
            Some(Ok(config)) => config.entry_login(host).map_err(failed)?,
            Some(Err(error)) => {
                tracing::warn!("Failed to create credential store from DOCKER_AUTH_CONFIG: {error}");
                None
            }
            None => None,
        };
        let login = match (environment, self.options.config.clone()) {
            (Some(login), _) => login,
            (None, None) => Login::default(),
            (None, Some(path)) => {
                // The file may change between two builds of one client.
                let read = tokio::task::spawn_blocking(move || DockerConfig::read(&path)).await;
                let config = read.map_err(|error| Status::internal(error.to_string()))?.map_err(failed)?;
                config.login(host).await.map_err(failed)?
            }
        };
        logins.insert(host.to_owned(), (Instant::now(), login.clone()));
        Ok(login)
    }

    /// The key pair for a registry and a run of the daemon. All who have no
    /// secret share one, since there is nothing to tell them apart by.
    async fn authority(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        if self.options.no_tokens {
            return Err(Status::unavailable("client side tokens disabled"));
        }
        let login = self.login(host).await?;
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
        if !login.password.is_empty() || !login.identity_token.is_empty() {
            context.update(&self.seed);
            context.update(host.as_bytes());
        }
        Ed25519KeyPair::from_seed_unchecked(context.sign().as_ref())
            .map_err(|error| Status::internal(format!("make a token authority: {error}")))
    }
}

#[tonic::async_trait]
impl Auth for Keychain {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let login = self.inner.login(&request.into_inner().host).await?;
        Ok(Response::new(if login.identity_token.is_empty() {
            CredentialsResponse { username: login.user, secret: login.password }
        } else {
            CredentialsResponse { username: String::new(), secret: login.identity_token }
        }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let request = request.into_inner();
        let login = self.inner.login(&request.host).await?;
        if !login.registry_token.is_empty() {
            let response = FetchTokenResponse { token: login.registry_token, expires_in: 60, issued_at: 0 };
            return Ok(Response::new(response));
        }
        let fetched = self.inner.fetcher.fetch(&request, &login).await;
        let fetched = fetched.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(Response::new(FetchTokenResponse {
            token: fetched.token,
            expires_in: fetched.expires_in,
            issued_at: fetched.issued_at,
        }))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let keys = self.inner.authority(&request.host, &request.salt).await?;
        let public_key = bytes::Bytes::copy_from_slice(keys.public_key().as_ref());
        Ok(Response::new(GetTokenAuthorityResponse { public_key }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let keys = self.inner.authority(&request.host, &request.salt).await?;
        // The signature, then what was signed.
        let mut signed = keys.sign(&request.payload).as_ref().to_vec();
        signed.extend_from_slice(&request.payload);
        Ok(Response::new(VerifyTokenAuthorityResponse { signed: signed.into() }))
    }
}
