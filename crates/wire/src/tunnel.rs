//! A byte stream in the messages of a gRPC stream.
//!
//! A client opens a stream of messages to the daemon; the bytes in them are an
//! HTTP/2 connection on which the client is the server. Where a message ends
//! means nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use castor_proto::control::BytesMessage;
use castor_task::CancellationToken;
use futures::Stream;
use futures::stream::{BoxStream, StreamExt as _};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{PollSender, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::{Channel, Uri};
use tower::service_fn;

use crate::{CONNECTION_WINDOW, HEADER_LIST, MAX_STREAMS, STREAM_WINDOW, endpoint};

/// Messages in flight before a writer waits for the outer stream.
const IN_FLIGHT: usize = 16;
/// The largest message that is written. A peer with gRPC's usual limit of 4 MiB
/// takes it.
const LARGEST: usize = 256 << 10;

/// The byte stream.
pub struct Tunnel {
    incoming: BoxStream<'static, Result<BytesMessage, Status>>,
    unread: Bytes,
    ended: bool,
    outgoing: PollSender<BytesMessage>,
    closed: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The messages that a [`Tunnel`] writes; its end is the end of the tunnel's
/// writing side.
pub struct Outgoing {
    messages: mpsc::Receiver<BytesMessage>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Makes a tunnel of the messages that come in; what it writes comes out of the
/// other half.
///
/// `closed` is cancelled when the peer has ended its stream or the tunnel is
/// dropped; whoever cancels it ends both directions at once.
pub fn tunnel(
    incoming: impl Stream<Item = Result<BytesMessage, Status>> + Send + 'static,
    closed: CancellationToken,
) -> (Tunnel, Outgoing) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let tunnel = Tunnel {
        incoming: incoming.boxed(),
        unread: Bytes::new(),
        ended: false,
        outgoing: PollSender::new(sender),
        cancelled: Box::pin(closed.clone().cancelled_owned()),
        closed: closed.clone(),
    };
    (tunnel, Outgoing { messages: receiver, cancelled: Box::pin(closed.cancelled_owned()) })
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl Stream for Outgoing {
    type Item = BytesMessage;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BytesMessage>> {
        match self.messages.poll_recv(cx) {
            Poll::Pending if self.cancelled.as_mut().poll(cx).is_ready() => Poll::Ready(None),
            result => result,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An empty message is no end.
        while self.unread.is_empty() && !self.ended {
            if self.cancelled.as_mut().poll(cx).is_ready() {
                self.ended = true;
                break;
            }
            match ready!(self.incoming.poll_next_unpin(cx)) {
                Some(Ok(message)) => self.unread = message.data,
                Some(Err(status)) => {
                    self.ended = true;
                    self.closed.cancel();
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, status.message().to_owned())));
                }
                None => {
                    self.ended = true;
                    self.closed.cancel();
                }
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outgoing.poll_reserve(cx)).map_err(|_| broken())?;
        let count = bytes.len().min(LARGEST);
        let data = Bytes::copy_from_slice(&bytes[..count]);
        self.outgoing.send_item(BytesMessage { data }).map_err(|_| broken())?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}

/// A channel over one connection that exists already. Once that is lost, every
/// call fails.
pub async fn channel_over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = service_fn(move |_: Uri| {
        let stream =
            stream.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is closed"));
        futures::future::ready(stream)
    });
    endpoint().connect_with_connector(connector).await
}

/// Serves one connection until the peer closes it or `stop` is cancelled; then
/// calls that are under way may end first.
pub async fn serve_over<S>(stream: S, services: Routes, stop: &CancellationToken) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEADER_LIST);
    let service = TowerToHyperService::new(services.prepare());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = &mut connection => return result,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // A peer that was told of the end may close before the last frame is
    // written.
    let _ = connection.await;
    Ok(())
}
