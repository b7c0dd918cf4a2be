//! Platforms as users write them, with the words of containerd's parser.

use castor_oci::Platform;

use crate::gofmt::quote;

const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const ARCHITECTURES: [&str; 25] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
    "wasm32",
];

fn normal_system(system: &str) -> String {
    Platform::new(system, "", "").os
}

fn normal_architecture(architecture: &str, variant: &str) -> (String, String) {
    let platform = Platform::new("", architecture, variant);
    (platform.architecture, platform.variant)
}

/// One spelling for each platform.
pub fn normalize(platform: &Platform) -> Platform {
    platform.clone().normalize()
}

/// The first part: `os[(version[+feature…])]`.
fn parse_system(part: &str) -> Option<(String, String, Vec<String>)> {
    let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'%'));
    let (system, options) = match part.split_once('(') {
        Some((system, options)) => (system, options.strip_suffix(')')?),
        None => (part, ""),
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if system.is_empty() || !system.bytes().all(legal) {
        return None;
    }
    let mut options = options.split('+');
    let version = options.next().unwrap_or_default();
    let features: Vec<String> = options.map(str::to_owned).collect();
    if !word(version) || !features.iter().all(|feature| word(feature)) {
        return None;
    }
    Some((normal_system(system), version.to_owned(), features))
}

/// Reads `os[/architecture[/variant]]` or an architecture alone. The error is containerd's text.
pub fn parse(text: &str) -> Result<Platform, String> {
    let invalid = |what: String| Err(format!("{what}: invalid argument"));
    if text.contains('*') {
        return invalid(format!("{}: wildcards not yet supported", quote(text)));
    }
    let parts: Vec<&str> = text.splitn(4, '/').collect();
    let Some((os, os_version, os_features)) = parse_system(parts[0]) else {
        let form = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";
        return invalid(format!(
            "{} is an invalid OS component of {}: OSAndVersion specifier component must match {}",
            quote(parts[0]),
            quote(text),
            quote(form)
        ));
    };
    for part in &parts[1..] {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if part.is_empty() || !part.bytes().all(legal) {
            return invalid(format!(
                "{} is an invalid component of {}: platform specifier component must match {}",
                quote(part),
                quote(text),
                quote("^[A-Za-z0-9_.-]+$")
            ));
        }
    }
    let platform = |architecture: String, variant: String| Platform {
        os: os.clone(),
        architecture,
        variant,
        os_version: os_version.clone(),
        os_features: os_features.clone(),
    };
    let without_default = |(architecture, variant): (String, String)| match architecture.as_str() {
        "arm" if variant == "v7" => (architecture, String::new()),
        _ => (architecture, variant),
    };
    match parts.as_slice() {
        [_] if SYSTEMS.contains(&os.as_str()) => Ok(platform(Platform::host().architecture, String::new())),
        [one] => {
            let (architecture, variant) = without_default(normal_architecture(one, ""));
            if ARCHITECTURES.contains(&architecture.as_str()) {
                return Ok(Platform { os: "linux".into(), ..platform(architecture, variant) });
            }
            invalid(format!("{}: unknown operating system or architecture", quote(text)))
        }
        [_, architecture] => {
            let (architecture, variant) = without_default(normal_architecture(architecture, ""));
            Ok(platform(architecture, variant))
        }
        [_, architecture, variant] => {
            let (architecture, mut variant) = normal_architecture(architecture, variant);
            if architecture == "arm64" && variant.is_empty() {
                variant = "v8".into();
            }
            Ok(platform(architecture, variant))
        }
        _ => invalid(format!("{}: cannot parse platform specifier", quote(text))),
    }
}

/// `os/architecture[/variant]`.
pub fn format(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".into();
    }
    join(&platform.os, platform)
}

/// `os[(version[+feature…])]/architecture[/variant]`.
pub fn format_all(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".into();
    }
    if platform.os_version.is_empty() && platform.os_features.is_empty() {
        return join(&platform.os, platform);
    }
    let features: String = platform.os_features.iter().map(|feature| format!("+{feature}")).collect();
    join(&format!("{}({}{features})", platform.os, platform.os_version), platform)
}

fn join(os: &str, platform: &Platform) -> String {
    let parts = [os, &platform.architecture, &platform.variant];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_containerd_reads() {
        for (text, want) in [
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/arm64", "linux/arm64"),
            ("linux/arm", "linux/arm"),
            ("linux/arm/7", "linux/arm/v7"),
            ("arm64", "linux/arm64"),
            ("linux/X86_64", "linux/amd64"),
            ("windows(10.0+x)/amd64", "windows(10.0+x)/amd64"),
        ] {
            assert_eq!(parse(text).map(|platform| format_all(&platform)), Ok(want.to_owned()), "{text}");
        }
        assert_eq!(
            parse("bad/plat/form/x").unwrap_err(),
            "\"bad/plat/form/x\": cannot parse platform specifier: invalid argument"
        );
        assert_eq!(
            parse("nonsense").unwrap_err(),
            "\"nonsense\": unknown operating system or architecture: invalid argument"
        );
        assert!(parse("").is_err());
        assert_eq!(format(&normalize(&parse("linux/arm64/v8").unwrap())), "linux/arm64");
    }
}
