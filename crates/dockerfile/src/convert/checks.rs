//! What is looked at for warnings alone.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use castor_llb::Range;
use castor_llb::state::Env;
use castor_oci::{Platform, Reference};
use regex::Regex;

use super::{Converter, args};
use crate::gofmt::quote;
use crate::instruction::{Argument, Stage};
use crate::lint::{Linter, Rule};
use crate::shell::{Expanded, Lexer};
use crate::{platform, suggest};

pub(super) fn stage_names(stages: &[Stage], linter: &Linter) {
    let mut seen = BTreeSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        if matches!(stage.name.as_str(), "context" | "scratch") {
            let name = quote(&stage.name);
            let text = format!("Stage name should not use the same name as reserved stage {name}");
            linter.report(Rule::ReservedStageName, &stage.location, text);
        }
        if !seen.insert(stage.name.as_str()) {
            let text = format!("Duplicate stage name {}, stage names should be unique", quote(&stage.name));
            linter.report(Rule::DuplicateStageName, &stage.location, text);
        }
    }
}

pub(super) fn casing(stages: &[Stage], linter: &Linter) {
    let words = || {
        stages.iter().flat_map(|stage| {
            let instructions = stage.instructions.iter().map(|i| (i.name.as_str(), i.location.as_slice()));
            std::iter::once((stage.keyword.as_str(), stage.location.as_slice())).chain(instructions)
        })
    };
    let lower = words().filter(|(word, _)| *word == word.to_lowercase()).count();
    let upper = words().filter(|(word, _)| *word == word.to_uppercase() && *word != word.to_lowercase()).count();
    for (word, location) in words() {
        let (right, casing) = if lower > upper {
            (word == word.to_lowercase(), "lowercase")
        } else {
            (word == word.to_uppercase(), "uppercase")
        };
        if !right {
            let text = format!("Command '{word}' should match the case of the command majority ({casing})");
            linter.report(Rule::ConsistentInstructionCasing, location, text);
        }
    }
}

/// Base images must make sense with the defaults of arguments too.
pub(super) fn bases_with_defaults(
    stages: &[Stage],
    lexer: Lexer,
    predefined: &Env,
    commands: &[(Vec<Argument>, Vec<Range>)],
    linter: &Linter,
) {
    // What fails here fails again where it counts.
    let Ok((env, _)) = args::global(predefined.clone(), lexer, commands, None) else { return };
    for stage in stages {
        let Ok(base) = lexer.word(&stage.base, &env) else { return };
        if base.parse::<Reference>().is_err() {
            let text = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            linter.report(Rule::InvalidDefaultArgInFrom, &stage.location, text);
        }
    }
}

/// Names that look like those of secrets.
pub(super) fn secret_name(instruction: &str, key: &str, location: &[Range], linter: &Linter) {
    static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new("(?i)(?:_|^)(?:apikey|auth|credential|credentials|key|password|pword|passwd|secret|token)(?:_|$)")
            .ok()
    });
    static HARMLESS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("(?i)(?:_|^)(?:public|file|version)(?:_|$)").ok());
    let matches = |pattern: &Option<Regex>| pattern.as_ref().is_some_and(|pattern| pattern.is_match(key));
    if matches(&SECRET) && !matches(&HARMLESS) {
        let key = quote(key);
        let text = format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {key})");
        linter.report(Rule::SecretsUsedInArgOrEnv, location, text);
    }
}

/// Variables that an instruction uses and that are not set.
pub(super) fn undefined_variables(
    unmatched: &BTreeSet<String>,
    declared: &[Argument],
    env: &Env,
    location: &[Range],
    linter: &Linter,
) {
    for name in unmatched {
        if linter.is_full() {
            return;
        }
        if declared.iter().any(|arg| arg.key == *name) || args::NOT_IN_ENV.contains(&name.as_str()) {
            continue;
        }
        let names: Vec<&str> = env.iter().map(|(name, _)| name).collect();
        let hint = suggest::search(name, names, true);
        let hint = hint.map_or_else(String::new, |hint| format!(" (did you mean ${hint}?)"));
        linter.report(Rule::UndefinedVar, location, format!("Usage of undefined variable '${name}'{hint}"));
    }
}

/// The platform of the base image is not the one that was asked for.
pub(super) fn base_platform(name: &str, expected: &Platform, actual: &Platform, at: &[Range], linter: &Linter) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        let show = |platform: &Platform| quote(&platform::format_all(&platform::normalize(platform)));
        let text = format!(
            "Base image {name} was pulled with platform {}, expected {} for current build",
            show(actual),
            show(expected)
        );
        linter.report(Rule::InvalidBaseImagePlatform, at, text);
    }
}

impl Converter<'_> {
    /// Arguments in FROM that nobody declared.
    pub(super) fn check_from_args(&self, expanded: &Expanded, location: &[Range], linter: &Linter) {
        for name in expanded.unmatched.iter().filter(|name| !self.from_args.contains(*name)) {
            let hint = suggest::hint(name, self.from_args.iter().map(String::as_str), true);
            linter.report(Rule::UndefinedArgInFrom, location, format!("FROM argument '{name}' is not declared{hint}"));
        }
    }

    /// Platforms in FROM that say nothing, or too much.
    pub(super) fn check_from_platform(&self, stage: &Stage, expanded: &Expanded, linter: &Linter) {
        let location = &stage.location;
        if expanded.matched.len() == 1
            && expanded.unmatched.is_empty()
            && expanded.matched.contains("TARGETPLATFORM")
            && self.global_args.get("TARGETPLATFORM") == Some(expanded.text.as_str())
        {
            let text = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                stage.platform
            );
            linter.report(Rule::RedundantTargetPlatform, location, text);
        }
        if !expanded.matched.is_empty() || !expanded.unmatched.is_empty() {
            return;
        }
        let Ok(platform) = platform::parse(&expanded.text) else { return };
        if stage.name.contains(&platform.os) || stage.name.contains(&platform.architecture) {
            return;
        }
        let text = format!("FROM --platform flag should not use constant value {}", quote(&expanded.text));
        linter.report(Rule::FromPlatformFlagConstDisallowed, location, text);
    }
}
