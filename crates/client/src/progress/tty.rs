//! A view that is drawn in place on a terminal: a line per step and per piece of work, and the end of what running steps
//! print.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use castor_progress::Timestamp;

use super::trace::{Interval, Node, Trace, seconds_between};
use crate::size;

/// Lines of output that are shown of a running step.
const OUTPUT_LINES: usize = 6;

/// Where the size of the terminal is not known.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// The colours of lines; none with `NO_COLOR`.
struct Colours {
    done: &'static str,
    failed: &'static str,
    canceled: &'static str,
    faint: &'static str,
    reset: &'static str,
}

const COLOURS: Colours =
    Colours { done: "\x1b[34m", failed: "\x1b[31m", canceled: "\x1b[33m", faint: "\x1b[2m", reset: "\x1b[0m" };

const NO_COLOURS: Colours = Colours { done: "", failed: "", canceled: "", faint: "", reset: "" };

/// What is on the terminal.
pub struct Screen {
    /// Lines drawn last time.
    lines: usize,
    colours: &'static Colours,
}

/// A line that may be drawn.
struct Job<'a> {
    name: String,
    status: String,
    intervals: Vec<Interval>,
    completed: bool,
    failed: bool,
    canceled: bool,
    /// The step, if it is its first line.
    node: Option<&'a Node>,
}

impl Screen {
    pub fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { lines: 0, colours: if plain { &NO_COLOURS } else { &COLOURS } }
    }

    /// Draws the build over what was drawn before; for the last time, all of it.
    pub fn draw<W: Write + AsFd>(&mut self, trace: &Trace, out: &mut W, last: bool) -> io::Result<()> {
        let (width, height) = terminal_size(out.as_fd());
        let now = Timestamp::now();
        let mut text = String::new();
        // Back to the first line, and nothing below it.
        if self.lines > 0 {
            let _ = write!(text, "\x1b[{}A", self.lines);
        }
        text.push_str("\r\x1b[J\x1b[?25l");
        let lines = self.lines_of(trace, width, height, now, last);
        self.lines = lines.len();
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str("\x1b[?25h");
        out.write_all(text.as_bytes())
    }

    fn lines_of(&self, trace: &Trace, width: usize, height: usize, now: Timestamp, last: bool) -> Vec<String> {
        let shown = trace.nodes().filter(|(_, node)| !node.hidden);
        let (total, completed) = shown
            .fold((0, 0), |(total, completed), (_, node)| (total + 1, completed + usize::from(node.is_completed())));
        let elapsed = trace.started.map_or(0.0, |start| daemon_seconds(trace, start, now));
        let finished = if last && completed > 0 && completed == total { " FINISHED" } else { "" };
        let title = format!("[+] Building {elapsed:.1}s ({completed}/{total}){finished}");
        let mut lines = vec![clip(&title, width.saturating_sub(1))];

        let jobs = jobs(trace);
        let running = jobs.iter().filter(|job| !job.completed).count();
        let mut free = height.saturating_sub(2 + running);
        let mut with_output: Vec<usize> = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            let prints = !job.completed && job.node.is_some_and(|node| !node.output.is_empty());
            if prints && free > OUTPUT_LINES + 3 && !last {
                with_output.push(index);
                free -= OUTPUT_LINES + 1;
            }
        }
        let room = if last { jobs.len() } else { height.saturating_sub(2 + with_output.len() * OUTPUT_LINES) };
        for index in visible(&jobs, room) {
            let job = &jobs[index];
            if job.intervals.is_empty() {
                continue;
            }
            lines.extend(self.line(job, trace, width, now));
            if with_output.contains(&index)
                && let Some(node) = job.node
            {
                for line in last_lines(&node.output, width.saturating_sub(10)) {
                    lines.push(format!("{} => => # {line}{}", self.colours.faint, self.colours.reset));
                }
            }
        }
        lines
    }

    fn line(&self, job: &Job<'_>, trace: &Trace, width: usize, now: Timestamp) -> Option<String> {
        let mut seconds: f64 = job
            .intervals
            .iter()
            .map(|interval| match interval.stop {
                Some(stop) => seconds_between(interval.start, stop),
                None => daemon_seconds(trace, interval.start, now),
            })
            .sum();
        if seconds < 0.05 {
            seconds = 0.0;
        }
        let timer = format!(" {seconds:3.1}s");
        let mut left = width.saturating_sub(" => ".len() + timer.len() + 2);
        let mut status = String::new();
        if !job.status.is_empty() && left + job.status.len() > 20 {
            status = format!(" {}", job.status);
            left = left.saturating_sub(status.len());
        }
        if left < 12 {
            return None;
        }
        let text = format!(" => {}{status}", clip(&job.name, left));
        let padding = width.saturating_sub(1 + text.chars().count() + timer.len());
        let line = format!("{text}{}{timer}", " ".repeat(padding));
        let colour = match job {
            Job { completed: false, .. } => return Some(line),
            Job { canceled: true, .. } => self.colours.canceled,
            Job { failed: true, .. } => self.colours.failed,
            _ => self.colours.done,
        };
        Some(format!("{colour}{line}{}", self.colours.reset))
    }
}

/// Seconds since a time of the daemon's clock.
fn daemon_seconds(trace: &Trace, start: Timestamp, now: Timestamp) -> f64 {
    (seconds_between(start, now) - trace.clock_lag.unwrap_or(0.0)).max(0.0)
}

fn jobs(trace: &Trace) -> Vec<Job<'_>> {
    let mut jobs = Vec::new();
    for node in trace.begun.iter().map(|&index| trace.node(index)) {
        let (canceled, failed) = (node.is_canceled(), !node.vertex.error.is_empty());
        let prefix = match (canceled, failed, node.vertex.cached) {
            (true, ..) => "CANCELED ",
            (_, true, _) => "ERROR ",
            (_, _, true) => "CACHED ",
            _ => "",
        };
        jobs.push(Job {
            name: format!("{prefix}{}", node.vertex.name.replace('\t', " ")),
            status: String::new(),
            intervals: node.intervals().to_vec(),
            completed: node.is_completed(),
            failed,
            canceled,
            node: Some(node),
        });
        for status in node.statuses.iter().filter_map(|id| node.by_id.get(id)) {
            let amount = match (status.current, status.total) {
                (0, 0) => String::new(),
                (current, 0) => size::rounded(current),
                (current, total) => format!("{} / {}", size::rounded(current), size::rounded(total)),
            };
            let interval = status.started.map(|start| Interval { start, stop: status.completed });
            jobs.push(Job {
                name: format!("=> {}", status.id),
                status: amount,
                intervals: interval.into_iter().collect(),
                completed: status.completed.is_some(),
                failed: false,
                canceled: false,
                node: None,
            });
        }
        for warning in &node.warnings {
            jobs.push(Job {
                name: format!("WARN: {}", String::from_utf8_lossy(&warning.short)),
                status: String::new(),
                intervals: node.last_interval().copied().into_iter().collect(),
                completed: true,
                failed: false,
                canceled: true,
                node: None,
            });
        }
    }
    jobs
}

/// The jobs that are drawn if there is room for `limit`: the last ones, and before them those that still run.
fn visible(jobs: &[Job<'_>], limit: usize) -> Vec<usize> {
    if jobs.len() <= limit {
        return (0..jobs.len()).collect();
    }
    let cut = jobs.len() - limit;
    let hidden: Vec<usize> = (0..cut).filter(|&index| !jobs[index].completed).collect();
    let mut kept: Vec<usize> = (cut..jobs.len()).collect();
    let mut excess = hidden.len();
    kept.retain(|&index| {
        let keep = excess == 0 || !jobs[index].completed;
        excess -= usize::from(!keep);
        keep
    });
    let mut all: Vec<usize> = hidden.into_iter().rev().take(limit - kept.len()).collect();
    all.reverse();
    all.extend(kept);
    all
}

/// The end of what a step printed: whole lines as a terminal would show them, without control characters.
fn last_lines(output: &[u8], width: usize) -> Vec<String> {
    let start = output.len().saturating_sub(16 << 10);
    let text = String::from_utf8_lossy(&output[start..]);
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            // What follows a carriage return overwrites the line.
            let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            clip(&without_escapes(line), width)
        })
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines.split_off(lines.len().saturating_sub(OUTPUT_LINES))
}

fn without_escapes(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\x1b' => {
                if characters.next_if_eq(&'[').is_some() {
                    // Parameters, then one letter.
                    while characters.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
                } else {
                    characters.next();
                }
            }
            '\t' => plain.push_str("    "),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

fn clip(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

fn terminal_size(fd: BorrowedFd<'_>) -> (usize, usize) {
    match rustix::termios::tcgetwinsize(fd) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => DEFAULT_SIZE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(completed: bool) -> Job<'static> {
        Job {
            name: String::new(),
            status: String::new(),
            intervals: Vec::new(),
            completed,
            failed: false,
            canceled: false,
            node: None,
        }
    }

    #[test]
    fn running_jobs_stay_visible() {
        let jobs: Vec<_> = [false, true, true, true, false].map(job).into();
        assert_eq!(visible(&jobs, 9), [0, 1, 2, 3, 4]);
        assert_eq!(visible(&jobs, 3), [0, 3, 4]);
        assert_eq!(visible(&jobs, 1), [4]);
        assert_eq!(visible(&jobs, 0), [] as [usize; 0]);
    }

    #[test]
    fn output_is_cleaned() {
        let output = b"one\n\x1b[31mred\x1b[0m\tx\nprogress 1\rprogress 2\r\n\n";
        assert_eq!(last_lines(output, 80), ["one", "red    x", "progress 2"]);
        assert_eq!(last_lines("äöü".as_bytes(), 2), ["äö"]);
    }
}
