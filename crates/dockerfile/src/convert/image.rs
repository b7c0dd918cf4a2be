//! Image configs while stages change them.

use castor_oci::{ContainerConfig, History, ImageConfig, Platform};

/// The search path of an image that sets none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config of scratch.
pub(super) fn empty(platform: &Platform) -> ImageConfig {
    // Windows knows its own search path.
    let env = if platform.os == "windows" { Vec::new() } else { vec![format!("PATH={DEFAULT_PATH}")] };
    ImageConfig {
        platform: platform.clone(),
        config: ContainerConfig { env, working_dir: "/".into(), ..ContainerConfig::default() },
        ..ImageConfig::default()
    }
}

/// Reads a config document. Fields that BuildKit does not know do not survive it either, and would change digests.
pub(super) fn parse(document: &[u8]) -> Result<ImageConfig, String> {
    let mut config: ImageConfig = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    config.other.clear();
    config.config.other.clear();
    config.config.stop_timeout = None;
    let drop_empty = |list: &mut Option<Vec<String>>| {
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    };
    drop_empty(&mut config.config.cmd);
    drop_empty(&mut config.config.entrypoint);
    Ok(config)
}

/// Sets a variable where it stands, or at the end.
pub(super) fn set_env(env: &mut Vec<String>, key: &str, value: &str) {
    let entry = format!("{key}={value}");
    match env
        .iter_mut()
        .find(|known| known.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    {
        Some(known) => *known = entry,
        None => env.push(entry),
    }
}

/// Adds a line to the history.
pub(super) fn commit(config: &mut ImageConfig, message: &str, layer: bool, epoch: Option<i64>) {
    config.history.push(History {
        created: epoch.map(timestamp),
        created_by: message.to_owned(),
        author: String::new(),
        comment: "buildkit.dockerfile.v0".into(),
        empty_layer: !layer,
    });
}

/// Seconds as RFC 3339, as Go writes them.
fn timestamp(epoch: i64) -> String {
    jiff::Timestamp::from_second(epoch).unwrap_or_default().to_string()
}

/// A shell's command line for `args`.
pub(super) fn with_shell(config: &ImageConfig, args: &[String]) -> Vec<String> {
    let mut line = config.config.shell.clone();
    if line.is_empty() {
        let default: &[&str] = if config.platform.os == "windows" { &["cmd", "/S", "/C"] } else { &["/bin/sh", "-c"] };
        line = default.iter().map(|word| (*word).to_owned()).collect();
    }
    line.push(args.join(" "));
    line
}

/// Says that an image is for `target`, which was asked for.
pub(super) fn set_platform(platform: &mut Platform, target: &Platform) {
    let same = target.os == platform.os && target.architecture == platform.architecture;
    platform.os.clone_from(&target.os);
    platform.architecture.clone_from(&target.architecture);
    if !target.variant.is_empty() || !same {
        platform.variant.clone_from(&target.variant);
    }
    if !target.os_version.is_empty() || !same {
        platform.os_version.clone_from(&target.os_version);
    }
    if !target.os_features.is_empty() {
        platform.os_features.clone_from(&target.os_features);
    }
}
