//! Builds for several platforms at once. None of their steps needs a processor that is not here.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use castor_integration::build::Build;
use castor_integration::daemon::Daemon;
use castor_integration::programs;
use castor_integration::project::Project;
use castor_integration::scene::Scene;
use castor_oci::{Digest, ImageConfig, Index, Manifest, Platform, Reference, media_type};
use castor_testkit::{File, Form, ImageBuilder, Registry};
use serde_json::Value;

const BOTH: &str = "linux/amd64,linux/arm64";

/// An image for both platforms, with a file that tells which one it is.
fn base(registry: &Registry) -> Reference {
    let platform = |architecture: &str| Platform::new("linux", architecture, "");
    index(registry, ["amd64", "arm64"].map(|architecture| (platform(architecture), "architecture", architecture)))
}

/// An image for two platforms, with a file for each of them.
fn index(registry: &Registry, images: [(Platform, &str, &str); 2]) -> Reference {
    let manifests = images.map(|(platform, file, text)| {
        let image = ImageBuilder::new().platform(platform.clone()).layer(&[File::new(file, text)], Form::Gzip).build();
        image.put(registry, &format!("base:{text}"));
        let mut descriptor = registry.put_manifest("base", "", media_type::OCI_MANIFEST, image.manifest);
        descriptor.platform = Some(platform);
        descriptor
    });
    let index = Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX.into(),
        manifests: manifests.into(),
        annotations: BTreeMap::new(),
    };
    registry.put_manifest("base", "1", media_type::OCI_INDEX, serde_json::to_vec(&index).unwrap());
    registry.reference("base:1")
}

struct World {
    registry: Registry,
    daemon: Daemon,
    project: Project,
    scene: Scene,
}

impl World {
    fn new() -> Self {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let dockerfile = format!(
            "ARG SOURCE_DATE_EPOCH=1700000000\n\
             FROM --platform=$BUILDPLATFORM scratch AS native\n\
             ARG TARGETARCH\n\
             COPY data /$TARGETARCH\n\
             FROM {} AS result\n\
             ARG TARGETPLATFORM\n\
             ARG TARGETARCH\n\
             ENV PLATFORM=$TARGETPLATFORM\n\
             COPY --from=native /$TARGETARCH /data-of-$TARGETARCH\n",
            base(&registry)
        );
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
        let project = scene.project("project", &dockerfile).unwrap().file("data", "data\n").unwrap();
        Self { registry, daemon, project, scene }
    }

    fn build(&self) -> Build {
        Build::new(&self.daemon, &self.project).opt("platform", BOTH)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, target: &Digest) -> T {
        serde_json::from_slice(&self.registry.get_manifest("out", &target.to_string()).unwrap().1).unwrap()
    }
}

/// What a directory for each platform must hold.
fn check_split(out: &Path) {
    for architecture in ["amd64", "arm64"] {
        let directory = out.join(format!("linux_{architecture}"));
        assert_eq!(std::fs::read_to_string(directory.join("architecture")).unwrap(), architecture);
        assert_eq!(std::fs::read_to_string(directory.join(format!("data-of-{architecture}"))).unwrap(), "data\n");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2, "{}", directory.display());
    }
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 2);
}

#[test]
fn privileged_an_index_has_an_image_and_a_statement_for_each_platform() {
    let world = World::new();
    let output = format!("type=image,name={}/out:1,push=true", world.registry.host());
    let outcome = world.build().opt("attest:provenance", "").output(output).run().unwrap().success().unwrap();
    for line in [
        "[linux/arm64 internal] load metadata for ",
        "[linux/arm64 result 1/2] FROM ",
        "[linux/amd64 result 2/2] COPY --from=native /amd64 /data-of-amd64",
        "[linux/arm64 result 2/2] COPY --from=native /arm64 /data-of-arm64",
        "exporting manifest list sha256:",
        "exporting attestation manifest sha256:",
    ] {
        assert!(outcome.stderr.contains(line), "{line:?} is missing:\n{}", outcome.stderr);
    }
    let (kind, bytes) = world.registry.get_manifest("out", "1").unwrap();
    assert_eq!(kind, media_type::OCI_INDEX);
    let index: Index = serde_json::from_slice(&bytes).unwrap();
    let seen: Vec<String> = index.manifests.iter().map(|one| one.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(seen, ["linux/amd64", "linux/arm64", "unknown/unknown", "unknown/unknown"]);
    let (images, statements) = index.manifests.split_at(2);
    for (image, statement) in images.iter().zip(statements) {
        let platform = image.platform.as_ref().unwrap();
        let manifest: Manifest = world.read(&image.digest);
        let config = world.registry.get_blob("out", &manifest.config.digest).unwrap();
        let config: ImageConfig = serde_json::from_slice(&config).unwrap();
        assert_eq!(&config.platform, platform);
        assert!(config.config.env.contains(&format!("PLATFORM={platform}")), "{:?}", config.config.env);
        assert_eq!((manifest.layers.len(), config.rootfs.diff_ids.len()), (2, 2));
        // The time that the file names holds for each of the images.
        assert!(config.history.iter().all(|line| line.created.as_deref() <= Some("2023-11-14T22:13:20Z")));
        assert_eq!(config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
        // The statement is about this image and says so.
        assert_eq!(statement.annotations["vnd.docker.reference.type"], "attestation-manifest");
        assert_eq!(statement.annotations["vnd.docker.reference.digest"], image.digest.to_string());
        let attested: Manifest = world.read(&statement.digest);
        let [layer] = attested.layers.as_slice() else { panic!("{attested:?}") };
        let text = world.registry.get_blob("out", &layer.digest).unwrap();
        let text: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(text["subject"][0]["digest"]["sha256"], image.digest.hex());
        let purl = text["subject"][0]["name"].as_str().unwrap();
        assert!(purl.ends_with(&format!("platform=linux%2F{}", platform.architecture)), "{purl}");
    }
    // One platform alone is an image and no index.
    let output = format!("type=image,name={}/out:2,push=true", world.registry.host());
    let one = Build::new(&world.daemon, &world.project).opt("platform", "linux/arm64").output(output);
    let outcome = one.run().unwrap().success().unwrap();
    assert!(outcome.stderr.contains("[result 2/2] COPY"), "{}", outcome.stderr);
    let (kind, bytes) = world.registry.get_manifest("out", "2").unwrap();
    assert_eq!(kind, media_type::OCI_MANIFEST);
    let (manifest, image): (Manifest, Manifest) =
        (serde_json::from_slice(&bytes).unwrap(), world.read(&images[1].digest));
    assert_eq!(manifest.layers, image.layers);
    world.daemon.stop().unwrap();
}

#[test]
fn privileged_files_come_out_by_platform() {
    let world = World::new();
    let out = world.scene.path("out");
    world.build().local_output(&out).run().unwrap().success().unwrap();
    check_split(&out);
    // What is there already goes only where that is asked for.
    std::fs::write(out.join("linux_arm64/old"), "").unwrap();
    let delete = format!("type=local,dest={},mode=delete", out.display());
    world.build().output(delete).run().unwrap().success().unwrap();
    check_split(&out);

    let tar = world.scene.path("out.tar");
    world.build().output(format!("type=tar,dest={}", tar.display())).run().unwrap().success().unwrap();
    let unpacked = world.scene.path("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let tar_program = programs::installed("tar", "tar").unwrap();
    programs::run(&tar_program, ["-xf".as_ref(), tar.as_os_str(), "-C".as_ref(), unpacked.as_os_str()]).unwrap();
    check_split(&unpacked);

    // Without directories they must not be in each other's way.
    let flat = world.scene.path("flat");
    let build = world.build().output(format!("type=local,dest={},platform-split=false", flat.display()));
    let error = build.run().unwrap().failure().unwrap();
    let message = "cannot overwrite architecture from linux/amd64 with linux/arm64 when split option is disabled";
    assert!(error.contains(message), "{error}");
    world.daemon.stop().unwrap();
}

#[test]
fn privileged_versions_of_a_system_are_platforms_of_their_own() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let platform = |version: &str| Platform { os_version: version.into(), ..Platform::new("windows", "amd64", "") };
    let base = index(&registry, ["10.0.1", "10.0.2"].map(|version| (platform(version), "version", version)));
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!("FROM {base}\nARG TARGETOSVERSION\nCOPY <<END /asked\n${{TARGETOSVERSION}}\nEND\n");
    let project = scene.project("project", &dockerfile).unwrap();
    for version in ["10.0.1", "10.0.2"] {
        let out = scene.path(version);
        let build = Build::new(&daemon, &project).opt("platform", &format!("windows({version})/amd64"));
        build.local_output(&out).run().unwrap().success().unwrap();
        assert_eq!(std::fs::read_to_string(out.join("version")).unwrap(), version);
        assert_eq!(std::fs::read_to_string(out.join("asked")).unwrap(), format!("{version}\n"));
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_archives_hold_all_platforms_or_refuse_to() {
    let world = World::new();
    let layout = world.scene.path("layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    world.build().output(output).run().unwrap().success().unwrap();
    let read = |path: &str| std::fs::read(layout.join(path)).unwrap();
    let blob = |digest: &Digest| read(&format!("blobs/sha256/{}", digest.hex()));
    let top: Index = serde_json::from_slice(&read("index.json")).unwrap();
    assert_eq!(top.manifests[0].media_type, media_type::OCI_INDEX);
    let index: Index = serde_json::from_slice(&blob(&top.manifests[0].digest)).unwrap();
    assert_eq!(index.manifests.len(), 2);
    for image in &index.manifests {
        let manifest: Manifest = serde_json::from_slice(&blob(&image.digest)).unwrap();
        for part in manifest.layers.iter().chain([&manifest.config]) {
            assert_eq!(Digest::of(blob(&part.digest)), part.digest);
        }
    }
    let docker = format!("type=docker,dest={}", world.scene.path("docker.tar").display());
    let error = world.build().output(docker).run().unwrap().failure().unwrap();
    assert!(error.contains("docker exporter does not currently support exporting manifest lists"), "{error}");
    world.daemon.stop().unwrap();
}
