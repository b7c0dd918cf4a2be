//! Files of web servers and git repositories, over a real store.
#![allow(clippy::unwrap_used)]

mod lab;
mod sources;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use castor_layerfs::Lazy;
use castor_llb::State;
use castor_llb::state::{Constraints, GitOptions, HttpOptions};
use castor_oci::Digest;
use castor_ops::bridge::{SourceMeta, SourceMetaRequest};
use castor_store::ImmutableRef;
use lab::{Lab, Seen};
use sources::{Answer, GitServer, WebServer};

fn http(url: &str, options: &HttpOptions) -> State {
    State::http(url, options, Constraints::new())
}

fn git(url: &str, change: impl FnOnce(&mut GitOptions)) -> State {
    let mut options = GitOptions {
        identifier: url.trim_start_matches("git://").to_owned(),
        url: url.split('#').next().unwrap().to_owned(),
        ..GitOptions::default()
    };
    change(&mut options);
    State::git(&options, Constraints::new())
}

async fn files(lab: &Lab, state: &State) -> BTreeMap<String, String> {
    let (result, _) = lab.build(state).await;
    lab.files(&result.unwrap()).await
}

async fn fails(lab: &Lab, state: &State) -> String {
    lab.build(state).await.0.unwrap_err().message
}

async fn modified(lab: &Lab, result: &ImmutableRef, path: &str) -> (i64, u32, u32, u32) {
    let (mounting, path) = (result.mount(&lab.cx()).await.unwrap(), path.to_owned());
    let found = castor_task::reading(move || {
        let metadata = mounting.path().join(path).symlink_metadata().unwrap();
        (metadata.mtime(), metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    });
    found.await
}

async fn look(lab: &Lab, identifier: &str, attrs: &[(&str, &str)], git_objects: bool) -> SourceMeta {
    let request = SourceMetaRequest {
        identifier: identifier.to_owned(),
        attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        git_objects,
        ..SourceMetaRequest::default()
    };
    let token = castor_task::CancellationToken::new();
    lab.worker.resolve_source(request, Vec::new(), Arc::new(Seen::default()), token).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_file_that_is_unchanged_is_not_fetched_again() {
    let (server, lab) = (WebServer::start(), Lab::new(Lazy::Never).await);
    let date = "Tue, 14 Nov 2023 22:13:20 GMT";
    let first = Answer::new("one").header("ETag", "\"1\"").header("Last-Modified", date);
    server.set("/a/x.txt", first);
    let options = HttpOptions { perm: 0o640, uid: 3, gid: 4, ..HttpOptions::default() };
    let state = http(&server.url("/a/x.txt"), &options);
    let (result, _) = lab.build(&state).await;
    let result = result.unwrap();
    assert_eq!(lab.files(&result).await["x.txt"], "one");
    assert_eq!(modified(&lab, &result, "x.txt").await, (1_700_000_000, 0o640, 3, 4));
    let asked = server.asked();
    assert_eq!(asked.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>(), ["GET /a/x.txt"]);
    assert!(asked[0].1["user-agent"].contains("castor/"), "{asked:?}");

    // The server says that it has the same.
    let (again, _) = lab.build(&state).await;
    assert_eq!(again.unwrap().id(), result.id());
    assert_eq!(server.asked().into_iter().map(|(line, _)| line).collect::<Vec<_>>(), ["HEAD /a/x.txt"]);

    // It has another one.
    server.set("/a/x.txt", Answer::new("two").header("ETag", "\"2\""));
    assert_eq!(files(&lab, &state).await["x.txt"], "two");
    let meta = look(&lab, &server.url("/a/x.txt"), &[], false).await.http.unwrap();
    assert_eq!((meta.checksum, meta.filename.as_str()), (Digest::of("two").to_string(), "x.txt"));
    drop(result);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_file_is_the_one_that_was_asked_for() {
    let (server, lab) = (WebServer::start(), Lab::new(Lazy::Never).await);
    server.set("/x", Answer::new("one"));
    let pinned = |text: &str| HttpOptions { checksum: Some(Digest::of(text).to_string()), ..HttpOptions::default() };
    assert_eq!(files(&lab, &http(&server.url("/x"), &pinned("one"))).await["x"], "one");
    server.asked();
    // What is known by its digest need not be asked for.
    assert_eq!(files(&lab, &http(&server.url("/x"), &pinned("one"))).await["x"], "one");
    assert!(server.asked().is_empty());
    let (one, two) = (Digest::of("one"), Digest::of("two"));
    assert_eq!(fails(&lab, &http(&server.url("/x"), &pinned("two"))).await, format!("digest mismatch {one}: {two}"));
    let error = fails(&lab, &http(&server.url("/none"), &HttpOptions::default())).await;
    assert_eq!(error, "failed to load cache key: invalid response status 404");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_names_and_encodings_are_the_servers() {
    let (server, lab) = (WebServer::start(), Lab::new(Lazy::Never).await);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"plain").unwrap();
    let answer = Answer { body: packed.finish().unwrap(), headers: Vec::new() };
    let answer = answer.header("Content-Encoding", "gzip");
    server.set("/q", answer.header("Content-Disposition", "attachment; filename=\"../../a b\""));
    assert_eq!(files(&lab, &http(&server.url("/q"), &HttpOptions::default())).await["a b"], "plain");
    // What it says about the length is not what it sends.
    server.set("/short", Answer::new("12").header("Content-Encoding", "gzip"));
    let error = fails(&lab, &http(&server.url("/short"), &HttpOptions::default())).await;
    assert!(error.contains("write short: "), "{error}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_repositories_are_checked_out() {
    let (server, lab) = (GitServer::start(), Lab::new(Lazy::Never).await);
    let repository = server.repository("r");
    let one = repository.commit(&[("f", "1"), ("sub/d/g", "2")]);
    repository.git(&["tag", "-a", "v1", "-m", "v1"]);
    let two = repository.commit(&[("f", "3")]);
    let url = server.url("r");
    let at = |fragment: &str| format!("{url}#{fragment}");

    assert_eq!(files(&lab, &git(&url, |_| {})).await["f"], "3");
    assert_eq!(files(&lab, &git(&at("v1"), |_| {})).await["f"], "1");
    assert_eq!(files(&lab, &git(&at(&one), |_| {})).await["f"], "1");
    let below = files(&lab, &git(&at("v1:sub/d"), |_| {})).await;
    assert_eq!(below, BTreeMap::from([("g".to_owned(), "2".to_owned())]));
    let (kept, _) = lab.build(&git(&at("v1"), |options| options.keep_git_dir = true)).await;
    let kept = lab.files(&kept.unwrap()).await;
    assert_eq!(kept[".git/HEAD"].trim(), one);
    assert!(kept[".git/config"].contains(&url), "{}", kept[".git/config"]);

    // The branch moves on, and the next build sees it.
    let three = repository.commit(&[("f", "4")]);
    assert_eq!(files(&lab, &git(&at("main"), |_| {})).await["f"], "4");
    let (timed, _) = lab.build(&git(&at("main"), |options| options.mtime = "commit".into())).await;
    assert_eq!(modified(&lab, &timed.unwrap(), "sub/d").await.0, 1_700_000_000);

    let checksum = |commit: &str| git(&at("main"), |options| options.checksum = commit.to_owned());
    assert_eq!(files(&lab, &checksum(&three[..8])).await["f"], "4");
    let error = fails(&lab, &checksum(&two)).await;
    assert_eq!(error, format!("failed to load cache key: expected checksum to match {two}, got {three}"));
    let error = fails(&lab, &git(&at("nope"), |_| {})).await;
    assert_eq!(error, "failed to load cache key: repository does not contain ref nope, output: \"\"");
    let error = fails(&lab, &git(&at("v1:f"), |_| {})).await;
    assert!(error.contains("contains non-directory \"f\""), "{error}");
    let error = fails(&lab, &git(&server.url("none"), |_| {})).await;
    assert!(error.contains("error fetching default branch for repository"), "{error}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_tags_that_move_and_branches_that_become_directories_are_fetched_anew() {
    let (server, lab) = (GitServer::start(), Lab::new(Lazy::Never).await);
    let repository = server.repository("r");
    repository.commit(&[("f", "1")]);
    repository.git(&["tag", "-a", "v1", "-m", "v1"]);
    repository.git(&["branch", "a"]);
    let at = |fragment: &str| format!("{}#{fragment}", server.url("r"));
    assert_eq!(files(&lab, &git(&at("v1"), |_| {})).await["f"], "1");
    assert_eq!(files(&lab, &git(&at("a"), |_| {})).await["f"], "1");
    repository.commit(&[("f", "2")]);
    repository.git(&["tag", "-f", "-a", "v1", "-m", "v1"]);
    repository.git(&["branch", "-D", "a"]);
    repository.git(&["branch", "a/b"]);
    assert_eq!(files(&lab, &git(&at("v1"), |_| {})).await["f"], "2");
    assert_eq!(files(&lab, &git(&at("a/b"), |_| {})).await["f"], "2");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_submodules_come_along_unless_they_are_not_wanted() {
    let (server, lab) = (GitServer::start(), Lab::new(Lazy::Never).await);
    server.repository("inner").commit(&[("i", "inner")]);
    let outer = server.repository("outer");
    outer.git(&["submodule", "add", "-q", &server.url("inner"), "deep/inner"]);
    outer.commit(&[("o", "outer")]);
    let url = server.url("outer");
    assert_eq!(files(&lab, &git(&url, |_| {})).await["deep/inner/i"], "inner");
    let without = files(&lab, &git(&url, |options| options.skip_submodules = true)).await;
    assert!(!without.contains_key("deep/inner/i") && without["o"] == "outer", "{without:?}");
    // A submodule that is a directory of this machine is none.
    let secret = tempfile::tempdir().unwrap();
    std::process::Command::new("git").arg("init").arg("-q").arg(secret.path()).status().unwrap();
    let sly = server.repository("sly");
    let modules = format!("[submodule \"x\"]\n\tpath = x\n\turl = {}\n", secret.path().display());
    sly.commit(&[(".gitmodules", &modules)]);
    let inner = sly.git(&["rev-parse", "HEAD"]);
    sly.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{inner},x")]);
    sly.git(&["commit", "-q", "-m", "sly"]);
    let error = fails(&lab, &git(&server.url("sly"), |_| {})).await;
    assert!(error.contains("transport 'file' not allowed"), "{error}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_commits_are_told_to_frontends() {
    let (server, lab) = (GitServer::start(), Lab::new(Lazy::Never).await);
    let repository = server.repository("r");
    let commit = repository.commit(&[("f", "1")]);
    repository.git(&["tag", "-a", "v1", "-m", "v1"]);
    let tag = repository.git(&["rev-parse", "v1"]);
    let url = server.url("r");
    let identifier = format!("{url}#v1");
    let meta = look(&lab, &identifier, &[("git.fullurl", &url)], true).await.git.unwrap();
    assert_eq!((meta.reference.as_str(), &meta.checksum, &meta.commit_checksum), ("refs/tags/v1", &tag, &commit));
    let text = String::from_utf8(meta.commit_object.to_vec()).unwrap();
    assert!(text.contains("committer a <a@b> 1700000000 +0000"), "{text}");
    assert!(String::from_utf8_lossy(&meta.tag_object).contains("tagger"));
    lab.close().await;
}
