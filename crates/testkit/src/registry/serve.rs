//! Answering requests.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use bytes::Bytes;
use castor_oci::{Digest, Manifest, media_type};
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE,
    RETRY_AFTER,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::body::{Body, End};
use super::{Entry, Fault, Logged, State};

/// One request, understood.
struct Asked {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let (head, body) = request.into_parts();
    let sent = Arc::new(AtomicU64::new(0));
    let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let logged = Logged {
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        range: header(RANGE).map(str::to_owned),
        authorized: head.headers.contains_key(AUTHORIZATION),
        status: 0,
        bytes: 0,
    };
    let slot = {
        let mut content = state.content.lock();
        content.log.push(Entry { logged, sent: Arc::clone(&sent) });
        Arc::clone(&sent)
    };
    let fault = state.fault(&head.method, head.uri.path(), header(RANGE));
    match &fault {
        Some(Fault::Silence) => std::future::pending::<()>().await,
        Some(Fault::Hangup) => return Err(io::Error::other("hung up")),
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: parse_query(head.uri.query().unwrap_or_default()),
        headers: head.headers,
        body,
    };
    let response = match &fault {
        Some(Fault::Status(code, retry)) => {
            let mut response = error(StatusCode::from_u16(*code).unwrap(), "TESTKIT", "as told");
            if let Some(retry) = retry {
                response.headers_mut().insert(RETRY_AFTER, retry.parse().unwrap());
            }
            response
        }
        Some(Fault::Redirect(code, to)) => redirect(*code, to),
        Some(Fault::Unsatisfiable) => error(StatusCode::RANGE_NOT_SATISFIABLE, "TESTKIT", "as told"),
        other => state.route(&asked, other.as_ref()),
    };
    let mut content = state.content.lock();
    // Found by its counter: the log may have been cleared meanwhile.
    if let Some(entry) = content.log.iter_mut().rev().find(|entry| Arc::ptr_eq(&entry.sent, &slot)) {
        entry.logged.status = response.status().as_u16();
    }
    drop(content);
    let (parts, bytes) = response.into_parts();
    let is_head = asked.method == Method::HEAD;
    let mut body = Body::new(if is_head { Bytes::new() } else { bytes }, &sent);
    match fault {
        Some(Fault::Cut(at)) => body = body.ending(at, End::Cut),
        Some(Fault::Stall(at)) => body = body.ending(at, End::Stall),
        _ => {}
    }
    Ok(Response::from_parts(parts, body))
}

impl State {
    fn route(&self, asked: &Asked, fault: Option<&Fault>) -> Response<Bytes> {
        let path = asked.path.as_str();
        if path == "/token" {
            return self.token(&asked.query, &asked.headers);
        }
        if let Some(rest) = path.strip_prefix("/signed/") {
            return self.signed(asked, rest, fault);
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return unknown("no such page") };
        if rest.is_empty() {
            return match self.authorize(&asked.method, "", &asked.headers) {
                Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
                Err(answer) => answer,
            };
        }
        let split = |marker: &str| rest.rsplit_once(marker).map(|(repo, tail)| (repo.to_owned(), tail.to_owned()));
        let (repo, kind, tail) = if let Some((repo, tail)) = split("/blobs/uploads/") {
            (repo, "upload", tail)
        } else if let Some((repo, tail)) = split("/blobs/") {
            (repo, "blob", tail)
        } else if let Some((repo, tail)) = split("/manifests/") {
            (repo, "manifest", tail)
        } else {
            return unknown("no such page");
        };
        if let Err(answer) = self.authorize(&asked.method, &repo, &asked.headers) {
            return answer;
        }
        match kind {
            "upload" => self.upload(asked, &repo, &tail),
            "blob" => self.blob(asked, &repo, &tail, fault),
            _ => self.manifest(asked, &repo, &tail, fault),
        }
    }

    fn blob(&self, asked: &Asked, repo: &str, digest: &str, fault: Option<&Fault>) -> Response<Bytes> {
        let Some(bytes) = digest.parse().ok().and_then(|d: Digest| self.repo(repo, |repo| repo.blobs.get(&d).cloned()))
        else {
            return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        match (&asked.method, self.settings.signed) {
            (&Method::GET, Some(lifetime)) => {
                let signature = self.number().to_string();
                self.content.lock().signatures.insert(signature.clone(), Instant::now() + lifetime);
                redirect(307, &format!("http://{}/signed/{repo}/blobs/{digest}?signature={signature}", self.storage))
            }
            (&Method::GET | &Method::HEAD, _) => blob_answer(asked, &bytes, fault),
            _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not that"),
        }
    }

    /// The storage behind signed URLs.
    fn signed(&self, asked: &Asked, rest: &str, fault: Option<&Fault>) -> Response<Bytes> {
        if asked.headers.contains_key(AUTHORIZATION) {
            return error(StatusCode::BAD_REQUEST, "InvalidArgument", "only one auth mechanism allowed");
        }
        let signature = asked.param("signature").unwrap_or_default();
        let good = self.content.lock().signatures.get(signature).is_some_and(|until| *until > Instant::now());
        if !good {
            return error(StatusCode::FORBIDDEN, "AccessDenied", "Request has expired");
        }
        let found = rest.rsplit_once("/blobs/").and_then(|(repo, digest)| {
            let digest: Digest = digest.parse().ok()?;
            self.repo(repo, |repo| repo.blobs.get(&digest).cloned())
        });
        match found {
            Some(bytes) => blob_answer(asked, &bytes, fault),
            None => unknown("no such key"),
        }
    }

    fn manifest(&self, asked: &Asked, repo: &str, target: &str, fault: Option<&Fault>) -> Response<Bytes> {
        match asked.method {
            Method::GET | Method::HEAD => {
                let Some((kind, bytes)) = self.repo(repo, |repo| repo.manifests.get(target).cloned()) else {
                    return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
                };
                let mut response = Response::new(corrupt(&bytes, fault));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, kind.parse().unwrap());
                headers.insert(CONTENT_LENGTH, bytes.len().into());
                headers.insert("docker-content-digest", Digest::of(&bytes).to_string().parse().unwrap());
                response
            }
            Method::PUT => {
                let kind = asked.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
                let digest = Digest::of(&asked.body);
                if target.contains(':') && target != digest.to_string() {
                    return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "provided digest did not match");
                }
                if media_type::is_manifest(&kind) {
                    let Ok(manifest) = serde_json::from_slice::<Manifest>(&asked.body) else {
                        return error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", "manifest invalid");
                    };
                    let missing = self.repo(repo, |repo| {
                        let mut needed = manifest.layers.iter().chain([&manifest.config]);
                        needed.find(|d| !repo.blobs.contains_key(&d.digest)).map(|d| d.digest)
                    });
                    if let Some(missing) = missing {
                        return error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", &missing.to_string());
                    }
                }
                self.repo(repo, |repo| {
                    repo.manifests.insert(target.to_owned(), (kind.clone(), asked.body.clone()));
                    repo.manifests.insert(digest.to_string(), (kind, asked.body.clone()));
                });
                let mut response = with_status(StatusCode::CREATED);
                response.headers_mut().insert("docker-content-digest", digest.to_string().parse().unwrap());
                response
            }
            _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not that"),
        }
    }

    fn upload(&self, asked: &Asked, repo: &str, id: &str) -> Response<Bytes> {
        match asked.method {
            Method::POST => {
                if let (Some(digest), Some(from)) = (asked.param("mount"), asked.param("from"))
                    && let Ok(digest) = digest.parse::<Digest>()
                    && self.authorize(&Method::GET, from, &asked.headers).is_ok()
                    && let Some(bytes) = self.repo(from, |repo| repo.blobs.get(&digest).cloned())
                {
                    self.repo(repo, |repo| repo.blobs.insert(digest, bytes));
                    return created(repo, &digest);
                }
                let id = format!("upload-{}", self.number());
                self.content.lock().uploads.insert(id.clone(), Vec::new());
                let mut response = with_status(StatusCode::ACCEPTED);
                // Relative, with a query: clients must join and append.
                let location = format!("/v2/{repo}/blobs/uploads/{id}?_state=x");
                response.headers_mut().insert(LOCATION, location.parse().unwrap());
                response
            }
            Method::PATCH | Method::PUT => {
                let mut content = self.content.lock();
                let Some(mut bytes) = content.uploads.remove(id) else {
                    return error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
                };
                bytes.extend_from_slice(&asked.body);
                if asked.method == Method::PATCH {
                    content.uploads.insert(id.to_owned(), bytes);
                    drop(content);
                    let mut response = with_status(StatusCode::ACCEPTED);
                    let location = format!("/v2/{repo}/blobs/uploads/{id}?_state=x");
                    response.headers_mut().insert(LOCATION, location.parse().unwrap());
                    return response;
                }
                drop(content);
                let digest = Digest::of(&bytes);
                if asked.param("digest") != Some(digest.to_string().as_str()) {
                    return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "provided digest did not match");
                }
                self.repo(repo, |repo| repo.blobs.insert(digest, bytes.into()));
                created(repo, &digest)
            }
            _ => error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not that"),
        }
    }
}

fn blob_answer(asked: &Asked, blob: &Bytes, fault: Option<&Fault>) -> Response<Bytes> {
    let size = blob.len() as u64;
    let blob = corrupt(blob, fault);
    let range = asked.headers.get(RANGE).and_then(|value| value.to_str().ok());
    let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let mut response = match range.map(|text| parse_range(text, size)) {
        Some(None) => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "invalid content range");
            response.headers_mut().insert(CONTENT_RANGE, format!("bytes */{size}").parse().unwrap());
            return response;
        }
        Some(Some(mut range)) => {
            if let Some(Fault::Short(by)) = fault {
                range.end = range.end.saturating_sub(*by).max(range.start + 1);
            }
            let mut response = Response::new(slice(&blob, &range));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            if let Some(Fault::ShiftedRange(by)) = fault {
                range = range.start + by..range.end + by;
            }
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response.headers_mut().insert(CONTENT_RANGE, text.parse().unwrap());
            response
        }
        None => {
            let by = if let Some(Fault::Short(by)) = fault { *by } else { 0 };
            Response::new(slice(&blob, &(0..size.saturating_sub(by))))
        }
    };
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if matches!(fault, Some(Fault::Encoded)) {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn corrupt(bytes: &Bytes, fault: Option<&Fault>) -> Bytes {
    let Some(Fault::Corrupt(at)) = fault else { return bytes.clone() };
    let mut copy = bytes.to_vec();
    if let Some(byte) = usize::try_from(*at).ok().and_then(|at| copy.get_mut(at)) {
        *byte ^= 0xff;
    }
    copy.into()
}

fn slice(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
}

/// A single range, `None` if it cannot be satisfied.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) => first..size,
        (Err(_), Ok(suffix)) => size.saturating_sub(suffix)..size,
        (Err(_), Err(_)) => return None,
    };
    (range.start < range.end).then_some(range)
}

fn parse_query(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut out = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    let hex: Vec<u8> = bytes.by_ref().take(2).collect();
                    let value = std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    out.extend(value);
                }
                b'+' => out.push(b' '),
                byte => out.push(byte),
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn with_status(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}

fn created(repo: &str, digest: &Digest) -> Response<Bytes> {
    let mut response = with_status(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, format!("/v2/{repo}/blobs/{digest}").parse().unwrap());
    headers.insert("docker-content-digest", digest.to_string().parse().unwrap());
    response
}

fn redirect(code: u16, to: &str) -> Response<Bytes> {
    let mut response = with_status(StatusCode::from_u16(code).unwrap());
    response.headers_mut().insert(LOCATION, to.parse().unwrap());
    response
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    json(status, &serde_json::json!({ "errors": [{ "code": code, "message": message }] }))
}

fn unknown(what: &str) -> Response<Bytes> {
    error(StatusCode::NOT_FOUND, "NOT_FOUND", what)
}
