//! Filters in containerd's syntax.

use std::str::FromStr;

/// A filter of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {}

/// A filter that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse filter {text:?}: {reason}")]
pub struct FilterError {
    /// The filter.
    pub text: String,
    /// What is wrong.
    pub reason: String,
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let _ = text;
        todo!()
    }
}
