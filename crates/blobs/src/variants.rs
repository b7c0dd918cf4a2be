//! The blobs that a record has, remembered with it.

use castor_oci::{Descriptor, Digest};
use castor_store::ImmutableRef;
use serde::{Deserialize, Serialize};

use crate::{Compression, Form};

/// A blob of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Variant {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    /// The level it was asked for with.
    pub(crate) level: Option<u32>,
}

/// The label of the blob of a form.
fn label(form: Form) -> String {
    format!("blob.{}", form.name())
}

/// Remembers `variant` with the record; one for each form.
pub(crate) fn remember(record: &ImmutableRef, compression: Compression, variant: &Variant) {
    // A descriptor serialises: it has string keys only.
    if let Ok(text) = serde_json::to_string(variant) {
        record.set_label(&label(compression.form), Some(&text));
    }
}

/// What is remembered that fits, best first: the form asked for, and any other if that is not forced, for blobs that
/// exist keep their form. A level that is forced must be the one the blob was made with.
pub(crate) fn remembered(record: &ImmutableRef, compression: Compression) -> Vec<Variant> {
    let read = |form: Form| -> Option<Variant> {
        let variant: Variant = serde_json::from_str(&record.label(&label(form))?).ok()?;
        (!compression.force || compression.level.is_none() || compression.level == variant.level).then_some(variant)
    };
    let others = Form::ALL.into_iter().filter(|form| *form != compression.form && !compression.force);
    [compression.form].into_iter().chain(others).filter_map(read).collect()
}
