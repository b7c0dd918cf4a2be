//! The `castor-buildctl` binary.

fn main() {}
