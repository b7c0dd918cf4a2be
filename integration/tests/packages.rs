//! The Debian package as `scripts/deb` makes it.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use castor_integration::programs::{self, run_command};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Makes the package of the programs in `programs`; compressing it would take longer than all else.
fn deb(programs: &Path, output: &Path) -> anyhow::Result<String> {
    let mut script = Command::new(Path::new(ROOT).join("scripts/deb"));
    script.arg(programs).arg(output).env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    run_command(script)
}

/// A directory of programs. The client writes its own manual; for the daemon, large with all it has for debuggers, stands
/// a smaller program.
fn programs(place: &Path, names: &[&str]) -> PathBuf {
    let directory = place.join("programs");
    fs::create_dir_all(&directory).unwrap();
    for name in names {
        let program = if *name == "buildctl" { "buildctl" } else { "castor" };
        fs::copy(programs::ours(program).unwrap(), directory.join(name)).unwrap();
    }
    directory
}

/// Values of `key` in a unit.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn a_debian_package_holds_what_its_units_and_scripts_name() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("output");
    deb(&programs(place.path(), &["buildkitd", "buildctl", "castor"]), &output).unwrap();
    let package = fs::read_dir(&output).unwrap().next().unwrap().unwrap().path();
    let (tree, control) = (place.path().join("tree"), place.path().join("control"));
    programs::run("dpkg-deb", [Path::new("--extract"), &package, &tree]).unwrap();
    programs::run("dpkg-deb", [Path::new("--control"), &package, &control]).unwrap();

    let field = |name: &str| {
        let arguments = ["--field".as_ref(), package.as_os_str(), name.as_ref()];
        programs::run("dpkg-deb", arguments).unwrap().trim().to_owned()
    };
    assert_eq!(field("Package"), "castor");
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").starts_with("libc6 (>= 2."), "{}", field("Depends"));
    assert!(field("Installed-Size").parse::<u64>().unwrap() > 1000);

    let mut sums = Command::new("md5sum");
    sums.args(["--check", "--quiet"]).arg(control.join("md5sums")).current_dir(&tree);
    run_command(sums).unwrap();
    for file in fs::read_to_string(control.join("conffiles")).unwrap().lines() {
        assert!(tree.join(file.trim_start_matches('/')).is_file(), "{file}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        programs::run("sh", ["-n".as_ref(), control.join(script).as_os_str()]).unwrap();
    }

    // What the units start and refer to is there, and the socket is where clients look.
    let unit = |name: &str| fs::read_to_string(tree.join("usr/lib/systemd/system").join(name)).unwrap();
    let (service, socket) = (unit("buildkit.service"), unit("buildkit.socket"));
    let start = values(&service, "ExecStart");
    let program = start[0].split_whitespace().next().unwrap();
    assert!(tree.join(program.trim_start_matches('/')).is_file(), "{program}");
    assert!(start[0].contains("--addr fd://"), "{start:?}");
    assert_eq!(values(&service, "Type"), ["notify"]);
    assert_eq!(values(&service, "Requires"), ["buildkit.socket"]);
    assert!(values(&service, "Documentation")[0].contains("man:buildctl(1)"));
    assert!(tree.join("usr/share/man/man1/buildctl.1.gz").is_file());
    let help = programs::run(tree.join("usr/bin/buildctl"), ["--help"]).unwrap();
    let path = values(&socket, "ListenStream")[0].replace("%t", "/run");
    assert!(help.contains(&format!("unix://{path}")), "{path} is not where clients look:\n{help}");

    for file in [
        "usr/share/bash-completion/completions/buildctl",
        "usr/share/zsh/vendor-completions/_buildctl",
        "usr/share/fish/vendor_completions.d/buildctl.fish",
        "usr/share/doc/castor/copyright",
        "usr/share/doc/castor/configuration.md",
        "etc/buildkit/buildkitd.toml",
        "usr/bin/castor",
    ] {
        assert!(tree.join(file).is_file(), "{file}");
    }
}

#[test]
fn a_package_without_its_programs_is_not_made() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("output");
    let error = deb(&programs(place.path(), &["buildctl"]), &output).unwrap_err().to_string();
    assert!(error.contains("buildkitd is not there"), "{error}");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
}
