//! Mode `fuse`: image trees as FUSE file systems, served by a process of their own.
//!
//! It is for machines whose kernel has no EROFS, or lets this daemon mount none. The same image of metadata says what the
//! tree is, the same `data` files have the bytes; only who reads them is another.
//!
//! ```text
//!   reader ── kernel ── /dev/fuse ──► server process (module `server`; the tree: module `files`)
//!                                        │ reads `data` of layers that are complete, and what it was told is here
//!                                        ▼
//!                                     socket (module `wire`): "I need these bytes of that layer" / "they are here"
//!                                        ▼
//!                                     daemon (module `client`): planner, registry
//! ```
//!
//! The process is the daemon's own program, started again with another first argument. It gets the device of each mount,
//! the image and the layers' files as descriptors, gives up its capabilities before it reads any of them, and opens nothing.
//!
//! **Deaths.** A reader gets the right bytes or EIO, never zeros: an answer holds exactly what was asked for. What waits is
//! answered when the bytes are here, when they cannot be had, when the daemon is gone, when the time is over, and when its
//! reader is to be killed (a read that the kernel has handed to the server cannot be killed itself).
//!
//! - The daemon is gone, however it died: the server goes on with what it knows to be here, and ends with the last mount.
//! - The server is gone: a second process of the same program (module `keeper`) has the devices too, answers in its place,
//!   and the daemon notes for whom.
//! - All are gone, or the server is on a kernel that cannot be made to ask again (before Linux 6.9): the kernel ends its
//!   mounts' requests with errors, EIO for what waited for a page, ENOTCONN or ECONNABORTED for what asked the server.
//!
//! **No passthrough.** The kernel can read a file of such a tree from another file without asking, but only from its
//! beginning; the payloads of a layer lie in one file, one behind the other.

mod client;
mod files;
mod keeper;
mod server;
mod wire;

pub use client::ServerProgram;
pub(crate) use client::{MountFailure, Tree, TreeLayer, TreeServer};
pub use server::serve_trees;
