//! Layers as the tools of the field make them, in images that builds stand on.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use castor_integration::build::Build;
use castor_integration::daemon::Daemon;
use castor_integration::scene::{STARGZ, Scene, base};
use castor_oci::{Descriptor, media_type};
use castor_testkit::{Form, ImageBuilder, Layer, Registry};
use serde_json::{Value, json};

/// castor-estargz's test data: what each tool makes of the same few files.
fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/estargz/testdata/good").join(name)
}

fn value(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn layer(name: &str) -> Layer {
    let dir = sample(name);
    let info = value(&dir.join("info.json"));
    Layer {
        descriptor: serde_json::from_value(value(&dir.join("descriptor.json"))).unwrap(),
        diff_id: info["diffID"].as_str().unwrap().parse().unwrap(),
        blob: fs::read(dir.join("blob")).unwrap().into(),
        tar: Default::default(),
    }
}

/// The digest of each file that the sample's layer has, hard links too.
fn files(name: &str) -> BTreeMap<String, String> {
    let tree: Vec<Value> = serde_json::from_value(value(&sample(name).join("tree.json"))).unwrap();
    let digest = |entry: &Value| {
        let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        Some((text("path")?, text("sha256")?))
    };
    tree.iter().filter_map(digest).collect()
}

/// An image with the layer on top of one that has a shell.
fn image(registry: &Registry, name: &str, layer: Layer) -> String {
    let below = base(Form::Estargz, &[]).unwrap();
    let builder = below.layers.into_iter().fold(ImageBuilder::new().env("PATH=/bin"), ImageBuilder::with);
    builder.with(layer).build().put(registry, &format!("{name}:1")).to_string()
}

/// Builds on each image, with each layer lazy, and compares all files of its layer with what they should be.
fn read_all(scene: &Scene, daemon: &Daemon, images: &[(&str, String)]) {
    let mut dockerfile = String::new();
    let mut last = String::from("FROM scratch\n");
    for (number, (name, reference)) in images.iter().enumerate() {
        let paths: Vec<String> = files(name).into_keys().map(|path| format!("'/{path}'")).collect();
        dockerfile += &format!("FROM {reference} AS s{number}\nRUN sha256sum {} > /sums\n", paths.join(" "));
        last += &format!("COPY --from=s{number} /sums /{name}\n");
    }
    let project = scene.project("project", &(dockerfile + &last)).unwrap();
    let out = scene.path("out");
    let build = Build::new(daemon, &project).opt("lazy", "require").local_output(&out);
    build.run().unwrap().success().unwrap();
    for (name, _) in images {
        let sums = fs::read_to_string(out.join(name)).unwrap();
        let found: BTreeMap<String, String> = sums
            .lines()
            .map(|line| line.split_once("  /").unwrap())
            .map(|(digest, path)| (path.to_owned(), digest.to_owned()))
            .collect();
        assert_eq!(found, files(name), "{name}");
    }
}

#[test]
fn privileged_layers_of_all_formats_are_lazy_in_builds() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
    let names = [
        "buildkit-conv-level0",
        "ctr-mini-64k-l0",
        "ctr-zstd-odd",
        "lib-min-many",
        "lib-mini-min",
        "podman-mini",
        "storage-mini",
    ];
    let images: Vec<_> = names.iter().map(|name| (*name, image(&registry, name, layer(name)))).collect();
    read_all(&scene, &daemon, &images);
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_toc_in_an_image_of_its_own_is_found() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
    let name = "lib-lossless-min-ext";
    let reference = image(&registry, name, layer(name));
    // Without it the layer is fetched first, and the user told where it was looked for.
    let project = scene.project("eager", &format!("FROM {reference}\nRUN true\n")).unwrap();
    let error = Build::new(&daemon, &project).opt("lazy", "require").run().unwrap().failure().unwrap();
    let place = format!("its TOC is in another blob: look for it in {}/{name}:1-esgztoc", registry.host());
    assert!(error.contains(&place), "{error}");

    let toc = registry.put_blob(name, media_type::OCI_LAYER_GZIP, fs::read(sample(name).join("toc")).unwrap());
    let digest = layer(name).descriptor.digest;
    let annotations = [("containerd.io/snapshot/stargz/layer.digest".to_owned(), digest.to_string())].into();
    let toc = Descriptor { annotations, ..toc };
    let config = registry.put_blob(name, media_type::OCI_CONFIG, "{}");
    let kind = media_type::OCI_MANIFEST;
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [toc] });
    registry.put_manifest(name, "1-esgztoc", kind, serde_json::to_vec(&manifest).unwrap());
    read_all(&scene, &daemon, &[(name, reference)]);
    daemon.stop().unwrap();
}

#[test]
fn privileged_layers_that_nothing_verifies_are_lazy_where_the_configuration_says_so() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let name = "crfs-mini";
    let reference = image(&registry, name, layer(name));
    let project = scene.project("refused", &format!("FROM {reference}\nRUN cat /z\n")).unwrap();
    let strict = scene.daemon("strict", [host.as_str()]).arg(STARGZ).start().unwrap();
    let error = Build::new(&strict, &project).opt("lazy", "require").run().unwrap().failure().unwrap();
    assert!(error.contains("it has no annotation of a TOC digest"), "{error}");
    strict.stop().unwrap();

    let table = "[worker.oci.stargzSnapshotter]\ndisable_verification = true\nmax_concurrency = 3";
    let trusting = scene.daemon("trusting", [host.as_str()]).arg(STARGZ).config(table).start().unwrap();
    read_all(&scene, &trusting, &[(name, reference)]);
    let log = trusting.log();
    assert!(log.contains("layer is used without being verified"), "{log}");
    assert!(log.contains("keys of no effect on castor: max_concurrency"), "{log}");
    trusting.stop().unwrap();
}
