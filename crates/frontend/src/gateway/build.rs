//! One build behind LLBBridge: its refs by id, and the result that its client gives it in the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use castor_llb::Definition;
use castor_ops::bridge::{ReadDir, ReadFile, SourceMeta};
use castor_ops::{Attested, Bridge, BridgeError, LazyRef, Refs, SolveResult};
use castor_proto::gateway::{self as wire, result::Result as WireRefs};
use castor_proto::{Timestamp, pb};
use castor_wire::Failure;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::containers::Containers;
use super::{caps, convert};
use crate::failure::from_failure;

/// The outcome that a client returns.
type Outcome = Result<SolveResult, BridgeError>;

/// One build as its client drives it. Ends when the client returns a result.
pub struct Gateway {
    bridge: Arc<dyn Bridge>,
    /// The definitions that whoever drives the build was given, if not those of the build's client.
    inputs: Option<BTreeMap<String, Definition>>,
    /// Every ref that was given out, until the build ends.
    refs: Mutex<HashMap<String, LazyRef>>,
    containers: Containers,
    outcome: watch::Sender<Option<Outcome>>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("refs", &self.refs.lock().len()).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway to the build that `bridge` leads to.
    pub fn new(bridge: Arc<dyn Bridge>) -> Arc<Self> {
        Arc::new(Self {
            bridge,
            inputs: None,
            refs: Mutex::default(),
            containers: Containers::default(),
            outcome: watch::channel(None).0,
        })
    }

    /// The same, for a frontend with inputs of its own.
    pub(crate) fn with_inputs(bridge: Arc<dyn Bridge>, inputs: BTreeMap<String, Definition>) -> Arc<Self> {
        Arc::new(Self {
            bridge,
            inputs: Some(inputs),
            refs: Mutex::default(),
            containers: Containers::default(),
            outcome: watch::channel(None).0,
        })
    }

    /// Waits until the client returned a result, and gives it.
    pub async fn outcome(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        let set = outcome.wait_for(Option::is_some).await;
        match set.ok().as_deref() {
            Some(Some(outcome)) => outcome.clone(),
            _ => Err(BridgeError::unknown("no result for incomplete build")),
        }
    }

    /// Ends what was started on behalf of the client.
    pub async fn close(&self) {
        self.containers.release().await;
    }

    pub(super) fn bridge(&self) -> &dyn Bridge {
        self.bridge.as_ref()
    }

    pub(super) fn containers(&self) -> &Containers {
        &self.containers
    }

    /// The outcome, if the client returned one.
    pub fn returned(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }

    fn keep(&self, reference: Option<&LazyRef>) -> wire::Ref {
        // Not without anything in it: in a map, protobuf's encoders leave such a value out, and clients in Go find a null
        // pointer there.
        let Some(reference) = reference else {
            return wire::Ref { id: String::new(), def: Some(pb::Definition::default()) };
        };
        self.refs.lock().insert(reference.id().to_owned(), reference.clone());
        wire::Ref { id: reference.id().to_owned(), def: Some(reference.definition().to_pb()) }
    }

    fn keep_attested(&self, mut attested: Attested) -> wire::Attestation {
        let reference = attested.reference.take();
        let reference = reference.map(|reference| self.keep(Some(&reference)));
        wire::Attestation { r#ref: reference, ..convert::attested_to_wire(attested) }
    }

    /// The ref with this id; none for the empty id, which is scratch.
    fn find(&self, id: &str) -> Result<Option<LazyRef>, BridgeError> {
        if id.is_empty() {
            return Ok(None);
        }
        match self.refs.lock().get(id) {
            Some(reference) => Ok(Some(reference.clone())),
            None => Err(BridgeError::unknown(format!("return reference {id} not found"))),
        }
    }

    pub(super) fn existing(&self, id: &str) -> Result<LazyRef, BridgeError> {
        match self.refs.lock().get(id) {
            Some(reference) => Ok(reference.clone()),
            None if id.is_empty() => Err(BridgeError::unknown("empty ref: ")),
            None => Err(BridgeError::unknown(format!("no such ref: {id}"))),
        }
    }

    pub(super) fn ping(&self) -> wire::PongResponse {
        wire::PongResponse {
            frontend_api_caps: caps::gateway(),
            llb_caps: caps::llb(),
            workers: self.bridge.workers().iter().map(convert::worker).collect(),
        }
    }

    pub(super) async fn solve(&self, request: wire::SolveRequest) -> Result<wire::SolveResponse, BridgeError> {
        let (inline, array, last) = (request.allow_result_return, request.allow_result_array_ref, request.r#final);
        if last {
            return Err(BridgeError::unimplemented("clients without the capability \"return\" are not supported"));
        }
        let result = self.bridge.solve(convert::solve_request(request)?).await?;
        if !inline && matches!(result.refs, Refs::Map(_)) {
            return Err(BridgeError::unknown("solve did not return default result"));
        }
        let mut default_id = String::new();
        let refs = match &result.refs {
            Refs::Single(reference) => {
                let reference = self.keep(reference.as_ref());
                default_id.clone_from(&reference.id);
                if array { WireRefs::Ref(reference) } else { WireRefs::RefDeprecated(reference.id) }
            }
            Refs::Map(map) => {
                let refs: BTreeMap<String, wire::Ref> =
                    map.iter().map(|(key, reference)| (key.clone(), self.keep(reference.as_ref()))).collect();
                if array {
                    WireRefs::Refs(wire::RefMap { refs })
                } else {
                    let refs = refs.into_iter().map(|(key, reference)| (key, reference.id)).collect();
                    WireRefs::RefsDeprecated(wire::RefMapDeprecated { refs })
                }
            }
        };
        let attestations = result.attestations.into_iter().map(|(key, list)| {
            let attestation = list.into_iter().map(|one| self.keep_attested(one)).collect();
            (key, wire::Attestations { attestation })
        });
        Ok(wire::SolveResponse {
            r#ref: if inline { String::new() } else { default_id },
            result: Some(wire::Result {
                metadata: result.metadata,
                attestations: attestations.collect(),
                result: Some(refs),
            }),
        })
    }

    pub(super) fn inputs(&self) -> wire::InputsResponse {
        let inputs = self.inputs.clone().unwrap_or_else(|| self.bridge.inputs());
        let definitions = inputs.into_iter().map(|(name, input)| (name, input.to_pb())).collect();
        wire::InputsResponse { definitions }
    }

    pub(super) fn finish(&self, request: wire::ReturnRequest) -> Result<(), BridgeError> {
        let outcome = match (request.error, request.result) {
            (Some(error), _) => Err(from_failure(&Failure::from_rpc(error))),
            (None, Some(result)) => Ok(self.returned_result(result)?),
            (None, None) => return Err(BridgeError::unknown("gateway return must be either result or err")),
        };
        let mut outcome = Some(outcome);
        let set = self.outcome.send_if_modified(|slot| {
            let free = slot.is_none();
            if free {
                *slot = outcome.take();
            }
            free
        });
        if set { Ok(()) } else { Err(BridgeError::unknown("gateway result is already set")) }
    }

    fn returned_result(&self, result: wire::Result) -> Result<SolveResult, BridgeError> {
        let refs = match result.result {
            None => Refs::default(),
            Some(WireRefs::RefDeprecated(id)) => Refs::Single(self.find(&id)?),
            Some(WireRefs::Ref(reference)) => Refs::Single(self.find(&reference.id)?),
            Some(WireRefs::RefsDeprecated(map)) => {
                let refs = map.refs.into_iter().map(|(key, id)| Ok((key, self.find(&id)?)));
                Refs::Map(refs.collect::<Result<_, BridgeError>>()?)
            }
            Some(WireRefs::Refs(map)) => {
                let refs = map.refs.into_iter().map(|(key, reference)| Ok((key, self.find(&reference.id)?)));
                Refs::Map(refs.collect::<Result<_, BridgeError>>()?)
            }
        };
        let mut attestations = BTreeMap::new();
        for (key, list) in result.attestations {
            let attested = |wire: wire::Attestation| {
                let reference = wire.r#ref.as_ref().map(|reference| self.find(&reference.id)).transpose()?.flatten();
                Ok(Attested { reference, ..convert::attested(wire)? })
            };
            let list = list.attestation.into_iter().map(attested).collect::<Result<_, BridgeError>>()?;
            attestations.insert(key, list);
        }
        Ok(SolveResult { refs, metadata: result.metadata, attestations })
    }

    pub(super) async fn evaluate(&self, id: &str) -> Result<(), BridgeError> {
        self.bridge.evaluate(&self.existing(id)?).await
    }

    pub(super) fn warn(&self, request: wire::WarnRequest) -> Result<(), BridgeError> {
        self.bridge.warn(convert::warning(request)?);
        Ok(())
    }

    pub(super) async fn resolve_image_config(
        &self,
        request: wire::ResolveImageConfigRequest,
    ) -> Result<wire::ResolveImageConfigResponse, BridgeError> {
        let context =
            |error: BridgeError| error.context(format!("failed to resolve source metadata for {}", request.r#ref));
        let meta = self.bridge.resolve_source(convert::image_config_request(&request)?).await.map_err(context)?;
        let reference = meta.identifier.split_once("://").map_or(meta.identifier.as_str(), |(_, name)| name).to_owned();
        let Some(image) = meta.image else {
            return Err(BridgeError::unknown(format!("{} is not an image", request.r#ref)));
        };
        Ok(wire::ResolveImageConfigResponse {
            digest: image.digest.to_string(),
            config: image.config,
            r#ref: reference,
        })
    }

    pub(super) async fn resolve_source_meta(
        &self,
        request: wire::ResolveSourceMetaRequest,
    ) -> Result<wire::ResolveSourceMetaResponse, BridgeError> {
        let SourceMeta { identifier, attrs, image, git, http } =
            self.bridge.resolve_source(convert::source_meta_request(request)?).await?;
        Ok(wire::ResolveSourceMetaResponse {
            source: Some(pb::SourceOp { identifier, attrs }),
            image: image.map(|image| wire::ResolveSourceImageResponse {
                digest: image.digest.to_string(),
                config: image.config,
                attestation_chain: None,
            }),
            git: git.map(|git| wire::ResolveSourceGitResponse {
                checksum: git.checksum,
                r#ref: git.reference,
                commit_checksum: git.commit_checksum,
                commit_object: git.commit_object,
                tag_object: git.tag_object,
            }),
            http: http.map(|http| wire::ResolveSourceHttpResponse {
                checksum: http.checksum,
                filename: http.filename,
                last_modified: http.last_modified.map(|seconds| Timestamp { seconds, nanos: 0 }),
                checksum_response: None,
            }),
        })
    }

    pub(super) async fn read_file(&self, request: wire::ReadFileRequest) -> Result<Bytes, BridgeError> {
        let reference = self.existing(&request.r#ref)?;
        let number = |value: i64, what: &str| {
            u64::try_from(value).map_err(|_| convert::invalid(format!("invalid {what} {value} of a file's range")))
        };
        let (offset, length) = match &request.range {
            Some(range) => (number(range.offset, "offset")?, Some(number(range.length, "length")?)),
            None => (0, None),
        };
        self.bridge.read_file(&reference, ReadFile { path: request.file_path, offset, length }).await
    }

    pub(super) async fn read_dir(&self, request: wire::ReadDirRequest) -> Result<wire::ReadDirResponse, BridgeError> {
        let reference = self.existing(&request.r#ref)?;
        let read = ReadDir { path: request.dir_path, include_pattern: request.include_pattern };
        Ok(wire::ReadDirResponse { entries: self.bridge.read_dir(&reference, read).await? })
    }

    pub(super) async fn stat_file(
        &self,
        request: wire::StatFileRequest,
    ) -> Result<wire::StatFileResponse, BridgeError> {
        let reference = self.existing(&request.r#ref)?;
        Ok(wire::StatFileResponse { stat: Some(self.bridge.stat_file(&reference, &request.path).await?) })
    }
}
