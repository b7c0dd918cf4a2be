//! Draws the progress of a recorded build (`buildctl build --trace`) again, at the speed at which it happened.
//!
//! `cargo run -p castor-client --example replay -- trace.json [plain|tty|rawjson]`

use std::io::BufRead as _;
use std::time::Duration;

use castor_client::progress::{Display, Mode};
use castor_client::status::SolveStatus;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: replay TRACE [MODE]")?;
    let mode: Mode = arguments.next().as_deref().unwrap_or("auto").parse()?;
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let feed = tokio::spawn(async move {
        let mut last = None;
        let lines = std::io::BufReader::new(std::fs::File::open(path)?).lines();
        for line in lines {
            let status: SolveStatus = serde_json::from_str(&line?)?;
            let times = status.logs.iter().map(|log| log.timestamp);
            let times = times.chain(status.statuses.iter().map(|status| status.timestamp));
            let times = times.chain(status.vertexes.iter().filter_map(|vertex| vertex.completed.or(vertex.started)));
            if let Some(time) = times.max() {
                let pause = last.map_or(0.0, |last| time.duration_since(last).as_secs_f64());
                tokio::time::sleep(Duration::from_secs_f64(pause.max(0.0))).await;
                last = last.max(Some(time));
            }
            if sender.send(status).await.is_err() {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    });
    Display::new(std::io::stderr(), mode)?.run(receiver).await?;
    feed.await??;
    Ok(())
}
