//! As much of an HTTP client as pushing an image needs.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Sends one request to `host` over plain HTTP; `target` is a path with query, or a URL at that host.
pub(crate) async fn send(host: &str, method: Method, target: &str, kind: &str, body: Bytes) -> Response<Bytes> {
    let stream = TcpStream::connect(host).await.unwrap_or_else(|e| panic!("connect to {host}: {e}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let target = target.strip_prefix(&format!("http://{host}")).unwrap_or(target);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, kind)
        .body(Full::<Bytes>::new(body).map_err(|never: Infallible| match never {}))
        .unwrap();
    let exchange = async {
        let response = sender.send_request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        Response::from_parts(head, body)
    };
    let (response, _) = tokio::join!(exchange, connection);
    response
}
