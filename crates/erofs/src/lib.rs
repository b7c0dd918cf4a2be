//! EROFS images of metadata alone.
//!
//! An image holds the tree: names, inodes, attributes, symlink targets, extended attributes. The bytes of
//! its regular files lie on other devices, at places that the image names; the kernel, or a reader of this
//! crate, puts the two together. So one small image, built in milliseconds, stands for any number of layers.
//!
//! * [`Tree`] collects the nodes, compactly, in any order;
//! * [`write_image`] turns it into an image: the same tree always gives the same bytes;
//! * [`Image`] reads an image, trusting nothing in it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod format;
pub mod read;
mod tree;
mod write;
mod xattr;

pub use castor_archive::Timestamp;
pub use read::{Image, ReadError};
pub use tree::{Attributes, Body, Extent, Kind, NodeId, Tree, TreeError};
pub use write::{DeviceSlot, WriteError, Written, write_image};

/// Block size of the images written here; payloads on data devices are aligned to it.
pub const BLOCK_SIZE: u64 = 4096;
