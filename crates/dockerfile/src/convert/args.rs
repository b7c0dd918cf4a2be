//! Arguments: predefined, global, proxies.

use std::collections::{BTreeMap, BTreeSet};

use castor_llb::Range;
use castor_llb::op::ProxyEnv;
use castor_llb::state::Env;
use castor_oci::Platform;

use crate::error::Result;
use crate::instruction::Argument;
use crate::platform;
use crate::shell::Lexer;

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
