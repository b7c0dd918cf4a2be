//! Writing an image.

use std::io::{self, Write};

use crate::tree::Tree;

/// A data device of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSlot {
    /// A label, at most 64 bytes; nothing checks it.
    pub tag: Vec<u8>,
    /// Size of the device in bytes, at most 16 TiB; payloads must end before it.
    pub size: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the image in bytes.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// More than 65535 devices, or one that is too large.
    #[error("invalid device table: {0}")]
    Devices(String),
    /// A file lies outside its device.
    #[error("file of {size} bytes at {offset} of device {device} lies outside of the device")]
    OutsideDevice {
        /// Device number.
        device: u16,
        /// Offset on the device.
        offset: u64,
        /// Size of the file.
        size: u64,
    },
    /// More metadata than 32-bit block numbers can reach, or too many attributes on one node.
    #[error("tree too large for an image: {0}")]
    TooLarge(&'static str),
    /// The output failed.
    #[error("write image")]
    Io(#[from] io::Error),
}

/// Writes the image of what the root of `tree` reaches, in one pass from its first byte to its last.
///
/// Equal trees, devices and UUIDs give equal bytes. Each image needs a UUID of its own: overlayfs stops
/// keeping inode numbers stable when two of its lowers share one.
pub fn write_image(
    tree: &Tree,
    devices: &[DeviceSlot],
    uuid: [u8; 16],
    out: &mut dyn Write,
) -> Result<Written, WriteError> {
    let _ = (tree, devices, uuid, out);
    todo!()
}
