//! The copy action: `cp -a` from one tree into another, with patterns, and Docker's rules for where things end up.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use castor_fsutil::{ParentMatches, Patterns, glob_match, has_wildcards};
use castor_llb::op::Copy;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::actions::copy_xattrs;
use super::archive;
use super::error::FileError;
use super::owner::Owner;
use super::symbolic::Symbolic;
use super::tree::{Time, Tree, chown, clean, is_dir, kind, make_dir, names, set_time};

/// Deeper directories than any path can name are not copied.
const MAX_DEPTH: usize = 2048;
/// Between two looks at the token.
const COPY_STEP: usize = 16 << 20;

/// What the copies of one action have in common.
#[derive(Debug)]
pub struct CopyOptions<'a> {
    /// The action.
    pub action: &'a Copy,
    /// Who owns the copies; `None` keeps the owner.
    pub owner: Option<Owner>,
    /// Ends the copy early.
    pub token: &'a CancellationToken,
}

/// Copies from `src` to `dst`.
pub fn copy(src: &Tree, dst: &Tree, options: &CopyOptions<'_>) -> Result<(), FileError> {
    let action = options.action;
    let (from, to) = (keep_slash(&action.src), keep_slash(&action.dest));
    if !action.create_dest_path {
        let path = dst.lookup(&action.dest)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        if dst.stat(parent)?.is_none() {
            let error = FileError::at("lstat", parent)(Errno::NOENT);
            return Err(error.context(format!("failed to stat {}", action.dest)));
        }
    }
    let sources = if action.allow_wildcard {
        let matches = wildcard_matches(src, &from, action.follow_symlink)?;
        if matches.is_empty() {
            if action.allow_empty_wildcard {
                return Ok(());
            }
            return Err(FileError::Other(format!("{from} not found")));
        }
        matches
    } else {
        vec![PathBuf::from(&from)]
    };
    let time = Time::from_nanos(action.timestamp);
    for source in sources {
        if action.attempt_unpack && archive::unpack(src, &source, dst, Path::new(&to), options.owner, time)? {
            continue;
        }
        Copier::new(src, dst, options)?.run(&source, &to)?;
    }
    Ok(())
}

/// The cleaned absolute path, with the slash or slash and dot that it ended in.
fn keep_slash(path: &str) -> String {
    let mut cleaned = crate::path::absolute(path);
    let end = match path {
        _ if path.ends_with("/.") => "/.",
        _ if path.ends_with('/') => "/",
        _ => "",
    };
    if cleaned == "/" {
        cleaned.push_str(end.trim_start_matches('/'));
    } else {
        cleaned.push_str(end);
    }
    cleaned
}

/// The paths of `tree` that `pattern` matches, sorted; a path that is no pattern is itself, whether it exists or not.
/// Nothing is looked for below a match.
pub(super) fn wildcard_matches(tree: &Tree, pattern: &str, follow: bool) -> Result<Vec<PathBuf>, FileError> {
    let cleaned = crate::path::absolute(pattern);
    let parts: Vec<&str> = cleaned.split('/').filter(|part| !part.is_empty()).collect();
    let Some(first) = parts.iter().position(|part| has_wildcards(part)) else {
        return Ok(vec![PathBuf::from(cleaned)]);
    };
    let prefix = PathBuf::from(format!("/{}", parts[..first].join("/")));
    let base = if follow { tree.lookup(&prefix)? } else { tree.lookup_parent(&prefix)? };
    let pattern = parts[first..].join("/");
    let depth = parts.len() - first;

    let Some(stat) = tree.stat(&base)? else { return Err(FileError::at("lstat", &base)(Errno::NOENT)) };
    let mut found = Vec::new();
    if !is_dir(&stat) {
        return Ok(found);
    }
    let mut stack = vec![(base.clone(), Vec::new(), 1)];
    while let Some((dir, below, level)) = stack.pop() {
        let fd = tree.open_dir(&dir)?;
        for name in names(&fd, &dir)? {
            let relative = below_of(&below, &name);
            let path = dir.join(&name);
            if glob_match(&pattern, &relative).unwrap_or(false) {
                found.push(path);
            } else if level < depth {
                // A pattern of so many parts matches nothing that is deeper.
                let stat =
                    rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(FileError::at("lstat", &path))?;
                if is_dir(&stat) {
                    stack.push((path, relative, level + 1));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A directory on the way down.
struct Level {
    src: OwnedFd,
    stat: Stat,
    src_path: PathBuf,
    /// The directory that it is copied to; `None` while nothing in it was wanted.
    dst: Option<OwnedFd>,
    dst_name: OsString,
    dst_path: PathBuf,
}

struct Copier<'a> {
    src: &'a Tree,
    dst: &'a Tree,
    options: &'a CopyOptions<'a>,
    time: Option<Time>,
    mode: Option<u32>,
    symbolic: Option<Symbolic>,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    /// Where the first name of a file with several was copied to.
    links: HashMap<(u64, u64), PathBuf>,
    levels: Vec<Level>,
}

/// One entry to copy: its names, and what is known of the directory it is in.
struct Entry<'e> {
    src_dir: &'e OwnedFd,
    src_name: &'e OsStr,
    src_path: PathBuf,
    /// Path below the copied directory; empty for that itself.
    relative: Vec<u8>,
    dst_name: &'e OsStr,
    dst_path: PathBuf,
    included: Option<&'e ParentMatches>,
    excluded: Option<&'e ParentMatches>,
}

impl<'a> Copier<'a> {
    fn new(src: &'a Tree, dst: &'a Tree, options: &'a CopyOptions<'a>) -> Result<Self, FileError> {
        let action = options.action;
        let patterns = |what: &str, list: &[String]| match list.is_empty() {
            true => Ok(None),
            false => Patterns::new(list)
                .map(Some)
                .map_err(|error| FileError::Other(format!("invalid {what}patterns: [{}]: {error}", list.join(" ")))),
        };
        let symbolic = match action.mode_str.as_str() {
            "" => None,
            text => Some(Symbolic::parse(text).map_err(|error| FileError::Other(error.to_string()))?),
        };
        let mode = (symbolic.is_none() && action.mode != -1).then_some(action.mode.cast_unsigned());
        Ok(Self {
            src,
            dst,
            options,
            time: Time::from_nanos(action.timestamp),
            mode,
            symbolic,
            include: patterns("include", &action.include_patterns)?,
            exclude: patterns("exclude", &action.exclude_patterns)?,
            links: HashMap::new(),
            levels: Vec::new(),
        })
    }

    fn run(mut self, from: &Path, to: &str) -> Result<(), FileError> {
        let parents_mode = self.mode.unwrap_or(0o755) & 0o777;
        let owner = self.options.owner;
        // Of `a/b` the directory `a` is made, of `a/b/` and `a/b/.` all of it.
        let (dir, name) = to.rsplit_once('/').map_or(("", to), |(dir, name)| (dir, name));
        let ensure = if name.is_empty() || name == "." { to } else { dir };
        let mut made = self.dst.mkdir_all(&self.dst.lookup(ensure)?, parents_mode, owner, self.time)?;

        let mut target = self.dst.lookup(to)?;
        let follow = self.options.action.follow_symlink;
        let source = if follow { self.src.lookup(from)? } else { self.src.lookup_parent(from)? };
        let Some(stat) = self.src.stat(&source)? else { return Err(FileError::at("lstat", &source)(Errno::NOENT)) };
        let existing = self.dst.stat(&target)?;
        let contents = self.options.action.dir_copy_contents;
        let into = match &existing {
            Some(_) if is_dir(&stat) => !contents,
            Some(existing) => is_dir(existing),
            None => false,
        };
        if into && let Some(name) = clean(from).file_name() {
            target.push(name);
        }
        let parent = if contents && is_dir(&stat) && existing.is_none() {
            target.clone()
        } else {
            target.parent().unwrap_or(Path::new("/")).to_owned()
        };
        made.extend(self.dst.mkdir_all(&parent, parents_mode, owner, self.time)?);

        let (src_dir, src_name) = self.src.parent("lstat", &source)?;
        let (dst_dir, dst_name) = self.dst.parent("lstat", &target)?;
        self.levels.push(Level {
            src: rustix::io::dup(&src_dir).map_err(FileError::at("dup", &source))?,
            stat,
            src_path: PathBuf::new(),
            dst: Some(dst_dir),
            dst_name: OsString::new(),
            dst_path: PathBuf::new(),
        });
        self.entry(Entry {
            src_dir: &src_dir,
            src_name: &src_name,
            src_path: source,
            relative: Vec::new(),
            dst_name: &dst_name,
            dst_path: target,
            included: None,
            excluded: None,
        })?;
        if let Some(time) = self.time {
            for dir in made.iter().rev() {
                let (parent, name) = self.dst.parent("utime", dir)?;
                set_time(&parent, &name, time.spec(), time.spec()).map_err(FileError::at("utime", dir))?;
            }
        }
        Ok(())
    }

    /// Copies one entry and what is below it. What a directory's own attributes are is decided by whether it is the
    /// first: that one keeps those it has, if it was there; the others get those of their originals.
    fn entry(&mut self, entry: Entry<'_>) -> Result<(), FileError> {
        if self.options.token.is_cancelled() {
            return Err(FileError::Cancelled);
        }
        let first = entry.relative.is_empty();
        let (mut include, mut excluded) = (true, false);
        let (mut includes, mut excludes) = (None, None);
        if !first {
            if let Some(patterns) = &self.include {
                let (matched, below) = matches(patterns, &entry.relative, entry.included, "include")?;
                (include, includes) = (matched, Some(below));
            }
            if let Some(patterns) = &self.exclude {
                let (matched, below) = matches(patterns, &entry.relative, entry.excluded, "exclude")?;
                excludes = Some(below);
                if matched {
                    (include, excluded) = (false, true);
                }
            }
            let exceptions = self.exclude.as_ref().is_some_and(Patterns::has_exceptions);
            if !include && self.include.is_none() && !exceptions {
                return Ok(());
            }
        }
        let stat = rustix::fs::statat(entry.src_dir, entry.src_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(FileError::at("lstat", &entry.src_path))
            .map_err(|error| error.context(format!("failed to stat {}", entry.src_path.display())))?;
        if !include && !is_dir(&stat) {
            return Ok(());
        }
        if include {
            self.make_parents()?;
            self.make_way(&entry, &stat)?;
        }
        if is_dir(&stat) {
            return self.directory(entry, stat, include, excluded, includes.as_ref(), excludes.as_ref());
        }
        self.leaf(&entry, &stat)?;
        self.attributes(&entry, &stat)
    }

    /// The directory that entries are copied to now. Exists once [`make_parents`](Self::make_parents) ran.
    fn target_dir(&self) -> Result<&OwnedFd, FileError> {
        let dir = self.levels.last().and_then(|level| level.dst.as_ref());
        dir.ok_or_else(|| FileError::Other("copy into a directory that was not made".to_owned()))
    }

    fn target_stat(&self, entry: &Entry<'_>) -> Result<Option<Stat>, FileError> {
        let Some(dir) = self.levels.last().and_then(|level| level.dst.as_ref()) else { return Ok(None) };
        match rustix::fs::statat(dir, entry.dst_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(FileError::at("lstat", &entry.dst_path)(errno)),
        }
    }

    /// Removes what is in the way of an entry, where that is allowed.
    fn make_way(&self, entry: &Entry<'_>, stat: &Stat) -> Result<(), FileError> {
        let Some(existing) = self.target_stat(entry)? else { return Ok(()) };
        if self.options.action.always_replace_existing_dest_paths && !(is_dir(stat) && is_dir(&existing)) {
            return self.dst.remove_all(&entry.dst_path);
        }
        if is_dir(stat) {
            return Ok(());
        }
        if is_dir(&existing) {
            let path = entry.dst_path.display();
            return Err(FileError::Other(format!("cannot replace to directory {path} with file")));
        }
        rustix::fs::unlinkat(self.target_dir()?, entry.dst_name, AtFlags::empty())
            .map_err(FileError::at("remove", &entry.dst_path))
    }

    /// Makes the directories above the current entry that were left out until something in them was wanted.
    fn make_parents(&mut self) -> Result<(), FileError> {
        for i in 1..self.levels.len() {
            if self.levels[i].dst.is_some() {
                continue;
            }
            let (above, below) = self.levels.split_at_mut(i);
            let (above, level) = (&above[i - 1], &mut below[0]);
            let parent = above.dst.as_ref().ok_or_else(|| FileError::Other("copy into nothing".to_owned()))?;
            let created = directory_only(parent, &level.dst_name, &level.dst_path, &level.stat, true)?;
            level.dst = Some(open_dir(parent, &level.dst_name, &level.dst_path)?);
            if created {
                let (above, level) = (&self.levels[i - 1], &self.levels[i]);
                if let Some(parent) = &above.dst {
                    let to = (parent, level.dst_name.as_os_str());
                    self.apply(&level.stat, to, &level.dst_path)?;
                    copy_xattrs((&level.src, OsStr::new(".")), to).map_err(FileError::at("xattr", &level.src_path))?;
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        entry: Entry<'_>,
        stat: Stat,
        include: bool,
        excluded: bool,
        includes: Option<&ParentMatches>,
        excludes: Option<&ParentMatches>,
    ) -> Result<(), FileError> {
        if self.levels.len() > MAX_DEPTH {
            return Err(FileError::at("open", &entry.src_path)(Errno::NAMETOOLONG));
        }
        let first = entry.relative.is_empty();
        let existed = self.target_stat(&entry)?.is_some();
        let mut created = false;
        let mut dst = None;
        if include {
            let parent = self.target_dir()?;
            created = directory_only(parent, entry.dst_name, &entry.dst_path, &stat, !first)?;
            dst = Some(open_dir(parent, entry.dst_name, &entry.dst_path)?);
        }
        let src = open_dir(entry.src_dir, entry.src_name, &entry.src_path)?;
        let exceptions = self.exclude.as_ref().is_some_and(Patterns::has_exceptions);
        if !excluded || exceptions {
            let list = names(&src, &entry.src_path)?;
            self.levels.push(Level {
                src: rustix::io::dup(&src).map_err(FileError::at("dup", &entry.src_path))?,
                stat,
                src_path: entry.src_path.clone(),
                dst,
                dst_name: entry.dst_name.to_owned(),
                dst_path: entry.dst_path.clone(),
            });
            for name in list {
                let relative = below_of(&entry.relative, &name);
                self.entry(Entry {
                    src_dir: &src,
                    src_name: &name,
                    src_path: entry.src_path.join(&name),
                    relative,
                    dst_name: &name,
                    dst_path: entry.dst_path.join(&name),
                    included: includes,
                    excluded: excludes,
                })?;
            }
            self.levels.pop();
        }
        if if first { created } else { include } {
            self.attributes(&entry, &stat)
        } else if first && existed {
            // The copy changed the time of a directory that was there.
            self.times(&stat, (self.target_dir()?, entry.dst_name), &entry.dst_path)
        } else {
            Ok(())
        }
    }

    fn leaf(&mut self, entry: &Entry<'_>, stat: &Stat) -> Result<(), FileError> {
        match kind(stat) {
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    let key = (stat.st_dev, stat.st_ino);
                    if let Some(first) = self.links.get(&key) {
                        let (dir, name) = self.dst.parent("link", first)?;
                        return rustix::fs::linkat(&dir, &name, self.target_dir()?, entry.dst_name, AtFlags::empty())
                            .map_err(FileError::at("link", &entry.dst_path))
                            .map_err(|error| error.context("failed to create hard link"));
                    }
                    self.links.insert(key, entry.dst_path.clone());
                }
                self.file(entry).map_err(|error| match error {
                    FileError::Cancelled => error,
                    error => error.context("failed to copy files"),
                })
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(entry.src_dir, entry.src_name, Vec::new())
                    .map_err(FileError::at("readlink", &entry.src_path))?;
                rustix::fs::symlinkat(link.as_c_str(), self.target_dir()?, entry.dst_name)
                    .map_err(FileError::at("symlink", &entry.dst_path))
            }
            special => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(self.target_dir()?, entry.dst_name, special, mode, stat.st_rdev)
                    .map_err(FileError::at("mknod", &entry.dst_path))
                    .map_err(|error| error.context("failed to create device"))
            }
        }
    }

    fn file(&self, entry: &Entry<'_>) -> Result<(), FileError> {
        let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let src = rustix::fs::openat(entry.src_dir, entry.src_name, read, Mode::empty())
            .map_err(FileError::at("open", &entry.src_path))?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let dst = rustix::fs::openat(self.target_dir()?, entry.dst_name, write, Mode::from_raw_mode(0o666))
            .map_err(FileError::at("open", &entry.dst_path))?;
        let mut first = true;
        loop {
            if self.options.token.is_cancelled() {
                return Err(FileError::Cancelled);
            }
            match rustix::fs::copy_file_range(&src, None, &dst, None, COPY_STEP) {
                Ok(0) if !first => return Ok(()),
                // Some file systems answer so for whole files that are not empty.
                Ok(0) => break,
                Ok(_) => first = false,
                Err(Errno::INTR) => {}
                Err(_) if first => break,
                Err(errno) => return Err(FileError::at("copy_file_range", &entry.src_path)(errno)),
            }
        }
        self.stream(std::fs::File::from(src), std::fs::File::from(dst), entry)
    }

    fn stream(&self, mut src: std::fs::File, mut dst: std::fs::File, entry: &Entry<'_>) -> Result<(), FileError> {
        use std::io::{Read as _, Write as _};
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            if self.options.token.is_cancelled() {
                return Err(FileError::Cancelled);
            }
            let length = match src.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FileError::io("read", &entry.src_path)(error)),
            };
            dst.write_all(&buffer[..length]).map_err(FileError::io("write", &entry.dst_path))?;
        }
    }

    fn attributes(&self, entry: &Entry<'_>, stat: &Stat) -> Result<(), FileError> {
        let to = (self.target_dir()?, entry.dst_name);
        self.apply(stat, to, &entry.dst_path).map_err(|error| error.context("failed to copy file info"))?;
        copy_xattrs((entry.src_dir, entry.src_name), to)
            .map_err(FileError::at("xattr", &entry.src_path))
            .map_err(|error| error.context("failed to copy xattrs"))
    }

    /// Owner, mode and times.
    fn apply(&self, stat: &Stat, to: (&OwnedFd, &OsStr), path: &Path) -> Result<(), FileError> {
        let owner = self.options.owner.unwrap_or(Owner { uid: stat.st_uid, gid: stat.st_gid });
        chown(to.0, to.1, owner).map_err(FileError::at("lchown", path))?;
        if kind(stat) != FileType::Symlink {
            let old = stat.st_mode & 0o7777;
            let mode = match (&self.symbolic, self.mode) {
                (Some(symbolic), _) => symbolic.apply(old, is_dir(stat)),
                (None, Some(mode)) => mode & 0o7777,
                (None, None) => old,
            };
            rustix::fs::chmodat(to.0, to.1, Mode::from_raw_mode(mode), AtFlags::empty())
                .map_err(FileError::at("chmod", path))?;
        }
        self.times(stat, to, path)
    }

    fn times(&self, stat: &Stat, to: (&OwnedFd, &OsStr), path: &Path) -> Result<(), FileError> {
        let spec = |seconds: i64, nanoseconds: u64| Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
        };
        let (access, change) = match self.time {
            Some(time) => (time.spec(), time.spec()),
            None => (spec(stat.st_atime, stat.st_atime_nsec), spec(stat.st_mtime, stat.st_mtime_nsec)),
        };
        set_time(to.0, to.1, access, change).map_err(FileError::at("utime", path))
    }
}

/// The path of a name in the directory `dir`, which is empty for the first.
fn below_of(dir: &[u8], name: &OsStr) -> Vec<u8> {
    match dir.is_empty() {
        true => name.as_bytes().to_vec(),
        false => [dir, b"/", name.as_bytes()].concat(),
    }
}

fn matches(
    patterns: &Patterns,
    path: &[u8],
    parent: Option<&ParentMatches>,
    what: &str,
) -> Result<(bool, ParentMatches), FileError> {
    patterns
        .matches_below(path, parent)
        .map_err(|error| FileError::Other(format!("failed to match {what}patterns: {error}")))
}

fn open_dir(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, FileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(FileError::at("open", path))
}

/// Makes a directory like the one that `stat` is of, or takes the one that is there. Returns whether it is new.
fn directory_only(
    parent: &OwnedFd,
    name: &OsStr,
    path: &Path,
    stat: &Stat,
    overwrite: bool,
) -> Result<bool, FileError> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {
            make_dir(parent, name, stat.st_mode & 0o7777)
                .map_err(FileError::at("mkdir", path))
                .map_err(|error| error.context(format!("failed to mkdir {}", path.display())))?;
            Ok(true)
        }
        Err(errno) => Err(FileError::at("lstat", path)(errno)),
        Ok(existing) if !is_dir(&existing) => {
            Err(FileError::Other(format!("cannot copy to non-directory: {}", path.display())))
        }
        Ok(_) if overwrite => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(FileError::at("chmod", path))?;
            Ok(false)
        }
        Ok(_) => Ok(false),
    }
}
