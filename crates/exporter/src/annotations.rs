//! The annotations that a client or a frontend wants in an image: `annotation[-KIND][[PLATFORM]].KEY`.

use std::collections::BTreeMap;

use castor_oci::{Annotations, Platform};

use crate::OptionError;

/// What an annotation is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The manifest of an image.
    Manifest,
    /// What names the manifest in its index.
    ManifestDescriptor,
    /// The index of the images of several platforms.
    Index,
    /// What names the index.
    IndexDescriptor,
}

/// Annotations, by where they go and for which platform; `None` is every one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageAnnotations(BTreeMap<(Place, Option<String>), Annotations>);

impl ImageAnnotations {
    /// Takes the attribute `key`, if it is one of an annotation; says whether it is.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<bool, OptionError> {
        let Some((place, platform, name)) = parse(key)? else { return Ok(false) };
        self.0.entry((place, platform)).or_default().insert(name, value.to_owned());
        Ok(true)
    }

    /// These and those of `other`, which count more.
    pub(crate) fn merge(&mut self, other: Self) {
        for (place, annotations) in other.0 {
            self.0.entry(place).or_default().extend(annotations);
        }
    }

    /// The annotations of a place. What is said of an index is said of it whatever the platform.
    pub(crate) fn of(&self, place: Place, platform: Option<&Platform>) -> Annotations {
        let platform = platform.map(|platform| platform.clone().normalize().to_string());
        let of_index = matches!(place, Place::Index | Place::IndexDescriptor);
        let fits = |wanted: &Option<String>| of_index || wanted.is_none() || *wanted == platform;
        // Those for one platform come last.
        let here = self.0.iter().filter(|((at, wanted), _)| *at == place && fits(wanted));
        here.flat_map(|(_, annotations)| annotations.clone()).collect()
    }

    /// The platforms that are named.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|(_, platform)| platform.as_deref())
    }

    /// Whether there are some that Docker's media types have no place for.
    pub(crate) fn need_oci(&self) -> bool {
        self.0.keys().any(|(place, _)| *place != Place::Manifest)
    }
}

/// Place, platform and name; `None` if `key` is no annotation's.
fn parse(key: &str) -> Result<Option<(Place, Option<String>, String)>, OptionError> {
    let Some(rest) = key.strip_prefix("annotation") else { return Ok(None) };
    let Some((head, name)) = (match rest.find(']') {
        Some(end) if rest[end..].starts_with("].") => Some((&rest[..=end], &rest[end + 2..])),
        _ => rest.split_once('.'),
    }) else {
        return Ok(None);
    };
    let (kind, platform) = match head.split_once('[') {
        Some((kind, platform)) => (kind, Some(platform.trim_end_matches(']'))),
        None => (head, None),
    };
    if name.is_empty() || !(kind.is_empty() || kind.starts_with('-')) {
        return Ok(None);
    }
    let place = match kind {
        "" | "-manifest" => Place::Manifest,
        "-manifest-descriptor" => Place::ManifestDescriptor,
        "-index" => Place::Index,
        "-index-descriptor" => Place::IndexDescriptor,
        kind => return Err(OptionError::AnnotationKind(kind.trim_start_matches('-').to_owned())),
    };
    let platform = match platform {
        Some(text) => {
            let parsed: Platform = text.parse().map_err(|error| OptionError::AnnotationPlatform(format!("{error}")))?;
            Some(parsed.normalize().to_string())
        }
        None => None,
    };
    Ok(Some((place, platform, name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_go_where_their_keys_say() {
        let mut all = ImageAnnotations::default();
        for (key, value) in [
            ("annotation.a", "1"),
            ("annotation[linux/arm64].a", "2"),
            ("annotation-manifest-descriptor[linux/amd64].org.opencontainers.image.x", "3"),
            ("annotation-index.b", "4"),
            ("annotation-index-descriptor.c", "5"),
        ] {
            assert!(all.set(key, value).unwrap(), "{key}");
        }
        let (amd64, arm64) = (Platform::new("linux", "amd64", ""), Platform::new("linux", "arm64", ""));
        assert_eq!(all.of(Place::Manifest, Some(&amd64))["a"], "1");
        assert_eq!(all.of(Place::Manifest, Some(&arm64))["a"], "2");
        assert_eq!(all.of(Place::ManifestDescriptor, Some(&amd64))["org.opencontainers.image.x"], "3");
        assert!(all.of(Place::ManifestDescriptor, Some(&arm64)).is_empty());
        assert_eq!((&*all.of(Place::Index, None)["b"], &*all.of(Place::IndexDescriptor, None)["c"]), ("4", "5"));
        assert!(all.need_oci());
        assert!(!all.set("annotations", "").unwrap() && !all.set("annotation", "").unwrap());
        assert!(all.set("annotation-layer.x", "").is_err() && all.set("annotation[a b].x", "").is_err());
    }
}
