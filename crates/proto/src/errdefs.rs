//! Typed error details, as JSON.
