//! Lines of text, for logs and pipes.
//!
//! One step is current, and its lines follow each other; another one gets its turn when the current one is done, was
//! quiet while others had news for long, or has had its share.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use castor_progress::Timestamp;

use super::trace::{Trace, seconds_between};
use crate::size;
use crate::status::VertexStatus;

/// A step is current for at least about this long.
const ANTI_FLICKER: f64 = 5.0;

/// Nobody's news wait longer than this.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// A piece of work is shown again after this many seconds, ...
const MIN_SECONDS: f64 = 5.0;

/// ... or when this share of it was done meanwhile.
const MIN_SHARE: f64 = 0.05;

/// What decides whose turn it is.
#[derive(Clone, Copy)]
struct Waiting {
    seconds: f64,
    /// News per second.
    rate: f64,
    too_long: bool,
}

/// Prints the news of a build.
#[derive(Default)]
pub struct Printer {
    current: Option<usize>,
    /// Statuses as they were last shown.
    last: HashMap<String, (i64, Timestamp)>,
    not_first: bool,
    next_index: usize,
    /// Names longer than this are cut.
    name_limit: Option<usize>,
}

impl Printer {
    /// A printer; names are whole unless the environment's `PROGRESS_NO_TRUNC` is `0`.
    pub fn new() -> Self {
        let cut = std::env::var_os("PROGRESS_NO_TRUNC").is_some_and(|value| value == "0");
        Self { name_limit: cut.then_some(72), ..Self::default() }
    }

    /// Prints what is due.
    pub fn print(&mut self, trace: &mut Trace, out: &mut dyn Write) -> io::Result<()> {
        let current = self.current;
        let shown: Vec<usize> = trace.updates.iter().copied().filter(|&index| !trace.node(index).hidden).collect();
        let (mut completed, mut rest): (Vec<_>, Vec<_>) =
            shown.into_iter().partition(|&index| trace.node(index).is_completed());
        completed.sort_by_key(|&index| (trace.node(index).last_interval().and_then(|last| last.stop), index));
        rest.sort_unstable();

        let current_completed = current.filter(|current| completed.contains(current));
        if let Some(current) = current_completed {
            self.print_node(trace, current, out)?;
        }
        for &index in completed.iter().filter(|&&index| Some(index) != current) {
            self.print_node(trace, index, out)?;
        }

        let is_open = |trace: &Trace, index: usize| {
            let node = trace.node(index);
            node.is_started() && !node.is_completed() && !node.hidden
        };
        if rest.is_empty() {
            if current.is_some_and(|current| is_open(trace, current)) {
                return Ok(());
            }
            // Any step that is under way becomes the current one.
            let open = trace.nodes().map(|(index, _)| index).find(|&index| is_open(trace, index));
            return open.map_or(Ok(()), |open| self.print_node(trace, open, out));
        }
        if let Some(current) = current.filter(|current| rest.contains(current)) {
            self.print_node(trace, current, out)?;
        }
        match self.next(trace, current, current_completed.is_some(), rest) {
            Some(next) => self.print_node(trace, next, out),
            None => Ok(()),
        }
    }

    /// Whose turn it is, if it is another's.
    fn next(&self, trace: &Trace, current: Option<usize>, done: bool, mut rest: Vec<usize>) -> Option<usize> {
        if let Some(current) = current.filter(|current| !rest.contains(current)) {
            rest.push(current);
        }
        let now = Instant::now();
        let mut waiting = HashMap::new();
        let mut busiest: Option<usize> = None;
        for &index in &rest {
            let node = trace.node(index);
            let Some(since) = node.waiting_since else { continue };
            let waited = now.duration_since(since);
            let seconds = waited.as_secs_f64();
            let rate = node.news as f64 / seconds.max(f64::MIN_POSITIVE);
            let too_long = waited > MAX_DELAY && Some(index) != current;
            let beats = |other: usize| waiting.get(&other).is_none_or(|other: &Waiting| other.rate < rate);
            if too_long || busiest.is_none_or(beats) {
                busiest = Some(index);
            }
            waiting.insert(index, Waiting { seconds, rate, too_long });
        }
        let Some(current) = current.filter(|_| !done) else { return busiest };
        if let Some(&index) = rest.iter().find(|index| waiting.get(index).is_some_and(|waiting| waiting.too_long)) {
            return Some(index);
        }
        let total: f64 = waiting.values().map(|waiting| waiting.rate).sum();
        let own = waiting.get(&current)?;
        let had_its_share = 1.0 / (1.0 - own.rate / total) * ANTI_FLICKER < own.seconds;
        busiest.filter(|_| had_its_share)
    }

    fn print_node(&mut self, trace: &mut Trace, index: usize, out: &mut dyn Write) -> io::Result<()> {
        if trace.node(index).index == 0 {
            self.next_index += 1;
            trace.node_mut(index).index = self.next_index;
        }
        if self.current != Some(index) {
            self.switch(trace, index, out)?;
        }
        let node = trace.node_mut(index);
        let number = node.index;
        let mut is_open = false;
        for id in &node.statuses {
            if !node.updated.contains(id) {
                continue;
            }
            let Some(status) = node.by_id.get(id) else { continue };
            if self.is_due(status) {
                self.last.insert(id.clone(), (status.current, status.timestamp));
                is_open |= status.completed.is_none();
                writeln!(out, "#{number} {}", describe(status))?;
            }
        }
        node.updated.clear();
        for warning in &node.warnings[node.warnings_shown..] {
            write!(out, "#{number} WARN: ")?;
            out.write_all(&warning.short)?;
            writeln!(out)?;
        }
        node.warnings_shown = node.warnings.len();
        Self::print_logs(node, out)?;

        self.current = Some(index);
        if node.is_completed() && !is_open {
            self.current = None;
            node.news = 0;
            if node.partial {
                writeln!(out)?;
            }
            if node.is_canceled() {
                writeln!(out, "#{number} CANCELED")?;
            } else if !node.vertex.error.is_empty() {
                writeln!(out, "#{number} ERROR: {}", node.vertex.error)?;
            } else if node.vertex.cached {
                writeln!(out, "#{number} CACHED")?;
            } else {
                let now = Timestamp::now();
                let seconds: f64 = node.intervals().iter().map(|interval| interval.seconds(now)).sum();
                writeln!(out, "#{number} DONE {seconds:.1}s")?;
            }
        }
        trace.updates.remove(&index);
        Ok(())
    }

    /// Leaves the current step and begins the lines of another.
    fn switch(&mut self, trace: &mut Trace, index: usize, out: &mut dyn Write) -> io::Result<()> {
        if let Some(current) = self.current {
            let old = trace.node_mut(current);
            if old.partial {
                writeln!(out)?;
            }
            old.shown = 0;
            old.news = 0;
            writeln!(out, "#{} ...", old.index)?;
        }
        if self.not_first {
            writeln!(out)?;
        }
        self.not_first = true;
        let node = trace.node(index);
        let name = &node.vertex.name;
        match self.name_limit {
            Some(limit) if name.len() > limit => {
                let end = (0..=limit).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
                writeln!(out, "#{} {}...", node.index, &name[..end])
            }
            _ => writeln!(out, "#{} {name}", node.index),
        }
    }

    fn is_due(&self, status: &VertexStatus) -> bool {
        let Some(&(current, timestamp)) = self.last.get(&status.id).filter(|_| status.completed.is_none()) else {
            return true;
        };
        let share = if status.total > 0 { (status.current - current) as f64 / status.total as f64 } else { 0.0 };
        share >= MIN_SHARE || seconds_between(timestamp, status.timestamp) >= MIN_SECONDS
    }

    fn print_logs(node: &mut super::trace::Node, out: &mut dyn Write) -> io::Result<()> {
        let logs = std::mem::take(&mut node.logs);
        let count = logs.len();
        for (place, line) in logs.into_iter().enumerate() {
            let is_last = place + 1 == count;
            let begin = if place == 0 { node.shown.min(line.len()) } else { 0 };
            if begin == 0 {
                write!(out, "#{} ", node.index)?;
            }
            out.write_all(&line[begin..])?;
            if !is_last || !node.partial {
                writeln!(out)?;
            }
            node.tail.put(line[begin..].to_vec(), !node.partial);
            if is_last {
                node.shown = 0;
                if node.partial {
                    // Its rest is still to come.
                    node.shown = line.len();
                    node.logs = vec![line];
                }
            }
        }
        Ok(())
    }
}

/// `transferring context: 1.20kB / 3.00kB 0.3s done`
fn describe(status: &VertexStatus) -> String {
    let mut text = status.id.clone();
    if status.total != 0 {
        text += &format!(" {} / {}", size::rounded(status.current), size::rounded(status.total));
    } else if status.current != 0 {
        text += &format!(" {}", size::rounded(status.current));
    }
    if let Some(started) = status.started {
        let seconds = seconds_between(started, status.completed.unwrap_or(status.timestamp));
        if seconds > 0.01 {
            text += &format!(" {seconds:.1}s");
        }
    }
    if status.completed.is_some() {
        text += " done";
    }
    text
}
