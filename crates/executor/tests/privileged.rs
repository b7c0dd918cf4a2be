//! Processes run by a real OCI runtime. These tests need root, `runc` and a static `/bin/busybox` (Debian's
//! busybox-static); with `CASTOR_TEST_RUNTIME` they use another runtime, crun for example.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use castor_executor::{
    Config, ExecError, ExecMount, Executor, HostIp, Meta, MountSource, Network, Output, Process, Resources, RootMount,
    Runc, SandboxNetwork, Secret, Stdio, Ulimit, WindowSize,
};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How long something that must happen is waited for, on a machine with other things to do: a hang ends with a message.
const PATIENCE: Duration = Duration::from_secs(300);

/// What was written, and a bell for each time.
#[derive(Clone, Default)]
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    bell: Arc<Notify>,
}

impl Captured {
    fn output(&self) -> Option<Output> {
        Some(Box::new(self.clone()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock()).into_owned()
    }

    /// Waits until `text` was written.
    async fn until(&self, text: &str) {
        let wait = async {
            loop {
                let bell = self.bell.notified();
                if self.text().contains(text) {
                    return;
                }
                bell.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{text:?} was not printed, but {:?}", self.text());
    }
}

impl AsyncWrite for Captured {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.bytes.lock().extend_from_slice(bytes);
        self.bell.notify_waiters();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An executor and a root file system of busybox's; what is left when it goes is a failure.
struct Bench {
    dir: tempfile::TempDir,
    runc: Runc,
}

struct Ran {
    result: Result<(), ExecError>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in
            ["sh", "cat", "id", "sleep", "setsid", "unshare", "ls", "stat", "dd", "head", "ip", "hostname", "stty"]
        {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1001:\nstaff:x:50:web\n").unwrap();
        let mut config = Config {
            root: dir.path().join("executor"),
            binary: std::env::var_os("CASTOR_TEST_RUNTIME").map(PathBuf::from),
            sandbox_network: SandboxNetwork::None,
            ..Config::default()
        };
        change(&mut config);
        let runc = Runc::new(config).unwrap();
        Self { dir, runc }
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn process(&self, script: &str) -> Process {
        Process {
            id: String::new(),
            root: RootMount { path: self.rootfs(), readonly: false },
            mounts: Vec::new(),
            meta: Meta { args: ["/bin/sh", "-c", script].map(str::to_owned).into(), ..Meta::default() },
            stdio: Stdio::default(),
        }
    }

    async fn run(&self, mut process: Process) -> Ran {
        let (stdout, stderr) = (Captured::default(), Captured::default());
        process.stdio.stdout = stdout.output();
        process.stdio.stderr = stderr.output();
        let result = self.runc.run(process, None, &CancellationToken::new()).await;
        Ran { result, stdout: stdout.text(), stderr: stderr.text() }
    }

    async fn script(&self, script: &str) -> Ran {
        self.run(self.process(script)).await
    }

    async fn succeeds(&self, process: Process) -> String {
        let ran = self.run(process).await;
        assert!(ran.result.is_ok(), "{:?} {} {}", ran.result, ran.stdout, ran.stderr);
        ran.stdout
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let state = self.dir.path().join("executor");
        for name in ["bundles", "runtime"] {
            let left: Vec<_> = fs::read_dir(state.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "left mounted: {mounts}");
    }
}

fn mount(destination: &str, source: MountSource) -> ExecMount {
    ExecMount { source, selector: String::new(), destination: destination.to_owned(), readonly: false }
}

/// Whether any process of this machine has `text` among its arguments.
fn is_running(text: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
    })
}

#[tokio::test]
async fn privileged_exit_codes() {
    let bench = Bench::new();
    assert!(bench.script("exit 0").await.result.is_ok());
    let failed = bench.script("exit 42").await.result.unwrap_err();
    assert_eq!(failed.exit_code(), Some(42));
    assert_eq!(failed.to_string(), "process \"/bin/sh -c exit 42\" did not complete successfully: exit code: 42");
    assert_eq!(bench.script("sh -c 'kill -9 $$'; exit $?").await.result.unwrap_err().exit_code(), Some(137));

    let mut process = bench.process("exit 3");
    process.meta.valid_exit_codes = vec![3, 4];
    assert!(bench.run(process).await.result.is_ok());
    let mut process = bench.process("exit 0");
    process.meta.valid_exit_codes = vec![3, 4];
    assert_eq!(bench.run(process).await.result.unwrap_err().exit_code(), Some(0));

    let mut process = bench.process("");
    process.meta.args = vec!["/no/such".to_owned()];
    let ran = bench.run(process).await;
    assert!(ran.result.unwrap_err().exit_code().is_some_and(|code| code != 0));
    assert!(ran.stderr.contains("/no/such"), "{}", ran.stderr);
}

#[tokio::test]
async fn privileged_want_of_memory_is_named() {
    let bench = Bench::new();
    let mut process = bench.process("head -c 200000000 /dev/zero | tail -c 100000000 | cat >/dev/null; exit 9");
    symlink("busybox", bench.rootfs().join("bin/tail")).unwrap();
    process.meta.resources = Resources { memory: 24 << 20, memory_swap: 24 << 20, ..Resources::default() };
    let err = bench.run(process).await.result.unwrap_err();
    assert!(err.to_string().ends_with(" did not complete successfully: cannot allocate memory"), "{err}");
    assert_eq!(err.exit_code(), Some(9));
}

#[tokio::test]
async fn privileged_streams_are_whole() {
    let bench = Bench::new();
    // Half of it written by a process that outlives the first one's interest in it.
    let size = 50 << 20;
    let half = size / 2;
    let mut process = bench.process(&format!(
        "echo begin >&2; dd if=/dev/zero bs=65536 count={} 2>/dev/null; head -c {half} /dev/zero; echo end >&2",
        half / 65536
    ));
    let (stdout, stderr) = (Captured::default(), Captured::default());
    process.stdio.stdout = stdout.output();
    process.stdio.stderr = stderr.output();
    bench.runc.run(process, None, &CancellationToken::new()).await.unwrap();
    assert_eq!(stdout.bytes.lock().len(), size);
    assert!(stdout.bytes.lock().iter().all(|&byte| byte == 0));
    assert_eq!(stderr.text(), "begin\nend\n");

    let mut process = bench.process("cat; echo done");
    process.stdio.stdin = Some(Box::new(std::io::Cursor::new(b"from outside\n".to_vec())));
    assert_eq!(bench.succeeds(process).await, "from outside\ndone\n");

    // Input that never ends does not keep a process.
    let mut process = bench.process("exit 0");
    process.stdio.stdin = Some(Box::new(tokio::io::repeat(b'x')));
    assert!(bench.run(process).await.result.is_ok());
    // None at all is an empty one.
    assert_eq!(bench.succeeds(bench.process("cat; echo end")).await, "end\n");
}

#[tokio::test]
async fn privileged_cancelling_kills_the_whole_tree() {
    let bench = Bench::new();
    // A name that no other process has.
    let mark = format!("31{}", std::process::id());
    let mut process = bench.process(&format!(
        "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; setsid sleep {mark} & sleep {mark}' & echo ready; sleep {mark}"
    ));
    let stdout = Captured::default();
    process.stdio.stdout = stdout.output();
    let cancel = CancellationToken::new();
    let canceller = cancel.clone();
    let seen = stdout.clone();
    let (ran, ()) = tokio::join!(bench.runc.run(process, None, &cancel), async {
        seen.until("ready").await;
        assert!(is_running(&mark));
        canceller.cancel();
    });
    let err = ran.unwrap_err();
    assert!(err.is_canceled(), "{err}");
    assert!(!is_running(&mark));
    assert!(bench.runc.running().is_empty());
}

#[tokio::test]
async fn privileged_cancelling_at_any_moment_leaves_nothing() {
    let bench = Bench::new();
    for milliseconds in [0, 1, 5, 10, 20, 40, 60, 80, 120] {
        let cancel = CancellationToken::new();
        let canceller = cancel.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            canceller.cancel();
        });
        // It would end well if it were left to itself.
        let result = bench.runc.run(bench.process("sleep 1000"), None, &cancel).await;
        assert!(result.unwrap_err().is_canceled());
        timer.await.unwrap();
    }
}

#[tokio::test]
async fn privileged_a_dropped_call_is_cancelled() {
    let bench = Bench::new();
    let mark = format!("32{}", std::process::id());
    let mut process = bench.process(&format!("echo ready; sleep {mark}"));
    let stdout = Captured::default();
    process.stdio.stdout = stdout.output();
    {
        let cancel = CancellationToken::new();
        let run = bench.runc.run(process, None, &cancel);
        tokio::select! {
            _ = run => panic!("it ended"),
            () = stdout.until("ready") => {}
        }
    }
    let gone = async {
        while is_running(&mark) || !bench.runc.running().is_empty() {
            tokio::task::yield_now().await;
        }
        // The bundle goes last.
        while fs::read_dir(bench.dir.path().join("executor/bundles")).unwrap().next().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn privileged_networks() {
    let bench = Bench::new();
    let mut process = bench.process("cat /proc/net/dev");
    process.meta.network = Network::None;
    let none = bench.succeeds(process).await;
    let interfaces = |text: &str| text.lines().filter(|line| line.contains(':')).count();
    assert!(none.contains("lo:"), "{none}");
    assert_eq!(interfaces(&none), 1, "{none}");

    let mut process = bench.process("cat /proc/net/dev");
    process.meta.network = Network::Host;
    let host = bench.succeeds(process).await;
    let ours = fs::read_to_string("/proc/net/dev").unwrap();
    assert_eq!(interfaces(&host), interfaces(&ours));

    let shared = Bench::with(|config| config.sandbox_network = SandboxNetwork::Host);
    let host = shared.succeeds(shared.process("cat /proc/net/dev")).await;
    assert_eq!(interfaces(&host), interfaces(&ours));
}

#[tokio::test]
async fn privileged_users() {
    let bench = Bench::new();
    for (user, expected) in [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        ("web", "uid=1000(web) gid=1001(web) groups=1001(web),50(staff)"),
        ("web:staff", "uid=1000(web) gid=50(staff) groups=50(staff)"),
        ("77:88", "uid=77 gid=88 groups=88"),
        ("1000", "uid=1000(web) gid=1001(web) groups=1001(web),50(staff)"),
    ] {
        let mut process = bench.process("id");
        process.meta.user = user.to_owned();
        let printed = bench.succeeds(process).await;
        let mut groups: Vec<_> = printed.trim().rsplit('=').next().unwrap().split(',').map(str::to_owned).collect();
        groups.sort();
        let head = printed.trim().rsplit_once('=').unwrap().0;
        assert_eq!(format!("{head}={}", groups.join(",")), expected, "{user}");
    }
    let mut process = bench.process("id");
    process.meta.user = "nobody".to_owned();
    let err = bench.run(process).await.result.unwrap_err();
    assert_eq!(
        err.to_string(),
        "process \"/bin/sh -c id\" did not complete successfully: unable to find user nobody: no matching entries in passwd file"
    );
}

#[tokio::test]
async fn privileged_confinement() {
    let bench = Bench::new();
    let ran = bench.script("grep -i '^Seccomp:\\|^CapEff' /proc/self/status; unshare -m true; echo $?").await;
    let printed = ran.stdout;
    assert!(printed.contains("Seccomp:\t2"), "{printed}");
    assert!(printed.contains("CapEff:\t00000000a80425fb"), "{printed}");
    assert!(printed.trim_end().ends_with('1'), "{printed}");
    assert!(ran.stderr.contains("Operation not permitted"), "{}", ran.stderr);

    let script =
        "cat /proc/keys /proc/timer_list; echo 1 > /proc/sys/kernel/domainname; touch /sys/x; ls /sys/firmware";
    let ran = bench.script(script).await;
    assert_eq!(ran.stdout, "", "{}", ran.stderr);
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);

    let hostname = bench.succeeds(bench.process("hostname; cat /etc/hosts")).await;
    assert!(hostname.starts_with("buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n"), "{hostname}");
    let mut process = bench.process("hostname; cat /etc/hosts; ulimit -n; echo $PATH $A; pwd; cat /etc/resolv.conf");
    process.meta.hostname = "box".to_owned();
    process.meta.extra_hosts = vec![HostIp { host: "db".to_owned(), ip: "10.0.0.9".parse().unwrap() }];
    process.meta.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 77, hard: 99 }];
    process.meta.env = vec!["A=b".to_owned()];
    process.meta.cwd = "/new/place".to_owned();
    process.meta.user = "web".to_owned();
    let printed = bench.succeeds(process).await;
    assert!(
        printed.starts_with(
            "box\n127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.9\tdb\n77\n\
             /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin b\n/new/place\nnameserver "
        ),
        "{printed}"
    );
    let made = fs::metadata(bench.rootfs().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 1001, 0o755));
}

#[tokio::test]
async fn privileged_mounts() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    fs::create_dir_all(outside.join("sub/deep")).unwrap();
    fs::write(outside.join("sub/deep/file"), "deep\n").unwrap();
    symlink("/sub", outside.join("inside")).unwrap();
    symlink("/etc/hostname", outside.join("escape")).unwrap();
    let fd = Arc::new(std::os::fd::OwnedFd::from(fs::File::open(&outside).unwrap()));
    let secret = Secret { data: "hush".into(), uid: 1000, gid: 0, mode: 0o440 };

    let mut process = bench.process(
        "cat /in/sub/deep/file /sel/deep/file /one; cat /run/secrets/s; stat -c ' %a %u' /run/secrets/s; \
         touch /ro/x; echo new > /in/written; ls -d /tmpfs/nested; df -k /tmpfs | tail -1 | head -c 5; df -k /dev/shm",
    );
    process.mounts = vec![
        mount("/tmpfs/nested", MountSource::Path(outside.clone())),
        mount("/in", MountSource::Fd(fd.clone())),
        ExecMount { selector: "/inside".to_owned(), ..mount("/sel", MountSource::Path(outside.clone())) },
        ExecMount { selector: "sub/deep/file".to_owned(), ..mount("/one", MountSource::Fd(fd.clone())) },
        ExecMount { readonly: true, ..mount("/ro", MountSource::Path(outside.clone())) },
        mount("/tmpfs", MountSource::Tmpfs { size: 1 << 20 }),
        mount("/dev/shm", MountSource::Tmpfs { size: 2 << 20 }),
        mount("/run/secrets/s", MountSource::Secret(secret)),
    ];
    for name in ["df", "tail", "touch"] {
        symlink("busybox", bench.rootfs().join("bin").join(name)).unwrap();
    }
    let ran = bench.run(process).await;
    assert!(ran.result.is_ok(), "{:?} {}", ran.result, ran.stderr);
    assert!(ran.stdout.starts_with("deep\ndeep\ndeep\nhush 440 1000\n/tmpfs/nested\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("2048"), "{}", ran.stdout);
    assert!(ran.stderr.contains("/ro/x: Read-only file system"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(outside.join("written")).unwrap(), "new\n");

    let mut process = bench.process("true");
    process.mounts =
        vec![ExecMount { selector: "/escape".to_owned(), ..mount("/x", MountSource::Path(outside.clone())) }];
    let err = bench.run(process).await.result.unwrap_err();
    assert!(err.to_string().contains(": failed to mount /x: /escape: "), "{err}");

    let mut process = bench.process("touch /x");
    process.root.readonly = true;
    let ran = bench.run(process).await;
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
}

#[tokio::test]
async fn privileged_mount_points_are_no_part_of_the_result() {
    let bench = Bench::new();
    let etc = bench.rootfs().join("etc");
    let mut process = bench.process("echo data > /kept/own; mkdir -p /cache2/filled; true");
    process.mounts = vec![
        mount("/cache", MountSource::Tmpfs { size: 0 }),
        mount("/kept/below", MountSource::Tmpfs { size: 0 }),
        mount("/run/secrets/s", MountSource::Secret(Secret { data: "x".into(), uid: 0, gid: 0, mode: 0o400 })),
    ];
    bench.succeeds(process).await;
    let left = |path: &str| fs::symlink_metadata(bench.rootfs().join(path)).is_ok();
    assert!(!left("etc/hosts") && !left("etc/resolv.conf") && !left("cache") && !left("kept/below"));
    assert!(left("kept/own") && left("run/secrets") && !left("run/secrets/s"));
    // As BuildKit's executor leaves them.
    assert!(left("proc") && left("dev") && left("sys"));

    let mut process = bench.process("true");
    process.meta.remove_mount_stubs_recursive = true;
    process.mounts = vec![mount("/a/b/c", MountSource::Tmpfs { size: 0 })];
    bench.succeeds(process).await;
    assert!(!left("a"));
    assert_eq!(fs::metadata(etc).unwrap().permissions().mode() & 0o777, 0o755);
}

#[tokio::test]
async fn privileged_more_processes_in_a_container() {
    let bench = Bench::new();
    let mut process = bench.process("export X=1; echo ready; sleep 1000");
    process.id = "box".to_owned();
    process.meta.env = vec!["FROM=container".to_owned()];
    let stdout = Captured::default();
    process.stdio.stdout = stdout.output();
    let cancel = CancellationToken::new();
    let runc = bench.runc.clone();
    let token = cancel.clone();
    let (started, is_started) = oneshot::channel();
    let first = tokio::spawn(async move { runc.run(process, Some(started), &token).await });
    is_started.await.unwrap();

    let exec = |script: &str, user: &str| Meta {
        args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        user: user.to_owned(),
        ..Meta::default()
    };
    let never = CancellationToken::new();
    // What the container is made from may hold secrets: it is in no file.
    let config = bench.dir.path().join("executor/bundles/box/config.json");
    assert!(fs::read_link(&config).unwrap().starts_with("/proc"));
    assert!(fs::read_to_string(&config).unwrap().contains("FROM=container"));
    let output = Captured::default();
    let stdio = Stdio { stdout: output.output(), ..Stdio::default() };
    bench.runc.exec("box", exec("echo $FROM; id -u; hostname", "web"), stdio, &never).await.unwrap();
    assert_eq!(output.text(), "container\n1000\nbuildkitsandbox\n");
    stdout.until("ready").await;

    let err = bench.runc.exec("box", exec("exit 9", ""), Stdio::default(), &never).await.unwrap_err();
    assert_eq!(err.exit_code(), Some(9));
    let err = bench.runc.exec("nobox", exec("true", ""), Stdio::default(), &never).await.unwrap_err();
    assert_eq!(err.to_string(), "container nobox not found");

    // A cancelled one ends alone.
    let output = Captured::default();
    let stdio = Stdio { stdout: output.output(), ..Stdio::default() };
    let token = CancellationToken::new();
    let canceller = token.clone();
    let (result, ()) = tokio::join!(bench.runc.exec("box", exec("echo here; sleep 1000", ""), stdio, &token), async {
        output.until("here").await;
        canceller.cancel();
    });
    assert!(result.unwrap_err().is_canceled());
    assert!(!first.is_finished());
    cancel.cancel();
    assert!(first.await.unwrap().unwrap_err().is_canceled());
}

#[tokio::test]
async fn privileged_terminals_and_signals() {
    let bench = Bench::new();
    let mut process =
        bench.process("trap 'until stty size; do :; done' WINCH; echo ready; until [ -n \"$line\" ]; do read line; done; echo got $line");
    process.meta.tty = true;
    let stdout = Captured::default();
    process.stdio.stdout = stdout.output();
    let (sizes, resize) = mpsc::channel(1);
    process.stdio.resize = Some(resize);
    let (mut keyboard, stdin) = tokio::io::duplex(64);
    process.stdio.stdin = Some(Box::new(stdin));
    let never = CancellationToken::new();
    let (result, ()) = tokio::join!(bench.runc.run(process, None, &never), async {
        use tokio::io::AsyncWriteExt as _;
        stdout.until("ready").await;
        sizes.send(WindowSize { rows: 33, columns: 111 }).await.unwrap();
        // The line ends the process, which must have seen its new size before.
        stdout.until("33 111").await;
        keyboard.write_all(b"hello\n").await.unwrap();
    });
    result.unwrap();
    let printed = stdout.text();
    assert!(printed.contains("got hello\r\n") && printed.contains("33 111"), "{printed:?}");

    let mut process = bench.process("trap 'echo usr1; exit 5' USR1; echo ready; while :; do sleep 0.1; done");
    let stdout = Captured::default();
    process.stdio.stdout = stdout.output();
    let (signals, receiver) = mpsc::channel(1);
    process.stdio.signals = Some(receiver);
    let (result, ()) = tokio::join!(bench.runc.run(process, None, &never), async {
        stdout.until("ready").await;
        signals.send(libc::SIGUSR1).await.unwrap();
    });
    assert_eq!(result.unwrap_err().exit_code(), Some(5));
    assert!(stdout.text().contains("usr1"));
}

#[tokio::test]
async fn privileged_what_a_killed_daemon_left_is_removed() {
    let bench = Bench::new();
    let binary = bench.runc.binary().to_path_buf();
    let executor = bench.dir.path().join("executor");
    let mark = format!("33{}", std::process::id());
    use std::process::Stdio;
    // A container as a daemon has it that is killed in the middle of a step.
    let bundle = executor.join("bundles/orphan");
    fs::create_dir_all(bundle.join("mounts/0")).unwrap();
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).current_dir(&bundle).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "{program:?} {arguments:?}");
    };
    run(Path::new("mount"), &["-t", "tmpfs", "tmpfs", bundle.join("mounts/0").to_str().unwrap()]);
    run(&binary, &["spec"]);
    let spec = fs::read_to_string(bundle.join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    spec["root"]["path"] = bench.rootfs().to_str().unwrap().into();
    spec["process"]["args"] = serde_json::json!(["/bin/sleep", mark]);
    spec["process"]["terminal"] = false.into();
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let state = executor.join("runtime");
    run(&binary, &["--root", state.to_str().unwrap(), "run", "--detach", "orphan"]);
    let runs = async {
        while !is_running(&mark) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, runs).await.unwrap();

    bench.runc.recover().await.unwrap();
    assert!(!is_running(&mark));
    // Once more there is nothing to do.
    bench.runc.recover().await.unwrap();
}

#[tokio::test]
async fn privileged_a_cgroup_that_its_runtime_did_not_live_to_know_is_removed() {
    let bench = Bench::new();
    let bundle = bench.dir.path().join("executor/bundles/half");
    fs::create_dir_all(&bundle).unwrap();
    let name = format!("/buildkit/half-{}", std::process::id());
    fs::write(bundle.join("cgroup"), &name).unwrap();
    let tops: Vec<_> = match fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        true => vec![Path::new("/sys/fs/cgroup").to_path_buf()],
        false => ["pids", "memory"].map(|top| Path::new("/sys/fs/cgroup").join(top)).into(),
    };
    let places: Vec<_> = tops.iter().map(|top| top.join(name.trim_start_matches('/'))).collect();
    places.iter().for_each(|place| fs::create_dir_all(place.join("inner")).unwrap());
    let mut left = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(places[0].join("inner/cgroup.procs"), left.id().to_string()).unwrap();

    // The child is this test's, and dies to be waited for.
    let waiting = std::thread::spawn(move || left.wait().unwrap());
    bench.runc.recover().await.unwrap();
    assert!(!waiting.join().unwrap().success());
    assert!(places.iter().all(|place| !place.exists()) && !bundle.exists());
}

#[tokio::test]
async fn privileged_many_at_once() {
    let bench = Bench::new();
    // They share a root, which steps never do: what is there is not made, nor removed by who is done first.
    for name in ["hosts", "resolv.conf"] {
        fs::create_dir_all(bench.rootfs().join("etc")).unwrap();
        fs::write(bench.rootfs().join("etc").join(name), "").unwrap();
    }
    let runs = (0..8).map(|index| {
        let script = format!("echo {index}; exit {index}");
        let bench = &bench;
        async move { bench.script(&script).await }
    });
    for (index, ran) in futures::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!(ran.stdout, format!("{index}\n"), "{}", ran.stderr);
        let code = ran.result.err().and_then(|err| err.exit_code()).unwrap_or(0);
        assert_eq!(code as usize, index);
    }
}

/// A plugin that writes down which namespace it was called for, and answers with nothing.
const PLUGIN: &str = "#!/bin/sh\ncat >/dev/null\n[ -z \"$CNI_NETNS\" ] || stat -Lc %i \"$CNI_NETNS\" > \"$0.$CNI_COMMAND\"\n\
    [ $CNI_COMMAND = DEL ] || echo '{}'\n";

#[tokio::test]
async fn privileged_a_network_is_furnished_for_a_container_and_taken_down() {
    let plugins = tempfile::tempdir().unwrap();
    for name in ["loopback", "fake"] {
        let path = plugins.path().join(name);
        fs::write(&path, PLUGIN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = plugins.path().join("net.conf");
    fs::write(&file, r#"{"cniVersion":"1.0.0","name":"test","type":"fake"}"#).unwrap();
    let bench = Bench::with(|config| {
        config.sandbox_network = SandboxNetwork::Cni;
        let network = castor_executor::CniNetwork::File(file);
        let binaries = plugins.path().to_owned();
        config.cni = Some(castor_executor::CniConfig { network, binaries, pool: 1 });
    });
    let networks = || fs::read_dir(bench.dir.path().join("executor/net")).unwrap().count();
    // As a killed daemon leaves it: the namespace is gone, its file is not.
    fs::write(bench.dir.path().join("executor/net/left"), "").unwrap();
    bench.runc.recover().await.unwrap();
    assert_eq!(networks(), 0);
    let inside = bench.succeeds(bench.process("stat -Lc %i /proc/self/ns/net")).await;
    let deleted = fs::read_to_string(plugins.path().join("fake.DEL")).unwrap();
    assert_eq!(inside, deleted);
    let mut process = bench.process("stat -Lc %i /proc/self/ns/net");
    process.meta.network = Network::Host;
    let host = bench.succeeds(process).await;
    assert_ne!(inside, host);
    bench.runc.close(Duration::from_secs(60)).await.unwrap();
    assert_eq!(networks(), 0);
}
