//! Package URLs of images.

use castor_oci::{Platform, Reference};

/// The package URL of the image `reference`, of the kind `docker` or `oci`; nothing where the reference is none.
pub(super) fn of_image(kind: &str, reference: &str, platform: Option<&Platform>, blob: bool) -> Option<String> {
    let reference: Reference = reference.parse().ok()?;
    // The spelling of users, without tag and digest.
    let repository = reference.repository();
    let name = match repository.strip_prefix("docker.io/") {
        Some(rest) => rest.strip_prefix("library/").unwrap_or(rest),
        None => &repository,
    };
    let mut url = format!("pkg:{kind}/{}", name.split('/').map(escaped).collect::<Vec<_>>().join("/"));
    if let Some(tag) = reference.tag() {
        url.push('@');
        url.push_str(tag);
    }
    let mut qualifiers = Vec::new();
    if let Some(digest) = reference.digest() {
        qualifiers.push(format!("digest={}", escaped_value(&digest.to_string())));
    }
    if let Some(platform) = platform {
        qualifiers.push(format!("platform={}", escaped_value(&platform.clone().normalize().to_string())));
    }
    if blob {
        qualifiers.push("ref_type=blob".to_owned());
    }
    if !qualifiers.is_empty() {
        url.push('?');
        url.push_str(&qualifiers.join("&"));
    }
    Some(url)
}

/// A name, as in the query of a URL.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            byte if is_plain(byte) => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The value of a qualifier, as in a segment of a path: a digest keeps its colon.
fn escaped_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            byte if is_plain(byte) || b"$&+=:@".contains(&byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_package_urls() {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        let of = |text: &str| of_image("docker", text, Some(&amd64), false).unwrap();
        assert_eq!(of("docker.io/library/busybox:latest"), "pkg:docker/busybox@latest?platform=linux%2Famd64");
        assert_eq!(of("localhost:5000/a/b:1"), "pkg:docker/localhost%3A5000/a/b@1?platform=linux%2Famd64");
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = of_image("oci", &format!("x/y@{digest}"), None, true).unwrap();
        assert_eq!(pinned, format!("pkg:oci/x/y?digest=sha256:{}&ref_type=blob", "a".repeat(64)));
        assert_eq!(of_image("docker", "UPPER", None, false), None);
    }
}
