//! One node → one instruction; a file of them → stages.

use super::flags::{Flags, Takes};
use super::{
    Argument, CommandLine, CopyFiles, InlineFile, Instruction, Kind, Mount, Pair, RunProcess, Stage, Stages, health,
};
use crate::error::{DockerfileError, Result};
use crate::gofmt::{csv, parse_bool, quote};
use crate::lint::{Linter, Rule};
use crate::parser::{Node, parse_heredoc, trim_leading_tabs};
use crate::suggest;

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(DockerfileError::new(message))
}

/// A node, understood.
enum Understood {
    Stage(Stage),
    Kind(Kind),
}

/// Makes instructions and stages of a file.
pub fn parse(nodes: &[Node], linter: &Linter) -> Result<Stages> {
    let mut file = Stages::default();
    for node in nodes {
        let understood = understand(node, linter)
            .map_err(|error| error.at(&node.location()))
            .map_err(|error| error.context(format!("dockerfile parse error on line {}", node.start)))?;
        match (understood, file.stages.last_mut()) {
            (Understood::Stage(stage), _) => file.stages.push(stage),
            (Understood::Kind(kind), Some(stage)) => stage.instructions.push(instruction(node, kind)),
            (Understood::Kind(Kind::Arg(args)), None) => file.global_args.push((args, node.location())),
            (Understood::Kind(_), None) => {
                return Err(DockerfileError::new("no build stage in current context").at(&node.location()));
            }
        }
    }
    Ok(file)
}

/// Makes an instruction of an ONBUILD trigger's only node.
pub(crate) fn parse_trigger(node: &Node) -> Result<Instruction> {
    match understand(node, &Linter::off()).map_err(|error| error.at(&node.location()))? {
        Understood::Kind(kind) => Ok(instruction(node, kind)),
        Understood::Stage(_) => {
            Err(DockerfileError::new("*instructions.Stage is not a command type").at(&node.location()))
        }
    }
}

fn instruction(node: &Node, kind: Kind) -> Instruction {
    Instruction {
        kind,
        name: node.name.clone(),
        code: node.original.trim().to_owned(),
        location: node.location(),
        comments: node.comments.clone(),
    }
}

fn understand(node: &Node, linter: &Linter) -> Result<Understood> {
    let linter = linter.with_comments(&node.comments);
    let no_flags = || Flags::parse(&node.flags, &[]);
    let kind = match node.name.to_lowercase().as_str() {
        "from" => return from(node, &linter).map(Understood::Stage),
        "env" => {
            no_flags()?;
            Kind::Env(pairs(node, "ENV")?)
        }
        "label" => {
            no_flags()?;
            Kind::Label(pairs(node, "LABEL")?)
        }
        "maintainer" => {
            let text = "Maintainer instruction is deprecated in favor of using label";
            linter.report(Rule::MaintainerDeprecated, &node.location(), text);
            Kind::Maintainer(one_argument(node, "MAINTAINER")?)
        }
        "add" => Kind::Copy(Box::new(add(node)?)),
        "copy" => Kind::Copy(Box::new(copy(node)?)),
        "onbuild" => Kind::Onbuild(onbuild(node)?),
        "workdir" => Kind::Workdir(one_argument(node, "WORKDIR")?),
        "user" => Kind::User(one_argument(node, "USER")?),
        "stopsignal" => match node.args.as_slice() {
            [signal] => Kind::StopSignal(signal.clone()),
            _ => return refuse("STOPSIGNAL requires exactly one argument"),
        },
        "run" => Kind::Run(Box::new(run(node)?)),
        "cmd" => {
            no_flags()?;
            Kind::Cmd(command_line(node))
        }
        "entrypoint" => {
            no_flags()?;
            Kind::Entrypoint(command_line(node))
        }
        "healthcheck" => Kind::Healthcheck(Box::new(health::parse(node)?)),
        "expose" => {
            at_least_one(node, "EXPOSE")?;
            no_flags()?;
            let mut ports = node.args.clone();
            ports.sort();
            Kind::Expose(ports)
        }
        "volume" => {
            at_least_one(node, "VOLUME")?;
            no_flags()?;
            let volumes: Vec<String> = node.args.iter().map(|volume| volume.trim().to_owned()).collect();
            if volumes.iter().any(String::is_empty) {
                return refuse("VOLUME specified can not be an empty string");
            }
            Kind::Volume(volumes)
        }
        "arg" => Kind::Arg(arguments(node, &linter)?),
        "shell" => {
            no_flags()?;
            let shell = json_args(&node.args, node.json);
            if shell.is_empty() {
                return refuse("SHELL requires at least one argument");
            }
            if !node.json {
                return refuse("SHELL requires the arguments to be in JSON form");
            }
            Kind::Shell(shell)
        }
        _ => {
            let hint = suggest::hint(&node.name, NAMES, false);
            return refuse(format!("unknown instruction: {}{hint}", node.name));
        }
    };
    Ok(Understood::Kind(kind))
}

fn at_least_one(node: &Node, name: &str) -> Result<()> {
    if node.args.is_empty() { refuse(format!("{name} requires at least one argument")) } else { Ok(()) }
}

fn one_argument(node: &Node, name: &str) -> Result<String> {
    let [argument] = node.args.as_slice() else {
        return refuse(format!("{name} requires exactly one argument"));
    };
    Flags::parse(&node.flags, &[])?;
    Ok(argument.clone())
}

/// Arguments of the JSON form as they are, others as one text.
pub(super) fn json_args(args: &[String], json: bool) -> Vec<String> {
    if args.is_empty() || json { args.to_vec() } else { vec![args.join(" ")] }
}

fn pairs(node: &Node, name: &str) -> Result<Vec<Pair>> {
    at_least_one(node, name)?;
    node.args
        .chunks(3)
        .map(|triple| match triple {
            [key, _, _] if key.is_empty() => refuse(format!("{name} names can not be blank")),
            [key, value, separator] => {
                Ok(Pair { key: key.clone(), value: value.clone(), legacy: separator.is_empty() })
            }
            _ => refuse(format!("Bad input to {name}, too many arguments")),
        })
        .collect()
}

fn from(node: &Node, linter: &Linter) -> Result<Stage> {
    let location = node.location();
    if let [_, _, name] = node.args.as_slice()
        && *name != name.to_lowercase()
    {
        linter.report(Rule::StageNameCasing, &location, format!("Stage name '{name}' should be lowercase"));
    }
    if let [_, keyword, _, ..] = node.args.as_slice() {
        let lower = node.name == node.name.to_lowercase();
        let upper = node.name == node.name.to_uppercase();
        let same = if lower { *keyword == keyword.to_lowercase() } else { *keyword == keyword.to_uppercase() };
        if (lower || upper) && !same {
            let text = format!("'{keyword}' and '{}' keywords' casing do not match", node.name);
            linter.report(Rule::FromAsCasing, &location, text);
        }
    }
    let name = match node.args.as_slice() {
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
            if !lower.starts_with(|c: char| c.is_ascii_lowercase()) || !lower.bytes().all(legal) {
                return refuse(format!(
                    "invalid name for build stage: {}, name can't start with a number or contain symbols",
                    quote(name)
                ));
            }
            lower
        }
        [_] => String::new(),
        _ => return refuse("FROM requires either one or three arguments"),
    };
    let flags = Flags::parse(&node.flags, &[("platform", Takes::Text)])?;
    if !name.is_empty() {
        check_description("FROM", &[&name], node, linter);
    }
    Ok(Stage {
        name,
        base: node.args.first().cloned().unwrap_or_default(),
        platform: flags.text("platform"),
        instructions: Vec::new(),
        keyword: node.name.clone(),
        code: node.original.trim().to_owned(),
        location,
        comments: node.comments.clone(),
    })
}

/// A comment right before a definition should describe it.
fn check_description(instruction: &str, names: &[&str], node: &Node, linter: &Linter) {
    let (Some(comment), Some(first)) = (node.comments.last(), names.first()) else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let text = format!("Comment for {instruction} should follow the format: `# {example} <description>`");
    linter.report(Rule::InvalidDefinitionDescription, &node.location(), text);
}

fn arguments(node: &Node, linter: &Linter) -> Result<Vec<Argument>> {
    at_least_one(node, "ARG")?;
    let argument = |key: &str, value| Argument {
        key: key.to_owned(),
        value,
        description: super::description(&node.comments, key),
    };
    let args: Vec<Argument> = node
        .args
        .iter()
        .map(|text| match text.split_once('=') {
            Some(("", _)) => refuse("ARG names can not be blank"),
            Some((key, value)) => Ok(argument(key, Some(value.to_owned()))),
            None => Ok(argument(text, None)),
        })
        .collect::<Result<_>>()?;
    let names: Vec<&str> = args.iter().map(|arg| arg.key.as_str()).collect();
    check_description("ARG", &names, node, linter);
    Ok(args)
}

fn onbuild(node: &Node) -> Result<String> {
    at_least_one(node, "ONBUILD")?;
    Flags::parse(&node.flags, &[])?;
    match node.args[0].trim().to_uppercase().as_str() {
        "ONBUILD" => return refuse("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        trigger @ ("MAINTAINER" | "FROM") => {
            return refuse(format!("{trigger} isn't allowed as an ONBUILD trigger"));
        }
        _ => {}
    }
    let line = node.original.trim_start();
    let mut trigger = line.get("ONBUILD".len()..).unwrap_or_default().trim_start().to_owned();
    for heredoc in &node.heredocs {
        trigger.push('\n');
        trigger.push_str(&heredoc.content);
        trigger.push_str(&heredoc.name);
    }
    Ok(trigger)
}

fn command_line(node: &Node) -> CommandLine {
    let files = node.heredocs.iter().map(|heredoc| InlineFile {
        name: heredoc.name.clone(),
        data: heredoc.content.clone(),
        expand: heredoc.expand,
        chomp: heredoc.chomp,
    });
    CommandLine { args: json_args(&node.args, node.json), files: files.collect(), shell: !node.json }
}

fn run(node: &Node) -> Result<RunProcess> {
    let known =
        [("mount", Takes::Texts), ("network", Takes::Text), ("security", Takes::Text), ("device", Takes::Texts)];
    let flags = Flags::parse(&node.flags, &known)?;
    let devices = flags.texts("device").iter().map(|text| device(text)).collect::<Result<Vec<_>>>()?;
    let mount_flags = flags.texts("mount");
    let mounts = mount_flags.iter().map(|flag| Mount::parse(flag, None)).collect::<Result<Vec<_>>>()?;
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let network = match flags.given("network") {
        None => "default".to_owned(),
        Some(_) => flags.text("network"),
    };
    if !matches!(network.as_str(), "default" | "none" | "host") {
        return refuse(format!("invalid network mode {}", quote(&network)));
    }
    let security = match flags.given("security") {
        None => or(String::new(), "sandbox"),
        Some(_) => flags.text("security"),
    };
    if !matches!(security.as_str(), "sandbox" | "insecure") {
        return refuse(format!("security {} is not valid", quote(&security)));
    }
    Ok(RunProcess { line: command_line(node), mount_flags, mounts, network, security, devices })
}

/// `name[,required[=true]]`.
fn device(text: &str) -> Result<(String, bool)> {
    let fields = csv(text).map_err(|error| DockerfileError::new(format!("failed to parse csv devices: {error}")))?;
    let (mut name, mut required) = (String::new(), false);
    for field in &fields {
        match field.split_once('=').map(|(key, value)| (key.to_lowercase(), value)) {
            None if field.eq_ignore_ascii_case("required") => required = true,
            None if name.is_empty() => name.clone_from(field),
            None => return refuse(format!("invalid field '{field}' must be a key=value pair")),
            Some((key, value)) if key == "name" => {
                if !name.is_empty() {
                    return refuse(format!("device name already set to {name}"));
                }
                value.clone_into(&mut name);
            }
            Some((key, value)) if key == "required" => {
                required = parse_bool(value)
                    .ok_or_else(|| DockerfileError::new(format!("invalid value for {key}: {value}")))?;
            }
            Some(_) if name.is_empty() => name.clone_from(field),
            Some((key, _)) => {
                let hint = suggest::hint(&key, ["name", "required"], true);
                return refuse(format!("unexpected key '{key}' in '{field}'{hint}"));
            }
        }
    }
    Ok((name, required))
}

fn add(node: &Node) -> Result<CopyFiles> {
    two_arguments(node, "ADD")?;
    let known = [
        ("chown", Takes::Text),
        ("chmod", Takes::Text),
        ("link", Takes::Flag),
        ("keep-git-dir", Takes::Flag),
        ("checksum", Takes::Text),
        ("unpack", Takes::Flag),
        ("exclude", Takes::Texts),
    ];
    let flags = Flags::parse(&node.flags, &known)?;
    Ok(CopyFiles {
        add: true,
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.given("link") == Some(true),
        keep_git_dir: flags.given("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.given("unpack"),
        exclude: flags.texts("exclude"),
        ..sources(node, "ADD")?
    })
}

fn copy(node: &Node) -> Result<CopyFiles> {
    two_arguments(node, "COPY")?;
    let known = [
        ("chown", Takes::Text),
        ("from", Takes::Text),
        ("chmod", Takes::Text),
        ("link", Takes::Flag),
        ("exclude", Takes::Texts),
        ("parents", Takes::Flag),
    ];
    let flags = Flags::parse(&node.flags, &known)?;
    Ok(CopyFiles {
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.given("link") == Some(true),
        parents: flags.given("parents") == Some(true),
        exclude: flags.texts("exclude"),
        ..sources(node, "COPY")?
    })
}

fn two_arguments(node: &Node, name: &str) -> Result<()> {
    if node.args.len() < 2 {
        return refuse(format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        ));
    }
    Ok(())
}

fn sources(node: &Node, name: &str) -> Result<CopyFiles> {
    let heredoc_of = |text: &str| parse_heredoc(text).ok().flatten();
    let mut copy = CopyFiles::default();
    let Some((dest, sources)) = node.args.split_last() else { return Ok(copy) };
    if heredoc_of(dest).is_some() {
        return refuse(format!("{name} cannot accept a heredoc as a destination"));
    }
    copy.dest.clone_from(dest);
    for source in sources {
        let Some(heredoc) = heredoc_of(source) else {
            copy.sources.push(source.clone());
            continue;
        };
        // Of several with one name, the last one counts.
        let content = node.heredocs.iter().rfind(|known| known.name == heredoc.name);
        let mut data = content.map(|known| known.content.clone()).unwrap_or_default();
        if heredoc.chomp {
            data = trim_leading_tabs(&data);
        }
        let (name, expand, chomp) = (heredoc.name, heredoc.expand, heredoc.chomp);
        copy.contents.push(InlineFile { name, data, expand, chomp });
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::LintConfig;

    fn stages(text: &str) -> Result<Stages> {
        parse(&crate::parser::parse(text.as_bytes())?.nodes, &Linter::off())
    }

    #[test]
    fn makes_stages() {
        let file = stages("ARG A=1\nFROM x AS Y\nRUN a\nFROM y\nCOPY --from=y a b /c\n").unwrap();
        assert_eq!(file.global_args.len(), 1);
        assert_eq!((file.stages[0].name.as_str(), file.stages[1].base.as_str()), ("y", "y"));
        let Kind::Copy(copy) = &file.stages[1].instructions[0].kind else { panic!("no copy") };
        assert_eq!((copy.sources.len(), copy.dest.as_str(), copy.from.as_str()), (2, "/c", "y"));
    }

    #[test]
    fn errors_name_their_line() {
        let error = stages("FROM x\n\nWAT\n").unwrap_err();
        assert_eq!(error.message(), "dockerfile parse error on line 3: unknown instruction: WAT");
        assert_eq!(error.locations()[0][0].start.line, 3);
        for (text, want) in [
            ("RUN --network=wat x", "invalid network mode \"wat\""),
            ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("SHELL sh", "SHELL requires the arguments to be in JSON form"),
            ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
            ("COPY a <<x\nx", "COPY cannot accept a heredoc as a destination"),
        ] {
            let error = stages(&format!("FROM x\n{text}\n")).unwrap_err();
            assert_eq!(error.message(), format!("dockerfile parse error on line 2: {want}"));
        }
        assert_eq!(stages("RUN x").unwrap_err().message(), "no build stage in current context");
    }

    #[test]
    fn lint_looks_at_from() {
        let linter = Linter::new(LintConfig::default());
        let nodes = crate::parser::parse(b"FROM x as Y\nFROM y\n# check=skip=all\nMAINTAINER z\n").unwrap().nodes;
        parse(&nodes, &linter).unwrap();
        let rules: Vec<Rule> = linter.warnings().iter().map(|warning| warning.rule).collect();
        assert_eq!(rules, [Rule::StageNameCasing, Rule::FromAsCasing]);
    }
}
