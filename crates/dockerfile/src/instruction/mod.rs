//! Nodes → instructions: arguments counted, flags understood, stages made.

mod flags;
mod health;
mod mount;
mod parse;

use castor_llb::Range;
use castor_oci::HealthConfig;

use crate::error::Result;
pub use mount::{Mount, MountType, Sharing};
pub use parse::parse;
pub(crate) use parse::parse_trigger;

/// A name and its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub key: String,
    /// The value.
    pub value: String,
    /// Written as `name value`, the old form.
    pub legacy: bool,
}

/// An argument of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub key: String,
    /// Its default.
    pub value: Option<String>,
    /// What a comment right before it says about it.
    pub description: String,
}

/// What comments say about `name`: `# name what it is`.
pub(crate) fn description(comments: &[String], name: &str) -> String {
    let about = |comment: &String| {
        let rest = comment.strip_prefix(name)?.strip_prefix(' ')?;
        Some(rest.to_owned())
    };
    if name.is_empty() { String::new() } else { comments.iter().find_map(about).unwrap_or_default() }
}

/// A file written in the Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InlineFile {
    /// Its name.
    pub name: String,
    /// Its text.
    pub data: String,
    /// Variables in it are expanded.
    pub expand: bool,
    /// Tabs at the start of lines do not belong to it.
    pub chomp: bool,
}

/// A command line, of a shell or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Program and arguments, or one text for the shell.
    pub args: Vec<String>,
    /// Documents behind it.
    pub files: Vec<InlineFile>,
    /// Run it by the shell.
    pub shell: bool,
}

/// COPY or ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyFiles {
    /// This is ADD.
    pub add: bool,
    /// Sources.
    pub sources: Vec<String>,
    /// Sources written in the Dockerfile.
    pub contents: Vec<InlineFile>,
    /// Destination.
    pub dest: String,
    /// Stage, image or context to copy from; empty is the build context.
    pub from: String,
    /// Owner.
    pub chown: String,
    /// Mode.
    pub chmod: String,
    /// As a layer of its own, whatever is below.
    pub link: bool,
    /// Keep the sources' parent directories.
    pub parents: bool,
    /// What not to copy.
    pub exclude: Vec<String>,
    /// Keep `.git`.
    pub keep_git_dir: Option<bool>,
    /// What the source must be.
    pub checksum: String,
    /// Unpack archives.
    pub unpack: Option<bool>,
}

/// RUN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunProcess {
    /// What to run.
    pub line: CommandLine,
    /// Values of `--mount`, not expanded yet.
    pub mount_flags: Vec<String>,
    /// The mounts as far as they are known.
    pub mounts: Vec<Mount>,
    /// `default`, `none` or `host`.
    pub network: String,
    /// `sandbox` or `insecure`.
    pub security: String,
    /// CDI devices: name and whether required.
    pub devices: Vec<(String, bool)>,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // each is the instruction of its name
pub enum Kind {
    Env(Vec<Pair>),
    Label(Vec<Pair>),
    Maintainer(String),
    Copy(Box<CopyFiles>),
    Onbuild(String),
    Workdir(String),
    Run(Box<RunProcess>),
    Cmd(CommandLine),
    Entrypoint(CommandLine),
    Healthcheck(Box<HealthConfig>),
    Expose(Vec<String>),
    User(String),
    Volume(Vec<String>),
    StopSignal(String),
    Arg(Vec<Argument>),
    Shell(Vec<String>),
}

/// An instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// What it says.
    pub kind: Kind,
    /// Its name as written.
    pub name: String,
    /// Its text.
    pub code: String,
    /// Its lines.
    pub location: Vec<Range>,
    /// Comments right before it.
    pub comments: Vec<String>,
}

/// A stage: FROM and what follows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stage {
    /// Its name in lower case; empty if it has none.
    pub name: String,
    /// What it is built on, not expanded yet.
    pub base: String,
    /// Value of `--platform`, not expanded yet.
    pub platform: String,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// The word FROM as written.
    pub keyword: String,
    /// The text of FROM.
    pub code: String,
    /// The lines of FROM.
    pub location: Vec<Range>,
    /// Comments right before FROM.
    pub comments: Vec<String>,
}

/// A file as instructions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stages {
    /// The stages.
    pub stages: Vec<Stage>,
    /// ARGs before the first FROM: arguments and place.
    pub global_args: Vec<(Vec<Argument>, Vec<Range>)>,
}

impl Kind {
    /// Expands variables by `expand` in all that allows it. ARG is left to whoever knows whether its default counts.
    pub(crate) fn expand(&mut self, mut expand: impl FnMut(&str) -> Result<String>) -> Result<()> {
        match self {
            Self::Env(pairs) | Self::Label(pairs) => {
                for pair in pairs {
                    pair.key = expand(&pair.key)?;
                    pair.value = expand(&pair.value)?;
                }
            }
            Self::Copy(copy) => {
                copy.chown = expand(&copy.chown)?;
                copy.chmod = expand(&copy.chmod)?;
                if copy.add {
                    copy.checksum = expand(&copy.checksum)?;
                }
                for source in &mut copy.sources {
                    *source = expand(source)?;
                }
                copy.dest = expand(&copy.dest)?;
            }
            Self::Workdir(text) | Self::User(text) | Self::StopSignal(text) => *text = expand(text)?,
            Self::Volume(list) => {
                for volume in list {
                    *volume = expand(volume)?;
                }
            }
            Self::Run(run) => {
                run.mounts =
                    run.mount_flags.iter().map(|flag| Mount::parse(flag, Some(&mut expand))).collect::<Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Expands variables in files written in the Dockerfile, where quotes mean nothing.
    pub(crate) fn expand_raw(&mut self, mut expand: impl FnMut(&str) -> Result<String>) -> Result<()> {
        if let Self::Copy(copy) = self {
            for file in copy.contents.iter_mut().filter(|file| file.expand) {
                file.data = expand(&file.data)?;
            }
        }
        Ok(())
    }
}
