//! The generator of this crate's code, shared by the example that writes it
//! and the test that compares it.

use std::path::{Path, PathBuf};

/// Every schema, as a path below the repository's `proto` folder.
const SCHEMAS: &[&str] = &[
    "caps.proto",
    "content.proto",
    "control.proto",
    "filesync.proto",
    "fsutil.proto",
    "gateway.proto",
    "google/rpc/status.proto",
    "llb.proto",
    "policysession.proto",
    "secrets.proto",
    "session_exporter.proto",
    "sourcepolicy.proto",
    "sshforward.proto",
    "upload.proto",
    "worker.proto",
];

/// The folder that holds the generated code.
pub fn checked_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated")
}

/// Generates every file into `folder`.
pub fn into(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let descriptors = protox::compile(SCHEMAS, [&schemas])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .btree_map(".")
        .include_file("mod.rs")
        .emit_rerun_if_changed(false)
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}
