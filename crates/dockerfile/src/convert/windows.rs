//! Paths of images for Windows: drives and backslashes. Behind this they are paths as everywhere.

use castor_llb::state::clean;
use castor_oci::Platform;

use crate::error::{DockerfileError, Result};

/// Whether paths are to be read as Windows would read them.
pub(super) fn is(platform: Option<&Platform>) -> bool {
    platform.is_some_and(|platform| platform.os == "windows")
}

/// A path without its drive, which must be that of the system, and with slashes.
pub(super) fn path(text: &str, keep_slash: bool) -> Result<String> {
    let refuse = |message: String| Err(DockerfileError::new(format!("removing drive letter: {message}")));
    if text.len() == 2 && text.ends_with(':') {
        return refuse(format!("No relative path specified in {}", crate::gofmt::quote(text)));
    }
    let slashed = text.replace('\\', "/");
    if slashed.starts_with("//") {
        return refuse("UNC paths are not supported".into());
    }
    let rest = match slashed.split_once(':') {
        None => slashed.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return refuse("The specified path is not on the system drive (C:)".into()),
    };
    let mut cleaned = clean(rest);
    if keep_slash && rest.ends_with('/') && cleaned.len() > 1 {
        cleaned.push('/');
    }
    Ok(cleaned)
}

/// A path as programs of Windows take it.
pub(super) fn native(path: &str) -> String {
    path.replace('/', "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_go_and_slashes_turn() {
        for (text, keep, want) in [
            (r"C:\a\b\", true, "/a/b/"),
            (r"c:\a\..\b\", false, "/b"),
            (r"C:a", false, "a"),
            ("/a/b", false, "/a/b"),
            (r"a\b", true, "a/b"),
            (r"C:\", true, "/"),
            ("", true, "."),
        ] {
            assert_eq!(path(text, keep).unwrap(), want, "{text}");
        }
        for (text, want) in [
            ("C:", "No relative path specified in \"C:\""),
            (r"\\host\share", "UNC paths are not supported"),
            (r"d:\", "The specified path is not on the system drive (C:)"),
        ] {
            assert_eq!(path(text, false).unwrap_err().to_string(), format!("removing drive letter: {want}"));
        }
        assert_eq!(native("/a/b"), r"\a\b");
    }
}
