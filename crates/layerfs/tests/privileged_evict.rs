//! Giving space back: what goes, what stays, and what nobody ever reads in its place.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use castor_layerfs::{Layer, LayerState, Lazy};
use castor_progress::Reporter;
use support::rand_like::Random;
use support::{Bench, Blob, Source, Tar, estargz, gzip, path, read, read_when_well};

/// A layer of `count` files of 40,000 random bytes.
fn many(count: usize) -> (Blob, Vec<Vec<u8>>) {
    let mut random = Random::new(11);
    let mut tar = Tar::default().dir("d", 0o755);
    let mut contents = Vec::new();
    for number in 0..count {
        contents.push(random.bytes(40_000));
        tar = tar.file(&name(number), &contents[number]);
    }
    (estargz(&tar.bytes(), 4 << 20), contents)
}

fn name(number: usize) -> String {
    format!("d/f{number:05}")
}

async fn open(bench: &Bench, source: &Arc<Source>, want: Lazy) -> Arc<Layer> {
    let layer = bench.engine.layer(source.layer(want), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    layer
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_in_use_gives_nothing_and_an_idle_one_is_lazy_again() {
    let bench = Bench::new().await;
    let (blob, contents) = many(300);
    let digest = blob.descriptor.digest;
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Require).await;
    let id = layer.id();
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    for (number, content) in contents.iter().take(40).enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content);
    }
    drop(layer);
    assert_eq!(bench.engine.drop_compressed(digest, true).await.unwrap(), None, "it is mounted");
    assert_eq!(bench.engine.drop_data(id).await.unwrap(), None, "it is mounted");
    assert_eq!(read(&tree, &name(39)).await.unwrap(), contents[39]);
    drop(tree);

    // The compressed bytes first: what was inflated of them stays. Until then somebody may still be reading ahead.
    let kept = bench.engine.partial(digest).await.unwrap();
    assert!(kept >= 40 * 40_000, "{kept}");
    let freed = bench.engine.drop_compressed(digest, true).await.unwrap().unwrap();
    assert!(freed >= kept, "{freed} of {kept}");
    assert_eq!(bench.engine.partial(digest).await.unwrap(), 0);
    source.faults.lock().down = true;
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert_eq!(read(&tree, &name(7)).await.unwrap(), contents[7]);
    drop(tree);

    // Then the data. What names the layer stays: its tree, and where it can be had.
    let before = bench.engine.usage(id).unwrap();
    let freed = bench.engine.drop_data(id).await.unwrap().unwrap();
    assert!(freed >= 40 * 40_000 && freed < before, "{freed} of {before}");
    assert_eq!(bench.engine.drop_data(id).await.unwrap(), Some(0), "there is nothing left");
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert_eq!(read(&tree, &name(7)).await.unwrap_err().raw_os_error(), Some(5), "never zeros");
    drop(tree);
    let bench = bench.restart().await;
    let layer = bench.engine.existing(id).await.unwrap().unwrap();
    assert_eq!((layer.state(), layer.progress().chunks.0), (LayerState::Lazy, 0));
    layer.attach(source.clone());
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    source.faults.lock().down = false;
    let requests = source.requests();
    for number in [7, 250] {
        assert_eq!(read(&tree, &name(number)).await.unwrap(), contents[number]);
    }
    assert!(source.requests() > requests);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_was_verified_stays_so_without_its_bytes() {
    let bench = Bench::new().await;
    let (blob, contents) = many(100);
    let digest = blob.descriptor.digest;
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Require).await;
    let id = layer.id();
    layer.complete().await.unwrap();
    drop(layer);
    // Somebody else wants the blob.
    assert_eq!(bench.engine.drop_compressed(digest, false).await.unwrap(), Some(0));
    assert!(bench.content.info(&digest).await.unwrap().is_some());
    assert_eq!(bench.engine.drop_compressed(digest, true).await.unwrap(), Some(blob.bytes.len() as u64));
    assert!(bench.content.info(&digest).await.unwrap().is_none());

    source.faults.lock().down = true;
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert!(!tree.is_served());
    assert_eq!(read(&tree, &name(99)).await.unwrap(), contents[99]);
    drop(tree);
    assert!(bench.engine.drop_data(id).await.unwrap().unwrap() >= 100 * 40_000);
    source.faults.lock().down = false;

    let layer = open(&bench, &source, Lazy::Require).await;
    assert_eq!((layer.state(), layer.verified()), (LayerState::Lazy, Some(blob.diff_id)));
    // Wanted whole again: all of it comes once more, and once only.
    let sent = source.sent();
    layer.fetch_blob().await.unwrap();
    layer.complete().await.unwrap();
    assert_eq!(source.sent() - sent, blob.bytes.len() as u64);
    drop(layer);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_who_wants_a_layer_first_takes_what_was_fetched_of_it_lazily() {
    let bench = Bench::new().await;
    let (blob, contents) = many(300);
    let source = Source::new(&blob);
    let lazy = open(&bench, &source, Lazy::Require).await;
    let tree = bench.engine.image_tree(&[lazy.id()]).await.unwrap();
    for (number, content) in contents.iter().take(60).enumerate() {
        assert_eq!(&read(&tree, &name(number)).await.unwrap(), content);
    }
    drop((tree, lazy));
    let first = open(&bench, &source, Lazy::Never).await;
    assert_eq!((first.id().toc, first.verified()), (None, Some(blob.diff_id)));
    let (sent, size) = (source.sent(), blob.bytes.len() as u64);
    // What lies between two parts may come twice, where one request more would cost more.
    assert!(sent >= size && sent < size + (200 << 10), "{sent} of {size}");
    let tree = bench.engine.image_tree(&[first.id()]).await.unwrap();
    assert_eq!(read(&tree, &name(299)).await.unwrap(), contents[299]);
    drop((tree, first));

    // Wrong bytes among what was kept are found, and cost a download.
    let blob = estargz(&Tar::default().file("f", &Random::new(21).bytes(400_000)).bytes(), 4 << 20);
    let source = Source::new(&blob);
    let reference = format!("layer-{}", blob.descriptor.digest.hex());
    let ingest = bench.content.ingest(&reference, &blob.descriptor).await.unwrap();
    ingest.write_at(0, &[7; 1000]).unwrap();
    drop(ingest);
    let first = open(&bench, &source, Lazy::Never).await;
    assert_eq!(first.verified(), Some(blob.diff_id));
    drop(first);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_without_chunks_goes_as_a_whole() {
    let bench = Bench::new().await;
    let blob = gzip(&Tar::default().file("f", &Random::new(3).bytes(300_000)).bytes());
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Prefer).await;
    let id = layer.id();
    assert_eq!(bench.engine.drop_data(id).await.unwrap(), None, "somebody has it");
    drop(layer);
    assert!(bench.engine.drop_data(id).await.unwrap().unwrap() >= 300_000);
    assert!(bench.engine.existing(id).await.unwrap().is_none());
    let sent = source.sent();
    let layer = open(&bench, &source, Lazy::Prefer).await;
    assert_eq!((layer.id(), source.sent()), (id, sent), "it is made of the blob, which is still here");
    drop(layer);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_is_fetched_of_a_layer_ends_when_it_goes() {
    // Longer than any test runs: no fetch ends because it was given up.
    let bench = Bench::with_deadline(Duration::from_secs(3600)).await;
    let (blob, _) = many(300);
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Require).await;
    let id = layer.id();
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    source.faults.lock().stall = Some(0..u64::MAX);
    let file = std::fs::File::open(path(&tree, &name(200))).unwrap();
    let mut reader = std::process::Command::new("cat").stdin(file).stdout(std::process::Stdio::null()).spawn().unwrap();
    source.stalled.notified().await;
    reader.kill().unwrap();
    tokio::task::spawn_blocking(move || reader.wait().unwrap()).await.unwrap();
    tokio::task::spawn_blocking(move || drop(tree)).await.unwrap();
    // Nobody waits for it any more, but the request is still out.
    drop(layer);
    let working = || bench.scope.running().iter().any(|name| name.contains(&id.blob.to_string()));
    assert!(working());
    bench.engine.remove(id).await.unwrap();
    assert!(!working(), "{:?}", bench.scope.running());
    assert!(bench.engine.existing(id).await.unwrap().is_none());
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_all_layers_are_told_of_open_or_not() {
    let bench = Bench::new().await;
    let (blob, contents) = many(100);
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Require).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert_eq!(read(&tree, &name(1)).await.unwrap(), contents[1]);
    let plain = gzip(&Tar::default().file("f", b"f").bytes());
    drop(open(&bench, &Source::new(&plain), Lazy::Prefer).await);
    bench.settled(&blob).await;

    let of = |reports: Vec<castor_layerfs::LayerReport>, blob: &Blob| {
        reports.into_iter().find(|report| report.id.blob == blob.descriptor.digest).unwrap()
    };
    let seen = of(bench.engine.report().await.unwrap(), &blob);
    assert!(seen.open && seen.in_use && seen.state == LayerState::Lazy && seen.eager.is_none(), "{seen:?}");
    assert_eq!((seen.fetched, seen.requests), (source.sent(), source.requests() as u64));
    assert!(seen.waiting > Duration::ZERO && seen.compressed > 0 && seen.disk > 0, "{seen:?}");
    let other = of(bench.engine.report().await.unwrap(), &plain);
    assert!(!other.in_use && other.state == LayerState::Complete, "{other:?}");
    assert!(other.eager.unwrap().contains("no annotation"));
    assert_eq!(other.verified, Some(plain.diff_id));
    drop((tree, layer));

    let bench = bench.restart().await;
    let kept = of(bench.engine.report().await.unwrap(), &blob);
    assert!(!kept.open && kept.state == LayerState::Lazy && kept.image == "registry.test/image:1", "{kept:?}");
    assert_eq!((kept.chunks, kept.requests), (seen.chunks, 0));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_who_gives_up_waiting_for_all_leaves_nobody_waiting() {
    let bench = Bench::with_deadline(Duration::from_secs(2)).await;
    let (blob, contents) = many(300);
    let source = Source::new(&blob);
    let layer = open(&bench, &source, Lazy::Require).await;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    source.faults.lock().stall = Some(0..u64::MAX);
    tokio::select! {
        completed = layer.complete() => panic!("{completed:?}"),
        () = source.stalled.notified() => {}
    }
    source.faults.lock().stall = None;
    // What had been asked for ends by its own deadline, and is then asked for anew.
    assert_eq!(read_when_well(&tree, &name(150)).await, contents[150]);
    drop((tree, layer));
    bench.engine.shutdown().await;
}
