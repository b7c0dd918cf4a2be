//! RUN steps: what they see, how they end.

#![allow(clippy::unwrap_used)]

use std::io::Read;

use castor_integration::build::Build;
use castor_integration::daemon::Daemon;
use castor_integration::scene::{Scene, base, comes_true};
use castor_testkit::{File, Form, Registry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Steps {
    reference: String,
    _registry: Registry,
    daemon: Daemon,
    scene: Scene,
}

impl Steps {
    fn new() -> Self {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let reference =
            base(Form::Gzip, &[File::new("file", "content\n")]).unwrap().put(&registry, "base:1").to_string();
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).start().unwrap();
        Self { reference, _registry: registry, daemon, scene }
    }

    fn build(&self, name: &str, lines: &str) -> Build {
        let project = self.scene.project(name, &format!("FROM {}\n{lines}\n", self.reference)).unwrap();
        Build::new(&self.daemon, &project)
    }
}

#[test]
fn privileged_a_secret_is_seen_and_not_kept() {
    let steps = Steps::new();
    let secret = steps.scene.path("secret");
    std::fs::write(&secret, "open-sesame-7391").unwrap();
    // The Dockerfile itself must not tell it.
    let hash = castor_oci::Digest::of("open-sesame-7391").hex();
    let lines = format!(
        "RUN --mount=type=secret,id=word sha256sum /run/secrets/word | grep {hash}\n\
         RUN --mount=type=secret,id=word,target=/w,mode=0400,uid=1000 stat -c '%a %u' /w | grep '400 1000'\n\
         RUN --mount=type=secret,id=word,env=WORD echo -n $WORD | sha256sum | grep {hash}\n\
         RUN test ! -s /run/secrets/word"
    );
    let out = steps.scene.path("out");
    let build = steps.build("p", &lines).local_output(&out);
    build.clone().arg("--secret").arg(format!("id=word,src={}", secret.display())).run().unwrap().success().unwrap();
    let required = steps.build("q", "RUN --mount=type=secret,id=none,required=true true");
    let error = required.run().unwrap().failure().unwrap();
    assert!(error.contains("secret none: not found"), "{error}");
    let state = steps.scene.path("daemon");
    steps.daemon.stop().unwrap();
    let found = castor_integration::programs::run_command({
        let mut grep = std::process::Command::new("sh");
        grep.arg("-c").arg(format!("grep -rl open-sesame-7391 {} || true", state.display()));
        grep
    })
    .unwrap();
    assert_eq!(found, "", "the secret was written to disk");
}

#[test]
fn privileged_a_cache_mount_is_kept_between_builds() {
    let steps = Steps::new();
    let run = |n: u32| {
        let lines =
            format!("RUN --mount=type=cache,target=/c,id=x echo {n} >> /c/all && cat /c/all > /seen && cat /seen");
        steps.build("p", &lines).run().unwrap().success().unwrap()
    };
    run(1);
    let second = run(2);
    let lines: Vec<&str> = second.stderr.lines().filter(|line| line.ends_with(" 1") || line.ends_with(" 2")).collect();
    assert!(lines.len() >= 2, "{}", second.stderr);
    let read_only = steps.build("q", "RUN --mount=type=cache,target=/c,id=x,ro touch /c/y").run().unwrap();
    assert!(read_only.failure().unwrap().contains("Read-only"));
    steps.daemon.stop().unwrap();
}

#[test]
fn privileged_mounts_of_all_kinds() {
    let steps = Steps::new();
    let project = steps
        .scene
        .project(
            "p",
            &format!(
                "FROM {0} AS other\nRUN echo other > /other\nFROM {0}\n\
                 RUN --mount=type=bind,target=/ctx test $(cat /ctx/data) = context && ! touch /ctx/x\n\
                 RUN --mount=type=bind,target=/ctx,rw touch /ctx/x\n\
                 RUN --mount=type=bind,from=other,source=/other,target=/o test $(cat /o) = other\n\
                 RUN --mount=type=tmpfs,target=/t grep ' /t tmpfs' /proc/mounts && touch /t/x\n\
                 RUN <<END\nset -e\necho here > /doc\ntest $(cat /doc) = here\nEND\n\
                 RUN --network=none ls /sys/class/net > /net && test \"$(cat /net)\" = lo\n",
                steps.reference
            ),
        )
        .unwrap()
        .file("data", "context")
        .unwrap();
    Build::new(&steps.daemon, &project).run().unwrap().success().unwrap();
    steps.daemon.stop().unwrap();
}

#[test]
fn privileged_a_step_has_the_defaults_of_a_container() {
    let steps = Steps::new();
    let lines = "RUN test $(id -u) = 0 && test -c /dev/null && test ! -e /proc/kcore/x && grep localhost /etc/hosts \
                 && test -s /etc/resolv.conf && test \"$PATH\" = /bin && test $(hostname) = buildkitsandbox\n\
                 RUN ! mount -t tmpfs none /tmp\n\
                 RUN grep 'CapEff:.*00000000a80425fb' /proc/self/status && grep 'Seccomp:.*2' /proc/self/status\n\
                 USER user\nRUN test $(id -u) = 1000 && test \"$HOME\" = /home/user && ! touch /file";
    steps.build("p", lines).run().unwrap().success().unwrap();
    steps.daemon.stop().unwrap();
}

#[test]
fn privileged_a_failing_build_shows_where_and_exits_with_one() {
    let steps = Steps::new();
    let outcome = steps.build("p", "RUN true\nRUN echo about to fail && exit 7").run().unwrap();
    assert_eq!(outcome.code, Some(1));
    let error = outcome.stderr;
    for part in [
        "about to fail",
        "Dockerfile:3",
        ">>> RUN echo about to fail && exit 7",
        "error: failed to solve: process \"/bin/sh -c echo about to fail && exit 7\" did not complete successfully: exit code: 7",
    ] {
        assert!(error.contains(part), "{part:?} is missing:\n{error}");
    }
    steps.daemon.stop().unwrap();
}

#[test]
fn privileged_all_output_of_a_step_arrives() {
    let steps = Steps::new();
    // Of one step the two streams may meet in the middle of a line.
    let outcome = steps.build("p", "RUN seq 1 30000\nRUN seq 30001 60000 >&2").run().unwrap().success().unwrap();
    // Number of the vertex, seconds, and what it printed.
    let printed = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, _, printed] => printed.parse::<u32>().ok(),
        _ => None,
    };
    let numbers: Vec<u32> = outcome.stderr.lines().filter_map(printed).collect();
    assert_eq!(numbers, (1..=60_000).collect::<Vec<u32>>());
    steps.daemon.stop().unwrap();
}

/// Processes whose command line contains `text`.
fn processes(text: &str) -> usize {
    let list = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = list.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|command| String::from_utf8_lossy(command).replace('\0', " ").contains(text)).count()
}

#[test]
fn privileged_a_cancelled_step_dies_with_all_it_started() {
    let steps = Steps::new();
    // Children that ignore what can be ignored, one of them a session of its own.
    let lines = "RUN (trap '' TERM INT HUP; sleep 987654) & (sleep 987655 &) ; echo started; sleep 987656";
    let mut client = steps.build("p", lines).spawn().unwrap();
    let mut seen = String::new();
    let mut progress = client.stderr.take().unwrap();
    let mut piece = [0; 4096];
    while !seen.contains(" started\n") {
        let n = progress.read(&mut piece).unwrap();
        assert!(n > 0, "the build ended:\n{seen}");
        seen.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    assert!(comes_true(|| processes("sleep 98765") >= 3), "the step's processes do not start");
    kill(Pid::from_raw(client.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = client.wait().unwrap();
    assert!(!status.success());
    assert!(comes_true(|| processes("sleep 98765") == 0), "the step's processes live on");
    // The same step can run again, and a client that is killed outright takes its step with it as well.
    let mut client = steps.build("p", lines).spawn().unwrap();
    assert!(comes_true(|| processes("sleep 98765") >= 3), "the step did not start again");
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(comes_true(|| processes("sleep 98765") == 0), "the step outlives its client");
    steps.daemon.stop().unwrap();
}

#[test]
fn privileged_a_stopped_daemon_ends_its_steps() {
    let steps = Steps::new();
    let client = steps.build("p", "RUN sleep 987657").spawn().unwrap();
    assert!(comes_true(|| processes("sleep 987657") > 0), "the step did not start");
    steps.daemon.stop().unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert_eq!(processes("sleep 987657"), 0);
}
