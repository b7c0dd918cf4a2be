//! The lines of the user's text that an error is about.

use std::io::{self, Write};

use castor_proto::errdefs::{Range, Source};

/// Prints the lines that `source` names, with some around them; nothing if it names none.
pub fn print_excerpt(source: &Source, out: &mut impl Write) -> io::Result<()> {
    let Some(info) = &source.info else { return Ok(()) };
    let lines: Vec<&[u8]> = info.data.split(|&byte| byte == b'\n').collect();
    let ranges: Vec<(i64, i64)> = source.ranges.iter().map(line_range).collect();
    let Some(first) = ranges.iter().map(|range| range.0).min() else { return Ok(()) };
    let last = ranges.iter().map(|range| range.1).max().unwrap_or(first).max(0);
    let count = lines.len() as i64;
    if first < 1 || first > count {
        return Ok(());
    }
    let (mut start, mut end) = (first, last.min(count));
    // A single line gets two lines on either side, several get one.
    let padding = if start == end { 4 } else { 2 };
    let mut padded = 0;
    while padded < padding {
        if start > 1 {
            start -= 1;
            padded += 1;
        }
        if end != count {
            end += 1;
            padded += 1;
        }
        padded += 1;
    }
    writeln!(out, "{}:{first}", info.filename)?;
    writeln!(out, "--------------------")?;
    for number in start..=end {
        let named = ranges.iter().any(|&(from, to)| (from..=to).contains(&number));
        write!(out, " {number:3} | {} ", if named { ">>>" } else { "   " })?;
        out.write_all(lines[(number - 1) as usize])?;
        writeln!(out)?;
    }
    writeln!(out, "--------------------")
}

/// First and last line; a range without an end is one line.
fn line_range(range: &Range) -> (i64, i64) {
    let line = |position: &Option<castor_proto::errdefs::Position>| {
        position.as_ref().map_or(0, |position| i64::from(position.line))
    };
    let start = line(&range.start);
    (start, line(&range.end).max(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_proto::errdefs::{Position, SourceInfo};

    fn printed(text: &str, ranges: &[(i32, i32)]) -> String {
        let position = |line| Some(Position { line, character: 0 });
        let source = Source {
            info: Some(SourceInfo { filename: "Dockerfile".into(), data: text.into(), ..SourceInfo::default() }),
            ranges: ranges.iter().map(|&(start, end)| Range { start: position(start), end: position(end) }).collect(),
        };
        let mut out = Vec::new();
        print_excerpt(&source, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_line() {
        assert_eq!(
            printed("FROM golden.test/base:1\nRUN [\"/etc/passwd\"]\n", &[(2, 2)]),
            "Dockerfile:2\n--------------------\n   1 |     FROM golden.test/base:1\n   2 | >>> RUN [\"/etc/passwd\"]\n   3 |     \n--------------------\n"
        );
    }

    #[test]
    fn several_lines() {
        assert_eq!(
            printed("a\nb\nc\nd\ne\nf", &[(3, 4)]),
            "Dockerfile:3\n--------------------\n   2 |     b\n   3 | >>> c\n   4 | >>> d\n   5 |     e\n--------------------\n"
        );
    }

    #[test]
    fn ranges_outside_the_text_print_nothing() {
        assert_eq!(printed("a", &[(7, 7)]), "");
        assert_eq!(printed("a", &[]), "");
        assert_eq!(printed("a", &[(0, 0)]), "");
    }
}
