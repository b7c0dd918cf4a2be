//! Where graphs begin: images, directories, URLs, definitions of others.

use std::collections::{BTreeMap, HashMap};

use castor_oci::{Digest, Reference};
use castor_proto::pb;
use prost::Message as _;

use super::node::{Kind, Node, Output, Slot};
use super::{Constraints, State};
use crate::decode::platform;
use crate::error::MarshalError;
use crate::{Definition, Range, ResolveMode};

/// How to take an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// When to ask the registry.
    pub resolve_mode: ResolveMode,
    /// What the record is for.
    pub record_type: String,
    /// Take only so many layers.
    pub layer_limit: Option<usize>,
    /// What the manifest's digest must be.
    pub checksum: Option<Digest>,
}

/// How to take a directory of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalOptions {
    /// The session to ask.
    pub session: String,
    /// Only what these match.
    pub include_patterns: Vec<String>,
    /// Not what these match.
    pub exclude_patterns: Vec<String>,
    /// Only these paths and what links among them lead to.
    pub follow_paths: Vec<String>,
    /// Transfers with equal hints share what was sent before.
    pub shared_key_hint: String,
    /// Send everything again (`none`) or compare by `metadata`; empty leaves it to the daemon.
    pub differ: String,
    /// Whether a daemon that does not know `differ` is to refuse.
    pub differ_required: bool,
}

/// How to get a file from a web server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// Its digest.
    pub checksum: Option<String>,
    /// Its name.
    pub filename: String,
    /// Its mode; 0 is the default.
    pub perm: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// How to get a git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitOptions {
    /// Host and path, `#ref:subdir` included: the identifier without its scheme.
    pub identifier: String,
    /// The URL to fetch from.
    pub url: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// What the commit must be.
    pub checksum: String,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// Where modification times come from.
    pub mtime: String,
    /// Fetch the commit itself.
    pub fetch_by_commit: bool,
    /// Known hosts, for ssh.
    pub known_ssh_hosts: Option<String>,
    /// The agent to use, for ssh.
    pub mount_ssh_sock: Option<String>,
}

/// How to take an image from an OCI layout of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OciLayoutOptions {
    /// The session to ask.
    pub session: String,
    /// The store in it.
    pub store: String,
    /// Take only so many layers.
    pub layer_limit: Option<usize>,
}

type Attrs = BTreeMap<String, String>;

fn json_list(list: &[String]) -> String {
    // Go's encoder, like ours, but it escapes what HTML would misread.
    let text = serde_json::to_string(list).unwrap_or_default();
    text.replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

impl State {
    fn source(identifier: String, attrs: Attrs, constraints: Constraints, error: Option<MarshalError>) -> Self {
        let kind = Kind::Source { identifier, attrs, error };
        Self::from_output(Some(Output::of(Node::new(kind, Vec::new(), constraints))))
    }

    /// An image. The reference is completed (`golang` is `docker.io/library/golang:latest`).
    #[must_use]
    pub fn image(reference: &str, options: &ImageOptions, constraints: Constraints) -> Self {
        let (name, error) = match reference.parse::<Reference>() {
            Ok(parsed) => (parsed.to_string(), None),
            Err(error) => {
                let error = MarshalError::Reference { reference: reference.to_owned(), problem: error.to_string() };
                (reference.to_owned(), Some(error))
            }
        };
        let mut constraints = constraints.with_cap("source.image");
        let mut attrs = Attrs::new();
        if options.resolve_mode != ResolveMode::Default {
            attrs.insert("image.resolvemode".into(), options.resolve_mode.as_str().into());
        }
        if options.resolve_mode == ResolveMode::ForcePull {
            constraints = constraints.with_cap("source.image.resolvemode");
        }
        if !options.record_type.is_empty() {
            attrs.insert("image.recordtype".into(), options.record_type.clone());
        }
        if let Some(limit) = options.layer_limit {
            attrs.insert("image.layerlimit".into(), limit.to_string());
            constraints = constraints.with_cap("source.image.layerlimit");
        }
        if let Some(checksum) = options.checksum {
            attrs.insert("image.checksum".into(), checksum.to_string());
            constraints = constraints.with_cap("source.image.checksum");
        }
        Self::source(format!("docker-image://{name}"), attrs, constraints, error)
    }

    /// A directory of the client.
    #[must_use]
    pub fn local(name: &str, options: &LocalOptions, constraints: Constraints) -> Self {
        let mut constraints = constraints;
        let mut attrs = Attrs::new();
        let list = |list: &[String]| if list.is_empty() { String::new() } else { json_list(list) };
        for (attribute, value, cap) in [
            ("local.session", options.session.clone(), "source.local.sessionid"),
            ("local.includepattern", list(&options.include_patterns), "source.local.includepatterns"),
            ("local.followpaths", list(&options.follow_paths), "source.local.followpaths"),
            ("local.excludepatterns", list(&options.exclude_patterns), "source.local.excludepatterns"),
            ("local.sharedkeyhint", options.shared_key_hint.clone(), "source.local.sharedkeyhint"),
        ] {
            if !value.is_empty() {
                attrs.insert(attribute.into(), value);
                constraints = constraints.with_cap(cap);
            }
        }
        if !options.differ.is_empty() {
            attrs.insert("local.differ".into(), options.differ.clone());
            if options.differ_required {
                constraints = constraints.with_cap("source.local.differ");
            }
        }
        Self::source(format!("local://{name}"), attrs, constraints.with_cap("source.local"), None)
    }

    /// A file from a web server.
    #[must_use]
    pub fn http(url: &str, options: &HttpOptions, constraints: Constraints) -> Self {
        let mut constraints = constraints.with_cap("source.http");
        let mut attrs = Attrs::new();
        if let Some(checksum) = &options.checksum {
            attrs.insert("http.checksum".into(), checksum.clone());
            constraints = constraints.with_cap("source.http.checksum");
        }
        if !options.filename.is_empty() {
            attrs.insert("http.filename".into(), options.filename.clone());
        }
        if options.perm != 0 {
            attrs.insert("http.perm".into(), format!("0{:o}", options.perm));
            constraints = constraints.with_cap("source.http.perm");
        }
        for (attribute, id) in [("http.uid", options.uid), ("http.gid", options.gid)] {
            if id != 0 {
                attrs.insert(attribute.into(), id.to_string());
                constraints = constraints.with_cap("soruce.http.uidgid");
            }
        }
        Self::source(url.to_owned(), attrs, constraints, None)
    }

    /// A git repository.
    #[must_use]
    pub fn git(options: &GitOptions, constraints: Constraints) -> Self {
        let mut constraints = constraints.with_cap("source.git");
        let flag = |set: bool| if set { "true".to_owned() } else { String::new() };
        let mut attrs = Attrs::new();
        for (attribute, value, cap) in [
            ("git.keepgitdir", flag(options.keep_git_dir), "source.git.keepgitdir"),
            ("git.fullurl", options.url.clone(), "source.git.fullurl"),
            ("git.checksum", options.checksum.clone(), "source.git.checksum"),
            ("git.skipsubmodules", flag(options.skip_submodules), "source.git.skipsubmodules"),
            ("git.mtime", options.mtime.clone(), "source.git.mtime"),
            ("git.fetchbycommit", flag(options.fetch_by_commit), "source.git.fetchbycommit"),
        ] {
            if !value.is_empty() {
                attrs.insert(attribute.into(), value);
                constraints = constraints.with_cap(cap);
            }
        }
        attrs.insert("git.authtokensecret".into(), "GIT_AUTH_TOKEN".into());
        attrs.insert("git.authheadersecret".into(), "GIT_AUTH_HEADER".into());
        if let Some(hosts) = &options.known_ssh_hosts {
            attrs.insert("git.knownsshhosts".into(), hosts.clone());
        }
        if let Some(agent) = &options.mount_ssh_sock {
            attrs.insert("git.mountsshsock".into(), agent.clone());
            // Both go with ssh, whether hosts are known or not.
            constraints = constraints.with_cap("source.git.knownsshhosts").with_cap("source.git.mountsshsock");
        }
        Self::source(format!("git://{}", options.identifier), attrs, constraints, None)
    }

    /// An image from an OCI layout of the client.
    #[must_use]
    pub fn oci_layout(reference: &str, options: &OciLayoutOptions, constraints: Constraints) -> Self {
        let mut attrs = Attrs::new();
        if !options.session.is_empty() {
            attrs.insert("oci.session".into(), options.session.clone());
        }
        if !options.store.is_empty() {
            attrs.insert("oci.store".into(), options.store.clone());
        }
        if let Some(limit) = options.layer_limit {
            attrs.insert("oci.layerlimit".into(), limit.to_string());
        }
        Self::source(format!("oci-layout://{reference}"), attrs, constraints.with_cap("source.ocilayout"), None)
    }

    /// What somebody else's definition makes.
    pub fn from_definition(definition: &Definition) -> Result<Self, MarshalError> {
        let bad = |text: String| MarshalError::Definition(text);
        let mut nodes: HashMap<Digest, std::sync::Arc<Node>> = HashMap::new();
        let texts = source_texts(definition.source.as_ref());
        let mut result = None;
        for (position, raw) in definition.ops.iter().enumerate() {
            let wire = pb::Op::decode(raw.clone()).map_err(|error| bad(error.to_string()))?;
            let mut deps = Vec::with_capacity(wire.inputs.len());
            for input in &wire.inputs {
                let digest: Digest = input.digest.parse().map_err(|error| bad(format!("{error}")))?;
                let node = nodes.get(&digest).ok_or_else(|| bad(format!("missing input {digest}")))?;
                let index = usize::try_from(input.index).map_err(|_| bad(format!("output {}", input.index)))?;
                deps.push(Output { node: node.clone(), slot: Slot::Index(index) });
            }
            if position + 1 == definition.ops.len() {
                result = Some(deps.into_iter().next().ok_or_else(|| bad("no result".into()))?);
                break;
            }
            let digest = Digest::of(raw);
            let mut constraints = Constraints::new().platform(wire.platform.as_ref().map(platform).as_ref());
            constraints.locations = locations(definition.source.as_ref(), &digest, &texts);
            let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
            let kind = Kind::Encoded { raw: raw.clone(), digest, metadata };
            nodes.insert(digest, std::sync::Arc::new(Node::new(kind, deps, constraints)));
        }
        Ok(Self::from_output(result))
    }
}

fn source_texts(source: Option<&pb::Source>) -> Vec<std::sync::Arc<super::SourceText>> {
    let infos = source.map(|source| source.infos.as_slice()).unwrap_or_default();
    infos
        .iter()
        .map(|info| {
            std::sync::Arc::new(super::SourceText {
                filename: info.filename.clone(),
                language: info.language.clone(),
                data: info.data.clone(),
                definition: info.definition.clone().map(Definition::from_pb),
            })
        })
        .collect()
}

fn locations(
    source: Option<&pb::Source>,
    digest: &Digest,
    texts: &[std::sync::Arc<super::SourceText>],
) -> Vec<(std::sync::Arc<super::SourceText>, Vec<Range>)> {
    let Some(list) = source.and_then(|source| source.locations.get(&digest.to_string())) else {
        return Vec::new();
    };
    list.locations
        .iter()
        .filter_map(|location| {
            let text = texts.get(usize::try_from(location.source_index).ok()?)?;
            Some((text.clone(), location.ranges.iter().map(Range::from_pb).collect()))
        })
        .collect()
}
