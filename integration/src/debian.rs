//! A root file system made from Debian's packages, unpacked but not configured: enough to work with.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::programs::{self, run_command};
use crate::settings::Archive;

/// What the demo's base image is made of beside its tool chain: a Debian that people would recognise.
pub const BASE: &[&str] = &[
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "ca-certificates",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "git",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "login",
    "make",
    "ncurses-base",
    "ncurses-bin",
    "perl-base",
    "sed",
    "tar",
    "util-linux",
];

/// A small Debian of `archive` in the new directory `root`, installed and configured by debootstrap.
pub fn bootstrap(archive: &Archive, root: &Path) -> Result<()> {
    let mut command = Command::new(programs::installed("debootstrap", "debootstrap")?);
    command.args(["--variant=minbase", "--merged-usr", &archive.suite]).arg(root).arg(&archive.site);
    run_command(command).context("make a Debian by debootstrap")?;
    // What it needed on its way, and what it knows of this machine.
    for name in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let path = root.join(name);
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        fs::create_dir_all(path.join("partial")).with_context(|| format!("create {}", path.display()))?;
    }
    for (name, text) in [
        ("etc/apt/sources.list", ""),
        ("etc/hostname", ""),
        ("etc/resolv.conf", ""),
        // Services are not started where packages are installed.
        ("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n"),
    ] {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    fs::set_permissions(root.join("usr/sbin/policy-rc.d"), fs::Permissions::from_mode(0o755))?;
    let _ = fs::remove_file(root.join("var/log/bootstrap.log"));
    Ok(())
}

/// Downloads `packages` with all they depend on into `cache` and unpacks them into the empty directory `root`.
///
/// apt resolves, downloads and verifies by the host's own sources, but against an empty list of installed packages, so
/// that the result does not depend on what the host has.
pub fn unpack(packages: &[&str], cache: &Path, root: &Path) -> Result<()> {
    let archives = download(packages, cache)?;
    // Debian 12 moved /bin and its like into /usr by symbolic links that no package of it ships.
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name)).with_context(|| format!("create usr/{name}"))?;
        symlink(format!("usr/{name}"), root.join(name)).with_context(|| format!("link {name}"))?;
    }
    for archive in &archives {
        unpack_one(archive, root).with_context(|| format!("unpack {}", archive.display()))?;
    }
    configure(root)
}

fn download(packages: &[&str], cache: &Path) -> Result<Vec<PathBuf>> {
    // All that is found there afterwards is unpacked: nothing of another list may be left.
    if cache.exists() {
        fs::remove_dir_all(cache).with_context(|| format!("remove {}", cache.display()))?;
    }
    let archives = cache.join("archives");
    fs::create_dir_all(archives.join("partial")).with_context(|| format!("create {}", archives.display()))?;
    let status = cache.join("status");
    fs::write(&status, "").with_context(|| format!("write {}", status.display()))?;
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-y", "--no-install-recommends", "--download-only"])
        .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
        .arg("-o")
        .arg(format!("Dir::State::status={}", status.display()))
        .arg("-o")
        .arg(format!("Dir::Cache={}", cache.display()))
        .arg("install")
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run_command(command).context("download Debian packages (run apt-get update first?)")?;
    let mut found: Vec<PathBuf> = fs::read_dir(&archives)?
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().is_ok_and(|path: &PathBuf| path.extension().is_some_and(|kind| kind == "deb")))
        .collect::<Result<_>>()?;
    if found.is_empty() {
        bail!("apt downloaded nothing into {}", archives.display());
    }
    found.sort();
    Ok(found)
}

fn unpack_one(archive: &Path, root: &Path) -> Result<()> {
    let mut tar = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped()).spawn()?;
    let stream = tar.stdout.take().context("dpkg-deb has no output")?;
    let unpacked = Command::new("tar")
        .args(["-x", "--numeric-owner", "--keep-directory-symlink", "-C"])
        .arg(root)
        .stdin(stream)
        .status()?;
    let read = tar.wait()?;
    if !read.success() || !unpacked.success() {
        bail!("dpkg-deb: {read}, tar: {unpacked}");
    }
    Ok(())
}

/// What the packages' scripts would have done, as far as a build needs it.
fn configure(root: &Path) -> Result<()> {
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        let path = root.join("etc").join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    for name in ["tmp", "var/tmp"] {
        let path = root.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?;
    }
    Ok(())
}
