//! Stages → LLB and image config.
//!
//! [`convert`] is the whole way: text → stages → which of them the target needs → their images → instruction by
//! instruction into states and configs → the target, marshalled.

mod args;
mod base;
mod checks;
mod context;
mod copy;
mod dispatch;
mod epoch;
mod expose;
mod image;
mod outline;
mod run;
mod scan;
mod show;
mod stage;
mod windows;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use castor_llb::op::ProxyEnv;
use castor_llb::state::{Constraints, Env, Late, SourceText};
use castor_llb::{CapSet, Definition, MarshalOptions, Range, State};
use castor_oci::{ImageConfig, Platform};

use crate::error::{DockerfileError, Result};
use crate::ignore::Patterns;
use crate::instruction::{self, Stages};
use crate::lint::{LintConfig, Linter, Rule, Warning};
use crate::parser::{self, directive};
use crate::shell::Lexer;
use crate::{MetaResolver, Options, platform};
use context::LocalContext;
pub use context::{HTTP_HEAD, HTTP_NAME, context_for_image, dockerfile_source, http_context};
use outline::Seen;
pub use outline::{ListedTarget, Outline, OutlineArg, OutlineMount, targets};
pub use scan::ScanTargets;
use stage::StageState;

/// What to convert.
#[derive(Debug)]
pub struct Request<'a> {
    /// The Dockerfile.
    pub dockerfile: &'a [u8],
    /// What the client asks for.
    pub options: &'a Options,
    /// How the Dockerfile itself was had, for the source map ([`dockerfile_source`]).
    pub dockerfile_definition: Option<Definition>,
    /// The platform that the worker runs on natively.
    pub build_platform: Platform,
    /// The platform to build for; `None` is the build platform, and an image of another one is taken as it is.
    pub target_platform: Option<Platform>,
    /// What the daemon can do.
    pub caps: CapSet,
    /// Whether to collect warnings. Of several platforms only the first one's are shown.
    pub lint: bool,
}

/// What a Dockerfile becomes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The graph; empty if the result is scratch.
    pub definition: Definition,
    /// The image's config, without the layers that are made here.
    pub config: ImageConfig,
    /// Config of the image that the target is built on.
    pub base_config: Option<ImageConfig>,
    /// The platform that was built for.
    pub platform: Platform,
    /// `SOURCE_DATE_EPOCH`, seconds.
    pub epoch: Option<i64>,
    /// What is legal but unwise.
    pub warnings: Vec<Warning>,
    /// What a scanner is to look at too, if there is to be one.
    pub scan: Option<ScanTargets>,
}

/// Files are short; those that are not would make graphs that nobody can build.
const MAX_INSTRUCTIONS: usize = 10_000;
/// Stages, images that files are taken from among them.
const MAX_STAGES: usize = 10_000;
/// Variables of a stage's environment.
const MAX_VARIABLES: usize = 10_000;
/// Bytes of a stage's environment; a process could not be started with more.
const MAX_ENV: usize = 1 << 20;
/// Bytes of an image's history.
const MAX_HISTORY: usize = 16 << 20;

/// All that a conversion knows. Stages are named by their place in `stages`.
struct Converter<'a> {
    request: &'a Request<'a>,
    options: &'a Options,
    resolver: &'a dyn MetaResolver,
    linter: Linter,
    lexer: Lexer,
    /// Arguments of the client; `SOURCE_DATE_EPOCH` among them is resolved.
    build_args: BTreeMap<String, String>,
    /// Predefined arguments and those before the first FROM.
    global_args: Env,
    /// Names of arguments that FROM may use.
    from_args: BTreeSet<String>,
    target_platform: Platform,
    epoch: Option<i64>,
    proxy: Option<ProxyEnv>,
    source: Arc<SourceText>,
    /// Arguments before the first FROM, for whoever asks what a target can be given.
    seen: Seen,
    stages: Vec<StageState>,
    names: HashMap<String, usize>,
    /// Paths of stages' results that are used; a stage shares the set of its base.
    paths: Vec<BTreeSet<String>>,
    build_context: State,
    late_build_context: Late,
    /// Local directories under names, found while images were looked up.
    found_locals: Mutex<Vec<LocalContext>>,
    ignore: Patterns,
    ignore_patterns: Vec<String>,
    groups: u64,
    /// Whether stages are looked at that the target does not need.
    all_stages: bool,
    /// Bytes of all history written so far.
    history: usize,
}

/// Converts a Dockerfile.
pub async fn convert(request: &Request<'_>, resolver: &dyn MetaResolver) -> Result<Target, DockerfileError> {
    let linter = linter(request)?;
    let found = linter.clone();
    build(request, resolver, linter, false).await.map_err(|error| error.warned(found.warnings()))
}

/// Checks a Dockerfile: all of its stages, unless one is asked for. What is found comes with the error, if there is one.
pub async fn check(request: &Request<'_>, resolver: &dyn MetaResolver) -> (Vec<Warning>, Option<DockerfileError>) {
    let linter = match linter(request) {
        Ok(linter) => linter,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (found, all) = (linter.clone(), request.options.target.is_empty());
    let error = build(request, resolver, linter, all).await.err();
    (found.warnings(), error)
}

/// What the target of a Dockerfile can be given.
pub async fn outline(request: &Request<'_>, resolver: &dyn MetaResolver) -> Result<Outline, DockerfileError> {
    let (converter, target) = read(request, resolver, linter(request)?, false).await?;
    Ok(converter.outline(target))
}

async fn build(request: &Request<'_>, resolver: &dyn MetaResolver, linter: Linter, all_stages: bool) -> Result<Target> {
    let (converter, target) = read(request, resolver, linter, all_stages).await?;
    converter.finish(target)
}

/// Everything but the result: stages made, images looked up, instructions dispatched. Also which stage is the target.
async fn read<'a>(
    request: &'a Request<'a>,
    resolver: &'a dyn MetaResolver,
    linter: Linter,
    all_stages: bool,
) -> Result<(Converter<'a>, usize)> {
    let mut converter = Converter::new(request, resolver, linter).await?;
    converter.all_stages = all_stages;
    let target = converter.target()?;
    converter.build_graph()?;
    let reachable = converter.resolve_stages(target).await?;
    converter.load_ignore().await?;
    converter.dispatch_stages(&reachable, target)?;
    Ok((converter, target))
}

impl<'a> Converter<'a> {
    async fn new(request: &'a Request<'a>, resolver: &'a dyn MetaResolver, linter: Linter) -> Result<Self> {
        let options = request.options;
        let parsed = parser::parse(request.dockerfile)?;
        for &line in &parsed.empty_continuations {
            linter.report(Rule::NoEmptyContinuation, &[Range::lines(line, line)], "Empty continuation line");
        }
        let Stages { stages, global_args: commands } = instruction::parse(&parsed.nodes, &linter)?;
        let Some(last) = stages.last() else {
            return Err(DockerfileError::new("dockerfile contains no stages to build"));
        };
        let instructions: usize = stages.iter().map(|stage| 1 + stage.instructions.len()).sum();
        if instructions > MAX_INSTRUCTIONS {
            return Err(Self::too_much(MAX_INSTRUCTIONS, "instructions"));
        }
        checks::stage_names(&stages, &linter);
        checks::casing(&stages, &linter);

        let target_platform = request.target_platform.clone().unwrap_or_else(|| request.build_platform.clone());
        let target_name = if options.target.is_empty() { last.name.as_str() } else { options.target.as_str() };
        let lexer = Lexer::new(parsed.escape);
        let predefined = args::predefined(&request.build_platform, &target_platform, &options.build_args, target_name);
        checks::bases_with_defaults(&stages, lexer, &predefined, &commands, &linter);
        let build_args = options.build_args.clone();
        let seen = Seen::global(predefined.clone(), lexer, &commands, &build_args);
        let (global_args, declared) = args::global(predefined, lexer, &commands, Some(&build_args))?;

        let (build_context, late_build_context) = State::late();
        let source = SourceText {
            filename: options.filename.clone(),
            language: "Dockerfile".into(),
            data: request.dockerfile.to_vec().into(),
            definition: request.dockerfile_definition.clone(),
        };
        let mut converter = Self {
            request,
            options,
            resolver,
            linter,
            lexer,
            build_args,
            global_args,
            from_args: declared,
            target_platform,
            epoch: None,
            proxy: args::proxies(&options.build_args),
            source: Arc::new(source),
            seen,
            stages: Vec::new(),
            names: HashMap::new(),
            paths: Vec::new(),
            build_context,
            late_build_context,
            found_locals: Mutex::default(),
            ignore: Patterns::default(),
            ignore_patterns: Vec::new(),
            groups: 0,
            all_stages: false,
            history: 0,
        };
        converter.resolve_epoch(&stages).await?;
        converter.from_args.extend(converter.global_args.iter().map(|(name, _)| name.to_owned()));
        converter.add_stages(stages)?;
        Ok(converter)
    }

    /// The context, the config's last touches, the graph.
    fn finish(mut self, target: usize) -> Result<Target> {
        let labels = &self.options.labels;
        let stage = &mut self.stages[target];
        stage.image.config.labels.extend(labels.iter().map(|(k, v)| (k.clone(), v.clone())));
        if let Some(message) = self.linter.error() {
            return Err(DockerfileError::new(message));
        }
        self.set_contexts()?;
        let marshal = MarshalOptions {
            platform: self.target_platform.clone(),
            caps: Some(self.request.caps.clone()),
            unique: String::new(),
        };
        let definition = self.stages[target]
            .state
            .marshal(&marshal)
            .map_err(|error| DockerfileError::new(format!("failed to marshal LLB definition: {error}")))?;
        let scan = match self.options.sbom {
            Some(_) => Some(self.scan_targets(target, &marshal)?),
            None => None,
        };
        let stage = &mut self.stages[target];
        let mut config = std::mem::take(&mut stage.image);
        if self.request.target_platform.is_some() {
            image::set_platform(&mut config.platform, &self.target_platform);
        }
        config.platform = platform::normalize(&config.platform);
        Ok(Target {
            definition,
            config,
            base_config: stage.base_image.take(),
            platform: platform::normalize(&self.target_platform),
            epoch: self.epoch,
            warnings: self.linter.warnings(),
            scan,
        })
    }

    fn too_much(limit: usize, what: &str) -> DockerfileError {
        DockerfileError::new(format!("dockerfile exceeds the limit of {limit} {what}"))
    }

    fn location(&self, constraints: Constraints, location: &[Range]) -> Constraints {
        constraints.location(&self.source, location.to_vec())
    }
}

/// The linter that the client's options or the file's own directive ask for.
fn linter(request: &Request<'_>) -> Result<Linter> {
    if request.dockerfile.is_empty() {
        return Err(DockerfileError::new("the Dockerfile cannot be empty"));
    }
    let config = match &request.options.lint {
        Some(config) => config.clone(),
        None => {
            let check = directive::detect_check(request.dockerfile);
            let text = check.map(|check| check.first_word).unwrap_or_default();
            LintConfig::parse(&text)
                .map_err(|error| DockerfileError::new(format!("failed to parse check options: {error}")))?
        }
    };
    Ok(if request.lint { Linter::new(config) } else { Linter::off() })
}
