//! Builds of the past and what they were made of; policies about what they may be made of.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::daemon::Daemon;
use castor_integration::scene::{Scene, base};
use castor_testkit::{File, Form};

/// The refs of the records, with whether each is pinned.
fn records(daemon: &Daemon) -> Vec<(String, bool)> {
    let format = "{{.record.Ref}} {{.record.Pinned}}";
    let listed = daemon.buildctl(["debug", "histories", "--format", format]).unwrap().success().unwrap();
    let mut records: Vec<_> = listed
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, pinned)| (id.to_owned(), pinned == "true"))
        .collect();
    records.sort();
    records
}

#[test]
fn privileged_builds_are_recorded_across_restarts() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[File::new("file", "content\n")]).unwrap().put(&registry, "base:1");
    let options = scene.daemon("daemon", [registry.host().as_str()]);
    let daemon = options.start().unwrap();
    let build = |daemon: &Daemon, name: &str, line: &str| {
        let project = scene.project(name, &format!("FROM {reference}\n{line}\n")).unwrap();
        let id = scene.path(&format!("{name}.ref"));
        let build = Build::new(daemon, &project).arg("--ref-file").arg(&id).opt("build-arg:WORD", "seven-of-nine");
        (build.run().unwrap(), std::fs::read_to_string(id).unwrap().trim().to_owned())
    };
    let (good, good_id) = build(&daemon, "good", "RUN echo said-by-a-step");
    good.success().unwrap();
    let (bad, bad_id) = build(&daemon, "bad", "RUN exit 3");
    bad.failure().unwrap();
    daemon.stop().unwrap();

    let daemon = options.start().unwrap();
    let mut both = vec![(good_id.clone(), false), (bad_id.clone(), false)];
    both.sort();
    assert_eq!(records(&daemon), both);
    let log = daemon.buildctl(["debug", "logs", &good_id]).unwrap().success().unwrap();
    assert!(format!("{}{}", log.stdout, log.stderr).contains("said-by-a-step"), "{log:?}");
    let attested = "{{if .record.Result}}{{range .record.Result.Attestations}}{{.digest}}{{end}}{{end}}";
    let one = ["debug", "histories", "--format", &format!("{{{{.record.Ref}}}} {attested}")];
    let listed = daemon.buildctl(one).unwrap().success().unwrap().stdout;
    let digest = listed.lines().find_map(|line| line.strip_prefix(&format!("{good_id} "))).unwrap().to_owned();
    let provenance = daemon.buildctl(["debug", "get", &digest]).unwrap().success().unwrap().stdout;
    let provenance: serde_json::Value = serde_json::from_str(&provenance).unwrap();
    let definition = &provenance["buildDefinition"];
    assert_eq!(definition["externalParameters"]["request"]["args"]["build-arg:WORD"], "seven-of-nine");
    let material = definition["resolvedDependencies"][0]["uri"].as_str().unwrap();
    assert!(material.starts_with("pkg:docker/") && material.contains("base@1"), "{material}");

    daemon.buildctl(["debug", "ctl", "--pin", &bad_id]).unwrap().success().unwrap();
    daemon.buildctl(["prune-histories"]).unwrap().success().unwrap();
    assert_eq!(records(&daemon), [(bad_id.clone(), true)]);
    let gone = daemon.buildctl(["debug", "get", &digest]).unwrap().failure().unwrap();
    assert!(gone.contains("not found"), "{gone}");
    daemon.buildctl(["debug", "ctl", "--delete", &bad_id]).unwrap().success().unwrap();
    assert_eq!(records(&daemon), []);
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_policy_converts_and_denies_sources() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[File::new("file", "content\n")]).unwrap().put(&registry, "base:1").to_string();
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let policy = scene.path("policy.json");
    let rules = serde_json::json!({"rules": [
        {
            "action": "CONVERT",
            "selector": {"identifier": "docker-image://docker.io/library/nowhere:*"},
            "updates": {"identifier": format!("docker-image://{reference}")},
        },
        {"action": "DENY", "selector": {"identifier": "docker-image://docker.io/library/evil:*"}},
    ]});
    std::fs::write(&policy, rules.to_string()).unwrap();
    let build = |name: &str, from: &str| {
        let project = scene.project(name, &format!("FROM {from}\nRUN cat /file\n")).unwrap();
        Build::new(&daemon, &project).arg("--source-policy-file").arg(&policy).run().unwrap()
    };
    build("converted", "nowhere:7").success().unwrap();
    let error = build("denied", "evil").failure().unwrap();
    let want = "source \"docker-image://docker.io/library/evil:latest\" denied by policy";
    assert!(error.contains(want), "{error}");
    daemon.stop().unwrap();
}
