//! A pseudo-terminal with a screen: programs write to its line, and a test looks at what its screen shows then.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
pub use vt100::Color;

/// How long what a test waits for may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Lines that are kept above the screen.
const SCROLLBACK: usize = 1000;

/// A terminal.
pub struct Terminal {
    line: File,
    far_end: OwnedFd,
    bytes: mpsc::Receiver<Vec<u8>>,
    screen: vt100::Parser,
    marks: u32,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("size", &self.screen.screen().size()).finish_non_exhaustive()
    }
}

impl Terminal {
    /// One of this size.
    pub fn new(rows: u16, columns: u16) -> Self {
        let far_end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&far_end).unwrap();
        unlockpt(&far_end).unwrap();
        let name = ptsname(&far_end, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap());
        let (sender, bytes) = mpsc::channel();
        let mut reading = File::from(far_end.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error when nobody has the line open any more.
            while let Ok(count) = reading.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let screen = vt100::Parser::new(rows, columns, SCROLLBACK);
        let mut terminal = Self { line, far_end, bytes, screen, marks: 0 };
        terminal.resize(rows, columns);
        terminal
    }

    /// Gives it another size. Programs of which it is the controlling terminal get a signal.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        tcsetwinsize(&self.far_end, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        self.screen.screen_mut().set_size(rows, columns);
    }

    /// The end of the line to which programs write.
    pub fn line(&self) -> File {
        self.line.try_clone().unwrap()
    }

    /// Types keys.
    pub fn type_keys(&self, keys: &[u8]) {
        File::from(self.far_end.try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// What the screen shows once all that was written is on it: its rows without blanks at their ends, up to the last one
    /// that is not empty.
    pub fn rows(&mut self) -> Vec<String> {
        // A message that no terminal shows, after all that was written.
        self.marks += 1;
        let mark = format!("\x1b]7;mark {}\x07", self.marks).into_bytes();
        self.line.write_all(&mark).unwrap();
        let mut seen = Vec::new();
        while !seen.windows(mark.len()).any(|window| window == mark) {
            seen.extend(self.bytes.recv_timeout(PATIENCE).expect("the terminal's line is closed"));
        }
        self.screen.process(&seen);
        self.shown()
    }

    /// Waits until the screen shows what is wanted.
    pub fn wait_for(&mut self, what: &str, mut wanted: impl FnMut(&[String]) -> bool) -> Vec<String> {
        loop {
            let rows = self.shown();
            if wanted(&rows) {
                return rows;
            }
            match self.bytes.recv_timeout(PATIENCE) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => panic!("{what} is not on the screen: {rows:#?}"),
            }
        }
    }

    fn shown(&self) -> Vec<String> {
        let screen = self.screen.screen();
        let rows: Vec<String> = screen.rows(0, screen.size().1).map(|row| row.trim_end().to_owned()).collect();
        let used = rows.iter().rposition(|row| !row.is_empty()).map_or(0, |last| last + 1);
        rows[..used].to_vec()
    }

    /// How many lines have left the screen at its top.
    pub fn scrolled(&mut self) -> usize {
        self.screen.screen_mut().set_scrollback(usize::MAX);
        let lines = self.screen.screen().scrollback();
        self.screen.screen_mut().set_scrollback(0);
        lines
    }

    /// The colour of a character, by row and column from 0.
    pub fn colour(&self, row: u16, column: u16) -> Color {
        self.screen.screen().cell(row, column).map_or(Color::Default, vt100::Cell::fgcolor)
    }

    /// Whether the cursor is seen.
    pub fn has_cursor(&self) -> bool {
        !self.screen.screen().hide_cursor()
    }
}
