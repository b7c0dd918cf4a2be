//! The daemon in every mode of mounting layers.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use castor_integration::build::Build;
use castor_integration::daemon::Options;
use castor_integration::scene::{STARGZ, Scene, base, comes_true, noise, traces_of};
use castor_testkit::{Fault, File, FileKind, Form, Image, On};
use http::Method;

/// What is configured, and what layers are then mounted with: complete ones and lazy ones.
const MODES: [(&str, &str, &str); 4] = [
    ("auto", "erofs", "erofs+fuse"),
    ("erofs+fuse", "erofs", "erofs+fuse"),
    ("erofs+fuse+loop", "erofs+loop", "erofs+fuse+loop"),
    ("fuse", "fuse", "fuse"),
];

/// The longest that a build may take to end, well or ill.
const PATIENCE: Duration = Duration::from_secs(600);

fn daemon(scene: &Scene, name: &str, host: &str, mode: &str) -> Options {
    scene.daemon(name, [host]).arg(STARGZ).config(&format!("[worker.oci]\nlayerMode = \"{mode}\""))
}

fn image() -> Image {
    let files = [
        File::dir("d").mode(0o1755),
        File::new("d/hard", "one inode"),
        File::hardlink("d/link", "d/hard"),
        File::new("d/empty", ""),
        File::new(&format!("d/{}", "long".repeat(40)), "long name"),
        File::new("d/suid", "x").mode(0o4755).owner(1000, 1001),
        File::new("d/private", "x").mode(0o600).owner(1000, 1001),
        File::special("d/null", FileKind::Char(1, 3)),
        File::special("d/pipe", FileKind::Fifo),
        File::symlink("d/up", "../bin/sh"),
        File::new("d/chunks", noise(2, 300_000)),
        File::new("big", noise(1, 6 << 20)),
    ];
    base(Form::Estargz, &files).unwrap()
}

#[test]
fn privileged_a_build_is_the_same_in_every_mode() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = image().put(&registry, "base:1");
    let dockerfile = format!(
        "FROM {reference} AS b\n\
         RUN cd /d && find . | sort | xargs stat -c '%n %A %u:%g %s %h %t %T %Y' > /list \
             && sha256sum /big chunks hard long* suid >> /list\n\
         RUN echo more >> /big && chmod 640 /d/chunks && mv /d /e && rm /e/hard && sha256sum /big /e/chunks /e/long* /e/link >> /list\n\
         USER 4711\n\
         RUN cat /e/private 2>/dev/null && exit 1 || sha256sum /e/suid /bin/busybox > /tmp/user\n\
         FROM scratch\n\
         COPY --from=b /list /tmp/user /\n"
    );
    let project = scene.project("project", &dockerfile).unwrap();
    let result = |options: Options, lazy: &str, labels: &[String]| {
        let daemon = options.start().unwrap();
        let out = scene.path("out");
        let _ = std::fs::remove_dir_all(&out);
        Build::new(&daemon, &project).opt("lazy", lazy).local_output(&out).run().unwrap().success().unwrap();
        let workers = daemon.buildctl(["debug", "workers", "-v"]).unwrap().success().unwrap().stdout;
        for label in labels {
            let found = workers.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == *label);
            assert!(found, "{label} in {workers}");
        }
        daemon.stop().unwrap();
        ["list", "user"].map(|name| std::fs::read_to_string(out.join(name)).unwrap())
    };
    let expected = result(daemon(&scene, "eager", &registry.host(), "erofs"), "never", &[]);
    assert!(expected[0].contains("./link") && expected[1].contains("busybox"), "{expected:?}");
    for (mode, complete, lazy) in MODES {
        let labels = [format!("castor.layers.complete: {complete}"), format!("castor.layers.lazy: {lazy}")];
        let found = result(daemon(&scene, mode, &registry.host(), mode), "require", &labels);
        assert_eq!(found, expected, "{mode}");
        // Again from what is here, complete layers among them, by a daemon that was started anew.
        registry.clear_log();
        let again = result(daemon(&scene, mode, &registry.host(), mode), "require", &labels);
        assert_eq!(again, expected, "{mode}");
        nothing_left(&scene.path(mode));
    }
}

#[test]
fn privileged_a_daemon_killed_while_a_step_waits_leaves_nothing_in_any_mode() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let image = image();
    let reference = image.put(&registry, "base:1");
    let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
    let layer = image.layers[1].descriptor.digest.to_string();
    for (mode, ..) in MODES {
        let options = daemon(&scene, mode, &registry.host(), mode);
        let daemon = options.start().unwrap();
        registry.clear_log();
        // After footer and TOC nothing is answered.
        registry.fault(On::new(Method::GET, &layer).skip(1), Fault::Silence);
        let build = Build::new(&daemon, &project).opt("lazy", "require").start().unwrap();
        assert!(comes_true(|| registry.log_of(&layer).len() > 1), "{mode}: nobody reads the layer");
        daemon.kill().unwrap();
        build.wait(PATIENCE).unwrap();
        registry.heal();
        // The container that read from it dies with it, or when the next one starts; that one builds what was not built.
        let daemon = options.start().unwrap();
        Build::new(&daemon, &project).run().unwrap().success().unwrap();
        daemon.stop().unwrap();
        nothing_left(&scene.path(mode));
    }
}

#[test]
fn privileged_a_server_of_trees_that_is_killed_costs_its_readers_only() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let image = image();
    let reference = image.put(&registry, "base:1");
    let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
    let layer = image.layers[1].descriptor.digest.to_string();
    let daemon = daemon(&scene, "daemon", &registry.host(), "fuse").start().unwrap();
    registry.clear_log();
    registry.fault(On::new(Method::GET, &layer).skip(1), Fault::Silence);
    let build = Build::new(&daemon, &project).opt("lazy", "require").start().unwrap();
    assert!(comes_true(|| registry.log_of(&layer).len() > 1), "nobody reads the layer");
    let server = server_of(daemon.pid().unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = build.wait(PATIENCE).unwrap().failure().unwrap();
    for part in [&format!("read /big in layer {layer} of {reference}@"), ": the server of image trees ended"] {
        assert!(error.contains(part), "{part} is not said:\n{error}");
    }
    registry.heal();
    assert!(comes_true(|| daemon.log().contains("the server of image trees ended")), "{}", daemon.log());
    Build::new(&daemon, &project).opt("lazy", "require").run().unwrap().success().unwrap();
    assert_ne!(server_of(daemon.pid().unwrap()), server);
    daemon.stop().unwrap();
    nothing_left(&scene.path("daemon"));
}

/// The child of a daemon that serves trees.
fn server_of(daemon: u32) -> i32 {
    let children = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let keeps = command.split('\0').next()?.ends_with("-keeper");
        (parent == daemon && command.contains("serve-image-trees") && !keeps).then_some(pid)
    });
    children.last().expect("mode fuse has a process that serves trees")
}

/// Fails if a daemon that has ended left a mount, a process or a loop device.
fn nothing_left(state: &Path) {
    let mut left = Vec::new();
    let gone = comes_true(|| {
        left = traces_of(state);
        // The other tests of this program have daemons too.
        left.retain(|trace| trace.contains(&*state.to_string_lossy()));
        left.extend(loops_on(state));
        left.is_empty()
    });
    assert!(gone, "left behind: {left:#?}");
}

/// Loop devices over files of `state`, or over what a daemon serves: those are of files in no visible mount.
fn loops_on(state: &Path) -> Vec<String> {
    let state = state.display().to_string();
    let devices = std::fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
    let backed = devices.filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
    backed.filter(|file| file.contains(&state)).collect()
}
