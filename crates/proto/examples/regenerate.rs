//! Writes `src/generated` anew from the repository's `proto` folder.
//!
//! Run `cargo run -p castor-proto --example regenerate` after a change to a
//! `.proto` file; a test compares the two.

#[path = "../tests/generate/mod.rs"]
mod generate;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    generate::into(&generate::checked_in())
}
