//! What is built once is not built again, and what is not the same is.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::project::Project;
use castor_integration::scene::{STARGZ, Scene, base, claiming, layer_bytes, noise};
use castor_testkit::{File, Form, Layer, RealRegistry};

/// What plain progress says of the context that was transferred; the first to be so is `.dockerignore`.
fn transferred(stderr: &str) -> u64 {
    let mut lines = stderr.lines().filter(|line| line.contains("transferring context: ") && line.contains("done"));
    let line = lines.next_back();
    let line = line.unwrap_or_else(|| panic!("no context was transferred:\n{stderr}"));
    let size = line.split("transferring context: ").nth(1).unwrap().split_whitespace().next().unwrap();
    let unit_at = size.find(|c: char| c.is_ascii_alphabetic()).unwrap();
    let factor = match &size[unit_at..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        unit => panic!("unit {unit:?} in {line}"),
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = (size[..unit_at].parse::<f64>().unwrap() * factor) as u64;
    bytes
}

/// The vertices of plain progress that came from the cache, by name.
fn cached(stderr: &str) -> Vec<String> {
    let number = |line: &str| line.strip_prefix('#')?.split_once(' ').map(|(n, rest)| (n.to_owned(), rest.to_owned()));
    let lines: Vec<(String, String)> = stderr.lines().filter_map(number).collect();
    let is_cached = |n: &str| lines.iter().any(|(other, rest)| other == n && rest == "CACHED");
    lines.iter().filter(|(n, rest)| rest.starts_with('[') && is_cached(n)).map(|(_, rest)| rest.clone()).collect()
}

fn is_cached(stderr: &str, part: &str) -> bool {
    cached(stderr).iter().any(|name| name.contains(part))
}

#[test]
fn privileged_an_unchanged_context_sends_only_stats() {
    let scene = Scene::new().unwrap();
    let daemon = scene.daemon("daemon", []).start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY . /\n").unwrap().file("big", noise(3, 3 << 20)).unwrap();
    let first = Build::new(&daemon, &project).run().unwrap().success().unwrap();
    assert!(transferred(&first.stderr) > 3_000_000, "{}", first.stderr);
    let second = Build::new(&daemon, &project).run().unwrap().success().unwrap();
    assert!(transferred(&second.stderr) < 1_000, "{}", second.stderr);
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_changed_file_reruns_only_what_it_reaches() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!(
        "FROM {reference} AS left\nCOPY left /\nRUN echo left && cat /left > /l\n\
         FROM {reference} AS right\nCOPY right /\nRUN echo right && cat /right > /r\n\
         FROM scratch\nCOPY --from=left /l /\nCOPY --from=right /r /\n"
    );
    let project = scene.project("project", &dockerfile).unwrap();
    let project = project.file("left", "1").unwrap().file("right", "1").unwrap();
    let out = scene.path("out");
    let build = Build::new(&daemon, &project).local_output(&out);
    build.run().unwrap().success().unwrap();

    project.write("left", "2").unwrap();
    let second = build.run().unwrap().success().unwrap();
    assert!(!is_cached(&second.stderr, "RUN echo left"), "{}", second.stderr);
    assert!(is_cached(&second.stderr, "RUN echo right"), "{}", second.stderr);
    assert_eq!(std::fs::read(out.join("l")).unwrap(), b"2");
    assert_eq!(std::fs::read(out.join("r")).unwrap(), b"1");

    // Times do not count, modes do.
    project.write("left", "2").unwrap();
    let third = build.run().unwrap().success().unwrap();
    assert!(is_cached(&third.stderr, "RUN echo left"), "{}", third.stderr);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(project.path().join("left"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let fourth = build.run().unwrap().success().unwrap();
    assert!(!is_cached(&fourth.stderr, "RUN echo left"), "{}", fourth.stderr);
    daemon.stop().unwrap();
}

#[test]
fn privileged_the_same_context_of_two_clients_meets() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!("FROM {reference}\nCOPY data /\nRUN cat /data > /copy\n");
    let projects = ["one", "two"].map(|name| {
        scene.project(name, &dockerfile).unwrap().file("data", "same").unwrap().file("other", name).unwrap()
    });
    Build::new(&daemon, &projects[0]).run().unwrap().success().unwrap();
    let second = Build::new(&daemon, &projects[1]).run().unwrap().success().unwrap();
    assert!(is_cached(&second.stderr, "RUN cat"), "{}", second.stderr);
    daemon.stop().unwrap();
}

#[test]
fn privileged_two_clients_at_once_share_a_step() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    // What differs between two runs of the step shows whether it ran twice.
    let dockerfile = format!(
        "FROM {reference} AS run\nCOPY data /\nRUN sleep 1 && cat /proc/sys/kernel/random/uuid > /id\n\
         FROM scratch\nCOPY --from=run /id /\n"
    );
    let ids: Vec<String> = ["one", "two", "three"]
        .map(|name| {
            let project = scene.project(name, &dockerfile).unwrap().file("data", "same").unwrap();
            let out = scene.path(&format!("out-{name}"));
            (Build::new(&daemon, &project).local_output(&out).spawn().unwrap(), out)
        })
        .into_iter()
        .map(|(child, out)| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::read_to_string(out.join("id")).unwrap()
        })
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_restart_needs_no_registry() {
    for argument in [STARGZ, "--oci-worker-snapshotter=overlayfs"] {
        let scene = Scene::new().unwrap();
        let registry = RealRegistry::start();
        let image = base(Form::Estargz, &[File::new("used", "used\n"), File::new("big", noise(4, 2 << 20))]).unwrap();
        let reference = scene.wait(image.push(registry.host(), "base:1"));
        let options = scene.daemon("daemon", [registry.host()]).arg(argument);
        let first = scene.project("first", &format!("FROM {reference}\nRUN cat /used > /copy\n")).unwrap();
        // Another step over bytes that are here.
        let second = scene.project("second", &format!("FROM {reference}\nRUN cat /used > /another\n")).unwrap();

        let daemon = options.start().unwrap();
        Build::new(&daemon, &first).run().unwrap().success().unwrap();
        daemon.stop().unwrap();
        drop(registry);
        let daemon = options.start().unwrap();
        let again = Build::new(&daemon, &first).run().unwrap().success().unwrap();
        assert!(is_cached(&again.stderr, "RUN cat"), "{argument}:\n{}", again.stderr);
        let new = Build::new(&daemon, &second).run().unwrap().success().unwrap();
        assert!(!is_cached(&new.stderr, "RUN cat"), "{argument}:\n{}", new.stderr);
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_no_cache_runs_again_and_prune_forgets() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let image = base(Form::Gzip, &[File::new("big", noise(5, 1 << 20))]).unwrap();
    let reference = image.put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let project = scene
        .project(
            "project",
            &format!("FROM {reference}\nRUN --mount=type=cache,target=/cache echo x > /cache/x; cat /big > /copy\n"),
        )
        .unwrap();
    let build = Build::new(&daemon, &project);
    build.run().unwrap().success().unwrap();
    let again = build.run().unwrap().success().unwrap();
    assert!(is_cached(&again.stderr, "RUN"), "{}", again.stderr);
    let anew = build.clone().arg("--no-cache").run().unwrap().success().unwrap();
    assert!(!is_cached(&anew.stderr, "RUN"), "{}", anew.stderr);

    let usage = daemon.buildctl(["du", "-v"]).unwrap().success().unwrap().stdout;
    for part in ["exec.cachemount", "regular", "mount / from exec /bin/sh -c echo x"] {
        assert!(usage.contains(part), "{part} is missing:\n{usage}");
    }
    let pruned = daemon.buildctl(["prune", "--all"]).unwrap().success().unwrap().stdout;
    assert!(pruned.contains("Total:"), "{pruned}");
    let usage = daemon.buildctl(["du"]).unwrap().success().unwrap().stdout;
    assert!(usage.contains("Total:\t0B") || usage.contains("Total:         0B") || !usage.contains("true"), "{usage}");
    registry.clear_log();
    let after = build.run().unwrap().success().unwrap();
    assert!(!is_cached(&after.stderr, "RUN"), "{}", after.stderr);
    assert!(layer_bytes(&registry, &image) > 0, "the layers were pruned and are fetched again");
    daemon.stop().unwrap();
}

/// The step's output on the image `reference`, and its progress.
fn answer(scene: &Scene, daemon: &castor_integration::daemon::Daemon, name: &str, reference: &str) -> (String, String) {
    let dockerfile =
        format!("FROM {reference} AS run\nRUN cat /secret > /answer\nFROM scratch\nCOPY --from=run /answer /\n");
    let project: Project = scene.project(name, &dockerfile).unwrap();
    let out = scene.path(&format!("out-{name}"));
    let built = Build::new(daemon, &project).opt("lazy", "require").local_output(&out).run().unwrap();
    let built = built.success().unwrap();
    (std::fs::read_to_string(out.join("answer")).unwrap(), built.stderr)
}

#[test]
fn privileged_a_claimed_diff_id_gives_nobody_anothers_result() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let first = Layer::new(&castor_integration::scene::busybox().unwrap(), Form::Estargz);
    let padding = File::new("padding", noise(6, 3 << 20));
    let honest = Layer::new(&[File::new("secret", "honest"), padding.clone()], Form::Estargz);
    let hostile = Layer::new(&[File::new("secret", "hostile"), padding], Form::Estargz);
    let diff_ids = [first.diff_id, honest.diff_id];
    let claimer = claiming(hostile, &first, &diff_ids).unwrap().put(&registry, "hostile:1").to_string();
    let owner = claiming(honest, &first, &diff_ids).unwrap().put(&registry, "honest:1").to_string();

    // The hostile one first, while it is lazy and nobody has checked it; then over a restart.
    let options = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ);
    let daemon = options.start().unwrap();
    assert_eq!(answer(&scene, &daemon, "a", &claimer).0, "hostile");
    assert_eq!(answer(&scene, &daemon, "b", &owner).0, "honest");
    daemon.stop().unwrap();
    let daemon = options.start().unwrap();
    assert_eq!(answer(&scene, &daemon, "c", &owner).0, "honest");
    assert_eq!(answer(&scene, &daemon, "d", &claimer).0, "hostile");
    daemon.stop().unwrap();

    // The other order, on a daemon of its own: reading what the honest one made is harmless, and wrong all the same.
    let daemon = scene.daemon("other", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
    assert_eq!(answer(&scene, &daemon, "e", &owner).0, "honest");
    assert_eq!(answer(&scene, &daemon, "f", &claimer).0, "hostile");
    assert_eq!(answer(&scene, &daemon, "g", &owner).0, "honest");
    daemon.stop().unwrap();
}
