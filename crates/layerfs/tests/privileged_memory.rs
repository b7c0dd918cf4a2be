//! What layers take of memory, and readers who have little of it. One test, in a process of its own: it measures the process.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use castor_layerfs::Lazy;
use castor_oci::Digest;
use castor_progress::Reporter;
use castor_testkit::MemoryLimit;
use support::rand_like::Random;
use support::{Bench, Source, Tar, assemble, estargz, gzip, path};

const MIB: u64 = 1 << 20;

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The most memory that this process has had since [`forget_peak`].
fn peak() -> u64 {
    status("VmHWM")
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_memory_is_bounded() {
    let bench = Bench::new().await;
    a_million_entries(&bench).await;
    readers_in_need(&bench).await;
    bench.engine.shutdown().await;
}

/// A table of contents of a million entries: the JSON is held while it is read, and otherwise some bytes for each entry.
async fn a_million_entries(bench: &Bench) {
    let blob = {
        let mut json = String::from(r#"{"version":1,"entries":["#);
        for number in 0..1_000_000 {
            let (dir, file) = (number / 1000, number % 1000);
            let comma = if number == 0 { "" } else { "," };
            write!(
                json,
                r#"{comma}{{"name":"d{dir}/f{file}","type":"reg","mode":420,"modtime":"2020-01-01T00:00:00Z"}}"#
            )
            .unwrap();
        }
        json.push_str("]}");
        assemble(&gzip(b"").bytes, json.as_bytes())
    };
    let source = Source::new(&blob);
    forget_peak();
    let before = status("VmRSS");
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let opened = peak() - before;
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let mounted = peak() - before;
    let names = std::fs::read_dir(path(&tree, "d999")).unwrap().count();
    assert_eq!(names, 1000);
    println!("a million entries: {} MiB to open, {} MiB to mount", opened / MIB, mounted / MIB);
    assert!(mounted < 400 * MIB, "{} MiB", mounted / MIB);
    drop((tree, layer));
}

/// `program` in a cgroup, reading `input`.
fn run(group: &MemoryLimit, program: &str, input: std::fs::File) -> std::process::Child {
    let script = format!("echo $$ > {}/cgroup.procs && exec {program}", group.path().display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(input).stdout(Stdio::piped()).spawn().unwrap()
}

/// Processes that have less memory than what they read is long, all at once: their pages go as they come.
async fn readers_in_need(bench: &Bench) {
    let size = 40 * MIB as usize;
    let (blob, expected) = {
        let content = Random::new(31).bytes(size);
        (estargz(&Tar::default().file("big", &content).bytes(), 1 << 20), Digest::of(&content).hex())
    };
    let source = Source::new(&blob);
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    forget_peak();
    let before = status("VmRSS");
    let group = MemoryLimit::new(&format!("castor-test-{}", std::process::id()), 12 * MIB);
    let mount = tree.clone();
    let outputs = castor_task::reading(move || {
        let readers: Vec<_> =
            (0..3).map(|_| run(&group, "sha256sum", std::fs::File::open(path(&mount, "big")).unwrap())).collect();
        let outputs: Vec<_> = readers.into_iter().map(|reader| reader.wait_with_output().unwrap()).collect();
        drop(group);
        outputs
    })
    .await;
    for output in outputs {
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap(), expected);
    }
    let taken = peak().saturating_sub(before);
    println!("{} MiB read with {} MiB more", size as u64 / MIB, taken / MIB);
    assert!(taken < 160 * MIB, "{} MiB", taken / MIB);
    drop((tree, layer));
}
