//! Layers that are fetched first, and image trees: real mounts, so these tests need root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use castor_archive::tar::{Header, Kind};
use castor_layerfs::{LayerState, Lazy};
use castor_progress::Reporter;
use support::rand_like::Random;
use support::{Bench, Source, Tar, gzip, header, list, path, read};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_become_one_tree() {
    let bench = Bench::new().await;
    let mut random = Random::new(1);
    let big = random.bytes(3_000_001);
    let lower = Tar::default()
        .dir("bin", 0o755)
        .file("bin/tool", &big)
        .link("bin/same", "bin/tool")
        .symlink("lib", "usr/lib")
        .dir("usr", 0o755)
        .dir("usr/lib", 0o711)
        .file("usr/lib/a", b"a")
        .dir("gone", 0o755)
        .file("gone/x", b"x")
        .dir("opaque", 0o700)
        .file("opaque/old", b"old")
        .file("replaced", b"file");
    let upper = Tar::default()
        .file(".wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .dir("replaced", 0o755)
        .file("replaced/in", b"in")
        // The parent is implied, and below it is a symlink.
        .file("lib/b", b"b")
        .put(Header { uid: 7, gid: 8, ..header("bin/tool2", Kind::File, 0o4755) }, b"two");
    let blobs = [gzip(&lower.bytes()), gzip(&upper.bytes())];
    let sources = blobs.each_ref().map(Source::new);
    let mut layers = Vec::new();
    for source in &sources {
        layers.push(bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap());
    }
    let ids: Vec<_> = layers.iter().map(|layer| layer.id()).collect();
    let tree = bench.engine.image_tree(&ids).await.unwrap();
    assert!(!tree.is_served());
    let names = list(&path(&tree, ""));
    let expected = [
        ("bin", "40755 0:0"),
        ("bin/same", "100644 0:0"),
        ("bin/tool", "100644 0:0"),
        ("bin/tool2", "104755 7:8"),
        ("lib", "120777 0:0"),
        // Implied in the upper layer: the attributes are those of the lower one.
        ("opaque", "40700 0:0"),
        ("opaque/new", "100644 0:0"),
        ("replaced", "40755 0:0"),
        ("replaced/in", "100644 0:0"),
        ("usr", "40755 0:0"),
        ("usr/lib", "40711 0:0"),
        ("usr/lib/a", "100644 0:0"),
        ("usr/lib/b", "100644 0:0"),
    ];
    let found: Vec<(&str, &str)> = names.iter().map(|(n, w)| (n.as_str(), w.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(read(&tree, "bin/tool").await.unwrap(), big);
    assert_eq!(read(&tree, "bin/same").await.unwrap(), big);
    assert_eq!(read(&tree, "lib/b").await.unwrap(), b"b");
    for (layer, blob) in layers.iter().zip(&blobs) {
        assert_eq!(layer.state(), LayerState::Complete);
        assert_eq!(layer.verified(), Some(blob.diff_id));
        assert!(bench.content.info(&blob.descriptor.digest).await.unwrap().is_some());
    }
    assert_eq!(sources[0].requests(), 1);
    drop((tree, layers));

    // After a restart nothing is fetched.
    let bench = bench.restart().await;
    let tree = bench.engine.image_tree(&ids).await.unwrap();
    assert_eq!(read(&tree, "bin/tool").await.unwrap(), big);
    assert_eq!(list(&path(&tree, "")), names);
    drop(tree);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_wrong_bytes_are_never_shown() {
    let bench = Bench::new().await;
    let data = Random::new(2).bytes(200_000);
    let blob = gzip(&Tar::default().file("f", &data).bytes());
    let source = Source::new(&blob);
    source.faults.lock().corrupt = vec![(150_000, 1)];
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    let error = layer.ready().await.unwrap_err().to_string();
    assert!(error.contains(&blob.descriptor.digest.to_string()), "{error}");
    let error = bench.engine.image_tree(&[layer.id()]).await.unwrap_err().to_string();
    assert!(error.contains("is not here"), "{error}");
    // The next one who wants it starts anew.
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert_eq!(read(&tree, "f").await.unwrap(), data);
    drop((tree, layer));

    // A claimed diff ID that is not that of the stream.
    let other = gzip(&Tar::default().file("g", b"g").bytes());
    let mut wanted = Source::new(&other).layer(Lazy::Never);
    wanted.diff_id = Some(blob.diff_id);
    let layer = bench.engine.layer(wanted, &Reporter::discard()).await.unwrap();
    let error = layer.ready().await.unwrap_err().to_string();
    assert!(error.contains("diff ID"), "{error}");
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_download_is_resumed_where_it_broke_off() {
    let bench = Bench::new().await;
    let data = Random::new(3).bytes(900_000);
    let blob = gzip(&Tar::default().file("f", &data).bytes());
    let source = Source::new(&blob);
    source.faults.lock().cut = Some((300_000, 2));
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let size = blob.bytes.len() as u64;
    assert_eq!(*source.log.lock(), [0..size, 300_000..size, 600_000..size]);
    assert_eq!(source.sent(), size);
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_download_that_nobody_wants_ends() {
    let bench = Bench::new().await;
    let blob = gzip(&Tar::default().file("f", b"f").bytes());
    let source = Source::new(&blob);
    source.faults.lock().stall = Some(0..u64::MAX);
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    let again = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&layer, &again));
    drop((layer, again));
    bench.scope.close(std::time::Duration::from_secs(300)).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(bench.root.join("layers/layers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_damaged_object_is_made_anew() {
    let bench = Bench::new().await;
    let blob = gzip(&Tar::default().file("f", b"content").bytes());
    let source = Source::new(&blob);
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let id = layer.id();
    let object = bench.root.join("layers/layers").join(id.directory());
    drop(layer);
    let bench = {
        std::fs::create_dir(bench.root.join("layers/layers/new-1234")).unwrap();
        std::fs::write(object.join("presence"), b"nonsense").unwrap();
        bench.restart().await
    };
    assert!(bench.engine.existing(id).await.unwrap().is_none());
    assert!(!object.exists() && !bench.root.join("layers/layers/new-1234").exists());
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    // The blob was in the content store.
    assert_eq!(source.requests(), 1);
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert_eq!(read(&tree, "f").await.unwrap(), b"content");
    drop((tree, layer));
    bench.engine.remove(id).await.unwrap();
    assert!(!object.exists());
    bench.engine.shutdown().await;
}
