//! Instructions → states and configs: the short ones, and who does the others.

use castor_llb::state::{Action, Constraints, Env, Owner, join};
use castor_llb::{Range, State};

use super::image::{self, DEFAULT_PATH, commit};
use super::stage::Command;
use super::{Converter, MAX_ENV, MAX_HISTORY, MAX_VARIABLES, args, checks, show, windows};
use crate::error::{DockerfileError, Result};
use crate::gofmt;
use crate::instruction::{Argument, CommandLine, Instruction, Kind, Pair};
use crate::lint::{Linter, Rule};
use crate::quantity;
use crate::shell::Lexer;

/// One instruction while it is dispatched.
pub(super) struct Step<'s> {
    pub(super) stage: usize,
    pub(super) instruction: &'s Instruction,
    pub(super) sources: &'s [usize],
    pub(super) linter: &'s Linter,
}

impl Step<'_> {
    pub(super) fn location(&self) -> &[Range] {
        &self.instruction.location
    }
}

/// A path, absolute: seen from `parent`, and with the slash at its end kept if that is asked for.
pub(super) fn absolute(parent: &str, path: &str, keep_slash: bool) -> String {
    let parent = match parent {
        "" => "/".to_owned(),
        parent if parent.starts_with('/') => parent.to_owned(),
        parent => join(&["/", parent]),
    };
    let mut out = match path {
        "" => parent,
        // What is absolute stays as it is written.
        path if path.starts_with('/') => path.to_owned(),
        path => join(&[&parent, path]),
    };
    if keep_slash {
        if path.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if path.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    out
}

impl Converter<'_> {
    /// Prepares a stage: platform, environment, directory, user, network.
    pub(super) fn start_stage(&mut self, position: usize) -> Result<()> {
        let stage = &mut self.stages[position];
        let platform = stage.platform.get_or_insert_with(|| self.target_platform.clone());
        let windows = windows::is(Some(platform));
        let env = &mut stage.image.config.env;
        if !windows && !env.iter().any(|entry| entry.split('=').next() == Some("PATH")) {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for entry in env.iter() {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            stage.state.set_env(name, value);
        }
        if !self.options.hostname.is_empty() {
            stage.state = stage.state.hostname(&self.options.hostname);
        }
        let config = &mut stage.image.config;
        if !config.working_dir.is_empty() {
            let dir = if windows { windows::path(&config.working_dir, false)? } else { config.working_dir.clone() };
            let dir = absolute(&dir, &dir, false);
            config.working_dir = if windows { windows::native(&dir) } else { dir.clone() };
            stage.state = stage.state.dir(&dir);
        }
        if !config.user.is_empty() {
            stage.state = stage.state.user(&config.user);
        }
        stage.state = stage.state.network(self.options.network);
        Ok(())
    }

    /// Dispatches one instruction.
    pub(super) fn dispatch(&mut self, stage: usize, command: Command) -> Result<()> {
        let Command { mut instruction, sources, is_trigger } = command;
        let linter = self.linter.with_comments(&instruction.comments);
        self.stages[stage].in_trigger = is_trigger;
        self.expand(stage, &mut instruction, &linter)?;
        let lines = self.stages[stage].image.history.len();
        let step = Step { stage, instruction: &instruction, sources: &sources, linter: &linter };
        match &instruction.kind {
            Kind::Env(pairs) => self.env(&step, pairs)?,
            Kind::Label(pairs) => self.label(&step, pairs),
            Kind::Maintainer(author) => {
                self.stages[stage].image.author.clone_from(author);
                self.commit(stage, &format!("MAINTAINER {author}"));
            }
            Kind::Copy(copy) => self.copy(&step, copy)?,
            Kind::Onbuild(trigger) => self.stages[stage].image.config.on_build.push(trigger.clone()),
            Kind::Workdir(path) => self.workdir(&step, path)?,
            Kind::Run(run) => self.run(&step, run)?,
            Kind::Cmd(line) => self.cmd(&step, line),
            Kind::Entrypoint(line) => self.entrypoint(&step, line),
            Kind::Healthcheck(health) => self.health_check(&step, health),
            Kind::Expose(ports) => self.expose(&step, ports)?,
            Kind::User(user) => {
                let state = &mut self.stages[stage];
                state.state = state.state.user(user);
                state.image.config.user.clone_from(user);
                self.commit(stage, &format!("USER {user}"));
            }
            Kind::Volume(volumes) => {
                if volumes.iter().any(String::is_empty) {
                    return Err(DockerfileError::new("VOLUME specified can not be an empty string"));
                }
                let all = &mut self.stages[stage].image.config.volumes;
                all.extend(volumes.iter().map(|volume| (volume.clone(), serde_json::json!({}))));
                self.commit(stage, &format!("VOLUME {}", gofmt::list(volumes)));
            }
            Kind::StopSignal(signal) => {
                if !quantity::is_signal(signal) {
                    return Err(DockerfileError::new(format!("invalid signal: {signal}")));
                }
                self.stages[stage].image.config.stop_signal.clone_from(signal);
                self.commit(stage, &format!("STOPSIGNAL {signal}"));
            }
            Kind::Arg(arguments) => self.arg(&step, arguments)?,
            Kind::Shell(shell) => {
                self.stages[stage].image.config.shell.clone_from(shell);
                self.commit(stage, &format!("SHELL {}", gofmt::list(shell)));
            }
        }
        self.check_size(stage, lines)
    }

    /// Refuses environments and histories that small files can make large. `lines` are those of before.
    fn check_size(&mut self, stage: usize, lines: usize) -> Result<()> {
        let state = &self.stages[stage];
        if state.state.get_env().size() > MAX_ENV {
            return Err(Self::too_much(MAX_ENV, "bytes of environment"));
        }
        let added = state.image.history.iter().skip(lines).map(|line| line.created_by.len());
        self.history += added.sum::<usize>();
        if self.history > MAX_HISTORY {
            return Err(Self::too_much(MAX_HISTORY, "bytes of history"));
        }
        Ok(())
    }

    /// Expands an instruction's variables, and warns of those that are not set.
    fn expand(&self, stage: usize, instruction: &mut Instruction, linter: &Linter) -> Result<()> {
        let stage = &self.stages[stage];
        let env = stage.state.get_env();
        let location = instruction.location.clone();
        let expand = |lexer: Lexer, word: &str| {
            let (result, expanded) = lexer.expand(word, env);
            checks::undefined_variables(&expanded.unmatched, &stage.build_args, env, &location, linter);
            result
        };
        instruction.kind.expand(|word| expand(self.lexer, word))?;
        // In documents only variables are special.
        let raw = Lexer::new('\\').skip_quotes();
        instruction.kind.expand_raw(|word| expand(raw, word))
    }

    /// Adds a line about metadata to the history.
    pub(super) fn commit(&mut self, stage: usize, message: &str) {
        commit(&mut self.stages[stage].image, message, false, self.epoch);
    }

    pub(super) fn state(&self, stage: usize) -> &State {
        &self.stages[stage].state
    }

    fn warn_legacy(step: &Step<'_>, pair: &Pair) {
        if pair.legacy {
            let name = &step.instruction.name;
            let text = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            step.linter.report(Rule::LegacyKeyValueFormat, step.location(), text);
        }
    }

    fn env(&mut self, step: &Step<'_>, pairs: &[Pair]) -> Result<()> {
        let mut message = String::from("ENV");
        for pair in pairs {
            Self::warn_legacy(step, pair);
            checks::secret_name("ENV", &pair.key, step.location(), step.linter);
            message.push_str(&format!(" {}={}", pair.key, pair.value));
            let stage = &mut self.stages[step.stage];
            stage.state.set_env(&pair.key, &pair.value);
            image::set_env(&mut stage.image.config.env, &pair.key, &pair.value);
            self.check_variables(step.stage)?;
        }
        self.commit(step.stage, &message);
        Ok(())
    }

    fn check_variables(&self, stage: usize) -> Result<()> {
        let stage = &self.stages[stage];
        if stage.state.get_env().len().max(stage.build_args.len()) > MAX_VARIABLES {
            return Err(Self::too_much(MAX_VARIABLES, "variables"));
        }
        Ok(())
    }

    fn label(&mut self, step: &Step<'_>, pairs: &[Pair]) {
        let mut message = String::from("LABEL");
        for pair in pairs {
            Self::warn_legacy(step, pair);
            self.stages[step.stage].image.config.labels.insert(pair.key.clone(), pair.value.clone());
            message.push_str(&format!(" {}={}", pair.key, pair.value));
        }
        self.commit(step.stage, &message);
    }

    fn workdir(&mut self, step: &Step<'_>, path: &str) -> Result<()> {
        let stage = &mut self.stages[step.stage];
        let windows = windows::is(stage.platform.as_ref());
        let (asked, path) = (path, if windows { windows::path(path, false)? } else { path.to_owned() });
        if !stage.workdir_set && !path.starts_with('/') {
            let path = gofmt::quote(asked);
            let text = format!("Relative workdir {path} can have unexpected results if the base image changes");
            step.linter.report(Rule::WorkdirRelativePath, step.location(), text);
        }
        stage.workdir_set = true;
        let parent = &stage.image.config.working_dir;
        let parent = if windows { windows::path(parent, false)? } else { parent.clone() };
        let dir = absolute(&parent, &path, false);
        stage.image.config.working_dir = if windows { windows::native(&dir) } else { dir.clone() };
        stage.state = stage.state.dir(&dir);
        let makes_layer = dir != "/";
        if makes_layer {
            let platform = stage.platform.clone();
            let user = stage.image.config.user.clone();
            let state = stage.state.clone();
            let env = state.get_env();
            let text = show::uppercase_first(&show::expanded(self.lexer, &step.instruction.code, env));
            let name = self.prefixed(step.stage, &text, platform.as_ref(), Some(env));
            let constraints = Constraints::new().name(name).platform(platform.as_ref());
            let constraints = self.location(constraints, step.location());
            let mkdir = Action::Mkdir {
                path: dir.clone(),
                mode: 0o755,
                parents: true,
                owner: (!user.is_empty()).then(|| Owner::parse(&user)),
                timestamp: self.epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)),
            };
            self.stages[step.stage].state = state.file(vec![mkdir], constraints);
        }
        commit(&mut self.stages[step.stage].image, &format!("WORKDIR {dir}"), makes_layer, self.epoch);
        Ok(())
    }

    /// The command line of CMD or ENTRYPOINT, through the shell if it is in shell form.
    fn line(&self, step: &Step<'_>, line: &CommandLine) -> Vec<String> {
        if !line.shell {
            return line.args.clone();
        }
        let config = &self.stages[step.stage].image;
        if config.config.shell.is_empty() {
            let name = &step.instruction.name;
            let text =
                format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals");
            step.linter.report(Rule::JSONArgsRecommended, step.location(), text);
        }
        image::with_shell(config, &line.args)
    }

    /// Warns of an instruction that an earlier one of its kind was in vain for.
    fn used_once(step: &Step<'_>, earlier: &mut Option<Vec<Range>>) {
        if let Some(earlier) = &earlier {
            let name = &step.instruction.name;
            let text = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be \
                 used"
            );
            step.linter.report(Rule::MultipleInstructionsDisallowed, earlier, text);
        }
        *earlier = Some(step.location().to_vec());
    }

    fn cmd(&mut self, step: &Step<'_>, line: &CommandLine) {
        Self::used_once(step, &mut self.stages[step.stage].cmd);
        let args = self.line(step, line);
        let message = format!("CMD {}", gofmt::quote_list(&args));
        let config = &mut self.stages[step.stage].image.config;
        config.cmd = Some(args).filter(|args| !args.is_empty());
        config.args_escaped = true;
        self.commit(step.stage, &message);
    }

    fn entrypoint(&mut self, step: &Step<'_>, line: &CommandLine) {
        Self::used_once(step, &mut self.stages[step.stage].entrypoint);
        let args = self.line(step, line);
        let message = format!("ENTRYPOINT {}", gofmt::quote_list(&args));
        let stage = &mut self.stages[step.stage];
        stage.image.config.entrypoint = Some(args).filter(|args| !args.is_empty());
        if stage.cmd.is_none() {
            stage.image.config.cmd = None;
        }
        self.commit(step.stage, &message);
    }

    fn health_check(&mut self, step: &Step<'_>, health: &castor_oci::HealthConfig) {
        Self::used_once(step, &mut self.stages[step.stage].healthcheck);
        self.stages[step.stage].image.config.healthcheck = Some(health.clone());
        let message = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            gofmt::list(&health.test),
            gofmt::duration(health.interval),
            gofmt::duration(health.timeout),
            gofmt::duration(health.start_period),
            gofmt::duration(health.start_interval),
            health.retries
        );
        self.commit(step.stage, &message);
    }

    fn arg(&mut self, step: &Step<'_>, arguments: &[Argument]) -> Result<()> {
        let mut message = String::from("ARG");
        for argument in arguments {
            let key = &argument.key;
            checks::secret_name("ARG", key, step.location(), step.linter);
            let stage = &self.stages[step.stage];
            let value = match (self.build_args.get(key), &argument.value) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => self.global_args.get(key).map(str::to_owned),
                (None, Some(default)) => {
                    let env = stage.state.get_env();
                    let (result, expanded) = self.lexer.expand(default, env);
                    let declared = &stage.build_args;
                    checks::undefined_variables(&expanded.unmatched, declared, env, step.location(), step.linter);
                    Some(result?)
                }
            };
            message.push(' ');
            message.push_str(key);
            // One that only repeats a global argument is that argument.
            let own = self.build_args.contains_key(key) || argument.value.is_some() || value.is_none();
            let stage = &mut self.stages[step.stage];
            stage.seen.argument(argument, value.as_deref().unwrap_or_default(), own, step.location());
            if let Some(value) = &value {
                if !args::NOT_IN_ENV.contains(&key.as_str()) {
                    stage.state.set_env(key, value);
                }
                message.push('=');
                message.push_str(value);
            }
            stage.build_args.push(Argument { value, ..argument.clone() });
            self.check_variables(step.stage)?;
        }
        self.commit(step.stage, &message);
        Ok(())
    }
}

/// A command with the arguments that it depends on, as the history has it.
pub(super) fn with_arguments(command: &[String], declared: &[Argument], env: &Env) -> String {
    let mut values: Vec<(&str, String)> = Vec::new();
    for argument in declared {
        let default = || argument.value.clone().unwrap_or_default();
        let value = env.get(&argument.key).map_or_else(default, str::to_owned);
        match values.iter_mut().find(|(key, _)| *key == argument.key) {
            Some((_, known)) => *known = value,
            None => values.push((&argument.key, value)),
        }
    }
    let mut words = Vec::new();
    if !values.is_empty() {
        words.push(format!("|{}", values.len()));
        words.extend(values.into_iter().map(|(key, value)| format!("{key}={value}")));
    }
    words.extend(command.iter().cloned());
    words.join(" ")
}
