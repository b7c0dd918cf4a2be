//! Layers of changes are byte for byte those of BuildKit: commands of its Dockerfiles, and the diff IDs that came out.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use castor_archive::tar::{Kind, Reader};
use castor_oci::Digest;
use rustix::fs::{CWD, Timespec, Timestamps};
use support::Bench;

/// `diff.json`: per case the commands of its RUN lines and, for each, the layer that BuildKit made.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    runs: Vec<String>,
    layers: Vec<Layer>,
}

#[derive(serde::Deserialize)]
struct Layer {
    diff_id: Digest,
    names: Vec<String>,
}

/// The base image of the cases, as far as they look at it.
fn base(root: &Path) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for dir in ["bin", "etc", "tmp", "usr", "usr/bin"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n\
                  app:x:1000:1000:app:/home/app:/bin/sh\nsvc:x:2000:3000::/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    for name in ["etc/passwd", "etc/group", "bin", "etc", "tmp", "usr/bin", "usr"] {
        let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, root.join(name), &times, rustix::fs::AtFlags::empty()).unwrap();
    }
}

/// Runs a command of a Dockerfile on the tree at `root`: absolute paths of the case lead there.
fn run(command: &str, root: &Path) {
    if let Some(rest) = command.strip_prefix("setx ") {
        let words: Vec<&str> = rest.split(' ').collect();
        let value: Vec<u8> =
            (0..words[2].len()).step_by(2).map(|i| u8::from_str_radix(&words[2][i..i + 2], 16).unwrap()).collect();
        let path = root.join(words[0].trim_start_matches('/'));
        rustix::fs::lsetxattr(path, words[1], &value, rustix::fs::XattrFlags::empty()).unwrap();
        return;
    }
    let mut rewritten = String::new();
    let mut before = ' ';
    for (at, character) in command.char_indices() {
        let word: String = command[at..].chars().skip(1).take_while(char::is_ascii_lowercase).collect();
        let starts = matches!(before, ' ' | '\'' | '>' | '=');
        if character == '/' && starts && ["w", "tmp", "etc", "rootfile", "newdir"].contains(&word.as_str()) {
            rewritten.push_str(root.to_str().unwrap());
        }
        rewritten.push(character);
        before = character;
    }
    let status = Command::new("sh").args(["-c", &format!("umask 022; {rewritten}")]).env("TZ", "UTC").status().unwrap();
    assert!(status.success(), "{rewritten}");
}

fn describe(tar: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(tar);
    let mut lines = Vec::new();
    while let Some(header) = reader.next().unwrap() {
        let kind = match header.kind {
            Kind::File => "file",
            Kind::Directory => "dir",
            Kind::Symlink => "symlink",
            Kind::Hardlink => "hardlink",
            Kind::CharDevice => "char",
            Kind::BlockDevice => "block",
            Kind::Fifo => "fifo",
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let link = if header.link.is_empty() { String::new() } else { format!(" -> {}", text(&header.link)) };
        let (mode, size) = (header.mode, header.size);
        lines.push(format!("{kind} {}{link} {mode:o} {}:{} {size}", text(&header.path), header.uid, header.gid));
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_of_changes_equal_buildkits() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../testdata/diff.json")).unwrap();
    let bench = Bench::new().await;
    bench.step("base", None, base).await;
    let mut wrong = Vec::new();
    for case in &cases {
        let mut parent = "base".to_owned();
        for (number, (command, layer)) in case.runs.iter().zip(&case.layers).enumerate() {
            let name = format!("{}-{number}", case.name);
            let command = command.clone();
            bench.step(&name, Some(&parent), move |root| run(&command, root)).await;
            let tar = bench.layer_of(Some(&parent), &name).await;
            // Long names are cut in the expectation; the digest tells all.
            if Digest::of(&tar) != layer.diff_id {
                wrong.push(format!("{name}:\n  got  {:#?}\n  want {:#?}", describe(&tar), layer.names));
            }
            parent = name;
        }
    }
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    bench.close().await;
}
