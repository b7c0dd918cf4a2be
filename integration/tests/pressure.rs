//! Little memory: of the daemon, and of who reads what it serves.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use castor_integration::build::Build;
use castor_integration::scene::{STARGZ, Scene, base, noise};
use castor_oci::Digest;
use castor_testkit::{File, Form, MemoryLimit};

const MIB: usize = 1 << 20;

/// What the daemon and its pages may take: less than the image has.
const DAEMON: usize = 96 * MIB;

/// What readers may take: less than one file has.
const READERS: usize = 16 * MIB;

/// The files of the image.
const FILES: usize = 5;
const SIZE: usize = 24 * MIB;

/// The longest that a build may take to end, well or ill.
const PATIENCE: Duration = Duration::from_secs(900);

/// An image that is larger than the memory of the daemon, read in every mode by several at once who have less memory than a
/// file is long. Their pages go as they come, and so do the daemon's: the bytes are right all the same, and all of them end.
#[test]
fn privileged_daemon_and_readers_with_little_memory_get_right_bytes() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let contents: Vec<Vec<u8>> = (0..FILES).map(|number| noise(number as u64 + 1, SIZE)).collect();
    let files: Vec<File> =
        contents.iter().enumerate().map(|(n, bytes)| File::new(&format!("f{n}"), bytes.clone())).collect();
    let reference = base(Form::Estargz, &files).unwrap().put(&registry, "base:1");
    // All at once, and one of them twice.
    let lines =
        "RUN (sha256sum /f0 /f1 > /a) & (sha256sum /f2 /f3 > /b) & (sha256sum /f4 /f0 > /c) & wait; cat /a /b /c";
    let project = scene.project("project", &format!("FROM {reference}\n{lines}\n")).unwrap();
    for mode in ["erofs+fuse", "fuse"] {
        let name = |who: &str| format!("castor-{who}-{}-{}", std::process::id(), mode.replace('+', "-"));
        // Before the daemon: it must be gone when they go.
        let limit = MemoryLimit::new(&name("daemon"), DAEMON as u64);
        let _readers = MemoryLimit::new(&name("readers"), READERS as u64);
        let config = format!("[worker.oci]\nlayerMode = \"{mode}\"\ndefaultCgroupParent = \"{}\"", name("readers"));
        let options = scene.daemon(mode, [registry.host().as_str()]).arg(STARGZ).config(&config);
        let daemon = options.start().unwrap();
        limit.add(daemon.pid().unwrap());
        let build = Build::new(&daemon, &project).opt("lazy", "require").start().unwrap();
        let built = build.wait(PATIENCE).unwrap().success().unwrap();
        for (number, content) in contents.iter().enumerate() {
            let line = format!("{}  /f{number}", Digest::of(content).hex());
            assert!(built.stderr.contains(&line), "{mode}: {line} is missing:\n{}", built.stderr);
        }
        daemon.stop().unwrap();
    }
}
