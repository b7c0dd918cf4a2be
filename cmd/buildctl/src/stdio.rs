//! `dial-stdio`: bytes between standard input and output and the daemon's socket.

use anyhow::{Result, bail};
use castor_client::Target;
use tokio::io::{AsyncWriteExt as _, copy, stdin, stdout};
use tokio::net::UnixStream;

/// Passes bytes on until the daemon's side ends.
pub async fn dial(target: &Target) -> Result<()> {
    let Some((scheme, path)) = target.address.split_once("://") else {
        bail!("invalid address {}", target.address);
    };
    if scheme != "unix" {
        bail!("invalid address {} (expected unix://, got {scheme}://)", target.address);
    }
    let connecting = UnixStream::connect(path);
    let stream = if target.timeout.is_zero() {
        connecting.await
    } else {
        tokio::time::timeout(target.timeout, connecting)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    };
    let stream = stream.map_err(|err| anyhow::anyhow!("dial unix {path}: connect: {err}"))?;
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        copy(&mut stdin(), &mut to).await?;
        // The daemon sees the end; it may still answer.
        to.shutdown().await
    };
    let receiving = async {
        let mut out = stdout();
        copy(&mut from, &mut out).await?;
        out.flush().await
    };
    tokio::pin!(receiving);
    tokio::select! {
        sent = sending => {
            sent?;
            receiving.await?;
        }
        // A terminal's input never ends: that is not waited for.
        received = &mut receiving => received?,
    }
    Ok(())
}
