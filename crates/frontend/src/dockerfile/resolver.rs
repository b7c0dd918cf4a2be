//! What the conversion asks, answered through the bridge. Equal questions are asked once, because stages and platforms
//! repeat them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use castor_dockerfile::{
    IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, ResolvedImage, TimeLookup, commit_time,
};
use castor_llb::Definition;
use castor_ops::bridge::{ReadFile, SourceMetaRequest};
use castor_ops::{Bridge, BridgeError, LazyRef, Refs, SolveRequest};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

type Answer<T> = Arc<OnceCell<Result<T, BridgeError>>>;

const DOCKERIGNORE: &str = ".dockerignore";

pub(crate) struct Resolver {
    bridge: Arc<dyn Bridge>,
    /// The `<Dockerfile>.dockerignore`, if there is one.
    own_ignore: Option<IgnoreFile>,
    images: Mutex<HashMap<String, Answer<ResolvedImage>>>,
    times: Mutex<HashMap<String, Answer<Option<i64>>>>,
    main_ignore: OnceCell<Result<Option<IgnoreFile>, BridgeError>>,
}

impl Resolver {
    pub(crate) fn new(bridge: Arc<dyn Bridge>, own_ignore: Option<IgnoreFile>) -> Self {
        Self { bridge, own_ignore, images: Mutex::default(), times: Mutex::default(), main_ignore: OnceCell::new() }
    }

    async fn resolve(&self, image: &ImageLookup) -> Result<ResolvedImage, BridgeError> {
        let (scheme, attrs) = match &image.oci_layout {
            None => ("docker-image", BTreeMap::new()),
            Some(layout) => {
                let attrs = [("oci.session", &layout.session), ("oci.store", &layout.store)];
                let attrs = attrs.into_iter().filter(|(_, value)| !value.is_empty());
                ("oci-layout", attrs.map(|(name, value)| (name.to_owned(), value.clone())).collect())
            }
        };
        let request = SourceMetaRequest {
            identifier: format!("{scheme}://{}", image.reference),
            attrs,
            platform: image.platform.clone(),
            log_name: image.log_name.clone(),
            resolve_mode: image.mode,
            ..SourceMetaRequest::default()
        };
        let context =
            |error: BridgeError| error.context(format!("failed to resolve source metadata for {}", image.reference));
        let meta = self.bridge.resolve_source(request).await.map_err(context)?;
        let reference = meta.identifier.split_once("://").map_or(image.reference.as_str(), |(_, name)| name).to_owned();
        match meta.image {
            Some(found) => Ok(ResolvedImage { reference, digest: Some(found.digest), config: found.config.to_vec() }),
            None => Err(BridgeError::unknown(format!("{} is not an image", image.reference))),
        }
    }

    async fn time(&self, lookup: &TimeLookup) -> Result<Option<i64>, BridgeError> {
        let source = &lookup.source;
        let request = SourceMetaRequest {
            identifier: source.identifier.clone(),
            attrs: source.attrs.clone(),
            log_name: lookup.log_name.clone(),
            git_objects: source.identifier.starts_with("git://"),
            ..SourceMetaRequest::default()
        };
        let meta = self.bridge.resolve_source(request).await?;
        if let Some(git) = meta.git {
            let time = commit_time(&git.commit_object);
            let unclear = || BridgeError::unknown(format!("commit {} does not tell its time", git.checksum));
            return time.map(Some).ok_or_else(unclear);
        }
        let Some(http) = meta.http else { return Ok(None) };
        let file = source.attrs.get("http.filename").filter(|name| !name.is_empty());
        let (None, Some(file)) = (http.last_modified, file) else { return Ok(http.last_modified) };
        match single(&self.bridge, source.definition.clone(), false).await? {
            Some(reference) => self.bridge.archive_time(&reference, file).await,
            None => Ok(None),
        }
    }

    /// Builds `source` and reads `.dockerignore` in it. That it is not there, or unreadable, is no error.
    async fn read_ignore(&self, source: &Definition, evaluate: bool) -> Result<Option<IgnoreFile>, BridgeError> {
        let Some(reference) = single(&self.bridge, source.clone(), evaluate).await? else { return Ok(None) };
        let request = ReadFile { path: DOCKERIGNORE.to_owned(), ..ReadFile::default() };
        let data = self.bridge.read_file(&reference, request).await.unwrap_or_default();
        Ok(Some(IgnoreFile { name: DOCKERIGNORE.to_owned(), data: data.to_vec() }))
    }
}

/// Builds a definition that makes one result.
pub(super) async fn single(
    bridge: &Arc<dyn Bridge>,
    definition: Definition,
    evaluate: bool,
) -> Result<Option<LazyRef>, BridgeError> {
    let request = SolveRequest { definition: Some(definition), evaluate, ..SolveRequest::default() };
    match bridge.solve(request).await?.refs {
        Refs::Single(reference) => Ok(reference),
        Refs::Map(_) => Err(BridgeError::unknown("failed to get single reference from result map")),
    }
}

#[async_trait]
impl MetaResolver for Resolver {
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError> {
        let key = format!("{image:?}");
        let answer = self.images.lock().entry(key).or_default().clone();
        let answer = answer.get_or_init(|| self.resolve(image)).await;
        answer.clone().map_err(Into::into)
    }

    async fn source_time(&self, source: &TimeLookup) -> Result<Option<i64>, LookupError> {
        let answer = self.times.lock().entry(format!("{source:?}")).or_default().clone();
        let answer = answer.get_or_init(|| self.time(source)).await;
        answer.clone().map_err(Into::into)
    }

    async fn ignore_file(&self, context: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError> {
        match context {
            IgnoreLookup::Main { .. } if self.own_ignore.is_some() => Ok(self.own_ignore.clone()),
            IgnoreLookup::Main { source } => {
                let answer = self.main_ignore.get_or_init(|| self.read_ignore(source, false)).await;
                answer.clone().map_err(Into::into)
            }
            IgnoreLookup::Named { source } => self.read_ignore(source, true).await.map_err(Into::into),
        }
    }
}
