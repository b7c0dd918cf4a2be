//! What is said of results beside them: bills of materials.

#![allow(clippy::unwrap_used)]

use castor_integration::build::Build;
use castor_integration::daemon::Daemon;
use castor_integration::scene::{Scene, base};
use castor_oci::{Digest, Index, Manifest};
use castor_testkit::{Form, Registry};
use serde_json::{Value, json};

/// Writes one statement about what it was given, and one about each thing more.
const SCANNER: &str = r#"#!/bin/sh
set -e
test -w /tmp
head='{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","subject":null,"predicate":'
made() {
    list=
    for file in $(cd "$1" && find . -type f | sort); do
        list="$list${list:+,}{\"SPDXID\":\"SPDXRef-File\",\"fileName\":\"${file#.}\"}"
    done
    echo "$head{\"spdxVersion\":\"SPDX-2.3\",\"name\":\"$2\",\"files\":[$list],\"creationInfo\":{\"creators\":[\"Tool: test\"]}}}"
}
made "$BUILDKIT_SCAN_SOURCE" "core $BUILDKIT_SCAN_WORDS" > "$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
for extra in ${BUILDKIT_SCAN_SOURCE_EXTRAS:+$BUILDKIT_SCAN_SOURCE_EXTRAS/*}; do
    made "$extra" extra > "$BUILDKIT_SCAN_DESTINATION/$(basename "$extra").spdx.json"
done
! touch "$BUILDKIT_SCAN_SOURCE/new" 2> /dev/null
"#;

/// Makes the scanner's image, and what it runs on.
fn scanner(scene: &Scene, registry: &Registry, daemon: &Daemon) -> String {
    let host = registry.host();
    let base = base(Form::Gzip, &[]).unwrap().put(registry, "base:1");
    let dockerfile = format!("FROM {base}\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/bin/sh\"]\nCMD [\"/scan\"]\n");
    let project = scene.project("scanner", &dockerfile).unwrap().file("scan", SCANNER).unwrap();
    let output = format!("type=image,name={host}/scanner:1,push=true");
    Build::new(daemon, &project).output(output).run().unwrap().success().unwrap();
    format!("{host}/scanner:1")
}

/// The image `name:1` and the statements about it.
fn statements(registry: &Registry, name: &str) -> (Manifest, Vec<(String, Value)>) {
    let index: Index = serde_json::from_slice(&registry.get_manifest(name, "1").unwrap().1).unwrap();
    let [image, attestation] = index.manifests.as_slice() else { panic!("{index:?}") };
    assert_eq!(attestation.annotations["vnd.docker.reference.digest"], image.digest.to_string());
    let get = |digest: &Digest| registry.get_manifest(name, &digest.to_string()).unwrap().1;
    let image: Manifest = serde_json::from_slice(&get(&image.digest)).unwrap();
    let attestation: Manifest = serde_json::from_slice(&get(&attestation.digest)).unwrap();
    let read = |layer: &castor_oci::Descriptor| {
        let blob = registry.get_blob(name, &layer.digest).unwrap();
        (layer.annotations["in-toto.io/predicate-type"].clone(), serde_json::from_slice(&blob).unwrap())
    };
    (image, attestation.layers.iter().map(read).collect())
}

#[test]
fn privileged_a_bill_of_materials_goes_with_the_image() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).start().unwrap();
    let scanner = scanner(&scene, &registry, &daemon);
    let dockerfile = format!(
        "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nFROM {host}/base:1 AS tools\nARG BUILDKIT_SBOM_SCAN_STAGE=true\n\
         RUN rm -r /bin/* && echo t > /tool\nFROM {host}/base:1 AS unseen\nRUN echo u > /u\n\
         FROM scratch\nCOPY given /a/given\nCOPY --from=tools /tool /tool\nCOPY --from=unseen /u /u\n"
    );
    let project = scene.project("project", &dockerfile).unwrap().file("given", "given").unwrap();
    let output = format!("type=image,name={host}/image:1,push=true");
    let option = format!("generator={scanner},WORDS=in quotes");
    let build = Build::new(&daemon, &project).opt("attest:sbom", &option);
    let outcome = build.clone().output(output).opt("attest:provenance", "mode=min").run().unwrap().success().unwrap();
    let shown = format!("generating sbom using {scanner}");
    assert!(outcome.stderr.contains(&shown), "{}", outcome.stderr);

    let (image, statements) = statements(&registry, "image");
    let kinds: Vec<&str> = statements.iter().map(|(kind, _)| kind.as_str()).collect();
    let spdx = "https://spdx.dev/Document";
    assert_eq!(kinds, [spdx, spdx, spdx, "https://slsa.dev/provenance/v1"]);
    let core = &statements[0].1;
    assert_eq!(core["_type"], "https://in-toto.io/Statement/v1");
    assert!(core["subject"][0]["name"].as_str().unwrap().starts_with("pkg:docker/"), "{core}");
    let predicate = &core["predicate"];
    assert_eq!(predicate["name"], "core in quotes");
    let layer = |index: usize| format!("layerID: {}", image.layers[index].digest);
    let file = |name: &str, comment: String| json!({"SPDXID": "SPDXRef-File", "fileName": name, "comment": comment});
    assert_eq!(predicate["files"], json!([file("/a/given", layer(0)), file("/tool", layer(1)), file("/u", layer(2))]));
    let creators = predicate["creationInfo"]["creators"].as_array().unwrap();
    assert!(creators[0] == "Tool: test" && creators[1].as_str().unwrap().starts_with("Tool: castor-"), "{creators:?}");
    let files = |statement: &Value| -> Vec<String> {
        let files = statement["predicate"]["files"].as_array().unwrap();
        files.iter().map(|file| file["fileName"].as_str().unwrap().to_owned()).collect()
    };
    assert!(files(&statements[1].1).contains(&"/given".to_owned()), "{:?}", statements[1]);
    assert!(files(&statements[2].1).contains(&"/tool".to_owned()), "{:?}", statements[2]);
    // The scanner is no material of the image but one that was looked up.
    let out = scene.path("out");
    build.local_output(&out).run().unwrap().success().unwrap();
    for name in ["sbom.spdx.json", "sbom-context.spdx.json", "sbom-tools.spdx.json", "a/given"] {
        assert!(out.join(name).exists(), "{name}");
    }
    let core: Value = serde_json::from_slice(&std::fs::read(out.join("sbom.spdx.json")).unwrap()).unwrap();
    let subjects = core["subject"].as_array().unwrap().iter().map(|subject| subject["name"].as_str().unwrap());
    assert_eq!(subjects.collect::<Vec<_>>(), ["a/given", "tool", "u"]);
    daemon.stop().unwrap();
}

#[test]
fn privileged_scanners_that_fail_fail_the_build() {
    let scene = Scene::new().unwrap();
    let registry = scene.registry();
    let host = registry.host();
    let daemon = scene.daemon("daemon", [host.as_str()]).start().unwrap();
    scanner(&scene, &registry, &daemon);
    let made = |name: &str, command: &str| {
        let dockerfile = format!("FROM {host}/base:1\nENTRYPOINT {command}\n");
        let project = scene.project(name, &dockerfile).unwrap();
        let output = format!("type=image,name={host}/{name}:1,push=true");
        Build::new(&daemon, &project).output(output).run().unwrap().success().unwrap();
        format!("generator={host}/{name}:1")
    };
    let project = scene.project("project", "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let out = scene.path("out");
    let script = |text: &str| json!(["/bin/sh", "-c", text]).to_string();
    let cases = [
        (made("ends", &script("exit 7")), "exit code: 7"),
        (made("nothing", "[]"), "does not have cmd"),
        (made("text", &script("echo no > /run/out/sbom.spdx.json")), "cannot decode in-toto statement: sbom.spdx.json"),
        (made("link", &script("ln -s /etc/passwd /run/out/sbom.spdx.json")), "sbom.spdx.json"),
        (
            made("other", &script("echo '{\"predicateType\":\"https://x/\"}' > /run/out/sbom.json")),
            "bundle entry https://x/ does not match required predicate type https://spdx.dev/Document",
        ),
        (format!("generator={host}/none:1"), "failed to resolve source metadata for"),
        ("generator=".to_owned(), "sbom generator cannot be empty"),
    ];
    for (option, words) in cases {
        let build = Build::new(&daemon, &project).opt("attest:sbom", &option).local_output(&out);
        let error = build.run().unwrap().failure().unwrap();
        assert!(error.contains(words), "{option}: {error}");
    }
    daemon.stop().unwrap();
}
