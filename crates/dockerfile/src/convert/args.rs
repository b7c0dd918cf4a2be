//! Arguments: predefined, global, proxies, `SOURCE_DATE_EPOCH`.

use std::collections::{BTreeMap, BTreeSet};

use castor_llb::Range;
use castor_llb::op::ProxyEnv;
use castor_llb::state::Env;
use castor_oci::Platform;

use crate::error::{DockerfileError, Result};
use crate::instruction::{Argument, Stage};
use crate::shell::Lexer;
use crate::{Options, platform};

/// Arguments that BuildKit reads itself and that are no variables of processes.
pub(super) const NOT_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What every Dockerfile may use in FROM.
pub(super) fn predefined(
    build: &Platform,
    target: &Platform,
    overrides: &BTreeMap<String, String>,
    target_stage: &str,
) -> Env {
    let stage = if target_stage.is_empty() { "default" } else { target_stage };
    let values = [
        ("BUILDPLATFORM", platform::format(build)),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", build.os_version.clone()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", platform::format_all(target)),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", target.os_version.clone()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("TARGETSTAGE", stage.to_owned()),
    ];
    let mut env = Env::default();
    for (name, value) in values {
        env.set(name, overrides.get(name).unwrap_or(&value));
    }
    env
}

/// ARGs before the first FROM, with the client's values or, without `given`, their defaults. Also their names.
pub(super) fn global(
    mut env: Env,
    lexer: Lexer,
    commands: &[(Vec<Argument>, Vec<Range>)],
    given: Option<&BTreeMap<String, String>>,
) -> Result<(Env, BTreeSet<String>)> {
    let mut names = BTreeSet::new();
    for (args, location) in commands {
        for arg in args {
            names.insert(arg.key.clone());
            let value = match (given.and_then(|given| given.get(&arg.key)), &arg.value) {
                (Some(given), _) => given.clone(),
                (None, Some(default)) => lexer.word(default, &env).map_err(|error| error.at(location))?,
                (None, None) => continue,
            };
            env.set(&arg.key, &value);
        }
    }
    Ok((env, names))
}

/// Proxies among the client's arguments, in any case.
pub(super) fn proxies(args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxies = ProxyEnv::default();
    let mut any = false;
    for (name, value) in args {
        let field = match name.to_lowercase().as_str() {
            "http_proxy" => &mut proxies.http_proxy,
            "https_proxy" => &mut proxies.https_proxy,
            "ftp_proxy" => &mut proxies.ftp_proxy,
            "no_proxy" => &mut proxies.no_proxy,
            "all_proxy" => &mut proxies.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        any = true;
    }
    any.then_some(proxies)
}

const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The time that files and history get; the argument is left as a number, or taken away.
pub(super) fn epoch(
    build_args: &mut BTreeMap<String, String>,
    global_args: &mut Env,
    options: &Options,
    stages: &[Stage],
) -> Result<Option<i64>> {
    let global = global_args.get(EPOCH).filter(|value| !value.is_empty());
    let Some(text) = build_args.get(EPOCH).map(String::as_str).or(global).map(str::to_owned) else {
        return Ok(None);
    };
    let epoch = match text.parse::<i64>() {
        Ok(epoch) => Some(epoch),
        Err(_) if text.is_empty() => None,
        // A directory of the client has no time of its own.
        Err(_) if text == "context" && options.context_url.is_empty() => None,
        Err(_) => {
            let named = |name: &str| options.contexts.keys().any(|key| key.split("::").next() == Some(name));
            let known = text == "context"
                || named(&text)
                || stages.iter().any(|stage| stage.name == text.to_lowercase() && !stage.name.is_empty());
            return Err(DockerfileError::new(if known {
                format!("{EPOCH}={text} is not supported by castor yet: use a number")
            } else {
                format!("invalid {EPOCH}: {text}")
            }));
        }
    };
    let text = epoch.map(|epoch| epoch.to_string());
    if build_args.contains_key(EPOCH) {
        match &text {
            Some(text) => drop(build_args.insert(EPOCH.into(), text.clone())),
            None => drop(build_args.remove(EPOCH)),
        }
    }
    if global_args.get(EPOCH).is_some() {
        match &text {
            Some(text) => global_args.set(EPOCH, text),
            None => global_args.remove(EPOCH),
        }
    }
    Ok(epoch)
}
