//! `SOURCE_DATE_EPOCH`: a number, or the name of what has a time: the main context, a named one, a stage that does
//! nothing but ADD one thing from elsewhere.

use castor_llb::state::{Constraints, Env, HttpOptions};
use castor_llb::{MarshalOptions, State};
use castor_oci::Platform;

use super::Converter;
use super::context::remote_context;
use super::copy::{file_name, git_source, parse_checksum};
use super::stage::SCRATCH;
use crate::error::{DockerfileError, Result};
use crate::git::GitRef;
use crate::gofmt;
use crate::instruction::{CopyFiles, Kind, Stage};
use crate::lookup::TimeLookup;

const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// The name of the main context.
const CONTEXT: &str = "context";

impl Converter<'_> {
    /// Finds the time that files and history get; the argument is left as a number, or taken away.
    pub(super) async fn resolve_epoch(&mut self, stages: &[Stage]) -> Result<()> {
        let global = self.global_args.get(EPOCH).filter(|value| !value.is_empty());
        let given = self.build_args.get(EPOCH).map(String::as_str);
        let Some(text) = given.or(global).map(str::to_owned) else { return Ok(()) };
        self.epoch = match text.parse::<i64>() {
            Ok(epoch) => Some(epoch),
            Err(_) if text.is_empty() => None,
            Err(_) => self.named_epoch(&text, stages).await?,
        };
        let text = self.epoch.map(|epoch| epoch.to_string());
        if self.build_args.contains_key(EPOCH) {
            match &text {
                Some(text) => drop(self.build_args.insert(EPOCH.into(), text.clone())),
                None => drop(self.build_args.remove(EPOCH)),
            }
        }
        if self.global_args.get(EPOCH).is_some() {
            match &text {
                Some(text) => self.global_args.set(EPOCH, text),
                None => self.global_args.remove(EPOCH),
            }
        }
        Ok(())
    }

    /// The time of what is called `name`; `None` if it has none.
    async fn named_epoch(&self, name: &str, stages: &[Stage]) -> Result<Option<i64>> {
        if name == CONTEXT {
            // A directory of the client has no time of its own.
            let Some(state) = remote_context(self.options)? else { return Ok(None) };
            return self.time_of(&state, "[internal] resolve main build context metadata".into()).await;
        }
        if let Some(context) = self.named_context(name, Some(&Platform::host()), 0)? {
            let Some(state) = context.with_a_time(self.options)? else { return Ok(None) };
            return self.time_of(&state, format!("[internal] resolve {EPOCH} named context {name}")).await;
        }
        let stage = stages.iter().find(|stage| !stage.name.is_empty() && stage.name.eq_ignore_ascii_case(name));
        let stage = stage.ok_or_else(|| DockerfileError::new(format!("invalid {EPOCH}: {name}")))?;
        let state = self.source_stage(stage).map_err(|error| error.at(&stage.location))?;
        self.time_of(&state, format!("[internal] resolve {EPOCH} source stage {}", stage.name)).await
    }

    async fn time_of(&self, state: &State, log_name: String) -> Result<Option<i64>> {
        let bad = |error: &dyn std::fmt::Display| {
            DockerfileError::new(format!("failed to marshal the source of {EPOCH}: {error}"))
        };
        let definition = state.marshal(&MarshalOptions::default()).map_err(|error| bad(&error))?;
        // Of several that something was made of, none has a better claim than the others.
        let Some(source) = definition.only_source().map_err(|error| bad(&error))? else { return Ok(None) };
        let lookup = TimeLookup { source, log_name };
        self.resolver.source_time(&lookup).await.map_err(DockerfileError::lookup)
    }

    /// What a stage adds, which must be all that it does.
    fn source_stage(&self, stage: &Stage) -> Result<State> {
        let refuse = |message: &str| Err(DockerfileError::new(format!("{EPOCH} stage {message}")));
        let mut env = self.global_args.clone();
        env.remove(EPOCH);
        let base = self.lexer.word(&stage.base, &env).map_err(|error| {
            error.context(format!("failed to process source stage base name {}", gofmt::quote(&stage.base)))
        })?;
        if base != SCRATCH {
            return refuse("must use FROM scratch");
        }
        let mut found = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(args) => {
                    for arg in args {
                        let value = match (self.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.lexer.word(default, &env)?,
                            (None, None) => continue,
                        };
                        env.set(&arg.key, &value);
                    }
                }
                Kind::Copy(add) if add.add => {
                    if found.is_some() {
                        return refuse("must contain exactly one remote ADD");
                    }
                    found = Some(self.added(add, &env)?);
                }
                _ => {
                    let name = instruction.name.to_lowercase();
                    return refuse(&format!("does not meet source-only requirements: unsupported {name} instruction"));
                }
            }
        }
        found.map_or_else(|| refuse("must contain exactly one remote ADD"), Ok)
    }

    fn added(&self, add: &CopyFiles, env: &Env) -> Result<State> {
        let [source] = add.sources.as_slice() else {
            return Err(DockerfileError::new(format!("{EPOCH} stage must contain exactly one remote ADD source")));
        };
        let source = self.lexer.word(source, env)?;
        let checksum = match add.checksum.as_str() {
            "" => String::new(),
            text => self.lexer.word(text, env)?,
        };
        let constraints = Constraints::new();
        match GitRef::parse(&source) {
            Some(Err(error)) => return Err(DockerfileError::new(error)),
            Some(Ok(git)) if !git.maybe_local => {
                return git_source(&CopyFiles { checksum, ..add.clone() }, git, constraints);
            }
            _ => {}
        }
        if !(source.starts_with("http://") || source.starts_with("https://")) || !add.contents.is_empty() {
            return Err(DockerfileError::new(format!("{EPOCH} stage source must be a single HTTP(S) or Git ADD")));
        }
        let checksum = (!checksum.is_empty()).then(|| parse_checksum(&checksum)).transpose()?;
        let options = HttpOptions { checksum, filename: file_name(&source), ..HttpOptions::default() };
        Ok(State::http(&source, &options, constraints))
    }
}
