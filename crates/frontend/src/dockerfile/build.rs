//! From the client's options to a result: read the Dockerfile, convert it for each platform, load what comes out.

use std::sync::Arc;

use bytes::Bytes;
use castor_dockerfile::lint::Warning;
use castor_dockerfile::{
    DockerfileError, HTTP_HEAD, HTTP_NAME, HttpContext, IgnoreFile, Options, OptionsError, Request, ScanTargets, check,
    convert, dockerfile_source, frontend_caps, http_context, is_archive, parser,
};
use castor_llb::{CapSet, Definition};
use castor_oci::{Digest, Platform};
use castor_ops::bridge::ReadFile;
use castor_ops::{Attested, Bridge, BridgeError, LazyRef, Refs, SolveRequest, SolveResult};
use castor_proto::errdefs::{Detail as _, FrontendCap, Source, Subrequest};
use castor_proto::pb;
use castor_wire::Failure;
use futures::future::try_join_all;

use super::lint;
use super::metadata::{self, Built};
use super::outline;
use super::resolver::{Resolver, single};
use crate::failure::{from_failure, to_failure};
use crate::sbom::{SbomOptions, ScanTarget, Scanner};
use crate::{FrontendRequest, dockerfile::is_dockerfile_image, is_replaced};

/// The option that names the frontend to use.
const SYNTAX: &str = "build-arg:BUILDKIT_SYNTAX";

/// The Dockerfile, as read.
struct Text {
    filename: String,
    data: Bytes,
    /// How it was had.
    definition: Definition,
    /// The vertex that had it.
    vertex: Option<Digest>,
    ignore: Option<IgnoreFile>,
}

impl Text {
    fn info(&self) -> pb::SourceInfo {
        pb::SourceInfo {
            filename: self.filename.clone(),
            data: self.data.clone(),
            definition: Some(self.definition.to_pb()),
            language: "Dockerfile".to_owned(),
        }
    }

    /// The error with the places in the Dockerfile that it is about.
    fn located(&self, error: &BridgeError, locations: &[Vec<castor_llb::Range>]) -> BridgeError {
        let mut failure = to_failure(error);
        let info = self.info();
        for location in locations.iter().rev() {
            let ranges: Vec<pb::Range> = location.iter().map(|range| range.to_pb()).collect();
            failure.push(&Source::new(&info, &ranges));
        }
        from_failure(&failure)
    }

    fn warning(
        &self,
        short: String,
        detail: Vec<Bytes>,
        url: String,
        ranges: &[castor_llb::Range],
    ) -> Option<castor_progress::Warning> {
        let range = |range: &castor_llb::Range| castor_progress::Range {
            start: (range.start.line, range.start.character),
            end: (range.end.line, range.end.character),
        };
        Some(castor_progress::Warning {
            vertex: self.vertex?,
            level: 1,
            short: short.into(),
            detail,
            url,
            source: Some(castor_progress::SourceInfo {
                filename: self.filename.clone(),
                data: self.data.clone(),
                language: "Dockerfile".to_owned(),
            }),
            ranges: ranges.iter().map(range).collect(),
        })
    }
}

pub(super) async fn build(bridge: Arc<dyn Bridge>, request: FrontendRequest) -> Result<SolveResult, BridgeError> {
    let inputs = request.inputs.clone();
    if inputs.values().any(Definition::is_empty) {
        let message = "failed to get frontend inputs: invalid nil input definition to definition op";
        return Err(BridgeError::unknown(message));
    }
    let mut options =
        Options::from_attrs(&request.options, &bridge.session(), inputs).map_err(|error| refused(&error))?;
    let missing_cap = frontend_caps(request.options.get("frontend.caps").map_or("", String::as_str))
        .map_err(|error| refused(&error))?;

    look_at_http_context(&bridge, &mut options).await?;
    let text = read(&bridge, &options).await?;
    if let Some(other) = syntax(&bridge, &request, &text) {
        return forward(&bridge, request, &text, other).await;
    }
    if let Some(error) = missing_cap {
        return Err(refused(&error));
    }
    let native =
        bridge.workers().first().and_then(|worker| worker.platforms.first().cloned()).unwrap_or_else(Platform::host);
    let targets: Vec<Option<Platform>> = match options.platforms.is_empty() {
        true => vec![None],
        false => options.platforms.iter().cloned().map(Some).collect(),
    };
    let resolver = Resolver::new(bridge.clone(), text.ignore.clone());
    if let Some(name) = &options.request_id {
        let job = Target { bridge: &bridge, request: &request, options: &options, text: &text, resolver: &resolver };
        return job.answer(name, targets.into_iter().next().flatten(), native).await;
    }
    let scanner = match &options.sbom {
        None => None,
        Some(attributes) => {
            let wanted = SbomOptions::new(attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
            Some(Scanner::find(bridge.clone(), &wanted, options.resolve_mode).await?)
        }
    };
    let scanner = scanner.as_ref();
    let builds = targets.into_iter().enumerate().map(|(index, platform)| {
        let job = Target { bridge: &bridge, request: &request, options: &options, text: &text, resolver: &resolver };
        let native = native.clone();
        async move { job.build(platform, native, index == 0, scanner).await }
    });
    metadata::result(try_join_all(builds).await?, options.multi_platform)
}

/// Everything that the platforms' builds have in common.
struct Target<'a> {
    bridge: &'a Arc<dyn Bridge>,
    request: &'a FrontendRequest,
    options: &'a Options,
    text: &'a Text,
    resolver: &'a Resolver,
}

impl Target<'_> {
    async fn build(
        self,
        platform: Option<Platform>,
        native: Platform,
        first: bool,
        scanner: Option<&Scanner>,
    ) -> Result<Built, BridgeError> {
        let request = self.conversion(platform.clone(), native, first);
        let converted = Box::pin(convert(&request, self.resolver)).await;
        let warnings = converted.as_ref().map_or_else(DockerfileError::warnings, |target| &target.warnings);
        warnings.iter().for_each(|warning| self.warn(warning));
        let target = converted.map_err(|error| self.failed(&error))?;
        let reference = self.load(target.definition.clone()).await?;
        let platform = platform.unwrap_or_else(Platform::host);
        let attested = match scanner {
            Some(scanner) => Some(self.scan(scanner, &target, &platform).await?),
            None => None,
        };
        Ok(Built { reference, target, platform, attested })
    }

    async fn scan(
        &self,
        scanner: &Scanner,
        target: &castor_dockerfile::Target,
        platform: &Platform,
    ) -> Result<Attested, BridgeError> {
        let ScanTargets { extras, ignore_cache } = target.scan.clone().unwrap_or_default();
        let scan = ScanTarget { core: target.definition.clone(), extras, ignore_cache };
        scanner.scan(&Built::id(platform), &scan).await
    }

    fn conversion(&self, platform: Option<Platform>, native: Platform, lint: bool) -> Request<'_> {
        Request {
            dockerfile: &self.text.data,
            options: self.options,
            dockerfile_definition: Some(self.text.definition.clone()),
            build_platform: native,
            target_platform: platform,
            caps: CapSet::supported(),
            lint,
        }
    }

    /// The answer to a request that is none for a build.
    async fn answer(
        self,
        name: &str,
        platform: Option<Platform>,
        native: Platform,
    ) -> Result<SolveResult, BridgeError> {
        match name {
            lint::DESCRIBE => lint::describe(),
            lint::LINT => {
                let request = self.conversion(platform, native, true);
                let (warnings, error) = Box::pin(check(&request, self.resolver)).await;
                lint::lint(&self.text.info(), warnings, error.as_ref())
            }
            outline::OUTLINE => {
                let request = self.conversion(platform, native, true);
                let answer = Box::pin(castor_dockerfile::outline(&request, self.resolver)).await;
                outline::outline(answer.map_err(|error| self.failed(&error))?, &self.text.data)
            }
            outline::TARGETS => {
                let targets = castor_dockerfile::targets(&self.text.data).map_err(|error| self.failed(&error))?;
                outline::targets(targets, &self.text.data)
            }
            name => {
                let failure = Failure::new(tonic::Code::Unimplemented, format!("unsupported request {name}"));
                Err(from_failure(&failure.with(&Subrequest { name: name.to_owned() })))
            }
        }
    }

    async fn load(&self, definition: Definition) -> Result<Option<LazyRef>, BridgeError> {
        let mut imports = self.request.cache_imports.clone();
        imports.extend(
            self.options.cache_imports.iter().map(|import| castor_ops::bridge::CacheImport {
                kind: import.kind.clone(),
                attrs: import.attrs.clone(),
            }),
        );
        let request = SolveRequest { definition: Some(definition), cache_imports: imports, ..SolveRequest::default() };
        match self.bridge.solve(request).await?.refs {
            Refs::Single(reference) => Ok(reference),
            Refs::Map(_) => Err(BridgeError::unknown("failed to get single reference from result map")),
        }
    }

    fn warn(&self, warning: &Warning) {
        let detail = vec![Bytes::from(warning.rule.description())];
        let warning = self.text.warning(warning.message(), detail, warning.rule.url(), &warning.location);
        if let Some(warning) = warning {
            self.bridge.warn(warning);
        }
    }

    fn failed(&self, error: &DockerfileError) -> BridgeError {
        // A look-up's error brings its own code and details.
        let cause = error.cause().and_then(|cause| cause.downcast_ref::<BridgeError>());
        let mut base = cause.cloned().unwrap_or_else(|| BridgeError::unknown(""));
        base.message = error.message().to_owned();
        self.text.located(&base, error.locations())
    }
}

fn refused(error: &OptionsError) -> BridgeError {
    match error {
        OptionsError::FrontendCap(name) => {
            let failure = Failure::new(tonic::Code::Unimplemented, error.to_string());
            from_failure(&failure.with(&FrontendCap { name: name.clone() }))
        }
        OptionsError::Unsupported(_) => BridgeError::unimplemented(error.to_string()),
        OptionsError::Invalid(_) => BridgeError::unknown(error.to_string()),
    }
}

/// Finds out what a web server has under the URL of the context.
async fn look_at_http_context(bridge: &Arc<dyn Bridge>, options: &mut Options) -> Result<(), BridgeError> {
    let definition = http_context(options).map_err(|error| BridgeError::unknown(error.message()))?;
    let Some(definition) = definition else { return Ok(()) };
    let found =
        single(bridge, definition, false).await.map_err(|error| error.context("failed to resolve httpcontext"))?;
    let reference = found.ok_or_else(|| BridgeError::unknown("failed to resolve httpcontext: it is empty"))?;
    let request = ReadFile { path: HTTP_NAME.to_owned(), offset: 0, length: Some(HTTP_HEAD) };
    let head = bridge.read_file(&reference, request).await;
    let head = head.map_err(|error| error.context("failed to read downloaded context"))?;
    options.http_context = Some(match is_archive(&head) {
        true => HttpContext::Archive,
        false => {
            HTTP_NAME.clone_into(&mut options.filename);
            HttpContext::File
        }
    });
    Ok(())
}

/// Reads the Dockerfile and the ignore file that belongs to it.
async fn read(bridge: &Arc<dyn Bridge>, options: &Options) -> Result<Text, BridgeError> {
    let definition = dockerfile_source(options).map_err(|error| BridgeError::unknown(error.message()))?;
    let vertex = definition.head().map_err(|error| BridgeError::unknown(error.to_string()))?;
    let reference = single(bridge, definition.clone(), false)
        .await
        .map_err(|error| error.context("failed to resolve dockerfile"))?
        .ok_or_else(|| BridgeError::unknown("failed to read dockerfile: the source is empty"))?;
    let file = |path: String| bridge.read_file(&reference, ReadFile { path, ..ReadFile::default() });
    let data = match file(options.filename.clone()).await {
        Ok(data) => data,
        Err(error) => {
            let context = |error: BridgeError| error.context("failed to read dockerfile");
            match lower_case(&options.filename) {
                Some(lower) => file(lower).await.map_err(|_| context(error))?,
                None => return Err(context(error)),
            }
        }
    };
    let name = format!("{}.dockerignore", options.filename);
    let ignore = file(name.clone()).await.ok().map(|data| IgnoreFile { name, data: data.to_vec() });
    Ok(Text { filename: options.filename.clone(), data, definition, vertex, ignore })
}

/// `Dockerfile` may be written small.
fn lower_case(filename: &str) -> Option<String> {
    let dir = filename.strip_suffix("Dockerfile")?;
    (dir.is_empty() || dir.ends_with('/')).then(|| format!("{dir}dockerfile"))
}

/// A frontend that is to build instead of this one.
struct Other {
    image: String,
    /// The whole line that names it.
    line: String,
    location: Vec<castor_llb::Range>,
}

/// What to make of a syntax that the client or the file asks for: Docker's own frontend is this one.
fn syntax(bridge: &Arc<dyn Bridge>, request: &FrontendRequest, text: &Text) -> Option<Other> {
    if let Some(image) = request.options.get("castor-builtin-for") {
        stand_in(bridge, text, image, &[]);
        return None;
    }
    if request.options.contains_key("cmdline") {
        return None;
    }
    let other = match request.options.get(SYNTAX) {
        Some(line) => {
            let image = line.split_whitespace().next().unwrap_or_default().to_owned();
            Other { image, line: line.clone(), location: Vec::new() }
        }
        None => {
            let detected = parser::directive::detect_syntax(&text.data)?;
            Other { image: detected.first_word, line: detected.value, location: detected.location }
        }
    };
    if other.image == "dockerfile.v0" {
        return None;
    }
    if is_dockerfile_image(&other.image) && !is_replaced(&request.options, &other.image) {
        stand_in(bridge, text, &other.image, &other.location);
        return None;
    }
    Some(other)
}

/// Leaves the build to another frontend.
async fn forward(
    bridge: &Arc<dyn Bridge>,
    request: FrontendRequest,
    text: &Text,
    other: Other,
) -> Result<SolveResult, BridgeError> {
    let mut options = request.options;
    let line = other.line.clone();
    options.insert("cmdline".to_owned(), other.line);
    options.insert("source".to_owned(), other.image);
    let forwarded = SolveRequest {
        frontend: "gateway.v0".to_owned(),
        options,
        inputs: request.inputs,
        cache_imports: request.cache_imports,
        ..SolveRequest::default()
    };
    bridge.solve(forwarded).await.map_err(|error| {
        // One that knows its place comes from the other frontend.
        if error.details.iter().any(|detail| detail.type_url == Source::TYPE_URL) {
            error
        } else if other.location.is_empty() {
            error.context(format!("failed with {SYNTAX} = {line}"))
        } else {
            text.located(&error, std::slice::from_ref(&other.location))
        }
    })
}

fn stand_in(bridge: &Arc<dyn Bridge>, text: &Text, image: &str, location: &[castor_llb::Range]) {
    let short = format!("syntax {image}: castor uses its builtin dockerfile.v0, the image is not pulled");
    if let Some(warning) = text.warning(short, Vec::new(), String::new(), location) {
        bridge.warn(warning);
    }
}
