//! The order in which a tree is announced.

use std::cmp::Ordering;
use std::collections::HashSet;

use bytes::Bytes;

use crate::{Stat, TransferError, mode, path};

/// Compares two paths in the order of a walk: by directory first, so that a
/// slash is lower than every other character.
pub fn compare_paths(a: impl AsRef<[u8]>, b: impl AsRef<[u8]>) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    a.as_ref().iter().map(key).cmp(b.as_ref().iter().map(key))
}

/// Checks that a peer announces a tree: clean paths in order, below announced
/// directories, hard links to announced files.
#[derive(Debug)]
pub struct Validator {
    /// The open directories from the root down, each with its last child.
    open: Vec<(Bytes, Vec<u8>)>,
    files: HashSet<Bytes>,
}

impl Default for Validator {
    fn default() -> Self {
        Self { open: vec![(Bytes::new(), Vec::new())], files: HashSet::new() }
    }
}

impl Validator {
    /// A validator that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next entry.
    pub fn check(&mut self, stat: &Stat) -> Result<(), TransferError> {
        let bad = |what: String| Err(TransferError::protocol("sender", what));
        if !path::is_inside(&stat.path) {
            return bad(format!("invalid path {:?}", path::display(&stat.path)));
        }
        let (dir, name) = path::split(&stat.path);
        while self.open.len() > 1 && self.open.last().is_some_and(|(open, _)| open != dir) {
            self.open.pop();
        }
        match self.open.last_mut() {
            Some((open, last)) if open == dir && last.as_slice() < name => name.clone_into(last),
            Some((open, last)) => {
                let (path, last) = (path::display(&stat.path), path::join(open, last));
                return bad(format!("changes out of order: {path:?} {:?}", path::display(&last)));
            }
            None => return bad("no root".to_owned()),
        }
        if mode::is_dir(stat.mode) {
            self.open.push((stat.path.clone(), Vec::new()));
        } else if !mode::is_symlink(stat.mode) {
            if stat.linkname.is_empty() {
                self.files.insert(stat.path.clone());
            } else if !self.files.contains(&stat.linkname) {
                let (path, target) = (path::display(&stat.path), path::display(&stat.linkname));
                return bad(format!("invalid link {path} to unknown path: {target:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(path: &str, mode: u32, linkname: &str) -> Stat {
        Stat { path: path.to_owned().into(), mode, linkname: linkname.to_owned().into(), ..Stat::default() }
    }

    fn check(entries: &[(&str, u32, &str)]) -> Result<(), TransferError> {
        let mut validator = Validator::new();
        entries.iter().try_for_each(|(path, mode, link)| validator.check(&stat(path, *mode, link)))
    }

    #[test]
    fn a_slash_is_lower_than_everything() {
        assert_eq!(compare_paths("a/b", "a-b"), Ordering::Less);
        assert_eq!(compare_paths("a", "a/b"), Ordering::Less);
        assert_eq!(compare_paths("a/b", "a/b"), Ordering::Equal);
        assert_eq!(compare_paths("a\u{1}", "a/z"), Ordering::Greater);
    }

    #[test]
    fn a_tree_passes() {
        check(&[
            ("a", mode::DIR, ""),
            ("a/x", 0o644, ""),
            ("a/y", mode::DIR, ""),
            ("a/y/z", 0o644, "a/x"),
            ("a-b", 0o644, ""),
            ("b", mode::SYMLINK, "/anywhere"),
        ])
        .unwrap();
    }

    #[test]
    fn what_is_no_tree_does_not() {
        let cases: &[&[(&str, u32, &str)]] = &[
            &[("../a", 0o644, "")],
            &[("/a", 0o644, "")],
            &[("a//b", 0o644, "")],
            &[("", mode::DIR, "")],
            &[(".", mode::DIR, "")],
            &[("b", 0o644, ""), ("a", 0o644, "")],
            &[("a", 0o644, ""), ("a", 0o644, "")],
            &[("a/b", 0o644, "")],
            &[("a", 0o644, ""), ("a/b", 0o644, "")],
            &[("a", mode::SYMLINK, "/etc"), ("a/b", 0o644, "")],
            &[("a", mode::DIR, ""), ("b", 0o644, ""), ("a/c", 0o644, "")],
            &[("a", 0o644, "b"), ("b", 0o644, "")],
            &[("a", 0o644, "../../etc/passwd")],
        ];
        for case in cases {
            assert!(check(case).is_err(), "{case:?}");
        }
    }
}
