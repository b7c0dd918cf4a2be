//! `make bench`: what builds on a far image cost, lazily, eagerly, with everything here, and on the floor: the same tree
//! on a local file system. Times are the client's wall time, or the step's own where the row says so; medians.
//!
//! Arguments: `--runs N`; `--only WORD` for the rows with the word in their name; `--trace yes` keeps what the daemons
//! fetched and when, in files `bench-*.log`; `--write DIR` puts table and plot there; `--buildctl PATH --buildkitd PATH`
//! measures the real daemon in the same run.

mod floor;
mod plot;
mod report;
mod rows;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::report::Report;
use crate::world::World;

/// Runs of each row, unless the argument says otherwise; odd, so that one of them is in the middle.
const RUNS: usize = 5;

/// What the command line asks for.
#[derive(Debug, Default)]
struct Arguments {
    runs: Option<usize>,
    only: Option<String>,
    write: Option<PathBuf>,
    buildctl: Option<PathBuf>,
    buildkitd: Option<PathBuf>,
    trace: bool,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word}: a value is missing"))?;
            // What make passes on of an unset variable.
            if value.is_empty() {
                continue;
            }
            match word.as_str() {
                "--runs" => arguments.runs = Some(value.parse().with_context(|| format!("--runs {value}"))?),
                "--only" => arguments.only = Some(value),
                "--write" => arguments.write = Some(value.into()),
                "--buildctl" => arguments.buildctl = Some(value.into()),
                "--buildkitd" => arguments.buildkitd = Some(value.into()),
                "--trace" => arguments.trace = true,
                _ => bail!("unknown argument {word}"),
            }
        }
        if arguments.buildctl.is_some() != arguments.buildkitd.is_some() {
            bail!("--buildctl and --buildkitd go together");
        }
        Ok(arguments)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let runs = arguments.runs.unwrap_or(RUNS);
    let mut world = World::new(&arguments)?;
    println!("{}\n", world.describe(runs));
    let rows: Vec<_> = rows::ALL
        .iter()
        .filter(|row| arguments.only.as_ref().is_none_or(|word| row.name.contains(word.as_str())))
        .collect();
    let mut report = Report::default();
    for run in 1..=runs {
        // Row after row, so that a slow minute of the machine is not all in one of them.
        for row in &rows {
            let samples = (row.measure)(&mut world).with_context(|| format!("measure {}", row.name))?;
            eprintln!("run {run} of {runs}: {}: {}", row.name, report::in_short(&samples));
            report.add(row, samples);
        }
    }
    report.memory(world.memory()?);
    let table = report.table();
    println!("{table}");
    if let Some(directory) = &arguments.write {
        let path = directory.join("benchmarks.md");
        std::fs::write(&path, report.page(&world.describe(runs), &table))
            .with_context(|| format!("write {}", path.display()))?;
        let path = directory.join("benchmarks.svg");
        std::fs::write(&path, plot::bars(&report)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
