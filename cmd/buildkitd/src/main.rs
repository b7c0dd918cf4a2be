//! `buildkitd`: castor's daemon under the name that its users' tools call.
//!
//! `main` reads like a table of contents: settings, lock, namespace, parts, listeners, signals, end.

mod assemble;
mod collector;
mod config;
mod flags;
mod insight;
mod lock;
mod memory;
mod network;
mod notify;
mod otlp;
mod settings;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use castor_task::Scope;
use castor_wire::{Address, BindOptions, Listener, ServerTls};
use tokio::signal::unix::{SignalKind, signal};

use crate::flags::Flags;
use crate::lock::RootLock;
use crate::settings::{LogSettings, Settings};

/// How long an orderly stop may take before the process ends regardless.
const STOP_WITHIN: Duration = Duration::from_secs(25);

/// Libraries that at level debug say a line for every frame or read.
const QUIET: &str = "h2=info,hyper=info,hyper_util=info,tonic=info,tower=info,fuser=info,rustls=info,reqwest=info";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == assemble::SERVE_TREES) {
        return serve_trees();
    }
    let flags = Flags::from_env();
    if flags.version {
        println!("buildkitd castor v{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match start(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildkitd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The life of the process that serves image trees where EROFS cannot be had. It was started by a daemon.
fn serve_trees() -> ExitCode {
    memory::give_back();
    match castor_layerfs::serve_trees() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("buildkitd: serve image trees: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(flags: Flags) -> Result<()> {
    memory::give_back();
    let settings = Settings::new(flags)?;
    log(&settings.log)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let _lock = RootLock::acquire(&settings.root)?;
    // Before any thread exists: the namespace is this thread's, and threads inherit it.
    castor_mount::enter_private_namespace()
        .map_err(|error| anyhow::anyhow!("{error}: it needs root with CAP_SYS_ADMIN; in a container, --privileged"))?;
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(run(&settings));
    // Threads that wait for a peer that is gone do not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn log(settings: &LogSettings) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(format!("{},{QUIET}", settings.level))
        .with_context(|| format!("log level {:?}", settings.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if settings.json {
        builder.json().init()
    } else {
        builder.with_ansi(false).init()
    }
    Ok(())
}

async fn run(settings: &Settings) -> Result<()> {
    let scope = Scope::root("buildkitd");
    let mut stop = Stop::new()?;
    let assembled = assemble::daemon(settings, &scope).await?;
    let listeners = bind(settings)?;
    let serving = scope.child("serving");
    if let Some(address) = &settings.debug_address {
        let insight = insight::DaemonInsight::new(&assembled, !settings.worker.stargz.no_prometheus);
        let bound = castor_control::serve_debug(address, insight, &serving).await?;
        tracing::info!("debug address {bound}");
    }
    for listener in &listeners {
        tracing::info!("running server on {}", listener.address());
    }
    notify::tell(notify::READY);
    let serve = castor_control::serve(assembled.daemon.clone(), listeners, &serving);
    tokio::pin!(serve);
    tokio::select! {
        () = &mut serve => {}
        name = stop.next() => {
            tracing::info!("{name}: stopping");
            notify::tell(notify::STOPPING);
            serving.cancel();
            tokio::select! {
                () = &mut serve => {}
                name = stop.next() => tracing::warn!("{name} again: not waiting for builds"),
            }
        }
    }
    end(scope, assembled).await
}

/// Ends what builds leave: layers, whatever else has tasks, the database. Bounded, so that a fetch that hangs does not
/// keep the process.
async fn end(scope: Scope, assembled: assemble::Assembled) -> Result<()> {
    let ending = async {
        if let Err(still) = assembled.executor.close(STOP_WITHIN / 4).await {
            tracing::warn!("{still}");
        }
        assembled.engine.shutdown().await;
        if let Err(still) = scope.close(STOP_WITHIN / 2).await {
            tracing::warn!("{still}");
        }
        castor_task::blocking(move || assembled.db.close()).await.context("close the database")
    };
    match tokio::time::timeout(STOP_WITHIN, ending).await {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::warn!("not everything ended within {STOP_WITHIN:?}");
            Ok(())
        }
    }
}

fn bind(settings: &Settings) -> Result<Vec<Listener>> {
    let tls = settings.tls.as_ref().map(|tls| ServerTls {
        certificate: tls.cert.clone(),
        key: tls.key.clone(),
        client_authorities: tls.ca.clone(),
    });
    settings
        .addresses
        .iter()
        .map(|text| {
            let address: Address = text.parse().with_context(|| format!("address {text:?}"))?;
            if let Address::Tcp { .. } = address
                && tls.is_none()
            {
                tracing::warn!("TLS is not enabled for {text}: anyone who can reach it can build as root");
            }
            let options = BindOptions { owner: Some(settings.socket_owner), tls: tls.clone() };
            Listener::bind(&address, &options).with_context(|| format!("listen on {text}"))
        })
        .collect()
}

/// The signals that ask for an end.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
