//! Frontends in images: programs that drive the build through LLBBridge on their standard streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use castor_dockerfile::{Options, context_for_image};
use castor_llb::state::{Constraints, ImageOptions};
use castor_llb::{Definition, MarshalOptions, State};
use castor_oci::{ImageConfig, Reference};
use castor_ops::bridge::{Program, SourceMetaRequest, WorkerInfo};
use castor_ops::{Bridge, BridgeError, LazyRef, Refs, SolveRequest, SolveResult};
use castor_proto::errdefs::FrontendCap;
use castor_wire::{Failure, serve_over};
use prost::Message as _;
use serde_json::json;
use tokio::io::simplex;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::dockerfile::Resolver;
use crate::failure::from_failure;
use crate::gateway::{BridgeService, Gateway};
use crate::{FrontendRequest, is_replaced};

/// Bytes on their way to or from a frontend.
const PIPE: usize = 64 << 10;
const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";
const INPUTS_CAP: &str = "moby.buildkit.frontend.inputs";

/// Runs the frontend in the image `source`.
pub(crate) async fn run(
    bridge: Arc<dyn Bridge>,
    source: &str,
    request: FrontendRequest,
) -> Result<SolveResult, BridgeError> {
    let (definition, config) = match context(&bridge, source, &request).await? {
        Some((definition, config)) => (definition, config.unwrap_or_default()),
        None => {
            let (reference, config) = resolve(&bridge, source).await?;
            let options = ImageOptions { record_type: "frontend".to_owned(), ..ImageOptions::default() };
            let definition = State::image(&reference, &options, Constraints::new())
                .marshal(&MarshalOptions::default())
                .map_err(|error| BridgeError::unknown(format!("failed to marshal frontend image: {error}")))?;
            (definition, config)
        }
    };
    check_caps(&config, &request)?;
    let root = load(&bridge, definition).await?;

    let gateway = Gateway::with_inputs(bridge.clone(), request.inputs.clone());
    let (stdin, to_stdin) = simplex(PIPE);
    let (from_stdout, stdout) = simplex(PIPE);
    let program = Program {
        args: match config.config.entrypoint {
            Some(args) if !args.is_empty() => args,
            _ => vec!["/run".to_owned()],
        },
        env: environment(config.config.env, &request.options, &bridge.session(), &bridge.workers()),
        cwd: match config.config.working_dir {
            dir if dir.is_empty() => "/".to_owned(),
            dir => dir,
        },
        no_network: config.config.labels.get(NO_NETWORK_LABEL).is_some_and(|value| is_true(value)),
        definition: root.definition().to_pb().encode_to_vec().into(),
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
    };
    let services = Routes::new(BridgeService::server(gateway.clone()));
    let stop = CancellationToken::new();
    let serving = serve_over(tokio::io::join(from_stdout, to_stdin), services, &stop);
    let running = bridge.run(&root, program);
    tokio::pin!(serving, running);
    // What it does not ask any more it need not be answered.
    let ended = tokio::select! {
        ended = &mut running => ended,
        _ = &mut serving => running.await,
    };
    gateway.close().await;
    match (gateway.returned(), ended) {
        (Some(Err(error)), _) | (_, Err(error)) => Err(error),
        (Some(Ok(result)), Ok(())) => Ok(result),
        (None, Ok(())) => Err(BridgeError::unknown("no result for incomplete build")),
    }
}

/// What the client gave in the place of the image.
async fn context(
    bridge: &Arc<dyn Bridge>,
    source: &str,
    request: &FrontendRequest,
) -> Result<Option<(Definition, Option<ImageConfig>)>, BridgeError> {
    if !is_replaced(&request.options, source) {
        return Ok(None);
    }
    let options = Options::from_attrs(&request.options, &bridge.session(), request.inputs.clone())
        .map_err(|error| BridgeError::unknown(error.to_string()))?;
    let resolver = Resolver::new(bridge.clone(), None);
    context_for_image(&options, &resolver, source).await.map_err(|error| {
        // A look-up's error brings its own code and details.
        let cause = error.cause().and_then(|cause| cause.downcast_ref::<BridgeError>());
        BridgeError {
            message: error.message().to_owned(),
            ..cause.cloned().unwrap_or_else(|| BridgeError::unknown(""))
        }
    })
}

/// The image by its digest, and its configuration.
async fn resolve(bridge: &Arc<dyn Bridge>, source: &str) -> Result<(String, ImageConfig), BridgeError> {
    let invalid = |error: &dyn std::fmt::Display| BridgeError::unknown(format!("invalid frontend {source}: {error}"));
    let reference: Reference = source.parse().map_err(|error| invalid(&error))?;
    let lookup =
        SourceMetaRequest { identifier: format!("docker-image://{reference}"), ..SourceMetaRequest::default() };
    let meta = bridge.resolve_source(lookup).await?;
    let name = meta.identifier.strip_prefix("docker-image://").unwrap_or(&meta.identifier);
    let reference: Reference = name.parse().map_err(|error| invalid(&error))?;
    let image = meta.image.ok_or_else(|| invalid(&"it is no image"))?;
    let config = serde_json::from_slice(&image.config).map_err(|error| invalid(&error))?;
    Ok((reference.with_digest(image.digest).to_string(), config))
}

async fn load(bridge: &Arc<dyn Bridge>, definition: Definition) -> Result<LazyRef, BridgeError> {
    let request = SolveRequest { definition: Some(definition), ..SolveRequest::default() };
    match bridge.solve(request).await?.refs {
        Refs::Single(Some(root)) => Ok(root),
        _ => Err(BridgeError::unknown("gateway source didn't return default result")),
    }
}

/// Refuses what the frontend does not say that it can do.
fn check_caps(config: &ImageConfig, request: &FrontendRequest) -> Result<(), BridgeError> {
    let list = |text: Option<&String>| -> BTreeSet<String> {
        let words = text.map(String::as_str).unwrap_or_default().split(',');
        // A flag behind the name says what to do without it.
        words.filter_map(|word| word.split('+').next()).filter(|cap| !cap.is_empty()).map(str::to_owned).collect()
    };
    let has = list(config.config.labels.get(CAPS_LABEL));
    let mut wanted = list(request.options.get("frontend.caps"));
    if !request.inputs.is_empty() {
        wanted.insert(INPUTS_CAP.to_owned());
    }
    match wanted.difference(&has).next() {
        None => Ok(()),
        Some(cap) => {
            let failure = Failure::new(tonic::Code::Unimplemented, format!("unsupported frontend capability {cap}"));
            Err(from_failure(&failure.with(&FrontendCap { name: cap.clone() })))
        }
    }
}

fn environment(
    mut env: Vec<String>,
    options: &BTreeMap<String, String>,
    session: &str,
    workers: &[WorkerInfo],
) -> Vec<String> {
    let options = options.iter().enumerate();
    env.extend(options.map(|(index, (name, value))| format!("BUILDKIT_FRONTEND_OPT_{index}={name}={value}")));
    env.push(format!("BUILDKIT_SESSION_ID={session}"));
    let workers: Vec<_> = workers
        .iter()
        .map(|worker| {
            json!({
                "id": worker.id, "labels": worker.labels, "platforms": worker.platforms, "gcPolicy": null,
                "buildkitVersion": {"package": "", "version": "", "revision": ""}, "cdiDevices": null,
            })
        })
        .collect();
    env.push(format!("BUILDKIT_WORKERS={}", json!(workers)));
    env.push("BUILDKIT_EXPORTEDPRODUCT=buildkit".to_owned());
    env
}

fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(caps: &str, inputs: bool) -> FrontendRequest {
        let options = BTreeMap::from([("frontend.caps".to_owned(), caps.to_owned())]);
        let inputs = if inputs { BTreeMap::from([("a".to_owned(), Definition::default())]) } else { BTreeMap::new() };
        FrontendRequest { options, inputs, ..FrontendRequest::default() }
    }

    #[test]
    fn frontends_say_what_they_can_do() {
        let mut config = ImageConfig::default();
        assert!(check_caps(&config, &request("", false)).is_ok());
        assert_eq!(
            check_caps(&config, &request("x+forward", false)).unwrap_err().message,
            "unsupported frontend capability x"
        );
        assert!(check_caps(&config, &request("", true)).is_err());
        config.config.labels.insert(CAPS_LABEL.to_owned(), format!("x,{INPUTS_CAP}"));
        assert!(check_caps(&config, &request("x+forward", true)).is_ok());
    }

    #[test]
    fn the_environment_tells_options_session_and_workers() {
        let options = BTreeMap::from([("a".to_owned(), "1=2".to_owned()), ("b".to_owned(), String::new())]);
        let worker = WorkerInfo { id: "w".to_owned(), ..WorkerInfo::default() };
        let env = environment(vec!["PATH=/bin".to_owned()], &options, "s", &[worker]);
        assert_eq!(
            env[..4],
            [
                "PATH=/bin".to_owned(),
                "BUILDKIT_FRONTEND_OPT_0=a=1=2".to_owned(),
                "BUILDKIT_FRONTEND_OPT_1=b=".to_owned(),
                "BUILDKIT_SESSION_ID=s".to_owned()
            ]
        );
        let workers = env[4].strip_prefix("BUILDKIT_WORKERS=").unwrap();
        let workers: serde_json::Value = serde_json::from_str(workers).unwrap();
        assert_eq!(workers[0]["id"], "w");
    }
}
