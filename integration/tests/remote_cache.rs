//! What one daemon knows, another finds in a registry or in an image.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::scene::{STARGZ, Scene, base, busybox, claiming, noise};
use castor_oci::Manifest;
use castor_testkit::{File, Form, Layer};

/// Whether the step whose name contains `part` came from a cache, according to plain progress.
fn is_cached(stderr: &str, part: &str) -> bool {
    let numbered =
        |line: &str| line.strip_prefix('#')?.split_once(' ').map(|(n, rest)| (n.to_owned(), rest.to_owned()));
    let lines: Vec<(String, String)> = stderr.lines().filter_map(numbered).collect();
    let named: Vec<_> = lines.iter().filter(|(_, rest)| rest.starts_with('[') && rest.contains(part)).collect();
    assert!(!named.is_empty(), "no step {part:?}:\n{stderr}");
    named.iter().all(|(number, _)| lines.iter().any(|(other, rest)| other == number && rest == "CACHED"))
}

#[test]
fn privileged_a_cache_in_a_registry_serves_another_daemon_and_is_passed_on() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let dockerfile = format!(
        "FROM {reference} AS tool\nRUN echo tool > /tool\n\
         FROM {reference}\nCOPY a /a\nRUN echo one > /one\nCOPY --from=tool /tool /tool\nARG LAST=x\nRUN echo $LAST > /last\n"
    );
    let project = scene.project("project", &dockerfile).unwrap().file("a", "a").unwrap();
    let (cache, next) = (format!("type=registry,ref={host}/cache:1"), format!("type=registry,ref={host}/next:1"));

    let daemon = scene.daemon("first", [host.as_str()]).start().unwrap();
    let first = Build::new(&daemon, &project).arg("--export-cache").arg(format!("{cache},mode=max"));
    let first = first.run().unwrap().success().unwrap();
    assert!(first.stderr.contains("exporting cache to registry"), "{}", first.stderr);
    assert!(first.stderr.contains("writing cache image manifest sha256:"), "{}", first.stderr);
    daemon.stop().unwrap();
    let manifest: Manifest = serde_json::from_slice(&registry.get_manifest("cache", "1").unwrap().1).unwrap();
    assert_eq!(manifest.config.media_type, "application/vnd.buildkit.cacheconfig.v0");
    assert!(manifest.layers.iter().all(|layer| layer.annotations.contains_key("containerd.io/uncompressed")));

    // Nothing is run, and nothing that is not wanted is fetched; what was imported is exported again.
    let daemon = scene.daemon("second", [host.as_str()]).start().unwrap();
    let second = Build::new(&daemon, &project).arg("--import-cache").arg(&cache);
    let second = second.arg("--export-cache").arg(format!("{next},mode=max")).run().unwrap().success().unwrap();
    for step in ["RUN echo one", "COPY --from=tool", "> /last"] {
        assert!(is_cached(&second.stderr, step), "{step}:\n{}", second.stderr);
    }
    assert!(second.stderr.contains(&format!("importing cache manifest from {host}/cache:1")), "{}", second.stderr);
    daemon.stop().unwrap();

    // A change of the last step: all below it comes from what was passed on, and the image is right.
    let daemon = scene.daemon("third", [host.as_str()]).start().unwrap();
    let out = scene.path("out");
    let third = Build::new(&daemon, &project).arg("--import-cache").arg(&next).opt("build-arg:LAST", "y");
    let third = third.local_output(&out).run().unwrap().success().unwrap();
    // The step below the one that runs shows its layers coming, so it is not among these.
    for step in ["COPY a /a", "RUN echo one", "RUN echo tool"] {
        assert!(is_cached(&third.stderr, step), "{step}:\n{}", third.stderr);
    }
    assert!(!is_cached(&third.stderr, "> /last"), "{}", third.stderr);
    for (file, content) in [("a", "a"), ("one", "one\n"), ("tool", "tool\n"), ("last", "y\n")] {
        assert_eq!(std::fs::read_to_string(out.join(file)).unwrap(), content);
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_an_image_carries_its_cache() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let dockerfile = format!("FROM {reference}\nCOPY a /a\nRUN cat /a > /b\n");
    let project = scene.project("project", &dockerfile).unwrap().file("a", "a").unwrap();
    let image = format!("{host}/app:1");

    let daemon = scene.daemon("first", [host.as_str()]).start().unwrap();
    let first = Build::new(&daemon, &project).arg("--export-cache").arg("type=inline");
    first.output(format!("type=image,name={image},push=true")).run().unwrap().success().unwrap();
    daemon.stop().unwrap();

    let daemon = scene.daemon("second", [host.as_str()]).start().unwrap();
    let out = scene.path("out");
    let second = Build::new(&daemon, &project).arg("--import-cache").arg(format!("type=registry,ref={image}"));
    let second = second.local_output(&out).run().unwrap().success().unwrap();
    assert!(is_cached(&second.stderr, "RUN cat /a"), "{}", second.stderr);
    assert_eq!(std::fs::read_to_string(out.join("b")).unwrap(), "a");
    daemon.stop().unwrap();
}

#[test]
fn privileged_what_cannot_be_imported_is_told_and_gone_on_without() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY a /a\n").unwrap().file("a", "a").unwrap();
    let missing = format!("type=registry,ref={host}/nothing:1");
    let build = Build::new(&daemon, &project).arg("--import-cache").arg(&missing).run().unwrap().success().unwrap();
    assert!(build.stderr.contains("importing cache manifest from"), "{}", build.stderr);
    assert!(build.stderr.contains("ERROR"), "{}", build.stderr);

    let refused =
        Build::new(&daemon, &project).arg("--export-cache").arg("type=azblob,name=x").run().unwrap().failure().unwrap();
    assert!(refused.contains("cache export of type \"azblob\" is not supported by castor yet"), "{refused}");
    let refused = Build::new(&daemon, &project).arg("--import-cache").arg("type=s3,name=x").run().unwrap();
    let refused = refused.failure().unwrap();
    assert!(refused.contains("cache import of type \"s3\" is not supported by castor yet"), "{refused}");

    // A registry that takes nothing fails the build, unless it need not work.
    let closed = "type=registry,ref=127.0.0.1:1/cache:1";
    let failed = Build::new(&daemon, &project).arg("--export-cache").arg(closed).run().unwrap().failure().unwrap();
    assert!(failed.contains("error writing"), "{failed}");
    let ignored = Build::new(&daemon, &project).arg("--export-cache").arg(format!("{closed},ignore-error=true"));
    ignored.run().unwrap().success().unwrap();
    daemon.stop().unwrap();
}

#[test]
fn privileged_what_was_made_on_unverified_layers_is_exported_for_the_same_bytes_only() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let first = Layer::new(&busybox().unwrap(), Form::Estargz);
    let padding = File::new("padding", noise(6, 3 << 20));
    let honest = Layer::new(&[File::new("secret", "honest"), padding.clone()], Form::Estargz);
    let hostile = Layer::new(&[File::new("secret", "hostile"), padding], Form::Estargz);
    let diff_ids = [first.diff_id, honest.diff_id];
    let claimer = claiming(hostile, &first, &diff_ids).unwrap().put(&registry, "hostile:1").to_string();
    let owner = claiming(honest, &first, &diff_ids).unwrap().put(&registry, "honest:1").to_string();
    let cache = format!("type=registry,ref={host}/cache:1");
    let project = |name: &str, image: &str| {
        let steps =
            format!("FROM {image} AS run\nRUN cat /secret > /answer\nFROM scratch\nCOPY --from=run /answer /\n");
        scene.project(name, &steps).unwrap()
    };

    let lazy = scene.daemon("lazy", [host.as_str()]).arg(STARGZ).start().unwrap();
    let poisoned = project("poisoned", &claimer);
    let build = Build::new(&lazy, &poisoned).opt("lazy", "require").arg("--export-cache");
    build.arg(format!("{cache},mode=max")).run().unwrap().success().unwrap();
    lazy.stop().unwrap();

    // Neither those who fetch layers first nor those who mount them take it for the honest image's.
    for (name, arguments) in [("eager", None), ("other", Some(STARGZ))] {
        let options = scene.daemon(name, [host.as_str()]);
        let options = arguments.into_iter().fold(options, |options, argument| options.arg(argument));
        let daemon = options.start().unwrap();
        let (built, out) = (project(name, &owner), scene.path(&format!("out-{name}")));
        let build = Build::new(&daemon, &built).arg("--import-cache").arg(&cache).local_output(&out);
        let build = build.run().unwrap().success().unwrap();
        assert_eq!(std::fs::read_to_string(out.join("answer")).unwrap(), "honest", "{}", build.stderr);
        if arguments.is_some() {
            // On the very image that it was made on, it is found.
            let (built, out) = (project("same", &claimer), scene.path("out-same"));
            let build = Build::new(&daemon, &built).arg("--import-cache").arg(&cache).local_output(&out);
            let build = build.run().unwrap().success().unwrap();
            assert!(is_cached(&build.stderr, "RUN cat /secret"), "{}", build.stderr);
            assert_eq!(std::fs::read_to_string(out.join("answer")).unwrap(), "hostile");
        }
        daemon.stop().unwrap();
    }
}
