//! A process that works with snapshots on a lazy image is killed at any moment, again and again: what was committed stays,
//! no byte is wrong, nothing hangs and nothing stays mounted.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use castor_layerfs::Lazy;
use castor_snapshot::Snapshotter as _;
use support::{Bench, Source, id};

const DIR: &str = "CASTOR_TEST_KILL_DIR";
const FILES: u32 = 300;

/// The content of a file of the image.
fn content(number: u32) -> Vec<u8> {
    (0..4000 + number * 13).flat_map(|n| (n ^ number).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn source() -> std::sync::Arc<Source> {
    let names: Vec<String> = (0..FILES).map(|n| format!("d/{n:04}")).collect();
    let contents: Vec<Vec<u8>> = (0..FILES).map(content).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("d/", b"")];
    files.extend(names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)));
    Source::new(&files, true)
}

/// Files of the image as a snapshot shows them, from `start` on.
fn check_image(root: &Path, start: u32, step: usize) {
    for number in (start % 7..FILES).step_by(step) {
        let path = root.join(format!("d/{number:04}"));
        assert!(fs::read(&path).unwrap() == content(number), "{} is wrong", path.display());
    }
}

fn check_steps(root: &Path, last: u32) {
    for number in 0..=last {
        let file = fs::File::open(root.join(format!("step{number}"))).unwrap();
        let mut bytes = vec![0; 4];
        file.read_exact_at(&mut bytes, 100_000).unwrap();
        assert_eq!(bytes, number.to_le_bytes());
    }
}

/// What the process does that is killed: not a test of its own.
#[test]
fn privileged_role_of_the_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    castor_mount::enter_private_namespace().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::at(dir.clone()).await;
        bench.image("base", &[source()], Lazy::Require).await;
        let mut number = 0;
        let mut parent = "base".to_owned();
        // What an earlier life committed is there, whole.
        while bench.snapshots.info(&id(&format!("s{number}"))).await.unwrap().is_some() {
            parent = format!("s{number}");
            number += 1;
        }
        if number > 0 {
            let mounted = bench.mount(&parent).await;
            let last = number - 1;
            castor_task::reading(move || check_steps(mounted.path(), last)).await;
        }
        println!("\nalive {number}");
        loop {
            let _ = bench.snapshots.remove(&id(&format!("s{number}-active"))).await;
            bench
                .step(&format!("s{number}"), Some(&parent), move |root| {
                    check_image(root, number, 23);
                    let file = fs::File::create(root.join(format!("step{number}"))).unwrap();
                    file.write_all_at(&number.to_le_bytes(), 100_000).unwrap();
                    fs::set_permissions(root.join("d/0001"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                        .unwrap();
                })
                .await;
            parent = format!("s{number}");
            number += 1;
        }
    });
}

/// Starts a life; the numbers of snapshots that it found come through the channel.
fn start(dir: &Path) -> (Child, Receiver<u32>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "privileged_role_of_the_child", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(fs::File::options().append(true).create(true).open(dir.join("log")).unwrap())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("alive ") {
                let _ = send.send(number.parse().unwrap());
            }
        }
    });
    (child, lines)
}

#[test]
fn privileged_death_at_any_moment_loses_nothing_committed() {
    let dir = tempfile::tempdir().unwrap();
    let seed = u64::from(std::process::id()) * 2 + 1;
    println!("seed {seed}");
    let mut random = seed;
    let mut committed = 0u32;
    // A machine that is too slow to commit anything in so many lives has some more, and longer ones.
    for life in 0..60 {
        if life >= 12 && committed > 0 {
            break;
        }
        let (mut child, lines) = start(dir.path());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Some die while they open what is there.
        if life % 4 != 3 {
            let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            let found = lines.recv_timeout(Duration::from_secs(300));
            let found = found.unwrap_or_else(|error| panic!("a life did not begin: {error}\n{}", log()));
            assert!(found >= committed, "{found} snapshots are left of {committed}");
            committed = found;
        }
        // Nothing more is said: this waits for as long as the life may last.
        let _ = lines.recv_timeout(Duration::from_micros((random >> 44) * (1 + life / 12)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    assert!(committed > 0, "no life was long enough");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "left mounted");

    // One more life, in this process: all of it, to the last byte.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::at(dir.path().to_owned()).await;
        bench.image("base", &[source()], Lazy::Require).await;
        let last = committed - 1;
        let mounted = bench.mount(&format!("s{last}")).await;
        castor_task::reading(move || {
            check_steps(mounted.path(), last);
            check_image(mounted.path(), 0, 1);
        })
        .await;
        bench.close().await;
    });
}
