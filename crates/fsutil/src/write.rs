//! Changing a directory.
