//! Where one test plays: a directory of its own, alone on the machine, and everything gone afterwards.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use castor_oci::{Descriptor, Digest, ImageConfig, Manifest, media_type};
use castor_testkit::{File, Form, Image, ImageBuilder, Layer, Registry, Relay, RelayOptions};

use crate::daemon::Options;
use crate::programs;
use crate::project::Project;

/// One test at a time: each checks what the others would see of it, and a daemon uses all there is of two processors.
static STAGE: Mutex<()> = Mutex::new(());

/// Flags of a lazy daemon.
pub const STARGZ: &str = "--oci-worker-snapshotter=stargz";

/// A test's place. On drop it panics if a process or a mount that belongs to it is left.
#[derive(Debug)]
pub struct Scene {
    // All dropped after what the test made, which it declares later; the runtime before the directory.
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// Waits until no other test runs, and makes the directory.
    pub fn new() -> Result<Self> {
        // A test that failed is no reason to fail the others.
        let alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        // What a killed daemon leaves is ours then, and is found below.
        nix::sys::prctl::set_child_subreaper(true).context("become the parent of orphans")?;
        let directory = place("test-")?;
        // The registries and relays of this process; the test itself waits outside.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime, directory, _alone: alone })
    }

    /// Runs a future to its end, with what it spawns running on.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A registry that can be told to misbehave.
    pub fn registry(&self) -> Registry {
        self.wait(Registry::start())
    }

    /// A relay that counts, and does not slow.
    pub fn relay(&self, target: std::net::SocketAddr) -> Relay {
        self.wait(Relay::start(target, RelayOptions::default()))
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A daemon's options: state in `name`, all of `hosts` spoken to without TLS, and each thing in the log.
    pub fn daemon<'a>(&self, name: &str, hosts: impl IntoIterator<Item = &'a str>) -> Options {
        plain_hosts(Options::new(self.path(name)).arg("--debug"), hosts)
    }

    /// A project in the directory `name`.
    pub fn project(&self, name: &str, dockerfile: &str) -> Result<Project> {
        Project::new(self.path(name), dockerfile)
    }

    /// Waits until nothing of the test's is left, and says what is.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        comes_true(|| {
            left = traces_of(self.directory.path());
            left.is_empty()
        });
        left
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.path("");
            for entry in fs::read_dir(&kept).into_iter().flatten().flatten() {
                let log = entry.path().join("buildkitd.log");
                if let Ok(text) = fs::read_to_string(&log) {
                    let tail: Vec<&str> = text.lines().rev().take(60).collect();
                    let _ = writeln!(std::io::stderr(), "--- end of {}", log.display());
                    for line in tail.iter().rev() {
                        let _ = writeln!(std::io::stderr(), "{line}");
                    }
                }
            }
            return;
        }
        let left = self.left();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// Looks until it is so, but not for ever; whether it came true.
///
/// For what nothing signals: the end of an orphan, the start of a process in a container.
pub fn comes_true(mut is_so: impl FnMut() -> bool) -> bool {
    const PATIENCE: Duration = Duration::from_secs(300);
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        // Whoever looks without a pause takes the processor from what it waits for.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A new directory under `target`, removed on drop: on a disk, which `/tmp` need not be.
pub fn place(prefix: &str) -> Result<tempfile::TempDir> {
    let programs = programs::directory()?;
    let target = programs.parent().context("the programs' directory has no parent")?;
    let path = target.join("run");
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    tempfile::Builder::new().prefix(prefix).tempdir_in(&path).with_context(|| format!("create in {}", path.display()))
}

/// The same options, with plain HTTP to `hosts`.
pub fn plain_hosts<'a>(options: Options, hosts: impl IntoIterator<Item = &'a str>) -> Options {
    hosts.into_iter().fold(options, |options, host| options.config(&format!("[registry.\"{host}\"]\nhttp = true")))
}

/// Processes that this one is the parent of or that name `directory` on their command line, and mounts under it in any
/// namespace.
///
/// Nothing else that goes on on the machine counts: other tests may run, and other daemons.
pub fn traces_of(directory: &Path) -> Vec<String> {
    let needle = directory.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let proc = entry.path();
        let stat = fs::read_to_string(proc.join("stat")).unwrap_or_default();
        // The name stands in parentheses and may hold anything; state and parent follow.
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<u32>().ok()));
        if state == Some("Z") {
            continue;
        }
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&needle) || parent == Some(std::process::id()) {
            found.push(format!("process {pid}: {command}"));
        } else if let Some(mount) = mounts_of(&proc).lines().find(|line| line.contains(&needle)) {
            found.push(format!("mount of process {pid} ({command}): {mount}"));
        }
    }
    let ours = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(ours.lines().filter(|line| line.contains(&needle)).map(|line| format!("mount: {line}")));
    found
}

fn mounts_of(proc: &Path) -> String {
    fs::read_to_string(proc.join("mountinfo")).unwrap_or_default()
}

/// The files of a small base: a busybox under the names that tests call.
pub fn busybox() -> Result<Vec<File>> {
    let program = programs::installed("busybox", "busybox-static")?;
    let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let mut files = vec![File::dir("bin"), File::new("bin/busybox", bytes).mode(0o755)];
    for name in [
        "sh",
        "cat",
        "cp",
        "echo",
        "ls",
        "mkdir",
        "rm",
        "mv",
        "ln",
        "chmod",
        "chown",
        "sleep",
        "seq",
        "dd",
        "touch",
        "sha256sum",
        "test",
        "true",
        "false",
        "find",
        "grep",
        "head",
        "tail",
        "wc",
        "id",
        "env",
        "date",
        "mkfifo",
        "mknod",
        "stat",
        "sync",
        "tar",
        "awk",
        "xargs",
        "sort",
        "od",
        "kill",
        "ps",
        "readlink",
        "mount",
        "hostname",
        "wget",
        "du",
    ] {
        files.push(File::symlink(&format!("bin/{name}"), "busybox"));
    }
    files.extend([
        File::dir("dev"),
        File::dir("etc"),
        File::new("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
        File::new("etc/group", "root:x:0:\nuser:x:1000:\n"),
        File::dir("proc"),
        File::dir("root"),
        File::dir("sys"),
        File::dir("tmp").mode(0o1777),
    ]);
    Ok(files)
}

/// A base image: busybox in one layer, `more` in a second.
pub fn base(form: Form, more: &[File]) -> Result<Image> {
    let mut image = ImageBuilder::new().env("PATH=/bin").layer(&busybox()?, form);
    if !more.is_empty() {
        image = image.layer(more, form);
    }
    Ok(image.build())
}

/// An image of two layers which claims that they have `diff_ids`.
pub fn claiming(second: Layer, first: &Layer, diff_ids: &[Digest]) -> Result<Image> {
    let mut image = ImageBuilder::new().env("PATH=/bin").with(first.clone()).with(second).build();
    let mut config: ImageConfig = serde_json::from_slice(&image.config)?;
    config.rootfs.diff_ids = diff_ids.to_vec();
    let config = serde_json::to_vec(&config)?;
    let mut manifest: Manifest = serde_json::from_slice(&image.manifest)?;
    manifest.config = Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len().try_into()?);
    image.config = config.into();
    image.manifest = serde_json::to_vec(&manifest)?.into();
    Ok(image)
}

/// Bytes of layers of `image` that `registry` has sent since its log was cleared.
pub fn layer_bytes(registry: &Registry, image: &Image) -> u64 {
    let digests = image.layers.iter().map(|layer| layer.descriptor.digest.to_string());
    digests.map(|digest| registry.log_of(&digest).iter().map(|request| request.bytes).sum::<u64>()).sum()
}

/// Bytes that look random and do not compress, always the same for a seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
