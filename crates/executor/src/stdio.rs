//! The streams of a process: pipes read to their ends, or a terminal.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio as ChildStdio;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::process::{Input, Output, Stdio, WindowSize};

/// Bytes taken from a pipe at once.
const CHUNK: usize = 64 << 10;

/// The streams before the process runs.
pub struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    terminal: Option<OwnedFd>,
    pub resize: Option<mpsc::Receiver<WindowSize>>,
    pub signals: Option<mpsc::Receiver<i32>>,
}

impl Streams {
    /// Gives `command` its ends of the streams.
    pub fn attach(stdio: Stdio, tty: bool, command: &mut Command) -> io::Result<Self> {
        let Stdio { stdin, stdout, stderr, resize, signals } = stdio;
        let mut streams = Self { stdin, stdout, stderr, terminal: None, resize, signals };
        if tty {
            let (terminal, device) = open_terminal()?;
            command.stdin(ChildStdio::from(device.try_clone()?));
            command.stdout(ChildStdio::from(device.try_clone()?));
            command.stderr(ChildStdio::from(device));
            streams.terminal = Some(terminal);
        } else {
            let stream = |wanted: bool| if wanted { ChildStdio::piped() } else { ChildStdio::null() };
            command.stdin(stream(streams.stdin.is_some()));
            command.stdout(stream(streams.stdout.is_some()));
            command.stderr(stream(streams.stderr.is_some()));
        }
        Ok(streams)
    }

    /// Starts copying. The command must have been dropped: it holds the process's end of a terminal.
    pub fn start(self, child: &mut Child) -> io::Result<Pumps> {
        let mut pumps =
            Pumps { outputs: Vec::new(), input: None, resize: self.resize, signals: self.signals, terminal: None };
        if let Some(terminal) = self.terminal {
            let terminal = Terminal::new(terminal)?;
            pumps.terminal = Some(terminal.try_clone()?);
            if let Some(stdin) = self.stdin {
                pumps.input = Some(tokio::spawn(terminal.try_clone()?.feed(stdin)));
            }
            pumps.outputs.push(tokio::spawn(terminal.drain(self.stdout)));
            return Ok(pumps);
        }
        if let (Some(pipe), Some(stdin)) = (child.stdin.take(), self.stdin) {
            pumps.input = Some(tokio::spawn(feed(stdin, pipe)));
        }
        if let (Some(pipe), Some(stdout)) = (child.stdout.take(), self.stdout) {
            pumps.outputs.push(tokio::spawn(drain(pipe, stdout)));
        }
        if let (Some(pipe), Some(stderr)) = (child.stderr.take(), self.stderr) {
            pumps.outputs.push(tokio::spawn(drain(pipe, stderr)));
        }
        Ok(pumps)
    }
}

/// The streams while the process runs.
pub struct Pumps {
    outputs: Vec<JoinHandle<io::Result<()>>>,
    input: Option<JoinHandle<()>>,
    pub resize: Option<mpsc::Receiver<WindowSize>>,
    pub signals: Option<mpsc::Receiver<i32>>,
    terminal: Option<Terminal>,
}

impl Pumps {
    /// Changes the size of the process's terminal.
    pub fn set_size(&self, size: WindowSize) {
        let Some(terminal) = &self.terminal else { return };
        let winsize = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        if let Err(err) = rustix::termios::tcsetwinsize(terminal.0.get_ref(), winsize) {
            tracing::warn!(%err, "resize a terminal");
        }
    }

    /// Waits until all output was passed on. Input that was not read is left.
    pub async fn finish(&mut self) -> io::Result<()> {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let mut result = Ok(());
        // Taken only when done, so that a caller who stops waiting can still abort them.
        while let Some(output) = self.outputs.last_mut() {
            let ended = output.await.unwrap_or_else(|err| Err(io::Error::other(err)));
            self.outputs.pop();
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        for output in &self.outputs {
            output.abort();
        }
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

async fn feed(mut from: Input, mut to: tokio::process::ChildStdin) {
    // A process that does not read its input to the end is its own business.
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Passes on all of `from`. If `to` fails the rest is read nevertheless: the process must not block for want of a reader.
async fn drain(mut from: impl AsyncRead + Unpin, to: Output) -> io::Result<()> {
    let mut sink = Sink::new(Some(to));
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return sink.close().await,
            read => sink.write(&buffer[..read]).await,
        }
    }
}

struct Sink {
    output: Option<Output>,
    result: io::Result<()>,
}

impl Sink {
    fn new(output: Option<Output>) -> Self {
        Self { output, result: Ok(()) }
    }

    async fn write(&mut self, bytes: &[u8]) {
        let Some(output) = &mut self.output else { return };
        if let Err(err) = output.write_all(bytes).await {
            self.output = None;
            self.result = Err(err);
        }
    }

    async fn close(mut self) -> io::Result<()> {
        if let Some(output) = &mut self.output {
            self.result = output.shutdown().await;
        }
        self.result
    }
}

/// Our end of a terminal.
struct Terminal(AsyncFd<File>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Self::register(File::from(fd))
    }

    // Deprecated for types that may give up their descriptor; a file of ours keeps it.
    #[expect(deprecated)]
    fn register(file: File) -> io::Result<Self> {
        Ok(Self(AsyncFd::new(file)?))
    }

    fn try_clone(&self) -> io::Result<Self> {
        Self::register(self.0.get_ref().try_clone()?)
    }

    async fn feed(self, mut from: Input) {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let Ok(mut ready) = self.0.writable().await else { return };
                match ready.try_io(|file| file.get_ref().write(rest)) {
                    Ok(Ok(written)) => rest = &rest[written..],
                    Ok(Err(_)) => return,
                    Err(_would_block) => {}
                }
            }
        }
    }

    async fn drain(self, to: Option<Output>) -> io::Result<()> {
        let mut sink = Sink::new(to);
        let mut buffer = vec![0; CHUNK];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|file| file.get_ref().read(&mut buffer)) {
                Ok(Ok(read @ 1..)) => sink.write(&buffer[..read]).await,
                // The last process that had the other end is gone: that is its end, and Linux calls it an error.
                Ok(Ok(0)) => return sink.close().await,
                Ok(Err(err)) if err.raw_os_error() == Some(libc::EIO) => return sink.close().await,
                Ok(Err(err)) => return Err(err),
                Err(_would_block) => {}
            }
        }
    }
}

fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    let terminal = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&terminal)?;
    rustix::pty::unlockpt(&terminal)?;
    let device = rustix::pty::ioctl_tiocgptpeer(
        terminal.as_fd(),
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    Ok((terminal, device))
}
