//! Addresses, the lock, definitions from standard input, and what the daemon tells of itself.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use castor_integration::hello::get;
use castor_integration::programs;
use castor_integration::scene::{STARGZ, Scene, base};
use castor_llb::state::{Action, Constraints, CopyOptions, LocalOptions};
use castor_llb::{MarshalOptions, State};
use castor_oci::Platform;
use castor_testkit::{File, Form};
use prost::Message as _;

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn privileged_one_daemon_has_several_addresses_and_its_root_for_itself() {
    let scene = Scene::new().unwrap();
    let tcp = format!("tcp://127.0.0.1:{}", free_port());
    let daemon = scene.daemon("daemon", []).arg("--addr").arg(&tcp).start().unwrap();
    let ask = |address: &str, arguments: &[&str]| {
        programs::run(programs::ours("buildctl").unwrap(), [&["--addr", address], arguments].concat())
    };
    for address in [daemon.address(), &tcp] {
        let workers = ask(address, &["debug", "workers"]).unwrap();
        assert!(workers.contains("linux/amd64") || workers.contains("linux/arm64"), "{workers}");
        assert!(ask(address, &["debug", "info"]).unwrap().contains("castor"));
    }
    // A second daemon on the same root gives up, and says why.
    let second = Command::new(programs::ours("buildkitd").unwrap())
        .arg("--root")
        .arg(scene.path("daemon/state"))
        .args(["--addr", &format!("unix://{}", scene.path("second.sock").display())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("buildkitd.lock"), "{said}");
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_definition_comes_from_standard_input() {
    let scene = Scene::new().unwrap();
    let daemon = scene.daemon("daemon", []).start().unwrap();
    let source = scene.path("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("given"), "given").unwrap();
    let local = State::local("src", &LocalOptions::default(), Constraints::new());
    let copy = Action::Copy {
        from: local,
        src: "/given".into(),
        dest: "/copied".into(),
        options: Box::new(CopyOptions::default()),
    };
    let make = Action::Mkfile { path: "/made".into(), mode: 0o600, data: "made".into(), owner: None, timestamp: None };
    let state = State::scratch().file(vec![copy, make], Constraints::new());
    let platform = Platform::host();
    let definition = state.marshal(&MarshalOptions { platform, caps: None, unique: String::new() }).unwrap();
    let bytes = definition.to_pb().encode_to_vec();

    let out = scene.path("out");
    let mut client = Command::new(programs::ours("buildctl").unwrap())
        .args(["--addr", daemon.address(), "build", "--progress=plain"])
        .arg("--local")
        .arg(format!("src={}", source.display()))
        .arg("--output")
        .arg(format!("type=local,dest={}", out.display()))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(out.join("copied")).unwrap(), b"given");
    assert_eq!(std::fs::read(out.join("made")).unwrap(), b"made");
    daemon.stop().unwrap();
}

#[test]
fn privileged_the_debug_address_tells_metrics_and_layers() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let image = base(Form::Estargz, &[File::new("file", "x")]).unwrap();
    let reference = image.put(&registry, "base:1");
    let debug = format!("127.0.0.1:{}", free_port());
    let options = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ);
    let daemon = options.arg("--debugaddr").arg(&debug).start().unwrap();
    let project = scene.project("project", &format!("FROM {reference}\nRUN cat /file\n")).unwrap();
    castor_integration::build::Build::new(&daemon, &project).run().unwrap().success().unwrap();
    let metrics = String::from_utf8(get(&debug, "/metrics").unwrap()).unwrap();
    assert!(metrics.contains("castor_"), "{metrics}");
    let layers = String::from_utf8(get(&debug, "/debug/layers").unwrap()).unwrap();
    assert!(layers.contains(&image.layers[0].descriptor.digest.to_string()), "{layers}");
    let in_flight: serde_json::Value = serde_json::from_slice(&get(&debug, "/debug/inflight").unwrap()).unwrap();
    assert!(in_flight.is_object(), "{in_flight}");
    let workers = daemon.buildctl(["debug", "workers", "-v"]).unwrap().success().unwrap().stdout;
    assert!(workers.contains("castor.layers.lazy"), "{workers}");
    daemon.stop().unwrap();
}
