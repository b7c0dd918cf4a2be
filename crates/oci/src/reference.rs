//! Image references: `[host[:port]/]path[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// A normalised image reference: it always has a host and a path, and a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference. The wording is that of Docker's reference library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not of the form.
    #[error("invalid reference format")]
    Format,
    /// Upper-case letters in the repository.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Upper-case letters in a host that is none.
    #[error("repository name must be lowercase")]
    NotLowercase,
    /// The repository's name is over 255 characters.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// An image ID where a name is wanted.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Id(String),
    /// The digest has another length than its algorithm says.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// The digest is not in lower-case hex digits.
    #[error("invalid checksum digest format")]
    DigestFormat,
    /// A digest by an algorithm other than sha256.
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
}

impl Reference {
    /// The registry's host with its port, `docker.io` for Docker Hub.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's path without the host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Host and path.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry's manifest URL ends in: the digest, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// The same repository and tag, pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The short spelling that users write: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => rest.strip_prefix("library/").unwrap_or(rest).to_owned(),
            None => full,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Parses and normalises: `golang` is `docker.io/library/golang:latest`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let lower = text.to_lowercase();
        match Self::parse(text) {
            Err(ReferenceError::Format) if lower != text && Self::parse(&lower) != Err(ReferenceError::Format) => {
                Err(ReferenceError::NotLowercase)
            }
            result => result,
        }
    }
}

impl Reference {
    fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Id(text.to_owned()));
        }
        let is_host =
            |part: &str| part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase);
        let (host, remainder) = match text.split_once('/') {
            Some((host, remainder)) if is_host(host) => (host, remainder),
            _ => ("docker.io", text),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        let short = host == "docker.io" && !remainder.contains('/');
        let remainder = if short { format!("library/{remainder}") } else { remainder.to_owned() };
        let name = remainder.split(':').next().unwrap_or_default();
        if name != name.to_lowercase() {
            return Err(ReferenceError::Uppercase(name.to_owned()));
        }
        let (rest, digest) = match remainder.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path.to_owned(), Some(tag)),
            _ => (rest.to_owned(), None),
        };
        if let Some(tag) = tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let bytes = tag.as_bytes();
            let legal = !bytes.is_empty()
                && bytes.len() <= 128
                && word(bytes[0])
                && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
            if !legal {
                return Err(ReferenceError::Format);
            }
        }
        // A host that is none may still be the first part of a path.
        if !(legal_host(host) || legal_component(host)) || !path.split('/').all(legal_component) {
            return Err(ReferenceError::Format);
        }
        if digest.is_some_and(|digest| !looks_like_digest(digest)) {
            return Err(ReferenceError::Format);
        }
        if host.len() + path.len() >= 255 {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(parse_digest).transpose()?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self { host: host.to_owned(), path, tag, digest })
    }
}

/// What may stand behind `@`: an algorithm and 32 hex digits at least.
fn looks_like_digest(text: &str) -> bool {
    let Some((algorithm, value)) = text.split_once(':') else { return false };
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(part) && value.len() >= 32 && value.bytes().all(|b| b.is_ascii_hexdigit())
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    let (algorithm, value) = text.split_once(':').unwrap_or((text, ""));
    match algorithm {
        "sha256" if value.len() != 64 => Err(ReferenceError::DigestLength),
        "sha256" => text.parse().map_err(|_| ReferenceError::DigestFormat),
        _ => Err(ReferenceError::DigestAlgorithm),
    }
}

fn legal_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                    return false;
                }
                ("v6", port)
            }
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, _)) => (name, &host[name.len()..]),
            None => (host, ""),
        },
    };
    let legal_port = port.is_empty()
        || port.strip_prefix(':').is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let legal_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    legal_port && name.split('.').all(legal_label)
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn legal_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let edges = bytes.first().is_some_and(|&b| alphanumeric(b)) && bytes.last().is_some_and(|&b| alphanumeric(b));
    edges
        && bytes.iter().all(|&b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, want) in [
            ("golang", "docker.io/library/golang:latest".to_owned()),
            ("a/b:1", "docker.io/a/b:1".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t".to_owned()),
            ("index.docker.io/x", "docker.io/library/x:latest".to_owned()),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}")),
            (&format!("ghcr.io/a/b:t@{digest}"), format!("ghcr.io/a/b:t@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), want, "{text}");
        }
        assert_eq!("golang:1".parse::<Reference>().unwrap().familiar(), "golang:1");
    }

    #[test]
    fn refuses_what_docker_refuses() {
        for text in ["", ":", "a:", "a//b", "-a", "a/", "a b", "a@", "a:-x", "a..b", "a___b", "x.io:port/a"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(matches!("a/B".parse::<Reference>(), Err(ReferenceError::Uppercase(_))));
        let zeros = "0".repeat(64);
        for (text, want) in [
            (zeros.clone(), ReferenceError::Id(zeros.clone())),
            (format!("a@sha256:{}", &zeros[..63]), ReferenceError::DigestLength),
            (format!("a@sha256:{}", "A".repeat(64)), ReferenceError::DigestFormat),
            (format!("a@md5:{zeros}"), ReferenceError::DigestAlgorithm),
            ("a@sha256:1".to_owned(), ReferenceError::Format),
            ("a.b@x/c".to_owned(), ReferenceError::Format),
            ("A_B.c/d".to_owned(), ReferenceError::NotLowercase),
        ] {
            assert_eq!(text.parse::<Reference>(), Err(want), "{text}");
        }
        assert!("a.b_c/d".parse::<Reference>().is_ok());
    }
}
