//! What a target can be given: arguments, secrets and agents; and which targets there are.

use std::collections::{BTreeMap, BTreeSet};

use castor_llb::Range;
use castor_llb::state::Env;

use super::Converter;
use crate::error::Result;
use crate::instruction::{self, Argument, Stages};
use crate::lint::Linter;
use crate::parser;
use crate::shell::Lexer;

/// What a target can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name; empty if it has none.
    pub name: String,
    /// What the file says about it.
    pub description: String,
    /// Arguments, in the file's order.
    pub args: Vec<OutlineArg>,
    /// Secrets.
    pub secrets: Vec<OutlineMount>,
    /// SSH agents.
    pub ssh: Vec<OutlineMount>,
}

/// An argument.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What the file says about it.
    pub description: String,
    /// Its value as things are.
    pub value: String,
    /// Where it is declared.
    pub location: Vec<Range>,
}

/// A secret or an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// Whether a step fails without it.
    pub required: bool,
    /// Where it is used first.
    pub location: Vec<Range>,
}

/// A target that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedTarget {
    /// Its name; empty if it has none.
    pub name: String,
    /// What the file says about it.
    pub description: String,
    /// It is built if none is asked for.
    pub default: bool,
    /// What it is built on, as written.
    pub base: String,
    /// For which platform, as written.
    pub platform: String,
    /// Where it begins.
    pub location: Vec<Range>,
}

/// The targets of a Dockerfile.
pub fn targets(dockerfile: &[u8]) -> Result<Vec<ListedTarget>> {
    let parsed = parser::parse(dockerfile)?;
    let Stages { stages, .. } = instruction::parse(&parsed.nodes, &Linter::off())?;
    let last = stages.len().saturating_sub(1);
    let listed = stages.into_iter().enumerate().map(|(index, stage)| ListedTarget {
        description: instruction::description(&stage.comments, &stage.name),
        name: stage.name,
        default: index == last,
        base: stage.base,
        platform: stage.platform,
        location: stage.location,
    });
    Ok(listed.collect())
}

#[derive(Debug, Clone)]
struct Known {
    description: String,
    value: String,
    /// Other arguments that its default is made of.
    deps: BTreeSet<String>,
    location: Vec<Range>,
}

/// What was met on the way through a stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    known: BTreeMap<String, Known>,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, (bool, Vec<Range>)>,
    ssh: BTreeMap<String, (bool, Vec<Range>)>,
}

impl Seen {
    /// The arguments before the first FROM. Defaults that cannot be read are found elsewhere.
    pub(super) fn global(
        mut env: Env,
        lexer: Lexer,
        commands: &[(Vec<Argument>, Vec<Range>)],
        given: &BTreeMap<String, String>,
    ) -> Self {
        let mut seen = Self::default();
        for (argument, location) in commands.iter().flat_map(|(args, at)| args.iter().map(move |arg| (arg, at))) {
            let (value, mut deps) = match (given.get(&argument.key), &argument.value) {
                (Some(given), _) => (Some(given.clone()), BTreeSet::new()),
                (None, Some(default)) => {
                    let (text, expanded) = lexer.expand(default, &env);
                    (text.ok(), expanded.matched)
                }
                (None, None) => (None, BTreeSet::new()),
            };
            if deps.remove(&argument.key)
                && let Some(earlier) = seen.known.get(&argument.key)
            {
                deps.extend(earlier.deps.iter().cloned());
            }
            if let Some(value) = &value {
                env.set(&argument.key, value);
            }
            seen.declare(argument, value.unwrap_or_default(), deps, location);
        }
        seen
    }

    fn declare(&mut self, argument: &Argument, value: String, deps: BTreeSet<String>, location: &[Range]) {
        let known = Known { description: argument.description.clone(), value, deps, location: location.to_vec() };
        self.known.insert(argument.key.clone(), known);
    }

    /// FROM names these.
    pub(super) fn use_all(&mut self, names: BTreeSet<String>) {
        self.used.extend(names);
    }

    /// An ARG of a stage; `own` is false if it only repeats one from before the first FROM.
    pub(super) fn argument(&mut self, argument: &Argument, value: &str, own: bool, location: &[Range]) {
        if own {
            self.declare(argument, value.to_owned(), BTreeSet::new(), location);
        }
        self.used.insert(argument.key.clone());
    }

    pub(super) fn secret(&mut self, id: &str, required: bool, location: &[Range]) {
        self.secrets.entry(id.to_owned()).or_insert_with(|| (required, location.to_vec()));
    }

    pub(super) fn agent(&mut self, id: &str, required: bool, location: &[Range]) {
        let id = if id.is_empty() { "default" } else { id };
        self.ssh.entry(id.to_owned()).or_insert_with(|| (required, location.to_vec()));
    }

    /// The arguments that count: those used, and those that they are made of.
    fn arguments(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut rest: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = rest.pop() {
            if found.insert(name)
                && let Some(known) = self.known.get(name)
            {
                rest.extend(known.deps.iter().map(String::as_str));
            }
        }
        found
    }
}

fn line(location: &[Range]) -> i32 {
    location.first().map_or(0, |range| range.start.line)
}

impl Converter<'_> {
    /// What `target` and the stages that it needs can be given.
    pub(super) fn outline(&self, target: usize) -> Outline {
        let stage = &self.stages[target].stage;
        let mut outline = Outline {
            name: stage.name.clone(),
            description: instruction::description(&stage.comments, &stage.name),
            ..Outline::default()
        };
        let (mut stages, mut rest) = (BTreeSet::new(), vec![target]);
        let (mut args, mut secrets, mut ssh) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        while let Some(position) = rest.pop() {
            if !stages.insert(position) {
                continue;
            }
            let stage = &self.stages[position];
            let seen = &stage.seen;
            for name in seen.arguments() {
                let Some(known) = seen.known.get(name).filter(|_| args.insert(name.to_owned())) else { continue };
                outline.args.push(OutlineArg {
                    name: name.to_owned(),
                    description: known.description.clone(),
                    value: known.value.clone(),
                    location: known.location.clone(),
                });
            }
            let mount = |(name, (required, location)): (&String, &(bool, Vec<Range>))| OutlineMount {
                name: name.clone(),
                required: *required,
                location: location.clone(),
            };
            outline.secrets.extend(seen.secrets.iter().filter(|(name, _)| secrets.insert((*name).clone())).map(mount));
            outline.ssh.extend(seen.ssh.iter().filter(|(name, _)| ssh.insert((*name).clone())).map(mount));
            rest.extend(stage.deps.iter().map(|(dep, _)| *dep));
            rest.extend(stage.base);
        }
        outline.args.sort_by_key(|arg| line(&arg.location));
        outline.secrets.sort_by_key(|secret| line(&secret.location));
        outline.ssh.sort_by_key(|agent| line(&agent.location));
        outline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_listed_as_they_stand() {
        let text = "ARG B=base\n# one makes a\nFROM $B AS one\nFROM --platform=$BUILDPLATFORM one\n";
        let listed = targets(text.as_bytes()).unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[0].name.as_str(), listed[0].description.as_str()), ("one", "makes a"));
        assert_eq!((listed[0].base.as_str(), listed[0].default), ("$B", false));
        assert_eq!((listed[1].platform.as_str(), listed[1].default), ("$BUILDPLATFORM", true));
        assert!(targets(b"NOPE\n").is_err());
    }

    #[test]
    fn arguments_bring_those_that_they_are_made_of() {
        let argument = |key: &str, value: &str| Argument {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            ..Argument::default()
        };
        let commands =
            vec![(vec![argument("A", "1"), argument("B", "x$A"), argument("B", "${B}y"), argument("C", "z")], vec![])];
        let given = BTreeMap::from([("A".to_owned(), "2".to_owned())]);
        let mut seen = Seen::global(Env::default(), Lexer::new('\\'), &commands, &given);
        assert!(seen.arguments().is_empty());
        seen.use_all(BTreeSet::from(["B".to_owned()]));
        assert_eq!(seen.arguments(), BTreeSet::from(["A", "B"]));
        assert_eq!((seen.known["A"].value.as_str(), seen.known["B"].value.as_str()), ("2", "x2y"));
    }
}
