//! Reading blobs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use castor_oci::{Descriptor, Hasher};
use futures::stream::{self, BoxStream};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use parking_lot::Mutex;
use reqwest::Url;

use crate::counters::add;
use crate::hosts::{Endpoint, Purpose};
use crate::transport::{Call, Response, Shared, any_endpoint, jitter, wish};
use crate::{Access, Error, Repository};

/// Which of a host's two lanes a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Priority {
    /// Somebody waits for these bytes.
    OnDemand,
    /// Downloads and background fetches: few at once a host.
    #[default]
    Bulk,
}

/// Reads one blob of one repository; cheap to clone, clones share the signed URL and the counters.
#[derive(Debug, Clone)]
pub struct BlobReader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    repository: Repository,
    descriptor: Descriptor,
    access: Access,
    what: String,
    route: Mutex<Route>,
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// What was learned about the way to the bytes.
#[derive(Debug, Default)]
struct Route {
    /// By endpoint: where its redirect led to.
    signed: HashMap<String, Url>,
    /// The endpoint that answered last.
    last: Option<String>,
    /// Endpoints that gave wrong bytes: asked after all others.
    distrusted: Vec<String>,
}

impl BlobReader {
    pub(crate) fn new(shared: Arc<Shared>, repository: Repository, descriptor: Descriptor, access: Access) -> Self {
        let what = format!("{repository}@{}", descriptor.digest);
        let (route, bytes, requests) = Default::default();
        Self { inner: Arc::new(Inner { shared, repository, descriptor, access, what, route, bytes, requests }) }
    }

    /// What is read.
    pub fn descriptor(&self) -> &Descriptor {
        &self.inner.descriptor
    }

    /// Where it is read from.
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// Asks for the bytes `range` with a single-range request. The answer may be the whole blob instead, see [`Body::is_full`].
    /// A cut or stalled answer is resumed behind its last byte.
    pub async fn range(&self, range: Range<u64>, priority: Priority) -> Result<Body, Error> {
        let size = self.inner.descriptor.size;
        let range = range.start.min(size)..range.end.min(size);
        if range.start >= range.end {
            return Ok(Body::new(self, priority, range.start..range.start, None, false));
        }
        let answer = self.open(Some(&range), priority).await?;
        let covered = if answer.full { 0..size } else { range };
        Ok(Body::new(self, priority, covered, Some(answer.response), answer.full))
    }

    /// The whole blob in order, resumed by ranges after cuts. Its bytes are *not* verified here.
    pub async fn full(&self, priority: Priority) -> Result<Body, Error> {
        let answer = self.open(None, priority).await?;
        Ok(Body::new(self, priority, 0..self.inner.descriptor.size, Some(answer.response), true))
    }

    /// The whole blob in memory, verified; refuses more than `limit` bytes.
    pub async fn bytes(&self, limit: u64) -> Result<Bytes, Error> {
        let Inner { descriptor, what, .. } = &*self.inner;
        if descriptor.size > limit {
            return Err(Error::TooLarge { what: what.clone(), size: descriptor.size, limit });
        }
        let mut distrusted = false;
        loop {
            let bytes = self.full(Priority::OnDemand).await?.collect().await?;
            let mut hasher = Hasher::new();
            hasher.update(&bytes);
            let found = hasher.finish();
            if found == descriptor.digest {
                return Ok(bytes);
            }
            if distrusted {
                let host = self.inner.route.lock().last.clone().unwrap_or_default();
                return Err(Error::DigestMismatch { what: what.clone(), host, found, wanted: descriptor.digest });
            }
            self.distrust();
            distrusted = true;
        }
    }

    /// Says that bytes read last were wrong: the next request goes to another mirror, or anew through the registry.
    pub fn distrust(&self) {
        let mut route = self.inner.route.lock();
        route.signed.clear();
        if let Some(host) = route.last.take()
            && !route.distrusted.contains(&host)
        {
            route.distrusted.push(host);
        }
    }

    /// Bytes received for this blob so far.
    pub fn bytes_fetched(&self) -> u64 {
        self.inner.bytes.load(Ordering::Relaxed)
    }

    /// Requests sent for this blob so far, redirects and retries included.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// The endpoint that answered last, for messages.
    pub fn last_host(&self) -> Option<String> {
        self.inner.route.lock().last.clone()
    }

    async fn open(&self, range: Option<&Range<u64>>, priority: Priority) -> Result<Answer, Error> {
        let inner = &*self.inner;
        let mut endpoints =
            inner.shared.hosts.endpoints(inner.repository.host(), Purpose::Pull, inner.access.insecure)?;
        {
            let route = inner.route.lock();
            // A stable sort: within a group the configured order stays.
            endpoints.sort_by_key(|endpoint| {
                let distrusted = route.distrusted.contains(&endpoint.host);
                (distrusted, route.last.as_ref().is_some_and(|last| *last != endpoint.host))
            });
        }
        any_endpoint(&endpoints, inner.shared.config.max_attempts, |endpoint, attempts| {
            self.ask(endpoint, range, priority, attempts)
        })
        .await
    }

    /// Asks one endpoint, anew through the registry when a signed URL is over or an answer is not well-formed.
    async fn ask(
        &self,
        endpoint: &Arc<Endpoint>,
        range: Option<&Range<u64>>,
        priority: Priority,
        attempts: u32,
    ) -> Result<Answer, Error> {
        let inner = &*self.inner;
        let wish = wish(endpoint, inner.repository.path(), "pull", &inner.access, &inner.what);
        let mut tries_left = attempts.clamp(2, 3);
        loop {
            tries_left -= 1;
            let signed = inner.route.lock().signed.get(&endpoint.host).cloned();
            let url = match &signed {
                Some(url) => url.clone(),
                None => endpoint.url(inner.repository.path(), &format!("blobs/{}", inner.descriptor.digest))?,
            };
            let mut call = Call::get(url, attempts);
            call.signed = signed.is_some();
            call.priority = priority;
            call.count = Some(&inner.requests);
            call.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(range) = range {
                let text = format!("bytes={}-{}", range.start, range.end - 1);
                call.headers.insert(RANGE, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")));
                call.range = Some(range.clone());
            }
            let outcome = inner.shared.send(&call, &wish).await;
            let forget = || inner.route.lock().signed.remove(&endpoint.host);
            let response = match outcome {
                // The address behind a redirect may be gone for good: ask for another.
                Err(error) if signed.is_some() && tries_left > 0 && error.is_transient() => {
                    forget();
                    continue;
                }
                other => other?,
            };
            if !response.status.is_success() {
                let over = matches!(response.status.as_u16(), 400 | 401 | 403 | 404 | 410);
                if response.redirected && over && tries_left > 0 {
                    forget();
                    continue;
                }
                return Err(response.into_error(&inner.what).await);
            }
            match validate(response, range, inner.descriptor.size) {
                Ok(answer) => {
                    let mut route = inner.route.lock();
                    if answer.response.redirected && signed.is_none() {
                        route.signed.insert(endpoint.host.clone(), answer.response.url.clone());
                    }
                    route.last = Some(endpoint.host.clone());
                    return Ok(answer);
                }
                Err(error) if tries_left == 0 => return Err(error),
                Err(_) => {
                    forget();
                }
            }
        }
    }
}

struct Answer {
    response: Response,
    full: bool,
}

/// Whether head and request agree; what passes may still end early.
fn validate(response: Response, range: Option<&Range<u64>>, size: u64) -> Result<Answer, Error> {
    let header = |name| response.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(encoding) = header(CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Err(response.protocol_error(format!("the blob came with Content-Encoding {encoding:?}")));
    }
    let length = response.content_length();
    match (response.status.as_u16(), range) {
        (200, _) => {
            if let Some(length) = length
                && length != size
            {
                return Err(response.protocol_error(format!("the blob has {length} bytes, want {size}")));
            }
            Ok(Answer { full: true, response })
        }
        (206, Some(range)) => {
            if header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("multipart/")) {
                return Err(response.protocol_error("several parts where one was asked for"));
            }
            let text = header(CONTENT_RANGE).unwrap_or_default();
            let parsed = parse_content_range(text);
            let wrong = |detail: &str| {
                response.protocol_error(format!(
                    "Content-Range {text:?} {detail} bytes={}-{} of {size}",
                    range.start,
                    range.end - 1
                ))
            };
            let Some((got, total)) = parsed else { return Err(wrong("is no answer to")) };
            // Less than asked for is allowed; the rest is asked for when this is read.
            if got.start != range.start || got.end > range.end {
                return Err(wrong("is not what was asked for:"));
            }
            if total.is_some_and(|total| total != size) {
                return Err(wrong("is of another blob than"));
            }
            if length.is_some_and(|length| length != got.end - got.start) {
                return Err(wrong("does not fit Content-Length for"));
            }
            Ok(Answer { full: false, response })
        }
        (status, _) => Err(response.protocol_error(format!("status {status} where a blob was asked for"))),
    }
}

/// `bytes a-b/total`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && last < u64::MAX).then(|| (first..last + 1, total))
}

/// The bytes of an answer.
#[derive(Debug)]
pub struct Body {
    reader: BlobReader,
    priority: Priority,
    range: Range<u64>,
    full: bool,
    /// The next byte to deliver.
    at: u64,
    response: Option<Response>,
    /// Bytes of `response` to drop: it began anew where it should have gone on.
    skip: u64,
    /// Since the last byte.
    failures: u32,
}

impl Body {
    fn new(reader: &BlobReader, priority: Priority, range: Range<u64>, response: Option<Response>, full: bool) -> Self {
        let at = range.start;
        Self { reader: reader.clone(), priority, range, full, at, response, skip: 0, failures: 0 }
    }

    /// The bytes that will come: the range that was asked for, or the whole blob.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Whether the registry sends the whole blob (status 200), from byte 0: always after [`BlobReader::full`], and where a
    /// range was asked for and the registry does not do ranges.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The next bytes; `None` once exactly [`range`](Self::range) was delivered. Dropping the future loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while self.at < self.range.end {
            let Some(response) = &mut self.response else {
                self.resume().await?;
                continue;
            };
            let error = match response.chunk().await {
                Ok(Some(mut bytes)) => {
                    add(&self.reader.inner.bytes, bytes.len() as u64);
                    let skipped = self.skip.min(bytes.len() as u64);
                    self.skip -= skipped;
                    bytes.advance(usize::try_from(skipped).unwrap_or(bytes.len()));
                    if bytes.is_empty() {
                        continue;
                    }
                    let left = self.range.end - self.at;
                    if bytes.len() as u64 > left {
                        return Err(response.protocol_error(format!("more bytes than the {left} that were left")));
                    }
                    self.at += bytes.len() as u64;
                    self.failures = 0;
                    return Ok(Some(bytes));
                }
                Ok(None) => response.protocol_error(format!(
                    "the body ended at byte {} of {}..{}",
                    self.at, self.range.start, self.range.end
                )),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            self.response = None;
            self.failures += 1;
            let config = &self.reader.inner.shared.config;
            if self.failures >= config.max_attempts {
                return Err(error);
            }
            tracing::debug!(%error, at = self.at, "blob body cut, resuming");
            tokio::time::sleep(jitter(config.backoff * 2_u32.pow(self.failures.min(6)))).await;
        }
        if let Some(mut response) = self.response.take()
            && response.finish().await
        {
            return Err(response.protocol_error(format!("more bytes than {}..{}", self.range.start, self.range.end)));
        }
        Ok(None)
    }

    async fn resume(&mut self) -> Result<(), Error> {
        let answer = self.reader.open(Some(&(self.at..self.range.end)), self.priority).await?;
        self.skip = if answer.full { self.at } else { 0 };
        self.response = Some(answer.response);
        Ok(())
    }

    /// The rest as a stream; ends after an error.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, Error>> {
        Box::pin(stream::try_unfold(self, |mut body| async move { Ok(body.chunk().await?.map(|bytes| (bytes, body))) }))
    }

    /// The rest in memory.
    pub async fn collect(mut self) -> Result<Bytes, Error> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.chunk().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0..10, Some(100))));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for text in [
            "",
            "bytes",
            "bytes 9-0/100",
            "bytes */100",
            "bytes 0-9",
            "items 0-9/100",
            "bytes 0-18446744073709551615/1",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}
