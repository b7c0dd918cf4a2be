//! Git references.
