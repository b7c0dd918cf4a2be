//! The checked-in code is what the schemas generate.

#![allow(clippy::unwrap_used)]

mod generate;

use std::collections::BTreeMap;
use std::path::Path;

fn files(folder: &Path) -> BTreeMap<String, String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn checked_in_code_is_what_the_schemas_generate() {
    let folder = tempfile::tempdir().unwrap();
    generate::into(folder.path()).unwrap();
    let (fresh, checked_in) = (files(folder.path()), files(&generate::checked_in()));
    assert_eq!(
        fresh.keys().collect::<Vec<_>>(),
        checked_in.keys().collect::<Vec<_>>(),
        "files differ: run `cargo run -p castor-proto --example regenerate`"
    );
    for (name, text) in &fresh {
        assert!(text == &checked_in[name], "{name} is stale: run `cargo run -p castor-proto --example regenerate`");
    }
}
