//! Registries that misbehave while a step reads: the step ends in the configured time, the build says why, and the daemon goes on.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::scene::{STARGZ, Scene, base, comes_true, noise};
use castor_testkit::{Fault, File, Form, On};
use http::Method;

#[test]
fn privileged_a_registry_that_misbehaves_while_a_step_reads_is_named() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let table = "[worker.oci.stargzSnapshotter.blob]\nfetching_timeout_sec = 3";
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).config(table).start().unwrap();
    let faults = [
        (Fault::Stall(100), "no answer within 3s"),
        (Fault::Silence, "no answer within 3s"),
        (Fault::Status(429, Some("600".into())), "429"),
        (Fault::Status(403, None), "403"),
        (Fault::Unsatisfiable, "416"),
        (Fault::ShiftedRange(1), "is not what was asked for"),
        (Fault::Encoded, "Content-Encoding"),
    ];
    for (number, (fault, cause)) in faults.into_iter().enumerate() {
        let big = noise(100 + number as u64, 2 << 20);
        let image = base(Form::Estargz, &[File::new("small", "small\n"), File::new("big", big)]).unwrap();
        let reference = image.put(&registry, &format!("base{number}:1"));
        let layer = image.layers[1].descriptor.digest;
        let project = scene.project("project", &format!("FROM {reference}\nRUN cat /big > /dev/null\n")).unwrap();
        let build = Build::new(&daemon, &project).opt("lazy", "require");
        // The first request is for the end of the layer, where its table of contents is.
        registry.fault(On::new(Method::GET, layer.to_string()).skip(1), fault.clone());
        let error = build.run().unwrap().failure().unwrap();
        for part in [cause, &layer.to_string(), &reference.to_string(), "/big"] {
            assert!(error.contains(part), "{fault:?}: {part} is not named:\n{error}");
        }
        registry.heal();
        // Who comes at once may find requests that are given up a moment later.
        assert!(comes_true(|| build.run().unwrap().success().is_ok()), "{fault:?} is never over");
    }
    daemon.stop().unwrap();
}

#[test]
fn privileged_what_passes_while_a_step_reads_is_not_seen() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
    let faults = [
        (2, Fault::Cut(1000)),
        (2, Fault::Hangup),
        (2, Fault::Status(503, Some("1".into()))),
        (2, Fault::Status(429, Some("0".into()))),
        (1, Fault::ShiftedRange(9)),
        (1, Fault::Encoded),
        (3, Fault::Short(1000)),
    ];
    for (number, (times, fault)) in faults.into_iter().enumerate() {
        let big = noise(200 + number as u64, 2 << 20);
        let image = base(Form::Estargz, &[File::new("big", big.clone())]).unwrap();
        let reference = image.put(&registry, &format!("base{number}:1"));
        let layer = image.layers[1].descriptor.digest;
        let project = scene.project("project", &format!("FROM {reference}\nRUN sha256sum /big\n")).unwrap();
        registry.fault(On::new(Method::GET, layer.to_string()).skip(1).times(times), fault.clone());
        let built = Build::new(&daemon, &project).opt("lazy", "require").run().unwrap().success().unwrap();
        let digest = castor_oci::Digest::of(&big).hex();
        assert!(built.stderr.contains(&digest), "{fault:?}:\n{}", built.stderr);
        assert!(registry.log_of(&layer.to_string()).len() > 2, "{fault:?}: it did not happen");
        registry.heal();
    }
    daemon.stop().unwrap();
}
