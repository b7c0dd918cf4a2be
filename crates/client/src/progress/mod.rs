//! Drawing the progress of a build.

mod lazy;
mod plain;
mod rate;
mod trace;
mod tty;

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::status::{SolveStatus, VertexWarning, go_json};

/// How progress is drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// On a terminal in place, else as lines; as lines also on one that cannot move its cursor (`TERM=dumb`).
    #[default]
    Auto,
    /// In place; an error where there is no terminal.
    Tty,
    /// As lines.
    Plain,
    /// Every message as a line of JSON.
    RawJson,
    /// Not at all.
    Quiet,
}

/// A way of drawing that there is not.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// Its name is unknown.
    #[error("invalid progress mode {0}")]
    Unknown(String),
    /// It needs a terminal.
    #[error("failed to get console: provided file is not a console")]
    NoTerminal,
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        Ok(match text {
            "auto" | "" => Self::Auto,
            "tty" => Self::Tty,
            "plain" => Self::Plain,
            "rawjson" => Self::RawJson,
            "quiet" => Self::Quiet,
            _ => return Err(ModeError::Unknown(text.to_owned())),
        })
    }
}

/// Draws what it is told.
pub struct Display<W> {
    kind: Kind,
    out: W,
    limit: Duration,
    last_drawn: Option<Instant>,
    layers: lazy::Summary,
}

enum Kind {
    Tty(Box<(trace::Trace, tty::Screen)>),
    Plain(Box<(trace::Trace, plain::Printer)>),
    RawJson,
    Quiet,
}

impl<W: Write + AsFd + IsTerminal> Display<W> {
    /// A display that draws on `out`. `BUILDKIT_PROGRESS` says what `auto` is.
    pub fn new(out: W, mode: Mode) -> Result<Self, ModeError> {
        let mode = match (mode, std::env::var("BUILDKIT_PROGRESS")) {
            (Mode::Auto, Ok(name)) if !name.is_empty() => name.parse()?,
            _ => mode,
        };
        let terminal = out.is_terminal();
        let draws = mode == Mode::Tty || std::env::var_os("TERM").is_none_or(|name| name != "dumb");
        let kind = match mode {
            Mode::Tty if !terminal => return Err(ModeError::NoTerminal),
            Mode::Auto | Mode::Tty if terminal && draws => {
                Kind::Tty(Box::new((trace::Trace::live(tty::output_lines()), tty::Screen::new())))
            }
            Mode::Auto | Mode::Tty | Mode::Plain => Kind::plain(),
            Mode::RawJson => Kind::RawJson,
            Mode::Quiet => Kind::Quiet,
        };
        Ok(Self { kind, out, limit: intervals().1, last_drawn: None, layers: lazy::Summary::default() })
    }
}

impl<W: Write> Display<W> {
    /// A display of lines that draws on anything.
    pub fn plain(out: W) -> Self {
        Self { kind: Kind::plain(), out, limit: intervals().1, last_drawn: None, layers: lazy::Summary::default() }
    }

    /// What it draws on.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Draws all that comes until its end, then what is left to say. The warnings are returned.
    pub async fn run(&mut self, mut updates: mpsc::Receiver<SolveStatus>) -> io::Result<Vec<VertexWarning>>
    where
        W: AsFd,
    {
        let mut warnings = Vec::new();
        let mut ticker = tokio::time::interval(intervals().0);
        let mut resized = match self.kind {
            Kind::Tty(_) => signal(SignalKind::window_change()).ok(),
            _ => None,
        };
        loop {
            tokio::select! {
                update = updates.recv() => {
                    let Some(update) = update else { break };
                    warnings.extend(update.warnings.iter().cloned());
                    self.update(update)?;
                    ticker.reset();
                }
                _ = ticker.tick() => self.refresh()?,
                () = next(&mut resized) => self.refresh()?,
            }
        }
        self.finish()?;
        Ok(warnings)
    }

    /// Takes in a message, and draws unless that was done a moment ago.
    pub fn update(&mut self, status: SolveStatus) -> io::Result<()>
    where
        W: AsFd,
    {
        self.layers.update(&status);
        match &mut self.kind {
            Kind::Tty(state) => state.0.update(status),
            Kind::Plain(state) => state.0.update(status),
            Kind::RawJson => {
                let line = go_json(&status).map_err(io::Error::other)?;
                writeln!(self.out, "{line}")?;
                return self.out.flush();
            }
            Kind::Quiet => return Ok(()),
        }
        if self.last_drawn.is_some_and(|last| last.elapsed() < self.limit) {
            return Ok(());
        }
        self.last_drawn = Some(Instant::now());
        self.refresh()
    }

    /// Draws what there is.
    pub fn refresh(&mut self) -> io::Result<()>
    where
        W: AsFd,
    {
        match &mut self.kind {
            Kind::Tty(state) => {
                let (trace, screen) = &mut **state;
                screen.draw(trace, &mut self.out, false)?;
            }
            Kind::Plain(state) => {
                let (trace, printer) = &mut **state;
                printer.print(trace, &mut self.out)?;
            }
            Kind::RawJson | Kind::Quiet => {}
        }
        self.out.flush()
    }

    /// Draws for the last time, with what was fetched of lazy layers and the output of steps that failed.
    pub fn finish(&mut self) -> io::Result<()>
    where
        W: AsFd,
    {
        match &mut self.kind {
            Kind::Tty(state) => {
                let (trace, screen) = &mut **state;
                screen.draw(trace, &mut self.out, true)?;
                if !self.layers.is_empty() {
                    writeln!(self.out, "{}", self.layers)?;
                }
                trace.print_errors(&mut self.out)?;
            }
            Kind::Plain(state) => {
                let (trace, printer) = &mut **state;
                printer.print(trace, &mut self.out)?;
                if !self.layers.is_empty() {
                    writeln!(self.out, "\n{}", self.layers)?;
                }
                trace.print_errors(&mut self.out)?;
            }
            Kind::RawJson | Kind::Quiet => {}
        }
        self.out.flush()
    }
}

impl Kind {
    fn plain() -> Self {
        Self::Plain(Box::new((trace::Trace::default(), plain::Printer::new())))
    }
}

/// The next signal; for ever where there are none.
async fn next(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// How often is drawn when nothing happens, and at most when something does; `TTY_DISPLAY_RATE` (milliseconds) sets both.
fn intervals() -> (Duration, Duration) {
    let set = std::env::var("TTY_DISPLAY_RATE").ok().and_then(|text| text.parse::<u64>().ok());
    match set {
        Some(milliseconds) => (Duration::from_millis(milliseconds.max(1)), Duration::from_millis(milliseconds)),
        None => (Duration::from_millis(150), Duration::from_millis(100)),
    }
}
