//! Mounts as values, mounts that are nowhere visible, and paths that cannot leave a root.
//!
//! - [`Mount`] is a mount as containerd writes it down: data, nothing is mounted.
//! - [`Detached`] is a mount held by a descriptor: [`erofs`], [`Overlay::mount`], [`bind`], [`fuse`], [`fuse_tree`] make
//!   one. It can be a lower of an overlay while it is attached nowhere, so a daemon that dies leaves nothing behind.
//! - [`Mounted`] is an attached mount, unmounted when dropped.
//! - [`Root`] resolves paths inside a directory as a process would that has it as its root.
//!
//! **Why a child process.** A file system that this process serves through `/dev/fuse` must never be waited for by this
//! process inside the kernel: a mount that opens a served file, or an unmount that waits for a page that is being read,
//! could not be killed, and while this process cannot die, the device stays open and nobody else gets an error either.
//! So such calls are made by a forked child that has closed every descriptor but those it needs (module `child`).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attr;
mod child;
mod detached;
mod erofs;
mod error;
mod loops;
mod namespace;
mod overlay;
mod root;
mod value;

pub use attr::set_attributes;
pub use detached::{Detached, Mounted, bind, unmount_below};
pub use erofs::{Backing, Device, FuseMount, erofs, fuse, fuse_tree};
pub use error::MountError;
pub use namespace::enter_private_namespace;
pub use overlay::{Lower, MAX_LOWERS, Overlay, Upper, Xino};
pub use root::{Root, RootError};
pub use value::{Mount, apply};
