//! The command line: flags as BuildKit's client takes them.
//!
//! One dash or two, `--name value` or `--name=value`, global flags before or after the command, repeated flags whose
//! values are never split at commas.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::gotime;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Text,
    /// May be given several times.
    Texts,
    Int,
    Float,
    Duration,
}

/// A flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    pub name: &'static str,
    pub alias: Option<&'static str>,
    pub kind: Kind,
    pub usage: &'static str,
    /// As shown in the help.
    pub default: &'static str,
}

/// A command.
#[derive(Debug)]
pub struct Command {
    pub name: &'static str,
    pub alias: Option<&'static str>,
    pub usage: &'static str,
    /// Replaces the generated usage line.
    pub usage_text: &'static str,
    pub arguments: &'static str,
    pub hidden: bool,
    pub flags: &'static [Flag],
    pub commands: &'static [Command],
}

impl Command {
    /// A command without anything.
    pub const fn new(name: &'static str, usage: &'static str) -> Self {
        Self { name, alias: None, usage, usage_text: "", arguments: "", hidden: false, flags: &[], commands: &[] }
    }
}

/// A flag without a default.
pub const fn flag(name: &'static str, kind: Kind, usage: &'static str) -> Flag {
    Flag { name, alias: None, kind, usage, default: "" }
}

/// Of every command.
pub const HELP: Flag = Flag { name: "help", alias: Some("h"), kind: Kind::Bool, usage: "show help", default: "" };
/// Of the program.
pub const VERSION: Flag =
    Flag { name: "version", alias: Some("v"), kind: Kind::Bool, usage: "print the version", default: "" };

/// What was asked for.
#[derive(Debug)]
pub enum Request {
    /// To run a command, by its path.
    Run(Vec<&'static str>, Values),
    /// To see this text.
    Help(String),
    Version,
}

/// A command line that is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Misuse {
    /// What is wrong, and the help to show with it.
    Flag { message: String, help: String },
    /// There is no such command.
    Unknown(String),
}

/// The values of flags.
#[derive(Debug, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Vec<String>>,
    pub arguments: Vec<String>,
}

impl Values {
    pub fn text(&self, name: &str) -> &str {
        self.given.get(name).and_then(|values| values.last()).map_or("", String::as_str)
    }

    pub fn texts(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn bool(&self, name: &str) -> bool {
        parse_bool(self.text(name)).unwrap_or(false)
    }

    /// Values were checked when they were parsed, so what is missing here was not given.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.text(name).parse().ok()
    }

    pub fn float(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(0.0)
    }

    pub fn duration(&self, name: &str) -> Duration {
        gotime::parse_duration(self.text(name)).unwrap_or_default()
    }
}

/// Reads a command line, without the program's name.
pub fn parse(root: &'static Command, arguments: impl IntoIterator<Item = String>) -> Result<Request, Misuse> {
    let mut path: Vec<&'static Command> = vec![root];
    let mut values = Values::default();
    let mut arguments = arguments.into_iter();
    let mut help = false;
    while let Some(argument) = arguments.next() {
        let command = path[path.len() - 1];
        let misuse = |message: String| Misuse::Flag {
            message,
            // BuildKit's client shows the help for mistakes before the command only.
            help: if path.len() == 1 { help_text(&path) } else { String::new() },
        };
        let dashed = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        let Some(name) = dashed.filter(|name| !name.is_empty()) else {
            if argument == "--" {
                values.arguments.extend(arguments.by_ref());
                break;
            }
            if values.arguments.is_empty() {
                if let Some(next) = find(command, &argument) {
                    path.push(next);
                    continue;
                }
                if argument == "help" || argument == "h" {
                    help = true;
                    continue;
                }
                if !command.commands.is_empty() {
                    return Err(Misuse::Unknown(argument));
                }
            }
            values.arguments.push(argument);
            continue;
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(flag) = known(&path, name) else {
            return Err(misuse(format!("flag provided but not defined: -{name}")));
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => arguments
                .next()
                .ok_or_else(|| misuse(format!("flag needs an argument: {}", argument.trim_end_matches('='))))?,
        };
        if let Err(reason) = check(flag.kind, &value) {
            return Err(misuse(format!("invalid value \"{value}\" for flag -{name}: {reason}")));
        }
        match flag.name {
            "help" => help |= parse_bool(&value).unwrap_or(false),
            "version" if path.len() == 1 => return Ok(Request::Version),
            name => values.given.entry(name).or_default().push(value),
        }
    }
    if help || !path[path.len() - 1].commands.is_empty() {
        return Ok(Request::Help(help_text(&path)));
    }
    Ok(Request::Run(path.iter().skip(1).map(|command| command.name).collect(), values))
}

fn find(command: &'static Command, name: &str) -> Option<&'static Command> {
    command.commands.iter().find(|command| command.name == name || command.alias == Some(name))
}

fn known(path: &[&'static Command], name: &str) -> Option<Flag> {
    let named = |flag: &&Flag| flag.name == name || flag.alias == Some(name);
    // A command's own flags come before those of what it is part of: `-v` is `--verbose` there.
    let own = path.iter().rev().find_map(|command| command.flags.iter().find(named).copied());
    let version = (path.len() == 1).then_some(VERSION);
    own.or_else(|| [Some(HELP), version].into_iter().flatten().find(|flag| named(&flag)))
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn check(kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Text | Kind::Texts => Ok(()),
        Kind::Bool => parse_bool(value).map(drop).ok_or_else(|| "parse error".to_owned()),
        Kind::Int => match value.parse::<i64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("strconv.ParseInt: parsing \"{value}\": invalid syntax")),
        },
        Kind::Float => match value.parse::<f64>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("strconv.ParseFloat: parsing \"{value}\": invalid syntax")),
        },
        Kind::Duration => gotime::parse_duration(value).map(drop).map_err(|err| err.to_string()),
    }
}

/// The help of the last command in `path`.
fn help_text(path: &[&'static Command]) -> String {
    let command = path[path.len() - 1];
    let full: Vec<&str> = path.iter().map(|command| command.name).collect();
    let full = full.join(" ");
    let is_root = path.len() == 1;
    let mut text = format!("NAME:\n   {full} - {}\n\nUSAGE:\n   ", command.usage);
    if !command.usage_text.is_empty() {
        text += command.usage_text;
    } else if is_root {
        let _ = write!(text, "{full} [global options] [command [command options]]");
    } else if !command.commands.is_empty() {
        let _ = write!(text, "{full} [command [command options]]");
    } else {
        let _ = write!(text, "{full} [options]");
        if !command.arguments.is_empty() {
            let _ = write!(text, " {}", command.arguments);
        }
    }
    text += "\n";
    if is_root {
        let _ = write!(text, "\nVERSION:\n   {}\n", env!("CARGO_PKG_VERSION"));
    }
    let shown: Vec<(String, &str)> = command
        .commands
        .iter()
        .filter(|command| !command.hidden)
        .map(|command| {
            (command.alias.map_or(command.name.into(), |alias| format!("{}, {alias}", command.name)), command.usage)
        })
        .chain(is_root.then(|| ("help, h".to_owned(), "Shows a list of commands or help for one command")))
        .collect();
    if !shown.is_empty() {
        text += "\nCOMMANDS:\n";
        columns(&mut text, &shown);
    }
    let own: Vec<Flag> = command.flags.iter().copied().chain([HELP]).chain(is_root.then_some(VERSION)).collect();
    text += if is_root { "\nGLOBAL OPTIONS:\n" } else { "\nOPTIONS:\n" };
    flag_lines(&mut text, &own);
    if !is_root && command.commands.is_empty() {
        text += "\nGLOBAL OPTIONS:\n";
        flag_lines(&mut text, path[0].flags);
    }
    text
}

fn flag_lines(text: &mut String, flags: &[Flag]) {
    let lines: Vec<(String, String)> = flags.iter().map(|flag| (flag_names(flag), flag_usage(flag))).collect();
    let lines: Vec<(String, &str)> = lines.iter().map(|(names, usage)| (names.clone(), usage.as_str())).collect();
    columns(text, &lines);
}

fn flag_names(flag: &Flag) -> String {
    let kind = match flag.kind {
        Kind::Bool => "",
        Kind::Text | Kind::Texts => " string",
        Kind::Int => " int",
        Kind::Float => " float",
        Kind::Duration => " duration",
    };
    let alias = flag.alias.map_or(String::new(), |alias| format!(", -{alias}{kind}"));
    let names = format!("--{}{kind}{alias}", flag.name);
    if flag.kind == Kind::Texts { format!("{names} [ {names} ]") } else { names }
}

fn flag_usage(flag: &Flag) -> String {
    let default = if flag.name == "addr" { std::env::var("BUILDKIT_HOST").ok() } else { None };
    let default = default.as_deref().filter(|value| !value.is_empty()).unwrap_or(flag.default);
    match (default, flag.kind) {
        ("", _) => flag.usage.to_owned(),
        (default, Kind::Text) => format!("{} (default: \"{default}\")", flag.usage),
        (default, _) => format!("{} (default: {default})", flag.usage),
    }
}

fn columns(text: &mut String, lines: &[(String, &str)]) {
    let width = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    for (left, right) in lines {
        let _ = writeln!(text, "   {left:width$}  {right}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ROOT;

    fn run(line: &str) -> (Vec<&'static str>, Values) {
        match parse(&ROOT, line.split_whitespace().map(str::to_owned)) {
            Ok(Request::Run(path, values)) => (path, values),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn misuse(line: &str) -> String {
        match parse(&ROOT, line.split_whitespace().map(str::to_owned)) {
            Err(Misuse::Flag { message, .. }) => message,
            Err(Misuse::Unknown(name)) => format!("unknown {name}"),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn spellings() {
        let (path, values) =
            run("--addr=a -debug build -opt a=b,c=d --opt x=y --no-cache -o type=local --timeout 7 rest");
        assert_eq!(path, ["build"]);
        assert_eq!(values.texts("opt"), ["a=b,c=d", "x=y"]);
        assert_eq!((values.text("addr"), values.text("output")), ("a", "type=local"));
        assert!(values.bool("debug") && values.bool("no-cache"));
        assert_eq!(values.int("timeout"), Some(7));
        assert_eq!(values.arguments, ["rest"]);
        let (path, values) = run("debug workers -v --filter a -f b");
        assert_eq!(path, ["debug", "workers"]);
        assert!(values.bool("verbose"));
        assert_eq!(values.texts("filter"), ["a", "b"]);
        assert_eq!(run("b").0, ["build"]);
        assert_eq!(run("prune --keep-duration 48h").1.duration("keep-duration"), Duration::from_secs(48 * 3600));
    }

    #[test]
    fn mistakes() {
        assert_eq!(misuse("--nope"), "flag provided but not defined: -nope");
        assert_eq!(misuse("build --nope=1"), "flag provided but not defined: -nope");
        assert_eq!(misuse("build --frontend"), "flag needs an argument: --frontend");
        assert_eq!(misuse("--debug=maybe du"), "invalid value \"maybe\" for flag -debug: parse error");
        assert_eq!(
            misuse("--timeout x du"),
            "invalid value \"x\" for flag -timeout: strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            misuse("prune --keep-duration x"),
            "invalid value \"x\" for flag -keep-duration: time: invalid duration \"x\""
        );
        assert_eq!(misuse("nope"), "unknown nope");
        assert_eq!(misuse("debug nope"), "unknown nope");
    }

    #[test]
    fn help() {
        for line in ["", "-h", "debug", "help du", "du --help", "build -h"] {
            let request = parse(&ROOT, line.split_whitespace().map(str::to_owned));
            assert!(matches!(request, Ok(Request::Help(_))), "{line}: {request:?}");
        }
        assert!(matches!(parse(&ROOT, ["-v".to_owned()]), Ok(Request::Version)));
    }
}
