//! Which manifest of an index suits a platform.

use castor_oci::{Descriptor, Index, Platform, media_type};

/// The manifest of `index` that suits `platform` best: the platform itself before lower variants, the higher of these
/// first, and those that do not say what they are last. Attestations are never chosen.
pub fn choose_platform<'a>(index: &'a Index, platform: &Platform) -> Option<&'a Descriptor> {
    let wanted = platform.clone().normalize();
    let mut best: Option<(Rank, &Descriptor)> = None;
    for descriptor in &index.manifests {
        let known = media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type);
        if !known || descriptor.annotations.contains_key("vnd.docker.reference.type") {
            continue;
        }
        let rank = match &descriptor.platform {
            Some(have) if wanted.accepts(have) => {
                let have = have.clone().normalize();
                let os_version = wanted.os_version.is_empty() || wanted.os_version == have.os_version;
                Rank { stated: true, exact: have.variant == wanted.variant, os_version, variant: have.variant }
            }
            Some(_) => continue,
            None => Rank::default(),
        };
        // Of equals the first stays.
        if best.as_ref().is_none_or(|(best, _)| rank > *best) {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor)
}

/// Ordered from worst to best by its fields, the first counting most.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    stated: bool,
    exact: bool,
    os_version: bool,
    variant: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_oci::Digest;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms
            .iter()
            .map(|text| {
                let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(text), 1);
                descriptor.platform = match *text {
                    "" => None,
                    "attestation" => {
                        descriptor
                            .annotations
                            .insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
                        Some(Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() })
                    }
                    text => Some(text.parse().unwrap()),
                };
                descriptor
            })
            .collect();
        Index {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.into(),
            manifests,
            annotations: Default::default(),
        }
    }

    #[test]
    fn the_best_match_wins() {
        for (platforms, want, best) in [
            (&["linux/arm64", "linux/amd64"][..], "linux/amd64", Some("linux/amd64")),
            (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", Some("linux/arm/v7")),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Some("linux/arm/v6")),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/amd64", "linux/amd64/v3"], "linux/amd64/v2", Some("linux/amd64")),
            (&["attestation", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&["attestation"], "linux/amd64", None),
            (&["", "linux/arm64"], "linux/amd64", Some("")),
            (&["", "linux/amd64"], "linux/amd64", Some("linux/amd64")),
            (&[], "linux/amd64", None),
        ] {
            let index = index(platforms);
            let found = choose_platform(&index, &want.parse().unwrap()).map(|d| d.digest);
            assert_eq!(found, best.map(Digest::of), "{platforms:?} {want}");
        }
    }
}
