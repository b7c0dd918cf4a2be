//! Who a process runs as: names looked up in the root file system's `/etc/passwd` and `/etc/group`.

use std::io::Read as _;
use std::path::Path;

use crate::rooted::Root;

/// The longest `/etc/passwd` or `/etc/group` that is read.
const MAX_FILE: u64 = 10 << 20;

/// The user and groups of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// No user of that name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No group of that name.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that is none of Linux's.
    #[error("uids and gids must be in range 0-2147483647")]
    Range,
    /// Not a file that can be trusted.
    #[error("{path:?} exceeds {MAX_FILE} bytes")]
    TooLong {
        /// Which.
        path: &'static str,
    },
}

/// Looks up `spec` (`user`, `uid`, `user:group`, ...) in the root file system `root`.
pub fn lookup(root: &Root, spec: &str) -> Result<User, UserError> {
    let (user, group) = match spec {
        "" => ("0", None),
        spec => match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        },
    };
    // Both given as numbers: the files do not matter, and no supplementary groups are looked for.
    if let (Some(uid), Some(gid)) = (id(user), group.and_then(id)) {
        return Ok(User { uid, gid, groups: Vec::new() });
    }
    let passwd = read(root, "/etc/passwd")?;
    let groups = read(root, "/etc/group")?;
    match resolve(user, group.unwrap_or_default(), &passwd, &groups) {
        Err(_) if spec.is_empty() => Ok(User::default()),
        other => other,
    }
}

fn id(text: &str) -> Option<u32> {
    if text == "root" { Some(0) } else { text.parse().ok() }
}

/// The file's bytes; nothing if it is missing or not a regular file.
fn read(root: &Root, path: &'static str) -> Result<Vec<u8>, UserError> {
    let Ok(file) = root.open_file(Path::new(path)) else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    if file.take(MAX_FILE + 1).read_to_end(&mut bytes).is_err() {
        return Ok(Vec::new());
    }
    if bytes.len() as u64 > MAX_FILE { Err(UserError::TooLong { path }) } else { Ok(bytes) }
}

/// A number, `None` for a name.
fn numeric(text: &str) -> Result<Option<u32>, UserError> {
    match text.parse::<i64>() {
        Ok(n @ 0..=0x7fff_ffff) => Ok(Some(n as u32)),
        Ok(_) => Err(UserError::Range),
        Err(_) => Ok(None),
    }
}

fn resolve(user: &str, group: &str, passwd: &[u8], groups: &[u8]) -> Result<User, UserError> {
    let uid = numeric(user)?;
    let gid = numeric(group)?;
    let mut found = User::default();
    let mut name = "";
    let passwd = String::from_utf8_lossy(passwd);
    let entry = lines(&passwd).find(|fields| match uid {
        _ if user.is_empty() => number(fields, 2) == Some(0),
        Some(uid) => number(fields, 2) == Some(uid),
        None => fields.first() == Some(&user),
    });
    match (&entry, uid) {
        (Some(fields), _) => {
            name = fields.first().copied().unwrap_or_default();
            found.uid = number(fields, 2).unwrap_or_default();
            found.gid = number(fields, 3).unwrap_or_default();
        }
        (None, Some(uid)) => found.uid = uid,
        (None, None) if !user.is_empty() => return Err(UserError::NoUser(user.to_owned())),
        (None, None) => {}
    }
    let groups = String::from_utf8_lossy(groups);
    if !group.is_empty() {
        let entry = lines(&groups).find(|fields| match gid {
            Some(gid) => number(fields, 2) == Some(gid),
            None => fields.first() == Some(&group),
        });
        found.gid = match (entry.and_then(|fields| number(&fields, 2)), gid) {
            (Some(gid), _) | (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::NoGroup(group.to_owned())),
        };
    } else if !name.is_empty() {
        let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|user| user == name));
        found.groups = lines(&groups).filter(member).filter_map(|fields| number(&fields, 2)).collect();
    }
    Ok(found)
}

/// The lines of a colon-separated file, without comments and empty ones.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let used = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().map(str::trim).filter(used).map(|line| line.split(':').map(str::trim).collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"# comment\nroot:x:0:0:root:/root:/bin/sh\nbin:x:1:2::/:\n\nweb:x:1000:1001:Web:/home:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:web,bin\nwheel:x:10:root,web\nweb:x:1001:\n";

    fn of(user: &str, group: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(user, group, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(of("web", ""), Ok((1000, 1001, vec![50, 10])));
        assert_eq!(of("1000", ""), Ok((1000, 1001, vec![50, 10])));
        assert_eq!(of("web", "staff"), Ok((1000, 50, vec![])));
        assert_eq!(of("web", "77"), Ok((1000, 77, vec![])));
        assert_eq!(of("4242", ""), Ok((4242, 0, vec![])));
        assert_eq!(of("", "staff"), Ok((0, 50, vec![])));
        assert_eq!(of("0", ""), Ok((0, 0, vec![10])));
    }

    #[test]
    fn unknown_names_are_errors() {
        assert_eq!(
            of("nobody", "").map_err(|err| err.to_string()),
            Err("unable to find user nobody: no matching entries in passwd file".into())
        );
        assert_eq!(of("web", "nogroup"), Err(UserError::NoGroup("nogroup".into())));
        assert_eq!(of("-1", ""), Err(UserError::Range));
    }

    #[test]
    fn numbers_alone_need_no_files() {
        let dir = std::env::temp_dir();
        let root = Root::open(&dir).unwrap();
        assert_eq!(lookup(&root, "5:7").unwrap(), User { uid: 5, gid: 7, groups: vec![] });
        assert_eq!(lookup(&root, "").unwrap(), User::default());
    }
}
