//! The attributes of the image exporter.

use std::collections::BTreeMap;

use castor_blobs::{Compression, Form};
use castor_oci::Reference;

use crate::annotations::ImageAnnotations;
use crate::epoch::Epoch;

/// What an image is exported as and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// Names of the image; a single `*` stands for the name that the frontend gave.
    pub names: Vec<String>,
    /// Push to the registries that the names point at.
    pub push: bool,
    /// Push without tags.
    pub push_by_digest: bool,
    /// Speak plain HTTP to, or do not verify, the registry pushed to.
    pub insecure: bool,
    /// Report the name with the digest too.
    pub name_canonical: bool,
    /// Prefix of a name to report for an image.
    pub dangling_prefix: Option<String>,
    /// Only give that name where there is no other.
    pub dangling_empty_only: bool,
    /// OCI media types, if it was said.
    pub oci_media_types: Option<bool>,
    /// How layers are compressed.
    pub compression: Compression,
    /// Layers that their image says are to be had elsewhere stay there.
    pub prefer_non_distributable: bool,
    /// Times are cut to it.
    pub epoch: Epoch,
    /// Whether those of files in layers are, too.
    pub rewrite_timestamp: bool,
    /// Whether statements that are for images only go into this one, if it was said.
    pub attestation_inline: Option<bool>,
    /// Whether statements are an artifact rather than look like an image, if it was said.
    pub oci_artifact: Option<bool>,
    /// Annotations of the image.
    pub annotations: ImageAnnotations,
    /// Attributes that are no options: BuildKit adds them to the result's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Why attributes are not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A value that is no boolean.
    #[error("non-bool value specified for {key}: {value:?}")]
    Bool {
        /// The attribute.
        key: String,
        /// Its value.
        value: String,
    },
    /// A value that is no number in the range.
    #[error("invalid value {value:?} for {key}")]
    Number {
        /// The attribute.
        key: String,
        /// Its value.
        value: String,
    },
    /// A compression that does not exist.
    #[error("unsupported layer compression type {0}")]
    Compression(String),
    /// OCI media types are needed and were refused.
    #[error("exporter option \"compression={0}\" conflicts with \"oci-mediatypes=false\"")]
    NeedsOci(&'static str),
    /// An artifact needs OCI media types, which were refused.
    #[error("exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"")]
    ArtifactNeedsOci,
    /// Attestations and media types that have no place for them.
    #[error("cannot export attestations with \"oci-mediatypes=false\"")]
    AttestationsNeedOci,
    /// A kind of annotation that does not exist.
    #[error("unrecognized annotation type {0}")]
    AnnotationKind(String),
    /// An annotation for a platform that is none.
    #[error("annotation for platform {0}")]
    AnnotationPlatform(String),
    /// An annotation for a platform that is not built.
    #[error("invalid annotation: no platform {0} found in source")]
    NoSuchPlatform(String),
    /// Annotations and media types that have none.
    #[error("cannot export annotations with \"oci-mediatypes=false\"")]
    AnnotationsNeedOci,
    /// Annotations of an index where there is none.
    #[error("index annotations not supported for single platform export")]
    NoIndex,
    /// Something of BuildKit's that castor does not do yet.
    #[error("{0} is not supported by castor yet")]
    Unsupported(String),
    /// A name that is no image reference.
    #[error("failed to parse {name:?} as image name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ImageOptions {
    /// Reads attributes as BuildKit does: an empty value of a boolean means yes.
    pub fn parse(attrs: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut options = Self {
            names: Vec::new(),
            push: false,
            push_by_digest: false,
            insecure: false,
            name_canonical: false,
            dangling_prefix: None,
            dangling_empty_only: false,
            oci_media_types: None,
            compression: Compression::default(),
            prefer_non_distributable: false,
            epoch: Epoch::default(),
            rewrite_timestamp: false,
            attestation_inline: None,
            oci_artifact: None,
            annotations: ImageAnnotations::default(),
            metadata: BTreeMap::new(),
        };
        for (key, value) in attrs {
            options.set(key, value)?;
        }
        if options.oci_media_types == Some(false) && options.compression.form == Form::Estargz {
            return Err(OptionError::NeedsOci(options.compression.form.name()));
        }
        if options.oci_media_types == Some(false) && options.oci_artifact == Some(true) {
            return Err(OptionError::ArtifactNeedsOci);
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let flag = || parse_bool(key, value);
        match key {
            "name" => self.names = value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            "push" => self.push = flag()?,
            "push-by-digest" => self.push_by_digest = flag()?,
            "registry.insecure" => self.insecure = flag()?,
            "name-canonical" => self.name_canonical = flag()?,
            "dangling-name-prefix" => self.dangling_prefix = Some(value.to_owned()),
            // The missing letter is BuildKit's.
            "danging-name-empty-only" => self.dangling_empty_only = flag()?,
            "oci-mediatypes" => self.oci_media_types = Some(flag()?),
            "compression" => {
                self.compression.form = Form::parse(value).ok_or_else(|| OptionError::Compression(value.into()))?
            }
            "compression-level" => {
                let bad = || OptionError::Number { key: key.into(), value: value.into() };
                self.compression.level = Some(value.parse().ok().filter(|level| *level <= 22).ok_or_else(bad)?);
            }
            "force-compression" => self.compression.force = flag()?,
            "source-date-epoch" => self.epoch = Epoch::parse(value)?,
            // castor, like BuildKit's OCI worker, has no image store to put an image into.
            "store" | "unpack" | "unsafe-internal-store-allow-incomplete" => drop(flag()?),
            "rewrite-timestamp" => self.rewrite_timestamp = flag()?,
            "prefer-nondist-layers" => self.prefer_non_distributable = flag()?,
            "attestation-inline" => self.attestation_inline = Some(flag()?),
            "oci-artifact" => self.oci_artifact = Some(flag()?),
            _ if self.annotations.set(key, value)? => {}
            _ => drop(self.metadata.insert(key.to_owned(), value.to_owned())),
        }
        Ok(())
    }

    /// Whether the image gets OCI media types: if it was said, else if this or anything else wants it.
    pub fn oci(&self) -> bool {
        self.oci_media_types.unwrap_or(true)
    }

    /// The names, parsed; `*` is the frontend's name `given`.
    pub fn references(&self, given: Option<&str>) -> Result<Vec<Reference>, OptionError> {
        self.names
            .iter()
            .filter_map(|name| if name == "*" { given } else { Some(name.as_str()) })
            .flat_map(|names| names.split(','))
            .map(|name| {
                let bad = |reason: String| OptionError::Name { name: name.to_owned(), reason };
                let reference: Reference = name.parse().map_err(|error| bad(format!("{error}")))?;
                if self.push_by_digest && name_has_tag(name) {
                    return Err(bad("can't push tagged ref by digest".into()));
                }
                Ok(reference)
            })
            .collect()
    }
}

fn name_has_tag(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or(name);
    name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// Go's booleans; an empty value means yes.
pub fn parse_bool(key: &str, value: &str) -> Result<bool, OptionError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(OptionError::Bool { key: key.into(), value: value.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotations::Place;

    fn parse(attrs: &[(&str, &str)]) -> Result<ImageOptions, OptionError> {
        ImageOptions::parse(&attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn reads_what_buildctl_sends() {
        let options = parse(&[
            ("name", "127.0.0.1:5000/a:1,127.0.0.1:5000/b"),
            ("push", "true"),
            ("compression", "estargz"),
            ("force-compression", ""),
            ("annotation.org.x", "1"),
            ("containerimage.x", "y"),
        ])
        .unwrap();
        let names: Vec<String> = options.references(None).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["127.0.0.1:5000/a:1", "127.0.0.1:5000/b:latest"]);
        assert!(options.push && options.compression.force && options.oci());
        assert_eq!(options.compression.form, Form::Estargz);
        assert_eq!(options.annotations.of(Place::Manifest, None)["org.x"], "1");
        assert_eq!(options.metadata["containerimage.x"], "y");
    }

    #[test]
    fn refuses_by_name() {
        for (attrs, word) in [
            (&[("push", "maybe")][..], "push"),
            (&[("compression", "lzma")], "lzma"),
            (&[("compression", "estargz"), ("oci-mediatypes", "false")], "conflicts with \"oci-mediatypes=false\""),
            (&[("prefer-nondist-layers", "some")], "prefer-nondist-layers"),
            (&[("annotation-layer.a", "b")], "annotation type layer"),
            (&[("compression-level", "99")], "99"),
        ] {
            let error = parse(attrs).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let tagged = parse(&[("name", "a:1"), ("push-by-digest", "true")]).unwrap();
        assert!(tagged.references(None).unwrap_err().to_string().contains("can't push tagged ref by digest"));
    }

    #[test]
    fn a_star_is_the_frontends_name() {
        let options = parse(&[("name", "*")]).unwrap();
        assert_eq!(options.references(Some("x.io/a:2")).unwrap()[0].to_string(), "x.io/a:2");
        assert!(options.references(None).unwrap().is_empty());
    }
}
