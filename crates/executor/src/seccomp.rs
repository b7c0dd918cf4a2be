//! The seccomp profile of sandboxed processes: what Docker's default profile allows, as data.
//!
//! System calls that are not listed fail with `EPERM`. Some depend on the architecture, some on capabilities of the
//! container: it may `mount` if it may administrate the system, and so on. `clone` without `CAP_SYS_ADMIN` must not make
//! namespaces, and `clone3`, whose flags a filter cannot see, says that it does not exist, so that C libraries fall back.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator,
    LinuxSyscall, LinuxSyscallBuilder,
};

/// Flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

struct Rule {
    /// Names, separated by white space.
    names: &'static str,
    argument: Option<Argument>,
    /// Fails with this instead of being allowed.
    errno: Option<i32>,
    /// Only if the container has all of these capabilities.
    with: &'static [&'static str],
    /// Only if it has none of these.
    without: &'static [&'static str],
    only_on: &'static [&'static str],
    not_on: &'static [&'static str],
}

struct Argument {
    index: usize,
    value: u64,
    compare: Compare,
}

enum Compare {
    Lt,
    Eq,
    Gt,
    /// No bit of the value is set.
    NoneOf,
}

const ALLOW: Rule = Rule { names: "", argument: None, errno: None, with: &[], without: &[], only_on: &[], not_on: &[] };

/// Whether the kernel filters system calls.
pub fn is_supported() -> bool {
    std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

/// The profile of a container with these capabilities (`CAP_...`) in its bounding set.
pub fn profile(capabilities: &[&str]) -> Result<LinuxSeccomp, oci_spec::OciSpecError> {
    let (name, architectures) = architecture();
    let has = |capability: &&str| capabilities.contains(capability);
    let applies = |rule: &&Rule| {
        rule.with.iter().all(has)
            && !rule.without.iter().any(has)
            && (rule.only_on.is_empty() || rule.only_on.contains(&name))
            && !rule.not_on.contains(&name)
    };
    let syscalls = RULES.iter().filter(applies).map(syscall).collect::<Result<Vec<_>, _>>()?;
    let mut profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .syscalls(syscalls);
    if !architectures.is_empty() {
        profile = profile.architectures(architectures);
    }
    profile.build()
}

fn syscall(rule: &Rule) -> Result<LinuxSyscall, oci_spec::OciSpecError> {
    let names: Vec<String> = rule.names.split_whitespace().map(str::to_owned).collect();
    let mut syscall = LinuxSyscallBuilder::default().names(names);
    syscall = match rule.errno {
        Some(errno) => syscall.action(LinuxSeccompAction::ScmpActErrno).errno_ret(errno as u32),
        None => syscall.action(LinuxSeccompAction::ScmpActAllow),
    };
    if let Some(argument) = &rule.argument {
        let built = LinuxSeccompArgBuilder::default().index(argument.index).value(argument.value);
        let built = match argument.compare {
            Compare::Lt => built.op(LinuxSeccompOperator::ScmpCmpLt),
            Compare::Eq => built.op(LinuxSeccompOperator::ScmpCmpEq),
            Compare::Gt => built.op(LinuxSeccompOperator::ScmpCmpGt),
            Compare::NoneOf => built.op(LinuxSeccompOperator::ScmpCmpMaskedEq).value_two(0u64),
        };
        syscall = syscall.args(vec![built.build()?]);
    }
    syscall.build()
}

/// The name that rules know this machine by, and the architectures whose calls it can make.
fn architecture() -> (&'static str, Vec<Arch>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]),
        "aarch64" => ("arm64", vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        "mips64" => ("mips64", vec![Arch::ScmpArchMips64, Arch::ScmpArchMips, Arch::ScmpArchMips64n32]),
        "s390x" => ("s390x", vec![Arch::ScmpArchS390x, Arch::ScmpArchS390]),
        "riscv64" => ("riscv64", vec![Arch::ScmpArchRiscv64]),
        "loongarch64" => ("loong64", vec![Arch::ScmpArchLoongarch64]),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", Vec::new()),
        "x86" => ("x86", Vec::new()),
        other => (other, Vec::new()),
    }
}

#[rustfmt::skip]
static RULES: &[Rule] = &[
    Rule { names: "\
             _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod \
             chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
             clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat \
             dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
             epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 \
             fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl \
             fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
             fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake \
             futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid \
             geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid \
             getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname \
             getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
             inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
             io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset \
             landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat \
             llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create \
             memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr \
             mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink \
             mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
             newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free \
             pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 \
             pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom \
             recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
             restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
             rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
             sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
             sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
             sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
             semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
             set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer \
             setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
             setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown \
             sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs \
             statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
             timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
             timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
             truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes \
             vfork vmsplice wait4 waitid waitpid write writev", ..ALLOW },
    Rule { names: "process_vm_readv process_vm_writev ptrace", ..ALLOW },
    Rule { names: "socket", argument: Some(Argument { index: 0, value: 38, compare: Compare::Lt }), ..ALLOW },
    Rule { names: "socket", argument: Some(Argument { index: 0, value: 39, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "socket", argument: Some(Argument { index: 0, value: 40, compare: Compare::Gt }), ..ALLOW },
    Rule { names: "personality", argument: Some(Argument { index: 0, value: 0, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "personality", argument: Some(Argument { index: 0, value: 8, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "personality", argument: Some(Argument { index: 0, value: 0x2_0000, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "personality", argument: Some(Argument { index: 0, value: 0x2_0008, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "personality", argument: Some(Argument { index: 0, value: 0xffff_ffff, compare: Compare::Eq }), ..ALLOW },
    Rule { names: "swapcontext sync_file_range2", only_on: &["ppc64le"], ..ALLOW },
    Rule { names: "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2", only_on: &["arm", "arm64"], ..ALLOW },
    Rule { names: "arch_prctl", only_on: &["amd64", "x32"], ..ALLOW },
    Rule { names: "modify_ldt", only_on: &["amd64", "x32", "x86"], ..ALLOW },
    Rule { names: "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr", only_on: &["s390", "s390x"], ..ALLOW },
    Rule { names: "riscv_flush_icache", only_on: &["riscv64"], ..ALLOW },
    Rule { names: "open_by_handle_at", with: &["CAP_DAC_READ_SEARCH"], ..ALLOW },
    Rule { names: "\
             bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
             lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
             quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare", with: &["CAP_SYS_ADMIN"], ..ALLOW },
    Rule { names: "clone", argument: Some(Argument { index: 0, value: NAMESPACE_FLAGS, compare: Compare::NoneOf }), without: &["CAP_SYS_ADMIN"], not_on: &["s390", "s390x"], ..ALLOW },
    Rule { names: "clone", argument: Some(Argument { index: 1, value: NAMESPACE_FLAGS, compare: Compare::NoneOf }), without: &["CAP_SYS_ADMIN"], only_on: &["s390", "s390x"], ..ALLOW },
    Rule { names: "clone3", errno: Some(libc::ENOSYS), without: &["CAP_SYS_ADMIN"], ..ALLOW },
    Rule { names: "reboot", with: &["CAP_SYS_BOOT"], ..ALLOW },
    Rule { names: "chroot", with: &["CAP_SYS_CHROOT"], ..ALLOW },
    Rule { names: "delete_module finit_module init_module", with: &["CAP_SYS_MODULE"], ..ALLOW },
    Rule { names: "acct", with: &["CAP_SYS_PACCT"], ..ALLOW },
    Rule { names: "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace", with: &["CAP_SYS_PTRACE"], ..ALLOW },
    Rule { names: "ioperm iopl", with: &["CAP_SYS_RAWIO"], ..ALLOW },
    Rule { names: "clock_settime clock_settime64 settimeofday stime", with: &["CAP_SYS_TIME"], ..ALLOW },
    Rule { names: "vhangup", with: &["CAP_SYS_TTY_CONFIG"], ..ALLOW },
    Rule { names: "get_mempolicy mbind set_mempolicy set_mempolicy_home_node", with: &["CAP_SYS_NICE"], ..ALLOW },
    Rule { names: "syslog", with: &["CAP_SYSLOG"], ..ALLOW },
    Rule { names: "bpf", with: &["CAP_BPF"], ..ALLOW },
    Rule { names: "perf_event_open", with: &["CAP_PERFMON"], ..ALLOW },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &LinuxSeccomp, name: &str) -> bool {
        let named = |call: &&LinuxSyscall| call.names().iter().any(|known| known == name);
        profile
            .syscalls()
            .iter()
            .flatten()
            .filter(named)
            .any(|call| call.action() == LinuxSeccompAction::ScmpActAllow && call.args().is_none())
    }

    #[test]
    fn capabilities_open_calls() {
        let sandbox = profile(crate::spec::DEFAULT_CAPABILITIES).unwrap();
        assert!(allowed(&sandbox, "openat") && allowed(&sandbox, "chroot") && allowed(&sandbox, "ptrace"));
        for name in ["unshare", "mount", "keyctl", "add_key", "bpf", "clone", "clone3", "reboot", "io_uring_setup"] {
            assert!(!allowed(&sandbox, name), "{name}");
        }
        let admin = profile(&["CAP_SYS_ADMIN"]).unwrap();
        assert!(allowed(&admin, "unshare") && allowed(&admin, "clone") && allowed(&admin, "clone3"));
        assert!(!allowed(&admin, "keyctl"));
    }

    #[test]
    fn clone_is_filtered_by_its_flags() {
        let json = serde_json::to_value(profile(&[]).unwrap()).unwrap();
        assert_eq!(json["defaultErrnoRet"], 1);
        let calls = json["syscalls"].as_array().unwrap();
        let clone = calls.iter().find(|call| call["names"][0] == "clone").unwrap();
        assert_eq!(
            clone["args"][0],
            serde_json::json!({"index": 0, "value": 2_114_060_288u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"})
        );
        let clone3 = calls.iter().find(|call| call["names"][0] == "clone3").unwrap();
        assert_eq!((&clone3["action"], &clone3["errnoRet"]), (&"SCMP_ACT_ERRNO".into(), &38.into()));
    }
}
