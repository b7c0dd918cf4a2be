//! Where a table of contents is found, what it may say, and what becomes of one that lies.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use castor_layerfs::{BlobOpener, FetchError, LayerState, Lazy, Priority, RangeBody, external_toc};
use castor_oci::{Descriptor, Digest, Reference, media_type};
use castor_progress::Reporter;
use castor_registry::{Access, Client, Config};
use castor_testkit::Registry;
use serde_json::{Value, json};
use support::rand_like::Random;
use support::{Bench, Blob, Source, Tar, assemble, estargz, list, path, read, with_toc};

/// A layer of many kinds of entries, larger than what is fetched with its table of contents.
fn layer() -> Blob {
    let mut random = Random::new(11);
    let tar = Tar::default()
        .dir("dir", 0o755)
        .file("dir/a", &random.bytes(300_000))
        .file("dir/b", &random.bytes(1000))
        .file("c", &random.bytes(300_000))
        .link("same", "dir/a")
        .symlink("link", "dir");
    estargz(&tar.bytes(), 100_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_toc_that_lies_is_found_out_once() {
    let bench = Bench::new().await;
    let lying = with_toc(&layer(), |toc| {
        let file = toc["entries"].as_array_mut().unwrap().iter_mut().find(|entry| entry["name"] == "dir/b").unwrap();
        file["mode"] = json!(0o4755);
    });
    let source = Source::new(&lying);
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let id = layer.id();
    let expected = "its TOC and its tar stream differ: mode or owner of /dir/b";
    let error = layer.complete().await.unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert_eq!(layer.verified(), None);
    drop(layer);

    // Not read again: not now and not after a restart, when there would be nothing to read.
    bench.content.delete(&lying.descriptor.digest).await.unwrap();
    let bench = bench.restart().await;
    source.faults.lock().down = true;
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    assert_eq!(layer.id(), id);
    let error = layer.complete().await.unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    // Its files can be read as its table tells of them, and it never passes for another layer.
    let tree = bench.engine.image_tree(&[id]).await.unwrap();
    assert_eq!(list(&path(&tree, ""))["dir/b"], "104755 0:0");
    assert_eq!(layer.verified(), None);
    drop((tree, layer));

    // Who wants it fetched first gets what the tar stream has.
    source.faults.lock().down = false;
    let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    assert_eq!((layer.id().toc, layer.verified()), (None, Some(lying.diff_id)));
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert_eq!(list(&path(&tree, ""))["dir/b"], "100644 0:0");
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_that_claims_another_diff_id_is_wrong_and_the_layer_is_not() {
    let bench = Bench::new().await;
    let blob = layer();
    let source = Source::new(&blob);
    let mut wrong = source.layer(Lazy::Require);
    wrong.diff_id = Some(Digest::of("another"));
    let layer = bench.engine.layer(wrong.clone(), &Reporter::discard()).await.unwrap();
    for _ in 0..2 {
        let error = layer.complete().await.unwrap_err().to_string();
        assert!(error.contains(&format!("diff ID is {}, want {}", blob.diff_id, Digest::of("another"))), "{error}");
    }
    // What the stream has is known all the same, and good for an image that says so.
    assert_eq!(layer.verified(), Some(blob.diff_id));
    let again = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    assert!(Arc::ptr_eq(&layer, &again));
    again.complete().await.unwrap();
    // Nobody who wants it verified first takes it for what the wrong image claims.
    wrong.want = Lazy::Never;
    let eager = bench.engine.layer(wrong, &Reporter::discard()).await.unwrap();
    let error = eager.ready().await.unwrap_err().to_string();
    assert!(error.contains("diff ID"), "{error}");
    drop((layer, again, eager));
    bench.engine.shutdown().await;
}

fn sample(name: &str) -> (Bytes, Descriptor, Bytes, Digest) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../estargz/testdata/good").join(name);
    let file = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let info: Value = serde_json::from_slice(&file("info.json")).unwrap();
    let diff_id = info["diffID"].as_str().unwrap().parse().unwrap();
    (file("blob").into(), serde_json::from_slice(&file("descriptor.json")).unwrap(), file("toc").into(), diff_id)
}

/// The manifest of an image of tables of contents, each with the digest of its layer.
fn toc_manifest(registry: &Registry, tocs: &[(&Bytes, Digest)]) -> Vec<u8> {
    let layers: Vec<Value> = tocs
        .iter()
        .map(|(toc, layer)| {
            let descriptor = registry.put_blob("app", media_type::OCI_LAYER_GZIP, Bytes::clone(toc));
            let mut descriptor = serde_json::to_value(descriptor).unwrap();
            descriptor["annotations"] = json!({ "containerd.io/snapshot/stargz/layer.digest": layer.to_string() });
            descriptor
        })
        .collect();
    let config = registry.put_blob("app", media_type::OCI_CONFIG, "{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
    });
    serde_json::to_vec(&manifest).unwrap()
}

/// Reads a layer and looks for its table of contents in the registry.
struct Apart {
    source: Arc<Source>,
    client: Client,
    image: Reference,
}

#[async_trait]
impl BlobOpener for Apart {
    async fn range(&self, range: std::ops::Range<u64>, priority: Priority) -> Result<RangeBody, FetchError> {
        self.source.range(range, priority).await
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    async fn external_toc(&self) -> Result<Bytes, FetchError> {
        let layer = self.source.blob.descriptor.digest;
        external_toc(&self.client, &self.image, layer, &Access::anonymous()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_toc_that_is_apart_is_found_by_the_images_name() {
    let bench = Bench::new().await;
    let registry = Registry::start().await;
    let client = Client::new(Config::default()).unwrap();
    let (blob, descriptor, toc, diff_id) = sample("extimage-lossless-upper");
    let (_, other, other_toc, _) = sample("extimage-lossless-base");
    let source = Source::new(&Blob { bytes: Arc::new(blob.to_vec()), descriptor, diff_id });
    let layer_digest = source.blob.descriptor.digest;
    let open = async |image: &str, want: Lazy| {
        let image = format!("{}/{image}", registry.host()).parse().unwrap();
        let apart = Apart { source: source.clone(), client: client.clone(), image };
        let wanted = castor_layerfs::LayerSource { opener: Arc::new(apart), ..source.layer(want) };
        bench.engine.layer(wanted, &Reporter::discard()).await
    };
    let refused = async |image: &str| open(image, Lazy::Require).await.map(|layer| layer.id()).unwrap_err().to_string();

    let error = refused("app:1").await;
    let named = format!("its TOC is in another blob: look for it in {}/app:1-esgztoc: ", registry.host());
    assert!(error.contains(&named) && error.contains("not found"), "{error}");
    let error = refused(&format!("app@{layer_digest}")).await;
    assert!(error.contains("has no tag that would lead to it"), "{error}");
    // One that has the tables of other layers alone.
    let kind = media_type::OCI_MANIFEST;
    registry.put_manifest("app", "2-esgztoc", kind, toc_manifest(&registry, &[(&other_toc, other.digest)]));
    let error = refused("app:2").await;
    assert!(error.contains("app:2-esgztoc does not have it"), "{error}");
    // One that gives another table: the digest does not fit.
    registry.put_manifest("app", "3-esgztoc", kind, toc_manifest(&registry, &[(&other_toc, layer_digest)]));
    let error = refused("app:3").await;
    assert!(error.contains("TOC has digest"), "{error}");
    let eager = open("app:3", Lazy::Prefer).await.unwrap();
    eager.ready().await.unwrap();
    assert!(eager.eager_reason().unwrap().contains("TOC has digest"));
    bench.engine.remove(eager.id()).await.unwrap();
    bench.content.delete(&layer_digest).await.unwrap();
    drop(eager);

    // The right one, among others, in an index of platforms.
    let first = registry.put_manifest("app", "", kind, toc_manifest(&registry, &[(&other_toc, other.digest)]));
    let tables = [(&other_toc, other.digest), (&toc, layer_digest)];
    let second = registry.put_manifest("app", "", kind, toc_manifest(&registry, &tables));
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [first, second] });
    registry.put_manifest("app", "4-esgztoc", media_type::OCI_INDEX, serde_json::to_vec(&index).unwrap());
    let layer = open("app:4", Lazy::Require).await.unwrap();
    assert_eq!(layer.eager_reason(), None);
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(!list(&path(&tree, "")).is_empty());
    layer.complete().await.unwrap();
    assert_eq!((layer.state(), layer.verified()), (LayerState::Complete, Some(diff_id)));
    drop((tree, layer));
    bench.engine.shutdown().await;
}

/// One layer of members that hold `a`, and a table of contents with these entries.
fn odd(entries: impl FnOnce(&BTreeMap<String, Value>) -> Value) -> Blob {
    with_toc(&layer(), |toc| {
        let known = toc["entries"].as_array().unwrap().iter();
        let known = known.filter(|entry| entry["type"] != "chunk");
        let known = known.map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry.clone())).collect();
        toc["entries"] = entries(&known);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_odd_tocs_are_shown_as_they_are_meant() {
    let bench = Bench::new().await;
    let content = Random::new(11).bytes(301_000)[300_000..].to_vec();
    let blob = odd(|known| {
        let b = &known["dir/b"];
        let named = |name: &str| {
            let mut entry = b.clone();
            entry["name"] = json!(name);
            entry
        };
        let directory = |name: &str, mode: u32| json!({ "name": name, "type": "dir", "mode": mode });
        let link = |name: &str, to: &str| json!({ "name": name, "type": "hardlink", "linkName": to });
        let mut steering = named("steering");
        steering["xattrs"] = json!({
            "trusted.overlay.opaque": "eQ==", "trusted.overlay.redirect": "L2V0Yw==", "user.overlay.opaque": "eQ==",
            "user.kept": "eQ==",
        });
        let mut opaque = directory("closed", 0o755);
        opaque["xattrs"] = json!({ "trusted.overlay.opaque": "eQ==" });
        json!([
            link("before", "/late"),
            named("/absolute"),
            named("./dotted//name"),
            named("twice"),
            directory("twice", 0o700),
            directory("root/", 0o711),
            directory("", 0o750),
            named("late"),
            steering,
            opaque,
            named("gone/x"),
            named("gone"),
            named("..."),
        ])
    });
    let source = Source::new(&blob);
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let names = list(&path(&tree, ""));
    let found: Vec<(&str, &str)> = names.iter().map(|(name, what)| (name.as_str(), what.as_str())).collect();
    let expected = [
        ("...", "100644 0:0"),
        ("absolute", "100644 0:0"),
        ("before", "100644 0:0"),
        ("closed", "40755 0:0"),
        ("dotted", "40755 0:0"),
        ("dotted/name", "100644 0:0"),
        ("gone", "100644 0:0"),
        ("late", "100644 0:0"),
        ("root", "40711 0:0"),
        ("steering", "100644 0:0"),
        ("twice", "40700 0:0"),
    ];
    assert_eq!(found, expected);
    for name in ["absolute", "before", "dotted/name", "gone", "late", "steering"] {
        assert!(read(&tree, name).await.unwrap() == content, "{name}");
    }
    let mut attributes = [0; 1024];
    let mut shown = |name: &str| {
        let length = rustix::fs::llistxattr(path(&tree, name), &mut attributes).unwrap();
        String::from_utf8(attributes[..length].to_vec()).unwrap()
    };
    assert_eq!(shown("steering"), "user.kept\0");
    assert_eq!(shown("closed"), "");
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_tocs_that_would_do_harm_are_refused_by_name() {
    let bench = Bench::new().await;
    let file = |known: &BTreeMap<String, Value>, changes: Value| {
        let mut entry = known["dir/b"].clone();
        entry.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        entry
    };
    type Entries = Box<dyn Fn(&BTreeMap<String, Value>) -> Value>;
    let change = |changes: Value| -> Entries { Box::new(move |known| json!([file(known, changes.clone())])) };
    let chunk = |offset: u64, size: u64| json!({ "name": "dir/b", "type": "chunk", "offset": 100, "chunkOffset": offset, "chunkSize": size });
    let cases: Vec<(&str, Entries)> = vec![
        ("'..' in it", change(json!({ "name": "../../etc/shadow" }))),
        ("'..' in it", change(json!({ "name": "a/../../b" }))),
        ("NUL in it", change(json!({ "name": "a\u{0}b" }))),
        ("size out of range", change(json!({ "size": i64::MAX }))),
        ("size out of range", change(json!({ "size": -1 }))),
        ("malformed TOC", change(json!({ "size": u64::MAX }))),
        ("do not reach its end", change(json!({ "size": 1u64 << 42, "chunkSize": 1000 }))),
        ("offset past the end", change(json!({ "offset": 1u64 << 40 }))),
        ("innerOffset out of range", change(json!({ "innerOffset": i64::MAX }))),
        ("too much to decompress", change(json!({ "innerOffset": 1u64 << 40 }))),
        ("a chunk of", change(json!({ "size": 1u64 << 30, "chunkSize": 1u64 << 30 }))),
        (
            "leave a gap, overlap",
            Box::new(move |known| json!([file(known, json!({ "chunkSize": 600 })), chunk(500, 500)])),
        ),
        (
            "leave a gap, overlap",
            Box::new(move |known| json!([file(known, json!({ "chunkSize": 400 })), chunk(i64::MAX as u64 >> 21, 600)])),
        ),
        (
            "it leads to itself",
            Box::new(
                |_| json!([{ "name": "a", "type": "hardlink", "linkName": "b" }, { "name": "b", "type": "hardlink", "linkName": "a" }]),
            ),
        ),
        (
            "not a directory",
            Box::new(
                move |known| json!([{ "name": "out", "type": "symlink", "linkName": "/etc" }, file(known, json!({ "name": "out/passwd" }))]),
            ),
        ),
        ("longer than 4095 bytes", change(json!({ "name": "d/".repeat(3000) }))),
    ];
    for (part, entries) in cases {
        let blob = odd(|known| entries(known));
        let source = Source::new(&blob);
        let refused = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await;
        let error = refused.map(|layer| layer.id()).unwrap_err().to_string();
        assert!(error.contains("cannot be lazy") && error.contains(part), "{part}: {error}");
        // Fetched first it is what the tar stream says.
        let layer = bench.engine.layer(source.layer(Lazy::Prefer), &Reporter::discard()).await.unwrap();
        layer.ready().await.unwrap();
        assert!(layer.eager_reason().unwrap().contains(part));
        assert_eq!(layer.verified(), Some(blob.diff_id));
    }
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_toc_that_is_too_large_is_refused() {
    let bench = Bench::new().await;
    // A few bytes that inflate to more than 150 MiB.
    let toc = format!(r#"{{"version":1,"entries":[]{}}}"#, " ".repeat(150 << 20));
    let bomb = assemble(b"", toc.as_bytes());
    drop(toc);
    assert!(bomb.bytes.len() < 2 << 20);
    let source = Source::new(&bomb);
    let refused = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await;
    let error = refused.map(|layer| layer.id()).unwrap_err().to_string();
    assert!(error.contains("exceeds the limit of 150 MiB"), "{error}");

    // A footer that says that the TOC is that long: nothing of it is asked for.
    let mut long = layer();
    let mut bytes = long.bytes.to_vec();
    let digits = bytes.len() - 13 - 6 - 16;
    bytes[digits..digits + 16].copy_from_slice(b"0000000000000001");
    let size = (151 << 20) + bytes.len() as u64;
    long.descriptor.size = size;
    let far = Far { tail: bytes.into(), size };
    let wanted = castor_layerfs::LayerSource { opener: Arc::new(far), ..Source::new(&long).layer(Lazy::Require) };
    let refused = bench.engine.layer(wanted, &Reporter::discard()).await;
    let error = refused.map(|layer| layer.id()).unwrap_err().to_string();
    assert!(error.contains("larger than 150 MiB"), "{error}");
    bench.engine.shutdown().await;
}

/// A large blob of which only the end exists.
struct Far {
    tail: Bytes,
    size: u64,
}

#[async_trait]
impl BlobOpener for Far {
    async fn range(&self, range: std::ops::Range<u64>, _: Priority) -> Result<RangeBody, FetchError> {
        assert_eq!(range.end, self.size, "the end alone is asked for");
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let length = bytes.len();
        let tail = &self.tail[self.tail.len().saturating_sub(length)..];
        bytes[length - tail.len()..].copy_from_slice(tail);
        let stream = futures::stream::iter([Ok(Bytes::from(bytes))]);
        Ok(RangeBody { range, full: false, stream: futures::StreamExt::boxed(stream) })
    }

    fn describe(&self) -> String {
        "far away".into()
    }
}
