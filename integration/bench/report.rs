//! Samples, their medians, and the table of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::rows::Row;

/// Who was measured; the order of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// castor, lazy.
    Lazy,
    /// castor, eager, on the same image.
    Eager,
    /// castor with everything local, or a file system where nothing is lazy.
    Floor,
    /// The real daemon with its stargz snapshotter.
    RealLazy,
    /// The real daemon with overlayfs.
    RealEager,
}

impl Who {
    pub const ALL: [Self; 5] = [Self::Lazy, Self::Eager, Self::Floor, Self::RealLazy, Self::RealEager];

    pub fn name(self) -> &'static str {
        match self {
            Self::Lazy => "castor, lazy",
            Self::Eager => "castor, eager",
            Self::Floor => "floor",
            Self::RealLazy => "BuildKit, stargz",
            Self::RealEager => "BuildKit, overlayfs",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub who: Who,
    pub seconds: f64,
    /// What went through the relay: bytes and requests.
    pub traffic: Option<(u64, u64)>,
}

/// What a row must reach.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The lazy time, in seconds.
    Seconds(f64),
    /// The eager time, in seconds.
    EagerSeconds(f64),
    /// The lazy time over the floor's, in seconds.
    OverFloor(f64),
    /// The lazy time, as a multiple of the floor's.
    TimesFloor(f64),
    /// The lazy time, as a multiple of the eager one's, and in seconds.
    TimesEager(f64, Option<f64>),
}

#[derive(Debug, Clone)]
pub struct Line {
    pub name: &'static str,
    pub goal: Goal,
    pub samples: BTreeMap<Who, Vec<Sample>>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    pub lines: Vec<Line>,
    memory: BTreeMap<&'static str, u64>,
}

/// The middle of at least one value.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Line {
    pub fn seconds(&self, who: Who) -> Option<f64> {
        let samples = self.samples.get(&who)?;
        Some(median(samples.iter().map(|sample| sample.seconds).collect()))
    }

    fn traffic(&self, who: Who) -> Option<(u64, u64)> {
        let mut traffic: Vec<_> = self.samples.get(&who)?.iter().filter_map(|sample| sample.traffic).collect();
        traffic.sort_unstable();
        traffic.get(traffic.len() / 2).copied()
    }

    fn spread(&self, who: Who) -> Option<(f64, f64)> {
        let seconds = || self.samples.get(&who).into_iter().flatten().map(|sample| sample.seconds);
        Some((seconds().min_by(f64::total_cmp)?, seconds().max_by(f64::total_cmp)?))
    }

    /// The goal as text, what was reached, and whether that is enough.
    fn judged(&self) -> (String, String, bool) {
        let (lazy, eager, floor) = (self.seconds(Who::Lazy), self.seconds(Who::Eager), self.seconds(Who::Floor));
        let lazy = lazy.or(eager).unwrap_or(f64::NAN);
        let (eager, floor) = (eager.unwrap_or(f64::NAN), floor.unwrap_or(f64::NAN));
        match self.goal {
            Goal::Seconds(most) => (format!("≤ {most:.2} s"), format!("{lazy:.2} s"), lazy <= most),
            Goal::EagerSeconds(most) => (format!("≤ {most:.2} s"), format!("{eager:.2} s"), eager <= most),
            Goal::OverFloor(most) => {
                (format!("≤ floor + {most:.1} s"), format!("floor + {:.2} s", lazy - floor), lazy - floor <= most)
            }
            Goal::TimesFloor(most) => {
                (format!("≤ {most:.2} × floor"), format!("{:.2} ×", lazy / floor), lazy / floor <= most)
            }
            Goal::TimesEager(most, None) => {
                (format!("≤ {most:.2} × eager"), format!("{:.2} ×", lazy / eager), lazy / eager <= most)
            }
            Goal::TimesEager(most, Some(seconds)) => (
                format!("≤ {most:.2} × eager, ≤ {seconds:.1} s"),
                format!("{:.2} ×, {lazy:.2} s", lazy / eager),
                lazy / eager <= most && lazy <= seconds,
            ),
        }
    }
}

impl Report {
    pub fn add(&mut self, row: &Row, samples: Vec<Sample>) {
        let place = self.lines.iter().position(|line| line.name == row.name).unwrap_or_else(|| {
            self.lines.push(Line { name: row.name, goal: row.goal, samples: BTreeMap::new() });
            self.lines.len() - 1
        });
        for sample in samples {
            self.lines[place].samples.entry(sample.who).or_default().push(sample);
        }
    }

    /// Notes the most memory that daemons of ours took, in bytes, by what they did.
    pub fn memory(&mut self, most: BTreeMap<&'static str, u64>) {
        self.memory = most;
    }

    /// Columns that have a sample.
    pub fn columns(&self) -> Vec<Who> {
        Who::ALL.into_iter().filter(|who| self.lines.iter().any(|line| line.samples.contains_key(who))).collect()
    }

    /// A Markdown table: medians, least and most in small, and traffic.
    pub fn table(&self) -> String {
        let columns = self.columns();
        let mut text = String::from("| workload |");
        columns.iter().for_each(|who| _ = write!(text, " {} |", who.name()));
        text.push_str(" goal | reached |\n|---|");
        text.push_str(&"---|".repeat(columns.len() + 2));
        text.push('\n');
        for line in &self.lines {
            let _ = write!(text, "| {} |", line.name);
            for who in &columns {
                let Some(seconds) = line.seconds(*who) else {
                    text.push_str(" |");
                    continue;
                };
                let _ = write!(text, " {seconds:.2} s");
                if let Some((least, most)) = line.spread(*who) {
                    let _ = write!(text, " ({least:.2} to {most:.2})");
                }
                if let Some((bytes, requests)) = line.traffic(*who) {
                    let _ = write!(text, "; {:.1} MB, {requests} requests", mega(bytes));
                }
                text.push_str(" |");
            }
            let (goal, reached, enough) = line.judged();
            let _ = writeln!(text, " {goal} | {}{reached} |", if enough { "" } else { "**no**: " });
        }
        for (doing, most) in &self.memory {
            let _ = writeln!(text, "\nThe most memory that a daemon took (`VmHWM`), {doing}: {:.0} MB.", mega(*most));
        }
        text
    }

    /// The page of the documents.
    pub fn page(&self, setting: &str, table: &str) -> String {
        format!(
            "# Benchmarks\n\nWritten by `make bench`, all in one run on one machine. Medians; in brackets the least and the \
             most.\n\n{setting}\n\n{table}\n![The same as bars](benchmarks.svg)\n"
        )
    }
}

/// A row's samples on one line.
pub fn in_short(samples: &[Sample]) -> String {
    let texts: Vec<String> =
        samples.iter().map(|sample| format!("{} {:.2} s", sample.who.name(), sample.seconds)).collect();
    texts.join("; ")
}

#[allow(clippy::cast_precision_loss)]
pub fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
