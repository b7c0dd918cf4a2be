//! Links on the way to a path.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::glob::{glob_match, has_wildcards};
use crate::{WalkError, path};

/// How many links are followed before they are taken for a loop.
const MAX_LINKS: usize = 10_000;

/// The paths that must be shown for `paths` to be readable: each link on the
/// way and what it leads to, never outside of `root`. Sorted; what lies below
/// another of them is left out. Empty if that is everything.
pub fn follow_links(root: &Path, paths: &[String]) -> Result<Vec<String>, WalkError> {
    let mut resolver = Resolver { root, resolved: BTreeSet::new() };
    let mut queue: Vec<String> = paths.iter().rev().cloned().collect();
    let mut links = 0;
    while let Some(path) = queue.pop() {
        let targets = resolver.follow(&path)?;
        links += targets.len();
        if links > MAX_LINKS {
            return Err(WalkError::entry("follow links of", path, io::Error::from_raw_os_error(40)));
        }
        queue.extend(targets.into_iter().rev());
    }
    Ok(without_covered(resolver.resolved))
}

/// Drops paths below an earlier one; nothing is left if one is the root, since
/// then all is shown.
pub(crate) fn without_covered(paths: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for path in paths {
        if path == "." {
            return Vec::new();
        }
        let covered = match kept.last() {
            Some(last) => path.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('/')),
            None => path.starts_with('/'),
        };
        if !covered {
            kept.push(path);
        }
    }
    kept
}

struct Resolver<'a> {
    root: &'a Path,
    resolved: BTreeSet<String>,
}

impl Resolver<'_> {
    /// Goes along `path` up to its end or its first link; gives the paths to go
    /// on with.
    fn follow(&mut self, path: &str) -> Result<Vec<String>, WalkError> {
        let path = path::clean(&format!("/{path}"));
        let mut rest = path.trim_start_matches('/');
        let mut current = String::from(".");
        loop {
            let (element, after) = rest.split_once('/').unwrap_or((rest, ""));
            current = path::join(&current, element);
            let targets = self.links_at(&current, true)?;
            if (after.is_empty() || targets.is_some()) && self.resolved.contains(&current) {
                return Ok(Vec::new());
            }
            if let Some(targets) = targets {
                self.resolved.insert(current);
                return Ok(targets.iter().map(|target| path::join(target, after)).collect());
            }
            if after.is_empty() {
                self.resolved.insert(current);
                return Ok(Vec::new());
            }
            rest = after;
        }
    }

    /// Where the path leads, as seen from the root, if it is a link or a
    /// pattern that matches some.
    fn links_at(&self, at: &str, wildcards: bool) -> Result<Option<Vec<String>>, WalkError> {
        let (dir, name) = path::split(at);
        if wildcards && has_wildcards(name) {
            return self.links_matching(dir, name);
        }
        if at == "." {
            return Ok(None);
        }
        let real = self.root.join(at);
        match std::fs::symlink_metadata(&real) {
            Ok(metadata) if metadata.is_symlink() => {}
            Ok(_) => return Ok(None),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(WalkError::entry("stat", at, error)),
        }
        let target = std::fs::read_link(&real).map_err(|error| WalkError::entry("read link", at, error))?;
        let target = target.to_str().ok_or_else(|| WalkError::NotUtf8 { path: format!("target of {at}") })?;
        Ok(Some(vec![if target.starts_with('/') {
            path::clean(target)
        } else {
            path::clean(&format!("/{dir}/{target}"))
        }]))
    }

    fn links_matching(&self, dir: &str, pattern: &str) -> Result<Option<Vec<String>>, WalkError> {
        let entries = match std::fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(WalkError::entry("read directory", dir, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| WalkError::entry("read directory", dir, error))?;
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        let mut found = Vec::new();
        for name in names {
            if glob_match(pattern, &name).unwrap_or(false) {
                found.extend(self.links_at(&path::join(dir, &name), false)?.into_iter().flatten());
            }
        }
        Ok((!found.is_empty()).then_some(found))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn follow(root: &Path, paths: &[&str]) -> Vec<String> {
        follow_links(root, &paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn links_are_chased_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("dir")).unwrap();
        std::fs::write(root.join("bar"), "").unwrap();
        std::fs::write(root.join("dir/foo"), "").unwrap();
        symlink("../../bar", root.join("dir/up")).unwrap();
        symlink("dir", root.join("alias")).unwrap();
        symlink("/dir/foo", root.join("abs")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("b2", root.join("b1")).unwrap();
        symlink("b1", root.join("b2")).unwrap();

        assert_eq!(follow(root, &["bar"]), ["bar"]);
        assert_eq!(follow(root, &["alias/foo"]), ["alias", "dir/foo"]);
        assert_eq!(follow(root, &["dir/up"]), ["bar", "dir/up"]);
        assert_eq!(follow(root, &["abs"]), ["abs", "dir/foo"]);
        assert_eq!(follow(root, &["loop"]), ["loop"]);
        assert_eq!(follow(root, &["b1"]), ["b1", "b2"]);
        assert_eq!(follow(root, &["missing/x"]), ["missing/x"]);
        assert_eq!(follow(root, &["a*"]), ["a*", "dir"]);
        assert_eq!(follow(root, &["/"]), Vec::<String>::new());
        assert_eq!(follow(root, &["../../bar"]), ["bar"]);
    }
}
