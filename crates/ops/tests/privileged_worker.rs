//! Ops over a real store, real mounts and a registry with faults.
#![allow(clippy::unwrap_used)]

mod lab;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use castor_layerfs::Lazy;
use castor_llb::State;
use castor_llb::op::{CacheSharing, NetMode};
use castor_llb::state::{Action, Constraints, CopyOptions, ImageOptions, MountOptions, Owner, Run};
use castor_ops::bridge::{ReadDir, ReadFile, SourceMetaRequest, code};
use castor_proto::errdefs::{Detail as _, Solve, Vertex};
use castor_testkit::{Fault, File, Form, ImageBuilder, On, Registry};
use lab::{Lab, Seen};

fn image(reference: &impl ToString) -> State {
    State::image(&reference.to_string(), &ImageOptions::default(), Constraints::new())
}

fn mkfile(path: &str, data: &'static str) -> Action {
    Action::Mkfile { path: path.into(), mode: 0o644, data: data.into(), owner: None, timestamp: None }
}

fn copy(from: &State, src: &str, dest: &str) -> Action {
    let options = CopyOptions { create_dest_path: true, follow_symlinks: true, ..CopyOptions::default() };
    Action::Copy { from: from.clone(), src: src.into(), dest: dest.into(), options: Box::new(options) }
}

fn run(command: &str) -> Run {
    Run { args: command.split_whitespace().map(str::to_owned).collect(), ..Run::default() }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn two_layers() -> ImageBuilder {
    let passwd = "root:x:0:0::/:\napp:x:7:8::/:\n";
    ImageBuilder::new()
        .layer(&[File::new("a", "one"), File::dir("etc"), File::new("etc/passwd", passwd)], Form::Gzip)
        .layer(&[File::new("b", "two")], Form::Gzip)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_file_ops_on_an_image() {
    let registry = Registry::start().await;
    let reference = two_layers().build().put(&registry, "base:1");
    let lab = Lab::new(Lazy::Never).await;
    let base = image(&reference);
    let owner = Owner::parse("app");
    let options = CopyOptions { owner: Some(owner), ..CopyOptions::default() };
    let chown = Action::Copy { from: base.clone(), src: "/a".into(), dest: "/c".into(), options: Box::new(options) };
    let state = base.file(vec![mkfile("/x", "new"), chown], Constraints::new());
    let (result, seen) = lab.build(&state).await;
    let result = result.unwrap();
    let files = lab.files(&result).await;
    assert_eq!((files["x"].as_str(), files["c"].as_str(), files["b"].as_str()), ("new", "one", "two"));
    let stat = lab.worker.stat_file(&lab.cx(), &result, "/c").await.unwrap();
    assert_eq!((stat.uid, stat.gid), (7, 8));
    assert!(seen.statuses().iter().any(|(id, _)| *id == format!("resolve {reference}")), "{:?}", seen.statuses());
    // Two actions, one layer.
    assert_eq!(result.parts().len(), 3);

    // The same again comes from the cache, and asks the registry for nothing but the manifest.
    drop(result);
    registry.clear_log();
    let (again, seen) = lab.build(&state).await;
    assert!(again.is_ok());
    let (cached, _) = &seen.vertices()["mkfile /x, copy /a /c"];
    assert!(cached, "{:?}", seen.vertices());
    assert_eq!(registry.blob_bytes(), 0);
    drop(again);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_nothing_is_fetched_that_nobody_looks_into() {
    let registry = Registry::start().await;
    let image_a = two_layers().build();
    let reference = image_a.put(&registry, "base:1");
    let lab = Lab::new(Lazy::Never).await;
    let base = image(&reference);
    let other = State::scratch().file(vec![mkfile("/m", "m")], Constraints::new());
    let merged = State::merge(&[base.clone(), other], Constraints::new());
    let (result, _) = lab.build(&merged).await;
    let result = result.unwrap();
    for layer in &image_a.layers {
        assert!(registry.log_of(&layer.descriptor.digest.to_string()).is_empty(), "a layer was fetched");
    }
    assert_eq!(lab.files(&result).await["m"], "m");
    let upper = base.file(vec![mkfile("/up", "u")], Constraints::new());
    let (diff, _) = lab.build(&State::diff(&base, &upper, Constraints::new())).await;
    assert_eq!(lab.files(&diff.unwrap()).await, texts(&[("up", "u")]));
    drop(result);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_changed_input_runs_only_what_it_reaches() {
    let lab = Lab::new(Lazy::Never).await;
    let state = |text: &'static str| {
        let source = State::scratch().file(vec![mkfile("/s", text), mkfile("/t", "same")], Constraints::new());
        let first = State::scratch().file(vec![copy(&source, "/t", "/t")], Constraints::new().name("first"));
        first.file(vec![copy(&source, "/s", "/s")], Constraints::new().name("second"))
    };
    lab.build(&state("1")).await.0.unwrap();
    let (result, seen) = lab.build(&state("2")).await;
    assert_eq!(lab.files(&result.unwrap()).await, texts(&[("s", "2"), ("t", "same")]));
    let vertices = seen.vertices();
    assert!(vertices["first"].0 && !vertices["second"].0, "{vertices:?}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_processes_see_their_mounts() {
    let lab = Lab::new(Lazy::Never).await;
    let base = State::scratch().file(vec![mkfile("/base", "b")], Constraints::new());
    let tool = State::scratch().file(vec![mkfile("/in", "tool")], Constraints::new());
    let mut step = run("copy /m/in /out ; write /w/kept k ; append /cache/log x ; copy /cache/log /log");
    let plain = MountOptions::default();
    let cache = MountOptions { cache: Some(("id".into(), CacheSharing::Shared)), ..plain.clone() };
    step.mounts = vec![
        ("/m".into(), tool.clone(), MountOptions { readonly: true, ..plain.clone() }),
        ("/w".into(), State::scratch(), plain),
        ("/cache".into(), State::scratch(), cache.clone()),
    ];
    let ran = base.run(step);
    let (result, _) = lab.build(ran.root()).await;
    let result = result.unwrap();
    let files = lab.files(&result).await;
    assert_eq!(files, texts(&[("base", "b"), ("out", "tool"), ("log", "x")]));
    let (kept, _) = lab.build(ran.mount(1).unwrap()).await;
    assert_eq!(lab.files(&kept.unwrap()).await, texts(&[("kept", "k")]));
    assert_eq!(lab.commands.runs.load(Ordering::SeqCst), 1, "both outputs are of one run");

    // What a cache mount holds stays for the next process.
    let mut next = run("append /cache/log y ; copy /cache/log /log");
    next.mounts = vec![("/cache".into(), State::scratch(), cache)];
    let (result, _) = lab.build(base.run(next).root()).await;
    assert_eq!(lab.files(&result.unwrap()).await["log"], "xy");
    let meta = lab.commands.last.lock().clone().unwrap();
    assert!(meta.env.iter().any(|variable| variable.starts_with("PATH=/usr/local/sbin")));
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_failed_step_says_which_and_leaves_nothing() {
    let lab = Lab::new(Lazy::Never).await;
    let base = State::scratch().file(vec![mkfile("/base", "b")], Constraints::new());
    let step = Run { constraints: Constraints::new().name("the step"), ..run("write /x 1 ; exit 3") };
    let (result, seen) = lab.build(base.run(step).root()).await;
    let error = result.unwrap_err();
    let text = "process \"write /x 1 ; exit 3\" did not complete successfully: exit code: 3";
    assert_eq!((error.code, error.message.as_str()), (code::UNKNOWN, text));
    assert_eq!(seen.vertices()["the step"].1, text);
    let urls: Vec<&str> = error.details.iter().map(|detail| detail.type_url.as_str()).collect();
    assert_eq!(urls, [Vertex::TYPE_URL, Solve::TYPE_URL]);
    assert!(String::from_utf8_lossy(&error.details[1].value).contains("\"exec\""));

    let missing = base.file(vec![copy(&base, "/none", "/x")], Constraints::new());
    let error = lab.build(&missing).await.0.unwrap_err();
    assert!(error.message.contains("\"/none\": not found") || error.message.contains("/none: no such file"), "{error}");
    let strict = base.run(Run { network: Some(NetMode::Host), ..run("write /x 1") });
    let error = lab.build(strict.root()).await.0.unwrap_err();
    assert_eq!(error.message, "failed to load LLB: network.host is not allowed");
    lab.close().await;
}

/// Bytes that do not compress, so that a part is a part.
fn incompressible(length: usize) -> Vec<u8> {
    let mut number = 1u64;
    (0..length)
        .map(|_| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(number >> 56).unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_was_made_on_unverified_layers_is_not_found_by_the_manifest() {
    let registry = Registry::start().await;
    let files = [File::new("small", "s"), File::new("big", incompressible(2 << 20))];
    let reference = ImageBuilder::new().layer(&files, Form::Estargz).build().put(&registry, "lazy:1");
    let lab = Lab::new(Lazy::Prefer).await;
    let stepped = image(&reference).run(run("copy /small /x"));
    let state = stepped.root();
    let runs = || lab.commands.runs.load(Ordering::SeqCst);
    for _ in 0..2 {
        lab.build(state).await.0.unwrap();
        assert_eq!(runs(), 1, "who sees the same layers in the same way is served");
    }
    // Whoever has the layers verified before they are used must not be given what was seen through their tables.
    let (result, _) = lab.build_as(state, &[], &[("lazy", "never")]).await;
    result.unwrap();
    assert_eq!(runs(), 2);
    let (result, _) = lab.build_as(state, &[], &[("lazy", "never")]).await;
    result.unwrap();
    assert_eq!(runs(), 2, "what was made on verified layers has BuildKit's key");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_lazy_layer_is_read_in_parts_and_its_errors_are_named() {
    let registry = Registry::start().await;
    let big = incompressible(2 << 20);
    let files = [File::new("small", "s"), File::new("big", big), File::new("other", "o")];
    let built = ImageBuilder::new().layer(&files, Form::Estargz).build();
    let reference = built.put(&registry, "lazy:1");
    let lab = Lab::new(Lazy::Prefer).await;
    let base = image(&reference);
    let (result, seen) = lab.build(base.run(run("copy /small /x")).root()).await;
    let result = result.unwrap();
    let stat = lab.worker.read_file(&lab.cx(), &result, ReadFile { path: "x".into(), ..ReadFile::default() }).await;
    assert_eq!(stat.unwrap(), "s");
    let shown =
        |seen: &Seen, word: &str| seen.statuses().iter().any(|(id, _)| id.starts_with("layer ") && id.ends_with(word));
    assert!(shown(&seen, "lazy"), "{:?}", seen.statuses());
    let digest = built.layers[0].descriptor.digest;
    let fetched: u64 = registry.ranges_of(&digest).iter().map(|range| range.end - range.start).sum();
    assert!(fetched < built.layers[0].descriptor.size / 2, "{fetched} of {}", built.layers[0].descriptor.size);

    // A registry that lost the blob: the step fails with what it could not read, even if it does not say so itself.
    registry.fault(On::new(http::Method::GET, digest.to_string()), Fault::Status(404, None));
    for command in ["copy /big /y", "try /big ; write /z z"] {
        let error = lab.build(base.run(run(command)).root()).await.0.unwrap_err();
        let text = error.message.clone();
        assert!(text.contains("big") && text.contains(&digest.to_string()) && text.contains("lazy:1"), "{text}");
    }
    drop(result);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_that_is_known_works_without_its_registry() {
    let registry = Registry::start().await;
    let reference = two_layers().build().put(&registry, "base:1");
    let lab = Lab::new(Lazy::Never).await;
    let state = |text: &str| image(&reference).run(run(&format!("write /x {text}")));
    lab.build(state("1").root()).await.0.unwrap();
    drop(registry);
    // Another client: what the first was answered is not for it.
    let (result, seen) = lab.build_for(state("2").root(), &["another"]).await;
    assert_eq!(lab.files(&result.unwrap()).await["x"], "2");
    let warned = seen.0.lock().iter().any(|event| matches!(event, castor_progress::Event::Warning(_)));
    assert!(warned, "no warning");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_frontends_look_into_results_and_at_sources() {
    let registry = Registry::start().await;
    let built = two_layers().build();
    let reference = built.put(&registry, "base:1");
    let lab = Lab::new(Lazy::Never).await;
    let seen = std::sync::Arc::new(Seen::default());
    let request = SourceMetaRequest {
        identifier: format!("docker-image://{reference}"),
        log_name: "[internal] load metadata".into(),
        ..SourceMetaRequest::default()
    };
    let token = castor_task::CancellationToken::new();
    let meta = lab.worker.resolve_source(request, Vec::new(), seen.clone(), token).await.unwrap();
    let found = meta.image.unwrap();
    assert_eq!((found.digest, &found.config[..]), (built.descriptor.digest, &built.config[..]));
    assert_eq!(seen.vertices().keys().collect::<Vec<_>>(), ["[internal] load metadata"]);

    let (result, _) = lab.build(&image(&reference).file(vec![mkfile("/etc/x", "x")], Constraints::new())).await;
    let (result, cx) = (result.unwrap(), lab.cx());
    let range = ReadFile { path: "etc/passwd".into(), offset: 5, length: Some(3) };
    assert_eq!(lab.worker.read_file(&cx, &result, range).await.unwrap(), "x:0");
    let missing = ReadFile { path: "etc/none".into(), ..ReadFile::default() };
    let error = lab.worker.read_file(&cx, &result, missing).await.unwrap_err();
    assert_eq!(error.message, "open etc/none: no such file or directory");
    let read = ReadDir { path: "/etc".into(), include_pattern: "p*".into() };
    let names: Vec<_> =
        lab.worker.read_dir(&cx, &result, read).await.unwrap().into_iter().map(|stat| stat.path).collect();
    assert_eq!(names, ["passwd"]);
    drop(result);
    lab.close().await;
}
