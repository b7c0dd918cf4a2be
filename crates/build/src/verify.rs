//! Whether a result is for the platforms that the client asked for. That it is not is a warning, not an error.

use std::collections::BTreeSet;

use castor_exporter::BuildResult;
use castor_oci::Platform;

/// What is to be said about the platforms of `result`; `requested` is the client's option.
pub(crate) fn platforms(requested: Option<&str>, result: &BuildResult) -> Vec<String> {
    let found = &result.platforms;
    let named = result.metadata.contains_key("refs.platforms");
    if !named && found.iter().all(|platform| platform.reference.is_none()) {
        return Vec::new();
    }
    let host = Platform::host().to_string();
    let requested: Vec<&str> = requested.unwrap_or(&host).split(',').collect();
    let (mut wanted, mut warnings) = (BTreeSet::new(), Vec::new());
    for text in &requested {
        match text.parse::<Platform>() {
            Ok(platform) if wanted.insert(platform.clone().normalize()) => {}
            Ok(_) => warnings.push(format!("Duplicate platform result requested {text:?}")),
            Err(error) => warnings.push(format!("Invalid platform result requested {text:?}: {error}")),
        }
    }
    if !warnings.is_empty() {
        return warnings;
    }
    // A version that nobody asked for is no mismatch.
    let fits = |platform: &Platform| {
        let platform = platform.clone().normalize();
        let plain = Platform { os_version: String::new(), ..platform.clone() };
        wanted.contains(&platform) || wanted.contains(&plain)
    };
    if let ([only], [text]) = (found.as_slice(), requested.as_slice()) {
        if !fits(&only.platform) {
            let platform = &only.platform;
            return vec![format!(
                "Requested platform {text:?} does not match result platform {platform:?}",
                platform = platform.to_string()
            )];
        }
        return Vec::new();
    }
    if !result.multi_platform && wanted.len() > 1 {
        return vec!["Multiple platforms requested but result is not multi-platform".to_owned()];
    }
    if wanted.len() == found.len() && found.iter().all(|platform| fits(&platform.platform)) {
        return Vec::new();
    }
    let list = |platforms: BTreeSet<String>| platforms.into_iter().collect::<Vec<_>>().join(",");
    let (asked, got) = (
        list(wanted.iter().map(ToString::to_string).collect()),
        list(found.iter().map(|platform| platform.platform.to_string()).collect()),
    );
    vec![format!("Requested platforms {asked} do not match result platforms {got}")]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::platforms;
    use castor_exporter::{BuildResult, PlatformResult};
    use castor_oci::Platform;

    fn result(names: &[&str], multi_platform: bool) -> BuildResult {
        let one = |name: &&str| PlatformResult {
            id: (*name).to_owned(),
            platform: name.parse().unwrap(),
            reference: None,
            config: bytes::Bytes::new(),
            attestations: Vec::new(),
        };
        BuildResult {
            platforms: names.iter().map(one).collect(),
            multi_platform,
            metadata: BTreeMap::from([("refs.platforms".to_owned(), bytes::Bytes::new())]),
        }
    }

    #[test]
    fn results_for_other_platforms_are_told_of() {
        let both = "linux/amd64,linux/arm64";
        assert!(platforms(Some(both), &result(&["linux/arm64", "linux/amd64"], true)).is_empty());
        assert!(platforms(None, &result(&[&Platform::host().to_string()], false)).is_empty());
        let told = |asked, names: &[&str], multi| platforms(Some(asked), &result(names, multi)).join("\n");
        assert!(told(both, &["linux/amd64"], false).starts_with("Multiple platforms requested but"));
        assert!(
            told("linux/arm64", &["linux/amd64"], false).contains("does not match result platform \"linux/amd64\"")
        );
        assert!(told(both, &["linux/amd64", "linux/s390x"], true).contains("linux/amd64,linux/arm64 do not match"));
        assert!(told("linux/arm64,linux/arm64/v8", &["linux/arm64"], false).starts_with("Duplicate platform"));
    }
}
