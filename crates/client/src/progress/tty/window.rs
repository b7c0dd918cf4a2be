//! The end of what a running step prints, as a terminal would show it.

use std::collections::VecDeque;

/// Cells of a line; what comes after them is not kept.
const COLUMNS: usize = 1024;

/// Characters of an escape sequence; a longer one is none.
const SEQUENCE: usize = 64;

/// A few lines in which a step's output ends.
#[derive(Debug)]
pub struct Window {
    rows: VecDeque<Vec<char>>,
    height: usize,
    /// Where the next character goes.
    row: usize,
    column: usize,
    /// The begin of a character whose end is still to come.
    partial: Vec<u8>,
    state: State,
    bytes: u64,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC `[`: the parameters.
    Control(String),
    /// After ESC `]` or the like: a text for the terminal, up to BEL or ESC `\`.
    Message,
    /// In such a text after ESC.
    MessageEscape,
    /// After ESC and an intermediate: one character more.
    Intermediate,
}

impl Window {
    /// One that shows `lines` lines at most.
    pub fn new(lines: usize) -> Self {
        Self {
            rows: VecDeque::from([Vec::new()]),
            // After the last line the next one begins, and is empty.
            height: lines + 1,
            row: 0,
            column: 0,
            partial: Vec::new(),
            state: State::Text,
            bytes: 0,
        }
    }

    /// How much was printed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes in what was printed.
    pub fn feed(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(data);
        let mut rest = &bytes[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    text.chars().for_each(|c| self.put(c));
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    String::from_utf8_lossy(valid).chars().for_each(|c| self.put(c));
                    match error.error_len() {
                        Some(length) => {
                            self.put(char::REPLACEMENT_CHARACTER);
                            rest = &after[length..];
                        }
                        None => {
                            self.partial = after.to_vec();
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The lines that are not empty, the oldest first.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let filled = self.rows.iter().filter(|row| row.iter().any(|c| !c.is_whitespace()));
        let skip = filled.clone().count().saturating_sub(self.height - 1);
        filled.skip(skip).map(|row| row.iter().collect::<String>().trim_end().to_owned())
    }

    fn put(&mut self, c: char) {
        self.state = match std::mem::take(&mut self.state) {
            State::Text => self.text(c),
            State::Escape => match c {
                '[' => State::Control(String::new()),
                ']' | 'P' | '^' | '_' | 'X' => State::Message,
                ' '..='/' => State::Intermediate,
                _ => State::Text,
            },
            State::Control(mut parameters) => match c {
                '@'..='~' => {
                    self.control(&parameters, c);
                    State::Text
                }
                ' '..='?' if parameters.len() < SEQUENCE => {
                    parameters.push(c);
                    State::Control(parameters)
                }
                '\x1b' => State::Escape,
                _ => State::Text,
            },
            State::Message | State::MessageEscape if c == '\x07' => State::Text,
            State::Message if c == '\x1b' => State::MessageEscape,
            State::MessageEscape if c == '\\' => State::Text,
            State::Message | State::MessageEscape => State::Message,
            State::Intermediate => State::Text,
        };
    }

    fn text(&mut self, c: char) -> State {
        match c {
            '\x1b' => return State::Escape,
            '\n' => {
                self.row += 1;
                self.column = 0;
                while self.rows.len() <= self.row {
                    self.rows.push_back(Vec::new());
                }
                while self.rows.len() > self.height {
                    self.rows.pop_front();
                    self.row -= 1;
                }
            }
            '\r' => self.column = 0,
            '\x08' => self.column = self.column.saturating_sub(1),
            '\t' => self.column = (self.column / 8 + 1) * 8,
            c if c.is_control() => {}
            c if self.column < COLUMNS => {
                let column = self.column;
                let row = self.current();
                if row.len() <= column {
                    row.resize(column + 1, ' ');
                }
                row[column] = c;
                self.column += 1;
            }
            _ => {}
        }
        State::Text
    }

    fn current(&mut self) -> &mut Vec<char> {
        // There always is a row at `row`: both change together.
        &mut self.rows[self.row]
    }

    /// A control sequence; those that only change how text looks, and those that are unknown, do nothing.
    fn control(&mut self, parameters: &str, kind: char) {
        let first = parameters.split(';').next().and_then(|text| text.parse::<usize>().ok());
        let count = first.unwrap_or(1).clamp(1, COLUMNS);
        let column = self.column;
        match (kind, first.unwrap_or(0)) {
            ('A', _) => self.row = self.row.saturating_sub(count),
            ('B', _) => self.row = (self.row + count).min(self.rows.len() - 1),
            ('C', _) => self.column = (column + count).min(COLUMNS),
            ('D', _) => self.column = column.saturating_sub(count),
            ('E', _) => (self.row, self.column) = ((self.row + count).min(self.rows.len() - 1), 0),
            ('F', _) => (self.row, self.column) = (self.row.saturating_sub(count), 0),
            ('G', _) => self.column = count - 1,
            ('K', 0) => self.current().truncate(column),
            ('K', 1) => self.current().iter_mut().take(column + 1).for_each(|cell| *cell = ' '),
            ('K', 2) => self.current().clear(),
            ('J', 0) => {
                self.current().truncate(column);
                self.rows.truncate(self.row + 1);
            }
            ('J', 2 | 3) => {
                self.rows.iter_mut().for_each(Vec::clear);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: usize, pieces: &[&[u8]]) -> Vec<String> {
        let mut window = Window::new(lines);
        pieces.iter().for_each(|piece| window.feed(piece));
        window.lines().collect()
    }

    #[test]
    fn the_last_lines() {
        let all: String = (0..20).map(|number| format!("line {number}\n")).collect();
        assert_eq!(shown(3, &[all.as_bytes()]), ["line 17", "line 18", "line 19"]);
        assert_eq!(shown(3, &[all.as_bytes(), b"20"]), ["line 18", "line 19", "20"]);
        assert_eq!(shown(3, &[b"a\n\n\n\nb\n"]), ["b"]);
    }

    #[test]
    fn lines_that_are_written_over() {
        assert_eq!(shown(6, &[b"progress 1\rprogress 2\r\nnext"]), ["progress 2", "next"]);
        assert_eq!(shown(6, &[b"50 %", b"\x08\x08\x08\x0860"]), ["60 %"]);
        assert_eq!(shown(6, &[b"long line\r\x1b[Kx"]), ["x"]);
        assert_eq!(shown(6, &[b"one\ntwo\n\x1b[2A\x1b[2KONE\n\x1b[2KTWO\n"]), ["ONE", "TWO"]);
        assert_eq!(shown(6, &[b"a\nb\nc\x1b[2J"]), [""; 0]);
    }

    #[test]
    fn escapes_are_not_shown() {
        assert_eq!(shown(6, &[b"\x1b[31mred\x1b[0m\tx"]), ["red     x"]);
        assert_eq!(shown(6, &[b"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b(Bc\x1b=d"]), ["abcd"]);
        // Also one that comes in pieces, and one that is none.
        assert_eq!(shown(6, &[b"\x1b", b"[3", b"1mred"]), ["red"]);
        assert_eq!(shown(6, &[b"\x1b[\x1b[1mx"]), ["x"]);
    }

    #[test]
    fn characters_that_come_in_pieces() {
        let text = "aö€😀".as_bytes();
        for cut in 0..text.len() {
            assert_eq!(shown(6, &[&text[..cut], &text[cut..]]), ["aö€😀"], "{cut}");
        }
        assert_eq!(shown(6, &[b"a\xffb"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = Window::new(6);
        for _ in 0..100 {
            window.feed(&[b'x'; 10_000]);
            window.feed(b"\x1b[999999999C\x1b[999999999B\x1b[;;;;m");
        }
        window.feed(&[b'\n'; 1000]);
        assert!(window.rows.len() <= 7 && window.rows.iter().all(|row| row.len() <= COLUMNS));
        window.feed(&b"\x1b[".iter().copied().chain([b'1'; 1000]).collect::<Vec<u8>>());
        assert_eq!(window.bytes(), 100 * 10_031 + 1000 + 1002);
    }
}
