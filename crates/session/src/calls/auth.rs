//! Who the client is at a registry.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castor_proto::filesync::auth_client::AuthClient;
use castor_proto::filesync::{CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest};
use castor_registry::{Basic, Credentials, CredentialsError, Token, TokenRequest};
use tonic::Code;

use crate::{Group, SessionError};

/// How long a client may take; it may have to ask a person.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a token is good for if nobody says.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
const KEY_LENGTH: usize = 32;

/// The credentials of a group's clients.
#[derive(Debug, Clone)]
pub struct SessionCredentials {
    group: Group,
}

impl SessionCredentials {
    /// Asks the sessions of `group`.
    pub fn new(group: Group) -> Self {
        Self { group }
    }
}

/// Makes the keys that clients show useless to the next run of the daemon.
fn salt() -> Bytes {
    static SALT: OnceLock<Bytes> = OnceLock::new();
    SALT.get_or_init(|| Bytes::copy_from_slice(&rand::random::<[u8; 32]>())).clone()
}

/// `None` if no client of the group does what it was asked for.
async fn patiently<T>(
    doing: &'static str,
    answer: impl Future<Output = Result<Option<T>, SessionError>>,
) -> Result<Option<T>, CredentialsError> {
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(SessionError::Timeout { doing }));
    match answer {
        Err(SessionError::NoneActive | SessionError::NotFound { .. } | SessionError::Closed { .. }) => {
            Err(CredentialsError::Gone)
        }
        Err(error) if error.code() == Code::Unimplemented => Ok(None),
        answer => answer.map_err(|error| CredentialsError::Failed(error.to_string())),
    }
}

#[async_trait]
impl Credentials for SessionCredentials {
    fn identity(&self) -> String {
        let mut ids = self.group.ids();
        ids.sort_unstable();
        ids.join(",")
    }

    fn is_alive(&self) -> bool {
        self.group.is_alive()
    }

    fn detached(&self) -> Option<Arc<dyn Credentials>> {
        // A live group holds on to the build that it is of.
        Some(Arc::new(Self { group: self.group.sessions().group(self.group.ids()) }))
    }

    async fn credentials(&self, host: &str) -> Result<Option<Basic>, CredentialsError> {
        let answer = patiently(
            "resolving credentials from session",
            self.group.any(|caller| async move {
                let request = CredentialsRequest { host: host.to_owned() };
                let mut client = AuthClient::new(caller.channel());
                Ok(Some(caller.call(client.credentials(request)).await?.into_inner()))
            }),
        )
        .await?;
        Ok(answer
            .filter(|answer| !answer.secret.is_empty() || !answer.username.is_empty())
            .map(|answer| Basic { user: answer.username, secret: answer.secret }))
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<Option<Token>, CredentialsError> {
        let answer = patiently(
            "fetching auth token from session",
            self.group.any(|caller| async move {
                let mut client = AuthClient::new(caller.channel());
                let authority = GetTokenAuthorityRequest { host: request.host.clone(), salt: salt() };
                let key = match caller.call(client.get_token_authority(authority)).await {
                    Ok(response) => response.into_inner().public_key,
                    // The client leaves it to the daemon.
                    Err(SessionError::Status(status)) if status.code() == Code::Unavailable => return Ok(None),
                    Err(error) => return Err(error),
                };
                if key.len() != KEY_LENGTH {
                    let why = format!("it has {} bytes instead of {KEY_LENGTH}", key.len());
                    return Err(SessionError::Invalid { what: "token authority", why });
                }
                let fetch = FetchTokenRequest {
                    client_id: request.client_id.clone(),
                    host: request.host.clone(),
                    realm: request.realm.clone(),
                    service: request.service.clone(),
                    scopes: request.scopes.clone(),
                };
                Ok(Some(caller.call(client.fetch_token(fetch)).await?.into_inner()))
            }),
        )
        .await?;
        Ok(answer.map(|answer| {
            let lifetime = match u64::try_from(answer.expires_in) {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
                _ => DEFAULT_LIFETIME,
            };
            Token { token: answer.token, expires_in: Some(lifetime) }
        }))
    }
}
