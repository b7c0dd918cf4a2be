//! Text → nodes: lines joined, flags and arguments split, heredocs attached. Nothing is expanded here.

pub mod directive;
mod heredoc;
mod words;

use castor_llb::Range;

use crate::error::{DockerfileError, Result};
pub(crate) use heredoc::{Heredoc, parse_heredoc, trim_leading_tabs};

/// Longest line, without its end.
pub(crate) const MAX_LINE: usize = 65_535;

/// One instruction as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name, as written.
    pub name: String,
    /// Its arguments, by the rules of the instruction.
    pub args: Vec<String>,
    /// Whether the arguments were a JSON list.
    pub json: bool,
    /// Its flags (`--x=y`), unquoted.
    pub flags: Vec<String>,
    /// Its lines, joined.
    pub original: String,
    /// Documents behind it.
    pub(crate) heredocs: Vec<Heredoc>,
    /// Its first line, counted from 1.
    pub start: i32,
    /// Its last line.
    pub end: i32,
    /// Comments right before it.
    pub comments: Vec<String>,
    /// May have heredocs: ADD, COPY, RUN not in JSON form, and ONBUILD of them.
    takes_heredocs: bool,
}

impl Node {
    /// Its lines, one range each.
    pub fn location(&self) -> Vec<Range> {
        lines(self.start, self.end)
    }
}

/// One range for each line.
pub(crate) fn lines(start: i32, end: i32) -> Vec<Range> {
    (start..=end.max(start)).map(|line| Range::lines(line, line)).collect()
}

/// A parsed file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The instructions.
    pub nodes: Vec<Node>,
    /// The escape character.
    pub escape: char,
    /// Lines at which continuations with empty lines in them end.
    pub empty_continuations: Vec<i32>,
}

/// The file's lines, with their ends, as BuildKit's scanner gives them.
struct Lines<'a> {
    rest: &'a [u8],
    too_long: bool,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let end = self.rest.iter().position(|&b| b == b'\n');
        if end.unwrap_or(self.rest.len()) > MAX_LINE {
            self.too_long = true;
            return None;
        }
        let (line, rest) = self.rest.split_at(end.map_or(self.rest.len(), |end| end + 1));
        self.rest = rest;
        Some(line)
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn without_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// The line without the escape at its end that continues it; `None` if it has none.
fn continued(line: &str, escape: char) -> Option<&str> {
    let body = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // An escaped escape continues nothing.
    (!body.ends_with(escape)).then_some(body)
}

struct Parser<'a> {
    lines: Lines<'a>,
    directives: directive::Reader,
    escape: char,
    line: i32,
    comments: Vec<String>,
    empty_continuations: Vec<i32>,
}

/// Parses a file.
pub fn parse(text: &[u8]) -> Result<Parsed> {
    let mut parser = Parser {
        lines: Lines { rest: text, too_long: false },
        directives: directive::Reader::new("#", 0),
        escape: '\\',
        line: 0,
        comments: Vec::new(),
        empty_continuations: Vec::new(),
    };
    let mut nodes = Vec::new();
    while let Some(raw) = parser.lines.next() {
        if let Some(node) = parser.instruction(raw)? {
            nodes.push(node);
            parser.comments.clear();
        }
    }
    if nodes.is_empty() {
        return Err(DockerfileError::new("file with no instructions").at(&lines(parser.line, 0)));
    }
    if parser.lines.too_long {
        let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
        return Err(DockerfileError::new(message).at(&lines(parser.line, 0)));
    }
    Ok(Parsed { nodes, escape: parser.escape, empty_continuations: parser.empty_continuations })
}

impl Parser<'_> {
    /// Reads one instruction that starts with the line `raw`; `None` if there is none on it.
    fn instruction(&mut self, raw: &[u8]) -> Result<Option<Node>> {
        let raw = if self.line == 0 { raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw) } else { raw };
        let text = String::from_utf8_lossy(raw);
        if is_comment(&text) {
            let mut characters = text.chars();
            characters.next();
            match characters.as_str().trim() {
                "" => self.comments.clear(),
                comment => self.comments.push(comment.to_owned()),
            }
        }
        let line = without_end(&text).trim_start();
        if self.directive(line)? {
            self.comments.pop();
        }
        self.line += 1;
        let start = self.line;
        let line = if is_comment(line) { "" } else { line };
        let (mut joined, mut open) = match continued(line, self.escape) {
            Some(line) => (line.to_owned(), true),
            None if line.is_empty() => return Ok(None),
            None => (line.to_owned(), false),
        };
        let mut has_empty_line = false;
        while open {
            let Some(raw) = self.lines.next() else { break };
            let text = String::from_utf8_lossy(raw);
            let line = without_end(&text);
            self.directive(line)?;
            self.line += 1;
            if is_comment(line) {
                continue;
            }
            if line.trim().is_empty() {
                has_empty_line = true;
                continue;
            }
            match continued(line, self.escape) {
                Some(line) => joined.push_str(line),
                None => {
                    joined.push_str(line);
                    open = false;
                }
            }
        }
        if has_empty_line {
            self.empty_continuations.push(self.line);
        }
        let at = |parser: &Self| lines(start, parser.line);
        let mut node = words::node(&joined, self.escape, false).map_err(|error| error.at(&at(self)))?;
        node.comments = self.comments.clone();
        if node.takes_heredocs && joined.contains("<<") {
            let found = heredoc::in_line(&joined).map_err(|error| error.at(&at(self)))?;
            for heredoc in found {
                let heredoc = self.document(heredoc);
                node.heredocs.push(heredoc.map_err(|error| error.at(&at(self)))?);
            }
        }
        (node.start, node.end) = (start, self.line);
        Ok(Some(node))
    }

    /// Reads a heredoc's lines up to its end.
    fn document(&mut self, mut heredoc: Heredoc) -> Result<Heredoc> {
        for raw in self.lines.by_ref() {
            self.line += 1;
            let text = String::from_utf8_lossy(raw);
            let mut line = without_end(&text);
            if heredoc.chomp {
                line = line.trim_start_matches('\t');
            }
            if line == heredoc.name {
                return Ok(heredoc);
            }
            heredoc.content.push_str(&text);
        }
        Err(DockerfileError::new("unterminated heredoc"))
    }

    /// Looks for a directive in a line; those count only at the head of the file.
    fn directive(&mut self, line: &str) -> Result<bool> {
        let at = lines(self.line, 0);
        let Some(directive) = self.directives.line(line).map_err(|error| error.at(&at))? else { return Ok(false) };
        if directive.name == "escape" {
            self.escape = match directive.value.as_str() {
                "`" => '`',
                "\\" => '\\',
                value => {
                    let message = format!("invalid escape token '{value}' does not match ` or \\");
                    return Err(DockerfileError::new(message).at(&at));
                }
            };
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, i32, i32)> {
        parse(text.as_bytes()).unwrap().nodes.into_iter().map(|node| (node.original, node.start, node.end)).collect()
    }

    #[test]
    fn joins_lines_and_leaves_comments_out() {
        let text = "FROM x\nRUN a \\\n  b \\\n# c\n\n  d\n\n RUN e\\\\\n";
        assert_eq!(names(text), [("FROM x".into(), 1, 1), ("RUN a   b   d".into(), 2, 6), ("RUN e\\\\".into(), 8, 8)]);
        assert_eq!(parse(text.as_bytes()).unwrap().empty_continuations, [6]);
    }

    #[test]
    fn the_escape_character_can_be_a_backtick() {
        let parsed = parse(b"# escape=`\nFROM x\nRUN a `\n b\\\n").unwrap();
        assert_eq!(parsed.nodes[1].original, "RUN a  b\\");
        assert_eq!(parse(b"# escape=q\nFROM x").unwrap_err().locations()[0][0].start.line, 0);
    }

    #[test]
    fn heredocs_end_at_their_word() {
        let parsed = parse(b"RUN <<A <<-B cat\n1\nA\n\t2\n\tB\nRUN x\n").unwrap();
        let contents: Vec<&str> = parsed.nodes[0].heredocs.iter().map(|doc| doc.content.as_str()).collect();
        assert_eq!(contents, ["1\n", "\t2\n"]);
        assert_eq!((parsed.nodes[0].start, parsed.nodes[0].end), (1, 5));
        let error = parse(b"FROM x\nRUN <<A\nb").unwrap_err();
        assert_eq!((error.message(), error.locations()[0].len()), ("unterminated heredoc", 2));
    }

    #[test]
    fn a_line_can_be_too_long() {
        let long = |n: usize| format!("FROM x\nRUN {}", "x".repeat(n - 4));
        assert!(parse(long(MAX_LINE).as_bytes()).is_ok());
        let error = parse(long(MAX_LINE + 1).as_bytes()).unwrap_err();
        assert_eq!(error.message(), "dockerfile line greater than max allowed size of 65535");
        assert!(parse(b"# nothing\n").unwrap_err().message() == "file with no instructions");
    }
}
