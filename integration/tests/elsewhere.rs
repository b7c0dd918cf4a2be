//! Daemons that are reached through a program.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;

use castor_integration::daemon::Outcome;
use castor_integration::programs;
use castor_integration::scene::Scene;

/// The only test here: programs that are written must not be held open by a fork of another one's.
#[test]
fn privileged_a_daemon_in_a_container_is_reached_through_its_engine() {
    let scene = Scene::new().unwrap();
    let daemon = scene.daemon("daemon", []).start().unwrap();
    let project = scene.project("project", "FROM scratch\nCOPY data /\n").unwrap().file("data", "data\n").unwrap();
    let buildctl = programs::ours("buildctl").unwrap();
    // An engine that knows one container, in which is the daemon.
    let engines = scene.path("engines");
    std::fs::create_dir(&engines).unwrap();
    let engine = engines.join("docker");
    let script = format!(
        "#!/bin/sh\ntest \"$*\" = 'exec -i builder buildctl dial-stdio' || {{ echo \"no such container\" >&2; exit 1; }}\n\
         exec {} --addr {} dial-stdio\n",
        buildctl.display(),
        daemon.address()
    );
    std::fs::write(&engine, script).unwrap();
    std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = |address: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(&buildctl);
        // No other engine is found.
        Outcome::of(&command.args(["--addr", address]).args(arguments).env("PATH", &engines).output().unwrap())
    };
    let workers = run("docker-container://builder", &["debug", "workers"]).success().unwrap();
    assert!(workers.stdout.contains("linux/"), "{}", workers.stdout);
    let (context, out) = (format!("context={}", project.path().display()), scene.path("out"));
    let dockerfile = format!("dockerfile={}", project.path().display());
    let output = format!("type=local,dest={}", out.display());
    let arguments =
        ["build", "--frontend=dockerfile.v0", "--local", &context, "--local", &dockerfile, "--output", &output];
    run("docker-container://builder", &arguments).success().unwrap();
    assert_eq!(std::fs::read_to_string(out.join("data")).unwrap(), "data\n");

    let missing = run("docker-container://other", &["du"]).failure().unwrap();
    assert!(missing.contains("no such container") && missing.contains("Unavailable"), "{missing}");
    let engine = run("kube-pod://builder", &["du"]).failure().unwrap();
    assert!(engine.contains("run kubectl: no such file or directory"), "{engine}");
    daemon.stop().unwrap();
}
