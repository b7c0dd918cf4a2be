//! `man`: manual pages, made from the table of commands.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::flags::{Command, Flag, HELP, Kind, VERSION};

/// A page.
pub struct Page {
    /// `buildctl-debug-logs.1`
    pub file: String,
    /// For `man -l`.
    pub text: String,
}

/// The page of the command that these names lead to.
pub fn page(root: &'static Command, names: &[String]) -> Result<Page> {
    let mut path = vec![root];
    for name in names {
        let last = path[path.len() - 1];
        match last.commands.iter().find(|command| command.name == name || command.alias == Some(name)) {
            Some(command) => path.push(command),
            None => bail!("no manual entry for '{name}'"),
        }
    }
    Ok(render(&path))
}

/// Writes the pages of all commands that are shown into a directory.
pub fn write_all(root: &'static Command, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for page in all(root) {
        let path = directory.join(page.file);
        std::fs::write(&path, page.text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn all(root: &'static Command) -> Vec<Page> {
    fn descend(path: &[&'static Command], pages: &mut Vec<Page>) {
        pages.push(render(path));
        for command in path[path.len() - 1].commands.iter().filter(|command| !command.hidden) {
            let path: Vec<&'static Command> = path.iter().copied().chain([command]).collect();
            descend(&path, pages);
        }
    }
    let mut pages = Vec::new();
    descend(&[root], &mut pages);
    pages
}

fn names(path: &[&'static Command], separator: &str) -> String {
    path.iter().map(|command| command.name).collect::<Vec<_>>().join(separator)
}

fn render(path: &[&'static Command]) -> Page {
    let command = path[path.len() - 1];
    let (title, called) = (names(path, "-"), names(path, " "));
    let shown: Vec<&'static Command> = command.commands.iter().filter(|command| !command.hidden).collect();
    let mut text =
        format!(".TH {} 1 \"\" \"castor {}\" \"castor\"\n", escape(&title.to_uppercase()), env!("CARGO_PKG_VERSION"));
    // Writing to a string does not fail.
    let _ = write!(text, ".SH NAME\n{} \\- {}\n", escape(&title), sentence(command.usage));
    let _ = write!(text, ".SH SYNOPSIS\n\\fB{}\\fR", escape(&called));
    if path.len() == 1 {
        text += " [\\fIglobal options\\fR]";
    }
    text += if shown.is_empty() { " [\\fIoptions\\fR]" } else { " \\fIcommand\\fR [\\fIcommand options\\fR]" };
    if !command.arguments.is_empty() {
        let _ = write!(text, " {}", escape(command.arguments));
    }
    text.push('\n');
    let example: Vec<&str> = command.usage_text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if !example.is_empty() {
        let _ = write!(text, ".SH EXAMPLE\n.nf\n{}\n.fi\n", escape(&example.join("\n")));
    }
    if !shown.is_empty() {
        text += ".SH COMMANDS\n";
        for command in &shown {
            let alias = command.alias.map_or(String::new(), |alias| format!(", \\fB{}\\fR", escape(alias)));
            let _ = write!(text, ".TP\n\\fB{}\\fR{alias}\n{}\n", escape(command.name), sentence(command.usage));
        }
    }
    text += if path.len() == 1 { ".SH GLOBAL OPTIONS\n" } else { ".SH OPTIONS\n" };
    let version = (path.len() == 1).then_some(VERSION);
    for flag in command.flags.iter().copied().chain([HELP]).chain(version) {
        text += &option(&flag);
    }
    if path.len() == 1 {
        text += ENVIRONMENT;
    }
    let mut related: Vec<String> = shown.iter().map(|child| format!("{title}-{}", child.name)).collect();
    if path.len() > 1 {
        related.insert(0, names(&path[..path.len() - 1], "-"));
    }
    if !related.is_empty() {
        let related: Vec<String> = related.iter().map(|name| format!("\\fB{}\\fR(1)", escape(name))).collect();
        let _ = write!(text, ".SH SEE ALSO\n{}\n", related.join(",\n"));
    }
    Page { file: format!("{title}.1"), text }
}

/// The variables that count, in the root's page.
const ENVIRONMENT: &str = ".SH ENVIRONMENT
.TP
\\fBBUILDKIT_HOST\\fR
The daemon's address, where \\fB\\-\\-addr\\fR is not given.
.TP
\\fBBUILDKIT_PROGRESS\\fR
What \\fB\\-\\-progress=auto\\fR is.
.TP
\\fBBUILDKIT_COLORS\\fR
Colours of the progress on a terminal: \\fBrun=green:warning=yellow:error=red:cancel=255,165,0\\fR.
.TP
\\fBNO_COLOR\\fR
Not empty: no colours.
.TP
\\fBBUILDKIT_TTY_LOG_LINES\\fR
How many lines are shown of what a running step prints; 6 if it is not set.
.TP
\\fBTTY_DISPLAY_RATE\\fR
Milliseconds between two drawings.
.TP
\\fBPROGRESS_NO_TRUNC\\fR
0: names of steps are cut in \\fB\\-\\-progress=plain\\fR.
.TP
\\fBDOCKER_CONFIG\\fR
Where Docker's \\fIconfig.json\\fR is, with the credentials for registries; \\fI~/.docker\\fR if it is not set.
.TP
\\fBDOCKER_AUTH_CONFIG\\fR
Credentials in the form of that file's \\fIauths\\fR, which come before it.
.TP
\\fBBUILDKIT_NO_CLIENT_TOKEN\\fR
1: the daemon gets passwords in place of tokens.
.TP
\\fBSSH_AUTH_SOCK\\fR
The agent that \\fB\\-\\-ssh default\\fR forwards.
.TP
\\fBSOURCE_DATE_EPOCH\\fR
Passed to the build as the argument of that name.
";

fn option(flag: &Flag) -> String {
    let kind = match flag.kind {
        Kind::Bool => "",
        Kind::Text | Kind::Texts => "string",
        Kind::Int => "int",
        Kind::Float => "float",
        Kind::Duration => "duration",
    };
    let value = if kind.is_empty() { String::new() } else { format!(" \\fI{kind}\\fR") };
    let alias = flag.alias.map_or(String::new(), |alias| format!(", \\fB\\-{alias}\\fR{value}"));
    let mut usage = sentence(flag.usage);
    if flag.kind == Kind::Texts {
        usage += " May be given several times.";
    }
    if !flag.default.is_empty() {
        let _ = write!(usage, " The default is \\fB{}\\fR.", escape(flag.default));
    }
    format!(".TP\n\\fB\\-\\-{}\\fR{value}{alias}\n{usage}\n", escape(flag.name))
}

/// A usage as a sentence of its own.
fn sentence(usage: &str) -> String {
    let usage = escape(usage.trim());
    if usage.ends_with('.') { usage } else { usage + "." }
}

/// Text that roff takes for nothing else.
fn escape(text: &str) -> String {
    let plain = text.replace('\\', "\\e").replace('-', "\\-");
    let lines: Vec<String> = plain
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ROOT;

    #[test]
    fn every_command_has_a_page() {
        let pages = all(&ROOT);
        let files: Vec<&str> = pages.iter().map(|page| page.file.as_str()).collect();
        for file in ["buildctl.1", "buildctl-build.1", "buildctl-debug.1", "buildctl-debug-dump-llb.1"] {
            assert!(files.contains(&file), "{files:?}");
        }
        assert!(!files.contains(&"buildctl-dial-stdio.1"));
        for page in &pages {
            assert!(page.text.starts_with(".TH BUILDCTL"), "{}", page.text);
            // Every line is text, or a request that is meant.
            for line in page.text.lines().filter(|line| line.starts_with(['.', '\''])) {
                let request = line.split(' ').next().unwrap_or_default();
                assert!([".TH", ".SH", ".TP", ".nf", ".fi"].contains(&request), "{}: {line}", page.file);
            }
        }
    }

    #[test]
    fn a_page() {
        let page = page(&ROOT, &["debug".into(), "logs".into()]).unwrap();
        assert_eq!(page.file, "buildctl-debug-logs.1");
        let (_, body) = page.text.split_once('\n').unwrap();
        assert_eq!(
            body,
            ".SH NAME\nbuildctl\\-debug\\-logs \\- display build logs.\n\
             .SH SYNOPSIS\n\\fBbuildctl debug logs\\fR [\\fIoptions\\fR]\n\
             .SH OPTIONS\n\
             .TP\n\\fB\\-\\-progress\\fR \\fIstring\\fR\nprogress output type. The default is \\fBauto\\fR.\n\
             .TP\n\\fB\\-\\-trace\\fR\nshow opentelemetry trace.\n\
             .TP\n\\fB\\-\\-help\\fR, \\fB\\-h\\fR\nshow help.\n\
             .SH SEE ALSO\n\\fBbuildctl\\-debug\\fR(1)\n"
        );
    }

    #[test]
    fn what_is_no_command_has_none() {
        assert_eq!(page(&ROOT, &["nope".into()]).err().unwrap().to_string(), "no manual entry for 'nope'");
    }

    #[test]
    fn roff_is_escaped() {
        assert_eq!(escape(".x\n'y\\z-"), "\\&.x\n\\&'y\\ez\\-");
    }
}
