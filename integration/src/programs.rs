//! Where the workspace's programs are, and how a program is run to its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The program `name` of this workspace, built with the profile of whoever asks.
///
/// Programs and tests of this package are in `target/<profile>/` and `target/<profile>/deps/`.
pub fn ours(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    if !path.exists() {
        bail!("{} is missing: run `cargo build --workspace --bins` first", path.display());
    }
    Ok(path)
}

/// Where the workspace's programs of this profile are.
pub fn directory() -> Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let directory = this.parent().context("this program has no directory")?;
    let is_test = directory.ends_with("deps") || directory.ends_with("examples");
    let directory = if is_test { directory.parent().context("deps has no parent")? } else { directory };
    Ok(directory.to_owned())
}

/// The program `name` on `PATH`; `package` is the Debian package that has it.
pub fn installed(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: apt-get install {package}"))
}

/// Runs a program to its end and returns what it printed; fails, with what it printed, if it does.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<Path>, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program.as_ref());
    command.args(arguments);
    run_command(command)
}

/// As [`run`], for a command that needs more set-up.
pub fn run_command(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    check(&command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
