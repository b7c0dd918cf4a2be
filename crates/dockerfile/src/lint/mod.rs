//! What is legal but unwise: rules, which of them apply, and what was found.

mod rules;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use castor_llb::Range;

use crate::gofmt::{parse_bool, quote};
use crate::parser::directive;
pub use rules::Rule;

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule.
    pub rule: Rule,
    /// What was found, without rule and line.
    pub text: String,
    /// Where.
    pub location: Vec<Range>,
}

impl Warning {
    /// The line that users read: `Rule: text (line N)`.
    pub fn message(&self) -> String {
        let name = self.rule.name();
        match self.location.first() {
            Some(range) if range.start.line > 0 => format!("{name}: {} (line {})", self.text, range.start.line),
            _ => format!("{name}: {}", self.text),
        }
    }
}

/// Which rules apply: the value of a `check` directive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LintConfig {
    skip_all: bool,
    skip: BTreeSet<String>,
    experimental_all: bool,
    experimental: BTreeSet<String>,
    error: bool,
}

impl LintConfig {
    /// Reads `skip=A,B;error=true;experimental=all`. The error is BuildKit's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        if text.trim().is_empty() {
            return Ok(config);
        }
        for part in text.trim().splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {}", quote(part)));
            };
            let (key, value) = (key.trim(), value.trim());
            let rules = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match key {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = rules(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = rules(),
                "error" => {
                    config.error = parse_bool(value).ok_or_else(|| {
                        format!(
                            "failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
                            quote(part),
                            quote(value)
                        )
                    })?;
                }
                key => return Err(format!("invalid check option {}", quote(key))),
            }
        }
        Ok(config)
    }

    fn merge(&mut self, other: Self) {
        self.skip_all |= other.skip_all;
        self.skip.extend(other.skip);
        self.experimental_all |= other.experimental_all;
        self.experimental.extend(other.experimental);
    }
}

/// More findings than anybody reads are not collected.
const MAX_FINDINGS: usize = 500;

/// Collects findings. Clones share what they collect.
#[derive(Debug, Clone, Default)]
pub struct Linter {
    /// `None` looks at nothing.
    config: Option<LintConfig>,
    found: Arc<Mutex<Vec<Warning>>>,
}

impl Linter {
    /// A linter under a configuration.
    pub fn new(config: LintConfig) -> Self {
        Self { config: Some(config), found: Arc::default() }
    }

    /// A linter that finds nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// This linter under what comments before an instruction say (`# check=skip=A`).
    #[must_use]
    pub fn with_comments(&self, comments: &[String]) -> Self {
        let Some(config) = &self.config else { return self.clone() };
        for comment in comments {
            let Some((name, value)) = directive::key_value(comment) else { continue };
            if name != "check" {
                continue;
            }
            let first = value.split(' ').next().unwrap_or_default();
            let Ok(more) = LintConfig::parse(first) else { break };
            let mut config = config.clone();
            config.merge(more);
            return Self { config: Some(config), found: self.found.clone() };
        }
        self.clone()
    }

    /// Reports a finding, if its rule applies.
    pub fn report(&self, rule: Rule, location: &[Range], text: impl Into<String>) {
        let Some(config) = &self.config else { return };
        let name = rule.name();
        let applies = if rule.is_experimental() {
            config.experimental_all || config.experimental.contains(name)
        } else {
            !config.skip_all && !config.skip.contains(name)
        };
        if applies && !self.is_full() {
            let warning = Warning { rule, text: text.into(), location: location.to_vec() };
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push(warning);
        }
    }

    /// Whether there is no sense in looking further: nobody asked, or enough was found.
    pub(crate) fn is_full(&self) -> bool {
        self.config.is_none() || self.found.lock().unwrap_or_else(PoisonError::into_inner).len() >= MAX_FINDINGS
    }

    /// What was found so far.
    pub fn warnings(&self) -> Vec<Warning> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error that `check=error=true` makes of findings.
    pub(crate) fn error(&self) -> Option<String> {
        if !self.config.as_ref().is_some_and(|config| config.error) {
            return None;
        }
        let mut rules: Vec<&str> = Vec::new();
        for warning in self.warnings() {
            if !rules.contains(&warning.rule.name()) {
                rules.push(warning.rule.name());
            }
        }
        (!rules.is_empty()).then(|| format!("lint violation found for rules: {}", rules.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_skipped_by_name_and_all_at_once() {
        let linter = Linter::new(LintConfig::parse("skip=StageNameCasing , FromAsCasing;error=true").unwrap());
        linter.report(Rule::StageNameCasing, &[], "x");
        assert!(linter.warnings().is_empty() && linter.error().is_none());
        linter.with_comments(&["check=skip=all".into()]).report(Rule::UndefinedVar, &[], "y");
        linter.report(Rule::UndefinedVar, &[Range::lines(3, 3)], "y");
        linter.report(Rule::InvalidDefinitionDescription, &[], "experimental");
        assert_eq!(linter.warnings().len(), 1);
        assert_eq!(linter.warnings()[0].message(), "UndefinedVar: y (line 3)");
        assert_eq!(linter.error().unwrap(), "lint violation found for rules: UndefinedVar");
        assert_eq!(LintConfig::parse("foo=bar").unwrap_err(), "invalid check option \"foo\"");
    }
}
