//! One request to one endpoint: authorization, redirects, retries, bounds in time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::access::Who;
use crate::auth::{AuthPool, Challenge, Ticket, Wish, without_query};
use crate::counters::{Book, HostCounters, Listed, add};
use crate::hosts::{Endpoint, Hosts};
use crate::{Access, BlobSource, Config, Error, Priority};

const MAX_REDIRECTS: usize = 5;
/// Text of a registry's error in a message.
const MAX_DETAIL: usize = 64 << 10;
/// After a whole blob was sent, the registry may need time to store it.
const STORE_FACTOR: u32 = 10;

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Arc<Config>,
    pub hosts: Hosts,
    pub auth: AuthPool,
    pub book: Arc<Book>,
    lanes: Mutex<HashMap<(String, Priority), Arc<Semaphore>>>,
}

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a Bytes),
    /// A blob's source and its size.
    Source(&'a dyn BlobSource, u64),
}

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Payload::None => "None",
            Payload::Bytes(_) => "Bytes",
            Payload::Source(..) => "Source",
        })
    }
}

/// A request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub payload: Payload<'a>,
    pub priority: Priority,
    /// For the counters and the debug page.
    pub range: Option<Range<u64>>,
    /// How often it is tried at this endpoint.
    pub attempts: u32,
    /// Counts the requests of one blob.
    pub count: Option<&'a AtomicU64>,
    /// Whether `url` is one that a redirect led to: then no `Authorization` is sent.
    pub signed: bool,
}

impl Call<'_> {
    pub fn get(url: Url, attempts: u32) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            payload: Payload::None,
            priority: Priority::OnDemand,
            range: None,
            attempts,
            count: None,
            signed: false,
        }
    }
}

/// An answer with any status that is not worth a retry.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: Url,
    /// Whether that is another origin than the one asked.
    pub redirected: bool,
    method: Method,
    what: String,
    inner: reqwest::Response,
    stall: Duration,
    counters: Arc<HostCounters>,
    _permit: OwnedSemaphorePermit,
    _listed: Listed,
}

impl Response {
    /// The next bytes of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(self.stall, self.inner.chunk()).await {
            Ok(Ok(chunk)) => {
                add(&self.counters.bytes_received, chunk.as_ref().map_or(0, |c| c.len() as u64));
                Ok(chunk)
            }
            Ok(Err(error)) => Err(network(&self.what, &self.method, &self.url, error)),
            Err(_) => Err(stalled(&self.what, &self.method, &self.url, self.stall)),
        }
    }

    /// The body was read to its end as its head announced it: takes note of the end, so that the connection can be used
    /// again. Returns whether there is more, against the announcement.
    pub async fn finish(&mut self) -> bool {
        let end = async {
            loop {
                match self.inner.chunk().await {
                    // HTTP/2 may end with a frame of no bytes.
                    Ok(Some(chunk)) if chunk.is_empty() => {}
                    Ok(Some(_)) => return true,
                    Ok(None) | Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(Duration::from_millis(200), end).await.unwrap_or(false)
    }

    /// The whole body, if it is not larger than `limit`.
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes, Error> {
        let too_large = |size: u64| Error::TooLarge { what: self.what.clone(), size, limit: limit as u64 };
        if let Some(length) = self.inner.content_length()
            && length > limit as u64
        {
            return Err(too_large(length));
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > limit {
                return Err(Error::TooLarge { what: self.what, size: body.len() as u64, limit: limit as u64 });
            }
        }
        Ok(body.into())
    }

    /// `Content-Length`.
    pub fn content_length(&self) -> Option<u64> {
        self.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    pub fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    pub fn protocol_error(&self, detail: impl Into<String>) -> Error {
        Error::Protocol { what: self.what.clone(), host: origin_host(&self.url), detail: detail.into() }
    }

    /// The error that a status which is no success means.
    pub async fn into_error(self, subject: &str) -> Error {
        let (status, method, what) = (self.status, self.method.to_string(), self.what.clone());
        let url = without_query(&self.url);
        let body = self.bytes(MAX_DETAIL).await.unwrap_or_default();
        let detail = error_detail(&body);
        match status {
            StatusCode::NOT_FOUND => Error::NotFound { what: subject.to_owned() },
            StatusCode::FORBIDDEN => Error::Denied {
                what,
                detail: format!("unexpected status from {method} request to {url}: {status}{detail}"),
            },
            _ => Error::Status { what, method, url, status, detail },
        }
    }
}

/// `: CODE: message` of the protocol's error document.
fn error_detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let Some(item) = document.errors.first() else { return String::new() };
    let clean = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(300).collect() };
    format!(": {}: {}", clean(&item.code), clean(&item.message))
}

/// What one attempt came to.
enum Attempt {
    Answer(Box<Response>),
    /// To be tried again, after at least this pause.
    Again(Error, Option<Duration>),
}

impl Shared {
    pub fn new(config: Config) -> Result<Self, Error> {
        let config = Arc::new(config);
        Ok(Self {
            hosts: Hosts::new(Arc::clone(&config))?,
            auth: AuthPool::default(),
            book: Arc::default(),
            lanes: Mutex::default(),
            config,
        })
    }

    async fn permit(&self, host: &str, priority: Priority) -> Result<OwnedSemaphorePermit, Error> {
        let lane = {
            let mut lanes = self.lanes.lock();
            let (wanted, default) = match priority {
                Priority::Bulk => (self.config.max_concurrency, 4),
                Priority::OnDemand => (self.config.on_demand_concurrency, 16),
            };
            let size = if wanted == 0 { default } else { wanted };
            let lane = lanes.entry((host.to_owned(), priority)).or_insert_with(|| Arc::new(Semaphore::new(size)));
            Arc::clone(lane)
        };
        lane.acquire_owned()
            .await
            .map_err(|_| Error::Config { host: host.to_owned(), detail: "the client is closed".into() })
    }

    /// Sends `call`, authorized as `wish` says, until an answer comes that is not worth a retry.
    pub async fn send(&self, call: &Call<'_>, wish: &Wish<'_>) -> Result<Response, Error> {
        let counters = self.book.host(&wish.endpoint.host);
        let mut pause = self.config.backoff;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (error, at_least) = match self.attempt(call, wish, &counters).await {
                Ok(Attempt::Answer(response)) => {
                    wish.endpoint.answered();
                    return Ok(*response);
                }
                Ok(Attempt::Again(error, at_least)) => (error, at_least),
                Err(error) => {
                    add(&counters.failures, 1);
                    return Err(error);
                }
            };
            let patience = self.config.max_retry_after;
            if attempt >= call.attempts || at_least.is_some_and(|at_least| at_least > patience) {
                if matches!(error, Error::Network { .. } | Error::Stalled { .. }) && !call.signed {
                    wish.endpoint.set_down();
                }
                add(&counters.failures, 1);
                return Err(error);
            }
            add(&counters.retries, 1);
            tracing::debug!(%error, attempt, "registry request failed, trying again");
            tokio::time::sleep(at_least.unwrap_or_default().max(jitter(pause))).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// One attempt, with as many requests as authorization and redirects need.
    async fn attempt(&self, call: &Call<'_>, wish: &Wish<'_>, counters: &Arc<HostCounters>) -> Result<Attempt, Error> {
        let mut refusals: HashMap<String, u32> = HashMap::new();
        loop {
            let refused: Vec<String> =
                refusals.iter().filter(|(_, count)| **count >= 2).map(|(identity, _)| identity.clone()).collect();
            let ticket =
                if call.signed { None } else { self.auth.ticket(wish, &refused, &self.hosts, &self.config).await? };
            let permit = self.permit(&wish.endpoint.host, call.priority).await?;
            let response = match self.follow(call, wish, ticket.as_ref(), counters, permit).await {
                Ok(response) => response,
                Err(error) if error.is_transient() => return Ok(Attempt::Again(error, None)),
                Err(error) => return Err(error),
            };
            let status = response.status;
            if status == StatusCode::UNAUTHORIZED && !call.signed && !response.redirected {
                let challenge = self.auth.refused(wish, ticket.as_ref(), &response.headers).await;
                drain(response.inner).await;
                self.judge_refusal(wish, ticket, challenge, &mut refusals).await?;
                continue;
            }
            if retryable(status) {
                let at_least = retry_after(&response.headers);
                return Ok(Attempt::Again(response.into_error(wish.what).await, at_least));
            }
            if status.is_success()
                && let Some(ticket) = &ticket
            {
                self.auth.granted(wish, ticket);
            }
            return Ok(Attempt::Answer(Box::new(response)));
        }
    }

    /// After a 401: returns if another try with another ticket makes sense.
    async fn judge_refusal(
        &self,
        wish: &Wish<'_>,
        ticket: Option<Ticket>,
        challenge: Option<Challenge>,
        refusals: &mut HashMap<String, u32>,
    ) -> Result<(), Error> {
        let verb = if wish.scopes.iter().any(|scope| scope.contains("push")) { "push" } else { "pull" };
        let denied = |detail: &str| {
            let detail =
                format!("{verb} access denied, repository does not exist or may require authorization: {detail}");
            Error::Unauthorized { what: wish.what.to_owned(), detail }
        };
        let Some(challenge) = challenge else {
            return Err(denied("authorization failed: the registry does not say how to authorize"));
        };
        match ticket {
            None => {
                // Asked without one; is there one to be had?
                let found = self.auth.ticket(wish, &[], &self.hosts, &self.config).await?;
                if found.is_none() {
                    return Err(denied("authorization failed: no basic auth credentials"));
                }
                Ok(())
            }
            Some(ticket) => {
                let count = refusals.entry(ticket.identity().to_owned()).or_default();
                *count += 1;
                if *count >= 2 && matches!(wish.access.who, Who::One(_)) {
                    let detail = match challenge {
                        Challenge::Bearer { error: Some(error), .. } => {
                            format!("server message: {error}: authorization failed")
                        }
                        _ => "authorization failed".to_owned(),
                    };
                    return Err(denied(&detail));
                }
                Ok(())
            }
        }
    }

    /// Sends, and follows redirects; `Authorization` goes to the first origin only.
    async fn follow(
        &self,
        call: &Call<'_>,
        wish: &Wish<'_>,
        ticket: Option<&Ticket>,
        counters: &Arc<HostCounters>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Response, Error> {
        let mut url = call.url.clone();
        let mut first = origin(&url);
        for _ in 0..=MAX_REDIRECTS {
            let at_home = !call.signed && origin(&url) == first;
            let client = if at_home { wish.endpoint.http.clone() } else { self.hosts.client_for(&url)? };
            let listed = self.book.list(wish.what, call.method.as_str(), without_query(&url), call.range.clone());
            let mut headers = call.headers.clone();
            if let Some(ticket) = ticket.filter(|_| at_home) {
                headers.insert(AUTHORIZATION, ticket.header.clone());
            }
            add(&counters.requests, 1);
            if let Some(count) = call.count {
                add(count, 1);
            }
            if call.range.is_some() {
                add(&counters.range_requests, 1);
            }
            let sent = self.exchange(&client, call, &url, headers, wish, counters).await;
            let inner = match sent {
                Ok(inner) => inner,
                Err(Failure { connecting: true, .. }) if at_home && wish.endpoint.fall_back() => {
                    url.set_scheme("http").map_err(|()| protocol(wish, &url, "no http URL"))?;
                    first = origin(&url);
                    continue;
                }
                Err(failure) => {
                    if failure.connecting && at_home {
                        wish.endpoint.unreachable();
                    }
                    return Err(failure.error);
                }
            };
            let status = inner.status();
            let follow = match status.as_u16() {
                301..=303 => call.method == Method::GET || call.method == Method::HEAD,
                307 | 308 => true,
                _ => false,
            };
            if follow {
                let location = inner.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                let location = location.ok_or_else(|| protocol(wish, &url, "a redirect without a Location"))?;
                let next = url.join(location).map_err(|e| protocol(wish, &url, &format!("redirect: {e}")))?;
                if !matches!(next.scheme(), "http" | "https") {
                    return Err(protocol(wish, &url, &format!("redirect to {}", next.scheme())));
                }
                url = next;
                drain(inner).await;
                continue;
            }
            return Ok(Response {
                status,
                headers: inner.headers().clone(),
                redirected: call.signed || origin(&url) != first,
                url,
                method: call.method.clone(),
                what: wish.what.to_owned(),
                inner,
                stall: self.config.stall_timeout,
                counters: Arc::clone(counters),
                _permit: permit,
                _listed: listed,
            });
        }
        Err(protocol(wish, &call.url, &format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// One request and the head of its answer.
    async fn exchange(
        &self,
        client: &reqwest::Client,
        call: &Call<'_>,
        url: &Url,
        headers: HeaderMap,
        wish: &Wish<'_>,
        counters: &Arc<HostCounters>,
    ) -> Result<reqwest::Response, Failure> {
        let stall = self.config.stall_timeout;
        let mut request = client.request(call.method.clone(), url.clone()).headers(headers);
        let broken: Arc<Mutex<Option<String>>> = Arc::default();
        let progress = Arc::new(AtomicU64::new(0));
        let mut size = 0;
        match call.payload {
            Payload::None => {
                if call.method != Method::GET && call.method != Method::HEAD {
                    request = request.header(http::header::CONTENT_LENGTH, 0);
                }
            }
            Payload::Bytes(bytes) => {
                size = bytes.len() as u64;
                request = request.body(bytes.clone());
            }
            Payload::Source(source, length) => {
                size = length;
                let stream = source.open().await.map_err(|cause| Failure {
                    error: Error::Source { what: wish.what.to_owned(), cause: cause.to_string() },
                    connecting: false,
                })?;
                let (progress, broken, counters) = (Arc::clone(&progress), Arc::clone(&broken), Arc::clone(counters));
                let watched = stream.map(move |item| {
                    match &item {
                        Ok(bytes) => {
                            progress.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                            add(&counters.bytes_sent, bytes.len() as u64);
                        }
                        Err(error) => *broken.lock() = Some(error.to_string()),
                    }
                    item
                });
                request =
                    request.header(http::header::CONTENT_LENGTH, length).body(reqwest::Body::wrap_stream(watched));
            }
        }
        let mut sending = std::pin::pin!(request.send());
        let mut seen = 0;
        let mut deadline = Instant::now() + self.config.connect_timeout.max(stall);
        let tick = (stall / 8).clamp(Duration::from_millis(5), Duration::from_millis(500));
        loop {
            match tokio::time::timeout(tick, sending.as_mut()).await {
                Ok(Ok(response)) => {
                    if let Payload::Bytes(bytes) = call.payload {
                        add(&counters.bytes_sent, bytes.len() as u64);
                    }
                    return Ok(response);
                }
                Ok(Err(error)) => {
                    if let Some(cause) = broken.lock().take() {
                        let error = Error::Source { what: wish.what.to_owned(), cause };
                        return Err(Failure { error, connecting: false });
                    }
                    let connecting = error.is_connect();
                    return Err(Failure { error: network(wish.what, &call.method, url, error), connecting });
                }
                Err(_) => {
                    let now = progress.load(Ordering::Relaxed);
                    if now != seen {
                        seen = now;
                        if let Payload::Source(source, _) = call.payload {
                            source.progress(seen);
                        }
                        let patience = if seen == size { stall * STORE_FACTOR } else { stall };
                        deadline = Instant::now() + patience;
                    } else if Instant::now() >= deadline {
                        return Err(Failure { error: stalled(wish.what, &call.method, url, stall), connecting: false });
                    }
                }
            }
        }
    }
}

/// Reads the rest of a short body that nobody wants: a connection whose answer was left unread cannot be used again.
async fn drain(mut response: reqwest::Response) {
    const SHORT: usize = 64 << 10;
    let read = async {
        let mut left = SHORT;
        while let Ok(Some(chunk)) = response.chunk().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
}

/// Why no answer came.
struct Failure {
    error: Error,
    /// Not even a connection came about.
    connecting: bool,
}

fn network(what: &str, method: &Method, url: &Url, error: reqwest::Error) -> Error {
    Error::Network {
        what: what.to_owned(),
        method: method.to_string(),
        url: without_query(url),
        cause: crate::error::chain(&error.without_url()),
    }
}

fn stalled(what: &str, method: &Method, url: &Url, stall: Duration) -> Error {
    Error::Stalled {
        what: what.to_owned(),
        method: method.to_string(),
        url: without_query(url),
        seconds: stall.as_secs_f32(),
    }
}

fn protocol(wish: &Wish<'_>, url: &Url, detail: &str) -> Error {
    Error::Protocol { what: wish.what.to_owned(), host: origin_host(url), detail: detail.to_owned() }
}

fn origin(url: &Url) -> (String, String, Option<u16>) {
    (url.scheme().to_owned(), url.host_str().unwrap_or_default().to_owned(), url.port_or_known_default())
}

fn origin_host(url: &Url) -> String {
    match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    }
}

fn retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429) || (status.is_server_error() && status.as_u16() != 501)
}

/// `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let seconds = then.as_second() - jiff::Timestamp::now().as_second();
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// Between half and all of `pause`.
pub(crate) fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// Asks `ask` of one endpoint after the other until one has an answer. The error that says most is reported: a status
/// before "not found" before a failure of the network, and the first of the kind.
pub(crate) async fn any_endpoint<'e, T, F>(
    endpoints: &'e [Arc<Endpoint>],
    attempts: u32,
    mut ask: impl FnMut(&'e Arc<Endpoint>, u32) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut kept: Option<(u8, Error)> = None;
    for (at, endpoint) in endpoints.iter().enumerate() {
        // A mirror that does not answer shall not hold up the next for long.
        let attempts = if at + 1 < endpoints.len() { attempts.min(2) } else { attempts };
        match ask(endpoint, attempts).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                tracing::debug!(host = endpoint.host, %error, "registry endpoint failed");
                let weight = match &error {
                    Error::Network { .. } | Error::Stalled { .. } => 1,
                    Error::NotFound { .. } => 2,
                    _ => 3,
                };
                if kept.as_ref().is_none_or(|(kept, _)| *kept < weight) {
                    kept = Some((weight, error));
                }
            }
        }
    }
    let none = || Error::Config { host: String::new(), detail: "no endpoint".into() };
    Err(kept.map_or_else(none, |(_, error)| error))
}

/// Who asks, spelled as the `Wish` of a repository at an endpoint.
pub(crate) fn wish<'a>(
    endpoint: &'a Endpoint,
    path: &str,
    actions: &str,
    access: &'a Access,
    what: &'a str,
) -> Wish<'a> {
    let repository = endpoint.repository(path);
    let scopes = vec![format!("repository:{repository}:{actions}")];
    Wish { endpoint, repository, scopes, access, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())])
    }

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Wed, 21 Oct 2015 07:28:00 GMT")), None, "a date in the past");
        assert!(retry_after(&headers("Fri, 21 Oct 2095 07:28:00 GMT")).unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn which_statuses_are_tried_again() {
        for (status, again) in
            [(500, true), (502, true), (503, true), (501, false), (429, true), (404, false), (403, false)]
        {
            assert_eq!(retryable(StatusCode::from_u16(status).unwrap()), again, "{status}");
        }
    }

    #[test]
    fn error_documents_are_quoted_briefly() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\nway","detail":{}}]}"#;
        assert_eq!(error_detail(body), ": DENIED: noway");
        for body in [&b""[..], b"<html>", b"{}", b"{\"errors\":[]}", b"{\"errors\":null}"] {
            assert_eq!(error_detail(body), "");
        }
    }
}
