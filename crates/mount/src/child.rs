//! Calls made by a forked child that holds only the descriptors it needs.
//!
//! The child of a process with threads may only make system calls: no allocation, no locks. What it needs is prepared
//! before the fork; the closures here take nothing but descriptors and C strings.
#![allow(unsafe_code)] // fork, close_range, the signal mask and descriptor passing have no safe form here

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// What the child found wrong: a step that the caller names, and the kernel's answer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub step: u32,
    pub error: io::Error,
    pub detail: String,
}

/// What the child does: makes system calls, gives a descriptor or none. `log` takes what the kernel says about it.
pub(crate) type Work<'a> = &'a mut dyn FnMut(&mut [u8; LOG]) -> Result<Option<RawFd>, (u32, i32)>;

/// Room for the kernel's message.
pub(crate) const LOG: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    step: u32,
    errno: i32,
    log: [u8; LOG],
}

/// Room for one descriptor in a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Runs `work` in a child that has closed all descriptors but `keep`. `before_wait` runs in the parent after the fork and
/// before the child starts to work, so that what it closes is closed last by the child.
///
/// Blocks until the child has ended.
pub(crate) fn run(keep: &[RawFd], before_work: impl FnOnce(), work: Work<'_>) -> Result<Option<OwnedFd>, Failure> {
    let failed = |error: io::Error| Failure { step: 0, error, detail: String::new() };
    let (ours, theirs) = socketpair().map_err(failed)?;
    let mut kept: Vec<RawFd> = keep.to_vec();
    kept.push(theirs.as_raw_fd());
    kept.sort_unstable();
    kept.dedup();
    let mask = block_signals();
    // SAFETY: the child runs `child`, which makes system calls on prepared memory only and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(&kept, theirs.as_raw_fd(), work);
    }
    restore_signals(&mask);
    drop(theirs);
    if pid < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    before_work();
    let result = send_start(&ours).and_then(|()| receive(&ours));
    reap(pid);
    let (answer, descriptor) = result.map_err(failed)?;
    if answer.errno != 0 {
        let length = answer.log.iter().position(|byte| *byte == 0).unwrap_or(LOG);
        let detail = String::from_utf8_lossy(&answer.log[..length]).trim().to_owned();
        return Err(Failure { step: answer.step, error: io::Error::from_raw_os_error(answer.errno), detail });
    }
    Ok(descriptor)
}

/// The whole life of the child.
fn child(kept: &[RawFd], socket: RawFd, work: Work<'_>) -> ! {
    let mut next: RawFd = 0;
    for &fd in kept {
        close_range(next, fd - 1);
        next = fd + 1;
    }
    close_range(next, RawFd::MAX);
    let mut go = 0u8;
    // SAFETY: reads one byte into a local.
    unsafe { libc::read(socket, (&raw mut go).cast(), 1) };
    let mut answer = Answer { step: 0, errno: 0, log: [0; LOG] };
    let descriptor = match work(&mut answer.log) {
        Ok(descriptor) => descriptor,
        Err((step, errno)) => {
            answer.step = step;
            answer.errno = errno;
            None
        }
    };
    send_answer(socket, &answer, descriptor);
    // SAFETY: ends the child without running destructors or exit handlers of the parent's program.
    unsafe { libc::_exit(0) }
}

fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: closes descriptors of this child only; nothing here uses them any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    // SAFETY: the kernel writes two descriptors into the array.
    let result =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both; nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

/// The child must not run the parent's signal handlers.
fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are locals that the calls fill.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        let mut old: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        old
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the set was filled by `block_signals`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

fn send_start(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: sends one byte of a local.
    let sent = unsafe { libc::send(socket.as_raw_fd(), [1u8].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn send_answer(socket: RawFd, answer: &Answer, descriptor: Option<RawFd>) {
    let mut part = libc::iovec { iov_base: std::ptr::from_ref(answer).cast_mut().cast(), iov_len: size_of::<Answer>() };
    let mut control = Control([0; 64]);
    // SAFETY: the message points at locals that live until sendmsg returns; the control buffer has room for one
    // descriptor and is aligned for its header.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(fd) = descriptor {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL);
    }
}

fn receive(socket: &OwnedFd) -> io::Result<(Answer, Option<OwnedFd>)> {
    let mut answer = Answer { step: 0, errno: 0, log: [0; LOG] };
    let mut part = libc::iovec { iov_base: (&raw mut answer).cast(), iov_len: size_of::<Answer>() };
    let mut control = Control([0; 64]);
    // SAFETY: the kernel writes into locals of the sizes that it is told; the descriptor it installs is ours alone.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of::<Control>() as _;
        let got = loop {
            let got = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
            if got >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break got;
            }
        };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        if got as usize != size_of::<Answer>() {
            return Err(io::Error::other("the mounting child ended without an answer"));
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let mut descriptor = None;
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            descriptor = Some(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()));
        }
        Ok((answer, descriptor))
    }
}

fn reap(pid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: waits for the child made above; an interruption is retried, any other answer means it is gone.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// Unmounts `target` in a child.
pub(crate) fn unmount(target: &CStr, flags: i32) -> io::Result<()> {
    run(&[], || (), &mut |_| {
        // SAFETY: the string was made before the fork.
        let result = unsafe { libc::umount2(target.as_ptr(), flags) };
        if result < 0 { Err((0, errno())) } else { Ok(None) }
    })
    .map(|_| ())
    .map_err(|failure| failure.error)
}

/// Closes `fd`, which may be the last reference to a mount, in a child.
pub(crate) fn close(fd: OwnedFd) {
    let raw = fd.as_raw_fd();
    let mut held = Some(fd);
    let result = run(&[raw], || drop(held.take()), &mut |_| {
        // SAFETY: the child's own copy of the descriptor.
        unsafe { libc::close(raw) };
        Ok(None)
    });
    if let Err(failure) = result {
        tracing::warn!(error = %failure.error, "close a detached mount in a child");
    }
}

/// The last error number, without touching anything but the thread's errno.
pub(crate) fn errno() -> i32 {
    // SAFETY: the C library's thread-local is always there.
    unsafe { *libc::__errno_location() }
}

/// Gives up ownership for use in the child's answer.
pub(crate) fn into_raw(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}
