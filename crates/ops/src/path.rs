//! Paths of containers, as text: Go's lexical rules, which op digests and messages depend on.

/// The cleaned path, with a slash before it; `..` does not lead out of the root.
pub fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The last element; `.` for nothing and `/` for slashes alone.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_go() {
        assert_eq!(absolute("../a//./b/../c/"), "/a/c");
        assert_eq!(absolute(""), "/");
        assert_eq!([base("a/b/"), base(""), base("//"), base("a")], ["b", ".", "/", "a"]);
    }
}
