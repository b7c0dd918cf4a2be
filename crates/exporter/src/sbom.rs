//! A bill of materials in SPDX's form learns what layer each file is in, and who told it.

use std::collections::HashSet;
use std::sync::Arc;

use castor_blobs::{Blobs, LayerBlob};
use castor_oci::Digest;
use castor_solver::Cx;
use serde_json::{Map, Value, json};

use crate::{Attestation, ExportError};

/// The versions of the form that are understood.
const VERSIONS: [&str; 3] = ["SPDX-2.1", "SPDX-2.2", "SPDX-2.3"];
/// The tool that is named as a creator.
const TOOL: &str = concat!("Tool: castor-v", env!("CARGO_PKG_VERSION"));

/// The bill of materials with a comment on each file that has none: the layer, of `layers`, that the file is in. What is
/// not of the form stays as it is.
pub(crate) async fn with_layers(
    blobs: &Blobs,
    cx: &Cx,
    attestation: &Attestation,
    layers: &[LayerBlob],
) -> Result<Attestation, ExportError> {
    let unchanged = || Ok(attestation.clone());
    let Ok(Value::Object(mut document)) = serde_json::from_slice(&attestation.predicate) else { return unchanged() };
    if !document.get("spdxVersion").and_then(Value::as_str).is_some_and(|version| VERSIONS.contains(&version)) {
        return unchanged();
    }
    let mut wanted: HashSet<Vec<u8>> = uncommented(&mut document).map(|(path, _)| path).collect();
    let mut found = std::collections::HashMap::<Vec<u8>, Digest>::new();
    for layer in layers.iter().rev() {
        if wanted.is_empty() {
            break;
        }
        let asked = Arc::new(std::mem::take(&mut wanted));
        let here = blobs.containing(cx, layer, asked.clone()).await.map_err(Arc::new)?;
        wanted = asked.difference(&here).cloned().collect();
        found.extend(here.into_iter().map(|path| (path, layer.descriptor.digest)));
    }
    for (path, file) in uncommented(&mut document) {
        if let Some(layer) = found.get(&path) {
            file.insert("comment".to_owned(), json!(format!("layerID: {layer}")));
        }
    }
    if !add_creator(&mut document) {
        return unchanged();
    }
    let predicate = serde_json::to_vec(&document).map_err(ExportError::Attestation)?.into();
    Ok(Attestation { predicate, ..attestation.clone() })
}

/// Names castor among those who made the document; whether there is a place for that.
fn add_creator(document: &mut Map<String, Value>) -> bool {
    let info = document.entry("creationInfo").or_insert(Value::Null);
    if info.is_null() {
        *info = json!({"creators": [], "created": ""});
    }
    let Some(info) = info.as_object_mut() else { return false };
    let creators = info.entry("creators").or_insert(Value::Null);
    if creators.is_null() {
        *creators = json!([]);
    }
    match creators {
        Value::Array(creators) => creators.push(json!(TOOL)),
        _ => return false,
    }
    true
}

/// Files without a comment, and their paths as layers have them.
fn uncommented(document: &mut Map<String, Value>) -> impl Iterator<Item = (Vec<u8>, &mut Map<String, Value>)> {
    let files = document.get_mut("files").and_then(Value::as_array_mut);
    files.into_iter().flatten().filter_map(Value::as_object_mut).filter_map(|file| {
        if file.get("comment").and_then(Value::as_str).is_some_and(|comment| !comment.is_empty()) {
            return None;
        }
        let path = castor_blobs::plain_path(file.get("fileName")?.as_str()?.as_bytes());
        Some((path, file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_comment_are_found_by_their_path() {
        let document = json!({"files": [
            {"fileName": "./bin/x"}, {"fileName": "/etc/../etc/y", "comment": ""}, {"fileName": "/z", "comment": "mine"},
            {"SPDXID": "no name"}, "no object",
        ]});
        let Value::Object(mut document) = document else { unreachable!() };
        let paths: Vec<Vec<u8>> = uncommented(&mut document).map(|(path, _)| path).collect();
        assert_eq!(paths, [b"bin/x".to_vec(), b"etc/y".to_vec()]);
    }

    #[test]
    fn go_writes_null_where_nobody_is_named() {
        for text in [r#"{}"#, r#"{"creationInfo":null}"#, r#"{"creationInfo":{"creators":null,"x":1}}"#] {
            let mut document = serde_json::from_str(text).unwrap();
            assert!(add_creator(&mut document));
            assert_eq!(document["creationInfo"]["creators"], json!([TOOL]), "{text}");
        }
        assert!(!add_creator(&mut serde_json::from_str(r#"{"creationInfo":[]}"#).unwrap()));
    }
}
