//! The state of a build as its news add up: what the displays draw.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::time::Instant;

use castor_progress::Timestamp;

use super::rate::Rate;
use super::tty::Window;
use crate::status::{SolveStatus, Vertex, VertexStatus, VertexWarning};

/// Lines of a step that are shown again when it has failed.
const TAIL_LINES: usize = 10;

/// Bytes of a step's output that displays keep which show it as a whole only when the step has failed.
const OUTPUT_KEPT: usize = 16 << 20;

/// How the error of a cancelled step ends.
const CANCELED: &str = "context canceled";

/// A time in which a step was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub start: Timestamp,
    pub stop: Option<Timestamp>,
}

impl Interval {
    /// Its length in seconds, up to `now` if it lasts.
    pub fn seconds(&self, now: Timestamp) -> f64 {
        seconds_between(self.start, self.stop.unwrap_or(now))
    }
}

/// Seconds from one time to another.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Intervals that overlap, as one.
pub fn merge(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort_by_key(|interval| interval.start);
    let mut merged: Vec<Interval> = Vec::new();
    for next in intervals {
        match merged.last_mut() {
            Some(Interval { stop: None, .. }) => break,
            Some(last) if last.stop.is_some_and(|stop| stop >= next.start) => {
                last.stop = match next.stop {
                    None => None,
                    stop => stop.max(last.stop),
                };
            }
            _ => merged.push(next),
        }
    }
    merged
}

/// The last lines that a step printed, in the way BuildKit keeps them: while the last line is incomplete, all lines of an
/// update share a place.
#[derive(Debug, Default)]
pub struct Tail {
    slots: [Option<Vec<u8>>; TAIL_LINES],
    place: usize,
}

impl Tail {
    pub fn put(&mut self, line: Vec<u8>, advance: bool) {
        self.slots[self.place] = Some(line);
        if advance {
            self.place = (self.place + 1) % TAIL_LINES;
        }
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<u8>> {
        (0..TAIL_LINES).filter_map(|offset| self.slots[(self.place + offset) % TAIL_LINES].as_ref())
    }
}

/// A step, or a group of steps that is shown as one.
#[derive(Debug, Default)]
pub struct Node {
    pub vertex: Vertex,
    /// Those that have begun, in their order.
    pub statuses: Vec<String>,
    pub by_id: HashMap<String, VertexStatus>,
    /// Statuses with news that were not shown.
    pub updated: HashSet<String>,
    /// The number users see; 0 while it was not shown.
    pub index: usize,
    /// Lines that were not shown, with their times.
    pub logs: Vec<Vec<u8>>,
    /// About how many bytes they have.
    log_bytes: usize,
    /// There were more before them.
    pub logs_cut: bool,
    /// The last of them is not complete.
    pub partial: bool,
    /// How much of the first was shown already.
    pub shown: usize,
    pub tail: Tail,
    pub warnings: Vec<VertexWarning>,
    pub warnings_shown: usize,
    /// Since when it has news that were not shown.
    pub waiting_since: Option<Instant>,
    /// How much news.
    pub news: usize,
    previous: Option<Vertex>,
    intervals: BTreeMap<Timestamp, Interval>,
    merged: Vec<Interval>,
    /// A group of which only weak members have begun.
    pub hidden: bool,
    /// The steps of a group.
    members: Option<BTreeMap<String, Vertex>>,
    /// The end of what it printed, for displays that show it while it runs.
    pub window: Option<Window>,
    /// How fast pieces of work go on, for the same displays.
    pub rates: HashMap<String, Rate>,
}

impl Node {
    fn count_news(&mut self) {
        if self.news == 0 {
            self.waiting_since = Some(Instant::now());
        }
        self.news += 1;
    }

    /// Forgets the oldest lines when there is twice as much as is to be kept.
    fn trim_logs(&mut self, kept: usize) {
        if self.log_bytes <= 2 * kept {
            return;
        }
        let mut bytes = 0;
        let lines = self.logs.iter().rev().take_while(|line| {
            bytes += line.len();
            bytes <= kept
        });
        // The last one stays whatever its length, but not all of it.
        let cut = self.logs.len() - lines.count().max(1);
        self.logs.drain(..cut);
        if let Some(first) = self.logs.first_mut() {
            first.drain(..first.len().saturating_sub(kept));
        }
        self.log_bytes = self.logs.iter().map(Vec::len).sum();
        self.logs_cut = true;
    }

    pub fn last_interval(&self) -> Option<&Interval> {
        self.merged.last()
    }

    pub fn intervals(&self) -> &[Interval] {
        &self.merged
    }

    pub fn is_started(&self) -> bool {
        !self.merged.is_empty()
    }

    pub fn is_completed(&self) -> bool {
        self.last_interval().is_some_and(|interval| interval.stop.is_some())
    }

    pub fn is_canceled(&self) -> bool {
        self.vertex.error.ends_with(CANCELED)
    }

    /// Adds up the members of a group.
    fn refresh_group(&mut self) -> Change {
        let Some(members) = &self.members else { return Change::default() };
        let mut change = Change::default();
        let was_hidden = self.hidden;
        let was_started = self.is_started();
        let mut vertex = Vertex { cached: true, ..self.vertex.clone() };
        for member in members.values() {
            if let Some(start) = member.started {
                let interval = Interval { start, stop: member.completed };
                change.changed |= self.intervals.insert(start, interval) != Some(interval);
                change.started |= !was_started;
                if member.group.as_ref().is_some_and(|group| !group.weak) {
                    self.hidden = false;
                }
            }
            vertex.cached &= member.cached;
            if vertex.error.is_empty() {
                vertex.error.clone_from(&member.error);
            } else {
                self.hidden = false;
            }
        }
        change.changed |= vertex.cached != self.vertex.cached || vertex.error != self.vertex.error;
        self.vertex = vertex;
        change.revealed = was_hidden && !self.hidden;
        change.changed |= change.revealed;
        self.merged = merge(self.intervals.values().copied().collect());
        change
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Change {
    changed: bool,
    started: bool,
    revealed: bool,
}

/// The whole build.
#[derive(Debug, Default)]
pub struct Trace {
    nodes: Vec<Node>,
    /// By digest; members of a group lead to the group, which is also found by its id.
    by_digest: HashMap<String, usize>,
    groups: HashMap<String, usize>,
    /// Nodes that have begun, in that order.
    pub begun: Vec<usize>,
    /// Nodes with news.
    pub updates: HashSet<usize>,
    /// When the build began, by the daemon's clock.
    pub started: Option<Timestamp>,
    /// How far the daemon's clock is behind ours, in seconds.
    pub clock_lag: Option<f64>,
    /// For displays that are drawn in place: so many lines of what a running step prints are kept.
    window: Option<usize>,
}

impl Trace {
    /// One that keeps the last lines that steps print, and knows how fast work goes on.
    pub fn live(lines: usize) -> Self {
        Self { window: Some(lines), ..Self::default() }
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    pub fn nodes(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate()
    }

    /// Takes in one message.
    pub fn update(&mut self, status: SolveStatus) {
        let mut groups = Vec::new();
        for vertex in status.vertexes {
            if self.started.is_none() {
                self.started = vertex.started;
            }
            match &vertex.group {
                Some(group) => {
                    let index = self.member(vertex.digest.clone(), group.id.clone(), group.name.clone());
                    if !groups.contains(&index) {
                        groups.push(index);
                    }
                    if let Some(members) = &mut self.nodes[index].members {
                        members.insert(vertex.digest.clone(), vertex);
                    }
                }
                None => self.step(vertex),
            }
        }
        for index in groups {
            let change = self.nodes[index].refresh_group();
            if change.started {
                self.note_clock(self.nodes[index].merged.first().map(|interval| interval.start));
            }
            if self.nodes[index].hidden {
                continue;
            }
            if change.revealed {
                self.begun.push(index);
            }
            if change.changed {
                self.nodes[index].count_news();
                self.updates.insert(index);
            }
        }
        for status in status.statuses {
            self.status(status);
        }
        for warning in status.warnings {
            let Some(&index) = self.by_digest.get(&warning.vertex) else { continue };
            let node = &mut self.nodes[index];
            node.warnings.push(warning);
            node.count_news();
        }
        for log in status.logs {
            self.log(&log);
        }
    }

    fn note_clock(&mut self, start: Option<Timestamp>) {
        if let (None, Some(start)) = (self.clock_lag, start) {
            self.clock_lag = Some(seconds_between(start, Timestamp::now()));
        }
    }

    /// The group of a member.
    fn member(&mut self, digest: String, id: String, name: String) -> usize {
        let index = *self.groups.entry(id.clone()).or_insert_with(|| {
            self.nodes.push(Node {
                vertex: Vertex { digest: id.clone(), name, ..Vertex::default() },
                hidden: true,
                members: Some(BTreeMap::new()),
                ..Node::default()
            });
            self.nodes.len() - 1
        });
        self.by_digest.insert(id, index);
        self.by_digest.insert(digest, index);
        index
    }

    fn step(&mut self, vertex: Vertex) {
        let known = self.by_digest.get(&vertex.digest).copied();
        let index = known.unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.by_digest.insert(vertex.digest.clone(), self.nodes.len() - 1);
            self.nodes.len() - 1
        });
        let was_started = known.is_some() && self.nodes[index].is_started();
        self.note_vertex(index, &vertex);
        if vertex.started.is_some() && !was_started {
            self.note_clock(vertex.started);
            self.begun.push(index);
        }
        let node = &mut self.nodes[index];
        if let Some(start) = vertex.started {
            node.intervals.insert(start, Interval { start, stop: vertex.completed });
            node.merged = merge(node.intervals.values().copied().collect());
        }
        // A late copy of the first announcement must not undo what came since.
        if !was_started || vertex.started.is_some() {
            node.vertex = vertex;
        }
    }

    fn note_vertex(&mut self, index: usize, vertex: &Vertex) {
        if vertex.started.is_none() {
            return;
        }
        let node = &mut self.nodes[index];
        let changed = match &node.previous {
            None => true,
            Some(old) => {
                vertex.digest != old.digest
                    || vertex.name != old.name
                    || vertex.started != old.started
                    // Each completion is news, also one at the same time.
                    || vertex.completed.is_some()
                    || vertex.cached != old.cached
                    || vertex.error != old.error
            }
        };
        if changed {
            node.count_news();
            self.updates.insert(index);
        }
        node.previous = Some(vertex.clone());
    }

    fn status(&mut self, status: VertexStatus) {
        let Some(&index) = self.by_digest.get(&status.vertex) else { return };
        let node = &mut self.nodes[index];
        let had_begun = node.by_id.get(&status.id).is_some_and(|old| old.started.is_some());
        if status.started.is_some() && !had_begun {
            node.statuses.push(status.id.clone());
        }
        node.updated.insert(status.id.clone());
        if self.window.is_some() {
            let now = Instant::now();
            let rate = node.rates.entry(status.id.clone()).or_insert_with(|| Rate::new(status.current, now));
            rate.update(status.current, now);
        }
        node.by_id.insert(status.id.clone(), status);
        node.count_news();
        self.updates.insert(index);
    }

    fn log(&mut self, log: &crate::status::VertexLog) {
        let Some(&index) = self.by_digest.get(&log.vertex) else { return };
        let window = self.window;
        let node = &mut self.nodes[index];
        if let Some(lines) = window {
            node.window.get_or_insert_with(|| Window::new(lines)).feed(&log.data);
        }
        let seconds = node.last_interval().map_or(0.0, |interval| seconds_between(interval.start, log.timestamp));
        let complete = log.data.last() == Some(&b'\n');
        let mut lines: Vec<&[u8]> = log.data.split(|&byte| byte == b'\n').collect();
        if complete || log.data.is_empty() {
            lines.pop();
        }
        for (number, line) in lines.into_iter().enumerate() {
            match node.logs.last_mut() {
                Some(last) if number == 0 && node.partial => last.extend_from_slice(line),
                _ => {
                    let digits = match seconds {
                        seconds if seconds < 10.0 => 3,
                        seconds if seconds < 100.0 => 2,
                        _ => 1,
                    };
                    let mut text = format!("{seconds:.digits$} ").into_bytes();
                    text.extend_from_slice(line);
                    node.logs.push(text);
                }
            }
        }
        node.partial = !complete;
        node.log_bytes += log.data.len();
        if window.is_some() {
            node.trim_logs(OUTPUT_KEPT);
        }
        node.count_news();
        self.updates.insert(index);
    }

    /// Prints the steps that failed, with the last lines of each.
    pub fn print_errors(&self, out: &mut dyn Write) -> io::Result<()> {
        for node in self.begun.iter().map(|&index| &self.nodes[index]) {
            if node.vertex.error.is_empty() || node.is_canceled() {
                continue;
            }
            writeln!(out, "------\n > {}:", node.vertex.name)?;
            if node.logs_cut {
                writeln!(out, "[...]")?;
            }
            for line in node.logs.iter().chain(node.tail.lines()) {
                out.write_all(line)?;
                writeln!(out)?;
            }
            writeln!(out, "------")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::new(seconds, 0).unwrap()
    }

    fn interval(start: i64, stop: Option<i64>) -> Interval {
        Interval { start: at(start), stop: stop.map(at) }
    }

    #[test]
    fn intervals_merge() {
        let merged =
            merge(vec![interval(5, Some(6)), interval(0, Some(2)), interval(1, Some(3)), interval(3, Some(4))]);
        assert_eq!(merged, [interval(0, Some(4)), interval(5, Some(6))]);
        assert_eq!(merge(vec![interval(0, Some(9)), interval(1, Some(2))]), [interval(0, Some(9))]);
        assert_eq!(merge(vec![interval(0, None), interval(1, Some(2))]), [interval(0, None)]);
        assert_eq!(merge(vec![interval(0, Some(2)), interval(1, None), interval(9, Some(10))]), [interval(0, None)]);
    }

    #[test]
    fn a_weak_group_is_hidden_until_a_strong_member_begins() {
        let mut trace = Trace::default();
        let member = |digest: &str, weak, started| Vertex {
            digest: digest.into(),
            group: Some(crate::status::Group { id: "g".into(), name: "group".into(), weak }),
            started,
            ..Vertex::default()
        };
        trace.update(SolveStatus { vertexes: vec![member("a", true, Some(at(1)))], ..SolveStatus::default() });
        assert!(trace.begun.is_empty() && trace.node(0).hidden);
        trace.update(SolveStatus { vertexes: vec![member("b", false, Some(at(2)))], ..SolveStatus::default() });
        assert_eq!(trace.begun, [0]);
        assert_eq!(trace.node(0).vertex.name, "group");
    }

    #[test]
    fn old_output_is_forgotten() {
        let mut node = Node { logs: (0..10).map(|digit| vec![b'0' + digit; 10]).collect(), ..Node::default() };
        node.log_bytes = 100;
        node.trim_logs(50);
        assert_eq!((node.logs.len(), node.logs_cut), (10, false));
        node.trim_logs(35);
        assert_eq!((node.logs.len(), node.logs[0][0], node.log_bytes, node.logs_cut), (3, b'7', 30, true));
        node.logs.push(vec![b'x'; 1000]);
        node.log_bytes += 1000;
        node.trim_logs(35);
        assert_eq!((node.logs.len(), node.logs[0].len(), node.log_bytes), (1, 35, 35));
    }
}
