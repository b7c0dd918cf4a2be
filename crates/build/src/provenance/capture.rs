//! What is known of one result: its sources, what it was allowed, and who asked for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use castor_llb::op::{MountKind, NetMode, SourceOp};
use castor_llb::{Graph, Op, Vertex};
use castor_oci::{Digest, Platform, Reference};
use castor_ops::LazyRef;

use super::made::MadeBefore;
use super::predicate::{ConfigSource, DigestSet, NamedAccess, Parameters, RequestProvenance};
use super::trail::{Asked, ImageSource, Trail};

/// What the sources of vertices turned out to be: an image's digest, a commit, a file's digest; by vertex.
pub(crate) type Pins<'a> = dyn Fn(&Digest) -> Option<String> + Send + Sync + 'a;

/// What is known of one result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture {
    /// The frontend that made it, what it was asked and by whom.
    pub(crate) request: Parameters,
    pub(crate) images: Vec<ImageSource>,
    /// Blobs of images: reference and digest, and whether they came from a layout of the client.
    pub(crate) blobs: Vec<ImageSource>,
    /// URL with its fragment, and the commit.
    pub(crate) git: BTreeMap<String, String>,
    /// URL and the file's digest.
    pub(crate) http: BTreeMap<String, String>,
    /// Names of the client's directories.
    pub(crate) local: BTreeSet<String>,
    /// Some step could reach a network.
    pub(crate) network: bool,
    /// Something went in that is not named here.
    pub(crate) incomplete: bool,
}

impl Capture {
    /// What is known of `reference`, the result for the platform `id` of `platforms`. `root` is the client's trail,
    /// `results` are the ids of all results.
    pub(crate) fn of(
        root: &Arc<Trail>,
        reference: &LazyRef,
        (id, platforms): (&str, &[(String, Platform)]),
        results: &BTreeSet<String>,
        (pins, made): (&Pins<'_>, &MadeBefore),
    ) -> Self {
        let maker = root.maker(reference.id()).unwrap_or_else(|| root.clone());
        let mut capture = Self::of_ref(&maker, reference, pins, made);
        // What the frontend looked at on its way counts, though it is no part of the result: the Dockerfile, say. Other
        // results of it do not.
        for other in maker.computed_refs().iter().filter(|other| !results.contains(other.id())) {
            capture.merge(Self::of_graph(other.graph(), pins));
        }
        for image in of_platform(maker.images(), id, platforms) {
            capture.add_image(image);
        }
        capture.drop_pinned_twins();
        capture.images.sort_by(|a, b| a.reference.cmp(&b.reference));
        capture.blobs.sort_by(|a, b| a.reference.cmp(&b.reference));
        capture
    }

    /// Who asked for `reference` in what words, for those whose input it becomes.
    pub(crate) fn request_for(
        maker: &Trail,
        reference: &LazyRef,
        pins: &Pins<'_>,
        made: &MadeBefore,
    ) -> Option<RequestProvenance> {
        let asked = maker.asked()?;
        Some(Self::of_graph(reference.graph(), pins).request_of(asked, made))
    }

    fn of_ref(maker: &Trail, reference: &LazyRef, pins: &Pins<'_>, made: &MadeBefore) -> Self {
        let mut capture = Self::of_graph(reference.graph(), pins);
        if let Some(asked) = maker.asked() {
            capture.request.frontend.clone_from(&asked.frontend);
            capture.request.args = filtered(&asked.options);
            capture.request.inputs = made.inputs(&asked.inputs);
            let first = maker.asked_first();
            if first.says_something() {
                let own = capture.request_of(asked, made);
                let root = capture.request_of(first, made);
                // One that says nothing beyond what is filtered out is none.
                if root != own && root.request != Parameters::default() {
                    capture.request.root = Some(Box::new(root));
                }
            }
        }
        capture
    }

    /// A request without where its sources are, which is named apart.
    fn request_of(&self, asked: &Asked, made: &MadeBefore) -> RequestProvenance {
        let (config_source, args) = self.config_source(filtered(&asked.options));
        let inputs = made.inputs(&asked.inputs);
        let request = Parameters { frontend: asked.frontend.clone(), args, inputs, ..Parameters::default() };
        RequestProvenance { config_source, request }
    }

    /// Where the build's own definition comes from, and the arguments that are left when that is named.
    pub(crate) fn config_source(&self, mut args: BTreeMap<String, String>) -> (ConfigSource, BTreeMap<String, String>) {
        let given = |args: &BTreeMap<String, String>, key: &str| args.get(key).is_some_and(|value| !value.is_empty());
        let key = match args.get("contextkey") {
            Some(key) if !key.is_empty() => key.clone(),
            _ if given(&args, "input:context") => "input:context".to_owned(),
            _ => "context".to_owned(),
        };
        let mut source = ConfigSource::default();
        if given(&args, &key) {
            let context = args.remove(&key).unwrap_or_default();
            (source.uri, source.digest) = self.material(&context).unwrap_or((context, DigestSet::new()));
            source.uri = redacted(&source.uri);
        }
        if given(&args, "filename") {
            source.path = args.remove("filename").unwrap_or_default();
        }
        (source, args)
    }

    /// The source that `uri` names.
    fn material(&self, uri: &str) -> Option<(String, DigestSet)> {
        let (without_subdir, whole) = match uri.split_once('#') {
            Some((remote, fragment)) => {
                let reference = fragment.split_once(':').map_or(fragment, |(reference, _)| reference);
                let hash = if reference.is_empty() { String::new() } else { format!("#{reference}") };
                (format!("{remote}{hash}"), uri.to_owned())
            }
            None => (uri.to_owned(), uri.to_owned()),
        };
        if let Some(commit) = self.git.get(&without_subdir) {
            return Some((whole, commit_digest(commit)));
        }
        self.http.get(uri).map(|digest| (uri.to_owned(), digest_set(digest)))
    }

    fn of_graph(graph: &Graph, pins: &Pins<'_>) -> Self {
        let mut capture = Self::default();
        for vertex in &graph.vertices {
            match &vertex.op {
                Op::Source(op) => capture.add_source(op, vertex, pins(&vertex.digest)),
                Op::Exec(exec) => {
                    for mount in &exec.mounts {
                        match &mount.kind {
                            MountKind::Secret(secret) => add(&mut capture.request.secrets, &secret.id, secret.optional),
                            MountKind::Ssh(agent) => {
                                let id = if agent.id.is_empty() { "default" } else { &agent.id };
                                add(&mut capture.request.ssh, id, agent.optional);
                            }
                            MountKind::Bind | MountKind::Cache(_) | MountKind::Tmpfs { .. } => {}
                        }
                    }
                    for secret in &exec.secret_env {
                        add(&mut capture.request.secrets, &secret.id, secret.optional);
                    }
                    capture.network |= exec.network != NetMode::None;
                }
                Op::Build(_) => capture.incomplete = true,
                Op::File(_) | Op::Merge(_) | Op::Diff(_) | Op::Passthrough(_) => {}
            }
        }
        capture
    }

    fn add_source(&mut self, op: &SourceOp, vertex: &Vertex, pin: Option<String>) {
        let (scheme, rest) = op.identifier.split_once("://").unwrap_or((op.identifier.as_str(), ""));
        let attribute = |name: &str| op.attrs.get(name).filter(|value| !value.is_empty()).cloned();
        let image = |local: bool| {
            let named = rest.parse::<Reference>().ok();
            let digest = pin.as_deref().and_then(|pin| pin.parse().ok());
            ImageSource {
                reference: named.as_ref().map_or_else(|| rest.to_owned(), ToString::to_string),
                platform: vertex.platform.clone(),
                digest: digest.or_else(|| named.and_then(|named| named.digest())),
                local,
            }
        };
        match scheme {
            "docker-image" => self.add_image(image(false)),
            "oci-layout" => self.add_image(image(true)),
            "docker-image+blob" => self.add_blob(image(false)),
            "oci-layout+blob" => self.add_blob(image(true)),
            "local" => drop(self.local.insert(rest.to_owned())),
            "git" => {
                let (place, fragment) = rest.split_once('#').unwrap_or((rest, ""));
                let remote = attribute("git.fullurl").unwrap_or_else(|| format!("https://{place}"));
                // What is below which directory of it is no other source.
                let reference = fragment.split(':').next().unwrap_or_default();
                let hash = if reference.is_empty() { String::new() } else { format!("#{reference}") };
                let commit = pin.or_else(|| attribute("git.checksum"));
                self.pinned(|capture| &mut capture.git, redacted(&format!("{remote}{hash}")), commit);
            }
            "http" | "https" => {
                let digest = pin.or_else(|| attribute("http.checksum"));
                self.pinned(|capture| &mut capture.http, redacted(&op.identifier), digest);
            }
            _ => self.incomplete = true,
        }
    }

    /// Enters a source by URL. One that nobody can say the content of is not named at all.
    fn pinned(
        &mut self,
        map: impl FnOnce(&mut Self) -> &mut BTreeMap<String, String>,
        url: String,
        pin: Option<String>,
    ) {
        match pin {
            Some(pin) => drop(map(self).entry(url).or_insert(pin)),
            None => self.incomplete = true,
        }
    }

    fn add_image(&mut self, image: ImageSource) {
        let same = |known: &ImageSource| {
            let place = |platform: &Platform| {
                let Platform { os, architecture, variant, os_version, .. } = platform.clone();
                (os, architecture, variant, os_version)
            };
            known.reference == image.reference
                && known.local == image.local
                && known.platform.as_ref().map(place) == image.platform.as_ref().map(place)
        };
        if !self.images.iter().any(same) {
            self.images.push(image);
        }
    }

    fn add_blob(&mut self, blob: ImageSource) {
        let same = |known: &ImageSource| known.reference == blob.reference && known.local == blob.local;
        if !self.blobs.iter().any(same) {
            self.blobs.push(ImageSource { platform: None, ..blob });
        }
    }

    fn merge(&mut self, other: Self) {
        other.images.into_iter().for_each(|image| self.add_image(image));
        other.blobs.into_iter().for_each(|blob| self.add_blob(blob));
        for (url, commit) in other.git {
            self.git.entry(url).or_insert(commit);
        }
        for (url, digest) in other.http {
            self.http.entry(url).or_insert(digest);
        }
        self.local.extend(other.local);
        for access in other.request.secrets {
            add(&mut self.request.secrets, &access.id, access.optional);
        }
        for access in other.request.ssh {
            add(&mut self.request.ssh, &access.id, access.optional);
        }
        self.network |= other.network;
        self.incomplete |= other.incomplete;
    }

    /// The frontend names an image by its tag, and the definition it makes by tag and digest: the first says it all.
    fn drop_pinned_twins(&mut self) {
        let named = |text: &str| {
            let reference: Reference = text.parse().ok()?;
            let tag = reference.tag().unwrap_or("latest").to_owned();
            Some((format!("{}:{tag}", reference.repository()), reference.digest().is_some()))
        };
        let tagged: BTreeSet<String> = self
            .images
            .iter()
            .filter_map(|image| named(&image.reference))
            .filter_map(|(name, pinned)| (!pinned).then_some(name))
            .collect();
        self.images
            .retain(|image| named(&image.reference).is_none_or(|(name, pinned)| !(pinned && tagged.contains(&name))));
    }
}

/// Of images that were looked up for every platform, those for `id`.
fn of_platform(images: Vec<ImageSource>, id: &str, platforms: &[(String, Platform)]) -> Vec<ImageSource> {
    let Some((_, current)) = platforms.iter().find(|(name, _)| name == id) else { return images };
    let fits = |image: &ImageSource, platform: &Platform| {
        image
            .platform
            .as_ref()
            .is_some_and(|own| (&own.os, &own.architecture) == (&platform.os, &platform.architecture))
    };
    let everywhere = |reference: &str| {
        let named: Vec<&ImageSource> = images.iter().filter(|image| image.reference == reference).collect();
        platforms.iter().all(|(_, platform)| named.iter().any(|image| fits(image, platform)))
    };
    let wanted =
        |image: &ImageSource| image.platform.is_none() || !everywhere(&image.reference) || fits(image, current);
    images.iter().filter(|image| wanted(image)).cloned().collect()
}

/// Enters an access; one that is needed anywhere is not optional. Kept in order of the names.
fn add(list: &mut Vec<NamedAccess>, id: &str, optional: bool) {
    match list.binary_search_by(|known| known.id.as_str().cmp(id)) {
        Ok(at) => list[at].optional &= optional,
        Err(at) => list.insert(at, NamedAccess { id: id.to_owned(), optional }),
    }
}

/// The options that say something about the result rather than about the machine.
fn filtered(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const OF_THE_HOST: [&str; 4] = ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];
    let context = options.get("contextkey").filter(|key| !key.is_empty()).map_or("context", String::as_str);
    options
        .iter()
        .filter(|(key, _)| !OF_THE_HOST.contains(&key.as_str()) && !key.starts_with("attest:"))
        .map(|(key, value)| match key.as_str() == context || key.starts_with("context:") {
            true => (key.clone(), redacted(value)),
            false => (key.clone(), value.clone()),
        })
        .collect()
}

/// A URL without the user and the password in it; what is no such URL stays as it is.
pub(crate) fn redacted(text: &str) -> String {
    const MASK: &str = "xxxxx";
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((user, host)) = rest[..end].rsplit_once('@') else { return text.to_owned() };
    let masked = match user.split_once(':') {
        Some(("", _)) => format!(":{MASK}"),
        Some(_) => format!("{MASK}:{MASK}"),
        None if user.is_empty() => String::new(),
        None => MASK.to_owned(),
    };
    format!("{scheme}://{masked}@{host}{}", &rest[end..])
}

/// `sha256:abc` as a set.
pub(super) fn digest_set(digest: &str) -> DigestSet {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
    [(algorithm.to_owned(), hex.to_owned())].into()
}

/// A commit as a set.
pub(super) fn commit_digest(commit: &str) -> DigestSet {
    let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
    [(algorithm.to_owned(), commit.to_owned())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, platform: Option<&str>) -> ImageSource {
        let platform = platform.map(|text| text.parse().unwrap());
        ImageSource { reference: reference.into(), platform, digest: None, local: false }
    }

    #[test]
    fn credentials_do_not_leave() {
        assert_eq!(redacted("https://me:secret@host/x.git#a@b"), "https://xxxxx:xxxxx@host/x.git#a@b");
        assert_eq!(redacted("https://token@host/x"), "https://xxxxx@host/x");
        assert_eq!(redacted("https://:secret@host"), "https://:xxxxx@host");
        assert_eq!(redacted("https://host/x@y"), "https://host/x@y");
        assert_eq!(redacted("."), ".");
    }

    #[test]
    fn an_image_is_named_once_and_by_its_tag() {
        let digest = Digest::of("x");
        let mut capture = Capture::default();
        capture.add_image(image(&format!("docker.io/library/a:1@{digest}"), Some("linux/amd64")));
        capture.add_image(image("docker.io/library/a:1", Some("linux/amd64")));
        capture.add_image(image("docker.io/library/a:1", Some("linux/amd64")));
        capture.add_image(image(&format!("docker.io/library/b@{digest}"), None));
        capture.drop_pinned_twins();
        let left: Vec<_> = capture.images.iter().map(|image| image.reference.as_str()).collect();
        assert_eq!(left, ["docker.io/library/a:1", &format!("docker.io/library/b@{digest}")]);
    }

    #[test]
    fn images_of_other_platforms_are_those_of_other_results() {
        let platforms: Vec<(String, Platform)> =
            ["linux/amd64", "linux/arm64"].map(|text| (text.to_owned(), text.parse().unwrap())).into();
        let images =
            vec![image("a", Some("linux/amd64")), image("a", Some("linux/arm64")), image("tool", Some("linux/amd64"))];
        let arm = of_platform(images.clone(), "linux/arm64", &platforms);
        assert_eq!(arm, [images[1].clone(), images[2].clone()]);
    }

    #[test]
    fn a_context_of_git_is_the_config_source() {
        let mut capture = Capture::default();
        capture.git.insert("https://host/x.git#main".into(), "a".repeat(40));
        let args = [("context", "https://host/x.git#main:dir"), ("filename", "Dockerfile"), ("target", "t")];
        let args = args.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (source, left) = capture.config_source(args);
        assert_eq!(source.uri, "https://host/x.git#main:dir");
        assert_eq!((source.digest["sha1"].len(), source.path.as_str()), (40, "Dockerfile"));
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["target"]);
    }

    #[test]
    fn arguments_of_the_machine_are_left_out() {
        let options = ["platform", "attest:provenance", "build-arg:A", "cache-imports"]
            .map(|key| (key.to_owned(), String::new()))
            .into();
        assert_eq!(filtered(&options).into_keys().collect::<Vec<_>>(), ["build-arg:A"]);
    }
}
