//! The client on a terminal: a real build, by the screen, and keys.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Command};

use castor_integration::daemon::Daemon;
use castor_integration::programs;
use castor_integration::project::Project;
use castor_integration::scene::{STARGZ, Scene, base, comes_true, noise};
use castor_oci::Digest;
use castor_testkit::{Fault, File, Form, On, Registry, Terminal};

struct Stage {
    daemon: Daemon,
    project: Project,
    registry: Registry,
    /// Names the upper layer of the base.
    big: Digest,
    _scene: Scene,
}

impl Stage {
    fn new(form: Form, lines: &str) -> Self {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let image = base(form, &[File::new("small", "small\n"), File::new("big", noise(1, 4 << 20))]).unwrap();
        let reference = image.put(&registry, "base:1");
        let big = image.layers[1].descriptor.digest;
        let daemon = scene.daemon("daemon", [registry.host().as_str()]).arg(STARGZ).start().unwrap();
        let project = scene.project("project", &format!("FROM {reference}\n{lines}\n")).unwrap();
        Self { daemon, project, registry, big, _scene: scene }
    }

    /// A build that has this terminal for its own, as a shell gives it to what it runs.
    fn build_on(&self, terminal: &Terminal) -> Child {
        let path = self.project.path().display();
        let line = || terminal.line();
        Command::new("setsid")
            .arg("--ctty")
            .arg(programs::ours("buildctl").unwrap())
            .args(["--addr", self.daemon.address(), "build", "--frontend=dockerfile.v0"])
            .args(["--local", &format!("context={path}"), "--local", &format!("dockerfile={path}")])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("BUILDKIT_COLORS")
            .env_remove("BUILDKIT_PROGRESS")
            .stdin(line())
            .stdout(line())
            .stderr(line())
            .spawn()
            .unwrap()
    }
}

/// Whether a process has this in its command line.
fn runs(text: &str) -> bool {
    let list = std::fs::read_dir("/proc").unwrap().flatten();
    let mut commands = list.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands.any(|command| String::from_utf8_lossy(&command).replace('\0', " ").contains(text))
}

#[test]
fn privileged_a_build_on_a_terminal_shows_lazy_layers_and_ends_with_a_line_about_them() {
    let stage = Stage::new(Form::Estargz, "RUN cat /small && echo made > /made");
    let mut terminal = Terminal::new(40, 120);
    let mut client = stage.build_on(&terminal);
    assert!(client.wait().unwrap().success());
    let rows = terminal.rows();
    assert!(rows[0].starts_with("[+] Building ") && rows[0].ends_with(" FINISHED"), "{rows:#?}");
    let layer = rows.iter().find(|row| row.contains("=> layer sha256:") && row.contains(" lazy ")).unwrap();
    assert!(layer.contains("%)") && layer.chars().count() == 119, "{layer:?}");
    let last = rows.last().unwrap();
    assert!(last.starts_with("lazy layers: fetched ") && last.contains(" of "), "{rows:#?}");
    stage.daemon.stop().unwrap();
}

#[test]
fn privileged_a_download_on_a_terminal_has_a_bar_and_bytes() {
    let stage = Stage::new(Form::Gzip, "RUN cat /small");
    // It comes to a halt in the middle.
    stage.registry.fault(On::new(http::Method::GET, stage.big.to_string()), Fault::Stall(600 << 10));
    let mut terminal = Terminal::new(40, 120);
    let mut client = stage.build_on(&terminal);
    let line = regex::Regex::new(r"^ => => sha256:[0-9a-f]{12} +\[=*> +\] +[0-9.]+kB / 4\.[0-9]+MB .*s$").unwrap();
    terminal.wait_for("a bar", |rows| rows.iter().any(|row| line.is_match(row) && row.chars().count() == 119));
    // Control-C
    terminal.type_keys(b"\x03");
    assert_eq!(client.wait().unwrap().code(), Some(1));
    stage.daemon.stop().unwrap();
}

#[test]
fn privileged_a_build_on_a_terminal_follows_its_size_and_ends_when_it_is_interrupted() {
    let stage = Stage::new(Form::Gzip, "RUN echo the step has begun; sleep 987664");
    let mut terminal = Terminal::new(30, 100);
    let mut client = stage.build_on(&terminal);
    let output = " => => # the step has begun";
    terminal.wait_for("the step's output", |rows| rows.iter().any(|row| row == output));
    terminal.resize(30, 60);
    terminal.wait_for("a line of the new width", |rows| {
        rows.iter().any(|row| row.contains("RUN echo the step has begun") && row.chars().count() == 59)
    });
    // Control-C
    terminal.type_keys(b"\x03");
    assert_eq!(client.wait().unwrap().code(), Some(1));
    let rows = terminal.rows();
    assert!(rows.iter().any(|row| row.starts_with(" => CANCELED ")), "{rows:#?}");
    assert_eq!(rows.last().unwrap(), "error: failed to solve: Canceled: context canceled");
    assert!(!rows.iter().any(|row| row == output), "{rows:#?}");
    assert!(terminal.has_cursor());
    assert!(comes_true(|| !runs("sleep 987664")), "the step lives on");
    stage.daemon.stop().unwrap();
}
