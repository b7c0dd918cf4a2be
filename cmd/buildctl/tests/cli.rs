//! The program's behaviour where no daemon is needed: help, mistakes, exit codes.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

fn buildctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_buildctl"))
        .args(arguments)
        .env_remove("BUILDKIT_HOST")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn said(arguments: &[&str]) -> (i32, String, String) {
    let output = buildctl(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_is_the_originals() {
    assert_eq!(said(&["du", "--help"]).1, include_str!("../testdata/help-du.txt"));
    assert_eq!(said(&["help", "build"]).1, include_str!("../testdata/help-build.txt"));
    assert_eq!(said(&["prune", "-h"]).1, include_str!("../testdata/help-prune.txt"));
    let (code, out, err) = said(&[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("NAME:\n   buildctl - build utility\n"));
    assert!(said(&["--version"]).1.starts_with("buildctl castor "));
    assert!(said(&["completion", "fish"]).1.contains("complete -c buildctl "));
    assert!(said(&["man", "debug", "logs"]).1.starts_with(".TH BUILDCTL\\-DEBUG\\-LOGS 1 "));
}

#[test]
fn mistakes_before_the_command_show_the_help() {
    let (code, out, err) = said(&["--nope"]);
    assert_eq!(code, 1);
    assert!(out.starts_with("NAME:\n"));
    assert_eq!(
        err,
        "Incorrect Usage: flag provided but not defined: -nope\n\nerror: flag provided but not defined: -nope\n"
    );
    let (code, out, err) = said(&["build", "--nope"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.ends_with("error: flag provided but not defined: -nope\n"));
    assert_eq!(said(&["nope"]), (3, String::new(), "No help topic for 'nope'\n".to_owned()));
}

#[test]
fn mistakes_are_named_before_a_daemon_is_looked_for() {
    let error = |arguments: &[&str]| {
        let (code, _, err) = said(arguments);
        assert_eq!(code, 1, "{arguments:?}");
        err
    };
    assert_eq!(error(&["build"]), "error: please specify --frontend or pipe LLB definition to stdin\n");
    assert_eq!(error(&["build", "--output", "foo", "--frontend", "x"]), "error: invalid value foo\n");
    assert_eq!(
        error(&["build", "--local", "c=/nonexistent", "--frontend", "x"]),
        "error: invalid local: resolve : lstat /nonexistent: no such file or directory\n"
    );
    assert_eq!(error(&["build", "--progress", "bogus", "--frontend", "x"]), "error: invalid progress mode bogus\n");
    assert_eq!(error(&["--log-format", "foo", "du"]), "error: unsupported log type \"foo\"\n");
    assert_eq!(
        error(&["--addr", "unix:///nonexistent/sock", "du"]),
        "error: failed to call diskusage: Unavailable: connection error: desc = \"transport: Error while dialing: dial unix /nonexistent/sock: connect: no such file or directory\"\n"
    );
    for (arguments, message) in [
        (&["debug", "logs"][..], "build ref must be specified"),
        (&["debug", "get"], "blob digest must be specified"),
        (&["debug", "get", "x"], "invalid checksum digest format"),
        (&["debug", "ctl"], "build ref must be specified"),
        (&["debug", "ctl", "x"], "must specify one of --pin, --unpin, --delete"),
        (&["debug", "ctl", "--pin", "--unpin", "x"], "cannot specify both --pin and --unpin"),
        (&["debug", "ctl", "--delete", "--pin", "x"], "cannot specify --delete with --pin or --unpin"),
        (&["completion"], "no shell provided for completion command. available shells are [bash fish zsh]"),
        (&["man", "nope"], "no manual entry for 'nope'"),
        (&["--addr", "docker-container://", "du"], "docker-container://: url lacks container name"),
        (
            &["build", "--frontend", "x", "--ssh", "a=/nonexistent"],
            "failed to convert agent config {a [/nonexistent] false}: failed to convert agent config for ID: \"a\": \
             stat /nonexistent: no such file or directory",
        ),
        (
            &["build", "--frontend", "x", "--oci-layout", "foo"],
            "invalid oci-layout: oci-layout option must be 'id=path/to/layout', instead had invalid foo",
        ),
        (
            &["build", "--frontend", "x", "--output", "type=oci,tar=false"],
            "invalid output option: output: output directory is required for oci exporter",
        ),
    ] {
        assert_eq!(error(arguments), format!("error: {message}\n"));
    }
    assert_eq!(
        error(&["--addr", "tcp://127.0.0.1:1", "dial-stdio"]),
        "error: invalid address tcp://127.0.0.1:1 (expected unix://, got tcp://)\n"
    );
}
