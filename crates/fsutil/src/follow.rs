//! Links on the way to a path.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::glob::{glob_match, has_wildcards};
use crate::{WalkError, path};

/// How many links are followed before they are taken for a loop.
const MAX_LINKS: usize = 10_000;

/// The paths that must be shown for `paths` to be readable: each link on the
/// way and what it leads to, never outside of `root`. Sorted; what lies below
/// another of them is left out. Empty if that is everything.
pub fn follow_links(root: &Path, paths: &[String]) -> Result<Vec<Vec<u8>>, WalkError> {
    let mut resolver = Resolver { root, resolved: BTreeSet::new() };
    let mut queue: Vec<Vec<u8>> = paths.iter().rev().map(|path| path.clone().into_bytes()).collect();
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
pub(crate) fn without_covered(paths: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for path in paths {
        if path == b"." {
            return Vec::new();
        }
        let covered = match kept.last() {
            Some(last) => path::is_below(&path, last),
            None => path.starts_with(b"/"),
        };
        if !covered {
            kept.push(path);
        }
    }
    kept
}

struct Resolver<'a> {
    root: &'a Path,
    resolved: BTreeSet<Vec<u8>>,
}

impl Resolver<'_> {
    /// Goes along `path` up to its end or its first link; gives the paths to go
    /// on with.
    fn follow(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, WalkError> {
        let path = path::clean([b"/", path].concat());
        let mut rest = &path[1..];
        let mut current = b".".to_vec();
        loop {
            let (element, after) = match rest.iter().position(|byte| *byte == b'/') {
                Some(slash) => (&rest[..slash], &rest[slash + 1..]),
                None => (rest, &[][..]),
            };
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
    fn links_at(&self, at: &[u8], wildcards: bool) -> Result<Option<Vec<Vec<u8>>>, WalkError> {
        let (dir, name) = path::split(at);
        if wildcards && has_wildcards(&path::characters(name)) {
            return self.links_matching(dir, name);
        }
        if at == b"." {
            return Ok(None);
        }
        let real = self.root.join(OsStr::from_bytes(at));
        match std::fs::symlink_metadata(&real) {
            Ok(metadata) if metadata.is_symlink() => {}
            Ok(_) => return Ok(None),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(WalkError::entry("stat", at, error)),
        }
        let target = std::fs::read_link(&real).map_err(|error| WalkError::entry("read link", at, error))?;
        let target = target.as_os_str().as_bytes();
        Ok(Some(vec![if target.starts_with(b"/") {
            path::clean(target)
        } else {
            path::clean([b"/", dir, b"/", target].concat())
        }]))
    }

    fn links_matching(&self, dir: &[u8], pattern: &[u8]) -> Result<Option<Vec<Vec<u8>>>, WalkError> {
        // Bytes that are no characters are in no pattern.
        let Ok(pattern) = std::str::from_utf8(pattern) else { return Ok(None) };
        let entries = match std::fs::read_dir(self.root.join(OsStr::from_bytes(dir))) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(WalkError::entry("read directory", dir, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| WalkError::entry("read directory", dir, error))?;
            names.push(entry.file_name().into_vec());
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
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let followed = follow_links(root, &paths).unwrap();
        followed.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
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

    #[test]
    fn links_to_names_that_are_no_text_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"caf\xe9");
        std::fs::write(dir.path().join(name), "").unwrap();
        symlink(name, dir.path().join("link")).unwrap();
        let followed = follow_links(dir.path(), &["link".to_owned()]).unwrap();
        assert_eq!(followed, [b"caf\xe9".to_vec(), b"link".to_vec()]);
    }
}
