//! The builtin frontend over a fake build.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod fake;

use std::collections::BTreeMap;
use std::sync::Arc;

use castor_frontend::{FrontendRequest, solve, to_failure};
use castor_ops::bridge::{FrontendPolicy, code};
use castor_ops::{BridgeError, Refs, SolveResult};
use castor_proto::errdefs::{FrontendCap, Source, Subrequest};
use fake::{FakeBuild, Script};

async fn build(build: &Arc<FakeBuild>, frontend: &str, options: &[(&str, &str)]) -> Result<SolveResult, BridgeError> {
    let options: BTreeMap<String, String> = options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    solve(build.clone(), frontend, FrontendRequest { options, ..FrontendRequest::default() }).await
}

fn dockerfile(text: &str) -> Arc<FakeBuild> {
    FakeBuild::with(&[("dockerfile", "Dockerfile", text)])
}

#[tokio::test]
async fn builds_a_dockerfile() {
    let fake = dockerfile("FROM golden.test/base:1\nRUN true\n");
    let result = build(&fake, "dockerfile.v0", &[]).await.unwrap();
    let Refs::Single(Some(reference)) = &result.refs else { panic!("{:?}", result.refs) };
    let names: Vec<&str> = reference.graph().vertices.iter().map(|vertex| vertex.name.as_str()).collect();
    assert_eq!(names.last(), Some(&"[2/2] RUN true"));
    let solved = fake.solved.lock();
    assert_eq!(solved[0], ["[internal] load build definition from Dockerfile"]);
    assert!(fake.resolved.lock()[0].1.starts_with("[internal] load metadata for golden.test/base:1"));
    let text = |key: &str| String::from_utf8(result.metadata[key].to_vec()).unwrap();
    assert!(text("containerimage.config").contains(r"A=\u003cb\u003e"), "{}", text("containerimage.config"));
    assert!(result.metadata.contains_key("containerimage.base.config"));
    let platforms = r#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#;
    assert_eq!(text("refs.platforms"), platforms);
}

#[tokio::test]
async fn several_platforms_are_a_map() {
    let fake = dockerfile("FROM golden.test/base:1\nENV a=b\n");
    let result = build(&fake, "dockerfile.v0", &[("platform", "linux/amd64,linux/arm64")]).await.unwrap();
    let Refs::Map(refs) = &result.refs else { panic!("{:?}", result.refs) };
    assert_eq!(refs.keys().collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
    assert!(result.metadata.contains_key("containerimage.config/linux/arm64"));
    assert!(!result.metadata.contains_key("containerimage.config"));
}

#[tokio::test]
async fn the_time_of_a_source_is_that_of_the_result() {
    let fake = dockerfile("FROM scratch\nCOPY a /\n");
    for (source, time) in [
        ("https://example.com/a.git", "1700000601"),
        ("http://example.com/dated", "1700000701"),
        // That it does not say, so the archive is looked into.
        ("http://example.com/other", "1700000777"),
    ] {
        let options = [("build-arg:SOURCE_DATE_EPOCH", "x"), ("context:x", source)];
        let result = build(&fake, "dockerfile.v0", &options).await.unwrap();
        assert_eq!(result.metadata["source.date.epoch"], time, "{source}");
    }
    let asked = fake.resolved.lock();
    assert!(
        asked.iter().all(|(_, vertex)| vertex == "[internal] resolve SOURCE_DATE_EPOCH named context x"),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_context_may_take_the_place_of_a_frontends_image() {
    let fake = Arc::new(FakeBuild { program: Some(Script::Return), ..FakeBuild::default() });
    for source in ["golden.test/frontend", "docker/dockerfile:1"] {
        let context = format!("context:{source}");
        let options = [("source", source), (context.as_str(), "docker-image://golden.test/other:1")];
        let result = build(&fake, "gateway.v0", &options).await.unwrap();
        assert_eq!(result.metadata["made.by"], "program");
        let name = source.strip_prefix("docker.io/").unwrap_or(source);
        let vertex = format!("[context {name}] load metadata for golden.test/other:1");
        let asked = fake.resolved.lock().pop().unwrap();
        assert_eq!(asked, ("docker-image://golden.test/other:1".to_owned(), vertex));
    }
    let options =
        [("source", "golden.test/frontend"), ("context:golden.test/frontend", "docker-image://golden.test/missing:1")];
    let error = build(&fake, "gateway.v0", &options).await.unwrap_err();
    assert_eq!(error.code, code::NOT_FOUND);
}

#[tokio::test]
async fn reads_the_ignore_file_of_the_dockerfile_or_of_the_context() {
    let text = "FROM scratch\nCOPY . /\n";
    let own = FakeBuild::with(&[
        ("dockerfile", "Dockerfile", text),
        ("dockerfile", "Dockerfile.dockerignore", "own"),
        ("context", ".dockerignore", "other"),
    ]);
    build(&own, "dockerfile.v0", &[]).await.unwrap();
    assert!(!own.solved.lock().iter().flatten().any(|name| name == "[internal] load .dockerignore"));

    let context = FakeBuild::with(&[("dockerfile", "Dockerfile", text), ("context", ".dockerignore", "other")]);
    let result = build(&context, "dockerfile.v0", &[]).await.unwrap();
    assert!(context.solved.lock().iter().flatten().any(|name| name == "[internal] load .dockerignore"));
    let reference = result.refs.iter().next().unwrap();
    let ignored = reference.graph().vertices.iter().any(|vertex| format!("{:?}", vertex.op).contains("other"));
    assert!(ignored, "{:?}", reference.graph().vertices);
}

#[tokio::test]
async fn finds_the_file_by_other_names() {
    let small = FakeBuild::with(&[("dockerfile", "dockerfile", "FROM scratch\nCOPY a /\n")]);
    build(&small, "dockerfile.v0", &[]).await.unwrap();
    let error = build(&small, "dockerfile.v0", &[("filename", "Other")]).await.unwrap_err();
    assert_eq!(error.message, "failed to read dockerfile: open Other: no such file or directory");
}

#[tokio::test]
async fn a_failed_look_up_keeps_its_code_and_says_where() {
    let fake = dockerfile("FROM golden.test/missing:1\n");
    let error = build(&fake, "dockerfile.v0", &[]).await.unwrap_err();
    let text = "golden.test/missing:1: failed to resolve source metadata for golden.test/missing:1: \
                golden.test/missing:1: not found";
    assert_eq!((error.code, error.message.as_str()), (code::NOT_FOUND, text));
    let sources = to_failure(&error).details::<Source>();
    assert_eq!(sources.len(), 1);
    let info = sources[0].info.as_ref().unwrap();
    assert_eq!((info.filename.as_str(), info.language.as_str()), ("Dockerfile", "Dockerfile"));
    assert_eq!(sources[0].ranges[0].start.as_ref().unwrap().line, 1);
}

#[tokio::test]
async fn a_parse_error_says_where() {
    let error = build(&dockerfile("FROM golden.test/base:1\nUSER\n"), "dockerfile.v0", &[]).await.unwrap_err();
    assert_eq!(error.message, "dockerfile parse error on line 2: USER requires exactly one argument");
    assert_eq!(to_failure(&error).details::<Source>()[0].ranges[0].start.as_ref().unwrap().line, 2);
}

#[tokio::test]
async fn stands_in_for_dockers_frontend_and_says_so() {
    let text = "# syntax=docker/dockerfile:1\nFROM scratch\nCOPY a /\n";
    let fake = dockerfile(text);
    build(&fake, "dockerfile.v0", &[]).await.unwrap();
    let warnings = std::mem::take(&mut *fake.warnings.lock());
    assert_eq!(warnings.len(), 1);
    assert!(String::from_utf8_lossy(&warnings[0].short).contains("docker/dockerfile:1"));
    assert_eq!(warnings[0].ranges[0].start.0, 1);

    let gateway = dockerfile("FROM scratch\nCOPY a /\n");
    build(&gateway, "gateway.v0", &[("source", "docker/dockerfile:1.7")]).await.unwrap();
    build(&gateway, "gateway.v0", &[("source", "dockerfile.v0")]).await.unwrap();
    assert_eq!(gateway.warnings.lock().len(), 1);
    build(&dockerfile("# syntax=dockerfile.v0\nFROM scratch\nCOPY a /\n"), "dockerfile.v0", &[]).await.unwrap();
}

#[tokio::test]
async fn another_syntax_is_left_to_its_image() {
    let other = dockerfile("# syntax=example.com/frontend:1 with words\nFROM scratch\n");
    let error = build(&other, "dockerfile.v0", &[("build-arg:A", "1")]).await.unwrap_err();
    // The place that named it.
    assert_eq!(to_failure(&error).details::<Source>().len(), 1);
    let (frontend, options) = other.forwarded.lock().pop().unwrap();
    assert_eq!(frontend, "gateway.v0");
    assert_eq!(options["source"], "example.com/frontend:1");
    assert_eq!(
        (options["cmdline"].as_str(), options["build-arg:A"].as_str()),
        ("example.com/frontend:1 with words", "1")
    );
}

#[tokio::test]
async fn a_frontend_in_an_image_drives_the_build() {
    let fake = Arc::new(FakeBuild { program: Some(Script::Return), ..FakeBuild::default() });
    let result = build(&fake, "gateway.v0", &[("source", "example.com/frontend:1"), ("a", "b")]).await.unwrap();
    assert_eq!(&result.metadata["made.by"][..], b"program");
    let programs = fake.programs.lock();
    assert_eq!(programs[0].0, ["/run"]);
    assert!(programs[0].1.contains(&"BUILDKIT_SESSION_ID=session".to_owned()), "{:?}", programs[0].1);
    assert!(fake.solved.lock()[0][0].starts_with("docker-image://example.com/frontend:1@sha256:"));
}

#[tokio::test]
async fn a_frontend_in_an_image_fails_with_its_reason() {
    let source = [("source", "example.com/frontend:1")];
    let silent = Arc::new(FakeBuild { program: Some(Script::Nothing), ..FakeBuild::default() });
    let error = build(&silent, "gateway.v0", &source).await.unwrap_err();
    assert_eq!(error.message, "no result for incomplete build");
    let broken = Arc::new(FakeBuild::default());
    assert_eq!(build(&broken, "gateway.v0", &source).await.unwrap_err().message, "/run cannot run here");
    let missing = build(&broken, "gateway.v0", &[("source", "example.com/missing:1")]).await.unwrap_err();
    assert_eq!(missing.message, "example.com/missing:1: not found");
}

#[tokio::test]
async fn frontends_run_only_where_they_may() {
    let allowed =
        FrontendPolicy { disabled: vec!["dockerfile.v0".into()], repositories: vec!["example.com/good".into()] };
    let fake = Arc::new(FakeBuild { program: Some(Script::Return), policy: allowed, ..FakeBuild::default() });
    build(&fake, "gateway.v0", &[("source", "example.com/good:2")]).await.unwrap();
    let error = build(&fake, "gateway.v0", &[("source", "example.com/bad:2")]).await.unwrap_err();
    assert_eq!(error.message, "'example.com/bad:2' is not an allowed gateway source");
    let error = build(&fake, "dockerfile.v0", &[]).await.unwrap_err();
    assert_eq!(error.message, "invalid frontend: dockerfile.v0");
}

#[tokio::test]
async fn targets_and_what_they_take_are_told() {
    let fake = dockerfile(
        "ARG V=1\n# one makes it\nFROM golden.test/base:$V AS one\n# A how\nARG A=2\nRUN --mount=type=secret,id=s,required true\n\
         FROM one\nRUN --mount=type=ssh true\n",
    );
    let text = |result: &SolveResult| String::from_utf8(result.metadata["result.txt"].to_vec()).unwrap();
    let outline = build(&fake, "dockerfile.v0", &[("requestid", "frontend.outline")]).await.unwrap();
    let want = "BUILD ARG   VALUE   DESCRIPTION\nV           1       \nA           2       how\n\n\
                SECRET   REQUIRED\ns        true\n\nSSH       REQUIRED\ndefault   \n\n";
    assert_eq!(text(&outline), want);
    let one = [("requestid", "frontend.outline"), ("target", "one"), ("build-arg:A", "3")];
    let outline = build(&fake, "dockerfile.v0", &one).await.unwrap();
    assert!(text(&outline).starts_with("TARGET:      one\nDESCRIPTION: makes it\n"), "{}", text(&outline));
    assert!(text(&outline).contains("A           3") && !text(&outline).contains("SSH"), "{}", text(&outline));
    let targets = build(&fake, "dockerfile.v0", &[("requestid", "frontend.targets")]).await.unwrap();
    assert_eq!(text(&targets), "TARGET    DESCRIPTION\none       makes it\n(default) \n");
}

#[tokio::test]
async fn refuses_by_name() {
    let plain = dockerfile("FROM scratch\n");
    let error = build(&plain, "nosuch.v0", &[]).await.unwrap_err();
    assert_eq!(error.message, "invalid frontend: nosuch.v0");
    let error = build(&plain, "dockerfile.v0", &[("requestid", "frontend.none")]).await.unwrap_err();
    assert_eq!(error.message, "unsupported request frontend.none");
    assert_eq!(to_failure(&error).details::<Subrequest>()[0].name, "frontend.none");
    let error = build(&plain, "dockerfile.v0", &[("frontend.caps", "x.y")]).await.unwrap_err();
    assert_eq!(to_failure(&error).details::<FrontendCap>()[0].name, "x.y");
    assert_eq!(error.code, code::UNIMPLEMENTED);
}
