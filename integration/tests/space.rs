//! Space is given back under pressure, and what was given back is had again.

#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use castor_integration::build::Build;
use castor_integration::daemon::{Daemon, Outcome};
use castor_integration::programs;
use castor_integration::scene::{STARGZ, Scene, base, comes_true, noise};
use castor_oci::Digest;
use castor_testkit::{File, Form, Image};

/// The longest that a daemon may take to die.
const PATIENCE: Duration = Duration::from_secs(300);

fn image() -> (Image, String) {
    let big = noise(5, 3 << 20);
    let digest = Digest::of(&big).hex();
    (base(Form::Estargz, &[File::new("big", big)]).unwrap(), digest)
}

fn castor(address: &str, arguments: &[&str]) -> Outcome {
    let program = programs::ours("castor").unwrap();
    Outcome::of(&Command::new(program).args(["--debugaddr", address]).args(arguments).output().unwrap())
}

/// What the program says of the layer `digest`.
fn seen(address: &str, digest: &Digest) -> serde_json::Value {
    let shown = castor(address, &["layer", "inspect", "--format=json", &digest.to_string()]).success().unwrap();
    let mut layers: Vec<serde_json::Value> = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(layers.len(), 1, "{layers:?}");
    layers.remove(0)
}

/// Waits until no build has a layer: the last of it ends after the client was answered.
fn nothing_in_use(address: &str) {
    let idle = comes_true(|| castor(address, &["layer", "ls", "--in-use", "-q"]).success().unwrap().stdout.is_empty());
    assert!(idle, "{}", castor(address, &["layer", "ls"]).stdout);
}

fn sum_is(daemon: &Daemon, project: &castor_integration::project::Project, digest: &str) {
    let built = Build::new(daemon, project).opt("no-cache", "").run().unwrap().success().unwrap();
    assert!(built.stderr.contains(digest), "{}", built.stderr);
}

#[test]
fn privileged_a_limited_prune_takes_bytes_of_layers_and_leaves_what_was_built() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let (image, digest) = image();
    let reference = image.put(&registry, "base:1");
    let address = format!("unix://{}", scene.path("debug.sock").display());
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).arg("--debugaddr").arg(&address);
    let daemon = daemon.start().unwrap();
    let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
    sum_is(&daemon, &project, &digest);
    nothing_in_use(&address);
    let big = image.layers[1].descriptor.digest;
    let whole = seen(&address, &big);
    assert_eq!((&whole["mode"], &whole["reason"]), (&"lazy".into(), &serde_json::Value::Null), "{whole}");
    assert!(whole["diskBytes"].as_u64().unwrap() >= 3 << 20, "{whole}");
    let table = castor(&address, &["layer", "ls"]).success().unwrap().stdout;
    assert!(table.contains(&big.hex()[..12]) && table.contains("base:1"), "{table}");
    let workers = daemon.buildctl(["debug", "workers", "-v"]).unwrap().success().unwrap().stdout;
    assert!(workers.contains(&format!("castor.layer.{big}")), "{workers}");

    let pruned = daemon.buildctl(["prune", "-v", "--keep-storage=1"]).unwrap().success().unwrap().stdout;
    assert!(pruned.contains("data of "), "{pruned}");
    let left = seen(&address, &big);
    assert_eq!(left["state"], "lazy", "{left}");
    let kept = left["diskBytes"].as_u64().unwrap() + left["compressedBytes"].as_u64().unwrap();
    assert!(kept < 1 << 20, "{left}");
    assert!(!left["records"].as_array().unwrap().is_empty(), "{left}");
    let du = daemon.buildctl(["du"]).unwrap().success().unwrap().stdout;
    let cached = Build::new(&daemon, &project).run().unwrap().success().unwrap().stderr;
    assert!(cached.contains("CACHED"), "{cached}\n{du}");
    sum_is(&daemon, &project, &digest);

    // Gone with its record: everything.
    daemon.buildctl(["prune", "--all"]).unwrap().success().unwrap();
    let gone = comes_true(|| {
        daemon.buildctl(["prune", "--all"]).unwrap().success().unwrap();
        castor(&address, &["layer", "ls", "-q"]).success().unwrap().stdout.is_empty()
    });
    assert!(gone, "{}", castor(&address, &["layer", "ls"]).stdout);
    daemon.stop().unwrap();
    let error = castor(&address, &["layer", "ls"]).failure().unwrap();
    assert!(error.contains(&address) && error.contains("--debugaddr"), "{error}");
}

#[test]
fn privileged_killed_while_a_layer_gives_its_data_back() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let (image, digest) = image();
    let reference = image.put(&registry, "base:1");
    let options = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ);
    let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
    let daemon = options.clone().env("CASTOR_CRASH_AT", "presence cleared").start().unwrap();
    sum_is(&daemon, &project, &digest);
    let dead = comes_true(|| daemon.buildctl(["prune", "--keep-storage=1"]).unwrap().failure().is_ok());
    assert!(dead, "no layer gave its data");
    daemon.crash(PATIENCE).unwrap();
    let daemon = options.start().unwrap();
    sum_is(&daemon, &project, &digest);
    sum_is(&daemon, &project, &digest);
    daemon.stop().unwrap();
}
