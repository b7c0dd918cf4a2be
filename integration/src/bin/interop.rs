//! `make interop`: castor beside the real programs, with the real client on both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use castor_integration::build::Build;
use castor_integration::daemon::{Daemon, Options, Outcome};
use castor_integration::hello;
use castor_integration::programs;
use castor_integration::project::Project;
use castor_integration::scene::{self, STARGZ};
use castor_integration::transcript::Transcript;
use castor_integration::tree::Tree;
use castor_testkit::{File, Form, RealRegistry, Relay, RelayOptions};

const BEGIN: &str = "<!-- interop:begin -->";
const END: &str = "<!-- interop:end -->";

/// A real daemon that fetches less of the image than this share of a hundred builds lazily.
const LAZY: u64 = 50;

struct Interop {
    buildctl: PathBuf,
    buildkitd: PathBuf,
    buildx: Option<PathBuf>,
    place: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    registry: RealRegistry,
    /// What is written into the page.
    rows: Vec<(String, String)>,
    failed: bool,
}

fn main() -> Result<()> {
    let mut interop = Interop::new()?;
    interop.prepare()?;
    interop.compare()?;
    interop.containerd()?;
    interop.real_daemon_in_stargz_mode()?;
    interop.buildx()?;
    interop.write_page()?;
    if interop.failed {
        bail!("castor and the real programs differ");
    }
    Ok(())
}

/// The path given for `--name`; it must be a program.
fn program(name: &str) -> Result<Option<PathBuf>> {
    let arguments: Vec<String> = std::env::args().collect();
    let place = arguments.iter().position(|argument| argument == &format!("--{name}"));
    let Some(path) = place.and_then(|place| arguments.get(place + 1)).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    if !path.is_file() {
        bail!("--{name}: {} is no file", path.display());
    }
    Ok(Some(path))
}

impl Interop {
    fn new() -> Result<Self> {
        let missing =
            |name: &str, variable: &str| format!("--{name} is missing: make interop {variable}=<the real one>");
        let buildctl = program("buildctl")?.with_context(|| missing("buildctl", "BUILDCTL"))?;
        let buildkitd = program("buildkitd")?.with_context(|| missing("buildkitd", "BUILDKITD"))?;
        Ok(Self {
            buildctl,
            buildkitd,
            buildx: program("buildx")?,
            place: scene::place("interop-")?,
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            registry: RealRegistry::start(),
            rows: Vec::new(),
            failed: false,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn note(&mut self, what: impl Into<String>, outcome: Result<String>) {
        let what = what.into();
        let outcome = outcome.unwrap_or_else(|error| {
            self.failed = true;
            eprintln!("{what}: {error:#}");
            format!("**differs**: {}", error.to_string().lines().next().unwrap_or_default())
        });
        println!("==> {what}: {outcome}");
        self.rows.push((what, outcome));
    }

    fn options(&self, name: &str, host: &str) -> Options {
        scene::plain_hosts(Options::new(self.path(name)), [host])
    }

    /// The base images: a small one, and castor's own with the tool chain.
    fn prepare(&mut self) -> Result<()> {
        let host = self.registry.host().to_owned();
        let small = scene::base(Form::Gzip, &[File::new("file", "content\n")])?;
        self.runtime.block_on(small.push(&host, "base:1"));
        let root = hello::root_filesystem()?;
        let maker = self.options("maker", &host).start()?;
        hello::push_base(&maker, &root, self.place.path(), &format!("{host}/go-base:1"))?;
        maker.stop()?;
        fs::remove_dir_all(self.path("maker")).context("remove the maker's state")
    }

    /// The same builds by the real client on both daemons.
    fn compare(&mut self) -> Result<()> {
        let host = self.registry.host().to_owned();
        let castor = self.options("castor", &host).start()?;
        let real = self.options("real", &host).program(&self.buildkitd).start()?;
        for (name, project, arguments, code) in self.cases(&host)? {
            let outcome = self.case(&castor, &real, &project, &arguments, code);
            self.note(name, outcome);
        }
        castor.stop()?;
        real.stop()?;
        unmount_below(&self.path("real"))
    }

    /// Name, project, arguments of the client, and the exit code.
    #[allow(clippy::type_complexity)]
    fn cases(&self, host: &str) -> Result<Vec<(&'static str, Project, Vec<String>, i32)>> {
        let secret = self.path("secret");
        fs::write(&secret, "open sesame")?;
        let stages = format!(
            "FROM {host}/base:1 AS base\nWORKDIR /work\nFROM base AS a\nCOPY data .\n\
             RUN --mount=type=secret,id=word wc -c < /run/secrets/word && cat data > a\n\
             FROM base AS b\nRUN --mount=type=cache,target=/cache echo kept > /cache/x && cp /cache/x b && echo two\n\
             FROM scratch\nCOPY --from=a /work/a /\nCOPY --from=b --chown=1:2 /work/b /\n"
        );
        let push = format!("FROM {host}/base:1\nRUN echo made > /made\nCOPY data /\nENV A=b\n");
        let failing = format!("FROM {host}/base:1\nRUN true\nRUN echo about to fail && exit 7\nRUN echo never\n");
        Ok(vec![
            ("the hello example", hello::project(&self.path("hello"), &format!("{host}/go-base:1"))?, vec![], 0),
            (
                "several stages, with a secret and a cache mount",
                Project::new(self.path("stages"), &stages)?.file("data", "data\n")?,
                vec!["--secret".into(), format!("id=word,src={}", secret.display())],
                0,
            ),
            (
                "a push as eStargz",
                Project::new(self.path("push"), &push)?.file("data", "data\n")?,
                vec![
                    "--output".into(),
                    format!(
                        "type=image,name={host}/pushed:1,push=true,compression=estargz,oci-mediatypes=true,force-compression=true"
                    ),
                ],
                0,
            ),
            ("a failing step", Project::new(self.path("failing"), &failing)?, vec![], 1),
        ])
    }

    fn case(
        &self,
        castor: &Daemon,
        real: &Daemon,
        project: &Project,
        arguments: &[String],
        code: i32,
    ) -> Result<String> {
        let run = |daemon: &Daemon, out: &Path| -> Result<Outcome> {
            let mut build = Build::new(daemon, project).client(&self.buildctl);
            if !arguments.iter().any(|argument| argument == "--output") {
                build = build.local_output(out);
            }
            let outcome = arguments.iter().fold(build, |build, argument| build.arg(argument)).run()?;
            if outcome.code != Some(code) {
                bail!("exit code {:?}, want {code}:\n{}", outcome.code, outcome.stderr);
            }
            Ok(outcome)
        };
        let mut said = Vec::new();
        for (daemon, name) in [(real, "out-real"), (castor, "out-castor")] {
            let out = self.path(name);
            // Once without and once with what is cached by then.
            let first = run(daemon, &out)?;
            let second = run(daemon, &out)?;
            let tree = if out.exists() { Some(Tree::read(&out)?) } else { None };
            let _ = fs::remove_dir_all(&out);
            said.push((first, second, tree));
        }
        let (Some(castor), Some(real)) = (said.pop(), said.pop()) else { bail!("no outcome") };
        if let (Some(castor), Some(real)) = (&castor.2, &real.2) {
            let differences = real.differences(castor);
            if !differences.is_empty() {
                bail!("other files:\n{}", differences.join("\n"));
            }
        }
        let pairs = [("", &real.0, &castor.0), ("again, ", &real.1, &castor.1)];
        let mut lines = 0;
        for (when, real, castor) in pairs {
            let (real, castor) = (Transcript::parse(&real.stderr)?, Transcript::parse(&castor.stderr)?);
            let differences = real.differences(&castor);
            if !differences.is_empty() {
                bail!("{when}other lines (- real, + castor)\n{}", differences.join("\n"));
            }
            planted(&real, &castor)?;
            lines += real.lines().len();
        }
        Ok(format!("{lines} lines equal, exit code {code}"))
    }

    /// containerd's `ctr-remote` finds the table of contents in what castor pushed.
    fn containerd(&mut self) -> Result<()> {
        let outcome = self.toc_by_ctr_remote();
        self.note("`ctr-remote images get-toc-digest` of the base that castor pushed", outcome);
        Ok(())
    }

    fn toc_by_ctr_remote(&self) -> Result<String> {
        let containerd = programs::installed("containerd", "containerd")?;
        let remote = programs::installed("ctr-remote", "stargz-snapshotter")?;
        let home = self.path("containerd");
        fs::create_dir_all(&home)?;
        let socket = home.join("socket");
        let config = home.join("config.toml");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
                 \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
                 \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\naddress = \"{1}\"\n[ttrpc]\naddress = \"{1}.ttrpc\"\n",
                home.display(),
                socket.display()
            ),
        )?;
        let _containerd =
            Server::start(Command::new(containerd).arg("--config").arg(&config), "containerd successfully booted")?;
        let image = format!("{}/go-base:1", self.registry.host());
        let ctr = |arguments: &[&str]| {
            let mut command = Command::new(&remote);
            command.arg("--address").arg(&socket).args(arguments);
            programs::run_command(command)
        };
        ctr(&["content", "fetch", "--plain-http", &image])?;
        let facts = hello::facts(self.registry.host(), "go-base", "1")?;
        for (layer, toc) in facts.digests.iter().zip(&facts.tocs) {
            let found = ctr(&["images", "get-toc-digest", layer])?;
            if Some(found.trim()) != toc.as_deref() {
                bail!("it says {:?}, the manifest {toc:?}", found.trim());
            }
        }
        Ok("the digest of the manifest's annotation".to_owned())
    }

    /// The real daemon builds lazily on an image of castor's.
    fn real_daemon_in_stargz_mode(&mut self) -> Result<()> {
        let outcome = self.lazy_by_the_real_one();
        self.note("the real buildkitd in stargz mode, hello on the base that castor pushed", outcome);
        unmount_below(&self.path("real-stargz"))
    }

    fn lazy_by_the_real_one(&self) -> Result<String> {
        let facts = hello::facts(self.registry.host(), "go-base", "1")?;
        let relay = self.runtime.block_on(Relay::start(self.registry.addr(), RelayOptions::default()));
        let host = relay.host();
        // It fetches all the rest as soon as a step has read nothing for a few seconds, which compiling does.
        let options = self.options("real-stargz", &host).program(&self.buildkitd).arg(STARGZ);
        let daemon = options.config("[worker.oci.stargzSnapshotter]\nno_background_fetch = true").start()?;
        let project = hello::project(&self.path("hello-lazy"), &format!("{host}/go-base:1"))?;
        let out = self.path("out-lazy");
        Build::new(&daemon, &project).client(&self.buildctl).local_output(&out).run()?.success()?;
        hello::greet(&out)?;
        let bytes = relay.bytes_down();
        daemon.stop()?;
        let share = bytes * 100 / facts.compressed;
        if share >= LAZY {
            bail!("{share} % of the image was fetched: it did not take it for a lazy one");
        }
        Ok(format!("lazy, {share} % of the image fetched"))
    }

    /// `docker buildx` with its remote driver.
    fn buildx(&mut self) -> Result<()> {
        if self.buildx.is_some() {
            let outcome = self.build_by_buildx();
            self.note("`docker buildx build`, remote driver", outcome);
        }
        Ok(())
    }

    fn build_by_buildx(&self) -> Result<String> {
        let buildx = self.buildx.as_ref().context("no buildx")?;
        let host = self.registry.host();
        let daemon = self.options("buildx", host).start()?;
        let home = self.path("docker");
        fs::create_dir_all(&home)?;
        let run = |arguments: &[&str]| {
            let mut command = Command::new(buildx);
            command.args(arguments).env("DOCKER_CONFIG", &home).env("BUILDX_CONFIG", home.join("buildx"));
            programs::run_command(command)
        };
        run(&["create", "--name", "castor", "--driver", "remote", daemon.address()])?;
        run(&["inspect", "--bootstrap", "castor"])?;
        let project = self.path("stages");
        let secret = format!("id=word,src={}", self.path("secret").display());
        let out = self.path("out-buildx");
        let output = format!("type=local,dest={}", out.display());
        let project = project.to_string_lossy().into_owned();
        run(&[
            "build",
            "--builder",
            "castor",
            "--progress",
            "plain",
            "--provenance=false",
            "--secret",
            &secret,
            "--output",
            &output,
            &project,
        ])?;
        let made = Tree::read(&out)?;
        if made.len() != 2 {
            bail!("{} files came out, want 2", made.len());
        }
        daemon.stop()?;
        Ok("inspect and build, files as by buildctl".to_owned())
    }

    /// Puts versions and outcomes between the markers of docs/compat.md.
    fn write_page(&self) -> Result<()> {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compat.md");
        let text = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
        let (head, rest) = text.split_once(BEGIN).context("no beginning of the section in docs/compat.md")?;
        let (_, tail) = rest.split_once(END).context("no end of the section in docs/compat.md")?;
        let mut section =
            String::from("\nThe real client on castor and on the real daemon, plain progress compared; with\n\n");
        let mut programs = vec![
            (programs::ours("buildkitd")?, "--version"),
            (self.buildctl.clone(), "--version"),
            (self.buildkitd.clone(), "--version"),
        ];
        programs.extend(self.buildx.clone().map(|program| (program, "version")));
        for (program, argument) in programs {
            section.push_str(&format!("- {}\n", programs::run(&program, [argument])?.trim()));
        }
        section.push_str("\n| | outcome |\n|---|---|\n");
        for (what, outcome) in &self.rows {
            section.push_str(&format!("| {what} | {outcome} |\n"));
        }
        section.push('\n');
        fs::write(&page, format!("{head}{BEGIN}\n{section}{END}{tail}"))
            .with_context(|| format!("write {}", page.display()))
    }
}

/// The comparison would see it: castor's lines with one of them changed, missing, or one too many are not the real ones.
fn planted(real: &Transcript, castor: &Transcript) -> Result<()> {
    for (what, mutant) in castor.mutants() {
        if real.differences(&mutant).is_empty() {
            bail!("the comparison does not see a planted mismatch: {what}");
        }
    }
    Ok(())
}

/// A server that ends with its value.
struct Server(std::process::Child);

impl Server {
    /// Starts it and waits until it says `ready`.
    fn start(command: &mut Command, ready: &str) -> Result<Self> {
        use std::io::{BufRead, BufReader};
        use std::process::Stdio;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let lines = child.stderr.take().context("no standard error")?;
        let server = Self(child);
        let mut lines = BufReader::new(lines).lines();
        let mut seen = String::new();
        loop {
            match lines.next() {
                Some(line) => {
                    let line = line?;
                    if line.contains(ready) {
                        break;
                    }
                    seen.push_str(&line);
                    seen.push('\n');
                }
                None => bail!("{command:?} ended:\n{seen}"),
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Unmounts what the real daemon left: it does not keep its mounts to itself.
fn unmount_below(directory: &Path) -> Result<()> {
    let needle = directory.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&needle)).collect();
    points.reverse();
    for point in points {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH).with_context(|| format!("unmount {point}"))?;
    }
    Ok(())
}
