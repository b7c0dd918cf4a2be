//! Files from web servers. What a server said of a file is remembered (`ETag`), so that an unchanged one is asked for
//! again but not fetched again.

mod error;
mod file;
mod name;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use castor_llb::HttpSource;
use castor_metadb::{Batch, KeyValue};
use castor_oci::Digest;
use castor_session::{SessionError, secrets, upload};
use castor_solver::Cx;
use castor_store::{ImmutableRef, RecordOptions};
use castor_task::blocking;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_ENCODING, ETAG};
use http::header::{IF_NONE_MATCH, LAST_MODIFIED, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::openers::group;
use crate::{OpError, Worker};
pub use error::WebError;
use file::{Owned, receive};
pub(crate) use name::show_date;

const TABLE: &str = "ops.web";
/// The host under which a client's own uploads are.
const SESSION_HOST: &str = "buildkit-session";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a server may say nothing in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(300);
/// Versions of one URL that are remembered.
const MAX_KNOWN: usize = 16;
/// Servers that know BuildKit take castor for it.
const AGENT: &str = concat!("buildkit/v0 castor/", env!("CARGO_PKG_VERSION"));

/// Asks web servers.
pub(crate) struct Web {
    db: Arc<dyn KeyValue>,
    clients: OnceLock<Result<Clients, String>>,
}

struct Clients {
    any: reqwest::Client,
    /// Not through a proxy: for this machine.
    direct: reqwest::Client,
}

/// A version of a file, as it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    record: String,
    etag: String,
    checksum: Digest,
    /// `Last-Modified`, as sent.
    #[serde(default)]
    modified: String,
}

/// A file that is here.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its digest.
    pub(crate) checksum: Digest,
    /// Its name.
    pub(crate) name: String,
    /// When it was last modified, seconds since 1970, if the server says so.
    pub(crate) modified: Option<i64>,
    /// A directory with the file.
    pub(crate) file: ImmutableRef,
}

/// What a server or client answers.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: BoxStream<'static, Result<Bytes, String>>,
}

impl Answer {
    fn header(&self, name: &HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn etag(&self) -> String {
        strong(self.header(&ETAG))
    }
}

/// For comparing, a weak tag is as good as a strong one.
fn strong(tag: &str) -> String {
    tag.strip_prefix("W/").unwrap_or(tag).to_owned()
}

impl Web {
    pub(crate) fn new(db: Arc<dyn KeyValue>) -> Self {
        Self { db, clients: OnceLock::new() }
    }

    /// The file as it is now: fetched, unless what is here is the same.
    pub(crate) async fn find(&self, worker: &Worker, cx: &Cx, source: &HttpSource) -> Result<Found, OpError> {
        let url = parse(source)?;
        let mut headers = self.headers(worker, cx, source, &url).await?;
        let key = key(source);
        let known = self.known(worker, &key).await;
        if !known.is_empty() {
            let tags: Vec<&str> = known.iter().map(|(known, _)| known.etag.as_str()).collect();
            if let Ok(value) = HeaderValue::from_str(&tags.join(", ")) {
                headers.insert(IF_NONE_MATCH, value);
            }
            // Some servers answer a conditional request wrongly though their tags are right.
            if let Ok(answer) = self.ask(worker, cx, Method::HEAD, &url, headers.clone()).await
                && (answer.status == StatusCode::OK || answer.status == StatusCode::NOT_MODIFIED)
                && let Some(found) = same(source, &url, &answer, &known)
            {
                return Ok(found);
            }
        }
        let answer = self.ask(worker, cx, Method::GET, &url, headers).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return match same(source, &url, &answer, &known) {
                Some(found) => Ok(found),
                None => Err(WebError::NotModified(answer.etag()).into()),
            };
        }
        self.save(worker, cx, source, &url, answer).await
    }

    async fn headers(&self, worker: &Worker, cx: &Cx, source: &HttpSource, url: &Url) -> Result<HeaderMap, OpError> {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        for (name, value) in &source.headers {
            let invalid = || WebError::Header(name.clone());
            let name: HeaderName = name.parse().map_err(|_| invalid())?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|_| invalid())?);
        }
        let sessions = group(worker.sessions(), cx);
        let required = !source.auth_header_secret.is_empty();
        let host = url.host_str().unwrap_or_default();
        let secrets = match required {
            true => vec![(source.auth_header_secret.clone(), "")],
            false => vec![(format!("HTTP_AUTH_HEADER_{host}"), ""), (format!("HTTP_AUTH_TOKEN_{host}"), "Bearer ")],
        };
        for (name, prefix) in secrets {
            let secret = match secrets::get(&sessions, &name).await {
                Ok(secret) => secret,
                Err(error) if required => return Err(WebError::Secret(name, error).into()),
                Err(_) => None,
            };
            let Some(secret) = secret else {
                if required {
                    return Err(WebError::NoSecret(name).into());
                }
                continue;
            };
            let value = [prefix.as_bytes(), &secret].concat();
            let mut value = HeaderValue::from_bytes(&value).map_err(|_| WebError::Header(name))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    async fn ask(
        &self,
        worker: &Worker,
        cx: &Cx,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Answer, OpError> {
        if url.host_str() == Some(SESSION_HOST) {
            return uploaded(worker, cx, &method, url).await;
        }
        let client = self.client(url)?;
        let request = client.request(method.clone(), url.clone()).headers(headers).send();
        let response = tokio::select! {
            () = cx.token().cancelled() => return Err(OpError::Cancelled),
            response = request => response.map_err(|error| WebError::request(&method, url, &error))?,
        };
        let (status, headers, shown) = (response.status(), response.headers().clone(), error::redacted(url));
        let body = response.bytes_stream().map_err(move |error| format!("Get \"{shown}\": {}", error::cause(&error)));
        Ok(Answer { status, headers, body: body.boxed() })
    }

    fn client(&self, url: &Url) -> Result<reqwest::Client, WebError> {
        let build = |direct: bool| {
            let builder = |roots_of_system: bool| {
                let mut builder =
                    reqwest::Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).referer(false);
                if direct {
                    builder = builder.no_proxy();
                }
                if !roots_of_system {
                    builder = builder.tls_certs_only([]);
                }
                builder.build()
            };
            // A machine without any certificate authority can still use plain HTTP.
            builder(true).or_else(|first| builder(false).map_err(|_| error::cause(&first)))
        };
        let clients = self.clients.get_or_init(|| Ok(Clients { any: build(false)?, direct: build(true)? }));
        let clients = clients.as_ref().map_err(|error| WebError::Client(error.clone()))?;
        let local = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        Ok(if local { clients.direct.clone() } else { clients.any.clone() })
    }

    async fn save(
        &self,
        worker: &Worker,
        cx: &Cx,
        source: &HttpSource,
        url: &Url,
        answer: Answer,
    ) -> Result<Found, OpError> {
        if !(200..400).contains(&answer.status.as_u16()) {
            return Err(WebError::Status(answer.status.as_u16()).into());
        }
        let name = name::of(source, url, answer.header(&CONTENT_DISPOSITION));
        let modified_text = answer.header(&LAST_MODIFIED).to_owned();
        let modified = name::date(&modified_text);
        let etag = answer.etag();
        let options = RecordOptions::described(format!("http url {}", error::redacted(url)));
        let writable = worker.store().new_mutable(cx, None, options).await?;
        let mounting = writable.mount(cx).await?;
        let owned = Owned {
            mode: if source.perm == 0 { 0o600 } else { u32::try_from(source.perm & 0o777).unwrap_or_default() },
            uid: u32::try_from(source.uid).map_err(|_| WebError::Owner(source.uid))?,
            gid: u32::try_from(source.gid).map_err(|_| WebError::Owner(source.gid))?,
            modified: modified.unwrap_or_default(),
        };
        let gzip = answer.header(&CONTENT_ENCODING).eq_ignore_ascii_case("gzip");
        let checksum = receive(cx, answer.body, gzip, mounting.path().to_owned(), name.clone(), owned).await?;
        drop(mounting);
        let file = writable.commit().await?;
        if !etag.is_empty() {
            file.retain().await?;
            let known = Known { record: file.id().to_owned(), etag, checksum, modified: modified_text };
            self.remember(key(source), known).await;
        }
        Ok(Found { checksum, name, modified, file })
    }

    /// What is remembered and still here.
    async fn known(&self, worker: &Worker, key: &str) -> Vec<(Known, ImmutableRef)> {
        let (db, name) = (self.db.clone(), key.to_owned());
        let rows: Vec<Known> = blocking(move || rows(db.as_ref(), &name)).await;
        let mut known = Vec::new();
        for row in rows {
            if let Ok(file) = worker.store().get(&row.record).await {
                known.push((row, file));
            }
        }
        known
    }

    async fn remember(&self, key: String, known: Known) {
        let db = self.db.clone();
        blocking(move || {
            let mut rows = rows(db.as_ref(), &key);
            rows.retain(|row| row.etag != known.etag);
            rows.insert(0, known);
            rows.truncate(MAX_KNOWN);
            let Ok(value) = serde_json::to_vec(&rows) else { return };
            let mut batch = Batch::new();
            batch.put(TABLE, key.as_bytes(), value);
            db.write_soon(batch);
        })
        .await;
    }
}

fn rows(db: &dyn KeyValue, key: &str) -> Vec<Known> {
    // A row that cannot be read is one that is not there: the file is fetched again.
    let row = db.get(TABLE, key.as_bytes()).ok().flatten();
    row.and_then(|row| serde_json::from_slice(&row).ok()).unwrap_or_default()
}

/// What makes two requests ask for the same file.
fn key(source: &HttpSource) -> String {
    let HttpSource { url, filename, perm, uid, gid, auth_header_secret, headers, .. } = source;
    Digest::of(format!("{url}\0{filename}\0{perm}\0{uid}\0{gid}\0{auth_header_secret}\0{headers:?}")).to_string()
}

fn parse(source: &HttpSource) -> Result<Url, WebError> {
    source.url.parse().map_err(|error: url::ParseError| WebError::Url(source.url.clone(), error.to_string()))
}

/// The name of the file, as far as it is known without asking.
pub(crate) fn file_name(source: &HttpSource) -> Result<String, WebError> {
    Ok(name::of(source, &parse(source)?, ""))
}

/// The version that the answer means, if it is one that is here.
fn same(source: &HttpSource, url: &Url, answer: &Answer, known: &[(Known, ImmutableRef)]) -> Option<Found> {
    let mut etag = answer.etag();
    if etag.is_empty() && answer.status == StatusCode::NOT_MODIFIED && known.len() == 1 {
        etag.clone_from(&known[0].0.etag);
    }
    let (known, file) = known.iter().find(|(known, _)| !etag.is_empty() && known.etag == etag)?;
    Some(Found {
        checksum: known.checksum,
        name: name::of(source, url, answer.header(&CONTENT_DISPOSITION)),
        modified: name::date(&known.modified),
        file: file.clone(),
    })
}

/// What a client of the build offers under the URL.
async fn uploaded(worker: &Worker, cx: &Cx, method: &Method, url: &Url) -> Result<Answer, OpError> {
    if *method != Method::GET {
        return Err(WebError::Session.into());
    }
    let sessions = group(worker.sessions(), cx);
    let caller = sessions.any(|caller| async move { Ok::<_, SessionError>(caller) }).await?;
    let body = upload::pull(&caller, SESSION_HOST, url.path()).map_err(|error| error.to_string()).boxed();
    Ok(Answer { status: StatusCode::OK, headers: HeaderMap::new(), body })
}
