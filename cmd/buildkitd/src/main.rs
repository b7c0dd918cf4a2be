//! The `castor-buildkitd` binary.

fn main() {}
