//! The daemon is killed, at named places and at random moments: no wrong byte, no hang, nothing left, the cache still good.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use castor_integration::build::{Build, Running};
use castor_integration::daemon::{Daemon, Options};
use castor_integration::project::Project;
use castor_integration::scene::{STARGZ, Scene, busybox, comes_true, noise, traces_of};
use castor_integration::tree::Tree;
use castor_oci::Digest;
use castor_testkit::{File, Form, ImageBuilder, Registry};

/// The longest that a build may take to end, well or ill.
const PATIENCE: Duration = Duration::from_secs(600);

/// How many different builds run at once.
const BUILDS: usize = 8;

/// Random numbers that can be had again.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("CASTOR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::from(since.subsec_nanos()) ^ since.as_secs()
        });
        println!("CASTOR_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// Lets time pass: the moment is what is tested, there is nothing to wait for.
fn pass(time: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv_timeout(time);
}

/// A registry with a base image, and eight builds on it.
struct Lab {
    /// What an eager daemon makes of each build.
    expected: Vec<Digest>,
    projects: Vec<Project>,
    registry: Registry,
    scene: Scene,
}

fn base_files() -> Vec<File> {
    let mut files = vec![File::dir("tree")];
    for n in 0..120 {
        if n % 10 == 0 {
            files.push(File::dir(&format!("tree/{}", n / 10)));
        }
        files.push(File::new(&format!("tree/{}/{n}", n / 10), noise(n + 1, 3000)).owner(n, n));
    }
    files.push(File::new("tree/big", noise(1000, 2 << 20)));
    files.push(File::hardlink("tree/link", "tree/big"));
    files
}

/// What each build does between `FROM` and the end; the result is /out.
const STEPS: [&str; BUILDS] = [
    "RUN mkdir /out && cd /tree && find . -type f | sort | xargs sha256sum > /out/sums",
    "RUN cp -a /tree /out && rm -r /out/3 && chmod 600 /out/4/41 && ln /out/5/50 /out/5/hard && echo x >> /out/big",
    "COPY data /data\nRUN mkdir /out && cat /data /tree/0/1 > /out/joined",
    "RUN mkdir /out && for n in $(seq 1 300); do echo $n > /out/$n; done",
    "RUN rm -r /tree/7 /tree/link && mkdir /tree/7 && echo new > /tree/7/71 && ln -s 7/71 /tree/soft && mv /tree /out",
    "RUN --mount=type=cache,target=/cache mkdir /out && cp /tree/9/9* /cache/ && cp /cache/9* /out/",
    "COPY --chown=7:8 data /out/a/\nRUN chmod 711 /out/a && cp /tree/1/11 /out/a/b\nRUN rm /out/a/data && mkfifo /out/a/pipe",
    "RUN mkdir /out && dd if=/tree/big of=/out/part bs=64k skip=7 count=9 && cp /tree/11/11* /out/",
];

impl Lab {
    fn new() -> Self {
        let scene = Scene::new().unwrap();
        let registry = scene.registry();
        let image = ImageBuilder::new()
            .env("PATH=/bin")
            .layer(&busybox().unwrap(), Form::Estargz)
            .layer(&base_files(), Form::Estargz)
            .build();
        let reference = image.put(&registry, "base:1");
        let projects: Vec<Project> = (0..BUILDS)
            .map(|n| {
                // What is built depends on the round, so that a round has something to do.
                let dockerfile = format!(
                    "FROM {reference} AS made\nARG ROUND\n{}\nFROM scratch\nCOPY --from=made /out /\n",
                    STEPS[n]
                );
                let project = scene.project(&format!("project-{n}"), &dockerfile).unwrap();
                project.file("data", noise(n as u64 + 2000, 10_000)).unwrap()
            })
            .collect();
        let mut lab = Self { expected: Vec::new(), projects, registry, scene };
        let eager = lab.options("eager").arg("--oci-worker-snapshotter=overlayfs").start().unwrap();
        lab.expected = lab.all(&eager, "0");
        eager.stop().unwrap();
        lab
    }

    fn options(&self, name: &str) -> Options {
        self.scene.daemon(name, [self.registry.host().as_str()])
    }

    fn out(&self, n: usize) -> std::path::PathBuf {
        self.scene.path(&format!("out-{n}"))
    }

    fn build(&self, daemon: &Daemon, n: usize, round: &str) -> Build {
        Build::new(daemon, &self.projects[n]).opt("build-arg:ROUND", round).local_output(&self.out(n))
    }

    /// All builds at once; the digests of what came out.
    fn all(&self, daemon: &Daemon, round: &str) -> Vec<Digest> {
        self.finish(daemon, round).into_iter().map(|(digest, _)| digest).collect()
    }

    fn finish(&self, daemon: &Daemon, round: &str) -> Vec<(Digest, String)> {
        for n in 0..BUILDS {
            let _ = std::fs::remove_dir_all(self.out(n));
        }
        let running: Vec<Running> = (0..BUILDS).map(|n| self.build(daemon, n, round).start().unwrap()).collect();
        running
            .into_iter()
            .enumerate()
            .map(|(n, build)| {
                let built = build.wait(PATIENCE).unwrap().success().unwrap();
                (Tree::read(&self.out(n)).unwrap().digest(), built.stderr)
            })
            .collect()
    }

    /// Everything is as an eager daemon makes it, and is cached from then on.
    fn check(&self, daemon: &Daemon, round: &str) {
        assert_eq!(self.all(daemon, round), self.expected, "round {round}");
        for (n, (digest, progress)) in self.finish(daemon, round).into_iter().enumerate() {
            assert_eq!(digest, self.expected[n], "round {round}, build {n}, cached");
            let ran = progress.lines().filter(|line| line.contains("] RUN ")).count();
            let cached = progress.lines().filter(|line| line.ends_with(" CACHED")).count();
            assert!(cached >= ran, "round {round}: build {n} ran again:\n{progress}");
        }
    }
}

/// Fails if the killed daemon left a mount or a process: its containers die with it, or when the next one starts.
fn nothing_mounted(state: &Path) {
    let mut left = Vec::new();
    let gone = comes_true(|| {
        left = traces_of(state);
        left.is_empty()
    });
    assert!(gone, "left behind: {left:#?}");
}

/// A daemon that dies at `place` while eight builds, one of them a push, run on it; then one that does not.
fn crash_at(lab: &Lab, index: usize, place: &str) {
    println!("--- {place}");
    let name = format!("d{index}");
    let state = lab.scene.path(&name);
    let options = lab.options(&name).arg(STARGZ);
    let host = lab.registry.host();
    let daemon = options.clone().env("CASTOR_CRASH_AT", place).start().unwrap();
    let mut running: Vec<Running> = (0..BUILDS).map(|n| lab.build(&daemon, n, "1").start().unwrap()).collect();
    let push = format!(
        "type=image,name={host}/pushed:{index},push=true,compression=estargz,force-compression=true,oci-mediatypes=true"
    );
    let pushing = Build::new(&daemon, &lab.projects[1]).opt("build-arg:ROUND", "1").opt("target", "made").output(push);
    running.push(pushing.start().unwrap());
    daemon.crash(PATIENCE).unwrap();
    for build in running {
        // Well or ill: some were done before. None hangs.
        build.wait(PATIENCE).unwrap();
    }
    let daemon = options.start().unwrap();
    lab.check(&daemon, "1");
    let out = lab.scene.path("pushed-out");
    let _ = std::fs::remove_dir_all(&out);
    pushing_again(lab, &daemon, index);
    daemon.stop().unwrap();
    nothing_mounted(&state);
    std::fs::remove_dir_all(&state).unwrap();
}

/// What is pushed after the crash is whole: an eager daemon would refuse a blob of another digest.
fn pushing_again(lab: &Lab, daemon: &Daemon, index: usize) {
    let host = lab.registry.host();
    let name = format!("{host}/pushed:again-{index}");
    let output =
        format!("type=image,name={name},push=true,compression=estargz,force-compression=true,oci-mediatypes=true");
    let build = Build::new(daemon, &lab.projects[1]).opt("build-arg:ROUND", "1").opt("target", "made").output(output);
    build.start().unwrap().wait(PATIENCE).unwrap().success().unwrap();
    let (_, manifest) = lab.registry.get_manifest("pushed", &format!("again-{index}")).unwrap();
    let manifest: castor_oci::Manifest = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest.layers.iter().chain([&manifest.config]) {
        let blob = lab.registry.get_blob("pushed", &layer.digest).unwrap();
        assert_eq!(Digest::of(&blob), layer.digest);
        assert_eq!(u64::try_from(blob.len()).unwrap(), layer.size);
    }
}

#[test]
fn privileged_killed_while_layers_are_fetched() {
    let lab = Lab::new();
    for (index, place) in [
        "TOC fetch",
        "layer commit",
        "layer commit:2",
        "chunk write",
        "chunk write:9",
        "presence checkpoint",
        "blob commit",
    ]
    .into_iter()
    .enumerate()
    {
        crash_at(&lab, index, place);
    }
}

#[test]
fn privileged_killed_while_results_are_kept() {
    let lab = Lab::new();
    for (index, place) in [
        "snapshot commit",
        "snapshot commit:4",
        "snapshot commit done:2",
        "database batch:2",
        "database batch:9",
        "database batch done:6",
        "export",
        "export manifest",
    ]
    .into_iter()
    .enumerate()
    {
        crash_at(&lab, index, place);
    }
}

#[test]
fn privileged_killed_at_random_moments_under_load() {
    const KILLS: u64 = 20;
    let lab = Lab::new();
    let mut dice = Dice::new();
    let options = lab.options("daemon").arg(STARGZ);
    let state = lab.scene.path("daemon");
    for kill in 0..KILLS {
        let daemon = options.start().unwrap();
        if kill % 4 == 3 {
            // Layers and results are fetched and made anew.
            daemon.buildctl(["prune", "--all"]).unwrap().success().unwrap();
        }
        // Rounds come again, so that results of killed daemons are used.
        let round = format!("r{}", kill / 2);
        let running: Vec<Running> = (0..BUILDS).map(|n| lab.build(&daemon, n, &round).start().unwrap()).collect();
        let moment = Duration::from_millis(dice.below(2500));
        let cancelled = dice.below(BUILDS as u64 * 2);
        pass(moment / 2);
        if let Some(build) = running.get(usize::try_from(cancelled).unwrap()) {
            build.cancel().unwrap();
        }
        pass(moment / 2);
        println!("kill {kill} after {moment:?}, build {cancelled} cancelled");
        daemon.kill().unwrap();
        for build in running {
            build.wait(PATIENCE).unwrap();
        }
        if kill % 5 == 4 {
            let daemon = options.start().unwrap();
            lab.check(&daemon, &round);
            daemon.kill().unwrap();
        }
    }
    let daemon = options.start().unwrap();
    lab.check(&daemon, "last");
    daemon.stop().unwrap();
    nothing_mounted(&state);
}
