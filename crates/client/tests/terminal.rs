//! The view that is drawn in place, on a real pseudo-terminal, judged by what its screen shows then.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write as _;

use castor_client::progress::{Display, Mode};
use castor_client::status::{SolveStatus, Vertex, VertexLog, VertexStatus, VertexWarning};
use castor_progress::Timestamp;
use castor_testkit::{Color, Terminal};

const TRACE: &str = include_str!("../testdata/progress/several-stages.trace.jsonl");

fn display(terminal: &Terminal) -> Display<File> {
    Display::new(terminal.line(), Mode::Tty).unwrap()
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp::new(1_700_000_000 + seconds, 0).unwrap())
}

fn step(name: &str, started: Option<Timestamp>, completed: Option<Timestamp>) -> SolveStatus {
    let vertex =
        Vertex { digest: format!("sha256:{name}"), name: name.into(), started, completed, ..Vertex::default() };
    SolveStatus { vertexes: vec![vertex], ..SolveStatus::default() }
}

fn work(step: &str, id: &str, current: i64, total: i64, completed: Option<Timestamp>) -> SolveStatus {
    let status = VertexStatus {
        id: id.into(),
        vertex: format!("sha256:{step}"),
        current,
        total,
        started: at(0),
        completed,
        timestamp: at(1).unwrap(),
        ..VertexStatus::default()
    };
    SolveStatus { statuses: vec![status], ..SolveStatus::default() }
}

fn log(step: &str, text: &str) -> SolveStatus {
    let log = VertexLog {
        vertex: format!("sha256:{step}"),
        stream: 1,
        data: bytes::Bytes::copy_from_slice(text.as_bytes()),
        timestamp: at(1).unwrap(),
    };
    SolveStatus { logs: vec![log], ..SolveStatus::default() }
}

/// Tells the display, and makes it draw at once.
fn show(display: &mut Display<File>, news: impl IntoIterator<Item = SolveStatus>) {
    for news in news {
        display.update(news).unwrap();
    }
    display.refresh().unwrap();
}

/// A line without its time, which must be at the right edge.
fn timed(row: &str, columns: usize) -> String {
    assert_eq!(row.chars().count(), columns - 1, "{row:?}");
    let (text, seconds) = row.rsplit_once(' ').unwrap();
    assert!(seconds.strip_suffix('s').is_some_and(|number| number.parse::<f64>().is_ok()), "{row:?}");
    text.trim_end().to_owned()
}

#[test]
fn steps_and_their_work_have_lines() {
    let mut terminal = Terminal::new(24, 80);
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let mut display = display(&terminal);
    show(
        &mut display,
        [
            step("[internal] load build context", at(0), None),
            work("[internal] load build context", "transferring context:", 1_500_000, 0, None),
            step("[1/2] FROM base", at(0), at(3)),
            work("[1/2] FROM base", &digest, 5_000_000, 20_000_000, None),
            work("[1/2] FROM base", "extracting it", 0, 0, at(2)),
            step("[2/2] RUN make", at(3), None),
            step("not begun", None, None),
        ],
    );
    let rows = terminal.rows();
    assert!(rows[0].starts_with("[+] Building ") && rows[0].ends_with("s (1/4)"), "{rows:#?}");
    let lines: Vec<String> = rows[1..].iter().map(|row| timed(row, 80)).collect();
    assert_eq!(lines[0], " => [internal] load build context");
    assert!(lines[1].starts_with(" => => transferring context:"), "{lines:#?}");
    assert!(lines[1].contains("<=>") && lines[1].ends_with("]   1.50MB"), "{lines:#?}");
    assert_eq!(lines[2], " => [1/2] FROM base");
    assert_eq!(lines[3], " => => sha256:0123456789ab     [==>     ]   5.00MB / 20.00MB");
    assert_eq!(lines[4], " => => extracting it");
    assert_eq!(lines[5], " => [2/2] RUN make");
    assert_eq!(lines.len(), 6);
    assert_eq!(rows[3].split_whitespace().last(), Some("3.0s"));
    // The bars stand below each other.
    assert_eq!(rows[2].find('['), rows[4].find('['));
    // What is done has a colour, what runs has none.
    let colour = |row: u16| terminal.colour(row, 5);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let chosen = std::env::var_os("BUILDKIT_COLORS").is_some();
    assert_eq!(colour(6), Color::Default);
    assert!(plain || chosen || colour(3) == Color::Idx(4), "{:?}", colour(3));
    assert!(terminal.has_cursor());

    show(&mut display, [work("[1/2] FROM base", &digest, 20_000_000, 20_000_000, at(3))]);
    let row = terminal.rows()[4].clone();
    assert_eq!(timed(&row, 80), " => => sha256:0123456789ab 20.00MB / 20.00MB");
}

#[test]
fn it_is_drawn_in_place() {
    let mut terminal = Terminal::new(10, 80);
    terminal.line().write_all(b"$ buildctl build\n").unwrap();
    let mut display = display(&terminal);
    for number in 0..50 {
        show(&mut display, [step("[1/1] RUN true", at(0), None), log("[1/1] RUN true", &format!("line {number}\n"))]);
    }
    let rows = terminal.rows();
    assert_eq!(rows[0], "$ buildctl build");
    assert!(rows[1].starts_with("[+] Building ") && rows[1].ends_with("(0/1)"), "{rows:#?}");
    assert_eq!(timed(&rows[2], 80), " => [1/1] RUN true");
    assert_eq!(rows.len(), 3, "ten rows are too few for output: {rows:#?}");
    assert_eq!(terminal.scrolled(), 0);
    // Fewer lines than before leave nothing behind.
    terminal.resize(24, 80);
    show(&mut display, []);
    let rows = terminal.rows();
    let output: Vec<String> = (44..50).map(|number| format!(" => => # line {number}")).collect();
    assert_eq!(rows[3..], output);
    show(&mut display, [step("[1/1] RUN true", at(0), at(2))]);
    display.finish().unwrap();
    let rows = terminal.rows();
    assert!(rows[1].ends_with("(1/1) FINISHED"), "{rows:#?}");
    assert_eq!((timed(&rows[2], 80).as_str(), rows.len()), (" => [1/1] RUN true", 3));
}

#[test]
fn what_runs_stays_on_a_small_screen() {
    let mut terminal = Terminal::new(8, 60);
    let mut display = display(&terminal);
    let name = |number: i64| format!("[{number}/30] RUN step");
    show(
        &mut display,
        (0..30).map(|number| step(&name(number), at(number), Some(at(number + 1).unwrap()).filter(|_| number != 3))),
    );
    let rows = terminal.rows();
    assert!(rows.len() <= 7 && rows[0].ends_with("(29/30)"), "{rows:#?}");
    assert!(rows[1].contains("[3/30] RUN step"), "{rows:#?}");
    assert!(rows[6].contains("[29/30] RUN step"), "{rows:#?}");
    assert_eq!(terminal.scrolled(), 0);
    // At the end all is shown, once.
    show(&mut display, [step(&name(3), at(3), at(4))]);
    display.finish().unwrap();
    terminal.rows();
    assert_eq!(terminal.scrolled(), 31 + 1 - 8);
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let mut terminal = Terminal::new(24, 100);
    let mut display = display(&terminal);
    let name = "[stage 1/1] RUN a command that is quite long, longer than small terminals are wide, and says so";
    show(&mut display, [step(name, at(0), None), work(name, "work", 10, 100, None)]);
    assert_eq!(timed(&terminal.rows()[1], 100), format!(" => {}", &name[..90]));
    for columns in [40, 120, 13, 3, 1, 80] {
        terminal.resize(24, columns);
        // A narrow terminal may break lines that were drawn for a wide one: what is drawn anew has none of that.
        show(&mut display, []);
        show(&mut display, []);
        let rows = terminal.rows();
        assert!(rows.len() <= 3, "{columns}: {rows:#?}");
        assert!(rows.iter().all(|row| row.chars().count() < usize::from(columns).max(2)), "{columns}: {rows:#?}");
    }
    let rows = terminal.rows();
    assert!(rows[0].starts_with("[+] Building "), "{rows:#?}");
    assert!(timed(&rows[2], 80).contains("10B / 100B"), "{rows:#?}");
}

#[test]
fn lazy_layers_have_a_share_and_a_last_line() {
    let mut terminal = Terminal::new(24, 140);
    let mut display = display(&terminal);
    let layer = |letter: &str, state: &str| format!("layer sha256:{} {state}", letter.repeat(64));
    let name = "[2/2] RUN go build";
    show(
        &mut display,
        [
            step(name, at(0), None),
            work(name, &layer("a", "lazy"), 12_350_000, 139_920_000, None),
            work(name, &layer("b", "eager: it has no annotation of a TOC digest"), 50_400_000, 50_400_000, at(1)),
        ],
    );
    let rows = terminal.rows();
    let lazy = timed(&rows[2], 140);
    assert!(lazy.starts_with(" => => layer sha256:aaaaaaaaaaaa lazy "), "{lazy}");
    assert!(lazy.ends_with("]  12.35MB / 139.92MB         8%"), "{lazy}");
    let eager = timed(&rows[3], 140);
    assert!(eager.ends_with("50.40MB / 50.40MB (100%)"), "{eager}");
    show(&mut display, [step(name, at(0), at(9))]);
    display.finish().unwrap();
    assert_eq!(
        terminal.rows().last().unwrap(),
        "lazy layers: fetched 62.75MB of 190.32MB (32%); 1 of 2 fell back: sha256:bbbbbbbbbbbb (it has no annotation of a TOC digest)"
    );
}

#[test]
fn failures_and_warnings_are_told() {
    let mut terminal = Terminal::new(24, 80);
    let mut display = display(&terminal);
    let name = "[2/2] RUN false";
    let mut failed = step(name, at(0), at(1));
    failed.vertexes[0].error = "process did not complete successfully".into();
    let mut canceled = step("[3/3] RUN sleep", at(0), at(1));
    canceled.vertexes[0].error = "context canceled".into();
    let warning =
        VertexWarning { vertex: format!("sha256:{name}"), short: "mind the gap".into(), ..VertexWarning::default() };
    show(
        &mut display,
        [
            step(name, at(0), None),
            log(name, "one\ntwo\n"),
            SolveStatus { warnings: vec![warning], ..SolveStatus::default() },
            failed,
            canceled,
        ],
    );
    display.finish().unwrap();
    let rows = terminal.rows();
    let lines: Vec<String> = rows[1..4].iter().map(|row| timed(row, 80)).collect();
    assert_eq!(lines, [" => ERROR [2/2] RUN false", " => WARN: mind the gap", " => CANCELED [3/3] RUN sleep"]);
    assert_eq!(rows[4..6], ["------", " > [2/2] RUN false:"]);
    assert!(rows[6].ends_with(" one") && rows[7].ends_with(" two") && rows[8] == "------", "{rows:#?}");
}

#[test]
fn nothing_that_is_told_moves_the_cursor() {
    let mut terminal = Terminal::new(24, 80);
    terminal.line().write_all(b"above\n").unwrap();
    let mut display = display(&terminal);
    let evil = "RUN \x1b[H\x1b[2Jgone\r\nnext\x07 日本語";
    show(
        &mut display,
        [step(evil, at(0), None), log(evil, "\x1b[5A\x1b[2J\x1b[?1049hmade\n"), work(evil, "a\x1b[9Bb\n", 1, 0, None)],
    );
    show(&mut display, []);
    let rows = terminal.rows();
    assert_eq!(rows[0], "above");
    assert!(rows[2].starts_with(" => RUN  [H [2Jgone  next  日本語"), "{rows:#?}");
    assert_eq!(rows[3], " => => # made");
    assert!(rows[4].starts_with(" => => a [9Bb "), "{rows:#?}");
    assert_eq!(rows.len(), 5);
}

#[test]
fn a_recorded_build_ends_with_all_its_steps() {
    let mut terminal = Terminal::new(40, 100);
    let mut display = display(&terminal);
    show(&mut display, TRACE.lines().map(|line| serde_json::from_str(line).unwrap()));
    display.finish().unwrap();
    let rows = terminal.rows();
    assert!(rows[0].ends_with(" FINISHED"), "{rows:#?}");
    let names: std::collections::BTreeSet<String> = TRACE
        .lines()
        .flat_map(|line| serde_json::from_str::<SolveStatus>(line).unwrap().vertexes)
        .filter(|vertex| vertex.started.is_some())
        .map(|vertex| vertex.name.chars().take(60).collect())
        .collect();
    for name in names {
        assert!(rows.iter().any(|row| row.contains(&name)), "{name} in {rows:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_size_is_followed_also_where_nothing_happens() {
    let mut terminal = Terminal::new(24, 80);
    let mut display = display(&terminal);
    let (sender, news) = tokio::sync::mpsc::channel(4);
    let drawing = tokio::spawn(async move { display.run(news).await });
    sender.send(step("[1/1] RUN true", at(0), None)).await.unwrap();
    // The name of the step is drawn, so the display is running; then the terminal becomes narrow.
    terminal.wait_for("the step", |rows| rows.iter().any(|row| row.contains("RUN true")));
    terminal.resize(24, 30);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::WINCH).unwrap();
    terminal.wait_for("a narrow line", |rows| {
        rows.iter().any(|row| row.starts_with(" => [1/1] RUN true") && row.chars().count() == 29)
    });
    drop(sender);
    drawing.await.unwrap().unwrap();
}
