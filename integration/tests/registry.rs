//! Registries that want to know who asks, forget it, and go away.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use castor_integration::build::Build;
use castor_integration::scene::{STARGZ, Scene, base, comes_true, noise};
use castor_oci::Digest;
use castor_testkit::{Auth, Fault, File, Form, Image, On, Registry};
use http::Method;

/// The longest that a build may take to end, well or ill.
const PATIENCE: Duration = Duration::from_secs(600);

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
    let image = image();
    image.put(&registry, "base:1");
    let relay = scene.relay(registry.addr());
    let host = relay.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).arg(STARGZ).start().unwrap();
    let lines = "RUN cat /small && sha256sum /big";
    let project = scene.project("project", &format!("FROM {host}/base:1\n{lines}\n")).unwrap();
    let build = Build::new(&daemon, &project).opt("lazy", "require");
    // Noise does not compress: the middle of the blob is the middle of the big file. The registry goes while that is waited for.
    let layer = &image.layers[1].descriptor;
    let (digest, middle) = (layer.digest.to_string(), layer.size / 2);
    registry.fault(On::new(Method::GET, &digest).over(middle), Fault::Silence);
    let running = build.start().unwrap();
    let is_waited_for = || {
        let log = registry.log_of(&digest);
        log.iter().filter_map(castor_testkit::Logged::asked_for).any(|range| range.contains(&middle))
    };
    assert!(comes_true(is_waited_for), "nobody reads the layer");
    relay.cut();
    let error = running.wait(PATIENCE).unwrap().failure().unwrap();
    let named = format!("read /big in layer {digest} of {host}/base:1@");
    assert!(error.contains(&named), "{named} is not said:\n{error}");
    registry.heal();
    relay.mend();
    let built = build.run().unwrap().success().unwrap();
    assert!(built.stderr.contains(&expected()), "{}", built.stderr);
    daemon.stop().unwrap();
}
