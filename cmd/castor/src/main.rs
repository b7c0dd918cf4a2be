//! `castor`: what `buildctl` has no words for. It reads a daemon's debug address.

mod address;
mod layer;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Looks into a castor daemon.
#[derive(Debug, Parser)]
#[command(name = "castor", version, about, max_term_width = 100)]
struct Flags {
    #[command(flatten)]
    daemon: DaemonFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct DaemonFlags {
    /// The daemon's debug address, as given to `buildkitd --debugaddr`: HOST:PORT, tcp://HOST:PORT or unix://PATH
    #[arg(long, global = true, env = "BUILDKITD_DEBUGADDR", value_name = "ADDRESS")]
    debugaddr: Option<String>,
    /// Seconds to wait for the daemon's answer
    #[arg(long, global = true, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Image layers: lazy or eager and why, what was fetched of them, who uses them
    #[command(subcommand)]
    Layer(LayerCommand),
}

#[derive(Debug, Subcommand)]
enum LayerCommand {
    /// List the layers that are here
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Show all that is known of layers
    Inspect(InspectFlags),
}

#[derive(Debug, Args)]
struct ListFlags {
    /// Form of the output; json is what the daemon answers, one array
    #[arg(long, value_enum, default_value_t = ListFormat::Table)]
    format: ListFormat,
    /// Only layers in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only layers that a build uses
    #[arg(long)]
    in_use: bool,
    /// Whole digests, image names and reasons
    #[arg(long)]
    no_trunc: bool,
    /// Only digests, one a line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectFlags {
    /// Digests of layers, or how they begin, with or without "sha256:"
    #[arg(required = true, value_name = "DIGEST")]
    digests: Vec<String>,
    /// Form of the output; json is what the daemon answers of these layers, one array
    #[arg(long, value_enum, default_value_t = InspectFormat::Text)]
    format: InspectFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InspectFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Mounted before all of it is here
    Lazy,
    /// Being fetched first
    Eager,
    /// All here
    Complete,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Eager => "eager",
            Self::Complete => "complete",
        }
    }
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let Command::Layer(command) = &flags.command;
    let address = flags.daemon.debugaddr.as_deref().filter(|address| !address.is_empty()).context(
        "no debug address: start buildkitd with --debugaddr, and give the same with --debugaddr or BUILDKITD_DEBUGADDR",
    )?;
    let address: address::Address = address.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
    let body = runtime.block_on(address.get("/debug/layers", Duration::from_secs(flags.daemon.timeout)))?;
    let layers = layer::parse(&body).with_context(|| format!("what answers at {address} is no castor daemon"))?;
    let text = match command {
        LayerCommand::Ls(flags) => {
            let state = flags.state.map(State::name);
            let layers = layer::select(layers, state, flags.in_use);
            match (flags.quiet, flags.format) {
                (true, _) => layer::digests(&layers),
                (false, ListFormat::Json) => layer::json(&layers)?,
                (false, ListFormat::Table) => layer::list(&layers, flags.no_trunc),
            }
        }
        LayerCommand::Inspect(flags) => {
            let layers = layer::find(layers, &flags.digests)?;
            match flags.format {
                InspectFormat::Json => layer::json(&layers)?,
                InspectFormat::Text => layer::inspect(&layers),
            }
        }
    };
    show(&text)
}

/// Writes to standard output; a reader that has seen enough is no error.
fn show(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("write to standard output"),
    }
}
