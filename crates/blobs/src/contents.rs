//! What files are in a layer.

use std::collections::HashSet;
use std::sync::Arc;

use castor_archive::tar::Reader;
use castor_solver::Cx;

use crate::{BlobError, Blobs, LayerBlob, pipeline};

/// The beginning of names that say what is gone.
const WHITEOUT: &[u8] = b".wh.";

impl Blobs {
    /// Which of these paths, in the form that [`plain_path`] gives, the layer brings. All of its bytes are fetched for that.
    pub async fn containing(
        &self,
        cx: &Cx,
        layer: &LayerBlob,
        paths: Arc<HashSet<Vec<u8>>>,
    ) -> Result<HashSet<Vec<u8>>, BlobError> {
        let blob = self.open(cx, layer).await?;
        let digest = layer.descriptor.digest;
        let search = move || {
            let failed = |source| BlobError::Decompress { layer: digest, source };
            let mut reader = Reader::new(pipeline::plain_tar(&blob).map_err(failed)?);
            let mut found = HashSet::new();
            while let Some(header) = reader.next().map_err(|error| failed(std::io::Error::other(error)))? {
                let path = plain_path(&header.path);
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                if !name.starts_with(WHITEOUT) && paths.contains(&path) {
                    found.insert(path);
                }
            }
            Ok(found)
        };
        castor_task::blocking(search).await
    }
}

/// A path seen from the root, without `.`, `..` and slashes at its ends.
pub fn plain_path(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::plain_path;

    #[test]
    fn paths_have_one_form() {
        for path in ["a/b", "/a/b/", "./a//b", "../a/x/../b", "/a/./b"] {
            assert_eq!(plain_path(path.as_bytes()), b"a/b");
        }
        assert!(plain_path(b"/").is_empty());
    }
}
