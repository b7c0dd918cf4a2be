//! How castor's programs talk: gRPC over sockets, and gRPC through gRPC.
//!
//! - [`Address`], [`Listener`] and [`dial`] open connections, with or without TLS;
//!   [`server`] and [`endpoint`] hold the limits both sides agree on.
//! - [`tunnel`] turns a stream of messages into a byte stream, over which the
//!   roles flip: the client of the outer connection serves, see [`channel_over`]
//!   and [`serve_over`].
//! - [`Failure`] is an error with BuildKit's typed details, to and from a status.
//! - [`RawCodec`] carries messages without looking into them, for a method whose
//!   frames are of two types.
//! - [`headers`] writes lists of texts into metadata.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod codec;
mod connect;
mod failure;
pub mod headers;
mod listen;
mod tls;
mod tunnel;

pub use address::{Address, AddressError};
pub use codec::RawCodec;
pub use connect::{DialError, dial, dial_raw, endpoint};
pub use failure::Failure;
pub use listen::{BindError, BindOptions, Connection, Listener, Peer, server};
pub use tls::{ClientTls, ServerTls, TlsError};
pub use tunnel::{Outgoing, Tunnel, channel_over, serve_over, tunnel};

/// The largest message in either direction. Definitions and progress exceed
/// gRPC's usual 4 MiB.
pub const MAX_MESSAGE: usize = 16 << 20;

/// How much a peer may send on one stream before it is read.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// How much a peer may send on all streams of a connection before it is read.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest list of headers. Patterns travel as headers, and error details
/// with a whole source file as trailers.
pub(crate) const HEADER_LIST: u32 = 16 << 20;
/// Streams of one connection. Every build of a client holds several open.
pub(crate) const MAX_STREAMS: u32 = 1 << 16;

/// Lifts the message limits of a generated client or server to
/// [`MAX_MESSAGE`].
#[macro_export]
macro_rules! limited {
    ($service:expr) => {
        $service.max_decoding_message_size($crate::MAX_MESSAGE).max_encoding_message_size($crate::MAX_MESSAGE)
    };
}
