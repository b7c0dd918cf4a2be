//! Slash-separated paths, cleaned by Go's rules. They are bytes: names of files need not be UTF-8.

use std::borrow::Cow;

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// The shortest path that names the same file lexically: no empty elements, no
/// `.`, no `..` but at the front of a relative path. An empty path is `.`.
pub fn clean(path: impl AsRef<[u8]>) -> Vec<u8> {
    let path = path.as_ref();
    let rooted = path.starts_with(b"/");
    let mut elements: Vec<&[u8]> = Vec::new();
    for element in path.split(is_slash) {
        match element {
            b"" | b"." => {}
            b".." => match elements.last() {
                Some(&last) if last != b".." => {
                    elements.pop();
                }
                _ if rooted => {}
                _ => elements.push(b".."),
            },
            name => elements.push(name),
        }
    }
    match (rooted, elements.is_empty()) {
        (true, _) => [b"/", elements.join(&b'/').as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => elements.join(&b'/'),
    }
}

/// Joins two paths and cleans the result. An empty part does not count.
pub fn join(a: impl AsRef<[u8]>, b: impl AsRef<[u8]>) -> Vec<u8> {
    let (a, b) = (a.as_ref(), b.as_ref());
    match (a.is_empty(), b.is_empty()) {
        (true, true) => Vec::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean([a, b"/", b].concat()),
    }
}

/// Splits a clean path into directory and last element. The directory of a
/// single name is empty.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(is_slash) {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether `path` is relative, clean, and names something below its root.
pub fn is_inside(path: impl AsRef<[u8]>) -> bool {
    let path = path.as_ref();
    !path.is_empty() && !path.contains(&0) && path.split(is_slash).all(|element| !matches!(element, b"" | b"." | b".."))
}

/// Whether the clean path lies below the directory `dir`.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

/// A path for a message.
pub fn display(path: &(impl AsRef<[u8]> + ?Sized)) -> Cow<'_, str> {
    String::from_utf8_lossy(path.as_ref())
}

/// A path as patterns see it: each byte that is not part of a character counts for one, as in Go.
pub(crate) fn characters(path: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(path) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut text = String::with_capacity(path.len());
            for chunk in path.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
            Cow::Owned(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_is_lexical() {
        let cases = [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("a//b/./c/..", "a/b"),
            ("../a", "../a"),
            ("a/../..", ".."),
            ("/../a", "/a"),
            ("dir/", "dir"),
            ("!dir/", "!dir"),
        ];
        for (path, want) in cases {
            assert_eq!(clean(path), want.as_bytes(), "{path:?}");
        }
        assert_eq!(join("a", "../b"), b"b");
        assert_eq!(join("", ""), b"");
        assert_eq!(join("/", "x"), b"/x");
    }

    #[test]
    fn only_clean_relative_paths_are_inside() {
        for path in ["a", "a/b", "...", "a/..b"] {
            assert!(is_inside(path), "{path:?}");
        }
        for path in ["", ".", "..", "/a", "a/", "a//b", "a/../b", "../a", "a/.", "a\0b"] {
            assert!(!is_inside(path), "{path:?}");
        }
    }
    #[test]
    fn bytes_that_are_no_text_pass() {
        assert_eq!(clean(b"a/../caf\xe9/"), b"caf\xe9");
        assert_eq!(split(b"d/caf\xe9"), (&b"d"[..], &b"caf\xe9"[..]));
        assert!(is_inside(b"\xff/\xe9") && is_below(b"\xff/a", b"\xff") && !is_below(b"\xffa", b"\xff"));
        // A character that is cut off is as many as it has bytes.
        assert_eq!(characters(b"x\xe2\x82y\xe9"), "x\u{fffd}\u{fffd}y\u{fffd}");
    }
}
