//! Lazy layers, and what happens where a layer cannot be one.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::daemon::{Daemon, Options};
use castor_integration::hello;
use castor_integration::project::Project;
use castor_integration::scene::{STARGZ, Scene, base, layer_bytes, noise, plain_hosts};
use castor_oci::{ANNOTATION_TOC_DIGEST, Digest};
use castor_testkit::{Fault, File, Form, Image, ImageBuilder, Layer, On, RealRegistry, Registry};
use http::Method;

/// The most that the hello build may fetch of the base image, in percent.
const MOST: u64 = 20;

#[test]
fn privileged_hello_fetches_a_fifth_of_its_base_at_most() {
    let scene = Scene::new().unwrap();
    let root = hello::root_filesystem().unwrap();
    let registry = RealRegistry::start();
    let maker = scene.daemon("maker", [registry.host()]).start().unwrap();
    hello::push_base(&maker, &root, &scene.path(""), &format!("{}/go-base:1", registry.host())).unwrap();
    maker.stop().unwrap();
    let image = hello::facts(registry.host(), "go-base", "1").unwrap();
    assert_eq!(image.layers, 1);
    assert!(image.tocs[0].is_some(), "no TOC digest: {image:?}");

    let relay = scene.relay(registry.addr());
    let host = relay.host();
    let daemon = scene.daemon("lazy", [host.as_str()]).arg(STARGZ).start().unwrap();
    let project = hello::project(&scene.path("hello"), &format!("{host}/go-base:1")).unwrap();
    let out = scene.path("out");
    let build = Build::new(&daemon, &project).opt("lazy", "require").local_output(&out);
    let built = build.run().unwrap().success().unwrap();
    hello::greet(&out).unwrap();
    let fetched = relay.bytes_down();
    println!("fetched {fetched} of {} in {} requests", image.compressed, relay.requests());
    assert!(fetched * 100 <= image.compressed * MOST, "fetched {fetched} of {} bytes", image.compressed);
    assert!(built.stderr.contains("lazy"), "no word of a lazy layer:\n{}", built.stderr);
    daemon.stop().unwrap();
}

/// A base with a second layer of which a build reads a little.
fn big(form: Form) -> Image {
    base(form, &[File::new("small", "small\n"), File::new("big", noise(1, 6 << 20)), File::new("tail", "tail\n")])
        .unwrap()
}

struct Lazy {
    registry: Registry,
    daemon: Daemon,
    scene: Scene,
}

impl Lazy {
    fn new() -> Self {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
        Self { registry, daemon, scene }
    }

    /// A project that runs `command` on `image`.
    fn run_on(&self, image: &Image, command: &str) -> Project {
        let reference = image.put(&self.registry, "base:1");
        self.registry.clear_log();
        self.scene.project("project", &format!("FROM {reference}\nRUN {command}\n")).unwrap()
    }

    fn build(&self, project: &Project) -> Build {
        Build::new(&self.daemon, project)
    }
}

#[test]
fn privileged_what_is_not_read_is_not_fetched() {
    let lazy = Lazy::new();
    let image = big(Form::Estargz);
    let project = lazy.run_on(&image, "cat /small && stat /big && ls -l /");
    let built = lazy.build(&project).opt("lazy", "require").run().unwrap().success().unwrap();
    let second = &image.layers[1];
    let fetched: u64 =
        lazy.registry.log_of(&second.descriptor.digest.to_string()).iter().map(|request| request.bytes).sum();
    assert!(fetched < second.descriptor.size / 4, "fetched {fetched} of {}", second.descriptor.size);
    assert!(built.stderr.contains(&format!("layer {} lazy", second.descriptor.digest)), "{}", built.stderr);
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_what_is_read_is_right() {
    let lazy = Lazy::new();
    let image = big(Form::Estargz);
    let expected = Digest::of(noise(1, 6 << 20)).hex();
    let project = lazy.run_on(&image, "sha256sum /big");
    let built = lazy.build(&project).opt("lazy", "require").run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&expected), "{}", built.stderr);
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_a_stage_of_metadata_fetches_no_layer_byte() {
    for argument in [STARGZ, "--oci-worker-snapshotter=overlayfs"] {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(argument).start().unwrap();
        let image = big(Form::Estargz);
        let reference = image.put(&registry, "base:1");
        let project = scene
            .project("project", &format!("FROM {reference}\nENV A=b\nLABEL c=d\nUSER 7\nCMD [\"true\"]\n"))
            .unwrap();
        Build::new(&daemon, &project).run().unwrap().success().unwrap();
        assert_eq!(layer_bytes(&registry, &image), 0, "{argument}: {:#?}", registry.log());
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_a_layer_without_a_toc_annotation_is_eager() {
    let lazy = Lazy::new();
    let image = big(Form::Gzip);
    let project = lazy.run_on(&image, "cat /small");
    let built = lazy.build(&project).run().unwrap().success().unwrap();
    assert!(built.stderr.contains("eager: it has no annotation of a TOC digest"), "{}", built.stderr);
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_with_require_a_fallback_is_an_error() {
    let lazy = Lazy::new();
    let image = big(Form::Gzip);
    let project = lazy.run_on(&image, "cat /small");
    let error = lazy.build(&project).opt("lazy", "require").run().unwrap().failure().unwrap();
    assert!(error.contains("cannot be lazy"), "{error}");
    assert!(error.contains("it has no annotation of a TOC digest"), "{error}");
    lazy.daemon.stop().unwrap();

    let strict = Options::new(lazy.scene.path("strict")).arg(STARGZ).config("[worker.oci]\nlazy = \"require\"");
    let strict = plain_hosts(strict, [lazy.registry.host().as_str()]).start().unwrap();
    let error = Build::new(&strict, &project).run().unwrap().failure().unwrap();
    assert!(error.contains("it has no annotation of a TOC digest"), "{error}");
    strict.stop().unwrap();
}

/// The image with another digest for its second layer's TOC.
fn lying(mut image: Image) -> Image {
    let mut layers: Vec<Layer> = image.layers.drain(..).collect();
    let annotations = &mut layers[1].descriptor.annotations;
    annotations.insert(ANNOTATION_TOC_DIGEST.into(), Digest::of("another").to_string());
    let builder = ImageBuilder::new().env("PATH=/bin");
    layers.into_iter().fold(builder, ImageBuilder::with).build()
}

#[test]
fn privileged_a_wrong_toc_digest_makes_a_layer_eager_with_a_warning() {
    let lazy = Lazy::new();
    let image = lying(big(Form::Estargz));
    let project = lazy.run_on(&image, "cat /small");
    let built = lazy.build(&project).run().unwrap().success().unwrap();
    assert!(built.stderr.contains("eager: "), "{}", built.stderr);
    assert!(built.stderr.to_lowercase().contains("warn"), "{}", built.stderr);
    assert!(layer_bytes(&lazy.registry, &image) >= image.layers[1].descriptor.size);
    let error = lazy.build(&project).opt("lazy", "require").arg("--no-cache").run().unwrap().failure().unwrap();
    assert!(error.contains("cannot be lazy"), "{error}");
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_a_corrupt_chunk_fails_the_step_and_says_where() {
    let lazy = Lazy::new();
    let image = big(Form::Estargz);
    let layer = image.layers[1].descriptor.digest;
    let project = lazy.run_on(&image, "cat /small && cat /big > /dev/null");
    // Noise does not compress: the middle of the blob is the middle of the big file.
    let middle = image.layers[1].descriptor.size / 2;
    lazy.registry.fault(On::new(Method::GET, layer.to_string()), Fault::Corrupt(middle));
    let error = lazy.build(&project).opt("lazy", "require").run().unwrap().failure().unwrap();
    for part in [&format!("{}/base:1", lazy.registry.host()), &layer.to_string(), "big"] {
        assert!(error.contains(part), "{part} is not named:\n{error}");
    }
    // The next build finds a registry that is well again.
    lazy.registry.heal();
    lazy.build(&project).opt("lazy", "require").run().unwrap().success().unwrap();
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_a_chunk_that_was_corrupt_once_is_fetched_again() {
    let lazy = Lazy::new();
    let image = big(Form::Estargz);
    let layer = image.layers[1].descriptor.digest;
    let project = lazy.run_on(&image, "sha256sum /big");
    let middle = image.layers[1].descriptor.size / 2;
    // The first request is for the end, where the TOC is.
    lazy.registry.fault(On::new(Method::GET, layer.to_string()).skip(1).times(1), Fault::Corrupt(middle));
    let built = lazy.build(&project).opt("lazy", "require").run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&Digest::of(noise(1, 6 << 20)).hex()), "{}", built.stderr);
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_an_answer_with_all_is_the_eager_download() {
    let lazy = Lazy::new();
    let image = big(Form::Estargz);
    let project = lazy.run_on(&image, "cat /small && sha256sum /big");
    lazy.registry.fault(On::new(Method::GET, "/blobs/"), Fault::IgnoreRange);
    let built = lazy.build(&project).run().unwrap().success().unwrap();
    assert!(built.stderr.contains("does not serve ranges"), "{}", built.stderr);
    for layer in &image.layers {
        let asked = lazy.registry.log_of(&layer.descriptor.digest.to_string());
        assert_eq!(asked.len(), 1, "the first answer had it all: {asked:#?}");
    }
    lazy.daemon.stop().unwrap();
}

#[test]
fn privileged_the_other_snapshotters_are_eager() {
    for name in ["auto", "overlayfs", "native"] {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let image = big(Form::Estargz);
        let reference = image.put(&registry, "base:1");
        let options = scene.daemon("daemon", [registry.host().as_str()]);
        let daemon = options.arg(format!("--oci-worker-snapshotter={name}")).start().unwrap();
        let project = scene.project("project", &format!("FROM {reference}\nRUN cat /small\n")).unwrap();
        Build::new(&daemon, &project).run().unwrap().success().unwrap();
        let whole: u64 = image.layers.iter().map(|layer| layer.descriptor.size).sum();
        assert!(layer_bytes(&registry, &image) >= whole, "{name} fetched a part only");
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_layers_of_all_kinds_of_files_read_alike_lazily_and_eagerly() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let files = [
        File::dir("d").mode(0o1755),
        File::new("d/hard", "one inode"),
        File::hardlink("d/link", "d/hard"),
        File::new("d/empty", ""),
        File::new(&format!("d/{}", "long".repeat(40)), "long name"),
        File::new("d/suid", "x").mode(0o4755).owner(1000, 1001),
        File::new("d/attributes", "x").xattr("user.castor", "yes"),
        File::special("d/null", castor_testkit::FileKind::Char(1, 3)),
        File::special("d/pipe", castor_testkit::FileKind::Fifo),
        File::symlink("d/up", "../bin/sh"),
        File::new("d/chunks", noise(2, 300_000)),
    ];
    let image = base(Form::Estargz, &files).unwrap();
    let reference = image.put(&registry, "base:1");
    let project = scene
        .project(
            "project",
            &format!(
                "FROM {reference} AS b\nRUN cd /d && find . | sort | xargs stat -c '%n %A %u:%g %s %h %t %T %Y' > /list \
                 && sha256sum chunks hard long* suid >> /list\nFROM scratch\nCOPY --from=b /list /\n"
            ),
        )
        .unwrap();
    let mut lists = Vec::new();
    for argument in [STARGZ, "--oci-worker-snapshotter=overlayfs"] {
        let options = scene.daemon(argument.rsplit('=').next().unwrap(), [registry.host().as_str()]).arg(argument);
        let daemon = options.start().unwrap();
        let out = scene.path("out");
        Build::new(&daemon, &project).local_output(&out).run().unwrap().success().unwrap();
        lists.push(std::fs::read_to_string(out.join("list")).unwrap());
        daemon.stop().unwrap();
    }
    assert_eq!(lists[0], lists[1]);
    assert!(lists[0].contains("./link") && lists[0].contains("./null"), "{}", lists[0]);
}
