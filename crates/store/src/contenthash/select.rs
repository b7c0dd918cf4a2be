//! From a path or a pattern to a digest, over what is known of a tree.

use castor_fsutil::{ParentMatches, Patterns, glob_match, has_wildcards};
use castor_oci::{Digest, Hasher};

use super::ChecksumOptions;
use super::scan::{Scan, ScanError};
use super::tree::{Entry, Key, Tree, key_of, path_of};

/// How many links a path may lead through.
const MAX_LINKS: usize = 255;

/// Why there is no digest.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing is there.
    NotFound(String),
    /// A pattern or path cannot be used.
    Invalid(String),
    /// The tree has to be read, and no place to read it was given.
    NeedsDisk,
    /// Reading failed.
    Scan(ScanError),
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

/// Computes digests over a tree, reading what is not known from `scan`.
pub(super) struct Selection<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) scan: Option<Scan<'a>>,
    /// Files whose contents are needed and not known.
    pub(super) missing: Vec<Key>,
    /// Directories whose listing was read.
    pub(super) changed: Vec<Key>,
}

/// A path that counts, as a key relative to what was selected, and what is there.
struct Included {
    name: Key,
    key: Key,
    /// It was asked for itself, not found below something that was.
    direct: bool,
    digest: Digest,
    link: bool,
}

/// Cleans a path: absolute, without `.`, `..` and double slashes.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// Text of a path, for messages.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Selection<'_> {
    /// The digest of `path`. All that is missing is read in rounds: each finds what it needs, then that is read at once.
    pub(super) fn checksum(&mut self, path: &str, options: &ChecksumOptions) -> Result<Digest, Failure> {
        loop {
            self.missing.clear();
            let digest = self.attempt(path, options);
            if self.missing.is_empty() {
                return digest;
            }
            let Some(scan) = &self.scan else { return Err(Failure::NeedsDisk) };
            self.missing.sort();
            self.missing.dedup();
            for (key, digest) in scan.read(&self.missing)? {
                self.changed.push(super::tree::parent_of(&key).to_vec());
                self.tree.insert(key, Entry::File { digest: Some(digest) });
            }
        }
    }

    fn attempt(&mut self, path: &str, options: &ChecksumOptions) -> Result<Digest, Failure> {
        if !options.wildcard && options.include_patterns.is_empty() && options.exclude_patterns.is_empty() {
            return self.of_path(clean(path).as_bytes(), options.follow_links);
        }
        let included = self.included(path, options)?;
        for required in &options.required_paths {
            // There itself, not only through links, and not excluded.
            let wanted = clean(required);
            let key = key_of(wanted.as_bytes());
            if !included.iter().any(|one| one.key == key || is_below(&one.key, &key)) {
                return Err(Failure::NotFound(wanted));
            }
        }
        if included.is_empty() {
            return Ok(Digest::of(""));
        }
        // What was asked for by its name counts without it.
        let named =
            |one: &Included| one.key.rsplit(|byte| *byte == 0).next() == clean(path).as_bytes().rsplit(slash).next();
        let alone = included.len() == 1 && named(&included[0]);
        let mut hasher = Hasher::new();
        for one in included {
            let digest = if one.link && one.direct && options.follow_links {
                self.of_path(&path_of(&one.key), true)?
            } else {
                one.digest
            };
            if alone {
                return Ok(digest);
            }
            hasher.update(&one.name);
            hasher.update(digest.to_string());
        }
        Ok(hasher.finish())
    }

    /// The digest of the whole of what is at `path`.
    fn of_path(&mut self, path: &[u8], follow: bool) -> Result<Digest, Failure> {
        match self.resolve(path, follow)? {
            Some(key) => self.of_tree(&key),
            None => Err(Failure::NotFound(text(path))),
        }
    }

    /// Lists a directory unless it is known; false if there is no such directory.
    fn list(&mut self, key: &Key) -> Result<bool, Failure> {
        match self.tree.get(key) {
            Some(Entry::Directory { listed: true, .. }) => Ok(true),
            Some(Entry::Directory { listed: false, .. }) => {
                let scan = self.scan.as_ref().ok_or(Failure::NeedsDisk)?;
                scan.list(self.tree, key)?;
                self.changed.push(key.clone());
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The key that a cleaned path leads to, through links; the last link is followed only if told to.
    fn resolve(&mut self, path: &[u8], follow_last: bool) -> Result<Option<Key>, Failure> {
        // What is still to be walked, the next component last.
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).rev().collect()
        };
        let mut rest = split(path);
        let mut key = Key::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_slice() {
                b"." => continue,
                b".." => {
                    key = super::tree::parent_of(&key).to_vec();
                    continue;
                }
                _ => {}
            }
            if !self.list(&key)? {
                return Ok(None);
            }
            let mut next = key.clone();
            next.push(0);
            next.extend_from_slice(&part);
            match self.tree.get(&next) {
                None => return Ok(None),
                Some(Entry::Link { target, .. }) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Failure::Invalid(format!("too many links on the way to {:?}", text(path))));
                    }
                    if target.first() == Some(&b'/') {
                        key.clear();
                    }
                    rest.extend(split(target));
                }
                Some(_) => key = next,
            }
        }
        Ok(Some(key))
    }

    /// The digest of an entry and all below it: of a directory, over the names and digests of what is in it, the header
    /// first, as an entry without a name.
    fn of_tree(&mut self, key: &Key) -> Result<Digest, Failure> {
        // Directories being hashed, innermost last: the hash, and the entries that are left, next last. Not recursive,
        // for trees may be deeper than stacks.
        struct Open {
            name: Key,
            hasher: Hasher,
            rest: Vec<Key>,
        }
        let mut open: Vec<Open> = Vec::new();
        let mut current = key.clone();
        loop {
            let name = match open.last() {
                Some(parent) => current[parent.name.len()..].to_vec(),
                None => Key::new(),
            };
            let finished = match self.tree.get(&current) {
                Some(Entry::Directory { .. }) => {
                    self.list(&current)?;
                    // Read after listing, which is when the root's becomes known.
                    let Some(Entry::Directory { header, .. }) = self.tree.get(&current) else {
                        return Err(Failure::NotFound(text(&path_of(&current))));
                    };
                    let header = *header;
                    let mut hasher = Hasher::new();
                    hasher.update([0]);
                    hasher.update(header.to_string());
                    let mut rest: Vec<_> = self.tree.children(&current).map(|(key, _)| key.clone()).collect();
                    rest.reverse();
                    open.push(Open { name: current.clone(), hasher, rest });
                    None
                }
                Some(Entry::Link { digest, .. }) => Some(*digest),
                Some(Entry::File { digest: Some(digest) }) => Some(*digest),
                Some(Entry::File { digest: None }) => {
                    self.missing.push(current.clone());
                    // Stands in until it is read: this round's digest is not used.
                    Some(Digest::of(""))
                }
                None => return Err(Failure::NotFound(text(&path_of(&current)))),
            };
            let mut done = finished.map(|digest| (name, digest));
            loop {
                if let Some((name, digest)) = done.take() {
                    match open.last_mut() {
                        None => return Ok(digest),
                        Some(parent) => {
                            parent.hasher.update(&name);
                            parent.hasher.update(digest.to_string());
                        }
                    }
                }
                let Some(parent) = open.last_mut() else { return Ok(Digest::of("")) };
                if let Some(next) = parent.rest.pop() {
                    current = next;
                    break;
                }
                let Some(Open { name, hasher, .. }) = open.pop() else { return Ok(Digest::of("")) };
                let short = match open.last() {
                    Some(parent) => name[parent.name.len()..].to_vec(),
                    None => name,
                };
                done = Some((short, hasher.finish()));
            }
        }
    }

    /// The paths that count, in order, each with the digest of itself alone: what is below a directory counts by itself.
    fn included(&mut self, path: &str, options: &ChecksumOptions) -> Result<Vec<Included>, Failure> {
        let whole_contents = path.ends_with('/') || clean(path) == "/";
        let pattern = clean(path);
        let (base, pattern) = match options.wildcard {
            true => split_pattern(&pattern),
            false => (pattern.clone(), None),
        };
        // Where a pattern begins, links are followed; what is asked for by its path may itself be one.
        let Some(root) = self.resolve(base.as_bytes(), pattern.is_some())? else {
            // Nothing to select from is an empty selection. Whether there has to be something is for the operation to say.
            return Ok(Vec::new());
        };
        let bad = |error: castor_fsutil::PatternError| Failure::Invalid(error.to_string());
        let matcher = |patterns: &[String]| -> Result<Option<Patterns>, Failure> {
            match patterns.is_empty() {
                true => Ok(None),
                false => Patterns::new(patterns).map(Some).map_err(bad),
            }
        };
        let rules =
            Rules { include: matcher(&options.include_patterns)?, exclude: matcher(&options.exclude_patterns)? };
        let mut walk = Walk { root: root.clone(), rules, pattern, included: Vec::new(), parents: Vec::new() };
        match &walk.pattern {
            None => {
                // The header of what was asked for counts, unless only its contents were.
                let shows = !whole_contents || !matches!(self.tree.get(&root), Some(Entry::Directory { .. }));
                self.walk_matched(&mut walk, root, shows, options.follow_links)?;
            }
            Some(_) => self.walk_pattern(&mut walk, root)?,
        }
        Ok(walk.included)
    }

    /// Everything below `top`, which was asked for without a pattern.
    fn walk_matched(&mut self, walk: &mut Walk, top: Key, shows: bool, _follow: bool) -> Result<(), Failure> {
        let contents_of_root = top.is_empty();
        let matched = top.clone();
        let mut pending = vec![top];
        while let Some(key) = pending.pop() {
            let below = key[matched.len()..].to_vec();
            if shows || !below.is_empty() {
                // Direct is what the path names; with the root that is what is in it.
                let direct = below.is_empty() || (contents_of_root && !below[1..].contains(&0));
                self.visit(walk, &key, &below, direct)?;
            }
            self.push_children(&mut pending, &key)?;
        }
        Ok(())
    }

    /// Everything that matches the pattern, and what is below it.
    fn walk_pattern(&mut self, walk: &mut Walk, root: Key) -> Result<(), Failure> {
        let Some(pattern) = walk.pattern.clone() else { return Ok(()) };
        let depth = pattern.split('/').count();
        let mut pending = Vec::new();
        self.push_children(&mut pending, &root)?;
        while let Some(key) = pending.pop() {
            let path = path_of(&key[root.len()..]);
            let relative = path.strip_prefix(b"/").unwrap_or(&path);
            let level = relative.split(slash).count();
            if level > depth {
                // Below a match, or it would not have been entered.
                let matched = nth_component_end(&key[root.len()..], depth) + root.len();
                let below = key[matched..].to_vec();
                self.visit(walk, &key, &below, false)?;
                self.push_children(&mut pending, &key)?;
                continue;
            }
            let prefix: Vec<_> = pattern.split('/').take(level).collect();
            let fits = glob_match(&prefix.join("/"), relative);
            if !fits.map_err(|error| Failure::Invalid(format!("{error}: {pattern}")))? {
                continue;
            }
            if level == depth {
                self.visit(walk, &key, &[], true)?;
            }
            self.push_children(&mut pending, &key)?;
        }
        Ok(())
    }

    /// Queues a directory's entries so that the first is popped first.
    fn push_children(&mut self, pending: &mut Vec<Key>, key: &Key) -> Result<(), Failure> {
        if matches!(self.tree.get(key), Some(Entry::Directory { .. })) {
            self.list(key)?;
            let start = pending.len();
            pending.extend(self.tree.children(key).map(|(key, _)| key.clone()));
            pending[start..].reverse();
        }
        Ok(())
    }

    /// Decides whether an entry counts. `below` is its place below what was matched; patterns see that.
    fn visit(&mut self, walk: &mut Walk, key: &Key, below: &[u8], direct: bool) -> Result<(), Failure> {
        while walk.parents.last().is_some_and(|parent| !is_below(key, &parent.included.key)) {
            walk.parents.pop();
        }
        let path = path_of(below);
        let parent = walk.parents.last();
        let verdict = walk.rules.verdict(path.strip_prefix(b"/").unwrap_or(&path), parent)?;
        let (digest, directory, link) = match self.tree.get(key) {
            Some(Entry::Directory { header, .. }) => (*header, true, false),
            Some(Entry::Link { digest, .. }) => (*digest, false, true),
            Some(Entry::File { digest: Some(digest) }) => (*digest, false, false),
            Some(Entry::File { digest: None }) => {
                if verdict.counts {
                    self.missing.push(key.clone());
                }
                (Digest::of(""), false, false)
            }
            None => return Ok(()),
        };
        let mut name = key[walk.root.len()..].to_vec();
        if name.is_empty() {
            // What was asked for itself: as a directory's header in the directory.
            name = vec![0];
            if !directory {
                name.extend_from_slice(key.rsplit(|byte| *byte == 0).next().unwrap_or_default());
            }
        }
        let included = Included { name, key: key.clone(), direct, digest, link };
        if !directory {
            if verdict.counts {
                walk.include_parents();
                walk.included.push(included);
            }
            return Ok(());
        }
        let mut parent = Parent { included, counted: false, verdict };
        if parent.verdict.counts {
            walk.include_parents();
            walk.included.push(parent.take());
        }
        walk.parents.push(parent);
        Ok(())
    }
}

/// A directory that the walk is in.
struct Parent {
    included: Included,
    counted: bool,
    verdict: Verdict,
}

impl Parent {
    fn take(&mut self) -> Included {
        self.counted = true;
        let Included { name, key, direct, digest, link } = &self.included;
        Included { name: name.clone(), key: key.clone(), direct: *direct, digest: *digest, link: *link }
    }
}

struct Rules {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

#[derive(Default)]
struct Verdict {
    counts: bool,
    include: Option<ParentMatches>,
    exclude: Option<ParentMatches>,
}

impl Rules {
    fn verdict(&self, candidate: &[u8], parent: Option<&Parent>) -> Result<Verdict, Failure> {
        let bad = |error: castor_fsutil::BadPattern| Failure::Invalid(error.to_string());
        let mut verdict = Verdict { counts: true, ..Verdict::default() };
        if let Some(include) = &self.include {
            let above = parent.and_then(|parent| parent.verdict.include.as_ref());
            let (matched, below) = include.matches_below(candidate, above).map_err(bad)?;
            verdict.counts = matched;
            verdict.include = Some(below);
        }
        if let Some(exclude) = &self.exclude {
            let above = parent.and_then(|parent| parent.verdict.exclude.as_ref());
            let (matched, below) = exclude.matches_below(candidate, above).map_err(bad)?;
            verdict.counts &= !matched;
            verdict.exclude = Some(below);
        }
        Ok(verdict)
    }
}

struct Walk {
    root: Key,
    rules: Rules,
    /// What has to match, relative to the root; `None`: everything below the root is meant.
    pattern: Option<String>,
    included: Vec<Included>,
    /// The directories above the current entry.
    parents: Vec<Parent>,
}

impl Walk {
    /// Directories count when something in them does.
    fn include_parents(&mut self) {
        for parent in self.parents.iter_mut().filter(|parent| !parent.counted) {
            self.included.push(parent.take());
        }
    }
}

fn is_below(key: &[u8], parent: &[u8]) -> bool {
    key.len() > parent.len() && key.starts_with(parent) && key[parent.len()] == 0
}

/// Where the `count`th component of a key ends.
fn nth_component_end(key: &[u8], count: usize) -> usize {
    key.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(index, _)| index).nth(count).unwrap_or(key.len())
}

/// The directory that a pattern's matches are below, and the pattern from there on; no pattern if there are no wildcards.
fn split_pattern(path: &str) -> (String, Option<String>) {
    let mut base = Vec::new();
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next_if(|part| !has_wildcards(part)) {
        base.push(part);
    }
    let rest: Vec<_> = parts.collect();
    (format!("/{}", base.join("/")), (!rest.is_empty()).then(|| rest.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_begin_at_the_first_wildcard() {
        let split = |path: &str| split_pattern(&clean(path));
        assert_eq!(split("a/b"), ("/a/b".into(), None));
        assert_eq!(split("a/*/c"), ("/a".into(), Some("*/c".into())));
        assert_eq!(split("*"), ("/".into(), Some("*".into())));
        assert_eq!(split("a/\\*/b?"), ("/a/\\*".into(), Some("b?".into())));
    }

    #[test]
    fn paths_are_cleaned() {
        assert_eq!([clean(""), clean("./a//b/"), clean("../a/../b")], ["/", "/a/b", "/b"]);
    }
}
