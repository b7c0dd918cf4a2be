//! Git references among the sources of ADD and among contexts.

use std::sync::LazyLock;

use castor_llb::state::{GitOptions, join};
use regex::Regex;

use crate::gofmt::{parse_bool, quote};

/// A repository, and what of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    /// Scheme in lower case.
    scheme: String,
    host: String,
    path: String,
    /// The URL without query and fragment.
    remote: String,
    reference: String,
    pub(crate) checksum: String,
    subdir: String,
    /// A text such as `github.com/x/y`, which might as well be a path.
    pub(crate) maybe_local: bool,
    pub(crate) keep_git_dir: Option<bool>,
    submodules: Option<bool>,
    mtime: String,
    fetch_by_commit: bool,
}

pub(crate) fn unescape(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (first, more) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high * 16 + low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            (b'+', _) if plus => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"$&+,/:;=@-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Letters beyond ASCII as Go writes them in hosts.
fn escape_letters(text: &str) -> String {
    text.bytes().map(|b| if b < 0x80 { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Whether every `%` escapes something.
fn is_escaped(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Whether Go's parser takes what is behind a URL's scheme.
pub(crate) fn is_legal_url(rest: &str) -> bool {
    let before_query = rest.split(['?', '#']).next().unwrap_or(rest);
    let (authority, path) = before_query.split_at(before_query.find('/').unwrap_or(before_query.len()));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let in_user = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    let (name, port) = match host.strip_prefix('[') {
        Some(v6) => match v6.rsplit_once(']') {
            Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
            None => return false,
        },
        None => host.rsplit_once(':').unwrap_or((host, "")),
    };
    let in_host = |b: u8| b.is_ascii_alphanumeric() || b >= 0x80 || b"-_.~!$&'()*+,;=:<>\"".contains(&b);
    !rest.bytes().any(|b| b < 0x20 || b == 0x7f)
        && user.bytes().all(in_user)
        && name.bytes().all(in_host)
        && port.bytes().all(|b| b.is_ascii_digit())
        && is_escaped(path)
}

impl GitRef {
    /// Reads a git reference; `None` if the text is none, an error if it is one and makes no sense.
    pub(crate) fn parse(text: &str) -> Option<Result<Self, String>> {
        static SCP: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"^([a-zA-Z0-9\-_]+)@([a-zA-Z0-9\-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?$").ok());
        if text.starts_with("./") || text.starts_with("../") {
            return None;
        }
        let (mut git, query, fragment);
        if text.starts_with("github.com/") {
            (git, query, fragment) = Self::from_url("https", text);
            git.maybe_local = true;
            git.remote = git.remote.split_once("://").map_or(String::new(), |(_, rest)| rest.to_owned());
        } else if let Some((scheme, rest)) =
            text.split_once("://").filter(|(s, _)| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            let scheme = scheme.to_lowercase();
            (git, query, fragment) = Self::from_url(&scheme, rest);
            if !is_legal_url(rest) {
                return None;
            }
            match scheme.as_str() {
                "http" | "https" if !git.path.ends_with(".git") => return None,
                "http" | "https" | "ssh" | "git" => {}
                _ => return None,
            }
        } else {
            let parts = SCP.as_ref()?.captures(text)?;
            let part = |index: usize| parts.get(index).map_or("", |part| part.as_str()).to_owned();
            git = Self { scheme: "ssh".into(), host: part(2), path: part(3), ..Self::default() };
            git.remote = format!("{}@{}:{}", part(1), part(2), part(3));
            (query, fragment) = (part(4), part(5));
        }
        let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
        reference.clone_into(&mut git.reference);
        git.subdir = join(&["/", subdir]).trim_start_matches('/').to_owned();
        Some(git.read_query(&query).map(|()| git))
    }

    fn from_url(scheme: &str, rest: &str) -> (Self, String, String) {
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let decoded = unescape(path, false);
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"$&+,/:;=@!'()*[]%-_.~".contains(&b);
        // A path with what must be escaped is escaped anew.
        let path = if path.bytes().all(legal) { path.to_owned() } else { escape_path(&decoded) };
        let git = Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            path: decoded,
            remote: format!("{scheme}://{}{path}", escape_letters(authority)),
            ..Self::default()
        };
        (git, query.to_owned(), unescape(fragment, false))
    }

    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        let (mut tag, mut branch) = (String::new(), String::new());
        for part in query.split('&').filter(|part| !part.is_empty()) {
            // Go leaves out what it cannot read.
            if part.contains(';') || !is_escaped(part) {
                continue;
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (unescape(key, true), unescape(value, true));
            if seen.contains(&key) {
                return Err(format!("query {} has multiple values", quote(&key)));
            }
            let flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !flag {
                return Err(format!("query {} has no value", quote(&key)));
            }
            let truth = || match value.as_str() {
                "" => Ok(true),
                value => parse_bool(value).ok_or_else(|| format!("invalid {key} value: {}", quote(value))),
            };
            match key.as_str() {
                "ref" => Self::set("ref", &mut self.reference, &value)?,
                "tag" => tag.clone_from(&value),
                "branch" => branch.clone_from(&value),
                "subdir" => Self::set("subdir", &mut self.subdir, &value)?,
                "checksum" | "commit" => self.checksum.clone_from(&value),
                "keep-git-dir" => self.keep_git_dir = Some(truth()?),
                "submodules" => self.submodules = Some(truth()?),
                "fetch-by-commit" => self.fetch_by_commit = truth()?,
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime.clone_from(&value),
                "mtime" => {
                    return Err(format!("invalid mtime value: {} (must be \"checkout\" or \"commit\")", quote(&value)));
                }
                _ => return Err(format!("unexpected query {}", quote(&key))),
            }
            seen.push(key);
        }
        let full = |prefix: &str, name: &str| match name.starts_with(prefix) {
            true => name.to_owned(),
            false => format!("{prefix}{name}"),
        };
        if !tag.is_empty() && !branch.is_empty() {
            return Err("branch conflicts with tag".into());
        }
        if !tag.is_empty() {
            Self::set("ref", &mut self.reference, &full("refs/tags/", &tag))?;
        }
        if !branch.is_empty() {
            Self::set("ref", &mut self.reference, &full("refs/heads/", &branch))?;
        }
        Ok(())
    }

    fn set(what: &str, old: &mut String, new: &str) -> Result<(), String> {
        if !old.is_empty() && old != new {
            return Err(format!("{what} conflicts: {} vs {}", quote(old), quote(new)));
        }
        new.clone_into(old);
        Ok(())
    }

    /// Options of the LLB source. Known hosts of ssh are the daemon's business.
    pub(crate) fn options(&self) -> GitOptions {
        let mut identifier = format!("{}{}", self.host, join(&["/", &self.path]));
        if !self.reference.is_empty() || !self.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&self.reference);
            if !self.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&self.subdir);
            }
        }
        let url = if self.maybe_local { format!("https://{}", self.remote) } else { self.remote.clone() };
        GitOptions {
            identifier,
            url,
            keep_git_dir: self.keep_git_dir == Some(true),
            checksum: self.checksum.clone(),
            skip_submodules: self.submodules == Some(false),
            mtime: self.mtime.clone(),
            fetch_by_commit: self.fetch_by_commit,
            known_ssh_hosts: None,
            mount_ssh_sock: (self.scheme == "ssh").then(|| "default".to_owned()),
        }
    }
}

/// When a commit was made, in seconds since 1970, of the commit as git stores it.
pub fn commit_time(commit: &[u8]) -> Option<i64> {
    let headers = commit.split(|&byte| byte == b'\n').take_while(|line| !line.is_empty());
    let committer = headers.filter_map(|line| line.strip_prefix(b"committer ")).next()?;
    // Whatever a name holds, the time and its zone stand last.
    let mut words = committer.rsplit(|&byte| byte == b' ');
    let (_zone, seconds) = (words.next()?, words.next()?);
    std::str::from_utf8(seconds).ok()?.parse().ok()
}

/// Whether a source of ADD is a git repository.
pub(crate) fn is_git(text: &str) -> bool {
    matches!(GitRef::parse(text), Some(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_tell_when_they_were_made() {
        let commit = b"tree 1\nauthor A <a@b> 1 +0000\ncommitter B 7 <b@c> 1700000601 +0130\n\ncommitter x 5 +0000\n";
        assert_eq!(commit_time(commit), Some(1_700_000_601));
        assert_eq!(commit_time(b"tree 1\n\ncommitter B <b@c> 5 +0000\n"), None);
        assert_eq!(commit_time(b"committer B <b@c> x +0000\n"), None);
        assert_eq!(commit_time(b""), None);
    }

    #[test]
    fn reads_repositories() {
        let id = |text: &str| GitRef::parse(text).map(|git| git.map(|git| git.options().identifier));
        assert_eq!(id("https://github.com/a/b.git#v1:c/d"), Some(Ok("github.com/a/b.git#v1:c/d".into())));
        assert_eq!(id("git@github.com:a/b.git#v1"), Some(Ok("github.com/a/b.git#v1".into())));
        assert_eq!(id("https://x/b.git?tag=1&subdir=s"), Some(Ok("x/b.git#refs/tags/1:s".into())));
        assert_eq!(id("https://x/b"), None);
        assert_eq!(id("a/b.git"), None);
        assert_eq!(id("./git@x:y"), None);
        assert!(GitRef::parse("github.com/a/b").unwrap().unwrap().maybe_local);
        assert_eq!(id("https://x/b.git?nope=1"), Some(Err("unexpected query \"nope\"".into())));
    }
}
