//! Sources: identifier and attributes, understood.

use std::collections::BTreeMap;

use castor_oci::Digest;

use crate::LlbError;

/// What a source op brings in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An image from a registry, or one that is here.
    Image(ImageSource),
    /// A directory of the client.
    Local(LocalSource),
    /// A git repository.
    Git(GitSource),
    /// A file from a web server.
    Http(HttpSource),
    /// An image in an OCI layout of the client.
    OciLayout(OciLayoutSource),
    /// One blob of a registry.
    ImageBlob(BlobSource),
    /// One blob of an OCI layout.
    OciLayoutBlob(BlobSource),
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSource {
    /// The reference, as sent.
    pub reference: String,
    /// Whether to ask the registry.
    pub resolve_mode: ResolveMode,
    /// What the record is for (`internal`, `frontend`); empty is regular.
    pub record_type: String,
    /// Take only so many layers.
    pub layer_limit: Option<usize>,
    /// What the manifest's digest must be.
    pub checksum: Option<Digest>,
}

/// When to ask the registry for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ResolveMode {
    /// As the daemon sees fit.
    #[default]
    Default,
    /// Always.
    ForcePull,
    /// Only if there is no such image here.
    PreferLocal,
}

impl ResolveMode {
    /// The word of the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ForcePull => "pull",
            Self::PreferLocal => "local",
        }
    }

    /// Reads the word of the wire.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "default" | "" => Some(Self::Default),
            "pull" => Some(Self::ForcePull),
            "local" => Some(Self::PreferLocal),
            _ => None,
        }
    }
}

/// A directory of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalSource {
    /// The name that the client serves it under.
    pub name: String,
    /// The session to ask; empty is that of the build.
    pub session: String,
    /// Makes sources without session distinct.
    pub unique: String,
    /// Only what these match.
    pub include_patterns: Vec<String>,
    /// Not what these match.
    pub exclude_patterns: Vec<String>,
    /// Only these paths and what links among them lead to.
    pub follow_paths: Vec<String>,
    /// Transfers with equal hints share what was sent before.
    pub shared_key_hint: String,
    /// How files are compared with those sent before.
    pub differ: Differ,
    /// Send metadata only, but for these paths.
    pub metadata_only: Option<Vec<String>>,
}

/// How files are compared with those sent before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Differ {
    /// By metadata.
    #[default]
    Metadata,
    /// Not at all: everything is sent.
    None,
}

/// A git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitSource {
    /// The URL to fetch from.
    pub remote: String,
    /// Branch, tag or commit; empty is the remote's default branch.
    pub reference: String,
    /// Only what is below this directory; empty is everything.
    pub subdir: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// What the commit's name must begin with.
    pub checksum: String,
    /// The secret with the value of the `Authorization` header.
    pub auth_header_secret: String,
    /// The secret with a token for basic authentication.
    pub auth_token_secret: String,
    /// Known hosts, for ssh.
    pub known_ssh_hosts: String,
    /// The agent to use, for ssh.
    pub mount_ssh_sock: String,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// Where modification times come from: `commit`, or the checkout.
    pub mtime: String,
    /// Fetch the commit of `checksum` itself, not what the reference means.
    pub fetch_by_commit: bool,
    /// An attribute that asks for something castor does not have: bundles, signatures.
    pub unsupported: Option<&'static str>,
}

/// A file from a web server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpSource {
    /// The whole URL.
    pub url: String,
    /// The digest that the file must have, as sent.
    pub checksum: String,
    /// The file's name; empty leaves it to server and URL.
    pub filename: String,
    /// Its mode; 0 is 0600.
    pub perm: i64,
    /// Its owner.
    pub uid: i64,
    /// Its group.
    pub gid: i64,
    /// The secret with the value of the `Authorization` header.
    pub auth_header_secret: String,
    /// Headers to send, by canonical name.
    pub headers: Vec<(String, String)>,
    /// An attribute that asks for something castor does not have: signatures.
    pub unsupported: Option<&'static str>,
}

/// An image in an OCI layout of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OciLayoutSource {
    /// The reference; its digest says which image.
    pub reference: String,
    /// The session to ask; empty is that of the build.
    pub session: String,
    /// The store in it.
    pub store: String,
    /// Take only so many layers.
    pub layer_limit: Option<usize>,
}

/// One blob, as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobSource {
    /// Repository and digest.
    pub reference: String,
    /// The session to ask, for layouts of the client.
    pub session: String,
    /// The store in it.
    pub store: String,
    /// What the record is for.
    pub record_type: String,
    /// The file's name.
    pub filename: String,
    /// Its mode; 0 is 0600.
    pub perm: i64,
    /// Its owner.
    pub uid: i64,
    /// Its group.
    pub gid: i64,
}

/// An attribute list and where it stands, for messages.
struct Attrs<'a> {
    identifier: &'a str,
    attrs: &'a BTreeMap<String, String>,
}

impl Attrs<'_> {
    fn text(&self, name: &str) -> String {
        self.attrs.get(name).cloned().unwrap_or_default()
    }

    fn read<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, LlbError> {
        let Some(value) = self.attrs.get(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        parse(value).map(Some).map_err(|problem| LlbError::Attribute {
            identifier: self.identifier.to_owned(),
            attribute: name.to_owned(),
            value: value.clone(),
            problem,
        })
    }

    fn list(&self, name: &str) -> Result<Vec<String>, LlbError> {
        let parse = |text: &str| serde_json::from_str::<Option<Vec<String>>>(text).map_err(|e| e.to_string());
        Ok(self.read(name, parse)?.flatten().unwrap_or_default())
    }
}

impl Source {
    /// Understands an identifier and its attributes.
    pub fn parse(identifier: &str, attrs: &BTreeMap<String, String>) -> Result<Self, LlbError> {
        let unknown = || LlbError::UnknownScheme(identifier.to_owned());
        let (scheme, rest) = identifier.split_once("://").ok_or_else(unknown)?;
        let attrs = Attrs { identifier, attrs };
        Ok(match scheme {
            "docker-image" => Self::Image(image(rest, &attrs)?),
            "local" => Self::Local(local(rest, &attrs)?),
            "git" => Self::Git(git(rest, &attrs)?),
            "http" | "https" => Self::Http(http(identifier, &attrs)?),
            "oci-layout" => Self::OciLayout(OciLayoutSource {
                reference: rest.to_owned(),
                session: attrs.text("oci.session"),
                store: attrs.text("oci.store"),
                layer_limit: attrs.read("oci.layerlimit", limit)?,
            }),
            "docker-image+blob" => Self::ImageBlob(blob(rest, &attrs)?),
            "oci-layout+blob" => Self::OciLayoutBlob(blob(rest, &attrs)?),
            _ => return Err(unknown()),
        })
    }
}

/// A number as Go reads it where the base is told by the prefix: `0x`, `0o`, `0b`, `0`.
fn integer(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, base) = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find_map(|(prefix, base)| lower.strip_prefix(prefix).map(|rest| (rest, base)))
        .unwrap_or(match lower.strip_prefix('0') {
            Some(rest) if !rest.is_empty() => (rest, 8),
            _ => (lower.as_str(), 10),
        });
    let number = i64::from_str_radix(digits, base).map_err(|error| error.to_string())?;
    Ok(if negative { -number } else { number })
}

/// `algorithm:hex`, of an algorithm that BuildKit knows.
fn checksum(text: &str) -> Result<String, String> {
    let length = match text.split_once(':').map(|(algorithm, _)| algorithm) {
        None => return Err("invalid checksum digest format".to_owned()),
        Some("sha256") => 64,
        Some("sha384") => 96,
        Some("sha512") => 128,
        Some(_) => return Err("unsupported digest algorithm".to_owned()),
    };
    let hex = text.split_once(':').map_or("", |(_, hex)| hex);
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match hex.len() == length {
        false => Err("invalid checksum digest length".to_owned()),
        true if hex.bytes().all(lower) => Ok(text.to_owned()),
        true => Err("invalid checksum digest format".to_owned()),
    }
}

/// Whether git knows how to get at `remote` by itself: a URL of one of its schemes, or `user@host:path`.
fn is_git_transport(remote: &str) -> bool {
    if let Some((scheme, _)) = remote.split_once("://")
        && !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https" | "ssh" | "git");
    }
    let Some((user, rest)) = remote.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    let word = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    word(user, b"-_") && word(host, b"-.")
}

fn git(rest: &str, attrs: &Attrs<'_>) -> Result<GitSource, LlbError> {
    let complete = |remote: &str| match is_git_transport(remote) {
        true => remote.to_owned(),
        false => format!("https://{remote}"),
    };
    let (remote, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let remote = remote.split_once('?').map_or(remote, |(remote, _)| remote);
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let remote = match attrs.text("git.fullurl") {
        full if full.is_empty() => complete(remote),
        full => complete(&full),
    };
    let invalid = |attribute: &str, value: &str, problem: &str| LlbError::Attribute {
        identifier: attrs.identifier.to_owned(),
        attribute: attribute.to_owned(),
        value: value.to_owned(),
        problem: problem.to_owned(),
    };
    // It would be an option of git's.
    if reference.starts_with('-') {
        return Err(invalid("ref", reference, "invalid git ref"));
    }
    let flag = |name: &str| attrs.text(name) == "true";
    let unsupported = ["git.bundle", "git.checkoutbundle", "git.sig.pubkey", "git.sig.requiresignedtag"];
    Ok(GitSource {
        remote,
        reference: reference.to_owned(),
        subdir: crate::state::join(&["/", subdir]).trim_start_matches('/').to_owned(),
        keep_git_dir: flag("git.keepgitdir"),
        checksum: attrs.text("git.checksum"),
        auth_header_secret: attrs.text("git.authheadersecret"),
        auth_token_secret: attrs.text("git.authtokensecret"),
        known_ssh_hosts: attrs.text("git.knownsshhosts"),
        mount_ssh_sock: attrs.text("git.mountsshsock"),
        skip_submodules: flag("git.skipsubmodules"),
        mtime: attrs.text("git.mtime"),
        fetch_by_commit: flag("git.fetchbycommit"),
        unsupported: unsupported.into_iter().find(|name| !attrs.text(name).is_empty()),
    })
}

/// Headers that a definition may set; others are left out.
const HEADERS: [(&str, &str); 2] = [("accept", "Accept"), ("user-agent", "User-Agent")];

fn http(url: &str, attrs: &Attrs<'_>) -> Result<HttpSource, LlbError> {
    let headers = HEADERS.iter().filter_map(|(key, name)| {
        let sent = attrs.attrs.iter().find(|(attribute, _)| {
            attribute.strip_prefix("http.header.").is_some_and(|header| header.eq_ignore_ascii_case(key))
        });
        sent.map(|(_, value)| ((*name).to_owned(), value.clone()))
    });
    let unsupported = ["http.sig.pubkey", "http.sig.signature"];
    Ok(HttpSource {
        url: url.to_owned(),
        checksum: attrs.read("http.checksum", checksum)?.unwrap_or_default(),
        filename: attrs.text("http.filename"),
        perm: attrs.read("http.perm", integer)?.unwrap_or_default(),
        uid: attrs.read("http.uid", integer)?.unwrap_or_default(),
        gid: attrs.read("http.gid", integer)?.unwrap_or_default(),
        auth_header_secret: attrs.text("http.authheadersecret"),
        headers: headers.collect(),
        unsupported: unsupported.into_iter().find(|name| !attrs.text(name).is_empty()),
    })
}

fn blob(reference: &str, attrs: &Attrs<'_>) -> Result<BlobSource, LlbError> {
    Ok(BlobSource {
        reference: reference.to_owned(),
        session: attrs.text("oci.session"),
        store: attrs.text("oci.store"),
        record_type: attrs.text("image.recordtype"),
        filename: attrs.text("http.filename"),
        perm: attrs.read("http.perm", integer)?.unwrap_or_default(),
        uid: attrs.read("http.uid", integer)?.unwrap_or_default(),
        gid: attrs.read("http.gid", integer)?.unwrap_or_default(),
    })
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(limit) if limit > 0 => Ok(limit),
        Ok(_) => Err(format!("invalid layer limit {text}")),
        Err(error) => Err(format!("invalid layer limit {text}: {error}")),
    }
}

fn image(reference: &str, attrs: &Attrs<'_>) -> Result<ImageSource, LlbError> {
    let mode = |text: &str| ResolveMode::parse(text).ok_or_else(|| "want default, pull or local".to_owned());
    Ok(ImageSource {
        reference: reference.to_owned(),
        resolve_mode: attrs.read("image.resolvemode", mode)?.unwrap_or_default(),
        record_type: attrs.text("image.recordtype"),
        layer_limit: attrs.read("image.layerlimit", limit)?,
        checksum: attrs.read("image.checksum", |text| text.parse::<Digest>().map_err(|e| e.to_string()))?,
    })
}

fn local(name: &str, attrs: &Attrs<'_>) -> Result<LocalSource, LlbError> {
    let differ = |text: &str| match text {
        "metadata" => Ok(Differ::Metadata),
        "none" => Ok(Differ::None),
        _ => Err("want none or metadata".to_owned()),
    };
    let flag = |text: &str| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("want a boolean".to_owned()),
    };
    let metadata_only = match attrs.read("local.metadatatransfer", flag)? {
        Some(true) => Some(attrs.list("local.metadatatransferexclude")?),
        _ => None,
    };
    Ok(LocalSource {
        name: name.to_owned(),
        // The part before a colon names a session of the client's client.
        session: attrs.text("local.session"),
        unique: attrs.text("local.unique"),
        include_patterns: attrs.list("local.includepattern")?,
        exclude_patterns: attrs.list("local.excludepatterns")?,
        follow_paths: attrs.list("local.followpaths")?,
        shared_key_hint: attrs.text("local.sharedkeyhint"),
        differ: attrs.read("local.differ", differ)?.unwrap_or_default(),
        metadata_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn reads_attributes_of_images_and_directories() {
        let Source::Image(image) = Source::parse(
            "docker-image://a/b:1",
            &attrs(&[("image.resolvemode", "pull"), ("image.layerlimit", "2"), ("unknown", "x")]),
        )
        .unwrap() else {
            panic!("no image")
        };
        assert_eq!(
            (image.reference.as_str(), image.resolve_mode, image.layer_limit),
            ("a/b:1", ResolveMode::ForcePull, Some(2))
        );
        let Source::Local(local) =
            Source::parse("local://context", &attrs(&[("local.followpaths", "[\"a\"]"), ("local.differ", "none")]))
                .unwrap()
        else {
            panic!("no directory")
        };
        assert_eq!((local.follow_paths, local.differ), (vec!["a".to_owned()], Differ::None));
    }

    #[test]
    fn reads_attributes_of_repositories() {
        let parse = |identifier: &str, list: &[(&str, &str)]| match Source::parse(identifier, &attrs(list)).unwrap() {
            Source::Git(source) => (source.remote, source.reference, source.subdir),
            other => panic!("{other:?}"),
        };
        let texts = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(parse("git://h/r.git#v1:a/../b", &[]), texts("https://h/r.git", "v1", "b"));
        assert_eq!(parse("git://h/r", &[("git.fullurl", "git@h:r")]), texts("git@h:r", "", ""));
        assert_eq!(parse("git://h/r", &[("git.fullurl", "ext::sh -c x")]).0, "https://ext::sh -c x");
        assert_eq!(parse("git://h/r", &[("git.fullurl", "file:///etc")]).0, "https://file:///etc");
    }

    #[test]
    fn reads_attributes_of_files() {
        let list = [("http.perm", "0644"), ("http.uid", "0x10"), ("http.header.ACCEPT", "a"), ("http.header.x", "b")];
        let Source::Http(file) = Source::parse("http://h/x", &attrs(&list)).unwrap() else { panic!("no file") };
        assert_eq!((file.perm, file.uid, file.url.as_str()), (0o644, 16, "http://h/x"));
        assert_eq!(file.headers, [("Accept".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for (identifier, list) in [
            ("nothing", vec![]),
            ("ftp://x", vec![]),
            ("docker-image://x", vec![("image.layerlimit", "0")]),
            ("docker-image://x", vec![("image.checksum", "md5:1")]),
            ("local://x", vec![("local.includepattern", "{}")]),
            ("git://x/y#-o", vec![]),
            ("http://x", vec![("http.checksum", "sha256:12")]),
            ("http://x", vec![("http.perm", "9z")]),
            ("oci-layout://x", vec![("oci.layerlimit", "0")]),
        ] {
            assert!(Source::parse(identifier, &attrs(&list)).is_err(), "{identifier}");
        }
    }
}
