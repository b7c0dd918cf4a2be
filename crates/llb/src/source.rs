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
    /// A git repository; the identifier without scheme.
    Git(String),
    /// A file from a web server; the whole URL.
    Http(String),
    /// An image in an OCI layout of the client; the identifier without scheme.
    OciLayout(String),
    /// One blob of a registry.
    ImageBlob(String),
    /// One blob of an OCI layout.
    OciLayoutBlob(String),
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
            "git" => Self::Git(rest.to_owned()),
            "http" | "https" => Self::Http(identifier.to_owned()),
            "oci-layout" => Self::OciLayout(rest.to_owned()),
            "docker-image+blob" => Self::ImageBlob(rest.to_owned()),
            "oci-layout+blob" => Self::OciLayoutBlob(rest.to_owned()),
            _ => return Err(unknown()),
        })
    }
}

fn image(reference: &str, attrs: &Attrs<'_>) -> Result<ImageSource, LlbError> {
    let mode = |text: &str| ResolveMode::parse(text).ok_or_else(|| "want default, pull or local".to_owned());
    let limit = |text: &str| match text.parse::<usize>() {
        Ok(limit) if limit > 0 => Ok(limit),
        Ok(_) => Err(format!("invalid layer limit {text}")),
        Err(error) => Err(format!("invalid layer limit {text}: {error}")),
    };
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
    fn refuses_what_it_does_not_understand() {
        for (identifier, list) in [
            ("nothing", vec![]),
            ("ftp://x", vec![]),
            ("docker-image://x", vec![("image.layerlimit", "0")]),
            ("docker-image://x", vec![("image.checksum", "md5:1")]),
            ("local://x", vec![("local.includepattern", "{}")]),
        ] {
            assert!(Source::parse(identifier, &attrs(&list)).is_err(), "{identifier}");
        }
    }
}
