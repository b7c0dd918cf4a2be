//! Containers that whoever drives a build starts, and the processes in them: one stream of messages, in which many processes
//! may be under way.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use castor_llb::op::{HostIp, NetMode, SecretEnv, SecurityMode};
use castor_ops::bridge::{ContainerMount, ContainerRequest, code};
use castor_ops::{BridgeError, Container, ContainerProcess, Input, Output, ProcessFailure, Stdio, WindowSize};
use castor_proto::gateway::exec_message::Input as Message;
use castor_proto::gateway::{self as wire, ExecMessage};
use castor_proto::{pb, rpc};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::build::Gateway;
use crate::failure::to_failure;

/// Bytes on their way to or from a process.
const PIPE: usize = 64 << 10;
/// Messages on their way to the client.
const MESSAGES: usize = 16;
/// The exit code of what did not run, or whose end was not seen.
const UNKNOWN_EXIT_CODE: u32 = 255;
/// How many containers one build may have, and processes one stream.
const MAX: usize = 256;

/// The containers of a build, by the names that its driver gave them.
#[derive(Debug, Default)]
pub(super) struct Containers(Mutex<HashMap<String, Arc<Container>>>);

impl Containers {
    fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.0.lock().get(id).cloned()
    }

    fn add(&self, id: String, container: Arc<Container>) -> Result<(), Arc<Container>> {
        let mut known = self.0.lock();
        if known.contains_key(&id) || known.len() >= MAX {
            return Err(container);
        }
        known.insert(id, container);
        Ok(())
    }

    /// Ends all of them.
    pub(super) async fn release(&self) {
        let all: Vec<_> = self.0.lock().drain().collect();
        for (_, container) in all {
            container.release().await;
        }
    }
}

impl Gateway {
    pub(super) async fn new_container(&self, request: wire::NewContainerRequest) -> Result<(), BridgeError> {
        let id = request.container_id;
        let exists = || BridgeError::new(code::ALREADY_EXISTS, format!("Container {id} already exists"));
        if self.containers().get(&id).is_some() {
            return Err(exists());
        }
        let mount = |mount: pb::Mount| {
            let missing = |error: BridgeError| {
                error.context(format!("failed to find ref {} for {:?} mount", mount.result_id, mount.dest))
            };
            let reference = match mount.result_id.as_str() {
                "" => None,
                id => Some(self.existing(id).map_err(missing)?),
            };
            let mount = castor_llb::container_mount(mount).map_err(|error| BridgeError::unknown(error.to_string()))?;
            Ok(ContainerMount { mount, reference })
        };
        let network = match pb::NetMode::try_from(request.network) {
            Ok(pb::NetMode::Unset) => NetMode::Unset,
            Ok(pb::NetMode::Host) => NetMode::Host,
            Ok(pb::NetMode::None) => NetMode::None,
            Err(_) => return Err(super::convert::invalid(format!("invalid network mode {}", request.network))),
        };
        let host = |host: pb::HostIp| HostIp { host: host.host, ip: host.ip };
        let wanted = ContainerRequest {
            mounts: request.mounts.into_iter().map(mount).collect::<Result<_, BridgeError>>()?,
            network,
            hostname: request.hostname,
            extra_hosts: request.extra_hosts.into_iter().map(host).collect(),
        };
        let container = self.bridge().container(wanted).await?;
        if let Err(surplus) = self.containers().add(id.clone(), container) {
            surplus.release().await;
            return Err(exists());
        }
        Ok(())
    }

    pub(super) async fn release_container(&self, id: &str) -> Result<(), BridgeError> {
        let container = self.containers().0.lock().remove(id);
        match container {
            Some(container) => {
                container.release().await;
                Ok(())
            }
            None => Err(BridgeError::unknown(format!("container details for {id} not found"))),
        }
    }
}

/// Runs what the messages of a client ask for. It goes on as the answers are read, and ends with their reader.
pub(super) fn exec(
    gateway: Arc<Gateway>,
    messages: Streaming<ExecMessage>,
) -> BoxStream<'static, Result<ExecMessage, Status>> {
    let (sender, answers) = mpsc::channel(MESSAGES);
    let driving = Driver { gateway, sender, processes: HashMap::new() }.run(messages);
    let failed = stream::once(driving).filter_map(async |ended| ended.err().map(Err));
    stream::select(tokio_stream::wrappers::ReceiverStream::new(answers).map(Ok), failed).boxed()
}

/// What goes to a process.
struct Inlets {
    stdin: Option<DuplexStream>,
    resize: mpsc::Sender<WindowSize>,
    signals: mpsc::Sender<i32>,
}

/// Answers go here; a reader that is gone wants none.
type Answers = mpsc::Sender<ExecMessage>;

struct Driver {
    gateway: Arc<Gateway>,
    sender: Answers,
    processes: HashMap<String, Inlets>,
}

impl Driver {
    async fn run(mut self, mut messages: Streaming<ExecMessage>) -> Result<(), Status> {
        let mut running: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut open = true;
        loop {
            tokio::select! {
                message = messages.message(), if open => match message? {
                    Some(message) => {
                        let mut taken = std::pin::pin!(self.take(message));
                        // A process whose input is full may have to end first.
                        let process = loop {
                            tokio::select! {
                                process = &mut taken => break process?,
                                Some(()) = running.next() => {}
                            }
                        };
                        running.extend(process);
                    }
                    None => {
                        // Processes that read to the end of their input see it.
                        self.processes.clear();
                        open = false;
                    }
                },
                Some(()) = running.next() => {}
                else => return Ok(()),
            }
        }
    }

    /// Does what a message says; the process that it starts, if it does.
    async fn take(&mut self, message: ExecMessage) -> Result<Option<BoxFuture<'static, ()>>, Status> {
        let id = message.process_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("ProcessID required"));
        }
        if let Some(Message::Init(init)) = message.input {
            return self.start(id, init).map(Some);
        }
        let process = self.processes.get_mut(&id);
        let process = process.ok_or_else(|| Status::not_found(format!("IO for process {id:?} not found")))?;
        match message.input {
            Some(Message::File(file)) if file.eof => process.stdin = None,
            Some(Message::File(file)) => {
                // A process that has ended, or closed its input, reads no more of it.
                if let Some(stdin) = &mut process.stdin
                    && stdin.write_all(&file.data).await.is_err()
                {
                    process.stdin = None;
                }
            }
            Some(Message::Resize(size)) => {
                let bounded = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
                let size = WindowSize { rows: bounded(size.rows), columns: bounded(size.cols) };
                // Nobody looks at it any more.
                let _ = process.resize.send(size).await;
            }
            Some(Message::Signal(signal)) => {
                let number = signal_number(&signal.name)
                    .ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                let _ = process.signals.send(number).await;
            }
            _ => {}
        }
        Ok(None)
    }

    fn start(&mut self, id: String, init: wire::InitMessage) -> Result<BoxFuture<'static, ()>, Status> {
        if self.processes.len() >= MAX {
            // Those that have ended are known by their names alone.
            self.processes.retain(|_, inlets| !inlets.signals.is_closed());
        }
        if self.processes.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        if self.processes.len() >= MAX {
            return Err(Status::resource_exhausted(format!(
                "Process {id}: {MAX} processes run on this stream already"
            )));
        }
        let container = self.gateway.containers().get(&init.container_id).ok_or_else(|| {
            Status::not_found(format!("container {:?} previously released or not created", init.container_id))
        })?;
        let meta = init.meta.unwrap_or_default();
        let security = match pb::SecurityMode::try_from(init.security) {
            Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
            Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
            Err(_) => {
                let refused =
                    refuse(id, init.fds, format!("invalid security mode {}", init.security), self.sender.clone());
                return Ok(Box::pin(refused));
            }
        };
        let wants = |fd: u32| init.fds.contains(&fd);
        let (input, stdin) = piped(wants(0));
        let (stdout, output) = piped(wants(1));
        let (stderr, errors) = piped(wants(2));
        let (resize, sizes) = mpsc::channel(1);
        let (signals, received) = mpsc::channel(1);
        let secret = |secret: pb::SecretEnv| SecretEnv { id: secret.id, name: secret.name, optional: secret.optional };
        let process = ContainerProcess {
            args: meta.args,
            env: meta.env,
            secret_env: init.secretenv.into_iter().map(secret).collect(),
            user: meta.user,
            cwd: meta.cwd,
            tty: init.tty,
            security,
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            stdio: Stdio {
                stdin: input.map(|input| Box::new(input) as Input),
                stdout: output.map(|output| Box::new(output) as Output),
                stderr: errors.map(|errors| Box::new(errors) as Output),
                resize: Some(sizes),
                signals: Some(received),
            },
        };
        self.processes.insert(id.clone(), Inlets { stdin, resize, signals });
        let answers = self.sender.clone();
        let work = async move {
            let outlets = [(1, stdout), (2, stderr)];
            run(&container, process, &id, outlets, &answers).await;
        };
        Ok(Box::pin(work))
    }
}

/// A pipe, if it is wanted.
fn piped(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    // Unlike a simplex, each end sees that the other one is gone.
    wanted.then(|| duplex(PIPE)).unzip()
}

/// Tells of a process that is not run.
async fn refuse(id: String, fds: Vec<u32>, reason: String, answers: Answers) {
    let failure = ProcessFailure { code: None, error: BridgeError::unknown(reason) };
    let closed = |fd: u32| Message::File(wire::FdMessage { fd, eof: true, data: Bytes::new() });
    let told = [Message::Started(wire::StartedMessage {}), Message::Exit(exit(Err(failure)))]
        .into_iter()
        .chain(fds.into_iter().filter(|fd| *fd != 0).map(closed))
        .chain([Message::Done(wire::DoneMessage {})]);
    for input in told {
        let message = ExecMessage { process_id: id.clone(), input: Some(input) };
        // A reader that is gone needs no answer.
        let _ = answers.send(message).await;
    }
}

/// Runs one process and tells of it: that it runs, what it writes, how it ended, that there is no more.
async fn run<R: AsyncRead + Unpin>(
    container: &Container,
    process: ContainerProcess,
    id: &str,
    outlets: [(u32, Option<R>); 2],
    answers: &Answers,
) {
    let tell = async |input: Message| {
        let message = ExecMessage { process_id: id.to_owned(), input: Some(input) };
        // A reader that is gone needs no answer; it takes this future with it.
        let _ = answers.send(message).await;
    };
    let (started, runs) = oneshot::channel();
    let mut running = std::pin::pin!(container.run(process, started));
    let early = tokio::select! {
        ended = &mut running => Some(ended),
        // Dropped where another process has made the container before: it runs when it runs.
        _ = runs => None,
    };
    tell(Message::Started(wire::StartedMessage {})).await;
    let ending = async {
        let ended = match early {
            Some(ended) => ended,
            None => running.await,
        };
        tell(Message::Exit(exit(ended))).await;
    };
    let outlets = outlets.into_iter().filter_map(|(fd, reader)| Some((fd, reader?)));
    let outputs = outlets.map(async |(fd, mut reader)| {
        while let Some(data) = next(&mut reader).await {
            tell(Message::File(wire::FdMessage { fd, eof: false, data })).await;
        }
        tell(Message::File(wire::FdMessage { fd, eof: true, data: Bytes::new() })).await;
    });
    tokio::join!(ending, futures::future::join_all(outputs));
    tell(Message::Done(wire::DoneMessage {})).await;
}

/// The next bytes, as many as there are; nothing at the end.
async fn next(reader: &mut (impl AsyncRead + Unpin)) -> Option<Bytes> {
    let mut bytes = vec![0; PIPE];
    let mut buffer = ReadBuf::new(&mut bytes);
    poll_fn(|cx| Pin::new(&mut *reader).poll_read(cx, &mut buffer)).await.ok()?;
    let length = buffer.filled().len();
    bytes.truncate(length);
    (length > 0).then(|| bytes.into())
}

fn exit(ended: Result<(), ProcessFailure>) -> wire::ExitMessage {
    match ended {
        Ok(()) => wire::ExitMessage { code: 0, error: None },
        Err(failure) => {
            let status = to_failure(&failure.error).to_rpc();
            let error = rpc::Status { code: status.code, message: status.message, details: status.details };
            wire::ExitMessage { code: failure.code.unwrap_or(UNKNOWN_EXIT_CODE), error: Some(error) }
        }
    }
}

/// The number of a signal, by its name without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    const FIRST: i32 = 34;
    const LAST: i32 = 64;
    let real_time = |number: i32| (FIRST..=LAST).contains(&number).then_some(number);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u8>().ok().map(i32::from) };
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        "UNUSED" => "SYS",
        name => name,
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return real_time(FIRST + offset(rest.strip_prefix('+').unwrap_or(rest))?);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return real_time(LAST - offset(rest.strip_prefix('-').unwrap_or(rest))?);
    }
    let position = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(position + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_numbers_of_linux() {
        let numbers = ["HUP", "KILL", "TERM", "SYS", "CLD", "RTMIN", "RTMIN+2", "RTMAX-1", "SIGKILL", "RTMIN+99", ""];
        let wanted = [Some(1), Some(9), Some(15), Some(31), Some(17), Some(34), Some(36), Some(63), None, None, None];
        assert_eq!(numbers.map(signal_number), wanted);
    }

    #[test]
    fn the_exit_code_is_told_if_there_is_one() {
        let failure = |code| Err(ProcessFailure { code, error: BridgeError::unknown("exit code: 3") });
        assert_eq!(exit(Ok(())), wire::ExitMessage { code: 0, error: None });
        let told = exit(failure(Some(3)));
        assert_eq!((told.code, told.error.unwrap().message.as_str()), (3, "exit code: 3"));
        assert_eq!(exit(failure(None)).code, UNKNOWN_EXIT_CODE);
    }
}
