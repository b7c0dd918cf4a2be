//! Programs of other architectures: whether the kernel runs them, by itself or with an interpreter that `binfmt_misc` has.
//!
//! What counts is what happens: an executable that is nothing but a header is started. Where an interpreter took it, its
//! registration must hold in containers too, which do not have the interpreter's file.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, Mode, OFlags};

/// Where the kernel lists its interpreters.
const REGISTRY: &str = "/proc/sys/fs/binfmt_misc";
/// Another thread that starts a program has our file open for a moment.
const TRIES: usize = 1000;

/// Why programs of an architecture cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CannotRun {
    /// Nobody here knows what its programs look like.
    #[error("castor does not know the architecture {0}")]
    Unknown(String),
    /// The kernel refuses them.
    #[error(
        "the kernel runs no programs of {0}; an emulator that is registered with binfmt_misc for containers does, such as \
         that of Debian's packages qemu-user-static and binfmt-support or of the image tonistiigi/binfmt"
    )]
    NoInterpreter(String),
    /// There is an interpreter that containers do not have.
    #[error(
        "programs of {architecture} are run by {interpreter}, which containers do not have: register it with binfmt_misc's \
         flag F"
    )]
    NotInContainers {
        /// The architecture.
        architecture: String,
        /// The interpreter's path.
        interpreter: String,
    },
    /// It could not be tried.
    #[error("find out whether the kernel runs programs of {architecture}: {source}")]
    Probe {
        /// The architecture.
        architecture: String,
        /// What failed.
        source: io::Error,
    },
}

/// What of an executable tells for which processors it is.
struct Machine {
    wide: bool,
    big_endian: bool,
    number: u16,
    flags: u32,
}

/// By Go's name of the architecture.
fn machine(architecture: &str) -> Option<Machine> {
    let (wide, big_endian, number, flags) = match architecture {
        "amd64" => (true, false, 62, 0),
        "386" => (false, false, 3, 0),
        "arm64" => (true, false, 183, 0),
        "arm" => (false, false, 40, 0x0500_0000),
        "loong64" => (true, false, 258, 0),
        "mips64" => (true, true, 8, 0),
        "mips64le" => (true, false, 8, 0),
        "ppc64" => (true, true, 21, 1),
        "ppc64le" => (true, false, 21, 2),
        "riscv64" => (true, false, 243, 0),
        "s390x" => (true, true, 22, 0),
        _ => return None,
    };
    Some(Machine { wide, big_endian, number, flags })
}

/// The architectures that are looked for, by Go's names.
pub const ARCHITECTURES: [&str; 11] =
    ["amd64", "arm64", "riscv64", "ppc64", "ppc64le", "s390x", "386", "mips64le", "mips64", "loong64", "arm"];

/// The variants of its architecture (as in `linux/amd64/v3`) that this processor has, beyond the architecture itself.
pub fn levels() -> Vec<&'static str> {
    let mut levels = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! has {
            ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
        }
        // As the psABI has them; each has what is below it.
        let each = [
            ("v2", has!("cmpxchg16b", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2")),
            ("v3", has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe")),
            ("v4", has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
        ];
        levels.extend(each.into_iter().take_while(|(_, has)| *has).map(|(level, _)| level));
    }
    levels
}

/// Whether a container's programs for `architecture` (Go's name) run here. Blocks for as long as a program takes to start.
pub fn can_run(architecture: &str) -> Result<(), CannotRun> {
    let Some(machine) = machine(architecture) else { return Err(CannotRun::Unknown(architecture.to_owned())) };
    let program = executable(&machine);
    let interpreter = interpreter_of(&program, Path::new(REGISTRY));
    match start(&program) {
        Ok(()) => match interpreter {
            Some(found) if !found.fixed => {
                Err(CannotRun::NotInContainers { architecture: architecture.to_owned(), interpreter: found.path })
            }
            _ => Ok(()),
        },
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOEXEC | libc::ENOENT | libc::ELIBBAD)) => {
            Err(CannotRun::NoInterpreter(architecture.to_owned()))
        }
        Err(source) => Err(CannotRun::Probe { architecture: architecture.to_owned(), source }),
    }
}

/// A program that the kernel takes for one of `machine`'s: headers, one segment, and nothing sensible to do.
fn executable(machine: &Machine) -> Vec<u8> {
    const AT: u64 = 0x1000_0000;
    let mut out = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(machine.wide), 1 + u8::from(machine.big_endian), 1];
    out.resize(16, 0);
    let put = |out: &mut Vec<u8>, value: u64, size: usize| {
        let bytes = value.to_le_bytes();
        match machine.big_endian {
            true => out.extend(bytes[..size].iter().rev()),
            false => out.extend(&bytes[..size]),
        }
    };
    let (word, header, segment) = if machine.wide { (8, 64, 56) } else { (4, 52, 32) };
    let length = (header + segment + 16) as u64;
    // An executable; machine; version; entry behind the headers; where the segments are told of, and that no sections are.
    for (value, size) in [(2, 2), (u64::from(machine.number), 2), (1, 4), (AT + length - 16, word)] {
        put(&mut out, value, size);
    }
    for (value, size) in [(header as u64, word), (0, word), (machine.flags.into(), 4), (header as u64, 2)] {
        put(&mut out, value, size);
    }
    for (value, size) in [(segment as u64, 2), (1, 2), (0, 2), (0, 2), (0, 2)] {
        put(&mut out, value, size);
    }
    // One segment to be loaded, readable and executable: all of the file.
    let segment: [(u64, usize); 8] = match machine.wide {
        true => [(1, 4), (5, 4), (0, 8), (AT, 8), (AT, 8), (length, 8), (length, 8), (0x1_0000, 8)],
        false => [(1, 4), (0, 4), (AT, 4), (AT, 4), (length, 4), (length, 4), (5, 4), (0x1_0000, 4)],
    };
    for (value, size) in segment {
        put(&mut out, value, size);
    }
    let end = match (machine.number, machine.wide) {
        // exit(0) as x86 has it, which 64-bit kernels run as well.
        (3, false) => &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80][..],
        // mov edi, 0; mov eax, 60; syscall
        (62, true) => &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
        _ => &[],
    };
    out.extend(end);
    out.resize(usize::try_from(length).unwrap_or(out.len()), 0);
    out
}

/// Starts the program, whatever becomes of it then.
fn start(program: &[u8]) -> io::Result<()> {
    let writable: OwnedFd = rustix::fs::memfd_create(c"castor-probe", MemfdFlags::CLOEXEC)?;
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let file = rustix::fs::open(path(&writable), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(&writable, Mode::from_raw_mode(0o700))?;
    // What is open for writing is not run.
    File::from(writable).write_all(program)?;
    for _ in 0..TRIES {
        let mut command = Command::new(path(&file));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        match command.spawn() {
            Ok(mut child) => {
                // It did start: an interpreter that thinks about it for long is of no interest.
                let _ = child.kill();
                child.wait()?;
                return Ok(());
            }
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ETXTBSY))
}

/// An interpreter that the kernel has for a program.
#[derive(Debug, PartialEq, Eq)]
struct Interpreter {
    path: String,
    /// It was opened when it was registered, and so is there in containers.
    fixed: bool,
}

fn interpreter_of(program: &[u8], registry: &Path) -> Option<Interpreter> {
    let entries = std::fs::read_dir(registry).ok()?;
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter_map(|text| registered(&text, program)).next()
}

/// The interpreter that an entry of the registry tells of, if it is enabled and takes the program.
fn registered(entry: &str, program: &[u8]) -> Option<Interpreter> {
    let mut lines = entry.lines();
    if lines.next()? != "enabled" {
        return None;
    }
    let value =
        |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix([' ', ':']).map(str::trim));
    let magic = bytes(value("magic")?)?;
    let mask = value("mask").map_or_else(|| Some(vec![0xff; magic.len()]), bytes)?;
    let start: usize = value("offset")?.parse().ok()?;
    let found = program.get(start..start.checked_add(magic.len())?)?;
    let same = found.iter().zip(&magic).zip(&mask).all(|((found, magic), mask)| (found ^ magic) & mask == 0);
    let fixed = value("flags").is_some_and(|flags| flags.contains('F'));
    (same && mask.len() == magic.len())
        .then(|| Interpreter { path: value("interpreter").unwrap_or("?").to_owned(), fixed })
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
                         magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn an_entry_takes_the_programs_of_its_architecture() {
        let of = |entry: &str, architecture: &str| registered(entry, &executable(&machine(architecture).unwrap()));
        let found = of(ARM64, "arm64").unwrap();
        assert_eq!(found, Interpreter { path: "/usr/bin/qemu-aarch64-static".into(), fixed: true });
        assert!(!of(&ARM64.replace("OCF", "OC"), "arm64").unwrap().fixed);
        assert_eq!(of(&ARM64.replace("enabled", "disabled"), "arm64"), None);
        for other in ["amd64", "386", "arm", "riscv64", "s390x", "mips64le"] {
            assert_eq!(of(ARM64, other), None, "{other}");
        }
        // Whatever stands there, nothing panics.
        for cut in 0..ARM64.len() {
            let _ = of(&ARM64[..cut], "arm64");
        }
        assert_eq!(of("enabled\ninterpreter /x\nflags: \nextension .py\n", "arm64"), None);
        assert_eq!(of("enabled\noffset 99999999999999999999\nmagic 7f\n", "arm64"), None);
    }

    #[test]
    fn programs_of_this_machine_run_and_those_of_none_do_not() {
        let host = castor_oci::Platform::host().architecture;
        can_run(&host).unwrap();
        assert!(matches!(can_run("pdp11"), Err(CannotRun::Unknown(_))));
        let nobody = Machine { wide: true, big_endian: false, number: 0xfeed, flags: 0 };
        assert_eq!(start(&executable(&nobody)).unwrap_err().raw_os_error(), Some(libc::ENOEXEC));
    }

    #[test]
    fn every_architecture_has_a_program() {
        for architecture in ARCHITECTURES {
            let program = executable(&machine(architecture).unwrap());
            assert_eq!(&program[..4], b"\x7fELF", "{architecture}");
        }
    }
}
