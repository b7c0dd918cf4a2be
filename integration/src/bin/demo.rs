//! `make demo`: a Go program is compiled on an eStargz image of which only a part is ever fetched.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use castor_integration::build::Build;
use castor_integration::daemon::Options;
use castor_integration::hello;
use castor_integration::scene::{self, STARGZ};
use castor_testkit::{RealRegistry, Relay, RelayOptions};

const NAME: &str = "go-base";

/// What a lazy build may cost; more is no demonstration.
const MOST: f64 = 20.0;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let place = scene::place("demo-")?;
    if !RealRegistry::installed() {
        bail!("{} is missing: apt-get install docker-registry", RealRegistry::BINARY);
    }
    let registry = RealRegistry::start();
    step("a registry of its own", &format!("docker-registry on {}", registry.host()));

    let begun = Instant::now();
    let root = hello::root_filesystem()?;
    step("a root file system of Debian's packages, and a Go tool chain", &seconds(begun.elapsed()));

    let begun = Instant::now();
    let maker = scene::plain_hosts(Options::new(place.path().join("maker")), [registry.host()]).start()?;
    hello::push_base(&maker, &root, place.path(), &format!("{}/{NAME}:1", registry.host()))?;
    maker.stop()?;
    let image = hello::facts(registry.host(), NAME, "1")?;
    if image.layers != 1 || image.tocs.iter().any(Option::is_none) {
        bail!("the base image should have one layer with a table of contents: {image:?}");
    }
    step("built and pushed by castor as one eStargz layer", &seconds(begun.elapsed()));
    step(
        "the base image",
        &format!("{} compressed, {} uncompressed", megabytes(image.compressed), megabytes(image.uncompressed)),
    );

    let relay = runtime.block_on(Relay::start(registry.addr(), RelayOptions::default()));
    let host = relay.host();
    let daemon = scene::plain_hosts(Options::new(place.path().join("fresh")).arg(STARGZ), [host.as_str()]).start()?;
    step("a fresh daemon that has nothing", daemon.address());

    let project = hello::project(&place.path().join("hello"), &format!("{host}/{NAME}:1"))?;
    let out = place.path().join("out");
    let begun = Instant::now();
    let built = Build::new(&daemon, &project).local_output(&out).run()?.success()?;
    let took = begun.elapsed();
    let (bytes, requests) = (relay.bytes_down(), relay.requests());
    println!("\n{}", built.stderr.trim_end());
    let greeting = hello::greet(&out)?;
    println!("\n$ ./out/hello\n{greeting}\n");

    let begun = Instant::now();
    Build::new(&daemon, &project).local_output(&out).run()?.success()?;
    let again = begun.elapsed();
    daemon.stop()?;

    #[allow(clippy::cast_precision_loss)]
    let share = bytes as f64 * 100.0 / image.compressed as f64;
    println!("fetched          {} of {} ({share:.1} %)", megabytes(bytes), megabytes(image.compressed));
    println!("requests         {requests}");
    println!("build            {}", seconds(took));
    println!("again, cached    {}", seconds(again));
    if share > MOST {
        bail!("{share:.1} % of the image was fetched, more than {MOST} %");
    }
    Ok(())
}

fn step(what: &str, detail: &str) {
    println!("==> {what}: {detail}");
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
