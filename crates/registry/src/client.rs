//! The client: resolving and reading manifests.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use castor_oci::{Descriptor, Digest, Index, Manifest, Platform, Reference, media_type};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use crate::counters::{Counts, InFlight};
use crate::hosts::{Endpoint, Purpose};
use crate::transport::{Call, Response, Shared, any_endpoint, wish};
use crate::{Access, BlobReader, Config, Error, choose_platform};

/// Manifests and indexes are not larger.
const MAX_MANIFEST: usize = 8 << 20;
/// Indexes within indexes are not nested deeper.
const MAX_NESTING: usize = 4;

const ACCEPTED: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

/// A repository: host and path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    host: String,
    path: String,
}

impl Repository {
    /// The host as users write it (`docker.io`), with its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path without the host.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl From<&Reference> for Repository {
    fn from(reference: &Reference) -> Self {
        Self { host: reference.host().to_owned(), path: reference.path().to_owned() }
    }
}

impl FromStr for Repository {
    type Err = castor_oci::ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(&text.parse::<Reference>()?))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// An image of one platform, as resolved: nothing of its layers was read.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the reference names: an index or a manifest.
    pub root: Descriptor,
    /// The bytes of `root` if it is an index.
    pub index: Option<Bytes>,
    /// The platform's manifest.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub manifest_bytes: Bytes,
    /// Its content.
    pub manifest: Manifest,
}

/// A client of all registries; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl Client {
    /// A client with this configuration; reads the certificate files that it names.
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self { shared: Arc::new(Shared::new(config)?) })
    }

    /// What `reference` names: HEAD, or GET where a registry's HEAD says too little.
    pub async fn resolve(&self, reference: &Reference, access: &Access) -> Result<Descriptor, Error> {
        let what = reference.to_string();
        let endpoints = self.shared.hosts.endpoints(reference.host(), Purpose::Pull, access.insecure)?;
        any_endpoint(&endpoints, self.shared.config.max_attempts, |endpoint, attempts| {
            self.resolve_at(endpoint, reference, access, &what, attempts)
        })
        .await
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        access: &Access,
        what: &str,
        attempts: u32,
    ) -> Result<Descriptor, Error> {
        let wish = wish(endpoint, reference.path(), "pull", access, what);
        let url = endpoint.url(reference.path(), &format!("manifests/{}", reference.target()))?;
        let mut call = Call { method: Method::HEAD, ..Call::get(url, attempts) };
        call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let head = self.shared.send(&call, &wish).await?;
        if head.status.is_success() {
            if let Some(descriptor) = described_by_head(&head, reference)? {
                return Ok(descriptor);
            }
        } else if !matches!(
            head.status,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_REQUEST
        ) {
            return Err(head.into_error(what).await);
        }
        call.method = Method::GET;
        let response = self.shared.send(&call, &wish).await?;
        if !response.status.is_success() {
            return Err(response.into_error(what).await);
        }
        let (stated, host) = (content_type(&response.headers), response.host());
        let body = response.bytes(MAX_MANIFEST).await?;
        let found = Digest::of(&body);
        if let Some(wanted) = reference.digest()
            && wanted != found
        {
            return Err(Error::DigestMismatch { what: what.to_owned(), host, found, wanted });
        }
        let media_type = media_type_of(stated.as_deref(), &body, what)?;
        Ok(Descriptor::new(media_type, found, body.len() as u64))
    }

    /// The manifest or index `descriptor`, its digest verified.
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        access: &Access,
    ) -> Result<Bytes, Error> {
        refuse_schema1(&descriptor.media_type, &reference.to_string())?;
        let what = format!("{}@{}", reference.repository(), descriptor.digest);
        if descriptor.size > MAX_MANIFEST as u64 {
            return Err(Error::TooLarge { what, size: descriptor.size, limit: MAX_MANIFEST as u64 });
        }
        let endpoints = self.shared.hosts.endpoints(reference.host(), Purpose::Pull, access.insecure)?;
        any_endpoint(&endpoints, self.shared.config.max_attempts, |endpoint, attempts| {
            self.manifest_at(endpoint, reference, descriptor, access, &what, attempts)
        })
        .await
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        descriptor: &Descriptor,
        access: &Access,
        what: &str,
        attempts: u32,
    ) -> Result<Bytes, Error> {
        let wish = wish(endpoint, reference.path(), "pull", access, what);
        let url = endpoint.url(reference.path(), &format!("manifests/{}", descriptor.digest))?;
        let mut call = Call::get(url, attempts);
        let accept = if descriptor.media_type.is_empty() {
            ACCEPTED.to_owned()
        } else {
            format!("{}, */*", descriptor.media_type)
        };
        call.headers.insert(ACCEPT, HeaderValue::from_str(&accept).unwrap_or(HeaderValue::from_static(ACCEPTED)));
        let mut distrusted = false;
        loop {
            let response = self.shared.send(&call, &wish).await?;
            if !response.status.is_success() {
                return Err(response.into_error(what).await);
            }
            let host = response.host();
            let body = response.bytes(MAX_MANIFEST).await;
            let error = match body {
                Ok(body) => {
                    let found = Digest::of(&body);
                    if found == descriptor.digest {
                        return Ok(body);
                    }
                    Error::DigestMismatch { what: what.to_owned(), host, found, wanted: descriptor.digest }
                }
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            // Cut or damaged on the way: once more.
            if distrusted {
                return Err(error);
            }
            distrusted = true;
        }
    }

    /// Resolves `reference` and reads index and manifest of the image for `platform`.
    pub async fn image(&self, reference: &Reference, platform: &Platform, access: &Access) -> Result<Image, Error> {
        let root = self.resolve(reference, access).await?;
        self.image_at(reference, root, platform, access).await
    }

    /// Reads index and manifest of the image for `platform` below `root`, which was resolved before.
    pub async fn image_at(
        &self,
        reference: &Reference,
        root: Descriptor,
        platform: &Platform,
        access: &Access,
    ) -> Result<Image, Error> {
        let mut descriptor = root.clone();
        let mut index = None;
        for _ in 0..MAX_NESTING {
            let bytes = self.manifest(reference, &descriptor, access).await?;
            let what = || format!("{}@{}", reference.repository(), descriptor.digest);
            let kind = media_type_of(Some(&descriptor.media_type), &bytes, &what())?;
            let invalid = |error: serde_json::Error| Error::Unsupported { what: what(), detail: error.to_string() };
            if !media_type::is_index(&kind) {
                let manifest = serde_json::from_slice(&bytes).map_err(invalid)?;
                descriptor.media_type = kind;
                return Ok(Image { root, index, descriptor, manifest_bytes: bytes, manifest });
            }
            let parsed: Index = serde_json::from_slice(&bytes).map_err(invalid)?;
            let Some(chosen) = choose_platform(&parsed, platform) else {
                return Err(Error::NoPlatform { digest: descriptor.digest, platform: platform.to_string() });
            };
            index.get_or_insert(bytes);
            descriptor = chosen.clone();
        }
        let detail = format!("indexes are nested deeper than {MAX_NESTING}");
        Err(Error::Unsupported { what: reference.to_string(), detail })
    }

    /// A reader of the blob `descriptor` of `repository`; sends nothing yet.
    pub fn blob(&self, repository: &Repository, descriptor: &Descriptor, access: &Access) -> BlobReader {
        BlobReader::new(Arc::clone(&self.shared), repository.clone(), descriptor.clone(), access.clone())
    }

    /// What was done so far, by network host.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        self.shared.book.counts()
    }

    /// The requests that have not ended, oldest first.
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.shared.book.in_flight()
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_owned())
}

/// The descriptor that the head of an answer gives, if it gives all of it.
fn described_by_head(head: &Response, reference: &Reference) -> Result<Option<Descriptor>, Error> {
    let stated = head.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
    let stated: Option<Digest> = match stated.map(str::parse) {
        None => None,
        Some(Ok(digest)) => Some(digest),
        Some(Err(error)) => return Err(head.protocol_error(format!("Docker-Content-Digest: {error}"))),
    };
    if let (Some(wanted), Some(found)) = (reference.digest(), stated)
        && wanted != found
    {
        let (what, host) = (reference.to_string(), head.host());
        return Err(Error::DigestMismatch { what, host, found, wanted });
    }
    let Some(digest) = reference.digest().or(stated) else { return Ok(None) };
    let Some(kind) = content_type(&head.headers) else { return Ok(None) };
    refuse_schema1(&kind, &reference.to_string())?;
    if !media_type::is_manifest(&kind) && !media_type::is_index(&kind) {
        return Ok(None);
    }
    Ok(head.content_length().filter(|size| *size > 0).map(|size| Descriptor::new(kind, digest, size)))
}

fn refuse_schema1(kind: &str, what: &str) -> Result<(), Error> {
    if kind.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        let detail = format!("media type {kind:?} (Docker schema 1) is no longer supported, please rebuild the image");
        return Err(Error::Unsupported { what: what.to_owned(), detail });
    }
    Ok(())
}

/// The media type of a manifest: what it says itself, else what was stated, else what its form shows.
fn media_type_of(stated: Option<&str>, body: &[u8], what: &str) -> Result<String, Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        schema_version: u32,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let unsupported = |detail: String| Error::Unsupported { what: what.to_owned(), detail };
    let shape: Shape = serde_json::from_slice(body).map_err(|e| unsupported(format!("not a manifest: {e}")))?;
    if shape.schema_version == 1 || shape.fs_layers.is_some() {
        refuse_schema1("application/vnd.docker.distribution.manifest.v1+prettyjws", what)?;
    }
    // A document that can be read as both would mean different images to different readers.
    if shape.manifests.is_some() && (shape.config.is_some() || shape.layers.is_some()) {
        return Err(unsupported("it has both manifests and layers".into()));
    }
    let known = |kind: &&str| media_type::is_manifest(kind) || media_type::is_index(kind);
    let by_form = if shape.manifests.is_some() { media_type::OCI_INDEX } else { media_type::OCI_MANIFEST };
    let own = shape.media_type.as_deref().filter(|own| !own.is_empty());
    let kind = match (own, stated.filter(known)) {
        (Some(own), _) if !known(&own) => return Err(unsupported(format!("media type {own:?}"))),
        (Some(own), Some(stated)) if own != stated => {
            return Err(unsupported(format!("media type {own:?} inside, {stated:?} outside")));
        }
        (Some(own), _) => own,
        (None, Some(stated)) => stated,
        (None, None) => by_form,
    };
    if media_type::is_index(kind) != shape.manifests.is_some() {
        return Err(unsupported(format!("media type {kind:?} does not fit its content")));
    }
    Ok(kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_of_manifests() {
        let of = |stated: Option<&str>, body: &str| media_type_of(stated, body.as_bytes(), "x");
        let manifest = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        assert_eq!(of(None, manifest).unwrap(), media_type::OCI_MANIFEST);
        assert_eq!(of(Some("application/json"), manifest).unwrap(), media_type::OCI_MANIFEST);
        assert_eq!(of(Some(media_type::DOCKER_MANIFEST), manifest).unwrap(), media_type::DOCKER_MANIFEST);
        let index = format!(r#"{{"mediaType":"{}","manifests":[]}}"#, media_type::DOCKER_LIST);
        assert_eq!(of(None, &index).unwrap(), media_type::DOCKER_LIST);
        for (stated, body) in [
            (None, r#"{"schemaVersion":1,"fsLayers":[]}"#),
            (None, r#"{"manifests":[],"layers":[]}"#),
            (Some(media_type::OCI_INDEX), manifest),
            (Some(media_type::OCI_MANIFEST), index.as_str()),
            (None, r#"{"mediaType":"text/plain"}"#),
            (None, "<html>"),
        ] {
            assert!(matches!(of(stated, body), Err(Error::Unsupported { .. })), "{body}");
        }
    }
}
