//! Slash-separated paths as text, cleaned by Go's rules.

/// The shortest path that names the same file lexically: no empty elements, no
/// `.`, no `..` but at the front of a relative path. An empty path is `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut elements: Vec<&str> = Vec::new();
    for element in path.split('/') {
        match element {
            "" | "." => {}
            ".." => match elements.last() {
                Some(&last) if last != ".." => {
                    elements.pop();
                }
                _ if rooted => {}
                _ => elements.push(".."),
            },
            name => elements.push(name),
        }
    }
    match (rooted, elements.is_empty()) {
        (true, _) => format!("/{}", elements.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => elements.join("/"),
    }
}

/// Joins two paths and cleans the result. An empty part does not count.
pub fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean(&format!("{a}/{b}")),
    }
}

/// Splits a clean path into directory and last element. The directory of a
/// single name is empty.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Whether `path` is relative, clean, and names something below its root.
pub fn is_inside(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && path.split('/').all(|element| !matches!(element, "" | "." | ".."))
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
            assert_eq!(clean(path), want, "{path:?}");
        }
        assert_eq!(join("a", "../b"), "b");
        assert_eq!(join("", ""), "");
        assert_eq!(join("/", "x"), "/x");
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
}
