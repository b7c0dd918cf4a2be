//! Pushing blobs and manifests.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use castor_oci::{Descriptor, Digest, Reference};
use futures::stream::BoxStream;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use reqwest::Url;
use std::sync::Arc;

use crate::auth::Wish;
use crate::hosts::{Endpoint, Purpose};
use crate::transport::{Call, Payload, Response, jitter, wish};
use crate::{Access, Client, Error, Priority, Repository};

/// Repositories that a mount is tried from.
const MAX_MOUNTS: usize = 3;

/// Where the bytes of a blob to be pushed come from; opened anew for each attempt.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The blob's bytes from the first.
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>>;

    /// Called now and then with the bytes sent so far in this attempt.
    fn progress(&self, sent: u64) {
        let _ = sent;
    }
}

#[async_trait]
impl BlobSource for Bytes {
    async fn open(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let bytes = self.clone();
        Ok(Box::pin(futures::stream::once(async move { Ok(bytes) })))
    }
}

/// How a blob came to be in the target repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was mounted from another repository of the host.
    Mounted,
    /// It was uploaded.
    Uploaded,
}

/// What the registry says to a wish to mount.
enum Mount {
    Done,
    /// Upload it, to this place if one was given.
    Upload(Option<Url>),
}

impl Client {
    /// Whether `repository` has the blob (HEAD; for pushes only).
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest, access: &Access) -> Result<bool, Error> {
        let what = format!("{repository}@{digest}");
        let endpoint = self.push_endpoint(repository.host(), access)?;
        let wish = wish(&endpoint, repository.path(), "pull,push", access, &what);
        let url = endpoint.url(repository.path(), &format!("blobs/{digest}"))?;
        let call = Call { method: Method::HEAD, ..Call::get(url, self.shared.config.max_attempts) };
        let response = self.shared.send(&call, &wish).await?;
        match response.status {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(response.into_error(&what).await),
        }
    }

    /// Asks the host of `repository` to take the blob from its repository `from`.
    async fn mount(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
        access: &Access,
    ) -> Result<Mount, Error> {
        if repository.host() != from.host() {
            return Ok(Mount::Upload(None));
        }
        let what = format!("{repository}@{digest}");
        let endpoint = self.push_endpoint(repository.host(), access)?;
        let mut wish = wish(&endpoint, repository.path(), "pull,push", access, &what);
        wish.scopes.push(format!("repository:{}:pull", from.path()));
        let mut url = endpoint.url(repository.path(), "blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.path());
        let call = Call { method: Method::POST, ..Call::get(url, self.shared.config.max_attempts) };
        let response = self.shared.send(&call, &wish).await?;
        match response.status {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => Ok(Mount::Upload(Some(location(&response)?))),
            _ => Err(response.into_error(&what).await),
        }
    }

    /// Brings the blob into `repository`: nothing if it is there, else mounted from one of `mount_from` (repositories of
    /// other hosts are skipped), else uploaded from `source`, which is opened only then.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        mount_from: &[Repository],
        source: &dyn BlobSource,
        access: &Access,
    ) -> Result<Pushed, Error> {
        if self.has_blob(repository, &descriptor.digest, access).await? {
            return Ok(Pushed::Existed);
        }
        let mut place = None;
        let candidates = mount_from.iter().filter(|from| from.host() == repository.host() && *from != repository);
        for from in candidates.take(MAX_MOUNTS) {
            match self.mount(repository, &descriptor.digest, from, access).await {
                Ok(Mount::Done) => return Ok(Pushed::Mounted),
                Ok(Mount::Upload(offered)) => place = offered.or(place),
                // Not being allowed to read there, or the registry's not knowing of mounts, is no reason to fail.
                Err(error) => tracing::debug!(%error, %from, "mount blob across repositories"),
            }
        }
        self.upload(repository, descriptor, place, source, access).await?;
        Ok(Pushed::Uploaded)
    }

    async fn upload(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        mut place: Option<Url>,
        source: &dyn BlobSource,
        access: &Access,
    ) -> Result<(), Error> {
        let config = &self.shared.config;
        let what = format!("{repository}@{}", descriptor.digest);
        let endpoint = self.push_endpoint(repository.host(), access)?;
        let wish = wish(&endpoint, repository.path(), "pull,push", access, &what);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let url = match place.take() {
                Some(url) => url,
                None => self.begin_upload(repository, &endpoint, &wish).await?,
            };
            let error = match self.put_blob(url, descriptor, source, &endpoint, &wish).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // An upload that is unknown has expired or went to another instance of the registry: begin anew.
            let lost = error.is_transient() || error.is_not_found();
            if !lost || attempt >= config.max_attempts {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "upload failed, beginning anew");
            tokio::time::sleep(jitter(config.backoff * 2_u32.pow(attempt.min(6)))).await;
            // The answer to an upload that succeeded may have been lost.
            if self.has_blob(repository, &descriptor.digest, access).await? {
                return Ok(());
            }
        }
    }

    async fn begin_upload(&self, repository: &Repository, endpoint: &Endpoint, wish: &Wish<'_>) -> Result<Url, Error> {
        let url = endpoint.url(repository.path(), "blobs/uploads/")?;
        let call = Call { method: Method::POST, ..Call::get(url, self.shared.config.max_attempts) };
        let response = self.shared.send(&call, wish).await?;
        match response.status {
            StatusCode::ACCEPTED => location(&response),
            _ => Err(response.into_error(wish.what).await),
        }
    }

    async fn put_blob(
        &self,
        mut url: Url,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        endpoint: &Endpoint,
        wish: &Wish<'_>,
    ) -> Result<(), Error> {
        url.query_pairs_mut().append_pair("digest", &descriptor.digest.to_string());
        // An upload to another origin carries its permission in its URL.
        let signed = url.origin() != endpoint.url("x", "")?.origin();
        // A place takes one upload: repeating is for the caller, who asks for another place.
        let mut call = Call { method: Method::PUT, ..Call::get(url, 1) };
        call.signed = signed;
        call.priority = Priority::Bulk;
        call.payload = Payload::Source(source, descriptor.size);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let response = self.shared.send(&call, wish).await?;
        match response.status {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => {
                source.progress(descriptor.size);
                Ok(())
            }
            _ => Err(response.into_error(wish.what).await),
        }
    }

    /// Puts a manifest or index under the tag of `reference`, or under its digest if it has no tag.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
        access: &Access,
    ) -> Result<Digest, Error> {
        let digest = Digest::of(&bytes);
        let what = reference.to_string();
        if let Some(wanted) = reference.digest()
            && wanted != digest
        {
            return Err(Error::DigestMismatch { what, host: "this daemon".into(), found: digest, wanted });
        }
        let target = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let endpoint = self.push_endpoint(reference.host(), access)?;
        let wish = wish(&endpoint, reference.path(), "pull,push", access, &what);
        let url = endpoint.url(reference.path(), &format!("manifests/{target}"))?;
        let mut call = Call { method: Method::PUT, ..Call::get(url, self.shared.config.max_attempts) };
        call.payload = Payload::Bytes(&bytes);
        let kind = HeaderValue::from_str(media_type)
            .map_err(|_| Error::Unsupported { what: what.clone(), detail: format!("media type {media_type:?}") })?;
        call.headers.insert(CONTENT_TYPE, kind);
        let response = self.shared.send(&call, &wish).await?;
        match response.status {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(digest),
            _ => Err(response.into_error(&what).await),
        }
    }

    fn push_endpoint(&self, host: &str, access: &Access) -> Result<Arc<Endpoint>, Error> {
        let mut endpoints = self.shared.hosts.endpoints(host, Purpose::Push, access.insecure)?;
        endpoints.pop().ok_or_else(|| Error::Config { host: host.to_owned(), detail: "no endpoint".into() })
    }
}

/// Where an upload goes on.
fn location(response: &Response) -> Result<Url, Error> {
    let text = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| response.protocol_error("an upload without a Location"))?;
    response.url.join(text).map_err(|e| response.protocol_error(format!("Location of an upload: {e}")))
}
