//! Text in Go's double quotes (`%q`), as it stands in BuildKit's messages.

use std::fmt::{self, Write as _};

/// Displays text as a Go string literal.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\x07' => f.write_str("\\a")?,
                '\x08' => f.write_str("\\b")?,
                '\x0c' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\x0b' => f.write_str("\\v")?,
                ' ' => f.write_char(' ')?,
                c if (c as u32) < 0x20 || c as u32 == 0x7f => write!(f, "\\x{:02x}", c as u32)?,
                c if c.is_control() || c.is_whitespace() || is_format(c) => match c as u32 {
                    n if n > 0xffff => write!(f, "\\U{n:08x}")?,
                    n => write!(f, "\\u{n:04x}")?,
                },
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// Characters that are neither control nor white space and still print nothing; the usual ones.
fn is_format(c: char) -> bool {
    matches!(c as u32, 0xad | 0x600..=0x605 | 0x61c | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
        | 0xd800..=0xf8ff | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        let text = "/bin/sh -c echo \"a\\b\"\n\t\x01\u{7f}é\u{a0}\u{200b}日\u{1f600}";
        assert_eq!(
            Quoted(text).to_string(),
            "\"/bin/sh -c echo \\\"a\\\\b\\\"\\n\\t\\x01\\x7fé\\u00a0\\u200b日\u{1f600}\""
        );
    }
}
