//! Authorization: challenges, tokens and who may use them.
//!
//! A token belongs to the identity that got it. [`Access::new`](crate::Access::new) uses only its own; an access that was
//! [`proved`](crate::Access::proved) uses any token, and any live session, that has read from the repository before. Waiting
//! for a session or token server is bounded, and only one at a time asks for the same token.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use parking_lot::Mutex;
use reqwest::Url;
use serde::Deserialize;

use crate::access::Who;
use crate::hosts::{Endpoint, Hosts, is_loopback};
use crate::{Access, Anonymous, Basic, Config, Credentials, Error, Token, TokenRequest};

/// What the protocol says of a token that does not tell its lifetime.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// How long a user name and password are kept before the session is asked again.
const BASIC_LIFETIME: Duration = Duration::from_secs(300);
/// Answers of a token server are not larger.
const MAX_ANSWER: usize = 1 << 20;
/// Identities remembered for a repository.
const MAX_PROVERS: usize = 16;

/// How a host wants to know who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scopes: Vec<String>, error: Option<String> },
}

/// What is asked for: repository at an endpoint, and scopes.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub endpoint: &'a Endpoint,
    /// Repository as the endpoint calls it.
    pub repository: String,
    pub scopes: Vec<String>,
    pub access: &'a Access,
    /// Reference, or repository and digest, for messages.
    pub what: &'a str,
}

/// An `Authorization` and whose it is.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub header: HeaderValue,
    identity: String,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Ticket {
    pub fn identity(&self) -> &str {
        &self.identity
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    identity: String,
    host: String,
    /// Scopes, sorted, separated by blanks; nothing for basic authorization.
    scopes: String,
}

#[derive(Default)]
struct Slot {
    header: Option<(HeaderValue, Instant)>,
    /// The last failure, for those who waited meanwhile.
    failure: Option<(Instant, Error)>,
}

type Repository = (String, String);

/// Who read from a repository, under the name that they had then: it is the name that their tokens are kept under.
#[derive(Clone)]
struct Prover {
    identity: String,
    credentials: Arc<dyn Credentials>,
}

/// Tokens, challenges and proofs of all hosts; one a client.
#[derive(Default)]
pub(crate) struct AuthPool {
    challenges: Mutex<HashMap<Repository, Challenge>>,
    slots: Mutex<HashMap<TokenKey, Arc<tokio::sync::Mutex<Slot>>>>,
    provers: Mutex<HashMap<Repository, Vec<Prover>>>,
}

impl std::fmt::Debug for AuthPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthPool")
    }
}

impl Wish<'_> {
    fn repository_key(&self) -> Repository {
        (self.endpoint.host.clone(), self.repository.clone())
    }
}

impl AuthPool {
    /// The `Authorization` for `wish`, `None` as long as nothing is known that the host would want.
    ///
    /// `refused` are the identities that were refused for this request already.
    pub async fn ticket(
        &self,
        wish: &Wish<'_>,
        refused: &[String],
        hosts: &Hosts,
        config: &Config,
    ) -> Result<Option<Ticket>, Error> {
        let challenge = self.challenges.lock().get(&wish.repository_key()).cloned();
        let Some(challenge) = challenge else { return Ok(None) };
        let candidates = match &wish.access.who {
            Who::One(credentials) => {
                vec![Prover { identity: credentials.identity(), credentials: Arc::clone(credentials) }]
            }
            Who::Anyone => {
                let mut candidates = self.provers.lock().get(&wish.repository_key()).cloned().unwrap_or_default();
                candidates.reverse();
                candidates.push(Prover { identity: Anonymous.identity(), credentials: Arc::new(Anonymous) });
                candidates
            }
        };
        let mut last = None;
        for Prover { identity, credentials } in candidates {
            if refused.contains(&identity) && matches!(wish.access.who, Who::Anyone) {
                continue;
            }
            match self.ticket_of(wish, &challenge, &identity, credentials.as_ref(), hosts, config).await {
                Ok(Some(header)) => return Ok(Some(Ticket { header, identity })),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error),
            None if matches!(wish.access.who, Who::Anyone) => {
                let detail = format!(
                    "failed to authorize: no active session has access to {}/{}",
                    wish.endpoint.host, wish.repository
                );
                Err(Error::Unauthorized { what: wish.what.to_owned(), detail })
            }
            None => Ok(None),
        }
    }

    /// Takes note of a 401 with `headers`. Whether asking for another ticket makes sense is the caller's to judge.
    pub async fn refused(&self, wish: &Wish<'_>, ticket: Option<&Ticket>, headers: &HeaderMap) -> Option<Challenge> {
        let challenge = parse_challenges(headers);
        if let Some(ticket) = ticket {
            // Only the token that was refused is forgotten: somebody may have got a new one meanwhile.
            let slots: Vec<_> = {
                let slots = self.slots.lock();
                slots
                    .iter()
                    .filter(|(key, _)| key.host == wish.endpoint.host && key.identity == ticket.identity)
                    .map(|(_, slot)| Arc::clone(slot))
                    .collect()
            };
            for slot in slots {
                let mut slot = slot.lock().await;
                if slot.header.as_ref().is_some_and(|(header, _)| *header == ticket.header) {
                    slot.header = None;
                }
            }
        }
        if let Some(challenge) = &challenge {
            self.challenges.lock().insert(wish.repository_key(), challenge.clone());
        }
        challenge
    }

    /// Takes note that `wish` was granted: whoever asked may renew tokens for the repository from now on.
    pub fn granted(&self, wish: &Wish<'_>, ticket: &Ticket) {
        let Who::One(credentials) = &wish.access.who else { return };
        let key = wish.repository_key();
        let identity = ticket.identity.clone();
        // Under no name there are no sessions any more, or nobody in particular, who is always asked.
        if identity.is_empty() {
            return;
        }
        let mut provers = self.provers.lock();
        let list = provers.entry(key).or_default();
        if list.last().is_some_and(|last| last.identity == identity) {
            return;
        }
        list.retain(|prover| prover.identity != identity);
        // Those that ended are kept as long as there is room: their tokens may be good yet.
        if list.len() >= MAX_PROVERS {
            let ended = list.iter().position(|prover| !prover.credentials.is_alive());
            list.remove(ended.unwrap_or(0));
        }
        let credentials = credentials.detached().unwrap_or_else(|| Arc::clone(credentials));
        list.push(Prover { identity, credentials });
        drop(provers);
        self.sweep();
    }

    /// Forgets tokens that are over and sessions that ended, now and then.
    fn sweep(&self) {
        const MANY: usize = 1024;
        let mut slots = self.slots.lock();
        if slots.len() > MANY {
            let now = Instant::now();
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(slot) => slot.header.as_ref().is_some_and(|(_, until)| *until > now),
                Err(_) => true,
            });
        }
        drop(slots);
        let mut provers = self.provers.lock();
        if provers.len() > MANY {
            provers.retain(|_, list| {
                list.retain(|prover| prover.credentials.is_alive());
                !list.is_empty()
            });
        }
    }

    async fn ticket_of(
        &self,
        wish: &Wish<'_>,
        challenge: &Challenge,
        identity: &str,
        credentials: &dyn Credentials,
        hosts: &Hosts,
        config: &Config,
    ) -> Result<Option<HeaderValue>, Error> {
        let (identity, host) = (identity.to_owned(), wish.endpoint.host.clone());
        let scopes = match challenge {
            Challenge::Basic => Vec::new(),
            Challenge::Bearer { scopes, .. } => {
                let mut all = [wish.scopes.as_slice(), scopes.as_slice()].concat();
                all.sort();
                all.dedup();
                all
            }
        };
        let key = TokenKey { identity, host, scopes: scopes.join(" ") };
        let slot = Arc::clone(self.slots.lock().entry(key).or_default());
        let asked = Instant::now();
        let mut slot = slot.lock().await;
        if let Some((header, until)) = &slot.header
            && *until > Instant::now()
        {
            return Ok(Some(header.clone()));
        }
        if let Some((failed, error)) = &slot.failure
            && *failed > asked
        {
            return Err(error.clone());
        }
        // What is left of a dead session is its tokens, until they end.
        if !credentials.is_alive() {
            return Ok(None);
        }
        let begun = Instant::now();
        let work = async {
            match challenge {
                Challenge::Basic => basic(wish, credentials).await,
                Challenge::Bearer { realm, service, .. } => {
                    let request = TokenRequest {
                        host: wish.endpoint.host.clone(),
                        realm: realm.clone(),
                        service: service.clone(),
                        scopes,
                        client_id: "castor".into(),
                    };
                    bearer(wish, credentials, &request, hosts).await.map(Some)
                }
            }
        };
        let outcome = tokio::time::timeout(config.auth_timeout, work).await.unwrap_or_else(|_| {
            let detail = format!(
                "failed to authorize: no credentials for {} within {} s",
                wish.endpoint.host,
                config.auth_timeout.as_secs_f32()
            );
            Err(Error::Unauthorized { what: wish.what.to_owned(), detail })
        });
        match outcome {
            Ok(Some((header, lifetime))) => {
                // A token is renewed after 90 % of its life, so that it does not end on its way to the registry.
                slot.header = Some((header.clone(), begun + lifetime.mul_f64(0.9)));
                slot.failure = None;
                Ok(Some(header))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                slot.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

fn unauthorized(wish: &Wish<'_>, detail: impl std::fmt::Display) -> Error {
    Error::Unauthorized { what: wish.what.to_owned(), detail: format!("failed to authorize: {detail}") }
}

async fn basic(wish: &Wish<'_>, credentials: &dyn Credentials) -> Result<Option<(HeaderValue, Duration)>, Error> {
    let found = credentials.credentials(&wish.endpoint.host).await.map_err(|e| unauthorized(wish, e))?;
    Ok(match found {
        Some(basic) if !basic.user.is_empty() => Some((basic_header(&basic, wish)?, BASIC_LIFETIME)),
        _ => None,
    })
}

fn basic_header(basic: &Basic, wish: &Wish<'_>) -> Result<HeaderValue, Error> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", basic.user, basic.secret));
    header(&format!("Basic {encoded}"), wish)
}

fn header(text: &str, wish: &Wish<'_>) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| unauthorized(wish, "the token cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn bearer(
    wish: &Wish<'_>,
    credentials: &dyn Credentials,
    request: &TokenRequest,
    hosts: &Hosts,
) -> Result<(HeaderValue, Duration), Error> {
    let fetched = credentials.fetch_token(request).await.map_err(|e| unauthorized(wish, e))?;
    let token = match fetched {
        Some(token) => token,
        None => {
            let known = credentials.credentials(&request.host).await.map_err(|e| unauthorized(wish, e))?;
            let known = known.filter(|basic| !basic.secret.is_empty());
            fetch(wish, request, known.as_ref(), hosts).await?
        }
    };
    let lifetime = token.expires_in.filter(|lifetime| !lifetime.is_zero()).unwrap_or(DEFAULT_LIFETIME);
    Ok((header(&format!("Bearer {}", token.token), wish)?, lifetime))
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// Asks the token server, as the daemon.
async fn fetch(wish: &Wish<'_>, request: &TokenRequest, known: Option<&Basic>, hosts: &Hosts) -> Result<Token, Error> {
    let kind = if known.is_some() { "oauth" } else { "anonymous" };
    let fail = |cause: String| unauthorized(wish, format!("failed to fetch {kind} token: {cause}"));
    let mut url = Url::parse(&request.realm).map_err(|e| fail(format!("realm {:?}: {e}", request.realm)))?;
    let secure_registry = wish.endpoint.url("x", "")?.scheme() == "https";
    if known.is_some() && secure_registry && url.scheme() != "https" && !is_loopback(url.host_str().unwrap_or_default())
    {
        return Err(fail(format!("{}: credentials are not sent to a token server without TLS", request.realm)));
    }
    let client = hosts.client_for(&url)?;
    let identity_token = known.is_some_and(|basic| basic.user.is_empty());
    let shown = without_query(&url);
    let built = if identity_token {
        let mut form = Url::parse("form:").map_err(|e| fail(e.to_string()))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", known.map_or("", |basic| &basic.secret))
            .append_pair("service", &request.service)
            .append_pair("client_id", &request.client_id)
            .append_pair("scope", &request.scopes.join(" "));
        client
            .post(url.clone())
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned())
    } else {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(basic) = known {
            query.append_pair("account", &basic.user);
        }
        drop(query);
        let get = client.get(url.clone());
        match known {
            Some(basic) => get.header(AUTHORIZATION, basic_header(basic, wish)?),
            None => get,
        }
    };
    let method = if identity_token { "POST" } else { "GET" };
    let mut pause = Duration::from_millis(200);
    let mut attempt = 0;
    let answer = loop {
        attempt += 1;
        let again = built.try_clone().ok_or_else(|| fail("the request cannot be repeated".into()))?;
        let problem = match again.send().await {
            Ok(response) if response.status().is_success() => break response,
            Ok(response) => {
                let status = response.status();
                let text = format!("unexpected status from {method} request to {shown}: {status}");
                if !(status.is_server_error() || status.as_u16() == 429) {
                    return Err(fail(text));
                }
                text
            }
            Err(error) => {
                format!("failed to do request: {method} {shown:?}: {}", crate::error::chain(&error.without_url()))
            }
        };
        if attempt == 4 {
            return Err(fail(problem));
        }
        // The caller bounds all attempts together.
        tokio::time::sleep(pause).await;
        pause *= 2;
    };
    let body = bounded(answer).await.map_err(fail)?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|e| fail(format!("answer of {shown}: {e}")))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(fail(format!("{shown} gave no token")));
    }
    let expires_in = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Token { token, expires_in })
}

async fn bounded(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| crate::error::chain(&e.without_url()))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err("the answer is too large".into());
        }
    }
    Ok(body)
}

/// A URL as messages show it: queries hold signatures and tokens.
pub(crate) fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

/// The challenge that suits best: bearer before basic.
fn parse_challenges(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for (scheme, params) in split_challenges(text) {
            let get = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            match scheme.as_str() {
                "bearer" => {
                    let Some(realm) = get("realm") else { continue };
                    let scopes = get("scope").unwrap_or_default();
                    return Some(Challenge::Bearer {
                        realm,
                        service: get("service").unwrap_or_default(),
                        scopes: scopes.split_whitespace().map(str::to_owned).collect(),
                        error: get("error"),
                    });
                }
                "basic" => basic = true,
                _ => {}
            }
        }
    }
    basic.then_some(Challenge::Basic)
}

/// `Bearer realm="a",service="b", Basic realm="c"` as schemes (lower case) with parameters.
fn split_challenges(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() && found.len() < 16 {
        let word_end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(word_end);
        if let Some(value) = tail.strip_prefix('=') {
            let (value, tail) = parse_value(value);
            if let Some((_, params)) = found.last_mut() {
                params.push((word.to_ascii_lowercase(), value));
            }
            rest = tail;
        } else {
            found.push((word.to_ascii_lowercase(), Vec::new()));
            rest = tail;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A token or quoted string at the start of `text`, and what follows.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    let _ = value.write_char(escaped);
                }
            }
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        parse_challenges(&headers)
    }

    #[test]
    fn challenges() {
        let bearer = Challenge::Bearer {
            realm: "https://a/t".into(),
            service: "s, x".into(),
            scopes: vec!["repository:a/b:pull,push".into(), "c".into()],
            error: None,
        };
        let text = r#"Bearer realm="https://a/t",service="s, x",scope="repository:a/b:pull,push c""#;
        assert_eq!(parse(&[text]), Some(bearer.clone()));
        assert_eq!(parse(&[r#"Basic realm="x\"y""#, text]), Some(bearer.clone()));
        let both = r#"Basic realm="x", Bearer realm="https://a/t", service="s, x", scope="repository:a/b:pull,push c""#;
        assert_eq!(parse(&[both]), Some(bearer));
        assert_eq!(parse(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(parse(&["basic realm=x"]), Some(Challenge::Basic));
        for text in ["Bearer", "Negotiate", "", ",,,", "Bearer =", "Bearer realm"] {
            assert_eq!(parse(&[text]), None, "{text}");
        }
    }

    #[test]
    fn secrets_stay_out_of_messages() {
        let url = Url::parse("https://user:secret@h/p?X-Signature=abc#f").unwrap();
        assert_eq!(without_query(&url), "https://h/p");
        let basic = Basic { user: "u".into(), secret: "hunter2".into() };
        assert!(!format!("{basic:?}").contains("hunter2"));
    }
}
