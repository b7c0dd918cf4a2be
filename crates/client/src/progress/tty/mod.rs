//! A view that is drawn in place on a terminal: a line per step and per piece of work, and the end of what running steps
//! print.
//!
//! The lines are never longer than the terminal is wide nor more than it is high, so that the cursor finds the first of
//! them again. Each drawing is one write: line by line over what was there, never an empty screen in between.

mod bar;
mod colours;
mod window;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use castor_progress::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::lazy::{LayerStatus, share};
use super::trace::{Interval, Node, Trace, seconds_between};
use crate::size;
use crate::status::VertexStatus;
use bar::Amount;
use colours::Colours;
pub use window::Window;

/// Lines of output that are shown of a running step; `BUILDKIT_TTY_LOG_LINES` says more.
const OUTPUT_LINES: usize = 6;

/// At most so many are kept, whatever is asked for.
const OUTPUT_LINES_LIMIT: usize = 1000;

/// Where the size of the terminal is not known.
const DEFAULT_SIZE: (usize, usize) = (80, 10);

/// A line with less room for its name is not drawn.
const SHORTEST_NAME: usize = 12;

/// The width of ` 123.4s`, so that what is before it is aligned.
const TIMER: usize = 7;

/// The begin of each line below the first.
const BULLET: &str = " => ";

/// How many lines of output are kept of a step, as the environment has it.
pub fn output_lines() -> usize {
    let set = std::env::var("BUILDKIT_TTY_LOG_LINES").ok().and_then(|text| text.parse().ok());
    set.filter(|&lines| lines > 0).unwrap_or(OUTPUT_LINES).min(OUTPUT_LINES_LIMIT)
}

/// What is on the terminal.
pub struct Screen {
    /// The widths of the lines drawn last time.
    drawn: Vec<usize>,
    colours: Colours,
    output_lines: usize,
}

/// A line that may be drawn.
struct Job<'a> {
    name: String,
    /// Of a piece of work: how much is done.
    amount: Option<Amount>,
    intervals: Vec<Interval>,
    completed: bool,
    colour: &'a str,
    /// The step, if it is its first line.
    node: Option<&'a Node>,
}

/// A line as it is drawn.
struct Line {
    text: String,
    /// Of the terminal's cells.
    width: usize,
}

impl Screen {
    /// A screen as the environment wants it.
    pub fn new() -> Self {
        let variable = |name: &str| std::env::var_os(name);
        let colours = Colours::of(variable("NO_COLOR").as_deref(), variable("BUILDKIT_COLORS").as_deref());
        Self { drawn: Vec::new(), colours, output_lines: output_lines() }
    }

    /// Draws the build over what was drawn before; for the last time, all of it.
    pub fn draw<W: Write + AsFd>(&mut self, trace: &Trace, out: &mut W, last: bool) -> io::Result<()> {
        let (width, height) = terminal_size(out.as_fd());
        let lines = self.lines_of(trace, width, height, last);
        let mut text = String::from("\x1b[?25l");
        // Where the terminal is narrower than it was, a line takes several rows.
        let rows: usize = self.drawn.iter().map(|&drawn| drawn.div_ceil(width.max(1)).max(1)).sum();
        if rows > 0 {
            let _ = write!(text, "\x1b[{rows}A");
        }
        text.push('\r');
        self.drawn = lines.iter().map(|line| line.width).collect();
        for line in lines {
            text.push_str(&line.text);
            // What is right of the line, and then the next one.
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J\x1b[?25h");
        out.write_all(text.as_bytes())
    }

    fn lines_of(&self, trace: &Trace, width: usize, height: usize, last: bool) -> Vec<Line> {
        // The last column stays free: some terminals go to the next line as soon as it is filled.
        let columns = width.saturating_sub(1);
        let now = Timestamp::now();
        let mut lines = vec![title(trace, columns, now, last)];
        let jobs = self.jobs(trace, now);
        let output = if last { Vec::new() } else { self.with_output(&jobs, height) };
        let output_lines: usize = output.iter().map(|(_, lines)| lines.len()).sum();
        let room = if last { jobs.len() } else { height.saturating_sub(2 + output_lines) };
        for index in visible(&jobs, room) {
            let job = &jobs[index];
            let Some(line) = job.line(trace, columns, now) else { continue };
            lines.push(line);
            for line in output.iter().filter(|(owner, _)| *owner == index).flat_map(|(_, lines)| lines) {
                let text = clip(&format!(" => => # {line}"), columns);
                let width = text.width();
                lines.push(Line { text: Colours::paint(&self.colours.output, &text), width });
            }
        }
        lines
    }

    /// The running steps of whose output there is room for the end, with it; those that print most come first.
    fn with_output(&self, jobs: &[Job<'_>], height: usize) -> Vec<(usize, Vec<String>)> {
        let running = jobs.iter().filter(|job| !job.completed).count();
        let limit = self.output_lines.min(height.saturating_sub(OUTPUT_LINES + 1)).max(OUTPUT_LINES);
        let mut free = height.saturating_sub(2 + running);
        let prints = |job: &Job<'_>| job.node.and_then(|node| node.window.as_ref()).map(Window::bytes).unwrap_or(0);
        let mut candidates: Vec<usize> =
            (0..jobs.len()).filter(|&index| !jobs[index].completed && prints(&jobs[index]) > 0).collect();
        candidates.sort_by_key(|&index| std::cmp::Reverse(prints(&jobs[index])));
        let mut chosen = Vec::new();
        for index in candidates {
            if free <= limit + 3 {
                break;
            }
            free -= limit + 3;
            let window = jobs[index].node.and_then(|node| node.window.as_ref());
            let lines: Vec<String> = window.map(|window| window.lines().collect()).unwrap_or_default();
            let skip = lines.len().saturating_sub(limit);
            chosen.push((index, lines.into_iter().skip(skip).collect()));
        }
        chosen
    }

    fn jobs<'a>(&'a self, trace: &'a Trace, now: Timestamp) -> Vec<Job<'a>> {
        let mut jobs = Vec::new();
        for node in trace.begun.iter().map(|&index| trace.node(index)) {
            let (prefix, colour) = match (node.is_canceled(), node.vertex.error.is_empty(), node.vertex.cached) {
                (true, ..) => ("CANCELED ", &self.colours.cancel),
                (_, false, _) => ("ERROR ", &self.colours.error),
                (_, _, true) => ("CACHED ", &self.colours.run),
                _ => ("", &self.colours.run),
            };
            jobs.push(Job {
                name: format!("{prefix}{}", node.vertex.name),
                amount: None,
                intervals: node.intervals().to_vec(),
                completed: node.is_completed(),
                colour,
                node: Some(node),
            });
            for status in node.statuses.iter().filter_map(|id| node.by_id.get(id)) {
                let interval = status.started.map(|start| Interval { start, stop: status.completed });
                jobs.push(Job {
                    name: format!("=> {}", status.id),
                    amount: amount(trace, node, status, now),
                    intervals: interval.into_iter().collect(),
                    completed: status.completed.is_some(),
                    colour: &self.colours.run,
                    node: None,
                });
            }
            for warning in &node.warnings {
                jobs.push(Job {
                    name: format!("WARN: {}", String::from_utf8_lossy(&warning.short)),
                    amount: None,
                    intervals: node.last_interval().copied().into_iter().collect(),
                    completed: true,
                    colour: &self.colours.warning,
                    node: None,
                });
            }
        }
        jobs
    }
}

impl Job<'_> {
    /// The name on the left, the time on the right, and before that what is done; `None` where there is no room.
    fn line(&self, trace: &Trace, columns: usize, now: Timestamp) -> Option<Line> {
        if self.intervals.is_empty() {
            return None;
        }
        let timer = format!(" {:3.1}s", self.seconds(trace, now));
        let all = columns.saturating_sub(BULLET.len() + timer.len());
        // Of running work, the amounts stand in columns; later, after the name.
        let block = self.amount.as_ref().filter(|_| !self.completed).and_then(|amount| amount.columns(columns));
        let block = block.map(|block| block + &" ".repeat(TIMER.saturating_sub(timer.len())));
        let block = block.filter(|block| all > block.len() + SHORTEST_NAME).unwrap_or_default();
        let mut room = all - block.len();
        let mut after = String::new();
        if block.is_empty()
            && let Some(text) = self.amount.as_ref().map(Amount::text).filter(|text| !text.is_empty())
            && room + text.len() > 20
            && room > text.len() + SHORTEST_NAME
        {
            after = format!(" {text}");
            room -= after.len();
        }
        if room < SHORTEST_NAME {
            return None;
        }
        let mut text = format!("{BULLET}{}{after}", shorten(&self.name, room));
        let padding = columns.saturating_sub(text.width() + block.len() + timer.len());
        text.extend(std::iter::repeat_n(' ', padding));
        text.push_str(&block);
        text.push_str(&timer);
        let width = text.width();
        let text = if self.completed { Colours::paint(self.colour, &text) } else { text };
        Some(Line { text, width })
    }

    fn seconds(&self, trace: &Trace, now: Timestamp) -> f64 {
        let length = |interval: &Interval| match interval.stop {
            Some(stop) => seconds_between(interval.start, stop),
            None => daemon_seconds(trace, interval.start, now),
        };
        let seconds: f64 = self.intervals.iter().map(length).sum();
        if seconds < 0.05 { 0.0 } else { seconds }
    }
}

fn title(trace: &Trace, columns: usize, now: Timestamp, last: bool) -> Line {
    let shown = trace.nodes().filter(|(_, node)| !node.hidden);
    let (total, completed) =
        shown.fold((0, 0), |(total, completed), (_, node)| (total + 1, completed + usize::from(node.is_completed())));
    let elapsed = trace.started.map_or(0.0, |start| daemon_seconds(trace, start, now));
    let finished = if last && completed > 0 && completed == total { " FINISHED" } else { "" };
    let text = clip(&format!("[+] Building {elapsed:.1}s ({completed}/{total}){finished}"), columns);
    let width = text.width();
    Line { text, width }
}

/// What is done of a piece of work, if it counts anything.
fn amount(trace: &Trace, node: &Node, status: &VertexStatus, now: Timestamp) -> Option<Amount> {
    if status.current == 0 && status.total == 0 {
        return None;
    }
    let running = status.completed.is_none();
    Some(Amount {
        current: status.current,
        total: status.total,
        rate: node.rates.get(&status.id).filter(|_| running).and_then(|rate| rate.per_second(Instant::now())),
        share: LayerStatus::parse(&status.id).and_then(|_| share(status.current, status.total)),
        seconds: status.started.map_or(0.0, |start| daemon_seconds(trace, start, now)),
    })
}

/// Seconds since a time of the daemon's clock.
fn daemon_seconds(trace: &Trace, start: Timestamp, now: Timestamp) -> f64 {
    (seconds_between(start, now) - trace.clock_lag.unwrap_or(0.0)).max(0.0)
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

/// The name in so many cells: digests are shortened before anything is cut.
fn shorten(name: &str, room: usize) -> String {
    let whole = clip(name, usize::MAX);
    if whole.width() <= room {
        return whole;
    }
    let mut shorter = String::with_capacity(whole.len());
    let mut bare = String::with_capacity(whole.len());
    for (place, word) in whole.split(' ').enumerate() {
        if place > 0 {
            shorter.push(' ');
            bare.push(' ');
        }
        let is_digest = word.len() > 32 && word.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64);
        let short = if is_digest { size::short_digest(word) } else { word };
        shorter.push_str(short);
        bare.push_str(if is_digest { short.trim_start_matches("sha256:") } else { short });
    }
    clip(if shorter.width() <= room { &shorter } else { &bare }, room)
}

/// The begin of a text that fits into so many cells. What would move the cursor is a blank.
fn clip(text: &str, cells: usize) -> String {
    let mut left = cells;
    let mut clipped = String::with_capacity(text.len());
    for c in text.chars() {
        let (c, width) = match c.width() {
            None => (' ', 1),
            Some(width) => (c, width),
        };
        if width > left {
            break;
        }
        left -= width;
        clipped.push(c);
    }
    clipped
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
        Job { name: String::new(), amount: None, intervals: Vec::new(), completed, colour: "", node: None }
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
    fn names_fit() {
        let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(shorten("RUN true", 20), "RUN true");
        assert_eq!(shorten("RUN something long", 8), "RUN some");
        assert_eq!(shorten(&format!("=> layer {digest} lazy"), 40), "=> layer sha256:0123456789ab lazy");
        assert_eq!(shorten(&format!("=> layer {digest} lazy"), 30), "=> layer 0123456789ab lazy");
        assert_eq!(shorten(&format!("=> {digest}"), 90), format!("=> {digest}"));
    }

    #[test]
    fn cells_are_counted() {
        assert_eq!(clip("äöü", 2), "äö");
        assert_eq!(clip("日本語", 5), "日本");
        assert_eq!(clip("a\x1b[2Jb\tc\r\n", 80), "a [2Jb c  ");
    }
}
