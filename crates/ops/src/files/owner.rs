//! Users and groups by name.

use std::io::Read as _;

use rustix::io::Errno;

use super::error::FileError;
use super::tree::Tree;

/// No passwd file of a sane image is larger.
const MAX_FILE: u64 = 10 << 20;

/// Who owns a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A user of `/etc/passwd` and its group. `None` if there is no such user, or no such file.
pub fn user_by_name(tree: &Tree, name: &str) -> Result<Option<Owner>, FileError> {
    let Some(text) = read(tree, "/etc/passwd")? else { return Ok(None) };
    Ok(text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        if fields.next()? != name {
            return None;
        }
        let number = |field: Option<&str>| field.unwrap_or_default().trim().parse().unwrap_or_default();
        let uid = number(fields.nth(1));
        Some(Owner { uid, gid: number(fields.next()) })
    }))
}

/// A group of `/etc/group`. `None` if there is no such group, or no such file.
pub fn group_by_name(tree: &Tree, name: &str) -> Result<Option<u32>, FileError> {
    let Some(text) = read(tree, "/etc/group")? else { return Ok(None) };
    Ok(text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        (fields.next()? == name).then(|| fields.nth(1).unwrap_or_default().trim().parse().unwrap_or_default())
    }))
}

fn read(tree: &Tree, path: &str) -> Result<Option<String>, FileError> {
    let file = match tree.root().open_file(path) {
        Ok(file) => file,
        Err(error) => {
            let errno = error.source.raw_os_error().map(Errno::from_raw_os_error);
            return match errno {
                Some(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                Some(errno) => Err(FileError::at("open", path)(errno)),
                None => Err(FileError::Other(format!("{path} is {}", error.source))),
            };
        }
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::Other(format!("{path:?} exceeds {MAX_FILE} bytes")));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
