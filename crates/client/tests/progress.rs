//! A build that BuildKit's client recorded and printed, printed again.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use castor_client::progress::Display;
use castor_client::status::{SolveStatus, go_json};

const TRACE: &str = include_str!("../testdata/progress/several-stages.trace.jsonl");
const PLAIN: &str = include_str!("../testdata/progress/several-stages.plain.txt");

/// Memory that is written to where a file is wanted.
struct Paper(Vec<u8>, std::fs::File);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl AsFd for Paper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

fn updates() -> impl Iterator<Item = SolveStatus> {
    TRACE.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// The lines of each step, whatever the order in which steps had their turns: that depends on the clock. What comes after
/// the steps is under the empty name.
fn steps(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut steps: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        let numbered = line.strip_prefix('#').and_then(|rest| rest.split_once(' '));
        let Some((number, rest)) = numbered else {
            if !line.is_empty() {
                current = "";
                steps.entry(String::new()).or_default().push(line.to_owned());
            }
            continue;
        };
        if rest == "..." || number == current {
            if rest != "..." {
                steps.get_mut(names[number]).unwrap().push(rest.to_owned());
            }
            continue;
        }
        current = number;
        let name = *names.entry(number).or_insert(rest);
        assert_eq!(name, rest, "#{number} changes its name");
        steps.entry(name.to_owned()).or_default();
    }
    steps
}

/// News as they are drawn: what comes within a tenth of a second is drawn at once.
fn drawn() -> Vec<SolveStatus> {
    let mut batches: Vec<SolveStatus> = Vec::new();
    let mut began = None;
    for update in updates() {
        let times = update.vertexes.iter().filter_map(|vertex| vertex.completed.or(vertex.started));
        let times = times.chain(update.statuses.iter().map(|status| status.timestamp));
        let time = times.chain(update.logs.iter().map(|log| log.timestamp)).max();
        let is_new = match (began, time) {
            (Some(began), Some(time)) => time.duration_since(began).as_millis() > 100,
            (began, _) => began.is_none(),
        };
        if is_new {
            began = time.or(began);
            batches.push(SolveStatus::default());
        }
        let batch = batches.last_mut().unwrap();
        batch.vertexes.extend(update.vertexes);
        batch.statuses.extend(update.statuses);
        batch.logs.extend(update.logs);
        batch.warnings.extend(update.warnings);
    }
    batches
}

#[test]
fn plain_lines_are_the_originals() {
    let mut display = Display::plain(Paper(Vec::new(), std::fs::File::open("/dev/null").unwrap()));
    for update in drawn() {
        display.update(update).unwrap();
        display.refresh().unwrap();
    }
    display.finish().unwrap();
    let printed = String::from_utf8(display.into_inner().0).unwrap();
    let (printed, expected) = (steps(&printed), steps(PLAIN));
    for (name, lines) in &expected {
        // A line that was interrupted in its middle is printed again from its begin.
        let whole = |lines: &[String]| -> Vec<String> {
            let next = |index: usize| lines.get(index + 1).map_or("", String::as_str);
            let is_whole = |(index, line): &(usize, &String)| !next(*index).starts_with(line.as_str());
            lines.iter().enumerate().filter(is_whole).map(|(_, line)| line.clone()).collect()
        };
        let found = printed.get(name).map(|lines| whole(lines));
        assert_eq!(found.as_deref(), Some(&whole(lines)[..]), "{name}");
    }
    assert_eq!(printed.len(), expected.len());
}

#[test]
fn raw_json_is_the_originals() {
    for (line, update) in TRACE.lines().zip(updates()) {
        assert_eq!(go_json(&update).unwrap(), line);
    }
}

#[test]
fn plain_lines_end_with_what_was_fetched_of_lazy_layers() {
    let mut display = Display::plain(Paper(Vec::new(), std::fs::File::open("/dev/null").unwrap()));
    let digest = format!("sha256:{}", "a".repeat(64));
    let news = format!(
        r#"{{"vertexes":[{{"digest":"sha256:v","name":"RUN go build","started":"2023-11-14T22:13:20Z"}}],
            "statuses":[{{"id":"layer {digest} lazy","vertex":"sha256:v","current":5000000,"total":100000000,
            "timestamp":"2023-11-14T22:13:21Z","started":"2023-11-14T22:13:20Z"}}]}}"#
    );
    display.update(serde_json::from_str(&news).unwrap()).unwrap();
    display.finish().unwrap();
    let printed = String::from_utf8(display.into_inner().0).unwrap();
    assert!(printed.ends_with("\n\nlazy layers: fetched 5.00MB of 100.00MB (5%)\n"), "{printed}");
}
