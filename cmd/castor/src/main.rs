//! The `castor-cli` binary.

fn main() {}
