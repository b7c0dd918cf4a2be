//! Registries that want to know who asks, forget it, and go away.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use castor_integration::build::Build;
use castor_integration::scene::{STARGZ, Scene, base, noise};
use castor_oci::Digest;
use castor_testkit::{Auth, Fault, File, Form, Image, On, Registry};
use http::Method;

fn image() -> Image {
    base(Form::Estargz, &[File::new("small", "small\n"), File::new("big", noise(11, 8 << 20))]).unwrap()
}

/// The line that `sha256sum /big` prints.
fn expected() -> String {
    Digest::of(noise(11, 8 << 20)).hex()
}

/// A Docker configuration with a password for `host`.
fn docker_config(scene: &Scene, host: &str) -> std::path::PathBuf {
    let path = scene.path("docker");
    std::fs::create_dir_all(&path).unwrap();
    // user:secret
    let text = format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"dXNlcjpzZWNyZXQ=\"}}}}}}");
    std::fs::write(path.join("config.json"), text).unwrap();
    path
}

#[test]
fn privileged_a_token_of_three_seconds_is_renewed_in_mid_read() {
    let scene = Scene::new().unwrap();
    let auth = Auth::Bearer { user: Some(("user".into(), "secret".into())), lifetime: Duration::from_secs(3) };
    let registry = scene.wait(Registry::builder().auth(auth).start());
    let host = registry.host();
    let reference = image().put(&registry, "private:1");
    let config = docker_config(&scene, &host);
    let daemon = scene.daemon("daemon", [host.as_str()]).arg(STARGZ).start().unwrap();
    let lines = "RUN cat /small && sleep 5 && head -c 3000000 /big > /dev/null && sleep 4 && sha256sum /big";
    let project = scene.project("project", &format!("FROM {reference}\n{lines}\n")).unwrap();
    let build = Build::new(&daemon, &project).opt("lazy", "require");
    let denied = build.clone().env("DOCKER_CONFIG", scene.path("none")).run().unwrap().failure().unwrap();
    assert!(denied.contains("401") || denied.to_lowercase().contains("unauthorized"), "{denied}");
    let built = build.env("DOCKER_CONFIG", &config).run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&expected()), "{}", built.stderr);
    let tokens = registry.log_of("/token").len();
    assert!(tokens >= 2, "{tokens} tokens were asked for");
    // And out: a push with the same credentials.
    let push = scene.project("push", &format!("FROM {reference}\nCOPY Dockerfile /\n")).unwrap();
    let push = Build::new(&daemon, &push).output(format!("type=image,name={host}/private:2,push=true"));
    push.env("DOCKER_CONFIG", &config).run().unwrap().success().unwrap();
    assert!(registry.get_manifest("private", "2").is_some());
    daemon.stop().unwrap();
}

#[test]
fn privileged_basic_authentication_and_signed_addresses() {
    let scene = Scene::new().unwrap();
    let auth = Auth::Basic { user: "user".into(), password: "secret".into() };
    let registry = scene.wait(Registry::builder().auth(auth).signed(Duration::from_secs(2)).start());
    let reference = image().put(&registry, "private:1");
    let host = registry.host();
    let config = docker_config(&scene, &host);
    let daemon = scene.daemon("daemon", [host.as_str()]).arg(STARGZ).start().unwrap();
    let lines = "RUN cat /small && sleep 3 && sha256sum /big";
    let project = scene.project("project", &format!("FROM {reference}\n{lines}\n")).unwrap();
    let build = Build::new(&daemon, &project).opt("lazy", "require").env("DOCKER_CONFIG", &config);
    let built = build.run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&expected()), "{}", built.stderr);
    daemon.stop().unwrap();
}

#[test]
fn privileged_answers_that_end_early_are_asked_for_again() {
    for argument in [STARGZ, "--oci-worker-snapshotter=overlayfs"] {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let reference = image().put(&registry, "base:1");
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(argument).start().unwrap();
        let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
        registry.fault(On::new(Method::GET, "/blobs/").skip(2).times(2), Fault::Cut(50_000));
        registry.fault(On::new(Method::GET, "/blobs/").skip(2).times(1), Fault::Status(503, Some("1".into())));
        let built = Build::new(&daemon, &project).run().unwrap().success().unwrap();
        assert!(built.stderr.contains(&expected()), "{argument}:\n{}", built.stderr);
        daemon.stop().unwrap();
    }
}

#[test]
fn privileged_a_registry_that_goes_away_fails_the_step_and_nothing_else() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    image().put(&registry, "base:1");
    let relay = scene.relay(registry.addr());
    let host = relay.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).arg(STARGZ).start().unwrap();
    let lines = "RUN cat /small && echo cut now && while ! test -e /go; do sleep 1; if cat /big > /dev/null; then touch /go; \
                 else exit 9; fi; done && sha256sum /big";
    let project = scene.project("project", &format!("FROM {host}/base:1\n{lines}\n")).unwrap();
    let build = Build::new(&daemon, &project).opt("lazy", "require");
    let mut child = build.spawn().unwrap();
    let mut progress = child.stderr.take().unwrap();
    let mut seen = String::new();
    let mut piece = [0; 4096];
    while !seen.contains(" cut now") {
        let n = std::io::Read::read(&mut progress, &mut piece).unwrap();
        assert!(n > 0, "the build ended:\n{seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    relay.cut();
    std::io::Read::read_to_string(&mut progress, &mut seen).unwrap();
    assert!(!child.wait().unwrap().success(), "{seen}");
    for part in [&format!("{host}/base:1"), "big"] {
        assert!(seen.contains(part), "{part} is not named:\n{seen}");
    }
    relay.mend();
    let built = build.run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&expected()), "{}", built.stderr);
    daemon.stop().unwrap();
}
