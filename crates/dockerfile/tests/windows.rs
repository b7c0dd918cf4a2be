//! Images for Windows, of files alone.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use async_trait::async_trait;
use castor_dockerfile::{
    IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, Options, Request, ResolvedImage, Target,
    TimeLookup, convert,
};
use castor_llb::op::{FileActionKind, Op};
use castor_llb::{CapSet, Graph, Limits};
use castor_oci::Platform;

/// Has images for Windows.
struct Windows;

#[async_trait]
impl MetaResolver for Windows {
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError> {
        let config = br#"{"os":"windows","architecture":"amd64","os.version":"10.0.1","config":{"WorkingDir":"C:\\base"},
                         "rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}"#;
        Ok(ResolvedImage { reference: image.reference.clone(), digest: None, config: config.to_vec() })
    }

    async fn source_time(&self, _: &TimeLookup) -> Result<Option<i64>, LookupError> {
        Ok(None)
    }

    async fn ignore_file(&self, _: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError> {
        Ok(None)
    }
}

fn build(dockerfile: &str) -> Result<Target, String> {
    let options = Options::from_attrs(&BTreeMap::new(), "s", BTreeMap::new()).unwrap();
    let request = Request {
        dockerfile: dockerfile.as_bytes(),
        options: &options,
        dockerfile_definition: None,
        build_platform: Platform::new("linux", "amd64", ""),
        target_platform: Some(Platform::new("windows", "amd64", "")),
        caps: CapSet::supported(),
        lint: true,
    };
    futures::executor::block_on(convert(&request, &Windows)).map_err(|error| error.to_string())
}

/// Where copies go.
fn destinations(target: &Target) -> Vec<String> {
    let graph = Graph::decode(&target.definition.to_pb(), &Limits::default()).unwrap();
    let actions = graph.vertices.iter().flat_map(|vertex| match &vertex.op {
        Op::File(file) => file.actions.clone(),
        _ => Vec::new(),
    });
    let copied = |kind: &FileActionKind| match kind {
        FileActionKind::Copy(copy) => Some(copy.dest.clone()),
        _ => None,
    };
    actions.filter_map(|action| copied(&action.kind)).collect()
}

#[test]
fn paths_have_drives_and_backslashes_where_programs_read_them() {
    let target =
        build("# escape=`\nFROM nanoserver\nCOPY a C:\\one\\\nWORKDIR sub\nCOPY a .\nCOPY a c:\\two\nCMD run\n")
            .unwrap();
    assert_eq!(destinations(&target), ["/one/", "/base/sub/", "/two"]);
    let config = &target.config.config;
    assert_eq!(config.working_dir, r"\base\sub");
    assert_eq!(config.cmd.as_deref().unwrap(), ["cmd", "/S", "/C", "run"]);
    assert!(config.env.is_empty(), "{:?}", config.env);
    assert_eq!((target.config.platform.os.as_str(), target.config.platform.os_version.as_str()), ("windows", "10.0.1"));
    let scratch = build("FROM scratch\nCOPY a /data\n").unwrap();
    assert_eq!(scratch.config.config.env, Vec::<String>::new());
}

#[test]
fn there_is_one_drive() {
    let error = build("# escape=`\nFROM nanoserver\nCOPY a D:\\one\n").unwrap_err();
    assert_eq!(error, "removing drive letter: The specified path is not on the system drive (C:)");
}
