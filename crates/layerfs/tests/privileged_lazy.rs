//! Lazy layers: real mounts of what this process serves, so these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use castor_layerfs::{Layer, LayerState, Lazy};
use castor_oci::{ANNOTATION_TOC_DIGEST, Digest};
use castor_progress::Reporter;
use support::rand_like::Random;
use support::{Bench, Blob, PATIENCE, Source, Tar, estargz, gzip, path, read, read_when_well};

const MIB: usize = 1 << 20;

/// A layer of `count` files of `size` random bytes, in directories of 50.
fn many(count: usize, size: usize) -> (Blob, Vec<Vec<u8>>) {
    let mut random = Random::new(7);
    let mut tar = Tar::default();
    let mut contents = Vec::new();
    for number in 0..count {
        if number % 50 == 0 {
            tar = tar.dir(&format!("d{:03}", number / 50), 0o755);
        }
        contents.push(random.bytes(size));
        tar = tar.file(&name(number), &contents[number]);
    }
    (estargz(&tar.bytes(), 4 << 20), contents)
}

fn name(number: usize) -> String {
    format!("d{:03}/f{number:05}", number / 50)
}

async fn open(bench: &Bench, source: &Arc<Source>) -> Arc<Layer> {
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    assert_eq!(layer.state(), LayerState::Lazy);
    layer
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_only_what_is_read_is_fetched() {
    let bench = Bench::new().await;
    let (blob, contents) = many(2000, 12_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    assert_eq!(source.requests(), 1, "footer and TOC in one request");
    let tail = source.sent();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(tree.is_served());
    let names = support::list(&path(&tree, ""));
    assert_eq!(names.len(), 2040);
    assert_eq!(source.requests(), 1, "names and attributes need no request");

    for number in [3, 900, 901, 902, 1500] {
        assert_eq!(read(&tree, &name(number)).await.unwrap(), contents[number], "{number}");
    }
    let fetched = source.sent() - tail;
    assert!(fetched < 5 * 12_000 * 6 / 5 + (560 << 10), "{fetched} bytes for five files");

    // Twice the same needs no request: the pages and the chunks are here.
    source.faults.lock().down = true;
    assert_eq!(read(&tree, &name(900)).await.unwrap(), contents[900]);
    source.faults.lock().down = false;

    // All of it: few requests, no byte twice, and then it is complete.
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content, "{number}");
    }
    assert!(source.sent() < blob.bytes.len() as u64 * 102 / 100 + tail, "{} of {}", source.sent(), blob.bytes.len());
    assert!(source.requests() < 60, "{} requests", source.requests());
    layer.complete().await.unwrap();
    assert_eq!(layer.state(), LayerState::Complete);
    let progress = layer.progress();
    assert_eq!((progress.fetched, progress.requests), (source.sent(), source.requests() as u64));
    assert_eq!(layer.verified(), Some(blob.diff_id));
    assert!(bench.content.info(&blob.descriptor.digest).await.unwrap().is_some());
    drop(tree);
    // From now on no server is needed.
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(!tree.is_served());
    assert_eq!(read(&tree, &name(77)).await.unwrap(), contents[77]);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_big_files_are_read_in_chunks_and_by_many_at_once() {
    let bench = Bench::new().await;
    let data = Random::new(9).bytes(20 * MIB + 17);
    let blob = estargz(&Tar::default().file("big", &data).link("same", "big").bytes(), MIB as u64);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let data = Arc::new(data);
    let tasks: Vec<_> = (0..16u64)
        .map(|reader| {
            let (tree, data) = (tree.clone(), data.clone());
            castor_task::reading(move || {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::open(path(&tree, if reader % 2 == 0 { "big" } else { "same" })).unwrap();
                let mut random = Random::new(100 + reader);
                for _ in 0..60 {
                    let at = random.next() % (data.len() as u64 - 4096);
                    let mut bytes = [0; 4096];
                    file.read_exact_at(&mut bytes, at).unwrap();
                    assert_eq!(bytes[..], data[at as usize..at as usize + 4096], "at {at}");
                }
            })
        })
        .collect();
    futures::future::join_all(tasks).await;
    let tail = (blob.bytes.len() / 64).clamp(128 << 10, 2 << 20) as u64;
    assert!(source.sent() <= blob.bytes.len() as u64 + tail, "{} of {}", source.sent(), blob.bytes.len());
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_is_here_outlives_restart_and_registry() {
    let bench = Bench::new().await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let id = layer.id();
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert_eq!(read(&tree, &name(5)).await.unwrap(), contents[5]);
    drop((tree, layer));

    let bench = bench.restart().await;
    let mark = bench.engine.error_mark();
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    let before = source.requests();
    assert_eq!(read(&tree, &name(5)).await.unwrap(), contents[5]);
    let error = read(&tree, &name(400)).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    let errors = tree.layers()[0].errors(mark);
    let text = errors[0].to_string();
    for part in ["/d008/f00400", &blob.descriptor.digest.to_string(), "registry.test/image:1", "no source is known"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(source.requests(), before);

    // A registry that is down is another reason; one that is back needs nothing but another read.
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    source.faults.lock().down = true;
    assert_eq!(read(&tree, &name(400)).await.unwrap_err().raw_os_error(), Some(5));
    let errors = layer.errors(0);
    assert!(errors.last().unwrap().cause.contains("connection refused"), "{errors:?}");
    source.faults.lock().down = false;
    assert_eq!(read(&tree, &name(400)).await.unwrap(), contents[400]);
    assert!(layer.errors(0).is_empty(), "{:?}", layer.errors(0));
    assert_eq!(source.log.lock().len(), before + 2, "the TOC is not fetched again");
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_corrupt_chunks_are_fetched_once_more_then_eio() {
    let bench = Bench::new().await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    // Somewhere in the first files.
    source.faults.lock().corrupt = vec![(5_000, 1)];
    assert_eq!(read(&tree, &name(0)).await.unwrap(), contents[0]);
    assert!(layer.errors(0).is_empty());

    let middle = blob.bytes.len() as u64 / 2;
    source.faults.lock().corrupt = vec![(middle, usize::MAX)];
    let mark = bench.engine.error_mark();
    let mut failed = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        match read(&tree, &name(number)).await {
            Ok(bytes) => assert_eq!(&bytes, content, "{number}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                failed.push(number);
            }
        }
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
    let errors = layer.errors(mark);
    assert_eq!(errors[0].file, format!("/{}", name(failed[0])));
    assert!(errors[0].cause.contains("digest") || errors[0].cause.contains("decompress"), "{}", errors[0].cause);
    assert!(layer.complete().await.is_err());
    // The bytes are right again, and so is everything.
    source.faults.lock().corrupt = Vec::new();
    assert_eq!(read_when_well(&tree, &name(failed[0])).await, contents[failed[0]]);
    layer.complete().await.unwrap();
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_fallbacks_say_why() {
    let bench = Bench::new().await;
    let (blob, contents) = many(100, 3_000);
    let ready = async |source: &Arc<Source>, want| {
        let layer = bench.engine.layer(source.layer(want), &Reporter::discard()).await?;
        layer.ready().await?;
        Ok::<_, castor_layerfs::LayerError>(layer)
    };
    let refused = async |source: &Arc<Source>, reason: &str| {
        let error = ready(source, Lazy::Require).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("lazy=require"), "{error}");
    };

    // No annotation.
    let mut plain = blob.clone();
    plain.descriptor.annotations.clear();
    let source = Source::new(&plain);
    refused(&source, "no annotation").await;
    let layer = ready(&source, Lazy::Prefer).await.unwrap();
    assert!(layer.eager_reason().unwrap().contains("no annotation"));
    bench.engine.remove(layer.id()).await.unwrap();
    bench.content.delete(&blob.descriptor.digest).await.unwrap();

    // Another TOC than the annotation says.
    let mut wrong = blob.clone();
    let digest = Digest::of("another").to_string();
    wrong.descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), digest.clone());
    let source = Source::new(&wrong);
    refused(&source, &digest).await;
    let layer = ready(&source, Lazy::Prefer).await.unwrap();
    assert!(layer.eager_reason().unwrap().contains(&digest));
    assert_eq!(layer.verified(), Some(blob.diff_id));
    bench.engine.remove(layer.id()).await.unwrap();
    bench.content.delete(&blob.descriptor.digest).await.unwrap();

    // No ranges: the answer is the download.
    let big = estargz(&Tar::default().file("f", &Random::new(4).bytes(MIB)).bytes(), 4 << 20);
    let source = Source::new(&big);
    source.faults.lock().no_ranges = true;
    refused(&source, "does not serve ranges").await;
    let before = source.requests();
    let layer = ready(&source, Lazy::Prefer).await.unwrap();
    assert_eq!(source.requests(), before + 1, "the answer to the first request becomes the download");
    assert_eq!(layer.eager_reason().unwrap(), "registry.test does not serve ranges");

    // An ordinary layer that claims to be another.
    let mut claims = gzip(&Tar::default().file("g", &contents[0]).bytes());
    claims.descriptor.annotations.insert(ANNOTATION_TOC_DIGEST.into(), digest);
    let source = Source::new(&claims);
    refused(&source, "footer").await;
    ready(&source, Lazy::Prefer).await.unwrap();
    drop(layer);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_registry_that_loses_its_ranges_sends_all() {
    let bench = Bench::new().await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    source.faults.lock().no_ranges = true;
    let before = source.requests();
    for number in [599, 0, 300] {
        assert_eq!(read(&tree, &name(number)).await.unwrap(), contents[number]);
    }
    for (number, content) in contents.iter().enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content);
    }
    assert_eq!(source.requests(), before + 1);
    layer.complete().await.unwrap();
    assert_eq!(source.requests(), before + 1);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_fetch_without_answer_is_an_error_in_time() {
    let bench = Bench::with_deadline(Duration::from_secs(2)).await;
    let (blob, contents) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let middle = blob.bytes.len() as u64 / 2;
    source.faults.lock().stall = Some(middle..u64::MAX);
    assert_eq!(read(&tree, &name(500)).await.unwrap_err().raw_os_error(), Some(5));
    let errors = layer.errors(0);
    assert!(errors.iter().any(|error| error.cause.contains("no answer within 2s")), "{errors:?}");
    // Others are not held up.
    assert_eq!(read_when_well(&tree, &name(1)).await, contents[1]);
    source.faults.lock().stall = None;
    // A request that was sent while the source stalled ends by its own deadline.
    assert_eq!(read_when_well(&tree, &name(500)).await, contents[500]);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_unmounting_waits_for_nobody() {
    // Longer than any test runs: nobody gets away because a fetch was given up.
    let bench = Bench::with_deadline(Duration::from_secs(3600)).await;
    let (blob, _) = many(600, 40_000);
    let source = Source::new(&blob);
    let layer = open(&bench, &source).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    source.faults.lock().stall = Some(0..u64::MAX);
    // A reader that is killed leaves its page locked and its request parked.
    let file = path(&tree, &name(500));
    let target = std::fs::File::open(&file).unwrap();
    let mut reader =
        std::process::Command::new("cat").stdin(target).stdout(std::process::Stdio::null()).spawn().unwrap();
    source.stalled.notified().await;
    reader.kill().unwrap();
    let ended = async {
        tokio::task::spawn_blocking(move || reader.wait().unwrap()).await.unwrap();
        tokio::task::spawn_blocking(move || drop(tree)).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("a reader can be killed, and then unmounted");
    drop(layer);
    bench.engine.shutdown().await;
}
