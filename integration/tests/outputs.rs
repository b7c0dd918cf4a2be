//! What comes out of a build: directories, archives, images.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use castor_integration::build::Build;
use castor_integration::hello;
use castor_integration::programs;
use castor_integration::scene::{STARGZ, Scene, base, layer_bytes, noise};
use castor_oci::{ANNOTATION_TOC_DIGEST, ANNOTATION_UNCOMPRESSED_SIZE, Digest, ImageConfig, Manifest};
use castor_testkit::{File, FileKind, Form, RealRegistry, Registry};

fn manifest(registry: &Registry, path: &str, tag: &str) -> Manifest {
    serde_json::from_slice(&registry.get_manifest(path, tag).unwrap().1).unwrap()
}

#[test]
fn privileged_files_come_out_as_they_are() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!(
        "FROM {reference} AS b\nRUN mkdir /o /o/d && echo text > /o/d/file && chmod 640 /o/d/file && ln /o/d/file /o/hard \
         && ln -s d/file /o/soft && touch /o/empty && chown 1000:1001 /o/empty && touch -d '2001-02-03 04:05:06' /o/d\n\
         FROM scratch\nCOPY --from=b /o /\n"
    );
    let project = scene.project("project", &dockerfile).unwrap();
    let out = scene.path("out");
    Build::new(&daemon, &project).local_output(&out).run().unwrap().success().unwrap();
    assert_eq!(std::fs::read(out.join("d/file")).unwrap(), b"text\n");
    assert_eq!(out.join("d/file").metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(std::fs::read_link(out.join("soft")).unwrap().to_str(), Some("d/file"));
    assert_eq!(out.join("hard").metadata().unwrap().ino(), out.join("d/file").metadata().unwrap().ino());
    assert_eq!(out.join("empty").metadata().unwrap().len(), 0);
    assert_eq!(out.join("d").metadata().unwrap().mtime(), 981_173_106);

    let tar = scene.path("out.tar");
    Build::new(&daemon, &project).output(format!("type=tar,dest={}", tar.display())).run().unwrap().success().unwrap();
    let listed =
        programs::run("tar", ["-tvf", tar.to_str().unwrap(), "--numeric-owner", "--utc", "--full-time"]).unwrap();
    for part in ["1000/1001", "soft -> d/file", "link to", "-rw-r-----", "2001-02-03 04:05:06 d/"] {
        assert!(listed.contains(part), "{part:?} is missing:\n{listed}");
    }
    // The archive on standard output is the same.
    let stdout = Build::new(&daemon, &project).output("type=tar,dest=-").spawn().unwrap().wait_with_output().unwrap();
    assert!(stdout.status.success(), "{}", String::from_utf8_lossy(&stdout.stderr));
    assert_eq!(Digest::of(&stdout.stdout), Digest::of(std::fs::read(&tar).unwrap()));
    daemon.stop().unwrap();
}

/// Entries of all kinds that a layer can have.
fn odd_files() -> Vec<File> {
    vec![
        File::dir("d").mode(0o1750).owner(3, 4),
        File::new("d/hard", "one inode"),
        File::hardlink("d/link", "d/hard"),
        File::new("d/empty", ""),
        File::new(&format!("d/{}", "long".repeat(50)), "long name"),
        File::symlink("d/long-target", &"t".repeat(200)),
        File::new("d/suid", "x").mode(0o4755).owner(1000, 1001),
        File::new("d/attributes", "x").xattr("user.castor", "yes").xattr("user.empty", ""),
        File::special("d/null", FileKind::Char(1, 3)),
        File::special("d/loop", FileKind::Block(7, 0)),
        File::special("d/pipe", FileKind::Fifo),
        File::new("d/chunks", noise(2, 9 << 20)),
    ]
}

const LIST: &str = "cd /d && find . -mindepth 1 | sort | xargs stat -c '%n %A %u:%g %s %h %t %T %Y' && readlink long-target \
                    && sha256sum chunks hard link longlong* attributes empty";

#[test]
fn privileged_a_pushed_estargz_image_is_whole_and_lazy() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let source = base(Form::Gzip, &odd_files()).unwrap();
    let reference = source.put(&registry, "base:1");
    let daemon = scene.daemon("eager", [host.as_str()]).start().unwrap();
    let project = scene
        .project("project", &format!("FROM {reference}\nRUN echo made > /made && rm /d/suid && mknod /zero c 1 5\n"))
        .unwrap();
    let metadata = scene.path("metadata.json");
    let output = format!(
        "type=image,\"name={host}/made:1,{host}/second:2\",push=true,compression=estargz,oci-mediatypes=true,force-compression=true"
    );
    let build = Build::new(&daemon, &project).output(output).arg("--metadata-file").arg(&metadata);
    build.run().unwrap().success().unwrap();

    let pushed = manifest(&registry, "made", "1");
    assert_eq!(pushed.layers.len(), 3);
    let config: ImageConfig =
        serde_json::from_slice(&registry.get_blob("made", &pushed.config.digest).unwrap()).unwrap();
    for (layer, diff_id) in pushed.layers.iter().zip(&config.rootfs.diff_ids) {
        assert!(layer.annotations.contains_key(ANNOTATION_TOC_DIGEST), "{layer:?}");
        let blob = registry.get_blob("made", &layer.digest).unwrap();
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&blob[..]), &mut tar).unwrap();
        assert_eq!(Digest::of(&tar), *diff_id, "the tar of {}", layer.digest);
        assert_eq!(layer.annotations[ANNOTATION_UNCOMPRESSED_SIZE], tar.len().to_string());
    }
    assert_eq!(registry.get_manifest("second", "2").unwrap().1, registry.get_manifest("made", "1").unwrap().1);
    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    let digest = Digest::of(&registry.get_manifest("made", "1").unwrap().1);
    assert_eq!(metadata["containerimage.digest"], digest.to_string());
    assert_eq!(metadata["image.name"], format!("{host}/made:1,{host}/second:2"));

    // What a lazy daemon sees of the image is what the eager one sees of its source.
    let list = |daemon: &castor_integration::daemon::Daemon, name: &str, from: &str, lazy: &str| {
        let dockerfile =
            format!("FROM {from} AS b\nRUN rm -f /d/suid && ({LIST}) > /list\nFROM scratch\nCOPY --from=b /list /\n");
        let out = scene.path(&format!("out-{name}"));
        let build = Build::new(daemon, &scene.project(name, &dockerfile).unwrap()).opt("lazy", lazy).local_output(&out);
        build.run().unwrap().success().unwrap();
        std::fs::read_to_string(out.join("list")).unwrap()
    };
    let eager = list(&daemon, "a", &reference.to_string(), "never");
    daemon.stop().unwrap();
    let lazy = scene.daemon("lazy", [host.as_str()]).arg(STARGZ).start().unwrap();
    assert_eq!(list(&lazy, "b", &format!("{host}/made:1"), "require"), eager);
    lazy.stop().unwrap();
}

#[test]
fn privileged_an_image_with_cut_times_is_the_one_that_buildkit_makes() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).start().unwrap();
    let context = scene.path("context");
    std::fs::create_dir_all(context.join("dir")).unwrap();
    let mode = |name: &str, mode: u32| {
        std::fs::set_permissions(context.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::write(context.join("a.txt"), "a\n").unwrap();
    std::fs::write(context.join("dir/x"), "x\n").unwrap();
    std::os::unix::fs::symlink("x", context.join("dir/l")).unwrap();
    mode("dir", 0o755);
    mode("a.txt", 0o644);
    mode("dir/x", 0o600);
    let project = scene.project("project", "FROM scratch\nCOPY a.txt dir /o/\nENV A=1\n").unwrap();
    let built = |tag: &str, more: &str| {
        let output = format!("type=image,name={host}/pushed:{tag},push=true,rewrite-timestamp=true,{more}");
        let build = Build::at(&daemon, &context, project.path()).opt("build-arg:SOURCE_DATE_EPOCH", "1700000000");
        build.arg("--no-cache").output(output).run().unwrap().success().unwrap()
    };
    let plain = "compression=uncompressed,force-compression=true";
    let first = built("1", plain);
    let line = "rewriting layers with source-date-epoch 1700000000 (2023-11-14 22:13:20 +0000 UTC)";
    assert!(first.stderr.contains(line), "{}", first.stderr);
    // The digests are those of BuildKit's image of the same (golden case exporter/image-push).
    let layer = "sha256:b01d04ee7ea416e79c188168c7841d443fc516658bb43e1dd569cb9a9fbbc778";
    let pushed = manifest(&registry, "pushed", "1");
    assert_eq!(pushed.layers[0].digest.to_string(), layer, "{pushed:?}");
    let digest = Digest::of(&registry.get_manifest("pushed", "1").unwrap().1);
    assert_eq!(digest.to_string(), "sha256:50a1a677d51114c3d17363b8645bfa4008e43b652a779a8e71d1878afd5b3867");
    // Made again, later, it is the same.
    built("2", plain);
    assert_eq!(registry.get_manifest("pushed", "2").unwrap(), registry.get_manifest("pushed", "1").unwrap());
    for form in ["gzip", "estargz", "zstd"] {
        let more = format!("compression={form},force-compression=true,oci-mediatypes=true");
        for tag in ["a", "b"] {
            built(&format!("{form}-{tag}"), &more);
        }
        let tagged = |tag: &str| registry.get_manifest("pushed", &format!("{form}-{tag}")).unwrap();
        assert_eq!(tagged("a"), tagged("b"), "{form}");
    }
    // The base image's layers are its own.
    let base = base(Form::Gzip, &[]).unwrap();
    let reference = base.put(&registry, "base:1");
    let child = scene.project("child", &format!("FROM {reference}\nCOPY a.txt /\n")).unwrap();
    let output = format!("type=image,name={host}/child:1,push=true,rewrite-timestamp=true,source-date-epoch=1");
    Build::at(&daemon, &context, child.path()).output(output).run().unwrap().success().unwrap();
    let pushed = manifest(&registry, "child", "1");
    assert_eq!(pushed.layers[0].digest, base.layers[0].descriptor.digest);
    assert_eq!(pushed.layers[1].annotations["buildkit/rewritten-timestamp"], "1");
    daemon.stop().unwrap();
}

#[test]
fn privileged_estargz_and_docker_media_types_exclude_each_other() {
    let scene = Scene::new().unwrap();
    let daemon = scene.daemon("daemon", []).start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let output = "type=image,name=localhost:1/x,compression=estargz,oci-mediatypes=false";
    let error = Build::new(&daemon, &project).output(output).run().unwrap().failure().unwrap();
    assert!(error.contains("compression=estargz") && error.contains("oci-mediatypes=false"), "{error}");
    daemon.stop().unwrap();
}

#[test]
fn privileged_what_is_not_here_yet_is_refused_by_name() {
    let scene = Scene::new().unwrap();
    let daemon = scene.daemon("daemon", []).start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let build = Build::new(&daemon, &project);
    let refused = [(build.clone().output("type=made-up"), "made-up"), (build.clone().opt("attest:vibes", ""), "vibes")];
    for (build, name) in refused {
        let error = build.run().unwrap().failure().unwrap();
        assert!(error.contains(name), "{name} is not named: {error}");
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_base_that_the_registry_has_is_not_fetched_to_push_on_it() {
    for form in [Form::Estargz, Form::Gzip] {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let host = registry.host();
        let image = base(form, &[File::new("big", noise(7, 4 << 20))]).unwrap();
        let reference = image.put(&registry, "base:1");
        let daemon = scene.daemon("daemon", [host.as_str()]).arg(STARGZ).start().unwrap();
        let project = scene.project("project", &format!("FROM {reference}\nCOPY data /data\nENV A=b\n")).unwrap();
        let project = project.file("data", "data").unwrap();
        registry.clear_log();
        let build = Build::new(&daemon, &project);
        build.clone().output(format!("type=image,name={host}/base:2,push=true")).run().unwrap().success().unwrap();
        let whole: u64 = image.layers.iter().map(|layer| layer.descriptor.size).sum();
        let fetched = layer_bytes(&registry, &image);
        if form == Form::Estargz {
            assert!(fetched < whole / 4, "fetched {fetched} of {whole}");
        }
        // Another repository of the same registry: mounted there, not uploaded.
        registry.clear_log();
        build.output(format!("type=image,name={host}/other:1,push=true")).run().unwrap().success().unwrap();
        assert!(layer_bytes(&registry, &image) <= whole / 4);
        for layer in &image.layers {
            assert!(registry.get_blob("other", &layer.descriptor.digest).is_some(), "{}", layer.descriptor.digest);
        }
        let uploaded = registry.log_of("/blobs/uploads/");
        assert!(uploaded.iter().any(|request| request.query.contains("mount=")), "{uploaded:#?}");
        // Only metadata on it: no layer byte at all.
        let metadata = scene.project("metadata", &format!("FROM {reference}\nENV C=d\n")).unwrap();
        let fresh = scene.daemon("fresh", [host.as_str()]).start().unwrap();
        registry.clear_log();
        let output = format!("type=image,name={host}/third:1,push=true");
        Build::new(&fresh, &metadata).output(output).run().unwrap().success().unwrap();
        assert_eq!(layer_bytes(&registry, &image), 0, "{:#?}", registry.log());
        fresh.stop().unwrap();
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_the_real_registry_takes_what_is_pushed() {
    let scene = Scene::new().unwrap();
    let registry = RealRegistry::start();
    let host = registry.host();
    let reference = scene.wait(base(Form::Gzip, &[]).unwrap().push(host, "base:1"));
    let daemon = scene.daemon("daemon", [host]).start().unwrap();
    let project = scene.project("project", &format!("FROM {reference}\nRUN echo 1 > /one\n")).unwrap();
    for (compression, toc) in [("gzip", false), ("estargz", true)] {
        let output = format!(
            "type=image,name={host}/{compression}:1,push=true,compression={compression},oci-mediatypes=true,force-compression=true"
        );
        Build::new(&daemon, &project).output(output).run().unwrap().success().unwrap();
        let facts = hello::facts(host, compression, "1").unwrap();
        assert_eq!(facts.layers, 2);
        assert!(facts.tocs.iter().all(|digest| digest.is_some() == toc), "{facts:?}");
    }
    daemon.stop().unwrap();
}
