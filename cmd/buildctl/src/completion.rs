//! `completion`: scripts by which shells complete command lines, made from the table of commands.

use std::fmt::Write as _;

use crate::flags::{Command, Flag, HELP, Kind, VERSION};

/// The shells that there is a script for.
const SHELLS: &str = "[bash fish zsh]";

/// A shell that there is no script for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShellError {
    #[error("no shell provided for completion command. available shells are {SHELLS}")]
    None,
    #[error("unknown shell {0}, available shells are {SHELLS}")]
    Unknown(String),
}

/// The script of a shell.
pub fn script(root: &'static Command, shell: Option<&str>) -> Result<String, ShellError> {
    match shell {
        Some("bash") => Ok(bash(root)),
        Some("fish") => Ok(fish(root)),
        Some("zsh") => Ok(zsh(root)),
        Some(other) => Err(ShellError::Unknown(other.to_owned())),
        None => Err(ShellError::None),
    }
}

/// What a flag's value may be.
enum Hint {
    File,
    Directory,
    /// One of these; more may follow those that end with a comma or `=`.
    Choice(&'static [&'static str]),
    Anything,
}

fn hint(command: &str, flag: &str) -> Hint {
    match (command, flag) {
        (_, "tlscacert" | "tlscert" | "tlskey" | "metadata-file" | "source-policy-file" | "ref-file") => Hint::File,
        ("build", "trace") => Hint::File,
        (_, "tlsdir" | "dir") => Hint::Directory,
        (_, "log-format") => Hint::Choice(&["json", "text"]),
        (_, "progress") => Hint::Choice(&["auto", "plain", "quiet", "rawjson", "tty"]),
        (_, "frontend") => Hint::Choice(&["dockerfile.v0", "gateway.v0"]),
        (_, "allow") => Hint::Choice(&["device", "network.host", "security.insecure"]),
        (_, "output") => {
            Hint::Choice(&["type=docker,", "type=image,", "type=local,dest=", "type=oci,", "type=tar,dest="])
        }
        (_, "export-cache") => Hint::Choice(&["type=inline", "type=local,dest=", "type=registry,ref="]),
        (_, "import-cache") => Hint::Choice(&["type=local,src=", "type=registry,ref="]),
        (_, "local") => Hint::Choice(&["context=", "dockerfile="]),
        (_, "secret") => Hint::Choice(&["id="]),
        (_, "ssh") => Hint::Choice(&["default"]),
        (_, "debug-json-cache-metrics") => Hint::Choice(&["stderr", "stdout"]),
        (_, "format") => Hint::Choice(&["json"]),
        _ => Hint::Anything,
    }
}

/// A command with the names that lead to it.
struct Place {
    command: &'static Command,
    path: Vec<&'static str>,
}

impl Place {
    /// All commands that are shown, from the root on.
    fn all(root: &'static Command) -> Vec<Self> {
        fn descend(command: &'static Command, path: &[&'static str], places: &mut Vec<Place>) {
            let path: Vec<&'static str> = path.iter().copied().chain([command.name]).collect();
            places.push(Place { command, path: path.clone() });
            for command in shown(command) {
                descend(command, &path, places);
            }
        }
        let mut places = Vec::new();
        descend(root, &[], &mut places);
        places
    }

    fn flags(&self) -> Vec<Flag> {
        let version = (self.path.len() == 1).then_some(VERSION);
        self.command.flags.iter().copied().chain([HELP]).chain(version).collect()
    }
}

fn shown(command: &'static Command) -> impl Iterator<Item = &'static Command> {
    command.commands.iter().filter(|command| !command.hidden)
}

/// `--output`, `-o`
fn spellings(flag: &Flag) -> Vec<String> {
    let short = flag.alias.map(|alias| format!("-{alias}"));
    [format!("--{}", flag.name)].into_iter().chain(short).collect()
}

fn bash(root: &'static Command) -> String {
    let places = Place::all(root);
    let (mut steps, mut values, mut offers) = (String::new(), String::new(), String::new());
    let mut with_value: Vec<String> = Vec::new();
    // Writing to a string does not fail.
    for place in &places {
        let path = place.path.join(" ");
        for command in shown(place.command) {
            for name in [Some(command.name), command.alias].into_iter().flatten() {
                let _ = writeln!(steps, "            \"{path} {name}\") path=\"{path} {}\" ;;", command.name);
            }
        }
        let flags = place.flags();
        for flag in flags.iter().filter(|flag| flag.kind != Kind::Bool) {
            let names = spellings(flag);
            let patterns: Vec<String> = names.iter().map(|name| format!("\"{path} {name}\"")).collect();
            let patterns = patterns.join(" | ");
            let _ = match hint(place.command.name, flag.name) {
                Hint::Choice(words) => writeln!(values, "        {patterns}) words=\"{}\" ;;", words.join(" ")),
                Hint::Directory => writeln!(values, "        {patterns}) action=directory ;;"),
                Hint::File | Hint::Anything => writeln!(values, "        {patterns}) action=file ;;"),
            };
            with_value.extend(names.into_iter().filter(|name| !with_value.contains(name)).collect::<Vec<_>>());
        }
        let names: Vec<String> = flags.iter().flat_map(spellings).collect();
        let commands: Vec<&str> = shown(place.command).map(|command| command.name).collect();
        let _ = writeln!(
            offers,
            "        \"{path}\") flags=\"{}\" commands=\"{}\" ;;",
            names.join(" "),
            commands.join(" ")
        );
    }
    format!(
        r#"# bash completion for {name}, made by `{name} completion bash`.

_{name}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    local path={name} flag= words= action= flags= commands= word i
    # --flag=value comes as three words.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        case $word in
        {with_value})
            [[ ${{COMP_WORDS[i + 1]}} == = ]] && ((i++))
            ((i++))
            ;;
        -* | =) ;;
        *)
            case "$path $word" in
{steps}            esac
            ;;
        esac
    done
    # A command's own flags come before those of the program.
    for flag in "$path $prev" "{name} $prev"; do
        case $flag in
{values}        *) continue ;;
        esac
        break
    done
    COMPREPLY=()
    if [[ -n $words ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        [[ ${{COMPREPLY[0]}} == *[,=] ]] && compopt -o nospace
        return
    fi
    case $action in
    file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
    directory) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
    esac
    case $path in
{offers}    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    elif [[ -n $commands ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
    fi
}}

complete -o bashdefault -o default -F _{name} {name}
"#,
        name = root.name,
        with_value = with_value.join(" | "),
    )
}

fn zsh(root: &'static Command) -> String {
    let mut text =
        format!("#compdef {name}\n# zsh completion for {name}, made by `{name} completion zsh`.\n", name = root.name);
    for place in Place::all(root) {
        let function = format!("_{}", place.path.join("_").replace('-', "_"));
        let commands: Vec<&Command> = shown(place.command).collect();
        let _ = writeln!(text, "\n{function}() {{");
        if !commands.is_empty() {
            text += "    local context state line\n    typeset -A opt_args\n";
        }
        let _ = write!(text, "    _arguments{}", if commands.is_empty() { "" } else { " -C" });
        for flag in place.flags() {
            for name in spellings(&flag) {
                let _ = write!(text, " \\\n        {}", zsh_flag(place.command.name, &flag, &name));
            }
        }
        if commands.is_empty() {
            let _ = write!(text, " \\\n        '*:argument:_files'");
        } else {
            let _ = write!(text, " \\\n        '1: :->command' \\\n        '*:: :->arguments'");
            text += "\n    case $state in\n    command)\n        local -a commands=(\n";
            for command in &commands {
                let words = format!("{}:{}", command.name, command.usage.replace(':', "\\:"));
                let _ = writeln!(text, "            {}", quote(&words));
            }
            text += "        )\n        _describe command commands\n        ;;\n    arguments)\n        case $words[1] in\n";
            for command in &commands {
                let names: Vec<&str> = [Some(command.name), command.alias].into_iter().flatten().collect();
                let _ =
                    writeln!(text, "        {}) {function}_{} ;;", names.join(" | "), command.name.replace('-', "_"));
            }
            text += "        esac\n        ;;\n    esac";
        }
        text += "\n}\n";
    }
    let _ = write!(
        text,
        "\nif [[ $funcstack[1] == _{name} ]]; then\n    _{name} \"$@\"\nelse\n    compdef _{name} {name}\nfi\n",
        name = root.name
    );
    text
}

/// `'*--output=[usage]:value:(words)'`
fn zsh_flag(command: &str, flag: &Flag, name: &str) -> String {
    let escaped: String = flag
        .usage
        .chars()
        .flat_map(|c| {
            let escape = matches!(c, '[' | ']' | ':' | '\\');
            escape.then_some('\\').into_iter().chain([c])
        })
        .collect();
    let many = if flag.kind == Kind::Texts { "*" } else { "" };
    if flag.kind == Kind::Bool {
        return quote(&format!("{name}[{escaped}]"));
    }
    let action = match hint(command, flag.name) {
        Hint::File => "_files".to_owned(),
        Hint::Directory => "_files -/".to_owned(),
        Hint::Choice(words) => format!("({})", words.join(" ")),
        Hint::Anything => " ".to_owned(),
    };
    // The value of a short flag is the next word.
    let equals = if name.starts_with("--") { "=" } else { "" };
    quote(&format!("{many}{name}{equals}[{escaped}]:value:{action}"))
}

/// A word of the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn fish(root: &'static Command) -> String {
    let name = root.name;
    let mut text =
        format!("# fish completion for {name}, made by `{name} completion fish`.\n\ncomplete -c {name} -f\n");
    for place in Place::all(root) {
        let names =
            |command: &Command| [Some(command.name), command.alias].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let mut seen: Vec<String> = Vec::new();
        let mut command = root;
        for step in &place.path[1..] {
            if let Some(next) = command.commands.iter().find(|command| command.name == *step) {
                seen.push(format!("__fish_seen_subcommand_from {}", names(next)));
                command = next;
            }
        }
        let children: Vec<String> = shown(place.command).map(names).collect();
        let mut here = seen.clone();
        if !children.is_empty() {
            here.push(format!("not __fish_seen_subcommand_from {}", children.join(" ")));
        }
        let here = here.join("; and ");
        for command in shown(place.command) {
            let _ = writeln!(
                text,
                "complete -c {name} -n {} -a {} -d {}",
                fish_quote(&here),
                command.name,
                fish_quote(command.usage)
            );
        }
        // The program's flags may stand behind commands, too.
        let condition =
            if place.path.len() == 1 { String::new() } else { format!(" -n {}", fish_quote(&seen.join("; and "))) };
        for flag in place.flags() {
            let _ = write!(text, "complete -c {name}{condition} -l {}", flag.name);
            if let Some(alias) = flag.alias {
                let _ = write!(text, " -s {alias}");
            }
            if flag.kind != Kind::Bool {
                let _ = match hint(place.command.name, flag.name) {
                    Hint::File | Hint::Anything => write!(text, " -r -F"),
                    Hint::Directory => write!(text, " -x -a '(__fish_complete_directories)'"),
                    Hint::Choice(words) => write!(text, " -x -a {}", fish_quote(&words.join(" "))),
                };
            }
            let _ = writeln!(text, " -d {}", fish_quote(flag.usage));
        }
    }
    text
}

fn fish_quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ROOT;

    /// What bash offers for a command line, the last word of which is being written.
    fn offered(line: &[&str]) -> Vec<String> {
        let script = script(&ROOT, Some("bash")).unwrap();
        let words: Vec<String> = line.iter().map(|word| quote(word)).collect();
        let program = format!(
            "compopt() {{ :; }}\n{script}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_buildctl\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            words.join(" "),
            line.len() - 1
        );
        let output = std::process::Command::new("bash").args(["-c", &program]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn bash_offers_what_there_is() {
        assert_eq!(offered(&["buildctl", "pr"]), ["prune", "prune-histories"]);
        assert_eq!(offered(&["buildctl", "--addr", "du", "bu"]), ["build"]);
        assert_eq!(offered(&["buildctl", "--addr", "=", "du", "d"]), ["du", "debug"]);
        assert_eq!(offered(&["buildctl", "debug", "lo"]), ["logs"]);
        assert_eq!(offered(&["buildctl", "b", "--met"]), ["--metadata-file"]);
        assert_eq!(offered(&["buildctl", "build", "--progress", "t"]), ["tty"]);
        assert_eq!(offered(&["buildctl", "build", "--progress", "=", "q"]), ["quiet"]);
        assert_eq!(offered(&["buildctl", "build", "--progress", "="]).len(), 5);
        assert_eq!(offered(&["buildctl", "du", "--log-format", "j"]), ["json"]);
        assert_eq!(offered(&["buildctl", "debug", "ctl", "--"]), ["--pin", "--unpin", "--delete", "--help"]);
        assert_eq!(offered(&["buildctl", "--tlsdir", "/et"]), ["/etc"]);
    }

    #[test]
    fn every_shell_knows_every_flag() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(&ROOT, Some(shell)).unwrap();
            for place in Place::all(&ROOT) {
                assert!(script.contains(place.command.name), "{shell}: {}", place.command.name);
                for flag in place.flags() {
                    let known = if shell == "fish" { format!(" -l {}", flag.name) } else { format!("--{}", flag.name) };
                    assert!(script.contains(&known), "{shell}: {known}");
                }
            }
            assert!(!script.contains("dial-stdio"), "{shell} offers what nobody calls by hand");
        }
    }

    #[test]
    fn quoting() {
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(fish_quote(r"it's \"), r"'it\'s \\'");
        let format = ROOT.commands[0].flags.iter().find(|flag| flag.name == "format").unwrap();
        assert_eq!(
            zsh_flag("du", format, "--format"),
            r"'--format=[Format the output using the given Go template, e.g, '\''{{json .}}'\'']:value:(json)'"
        );
    }

    #[test]
    fn other_shells_are_refused_by_name() {
        assert_eq!(
            script(&ROOT, Some("tcsh")).unwrap_err().to_string(),
            "unknown shell tcsh, available shells are [bash fish zsh]"
        );
        assert_eq!(script(&ROOT, None), Err(ShellError::None));
    }
}
