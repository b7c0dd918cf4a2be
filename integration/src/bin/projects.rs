//! `make projects`: Dockerfiles in the manner of well-known projects are built lazily on base images made of Debian's
//! packages, and what comes out is unpacked and run by other programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use castor_integration::build::Build;
use castor_integration::bundle::{Bundle, Layout};
use castor_integration::daemon::{Options, Outcome};
use castor_integration::programs::{self, run_command};
use castor_integration::scene::{self, STARGZ};
use castor_integration::settings::{self, Settings};
use castor_integration::{debian, hello};
use castor_testkit::{RealRegistry, Relay, RelayOptions};

/// Where the sample projects are.
const PROJECTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/projects");

/// Stages of `bases.Dockerfile`, each after those it is made of, and the images that they are known as.
const BASES: &[(&str, &str)] = &[
    ("debian", "debian:bookworm-slim"),
    ("gcc", "gcc:12-bookworm"),
    ("rust", "rust:1.96-slim"),
    ("golang", "golang:1.19-bookworm"),
    ("jdk", "eclipse-temurin:17-jdk"),
    ("node", "node:18-bookworm-slim"),
    ("python", "python:3.11-slim"),
    ("onbuild", "python:3.11-onbuild"),
    ("nginx", "nginx:1.22"),
];

/// A project that is built and run.
struct Sample {
    name: &'static str,
    /// What its Dockerfile is written in the manner of.
    manner: &'static str,
    directory: &'static str,
    /// Options of the frontend.
    options: &'static [(&'static str, &'static str)],
    run: Run,
}

/// What its image does.
enum Run {
    /// Prints this and ends, when it is given these arguments.
    Prints(&'static [&'static str], &'static str),
    /// Becomes healthy by its own check; then each command in it prints this; it ends well when asked to.
    Serves(&'static [(&'static [&'static str], &'static str)]),
}

const SAMPLES: &[Sample] = &[
    Sample {
        name: "rust",
        manner: "a command-line tool such as ripgrep: mounted sources, kept crates and target directory",
        directory: "rust",
        options: &[],
        run: Run::Prints(&["/etc/debian_version"], "1 lines, 1 words\n"),
    },
    Sample {
        name: "go",
        manner: "a small server such as Traefik's whoami: compiled for a platform, alone on scratch",
        directory: "go",
        options: &[("build-arg:VERSION", "v1.2.3")],
        run: Run::Serves(&[(&["/whoami", "-check"], "whoami v1.2.3 as 65532, aad03681-8b63-5304-89e0-8ca8f49461b5\n")]),
    },
    Sample {
        name: "node",
        manner: "a web service such as Ghost: dependencies of production and of tests apart",
        directory: "node",
        options: &[("build-arg:COMMIT", "4f2a")],
        run: Run::Serves(&[
            (&["node", "lib/health.js", "/hello/castor"], "hello castor\n"),
            (&["node", "lib/health.js"], "healthy, uid 1000, 4f2a\n"),
        ]),
    },
    Sample {
        name: "python",
        manner: "a Flask service under gunicorn: wheels made in one stage, installed in another",
        directory: "python",
        options: &[],
        run: Run::Serves(&[(
            &["python", "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/').read().decode())"],
            "flask app as app\n",
        )]),
    },
    Sample {
        name: "java",
        manner: "a program such as Spring's Petclinic: a linked run time, layers by how often they change",
        directory: "java",
        options: &[],
        run: Run::Prints(&[], "{\"java\":17,\"name\":\"Zoë\"}\n"),
    },
    Sample {
        name: "c",
        manner: "a data store such as Redis: an entrypoint that prepares its volume and drops its privileges",
        directory: "c",
        options: &[],
        run: Run::Serves(&[
            (&["kv-client", "SET", "a", "value"], "+OK\n"),
            (&["kv-client", "GET"], "$a value\n"),
            (&["kv-client", "WHO"], "+999:999\n"),
        ]),
    },
    Sample {
        name: "cpp",
        manner: "a CMake project such as llama.cpp: a compiler's cache, several targets of one build",
        directory: "cpp",
        options: &[("target", "light")],
        run: Run::Prints(&[], "one     1\ntwo     2\n"),
    },
    Sample {
        name: "web",
        manner: "a web application of several stages: bundled by node, served by nginx without root",
        directory: "web",
        options: &[("build-arg:TITLE", "castor's page"), ("build-arg:PUBLIC_URL", "/app/")],
        run: Run::Serves(&[
            (&["curl", "-sf", "http://127.0.0.1:8080/health"], "healthy\n"),
            (&["sh", "-c", "curl -sf http://127.0.0.1:8080/main.js | grep -o \"castor's page\""], "castor's page\n"),
            (&["sh", "-c", "curl -sf http://127.0.0.1:8080/ | grep -c /app/main.js"], "1\n"),
        ]),
    },
    Sample {
        name: "packages",
        manner: "a PHP application such as WordPress: much from the package manager, compiled with and purged of a compiler",
        directory: "packages",
        options: &[],
        run: Run::Prints(&[], "GRÖSSER, 64M, www-data, locale is there\n"),
    },
    Sample {
        name: "mailer of a monorepo",
        manner: "a repository of many services: a base with triggers, parts of the tree by --parents",
        directory: "monorepo",
        options: &[("build-arg:SERVICE", "mailer")],
        run: Run::Prints(&[], "mailer is here, with mailer as 65534\n"),
    },
    Sample {
        name: "api of a monorepo",
        manner: "the same Dockerfile for another service",
        directory: "monorepo",
        options: &[("build-arg:SERVICE", "api")],
        run: Run::Prints(&[], "api is here, with api as 65534\n"),
    },
];

/// Where secrets are mounted: no trace of any is in an image.
const SECRET_PLACES: &[&str] = &[
    "run/secrets",
    "etc/apt/sources.list.d/machine.list",
    "etc/apt/apt.conf.d/99machine",
    "root/.npmrc",
    "etc/pip.conf",
    "usr/local/cargo/config.toml",
];

/// All that builds need.
struct Stage {
    runtime: tokio::runtime::Runtime,
    registry: RealRegistry,
    settings: Settings,
    client: Option<PathBuf>,
    /// Kept: the root file system, and the state of the daemon that makes base images.
    home: PathBuf,
    place: tempfile::TempDir,
}

fn main() -> Result<()> {
    let only = option("only");
    let stage = Stage::new()?;
    stage.make_bases()?;
    let mut failed = Vec::new();
    for sample in SAMPLES.iter().filter(|sample| only.as_deref().is_none_or(|only| sample.name.contains(only))) {
        println!("==> {}: {}", sample.name, sample.manner);
        match stage.build_and_run(sample) {
            Ok(seen) => println!("    {seen}"),
            Err(error) => {
                println!("    failed: {error:#}");
                failed.push(sample.name);
            }
        }
    }
    ensure!(failed.is_empty(), "these do not build or run: {}", failed.join(", "));
    Ok(())
}

/// The value of `--name` on the command line, if there is one.
fn option(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let place = arguments.iter().position(|argument| argument == &format!("--{name}"))?;
    arguments.get(place + 1).filter(|value| !value.is_empty()).cloned()
}

impl Stage {
    fn new() -> Result<Self> {
        if !RealRegistry::installed() {
            bail!("{} is missing: apt-get install docker-registry", RealRegistry::BINARY);
        }
        let client = option("buildctl").map(PathBuf::from);
        if let Some(path) = client.as_ref().filter(|path| !path.is_file()) {
            bail!("--buildctl: {} is no file", path.display());
        }
        let programs = programs::directory()?;
        let home = programs.parent().context("the programs' directory has no parent")?.join("projects");
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        let place = scene::place("projects-")?;
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?,
            registry: RealRegistry::start(),
            settings: Settings::gather(&place.path().join("settings"))?,
            client,
            home,
            place,
        })
    }

    /// A daemon to which `mirror` is where Docker Hub's images are, and whose steps reach the package registries.
    fn options(&self, directory: &str, mirror: &str) -> Options {
        let options = Options::new(self.place.path().join(directory)).arg("--oci-worker-net=host");
        scene::plain_hosts(options, [mirror]).config(&format!("[registry.\"docker.io\"]\nmirrors = [\"{mirror}\"]"))
    }

    /// `build` with the machine's settings as secrets, and the client that was asked for.
    fn dressed(&self, build: Build) -> Build {
        let build = match &self.client {
            Some(client) => build.client(client),
            None => build,
        };
        self.settings.secrets().fold(build, |build, secret| build.arg("--secret").arg(secret))
    }

    /// Makes the base images and pushes them as eStargz. What was made once is found in the daemon's cache.
    fn make_bases(&self) -> Result<()> {
        let host = self.registry.host().to_owned();
        let context = self.debian()?;
        let maker = Options { directory: self.home.join("maker"), ..self.options("maker", &host) }.start()?;
        for &(target, name) in BASES {
            let begun = Instant::now();
            let reference = format!("{host}/library/{name}");
            let output = format!(
                "type=image,name={reference},push=true,compression=estargz,force-compression=true,oci-mediatypes=true"
            );
            let build = Build::at(&maker, &context, Path::new(PROJECTS))
                .opt("filename", "bases.Dockerfile")
                .opt("target", target)
                .output(output);
            self.dressed(build).run()?.success().with_context(|| format!("make the base image {name}"))?;
            let (repository, tag) = name.split_once(':').context("a name without a tag")?;
            let image = hello::facts(&host, &format!("library/{repository}"), tag)?;
            if image.tocs.iter().any(Option::is_none) {
                bail!("{name} has a layer without a table of contents: {image:?}");
            }
            println!(
                "==> {name}: {} in {} layers, {}",
                megabytes(image.compressed),
                image.layers,
                seconds(begun.elapsed())
            );
        }
        maker.stop()
    }

    /// The directory with `rootfs.tar`, a Debian; made once.
    fn debian(&self) -> Result<PathBuf> {
        let context = self.home.join("debian");
        let archive = context.join("rootfs.tar");
        if archive.exists() {
            return Ok(context);
        }
        let begun = Instant::now();
        let archives = settings::archives()?;
        let root = tempfile::Builder::new().prefix("root-").tempdir_in(&self.home)?;
        debian::bootstrap(archives.first().context("no archive")?, root.path())?;
        fs::create_dir_all(&context)?;
        let half = self.home.join("rootfs.tar");
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--numeric-owner", "--xattrs", "--exclude=./dev/*", "--exclude=./proc/*"]);
        run_command(tar).context("pack the Debian")?;
        fs::rename(&half, &archive)?;
        println!("==> a Debian by debootstrap: {}", seconds(begun.elapsed()));
        Ok(context)
    }

    /// Builds a sample twice on a daemon that has nothing, runs its image, and says what was seen.
    fn build_and_run(&self, sample: &Sample) -> Result<String> {
        let directory = Path::new(PROJECTS).join(sample.directory);
        let work = tempfile::Builder::new().prefix("sample-").tempdir_in(self.place.path())?;
        let relay = self.runtime.block_on(Relay::start(self.registry.addr(), RelayOptions::default()));
        let options = Options { directory: work.path().join("daemon"), ..self.options("", &relay.host()) };
        let daemon = options.arg(STARGZ).start()?;
        let layout = work.path().join("layout");
        let output =
            format!("type=oci,name=docker.io/samples/{}:1,tar=false,dest={}", sample.directory, layout.display());
        let build = Build::at(&daemon, &directory, &directory).opt("lazy", "require").output(output);
        let build = sample.options.iter().fold(build, |build, (key, value)| build.opt(key, value));
        let build = self.dressed(build);
        let begun = Instant::now();
        let built = build.run()?.success()?;
        let (took, fetched) = (begun.elapsed(), relay.bytes_down());
        let layers = lazy_layers(&built)?;
        let again = build.run()?.success().context("build it again")?;
        let not_cached: Vec<&str> = steps(&again.stderr).filter(|(_, cached)| !cached).map(|(name, _)| name).collect();
        ensure!(not_cached.is_empty(), "built again, these were not cached: {not_cached:?}\n{}", again.stderr);
        daemon.stop()?;

        let image = Layout::open(&layout)?;
        let bundle = image.unpack("1", &work.path().join("bundle"))?;
        for place in SECRET_PLACES {
            ensure!(!bundle.root().join(place).exists(), "/{place} of a secret is in the image");
        }
        let said = run(&image, &bundle, &sample.run)?;
        let fetched = megabytes(fetched);
        Ok(format!("built in {} on {layers} lazy layers, of which {fetched} were fetched; {said}", seconds(took)))
    }
}

/// Runs an image as its sample says, and tells what it said.
fn run(image: &Layout, bundle: &Bundle, how: &Run) -> Result<String> {
    match how {
        Run::Prints(arguments, want) => {
            let outcome = bundle.start(image, arguments)?.wait()?.success().context("run the image")?;
            ensure!(outcome.stdout == *want, "it printed {outcome:?}, want {want:?}");
            Ok(format!("says {:?}", want.trim()))
        }
        Run::Serves(asked) => {
            let mut container = bundle.start(image, &[])?;
            let check = image.health_check().context("the image has no health check")?;
            container.becomes(&check)?;
            let mut said = Vec::new();
            for (command, want) in *asked {
                let outcome = container.exec(command)?.success().with_context(|| format!("run {command:?}"))?;
                ensure!(outcome.stdout == *want, "{command:?} printed {outcome:?}, want {want:?}");
                said.push(want.trim());
            }
            container.signal(image.stop_signal())?;
            container.wait()?.success().with_context(|| format!("it was sent {}", image.stop_signal()))?;
            Ok(format!("serves {said:?}"))
        }
    }
}

/// Steps of a Dockerfile by plain progress, and whether each was cached.
fn steps(progress: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut known = BTreeSet::new();
    progress.lines().filter_map(move |line| {
        let (number, name) = line.strip_prefix('#')?.split_once(' ')?;
        let is_step = name.starts_with('[') && !name.starts_with("[internal]") && !name.starts_with("[auth]");
        // FROM ends as DONE with BuildKit too.
        if !is_step || name.contains("] FROM ") || !known.insert(number) {
            return None;
        }
        Some((name, progress.lines().any(|line| line == format!("#{number} CACHED"))))
    })
}

/// How many layers were mounted before they were here; an error if one had to be fetched first, or none was used.
fn lazy_layers(built: &Outcome) -> Result<usize> {
    let mut lazy = BTreeSet::new();
    for line in built.stderr.lines() {
        let Some((_, layer)) = line.split_once(" layer sha256:") else { continue };
        let (digest, how) = layer.split_once(' ').unwrap_or((layer, ""));
        ensure!(!how.starts_with("eager"), "a layer was not lazy: {line}");
        if how.starts_with("lazy") {
            lazy.insert(digest);
        }
    }
    ensure!(!lazy.is_empty(), "no layer was lazy:\n{}", built.stderr);
    Ok(lazy.len())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
