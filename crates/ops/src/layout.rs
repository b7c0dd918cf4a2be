//! OCI layouts of clients: stores of blobs behind a session, from which images are taken by digest.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use castor_layerfs::{BlobOpener, FetchError, Priority, RangeBody};
use castor_oci::{Descriptor, Digest, Index, Manifest, Platform, Reference, media_type};
use castor_registry::choose_platform;
use castor_session::content::RemoteStore;
use castor_session::{Caller, Group, SessionError, Sessions};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::OpError;
use crate::images::ResolvedImage;

/// How an origin of a layer begins that is no repository.
const ORIGIN: &str = "oci-layout://";
/// How long the session is waited for that a layout names.
const PATIENCE: Duration = Duration::from_secs(5);
/// Manifests, indexes and configurations are not larger.
const MAX_DOCUMENT: usize = 8 << 20;
/// Indexes within indexes are not nested deeper.
const MAX_NESTING: usize = 4;

/// A layout of a client.
#[derive(Clone)]
pub(crate) struct Layout {
    sessions: Sessions,
    /// Whoever wants what is read.
    group: Group,
    /// The session that has it; empty is any of the group's.
    session: String,
    store: String,
}

impl Layout {
    pub(crate) fn new(sessions: &Sessions, group: Group, session: &str, store: &str) -> Self {
        Self { sessions: sessions.clone(), group, session: session.to_owned(), store: store.to_owned() }
    }

    /// The layout that a layer's origin names, if it is one.
    pub(crate) fn of_origin(origin: &str, sessions: &Sessions, group: &Group) -> Option<Self> {
        let (session, store) = origin.strip_prefix(ORIGIN)?.split_once('/')?;
        Some(Self::new(sessions, group.clone(), session, store))
    }

    /// How a layer remembers that it came from here.
    pub(crate) fn origin(&self) -> String {
        format!("{ORIGIN}{}/{}", self.session, self.store)
    }

    /// The store at whoever has it: the session that is named or, once that is gone, any of those who ask.
    async fn store(&self) -> Result<RemoteStore, SessionError> {
        let named = match self.session.as_str() {
            "" => None,
            session => match self.group.is_alive() && self.sessions.now(session).is_none() {
                true => None,
                false => Some(self.sessions.get(session, PATIENCE).await),
            },
        };
        let caller: Caller = match named {
            Some(Ok(caller)) => caller,
            Some(Err(error)) if !self.group.is_alive() => return Err(error),
            _ => self.group.any(|caller| async move { Ok(caller) }).await?,
        };
        Ok(RemoteStore::new(caller, format!("oci:{}", self.store)))
    }

    /// A whole document, verified.
    async fn document(&self, digest: Digest) -> Result<Bytes, OpError> {
        let store = self.store().await?;
        let mut stream = store.read(&digest, 0, 0);
        let mut data = Vec::new();
        while let Some(piece) = stream.try_next().await? {
            data.extend_from_slice(&piece);
            if data.len() > MAX_DOCUMENT {
                let name = &self.store;
                return Err(OpError::Image(format!("{digest} in OCI layout {name} exceeds {MAX_DOCUMENT} bytes")));
            }
        }
        let found = Digest::of(&data);
        if found != digest {
            return Err(OpError::Image(format!("{digest} in OCI layout {} has digest {found}", self.store)));
        }
        Ok(data.into())
    }

    /// The image of one platform that the reference's digest names.
    pub(crate) async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<ResolvedImage, OpError> {
        let Some(digest) = reference.digest() else {
            return Err(OpError::Invalid(format!("reference {reference} must have digest")));
        };
        let what = reference.to_string();
        let invalid = |error: serde_json::Error| OpError::Image(format!("failed to parse manifest of {what}: {error}"));
        let bytes = self.document(digest).await?;
        let kind = kind_of(&bytes).map_err(invalid)?;
        let root = Descriptor::new(kind, digest, bytes.len() as u64);
        let (mut found, mut is_index) = (bytes, media_type::is_index(&root.media_type));
        for _ in 0..MAX_NESTING {
            if !is_index {
                let manifest: Manifest = serde_json::from_slice(&found).map_err(invalid)?;
                let config = self.document(manifest.config.digest).await?;
                return ResolvedImage::parse(root, found, config, &what);
            }
            let index: Index = serde_json::from_slice(&found).map_err(invalid)?;
            let chosen = choose_platform(&index, platform)
                .ok_or_else(|| OpError::Image(format!("no match for platform {platform} in {digest}: not found")))?;
            found = self.document(chosen.digest).await?;
            is_index = media_type::is_index(&kind_of(&found).map_err(invalid)?);
        }
        Err(OpError::Image(format!("indexes of {what} are nested deeper than {MAX_NESTING}")))
    }

    /// A range of a blob; what cannot be had at all is told before anything is given.
    async fn range(&self, digest: Digest, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let failed = |error: SessionError| FetchError::new(format!("{}: {error}", self.origin()));
        let store = self.store().await.map_err(failed)?;
        let origin = self.origin();
        let failed = move |error: SessionError| FetchError::new(format!("{origin}: {error}"));
        let size = range.end.saturating_sub(range.start);
        let mut stream = store.read(&digest, range.start, size).map_err(failed).boxed();
        let first = stream.next().await.transpose()?;
        let stream = futures::stream::iter(first.map(Ok)).chain(stream).boxed();
        Ok(RangeBody { range, full: false, stream })
    }
}

/// Whether a document is an index or a manifest, by its form.
fn kind_of(document: &[u8]) -> Result<String, serde_json::Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(document)?;
    let known = |kind: &str| media_type::is_manifest(kind) || media_type::is_index(kind);
    Ok(match shape.manifests {
        _ if known(&shape.media_type) => shape.media_type,
        Some(_) => media_type::OCI_INDEX.to_owned(),
        None => media_type::OCI_MANIFEST.to_owned(),
    })
}

/// Reads a layer from layouts and, if none has it any more, from wherever else it is known to be.
pub(crate) struct LayoutOpener {
    pub(crate) digest: Digest,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) rest: Arc<dyn BlobOpener>,
    /// Whether there is anywhere else.
    pub(crate) elsewhere: bool,
}

#[async_trait]
impl BlobOpener for LayoutOpener {
    async fn range(&self, range: Range<u64>, priority: Priority) -> Result<RangeBody, FetchError> {
        let mut last = None;
        for layout in &self.layouts {
            match layout.range(self.digest, range.clone()).await {
                Ok(body) => return Ok(body),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if !self.elsewhere => Err(error),
            _ => self.rest.range(range, priority).await,
        }
    }

    fn describe(&self) -> String {
        self.rest.describe()
    }

    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        self.rest.external_toc().await
    }

    fn distrust(&self) {
        self.rest.distrust();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_known_by_what_they_say_or_by_their_form() {
        assert_eq!(kind_of(br#"{"manifests":[]}"#).unwrap(), media_type::OCI_INDEX);
        assert_eq!(kind_of(br#"{"layers":[]}"#).unwrap(), media_type::OCI_MANIFEST);
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert_eq!(kind_of(format!(r#"{{"mediaType":"{docker}"}}"#).as_bytes()).unwrap(), docker);
        assert_eq!(kind_of(br#"{"mediaType":"text/plain"}"#).unwrap(), media_type::OCI_MANIFEST);
        assert!(kind_of(b"no").is_err());
    }

    #[test]
    fn origins_of_layouts_are_no_repositories() {
        let sessions = Sessions::new(castor_task::Scope::root("test"));
        let layout = Layout::new(&sessions, sessions.group([]), "abc", "images/base");
        let origin = layout.origin();
        assert!(origin.parse::<castor_registry::Repository>().is_err());
        let again = Layout::of_origin(&origin, &sessions, &sessions.group([])).unwrap();
        assert_eq!((again.session.as_str(), again.store.as_str()), ("abc", "images/base"));
        assert!(Layout::of_origin("docker.io/library/x", &sessions, &sessions.group([])).is_none());
    }
}
