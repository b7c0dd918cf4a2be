//! Counts lines and words.

use std::io::Read;

fn count(text: &[u8]) -> (usize, usize) {
    let lines = memchr::memchr_iter(b'\n', text).count();
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
    (lines, words)
}

fn main() -> std::io::Result<()> {
    let mut lines = itoa::Buffer::new();
    let mut words = itoa::Buffer::new();
    for argument in std::env::args().skip(1) {
        if argument == "--help" {
            println!("words FILE…: counts lines and words");
            return Ok(());
        }
        let mut text = Vec::new();
        std::fs::File::open(&argument)?.read_to_end(&mut text)?;
        let counted = count(&text);
        println!("{} lines, {} words", lines.format(counted.0), words.format(counted.1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts() {
        assert_eq!(super::count(b"a b\nc\n"), (2, 3));
        assert_eq!(super::count(b""), (0, 0));
    }
}
