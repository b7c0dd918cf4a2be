//! What a daemon's flags and files say about who may call it, where images are, and what it does not have; names and
//! platforms that are not everybody's.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use castor_integration::build::Build;
use castor_integration::daemon::Outcome;
use castor_integration::programs;
use castor_integration::scene::{Scene, base};
use castor_testkit::{File, Form, RealRegistry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A certificate or key of the test authority, whose server is `localhost` and 127.0.0.1.
fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/wire/testdata/tls").join(name)
}

#[test]
fn privileged_a_daemon_with_tls_is_called_with_a_certificate_only() {
    let scene = Scene::new().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");
    let mut options = scene.daemon("daemon", []).arg("--addr").arg(&address);
    for (flag, file) in [("--tlscert", "server.pem"), ("--tlskey", "server-key.pem"), ("--tlscacert", "ca.pem")] {
        options = options.arg(flag).arg(pem(file).to_str().unwrap());
    }
    let daemon = options.start().unwrap();
    let workers = |flags: &[(&str, &str)]| {
        let mut client = Command::new(programs::ours("buildctl").unwrap());
        client.args(["--addr", &address]);
        for (flag, file) in flags {
            client.arg(flag).arg(pem(file));
        }
        Outcome::of(&client.args(["debug", "workers"]).output().unwrap())
    };
    let whole = [("--tlscacert", "ca.pem"), ("--tlscert", "client.pem"), ("--tlskey", "client-key.pem")];
    let seen = workers(&whole).success().unwrap();
    assert!(seen.stdout.contains("linux/"), "{}", seen.stdout);
    for (flags, missing) in [(&whole[..1], "client's certificate"), (&[][..], "TLS"), (&whole[1..], "authority")] {
        let error = workers(flags).failure().unwrap();
        assert!(!error.is_empty(), "without {missing}");
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_registry_with_tls_of_its_own_authority_has_to_be_configured() {
    let scene = Scene::new().unwrap();
    let (certificate, key) = (pem("server.pem"), pem("server-key.pem"));
    let tls = format!("  tls:\n    certificate: {}\n    key: {}", certificate.display(), key.display());
    let registry = RealRegistry::start_with(&tls);
    let host = registry.host();
    let project = scene.project("project", "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let again = scene.project("again", &format!("FROM {host}/app:1\nCOPY Dockerfile /other\n")).unwrap();
    let ca = format!("ca = [{:?}]", pem("ca.pem").display().to_string());
    for (name, setting) in [("authority", ca.as_str()), ("insecure", "insecure = true")] {
        // A registry on loopback speaks plain HTTP, where nothing else is said.
        let config = format!("[registry.\"{host}\"]\nhttp = false\n{setting}");
        let daemon = scene.daemon(name, []).config(&config).start().unwrap();
        let push = Build::new(&daemon, &project).output(format!("type=image,name={host}/app:1,push=true"));
        push.run().unwrap().success().unwrap();
        let out = scene.path(&format!("out-{name}"));
        Build::new(&daemon, &again).local_output(&out).run().unwrap().success().unwrap();
        assert!(out.join("Dockerfile").exists() && out.join("other").exists());
        daemon.stop().unwrap();
    }
    let daemon = scene.daemon("neither", []).config(&format!("[registry.\"{host}\"]\nhttp = false")).start().unwrap();
    let error = Build::new(&daemon, &again).run().unwrap().failure().unwrap();
    assert!(error.contains(host) && error.to_lowercase().contains("certificate"), "{error}");
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_mirror_stands_for_its_host() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    base(Form::Gzip, &[File::new("from", "the mirror\n")]).unwrap().put(&registry, "library/base:1");
    // The host itself does not exist; the first mirror does not answer.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!("[registry.\"images.invalid\"]\nmirrors = [\"{closed}\", \"{host}\"]");
    let plain = [host.clone(), closed.to_string()];
    let options = scene.daemon("daemon", plain.iter().map(String::as_str)).config(&config);
    let daemon = options.start().unwrap();
    let project = scene.project("project", "FROM images.invalid/library/base:1\nRUN cat /from > /copy\n").unwrap();
    let out = scene.path("out");
    Build::new(&daemon, &project).local_output(&out).run().unwrap().success().unwrap();
    assert_eq!(std::fs::read(out.join("copy")).unwrap(), b"the mirror\n");
    // What is pushed goes to the host, never to a mirror.
    let push = Build::new(&daemon, &project).output("type=image,name=images.invalid/library/base:2,push=true");
    let error = push.run().unwrap().failure().unwrap();
    assert!(error.contains("images.invalid"), "{error}");
    assert!(registry.get_manifest("library/base", "2").is_none());
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_client_that_is_frozen_does_not_hold_up_a_daemons_end() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let lines = format!("FROM {reference}\nRUN echo started && while :; do seq 1 1000; done\n");
    let mut client = Build::new(&daemon, &scene.project("project", &lines).unwrap()).spawn().unwrap();
    let mut progress = client.stderr.take().unwrap();
    let mut seen = String::new();
    let mut piece = [0; 4096];
    while !seen.contains(" started\n") {
        let n = progress.read(&mut piece).unwrap();
        assert!(n > 0, "the build ended:\n{seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    // It neither reads what the step prints nor answers anything any more.
    kill(Pid::from_raw(client.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    let stopped = daemon.stop();
    client.kill().unwrap();
    client.wait().unwrap();
    stopped.unwrap();
}

#[test]
fn privileged_networks_that_are_not_there_are_named_at_the_start() {
    let scene = Scene::new().unwrap();
    let absent = scene.path("absent.json");
    for (mode, named) in [("cni", absent.to_str().unwrap()), ("no-such-network", "\"no-such-network\"")] {
        let flag = scene.daemon(&format!("flag-{mode}"), []).arg(format!("--oci-worker-net={mode}"));
        let flag = flag.arg(format!("--oci-cni-config-path={}", absent.display()));
        let config = format!("[worker.oci]\nnetworkMode = \"{mode}\"\ncniConfigPath = {absent:?}");
        let file = scene.daemon(&format!("file-{mode}"), []).config(&config);
        for options in [flag, file] {
            let error = options.start().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
    let flags = Command::new(programs::ours("buildkitd").unwrap()).arg("--oci-worker-net").output().unwrap();
    assert!(!flags.status.success());
}

#[test]
fn privileged_a_daemon_that_may_not_mount_says_what_it_needs() {
    let scene = Scene::new().unwrap();
    // As in a container without privileges.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]).arg(programs::ours("buildkitd").unwrap());
    command.arg("--root").arg(scene.path("state"));
    command.arg("--addr").arg(format!("unix://{}", scene.path("socket").display()));
    let ended = Outcome::of(&command.output().unwrap()).failure().unwrap();
    assert!(ended.contains("--privileged"), "{ended}");
    assert_eq!(ended.matches("not permitted").count(), 1, "{ended}");
}

#[test]
fn privileged_names_that_are_no_text_go_in_and_come_out() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let reference = base(Form::Gzip, &[]).unwrap().put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!(
        "FROM {reference} AS b\nCOPY . /all/\nCOPY caf* /some/\nRUN mkdir /out && cp -a /all /some /out \
         && ln -s \"$(printf 'caf\\351')\" /out/link && echo made > \"$(printf '/out/made\\377')\"\n\
         FROM scratch\nCOPY --from=b /out /\n"
    );
    let project = scene.project("project", &dockerfile).unwrap();
    let name = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
    std::fs::write(project.path().join(name(b"caf\xe9")), "one").unwrap();
    std::fs::create_dir(project.path().join(name(b"d\xff"))).unwrap();
    std::fs::write(project.path().join(name(b"d\xff/\xe8")), "two").unwrap();
    let out = scene.path("out");
    let build = Build::new(&daemon, &project).local_output(&out);
    build.run().unwrap().success().unwrap();
    let read = |bytes: &'static [u8]| std::fs::read_to_string(out.join(name(bytes))).unwrap();
    assert_eq!(read(b"all/caf\xe9"), "one");
    assert_eq!(read(b"all/d\xff/\xe8"), "two");
    assert_eq!(read(b"some/caf\xe9"), "one");
    assert_eq!(read(b"made\xff"), "made\n");
    assert_eq!(std::fs::read_link(out.join("link")).unwrap(), name(b"caf\xe9"));
    // What changes under such a name is seen.
    std::fs::write(project.path().join(name(b"caf\xe9")), "another").unwrap();
    build.run().unwrap().success().unwrap();
    assert_eq!((read(b"all/caf\xe9"), read(b"some/caf\xe9")), ("another".into(), "another".into()));

    let tar = scene.path("out.tar");
    Build::new(&daemon, &project).output(format!("type=tar,dest={}", tar.display())).run().unwrap().success().unwrap();
    let tar = std::fs::read(&tar).unwrap();
    // Only extended headers have bytes that are no ASCII.
    for name in [&b"path=all/caf\xe9\n"[..], b"path=made\xff\n", b"linkpath=caf\xe9\n"] {
        assert!(tar.windows(name.len()).any(|window| window == name), "{name:?} is missing");
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_a_step_for_a_platform_that_cannot_run_says_so() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    // The header of a program for sparc64.
    let mut program = b"\x7fELF\x02\x02\x01".to_vec();
    program.resize(256, 0);
    program[16..20].copy_from_slice(&[0, 2, 0, 43]);
    let foreign = base(Form::Gzip, &[File::new("foreign", program).mode(0o755)]).unwrap();
    let reference = foreign.put(&registry, "base:1");
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
    let dockerfile = format!("FROM --platform=linux/sparc64 {reference}\nRUN [\"/foreign\"]\n");
    let project = scene.project("project", &dockerfile).unwrap();
    let error = Build::new(&daemon, &project).run().unwrap().failure().unwrap();
    for part in [
        "exec /foreign: exec format error",
        "process \"/foreign\" did not complete successfully: exit code: ",
        "(a step for linux/sparc64 on linux/",
    ] {
        assert!(error.contains(part), "{part:?} is missing: {error}");
    }
    // What an image says of its platform need not be true.
    let dockerfile = format!("FROM --platform=linux/sparc64 {reference}\nRUN true\n");
    let project = scene.project("wrong", &dockerfile).unwrap();
    Build::new(&daemon, &project).run().unwrap().success().unwrap();
    // What needs no process needs no emulator.
    let dockerfile = format!("FROM --platform=linux/sparc64 {reference}\nCOPY Dockerfile /copy\n");
    let project = scene.project("copy", &dockerfile).unwrap();
    Build::new(&daemon, &project).run().unwrap().success().unwrap();
    daemon.stop().unwrap();
}
