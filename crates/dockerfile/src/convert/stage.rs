//! Stages: made of FROMs, bound to each other, put in order.

use std::collections::{BTreeSet, HashSet};

use castor_llb::{Range, State};
use castor_oci::{ImageConfig, Platform};

use super::context::NamedContext;
use super::outline::Seen;
use super::{Converter, MAX_STAGES};
use crate::error::{DockerfileError, Result};
use crate::gofmt::quote;
use crate::instruction::{self, Argument, Instruction, Kind, Stage};
use crate::{parser, platform, suggest};

pub(super) const SCRATCH: &str = "scratch";

/// An instruction and the stages that it takes files from.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) instruction: Instruction,
    pub(super) sources: Vec<usize>,
    pub(super) is_trigger: bool,
}

/// A stage on its way. Images that COPY and RUN take files from are stages too, without instructions and name.
#[derive(Debug)]
pub(super) struct StageState {
    pub(super) stage: Stage,
    pub(super) commands: Vec<Command>,
    pub(super) state: State,
    pub(super) image: ImageConfig,
    /// Config of what it is built on, untouched.
    pub(super) base_image: Option<ImageConfig>,
    /// The context that takes its place.
    pub(super) context: Option<NamedContext>,
    pub(super) platform: Option<Platform>,
    /// The stage it is built on, if it is one.
    pub(super) base: Option<usize>,
    pub(super) dispatched: bool,
    pub(super) resolved: bool,
    pub(super) triggers_added: bool,
    /// It is an image that some instruction takes files from.
    pub(super) is_source: bool,
    /// Stages that it takes files from, and where.
    pub(super) deps: Vec<(usize, Vec<Range>)>,
    pub(super) build_args: Vec<Argument>,
    /// What it can be given, as far as it was read.
    pub(super) seen: Seen,
    /// Paths of the build context that it uses.
    pub(super) context_paths: BTreeSet<String>,
    /// Place in [`Converter::paths`].
    pub(super) paths: usize,
    pub(super) no_cache: bool,
    /// Its name in steps' names.
    pub(super) label: String,
    pub(super) step: i64,
    pub(super) steps: usize,
    pub(super) in_trigger: bool,
    pub(super) workdir_set: bool,
    pub(super) cmd: Option<Vec<Range>>,
    pub(super) entrypoint: Option<Vec<Range>>,
    pub(super) healthcheck: Option<Vec<Range>>,
}

impl StageState {
    fn new(stage: Stage, paths: usize) -> Self {
        let mut image = ImageConfig::default();
        // What a context replaces has no root file system to speak of.
        image.rootfs.kind.clear();
        Self {
            label: stage.name.clone(),
            stage,
            commands: Vec::new(),
            state: State::scratch(),
            image,
            base_image: None,
            context: None,
            platform: None,
            base: None,
            dispatched: false,
            resolved: false,
            triggers_added: false,
            is_source: false,
            deps: Vec::new(),
            build_args: Vec::new(),
            seen: Seen::default(),
            context_paths: BTreeSet::new(),
            paths,
            no_cache: false,
            step: 0,
            steps: 0,
            in_trigger: false,
            workdir_set: false,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
        }
    }
}

impl Converter<'_> {
    /// Makes the stages of the file.
    pub(super) fn add_stages(&mut self, stages: Vec<Stage>) -> Result<()> {
        for (index, mut stage) in stages.into_iter().enumerate() {
            let linter = self.linter.with_comments(&stage.comments);
            let (base, expanded) = self.lexer.expand(&stage.base, &self.global_args);
            self.check_from_args(&expanded, &stage.location, &linter);
            let base = base.map_err(|error| error.at(&stage.location))?;
            if base.is_empty() {
                let message = format!("base name ({}) should not be blank", stage.base);
                return Err(DockerfileError::new(message).at(&stage.location));
            }
            stage.base = base;
            let mut used = expanded.matched;
            used.extend(self.lexer.expand(&stage.platform, &self.global_args).1.matched);
            let platform = self.stage_platform(&stage, &linter)?;
            let instructions = std::mem::take(&mut stage.instructions);
            let name = stage.name.clone();
            let mut state = StageState::new(stage, self.paths.len());
            self.paths.push(BTreeSet::new());
            state.commands = instructions
                .into_iter()
                .map(|instruction| Command { instruction, sources: Vec::new(), is_trigger: false })
                .collect();
            if !name.is_empty() {
                state.context = self.named_context(&name, platform.as_ref(), state.paths)?;
            }
            state.platform = platform;
            let has_context = state.context.is_some();
            if name.is_empty() {
                state.label = format!("stage-{index}");
            }
            let position = self.add_stage(state);
            let mut seen = match self.stages[position].base {
                Some(base) => self.stages[base].seen.clone(),
                None => self.seen.clone(),
            };
            seen.use_all(used);
            let stage = &mut self.stages[position];
            stage.seen = seen;
            if has_context {
                stage.base = None;
                continue;
            }
            let on_image = stage.stage.base != SCRATCH && stage.base.is_none();
            let makes_layer = |command: &&Command| {
                matches!(command.instruction.kind, Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_))
            };
            stage.steps = usize::from(on_image) + stage.commands.iter().filter(makes_layer).count();
            stage.no_cache = self.options.is_no_cache(&name);
        }
        Ok(())
    }

    fn stage_platform(&self, stage: &Stage, linter: &crate::lint::Linter) -> Result<Option<Platform>> {
        if stage.platform.is_empty() {
            return Ok(None);
        }
        let (result, expanded) = self.lexer.expand(&stage.platform, &self.global_args);
        self.check_from_args(&expanded, &stage.location, linter);
        self.check_from_platform(stage, &expanded, linter);
        let text = result.map_err(|error| {
            error.context(format!("failed to process arguments for platform {}", expanded.text)).at(&stage.location)
        })?;
        let hint = || {
            let names: Vec<&str> = self.global_args.iter().map(|(name, _)| name).collect();
            let hints = expanded.unmatched.iter().map(|name| suggest::hint(name, names.iter().copied(), true));
            hints.into_iter().find(|hint| !hint.is_empty()).unwrap_or_default()
        };
        if text.is_empty() {
            let message = format!("empty platform value from expression {}", stage.platform);
            return Err(DockerfileError::new(message).at(&stage.location).suffix(&hint()));
        }
        platform::parse(&text).map(Some).map_err(|error| {
            // BuildKit names the place twice here.
            DockerfileError::new(format!("failed to parse platform {}: {error}{}", stage.platform, hint()))
                .at(&stage.location)
                .at(&stage.location)
        })
    }

    /// Adds a stage and binds it to the one that it is built on.
    fn add_stage(&mut self, mut stage: StageState) -> usize {
        let position = self.stages.len();
        stage.base = self.names.get(&stage.stage.base).copied();
        if !stage.stage.name.is_empty() {
            self.names.insert(stage.stage.name.to_lowercase(), position);
        }
        self.stages.push(stage);
        position
    }

    fn add_source(&mut self, base: &str, location: &[Range]) -> usize {
        let stage = Stage { base: base.to_owned(), location: location.to_vec(), ..Stage::default() };
        let mut state = StageState::new(stage, self.paths.len());
        self.paths.push(BTreeSet::new());
        state.is_source = true;
        self.add_stage(state)
    }

    /// The stage to build.
    pub(super) fn target(&self) -> Result<usize> {
        let wanted = &self.options.target;
        if wanted.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.names.get(&wanted.to_lowercase()).copied().ok_or_else(|| {
            let labels = self.stages.iter().map(|stage| stage.label.as_str()).filter(|label| !label.is_empty());
            let hint = suggest::hint(wanted, labels, true);
            DockerfileError::new(format!("target stage {} could not be found{hint}", quote(wanted)))
        })
    }

    /// Binds instructions to the stages that they take files from.
    pub(super) fn build_graph(&mut self) -> Result<()> {
        for stage in 0..self.stages.len() {
            let mut commands = std::mem::take(&mut self.stages[stage].commands);
            for command in &mut commands {
                self.bind(stage, command)?;
            }
            self.stages[stage].commands = commands;
        }
        self.check_cycles()?;
        if self.stages.len() == 1 {
            self.stages[0].label.clear();
        }
        Ok(())
    }

    /// Finds the stages that an instruction takes files from; images become stages.
    fn bind(&mut self, stage: usize, command: &mut Command) -> Result<()> {
        let location = command.instruction.location.clone();
        let froms: Vec<String> = match &command.instruction.kind {
            Kind::Copy(copy) if !copy.from.is_empty() => {
                if self.lexer.word(&copy.from, &castor_llb::state::Env::default())? != copy.from {
                    return Err(DockerfileError::new(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from \
                         global scope as a workaround",
                    ));
                }
                vec![copy.from.clone()]
            }
            // Mounts without a source are bound too: what they are is not known before variables are.
            Kind::Run(run) => run
                .mounts
                .iter()
                .map(|mount| if mount.from.is_empty() { SCRATCH.to_owned() } else { mount.from.clone() })
                .collect(),
            _ => return Ok(()),
        };
        let is_copy = matches!(command.instruction.kind, Kind::Copy(_));
        for from in froms {
            let known = match from.parse::<i64>() {
                Ok(index) if is_copy => Some(
                    usize::try_from(index)
                        .ok()
                        .filter(|&index| index < self.stages.len())
                        .ok_or_else(|| DockerfileError::new(format!("invalid stage index {index}")))?,
                ),
                _ => self.names.get(&from.to_lowercase()).copied(),
            };
            let Some(position) = known else {
                if self.stages.len() >= MAX_STAGES {
                    return Err(Self::too_much(MAX_STAGES, "stages"));
                }
                // BuildKit gives no place for images of mounts.
                let position = self.add_source(&from, if is_copy { &location } else { &[] });
                command.sources.push(position);
                self.stages[stage].deps.push((position, location.clone()));
                continue;
            };
            command.sources.push(position);
            let deps = &mut self.stages[stage].deps;
            match deps.iter_mut().find(|(known, _)| *known == position) {
                Some((_, at)) => at.clone_from(&location),
                None => deps.push((position, location.clone())),
            }
        }
        Ok(())
    }

    /// Refuses stages that take files from each other.
    fn check_cycles(&self) -> Result<()> {
        let mut visited = HashSet::new();
        for start in 0..self.stages.len() {
            // The way from `start` to where we are: stage, next of its deps, where the way came through.
            let mut way: Vec<(usize, usize, &[Range])> = Vec::new();
            if visited.insert(start) {
                way.push((start, 0, &[]));
            }
            while let Some((stage, next, _)) = way.last_mut() {
                let Some((dep, location)) = self.stages[*stage].deps.get(*next) else {
                    way.pop();
                    continue;
                };
                *next += 1;
                if way.iter().any(|(stage, _, _)| stage == dep) {
                    let name = &self.stages[start].label;
                    let message = format!("circular dependency detected on stage: {name}");
                    let places = way.iter().skip(1).map(|(_, _, place)| *place).chain([location.as_slice()]);
                    return Err(places.fold(DockerfileError::new(message), |error, place| error.at(place)));
                }
                if visited.insert(*dep) {
                    way.push((*dep, 0, location));
                }
            }
        }
        Ok(())
    }

    /// The stages that `target` needs, itself among them.
    fn reachable(&self, target: usize) -> BTreeSet<usize> {
        if self.all_stages {
            return (0..self.stages.len()).collect();
        }
        let mut found = BTreeSet::new();
        let mut rest = vec![target];
        while let Some(position) = rest.pop() {
            if found.insert(position) {
                let stage = &self.stages[position];
                rest.extend(stage.base);
                rest.extend(stage.deps.iter().map(|(dep, _)| *dep));
            }
        }
        found
    }

    /// Resolves images, and again as long as triggers of images need more of them.
    pub(super) async fn resolve_stages(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        loop {
            let reachable = self.reachable(target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for &position in &reachable {
                self.inherit(position);
                let mut triggers = std::mem::take(&mut self.stages[position].image.config.on_build);
                if let Some(base) = self.stages[position].base
                    && !self.stages[position].triggers_added
                {
                    let of_base = self.stages[base].commands.iter();
                    triggers.extend(of_base.filter_map(|command| match &command.instruction.kind {
                        Kind::Onbuild(trigger) => Some(trigger.clone()),
                        _ => None,
                    }));
                    self.stages[position].triggers_added = true;
                }
                if !triggers.is_empty() {
                    let location = self.stages[position].stage.location.clone();
                    more |= self.add_triggers(position, &triggers).map_err(|error| error.only_at(&location))?;
                }
            }
            if !more {
                return Ok(reachable);
            }
        }
    }

    /// Puts triggers before a stage's own instructions; says whether they need other stages.
    fn add_triggers(&mut self, position: usize, triggers: &[String]) -> Result<bool> {
        let location = self.stages[position].stage.location.clone();
        let (first, last) = match (location.first(), location.last()) {
            (Some(first), Some(last)) => (first.start.line, last.end.line),
            _ => (0, 0),
        };
        let mut commands = Vec::with_capacity(triggers.len());
        for trigger in triggers {
            let mut nodes = parser::parse(trigger.as_bytes())?.nodes;
            let Some(mut node) = nodes.pop().filter(|_| nodes.is_empty()) else {
                return Err(DockerfileError::new("onbuild trigger should be a single expression"));
            };
            (node.start, node.end) = (first, last);
            let instruction = instruction::parse_trigger(&node)?;
            let mut command = Command { instruction, sources: Vec::new(), is_trigger: true };
            self.bind(position, &mut command)?;
            commands.push(command);
        }
        let more = commands.iter().any(|command| !command.sources.is_empty());
        let stage = &mut self.stages[position];
        stage.steps += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        Ok(more)
    }

    /// Takes over what a stage is built on, if that is a stage.
    pub(super) fn inherit(&mut self, position: usize) {
        let Some(base) = self.stages[position].base else { return };
        let from = &self.stages[base];
        let (state, platform, mut image) = (from.state.clone(), from.platform.clone(), from.image.clone());
        let (base_image, paths, workdir_set) = (from.base_image.clone(), from.paths, from.workdir_set);
        let build_args = from.build_args.clone();
        // Triggers do not pass from stage to stage.
        image.config.on_build.clear();
        let stage = &mut self.stages[position];
        stage.state = state;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.workdir_set = workdir_set;
        stage.build_args.extend(build_args);
    }

    /// Dispatches all stages that the target needs, in the file's order.
    pub(super) fn dispatch_stages(&mut self, reachable: &BTreeSet<usize>, target: usize) -> Result<()> {
        for position in 0..self.stages.len() {
            if !reachable.contains(&position) || self.stages[position].dispatched {
                continue;
            }
            self.inherit(position);
            self.stages[position].dispatched = true;
            self.start_stage(position)?;
            let commands = std::mem::take(&mut self.stages[position].commands);
            for command in commands {
                let location = command.instruction.location.clone();
                self.dispatch(position, command).map_err(|error| error.at(&location))?;
            }
        }
        let paths = self.stages[target].paths;
        self.paths[paths].insert("/".into());
        Ok(())
    }
}
