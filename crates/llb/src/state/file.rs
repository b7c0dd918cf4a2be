//! File operations.

use bytes::Bytes;

use super::node::{Kind, Node, Output};
use super::{Constraints, State};
use crate::op::{Chown, FileInput, UserOpt};

/// A user and a group, by name or number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Option<NameOrId>,
    /// The group.
    pub group: Option<NameOrId>,
}

/// A user or group as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrId {
    /// A name.
    Name(String),
    /// A number.
    Id(u32),
}

impl Owner {
    /// Reads `user[:group]`. What is no number is a name; `root` is 0.
    pub fn parse(text: &str) -> Self {
        let part = |text: &str| match text.parse::<i32>() {
            _ if text == "root" => NameOrId::Id(0),
            // Go keeps the sign bit of a negative number.
            Ok(id) => NameOrId::Id(id.cast_unsigned()),
            Err(_) => NameOrId::Name(text.to_owned()),
        };
        match text.split_once(':') {
            None => Self { user: Some(part(text)), group: None },
            Some((user, group)) => Self { user: Some(part(user)), group: Some(part(group)) },
        }
    }

    /// By numbers.
    pub fn ids(uid: u32, gid: u32) -> Self {
        Self { user: Some(NameOrId::Id(uid)), group: Some(NameOrId::Id(gid)) }
    }

    pub(super) fn resolve(&self, base: FileInput) -> Chown {
        let resolve = |part: &Option<NameOrId>| {
            part.as_ref().map(|part| match part {
                // An empty name is no name; Go writes id 0 then.
                NameOrId::Name(name) if name.is_empty() => UserOpt::Id(0),
                NameOrId::Name(name) => UserOpt::Name { name: name.clone(), input: base },
                NameOrId::Id(id) => UserOpt::Id(*id),
            })
        };
        Chown { user: resolve(&self.user), group: resolve(&self.group) }
    }
}

/// How to copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Owner of what is copied.
    pub owner: Option<Owner>,
    /// Mode of what is copied.
    pub mode: Option<i32>,
    /// Symbolic mode; wins over `mode`.
    pub mode_str: String,
    /// Follow a link that the source is.
    pub follow_symlinks: bool,
    /// Copy what is in the directory, not the directory.
    pub dir_contents_only: bool,
    /// Copy only what these match.
    pub include_patterns: Vec<String>,
    /// Do not copy what these match.
    pub exclude_patterns: Vec<String>,
    /// Paths that must exist.
    pub required_paths: Vec<String>,
    /// Unpack local archives.
    pub attempt_unpack: bool,
    /// Make the parents of the destination.
    pub create_dest_path: bool,
    /// The source may be a pattern.
    pub allow_wildcard: bool,
    /// A pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Modification time, nanoseconds.
    pub timestamp: Option<i64>,
    /// Replace what is in the way.
    pub always_replace_existing_dest_paths: bool,
}

/// A change of files.
#[derive(Debug, Clone)]
pub enum Action {
    /// Copies from another state.
    Copy {
        /// From where.
        from: State,
        /// Path in it.
        src: String,
        /// Path in the result.
        dest: String,
        /// How.
        options: Box<CopyOptions>,
    },
    /// Writes a file.
    Mkfile {
        /// Its path.
        path: String,
        /// Its mode.
        mode: i32,
        /// Its content.
        data: Bytes,
        /// Its owner.
        owner: Option<Owner>,
        /// Its time, nanoseconds.
        timestamp: Option<i64>,
    },
    /// Makes a directory.
    Mkdir {
        /// Its path.
        path: String,
        /// Its mode.
        mode: i32,
        /// Make its parents too.
        parents: bool,
        /// Its owner.
        owner: Option<Owner>,
        /// Its time, nanoseconds.
        timestamp: Option<i64>,
    },
    /// Removes a path.
    Rm {
        /// The path.
        path: String,
        /// Its absence is no error.
        allow_not_found: bool,
        /// It may be a pattern.
        allow_wildcard: bool,
    },
    /// Makes a symbolic link.
    Symlink {
        /// What it points at.
        oldpath: String,
        /// Its path.
        newpath: String,
        /// Its owner.
        owner: Option<Owner>,
        /// Its time, nanoseconds.
        timestamp: Option<i64>,
    },
}

/// An action with its paths resolved against the state it works on.
#[derive(Debug)]
pub(crate) struct BoundAction {
    pub(crate) action: Action,
    /// Directory of the state it works on.
    pub(crate) dir: String,
    /// The state it works on.
    pub(crate) base: Option<Output>,
}

impl State {
    /// Changes files.
    #[must_use]
    pub fn file(&self, actions: Vec<Action>, constraints: Constraints) -> Self {
        let mut constraints = constraints.with_cap("file.base");
        if constraints.platform.is_none() {
            constraints.platform.clone_from(&self.values.platform);
        }
        // BuildKit walks from the last action back: what it works on, then what it copies from.
        let mut deps: Vec<Output> = self.output.iter().cloned().collect();
        for action in actions.iter().rev() {
            if let Action::Copy { from, .. } = action
                && let Some(output) = &from.output
                && !deps.iter().any(|known| known.same(output))
            {
                deps.push(output.clone());
            }
        }
        let bound = actions
            .into_iter()
            .map(|action| BoundAction { action, dir: self.values.dir.clone(), base: self.output.clone() })
            .collect();
        self.with_output(Some(Output::of(Node::new(Kind::File(bound), deps, constraints))))
    }
}

/// Lexically shortest form of a path, as Go's `path.Clean`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Joins and cleans, as Go's `path.Join`.
pub fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { clean(&parts.join("/")) }
}

/// A path of an action: absolute, clean, and with the trailing slash kept where it means a directory.
pub(super) fn absolute(dir: &str, path: &str, keep_slash: bool) -> String {
    let mut out = clean(path);
    if !out.starts_with('/') {
        out = join(&["/", dir, &out]);
    }
    if keep_slash {
        if path.ends_with('/') && !out.ends_with('/') {
            out.push('/');
        } else if path.ends_with("/.") {
            if out != "/" {
                out.push('/');
            }
            out.push('.');
        }
    }
    out
}

/// The path to copy from, seen from the source's directory.
pub(super) fn source_path(dir: &str, path: &str) -> String {
    let path = clean(path);
    if path.starts_with('/') { path } else { join(&[dir, &path]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_paths_as_go_does() {
        for (path, want) in [
            ("", "."),
            ("/", "/"),
            ("a//b/./c/..", "a/b"),
            ("/../a", "/a"),
            ("../../a", "../../a"),
            ("a/../..", ".."),
            ("/a/", "/a"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
    }

    #[test]
    fn keeps_what_makes_a_destination_a_directory() {
        for (dir, path, want) in [
            ("/w", "x/", "/w/x/"),
            ("/w", "./", "/w/"),
            ("/", "/", "/"),
            ("/w", ".", "/w"),
            ("/w", "a/.", "/w/a/."),
            ("/", "/.", "/."),
        ] {
            assert_eq!(absolute(dir, path, true), want, "{path}");
        }
    }

    #[test]
    fn reads_owners_by_name_and_number() {
        assert_eq!(Owner::parse("root:5"), Owner::ids(0, 5));
        assert_eq!(
            Owner::parse("app:staff:x"),
            Owner { user: Some(NameOrId::Name("app".into())), group: Some(NameOrId::Name("staff:x".into())) }
        );
        assert_eq!(Owner::parse("1").group, None);
    }
}
