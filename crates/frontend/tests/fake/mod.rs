//! A build that knows a few files and images, and remembers what it was asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use castor_llb::op::Op;
use castor_llb::{Definition, Graph, Limits, Source};
use castor_oci::{Digest, Platform};
use castor_ops::bridge::{
    ContainerRequest, FrontendPolicy, GitMeta, HttpMeta, ImageMeta, Program, ReadDir, ReadFile, SourceMeta,
    SourceMetaRequest, WorkerInfo, code,
};
use castor_ops::{Bridge, BridgeError, Container, LazyRef, Refs, SolveRequest, SolveResult};
use castor_progress::Warning;
use castor_proto::fsutil::Stat;
use castor_proto::gateway as wire;
use castor_proto::gateway::llb_bridge_client::LlbBridgeClient;
use castor_wire::channel_over;
use parking_lot::Mutex;

/// What a program does.
#[derive(Debug, Clone, Copy)]
pub enum Script {
    /// Ends without a word.
    Nothing,
    /// Returns a result through LLBBridge.
    Return,
}

/// A build.
#[derive(Default)]
pub struct FakeBuild {
    /// Files by local source and path.
    pub files: BTreeMap<(String, String), String>,
    pub inputs: BTreeMap<String, Definition>,
    /// Names of the vertices of each definition that was loaded.
    pub solved: Mutex<Vec<Vec<String>>>,
    /// Identifier, platform and vertex of each look-up.
    pub resolved: Mutex<Vec<(String, String)>>,
    pub warnings: Mutex<Vec<Warning>>,
    pub policy: FrontendPolicy,
    /// Frontends that were asked for, with their options.
    pub forwarded: Mutex<Vec<(String, BTreeMap<String, String>)>>,
    /// What programs do; `None`: they cannot run.
    pub program: Option<Script>,
    /// Arguments and environment of programs that ran.
    pub programs: Mutex<Vec<(Vec<String>, Vec<String>)>>,
    pub ids: AtomicUsize,
}

impl FakeBuild {
    pub fn with(files: &[(&str, &str, &str)]) -> Arc<Self> {
        let files = files.iter().map(|(local, path, text)| (((*local).into(), (*path).into()), (*text).into()));
        Arc::new(Self { files: files.collect(), ..Self::default() })
    }

    pub fn config(platform: &Platform) -> String {
        format!(
            r#"{{"architecture":"{}","os":"{}","config":{{"Env":["A=<b>"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            platform.architecture,
            platform.os,
            Digest::of("layer")
        )
    }
}

#[async_trait]
impl Bridge for FakeBuild {
    async fn solve(&self, request: SolveRequest) -> Result<SolveResult, BridgeError> {
        if !request.frontend.is_empty() {
            self.forwarded.lock().push((request.frontend.clone(), request.options));
            return Err(BridgeError::unknown(format!("invalid frontend: {}", request.frontend)));
        }
        let Some(definition) = request.definition.filter(|definition| !definition.is_empty()) else {
            return Ok(SolveResult::default());
        };
        let graph = Graph::decode(&definition.to_pb(), &Limits::default())
            .map_err(|error| BridgeError::unknown(error.to_string()))?;
        self.solved.lock().push(graph.vertices.iter().map(|vertex| vertex.name.clone()).collect());
        let id = format!("ref{}", self.ids.fetch_add(1, Ordering::Relaxed));
        let reference = LazyRef::new(id, definition, Arc::new(graph));
        Ok(SolveResult { refs: Refs::Single(Some(reference)), ..SolveResult::default() })
    }

    async fn resolve_source(&self, request: SourceMetaRequest) -> Result<SourceMeta, BridgeError> {
        self.resolved.lock().push((request.identifier.clone(), request.log_name.clone()));
        if request.identifier.contains("missing") {
            let name = request.identifier.trim_start_matches("docker-image://");
            return Err(BridgeError::new(code::NOT_FOUND, format!("{name}: not found")));
        }
        let nothing = SourceMeta {
            identifier: request.identifier.clone(),
            attrs: request.attrs.clone(),
            ..SourceMeta::default()
        };
        if request.identifier.starts_with("git://") && request.git_objects {
            let commit_object = Bytes::from_static(b"tree 1\ncommitter B <b@c> 1700000601 +0000\n\n");
            return Ok(SourceMeta { git: Some(GitMeta { commit_object, ..GitMeta::default() }), ..nothing });
        }
        if request.identifier.starts_with("http://") {
            let last_modified = request.identifier.contains("dated").then_some(1_700_000_701);
            return Ok(SourceMeta { http: Some(HttpMeta { last_modified, ..HttpMeta::default() }), ..nothing });
        }
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let image = ImageMeta { digest: Digest::of("image"), config: Self::config(&platform).into() };
        Ok(SourceMeta {
            identifier: request.identifier,
            attrs: request.attrs,
            image: Some(image),
            ..SourceMeta::default()
        })
    }

    async fn evaluate(&self, _: &LazyRef) -> Result<(), BridgeError> {
        Ok(())
    }

    async fn read_file(&self, reference: &LazyRef, request: ReadFile) -> Result<Bytes, BridgeError> {
        let local = reference.graph().vertices.iter().find_map(|vertex| match &vertex.op {
            Op::Source(source) => match &source.source {
                Source::Local(local) => Some(local.name.clone()),
                _ => None,
            },
            _ => None,
        });
        let found = local.and_then(|local| self.files.get(&(local, request.path.clone())));
        found
            .map(|text| Bytes::from(text.clone()))
            .ok_or_else(|| BridgeError::unknown(format!("open {}: no such file or directory", request.path)))
    }

    async fn read_dir(&self, _: &LazyRef, request: ReadDir) -> Result<Vec<Stat>, BridgeError> {
        Ok(vec![Stat { path: request.path.into(), ..Stat::default() }])
    }

    async fn stat_file(&self, _: &LazyRef, path: &str) -> Result<Stat, BridgeError> {
        Ok(Stat { path: path.to_owned().into(), ..Stat::default() })
    }

    async fn archive_time(&self, _: &LazyRef, path: &str) -> Result<Option<i64>, BridgeError> {
        Ok((path == "context").then_some(1_700_000_777))
    }

    async fn run(&self, _: &LazyRef, program: Program) -> Result<(), BridgeError> {
        let Some(script) = self.program else {
            return Err(BridgeError::unknown(format!("{} cannot run here", program.args.join(" "))));
        };
        self.programs.lock().push((program.args, program.env));
        if let Script::Return = script {
            let channel = channel_over(tokio::io::join(program.stdin, program.stdout)).await.unwrap();
            let mut client = LlbBridgeClient::new(channel);
            client.ping(wire::PingRequest {}).await.unwrap();
            let metadata = BTreeMap::from([("made.by".to_owned(), Bytes::from_static(b"program"))]);
            let result = wire::Result { metadata, ..wire::Result::default() };
            let request = wire::ReturnRequest { result: Some(result), error: None };
            client.r#return(request).await.unwrap();
        }
        Ok(())
    }

    async fn container(&self, _: ContainerRequest) -> Result<Arc<Container>, BridgeError> {
        Err(BridgeError::unknown("no containers here"))
    }

    fn warn(&self, warning: Warning) {
        self.warnings.lock().push(warning);
    }

    fn inputs(&self) -> BTreeMap<String, Definition> {
        self.inputs.clone()
    }

    fn options(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn session(&self) -> String {
        "session".into()
    }

    fn frontends(&self) -> FrontendPolicy {
        self.policy.clone()
    }

    fn workers(&self) -> Vec<WorkerInfo> {
        vec![WorkerInfo {
            id: "w".into(),
            platforms: vec![Platform::new("linux", "amd64", "")],
            ..WorkerInfo::default()
        }]
    }
}
