//! Flags of instructions: `--name`, `--name=value`.

use crate::error::{DockerfileError, Result};
use crate::suggest;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing, `true` or `false`.
    Flag,
    /// A text, once.
    Text,
    /// A text, any number of times.
    Texts,
}

/// Flags as they were given.
#[derive(Debug, Default)]
pub(super) struct Flags(Vec<(&'static str, String)>);

impl Flags {
    /// Reads an instruction's flags; `known` are those that it has.
    pub(super) fn parse(given: &[String], known: &[(&'static str, Takes)]) -> Result<Self> {
        let mut flags = Self::default();
        let refuse = |message: String| Err(DockerfileError::new(message));
        for text in given {
            let (flag, value) = text.split_once('=').map_or((text.as_str(), None), |(flag, value)| (flag, Some(value)));
            let word = flag.strip_prefix("--").unwrap_or(flag);
            let Some(&(name, takes)) = known.iter().find(|(name, _)| *name == word) else {
                let hint = suggest::hint(word, known.iter().map(|(name, _)| *name), true);
                return refuse(format!("unknown flag: {flag}{hint}"));
            };
            if takes != Takes::Texts && flags.is_set(name) {
                return refuse(format!("duplicate flag specified: {flag}"));
            }
            let value = match (takes, value) {
                (Takes::Flag, Some("")) | (Takes::Text | Takes::Texts, None) => {
                    return refuse(format!("missing a value on flag: {flag}"));
                }
                (Takes::Flag, value) => match value.map(str::to_lowercase).as_deref() {
                    None | Some("true") => "true".to_owned(),
                    Some("false") => "false".to_owned(),
                    Some(_) => {
                        let value = value.unwrap_or_default();
                        return refuse(format!("expecting boolean value for flag {flag}, not: {value}"));
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            flags.0.push((name, value));
        }
        Ok(flags)
    }

    fn is_set(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == name)
    }

    /// Value of a flag that takes a text; empty if it was not given.
    pub(super) fn text(&self, name: &str) -> String {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// Values of a flag that may be given often.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone()).collect()
    }

    /// Value of a flag that takes nothing, if it was given.
    pub(super) fn given(&self, name: &str) -> Option<bool> {
        self.is_set(name).then(|| self.text(name) == "true")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_checked() {
        let known = [("link", Takes::Flag), ("from", Takes::Text), ("exclude", Takes::Texts)];
        let parse = |list: &[&str]| Flags::parse(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), &known);
        let flags = parse(&["--link", "--exclude=a", "--exclude=b", "--from=x=y"]).unwrap();
        assert_eq!(flags.given("link"), Some(true));
        assert_eq!(flags.texts("exclude"), ["a", "b"]);
        assert_eq!(flags.text("from"), "x=y");
        for (list, want) in [
            (vec!["--foo=1"], "unknown flag: --foo (did you mean from?)"),
            (vec!["--link=x"], "expecting boolean value for flag --link, not: x"),
            (vec!["--link="], "missing a value on flag: --link"),
            (vec!["--from"], "missing a value on flag: --from"),
            (vec!["--from=a", "--from=b"], "duplicate flag specified: --from"),
        ] {
            assert_eq!(parse(&list).unwrap_err().message(), want);
        }
        assert_eq!(parse(&["--link=FALSE"]).unwrap().given("link"), Some(false));
    }
}
