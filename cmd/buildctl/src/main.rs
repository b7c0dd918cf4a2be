//! `buildctl`: the client of a build daemon, with the commands of BuildKit's.

mod build;
mod commands;
mod completion;
mod csv;
mod data;
mod failure;
mod flags;
mod gotime;
mod history;
mod log;
mod man;
mod metrics;
mod options;
mod records;
mod stdio;
mod table;
mod template;
mod workers;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use castor_client::{CancellationToken, Client, ClientError, ClientTls, Target, definition};
use flags::{Misuse, Request, Values};

/// How the program ends when there is no such command.
const UNKNOWN_COMMAND: u8 = 3;

fn main() -> ExitCode {
    let (path, values) = match flags::parse(&commands::ROOT, std::env::args().skip(1)) {
        Ok(Request::Run(path, values)) => (path, values),
        Ok(Request::Help(text)) => {
            return exit(failure::show(&text));
        }
        Ok(Request::Version) => {
            let revision = option_env!("CASTOR_REVISION").unwrap_or("-");
            return exit(failure::show(&format!("buildctl castor {} {revision}\n", env!("CARGO_PKG_VERSION"))));
        }
        Err(Misuse::Flag { message, help }) => {
            complain(&format!("Incorrect Usage: {message}\n\n"));
            // The mistake is said whether or not the help can be.
            let _ = failure::show(&help);
            complain(&format!("error: {message}\n"));
            return ExitCode::FAILURE;
        }
        Err(Misuse::Unknown(name)) => {
            complain(&format!("No help topic for '{name}'\n"));
            return ExitCode::from(UNKNOWN_COMMAND);
        }
    };
    match run(&path, &values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            failure::report(&err, values.bool("debug"));
            ExitCode::FAILURE
        }
    }
}

fn exit(shown: io::Result<()>) -> ExitCode {
    if shown.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes to standard error; where that is closed there is nobody to tell.
fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn run(path: &[&str], values: &Values) -> Result<()> {
    log::start(values.text("log-format"), values.bool("debug"))?;
    match path {
        ["debug", "dump-llb"] => return dump(values),
        ["completion"] => {
            let shell = values.arguments.first().map(String::as_str);
            failure::show(&completion::script(&commands::ROOT, shell)?)?;
            return Ok(());
        }
        ["man"] => return manual(values),
        _ => {}
    }
    let target = target(values)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(cancel_on_signals(cancel.clone()));
        command(path, &target, values, &cancel).await
    });
    // Reads of standard input cannot be interrupted.
    runtime.shutdown_background();
    result
}

async fn command(path: &[&str], target: &Target, values: &Values, cancel: &CancellationToken) -> Result<()> {
    let connect = |context| Client::connect(target, context);
    let work = async {
        match path {
            ["du"] => records::usage(&connect("failed to call diskusage").await?, values).await,
            ["prune"] => records::prune(&connect("failed to call prune").await?, values).await,
            ["prune-histories"] => history::prune(target, values).await,
            ["debug", "histories"] => history::list(target, values).await,
            ["debug", "logs"] => history::logs(target, values).await,
            ["debug", "get"] => history::get(target, values).await,
            ["debug", "ctl"] => history::control(target, values).await,
            ["debug", "monitor"] => history::monitor(target, values).await,
            ["debug", "workers"] => workers::workers(&connect("failed to list workers").await?, values).await,
            ["debug", "info"] => workers::info(&connect("failed to call info").await?, values).await,
            ["dial-stdio"] => stdio::dial(target).await,
            _ => bail!("unknown command {path:?}"),
        }
    };
    match path {
        // It ends in order when it is cancelled.
        ["build"] => Box::pin(build::build(target, values, cancel)).await,
        _ => tokio::select! {
            result = Box::pin(work) => result,
            () = cancel.cancelled() => Err(ClientError::Canceled.into()),
        },
    }
}

/// The first signal ends what is done in order, the second one at once.
#[expect(clippy::disallowed_methods)] // Whoever asks twice does not want to wait for anything.
async fn cancel_on_signals(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut signal = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    signal().await;
    cancel.cancel();
    signal().await;
    std::process::exit(1);
}

fn target(values: &Values) -> Result<Target> {
    let address = match values.text("addr") {
        "" => std::env::var("BUILDKIT_HOST").ok().filter(|host| !host.is_empty()),
        address => Some(address.to_owned()),
    };
    let file = |name: &str| Some(values.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (mut authorities, mut certificate, mut key) = (file("tlscacert"), file("tlscert"), file("tlskey"));
    if let Some(dir) = file("tlsdir") {
        if authorities.is_some() || certificate.is_some() || key.is_some() {
            bail!("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time");
        }
        authorities = Some(one_of(&dir, "ca.pem", "ca.crt")?);
        certificate = Some(one_of(&dir, "cert.pem", "tls.crt")?);
        key = Some(one_of(&dir, "key.pem", "tls.key")?);
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("could not read certificate/key: both tlscert and tlskey are needed"),
    };
    let server_name = Some(values.text("tlsservername")).filter(|name| !name.is_empty()).map(str::to_owned);
    let tls = (authorities.is_some() || identity.is_some()).then_some(ClientTls { authorities, identity, server_name });
    Ok(Target {
        address: address.unwrap_or_else(|| commands::DEFAULT_ADDRESS.to_owned()),
        tls,
        timeout: Duration::from_secs(values.int("timeout").unwrap_or(5).max(0).unsigned_abs()),
        wait: values.bool("wait"),
    })
}

fn one_of(dir: &Path, first: &str, second: &str) -> Result<PathBuf> {
    let found = [first, second].iter().map(|name| dir.join(name)).find(|path| path.exists());
    found.with_context(|| format!("directory did not contain one of the needed files: {first} or {second}"))
}

/// `man`
fn manual(values: &Values) -> Result<()> {
    match values.text("dir") {
        "" => failure::show(&man::page(&commands::ROOT, &values.arguments)?.text)?,
        dir => man::write_all(&commands::ROOT, Path::new(dir))?,
    }
    Ok(())
}

/// `debug dump-llb`
fn dump(values: &Values) -> Result<()> {
    let mut bytes = Vec::new();
    match values.arguments.first().map(String::as_str) {
        None | Some("-") => {
            io::stdin().read_to_end(&mut bytes).context("read standard input")?;
        }
        Some(path) => bytes = std::fs::read(path).with_context(|| format!("open {path}"))?,
    }
    let read = definition::read(&bytes)?;
    let text = if values.bool("dot") { definition::dot(&read)? } else { definition::dump(&read)? };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
