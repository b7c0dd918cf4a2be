//! Contexts: the main one, named ones, the Dockerfile's own.

use std::collections::BTreeSet;
use std::sync::Mutex;

use castor_llb::state::{Action, Constraints, CopyOptions, HttpOptions, ImageOptions, Late, LocalOptions};
use castor_llb::state::{OciLayoutOptions, join};
use castor_llb::{Definition, MarshalOptions, State};
use castor_oci::{ImageConfig, Platform, Reference};

use super::stage::SCRATCH;
use super::{Converter, image};
use crate::error::{DockerfileError, Result};
use crate::git::GitRef;
use crate::gofmt::quote;
use crate::ignore::{self, Patterns};
use crate::lookup::{IgnoreLookup, ImageLookup, OciLayoutLookup};
use crate::{HttpContext, MetaResolver, Options, platform};

const IGNORE_NAME: &str = ".dockerignore";
/// The name of the file that a web server has under the URL of a context.
pub const HTTP_NAME: &str = "context";
/// How much of it tells what it is.
pub const HTTP_HEAD: u64 = 1024;

/// A context given by name.
#[derive(Debug, Clone)]
pub(super) struct NamedContext {
    input: String,
    name: String,
    /// The name, with the platform if there is a context for that platform alone.
    full_name: String,
    platform: Option<Platform>,
    /// Place in [`Converter::paths`].
    paths: usize,
    /// The two halves of a local directory's state; what is needed of it is known at the end.
    late: (State, Late),
}

/// A local directory under a name, to be set once it is known which of its paths are needed.
#[derive(Debug)]
pub(super) struct LocalContext {
    late: Late,
    local: String,
    full_name: String,
    excludes: Vec<String>,
    paths: usize,
}

impl LocalContext {
    /// Says what it is, now that it is known which paths are needed; all of them if none is named.
    fn set(self, options: &Options, follow_paths: Vec<String>) {
        let shared = options.shared_keys.get(&self.full_name).cloned().unwrap_or_default();
        let local_options = LocalOptions {
            session: options.session_of(&self.local).to_owned(),
            shared_key_hint: format!("context:{}-{shared}", self.full_name),
            exclude_patterns: self.excludes,
            follow_paths,
            ..LocalOptions::default()
        };
        let name = format!("[context {}] load from client", self.full_name);
        self.late.set(&State::local(&self.local, &local_options, Constraints::new().name(name)));
    }
}

/// What it takes to load contexts.
pub(super) struct Loader<'a> {
    options: &'a Options,
    resolver: &'a dyn MetaResolver,
    /// Local directories that were found on the way.
    found_locals: &'a Mutex<Vec<LocalContext>>,
}

/// The context that is called like the image `source`, if there is one: what makes it, and its config if it is an image.
/// Clients put contexts into the place of frontends' images by such names.
pub async fn context_for_image(
    options: &Options,
    resolver: &dyn MetaResolver,
    source: &str,
) -> Result<Option<(Definition, Option<ImageConfig>)>, DockerfileError> {
    let Some(context) = NamedContext::find(options, source, None, 0)? else { return Ok(None) };
    let found_locals = Mutex::default();
    let (state, config) = context.load(&Loader { options, resolver, found_locals: &found_locals }).await?;
    let found = found_locals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.into_iter().for_each(|local| local.set(options, Vec::new()));
    Ok(Some((marshalled(&state, "named context")?, config)))
}

fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// A directory of the client in which a `.dockerignore` is looked for.
fn ignore_source(options: &Options, local: &str, hint: String, name: String) -> State {
    let local_options = LocalOptions {
        session: options.session_of(local).to_owned(),
        follow_paths: vec![IGNORE_NAME.into()],
        shared_key_hint: hint,
        differ: "none".into(),
        ..LocalOptions::default()
    };
    State::local(local, &local_options, Constraints::new().name(name))
}

fn marshalled(state: &State, what: &str) -> Result<Definition> {
    state
        .marshal(&MarshalOptions::default())
        .map_err(|error| DockerfileError::new(format!("failed to marshal {what}: {error}")))
}

/// How to get the Dockerfile (and a `.dockerignore` of its own) from the client: build this and read
/// [`Options::filename`] in it, or its lower-case form if that is called `Dockerfile`.
pub fn dockerfile_source(options: &Options) -> Result<Definition, DockerfileError> {
    if !options.force_local_dockerfile {
        // A context from elsewhere brings its Dockerfile along; one that is an input does not.
        if let Some(state) = remote_context(options)?.filter(|_| !options.context_url.is_empty()) {
            return marshalled(&state, "remote context");
        }
        if let Some(input) = options.inputs.get(&options.dockerfile_name) {
            return Ok(input.clone());
        }
    }
    let name = &options.filename;
    let mut files = vec![name.clone(), format!("{name}{IGNORE_NAME}")];
    let (dir, base) = name.rsplit_once('/').map_or(("", name.as_str()), |(dir, base)| (dir, base));
    if base == "Dockerfile" {
        files.push(join(&[if dir.is_empty() { "." } else { dir }, "dockerfile"]));
    }
    let local_options = LocalOptions {
        session: options.session_of(&options.dockerfile_name).to_owned(),
        follow_paths: files,
        shared_key_hint: options.dockerfile_name.clone(),
        differ: "none".into(),
        ..LocalOptions::default()
    };
    let constraints = Constraints::new().name(format!("[internal] load build definition from {name}"));
    marshalled(&State::local(&options.dockerfile_name, &local_options, constraints), "local source")
}

fn http_state(url: &str) -> State {
    let options = HttpOptions { filename: HTTP_NAME.into(), ..HttpOptions::default() };
    State::http(url, &options, Constraints::new().name("[internal] load remote build context"))
}

/// How to get what a web server has under the URL of the main context, if it is such a URL: build this, read the first
/// [`HTTP_HEAD`] bytes of [`HTTP_NAME`] in it, and tell [`Options::http_context`] what [`is_archive`](crate::is_archive)
/// says of them. A file that is no archive is the Dockerfile itself.
pub fn http_context(options: &Options) -> Result<Option<Definition>, DockerfileError> {
    let url = &options.context_url;
    if !is_http(url) || GitRef::parse(url).is_some() {
        return Ok(None);
    }
    marshalled(&http_state(url), "httpcontext").map(Some)
}

/// The main context, if it is no directory of the client.
pub(super) fn remote_context(options: &Options) -> Result<Option<State>> {
    let url = &options.context_url;
    let state = match GitRef::parse(url) {
        Some(Err(error)) => return Err(DockerfileError::new(error)),
        Some(Ok(git)) => {
            let mut git_options = git.options();
            git_options.keep_git_dir |= options.keep_git_dir == Some(true);
            let epoch = options.build_args.get("SOURCE_DATE_EPOCH").is_some_and(|epoch| !epoch.is_empty());
            if git_options.mtime.is_empty() && epoch {
                git_options.mtime = "commit".into();
            }
            let name = format!("[internal] load git source {url}");
            State::git(&git_options, Constraints::new().name(name))
        }
        None if is_http(url) => {
            let state = http_state(url);
            match options.http_context {
                Some(HttpContext::Archive) => {
                    let unpack = Box::new(CopyOptions { attempt_unpack: true, ..CopyOptions::default() });
                    let src = format!("/{HTTP_NAME}");
                    let action = Action::Copy { from: state, src, dest: "/".into(), options: unpack };
                    State::scratch().file(vec![action], Constraints::new())
                }
                _ => state,
            }
        }
        None => match options.inputs.get("context") {
            None => return Ok(None),
            Some(input) => State::from_definition(input).map_err(|error| DockerfileError::new(error.to_string()))?,
        },
    };
    Ok(Some(match &options.context_subdir {
        None => state,
        Some(subdir) => {
            let copy = CopyOptions { dir_contents_only: true, ..CopyOptions::default() };
            let action = Action::Copy { from: state, src: subdir.clone(), dest: "/".into(), options: Box::new(copy) };
            State::scratch().file(vec![action], Constraints::new())
        }
    }))
}

/// Paths as the transfer takes them; everything, if `/` is among them.
fn follow_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut list: Vec<String> = paths.iter().map(|path| join(&[".", path])).collect();
    list.sort();
    list
}

impl Converter<'_> {
    /// The context with this name, if there is one.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
        paths: usize,
    ) -> Result<Option<NamedContext>> {
        NamedContext::find(self.options, name, platform.or(self.request.target_platform.as_ref()), paths)
    }

    /// What loads contexts for this conversion.
    pub(super) fn loader(&self) -> Loader<'_> {
        Loader { options: self.options, resolver: self.resolver, found_locals: &self.found_locals }
    }

    /// Reads the main context's `.dockerignore`.
    pub(super) async fn load_ignore(&mut self) -> Result<()> {
        if remote_context(self.options)?.is_some() {
            return Ok(());
        }
        let local = &self.options.context_name;
        let name = format!("[internal] load {IGNORE_NAME}");
        let source = ignore_source(self.options, local, format!("{local}-{IGNORE_NAME}"), name);
        let lookup = IgnoreLookup::Main { source: marshalled(&source, "local source")? };
        let Some(file) = self.resolver.ignore_file(&lookup).await.map_err(DockerfileError::lookup)? else {
            return Ok(());
        };
        self.ignore_patterns = ignore::read(&file.data)
            .map_err(|error| DockerfileError::new(format!("failed parsing {}: {error}", file.name)))?;
        self.ignore = Patterns::new(&self.ignore_patterns).map_err(DockerfileError::new)?;
        Ok(())
    }

    /// Says what contexts are, now that it is known which of their paths are needed.
    pub(super) fn set_contexts(&mut self) -> Result<()> {
        let used: BTreeSet<String> = self.stages.iter().flat_map(|stage| stage.context_paths.iter().cloned()).collect();
        let state = match remote_context(self.options)? {
            Some(state) => state,
            None => {
                let local = &self.options.context_name;
                let local_options = LocalOptions {
                    session: self.options.session_of(local).to_owned(),
                    exclude_patterns: self.ignore_patterns.clone(),
                    shared_key_hint: local.clone(),
                    follow_paths: follow_paths(&used),
                    ..LocalOptions::default()
                };
                State::local(local, &local_options, Constraints::new().name("[internal] load build context"))
            }
        };
        self.late_build_context.set(&state);
        let found = self.found_locals.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        for context in std::mem::take(found) {
            let paths = follow_paths(&self.paths[context.paths]);
            context.set(self.options, paths);
        }
        Ok(())
    }
}

impl NamedContext {
    fn find(options: &Options, name: &str, platform: Option<&Platform>, paths: usize) -> Result<Option<Self>> {
        if name.eq_ignore_ascii_case(SCRATCH) || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        let reference: Reference =
            name.parse().map_err(|error| DockerfileError::new(format!("invalid context name {name}: {error}")))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
        let host = Platform::host();
        let normal = platform::normalize(platform.unwrap_or(&host));
        let with_platform = format!("{name}::{}", platform::format_all(&normal));
        let found = [with_platform, name.clone()]
            .into_iter()
            .find_map(|key| options.contexts.get(&key).map(|input| (key, input.clone())));
        Ok(found.map(|(full_name, input)| Self {
            input,
            name,
            full_name,
            platform: platform.cloned(),
            paths,
            late: State::late(),
        }))
    }

    /// Loads the context: its state, and its config if it is an image.
    pub(super) async fn load(&self, loader: &Loader<'_>) -> Result<(State, Option<ImageConfig>)> {
        let Some((scheme, rest)) = self.input.split_once(':') else {
            let message = format!("invalid context specifier {} for {}", self.input, self.full_name);
            return Err(DockerfileError::new(message));
        };
        match scheme {
            "docker-image" => self.load_image(loader, rest.trim_start_matches("//")).await,
            "oci-layout" => self.load_layout(loader, rest.trim_start_matches("//")).await,
            "local" => self.load_local(loader, rest).await,
            "input" => self.load_input(loader.options, rest),
            "git" | "http" | "https" => self.load_url(),
            scheme if scheme.starts_with("git@") => self.load_url(),
            scheme => {
                let message = format!("unsupported context source {scheme} for {}", self.full_name);
                Err(DockerfileError::new(message))
            }
        }
    }

    /// The context, if it is of a kind that has a time: not a directory of the client, and not an image.
    pub(super) fn with_a_time(&self, options: &Options) -> Result<Option<State>> {
        let (scheme, rest) = self.input.split_once(':').unwrap_or((&self.input, ""));
        match scheme {
            "input" => Ok(Some(self.load_input(options, rest)?.0)),
            "git" | "http" | "https" => Ok(Some(self.load_url()?.0)),
            scheme if scheme.starts_with("git@") => Ok(Some(self.load_url()?.0)),
            _ => Ok(None),
        }
    }

    async fn load_image(&self, loader: &Loader<'_>, name: &str) -> Result<(State, Option<ImageConfig>)> {
        if name == SCRATCH {
            return Ok((State::scratch(), None));
        }
        let reference: Reference = name.parse().map_err(|error| DockerfileError::new(format!("{error}")))?;
        let lookup = ImageLookup {
            reference: reference.to_string(),
            platform: self.platform.clone(),
            mode: loader.options.resolve_mode,
            log_name: format!("[context {}] load metadata for {name}", self.full_name),
            oci_layout: None,
        };
        let resolved = loader.resolver.image_config(&lookup).await.map_err(DockerfileError::lookup)?;
        let mut config = image::parse(&resolved.config).map_err(DockerfileError::new)?;
        config.created = None;
        let constraints =
            Constraints::new().name(format!("[context {}] {name}", self.full_name)).platform(self.platform.as_ref());
        let state = State::image(&resolved.reference, &ImageOptions::default(), constraints);
        Ok((state.image_config(&config), Some(config)))
    }

    async fn load_layout(&self, loader: &Loader<'_>, text: &str) -> Result<(State, Option<ImageConfig>)> {
        let Some((store, digest)) = text.split_once('@') else {
            return Err(DockerfileError::new(format!("oci-layout reference {} has no digest", quote(text))));
        };
        let bad = |what: &str, error: String| {
            DockerfileError::new(format!("could not parse oci-layout reference {}: {error}", quote(what)))
        };
        let digest: castor_oci::Digest = digest.parse().map_err(|error| bad(text, format!("{error}")))?;
        let store = store.rsplit_once(':').map_or(store, |(name, _)| name).to_owned();
        // The name is for people; what counts is the digest.
        let shown: Reference = self.name.parse().map_err(|error| bad(&self.name, format!("{error}")))?;
        let shown = format!("{}@{digest}", shown.repository());
        let session = loader.options.session.clone();
        let lookup = ImageLookup {
            reference: shown.clone(),
            platform: self.platform.clone(),
            mode: loader.options.resolve_mode,
            log_name: format!("[context {}] load metadata for {shown}", self.full_name),
            oci_layout: Some(OciLayoutLookup { session: session.clone(), store: store.clone() }),
        };
        let resolved = loader.resolver.image_config(&lookup).await.map_err(DockerfileError::lookup)?;
        let config = image::parse(&resolved.config)
            .map_err(|error| DockerfileError::new(format!("could not parse oci-layout image config: {error}")))?;
        let constraints = Constraints::new()
            .name(format!("[context {}] OCI load from client", self.full_name))
            .platform(self.platform.as_ref());
        let options = OciLayoutOptions { session, store, layer_limit: None };
        let state = State::oci_layout(&shown, &options, constraints);
        Ok((state.image_config(&config), Some(config)))
    }

    async fn load_local(&self, loader: &Loader<'_>, local: &str) -> Result<(State, Option<ImageConfig>)> {
        let hint = format!("context:{}-{IGNORE_NAME}", self.full_name);
        let name = format!("[context {}] load {IGNORE_NAME}", self.full_name);
        let source = ignore_source(loader.options, local, hint, name);
        let lookup = IgnoreLookup::Named { source: marshalled(&source, "local source")? };
        let file = loader.resolver.ignore_file(&lookup).await.map_err(DockerfileError::lookup)?;
        let excludes = match file {
            None => Vec::new(),
            Some(file) => ignore::read(&file.data)
                .map_err(|error| DockerfileError::new(format!("failed parsing {IGNORE_NAME}: {error}")))?,
        };
        let context = LocalContext {
            late: self.late.1.clone(),
            local: local.to_owned(),
            full_name: self.full_name.clone(),
            excludes,
            paths: self.paths,
        };
        loader.found_locals.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(context);
        Ok((self.late.0.clone(), None))
    }

    fn load_input(&self, options: &Options, name: &str) -> Result<(State, Option<ImageConfig>)> {
        let Some(input) = options.inputs.get(name) else {
            return Err(DockerfileError::new(format!("invalid input {name} for {}", self.full_name)));
        };
        let state = State::from_definition(input).map_err(|error| DockerfileError::new(error.to_string()))?;
        let Some(metadata) = options.input_metadata.get(name) else { return Ok((state, None)) };
        let bad = |error: String| DockerfileError::new(format!("failed to parse input metadata {metadata}: {error}"));
        let values: std::collections::BTreeMap<String, String> =
            serde_json::from_str(metadata).map_err(|error| bad(error.to_string()))?;
        let Some(config) = values.get("containerimage.config") else { return Ok((state, None)) };
        // Go's encoder writes bytes as base64.
        let document = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, config)
            .map_err(|error| bad(error.to_string()))?;
        let config = image::parse(&document).map_err(|error| {
            DockerfileError::new(format!("failed to parse image config for {}: {error}", self.full_name))
        })?;
        Ok((state.image_config(&config), Some(config)))
    }

    fn load_url(&self) -> Result<(State, Option<ImageConfig>)> {
        match GitRef::parse(&self.input) {
            Some(Ok(git)) => {
                let name = format!("[internal] load git source {}", self.input);
                Ok((State::git(&git.options(), Constraints::new().name(name)), None))
            }
            Some(Err(error)) => Err(DockerfileError::new(error)),
            None if is_http(&self.input) => {
                let options = HttpOptions { filename: "context".into(), ..HttpOptions::default() };
                let name = format!("[context {}] {}", self.full_name, self.input);
                Ok((State::http(&self.input, &options, Constraints::new().name(name)), None))
            }
            None => Err(DockerfileError::new(format!("invalid git context {}", self.input))),
        }
    }
}
