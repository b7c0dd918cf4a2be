//! The hello build: a Go program compiled on a big base image of which little is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::Build;
use crate::daemon::Daemon;
use crate::debian;
use crate::go;
use crate::programs;
use crate::project::Project;

/// What the compiled program prints.
pub const GREETING: &str = "hello";

/// The program that is compiled.
pub const PROGRAM: &str = "\
package main

import \"fmt\"

func main() { fmt.Println(\"hello\") }
";

/// The base image's root file system, made once for a target directory and kept there.
pub fn root_filesystem() -> Result<PathBuf> {
    let home = cache_directory()?;
    let root = home.join("root");
    let done = home.join("complete");
    // Another list of packages, or another tool chain, is another root.
    let wanted = [debian::BASE, &[go::PACKAGE]].concat().join("\n");
    if fs::read_to_string(&done).is_ok_and(|made| made == wanted) {
        return Ok(root);
    }
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    debian::unpack(debian::BASE, &home.join("packages"), &root)?;
    go::unpack(&home.join("tool-chain"), &root)?;
    fs::write(&done, wanted).with_context(|| format!("write {}", done.display()))?;
    Ok(root)
}

/// `target/base`, whatever profile this program was built with.
fn cache_directory() -> Result<PathBuf> {
    let programs = programs::directory()?;
    let target = programs.parent().context("the programs' directory has no parent")?;
    let path = target.join("base");
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// Variables of the base's environment.
pub const VARIABLES: &[(&str, &str)] = &[
    ("PATH", "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("GOTOOLCHAIN", "local"),
    ("GO111MODULE", "off"),
    ("HOME", "/root"),
];

/// Builds the base image of `root` on `daemon` and pushes it, as one eStargz layer, to `reference`.
pub fn push_base(daemon: &Daemon, root: &Path, workspace: &Path, reference: &str) -> Result<()> {
    push(daemon, root, workspace, reference, "COPY . /\n", "compression=estargz,force-compression=true")
}

/// The same tree in three eStargz layers: the system, what is shared, the tool chain.
pub fn push_base_in_three(daemon: &Daemon, root: &Path, workspace: &Path, reference: &str) -> Result<()> {
    let steps =
        "COPY --exclude=usr/local --exclude=usr/share . /\nCOPY usr/share/ /usr/share/\nCOPY usr/local/ /usr/local/\n";
    push(daemon, root, workspace, reference, steps, "compression=estargz,force-compression=true")
}

/// The same tree in one plain layer.
pub fn push_base_as_gzip(daemon: &Daemon, root: &Path, workspace: &Path, reference: &str) -> Result<()> {
    push(daemon, root, workspace, reference, "COPY . /\n", "compression=gzip,force-compression=true")
}

fn push(daemon: &Daemon, root: &Path, workspace: &Path, reference: &str, steps: &str, form: &str) -> Result<()> {
    let variables: Vec<String> = VARIABLES.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let text = format!("FROM scratch\n{steps}ENV {}\nWORKDIR /\nCMD [\"bash\"]\n", variables.join(" "));
    let dockerfile = Project::new(workspace.join("base-dockerfile"), &text)?;
    let output = format!("type=image,name={reference},push=true,oci-mediatypes=true,{form}");
    Build::at(daemon, root, dockerfile.path()).output(output).run()?.success().context("build the base image")?;
    Ok(())
}

/// The hello project on the base image `reference`.
pub fn project(directory: &Path, reference: &str) -> Result<Project> {
    Project::new(
        directory,
        &format!(
            "FROM {reference} AS build\nCOPY main.go /src/\nRUN go build -o /out/hello /src/main.go\n\
             FROM scratch\nCOPY --from=build /out/hello /\n"
        ),
    )?
    .file("main.go", PROGRAM)
}

/// Runs the built program in `directory`, and fails unless it says hello.
pub fn greet(directory: &Path) -> Result<String> {
    let program = directory.join("hello");
    let said = programs::run_command(Command::new(&program))?;
    if said.trim() != GREETING {
        bail!("{} printed {said:?}", program.display());
    }
    Ok(said.trim().to_owned())
}

/// The layers of an image, as its registry tells.
#[derive(Debug, Clone)]
pub struct ImageFacts {
    /// Bytes of all layers as they are stored.
    pub compressed: u64,
    /// Their number.
    pub layers: usize,
    /// The digest of each layer's table of contents, where the manifest names one.
    pub tocs: Vec<Option<String>>,
    /// The layers' digests.
    pub digests: Vec<String>,
    /// Their uncompressed size, where the manifest tells it.
    pub uncompressed: u64,
}

/// Asks the registry at `host` (plain HTTP) about the image `name:tag`.
pub fn facts(host: &str, name: &str, tag: &str) -> Result<ImageFacts> {
    let manifest = get(host, &format!("/v2/{name}/manifests/{tag}"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("read the manifest")?;
    let layers = manifest["layers"].as_array().with_context(|| format!("no layers in {manifest}"))?;
    let annotation = |layer: &serde_json::Value, name: &str| layer["annotations"][name].as_str().map(str::to_owned);
    Ok(ImageFacts {
        compressed: layers.iter().filter_map(|layer| layer["size"].as_u64()).sum(),
        layers: layers.len(),
        tocs: layers.iter().map(|layer| annotation(layer, castor_oci::ANNOTATION_TOC_DIGEST)).collect(),
        digests: layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect(),
        uncompressed: layers
            .iter()
            .filter_map(|layer| annotation(layer, castor_oci::ANNOTATION_UNCOMPRESSED_SIZE)?.parse::<u64>().ok())
            .sum(),
    })
}

/// The body of a plain GET that must succeed.
pub fn get(host: &str, path: &str) -> Result<Vec<u8>> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
                  application/vnd.oci.image.index.v1+json, */*";
    // Version 1.0: the body ends with the connection, in no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").context("an answer without a head")?;
    let status = String::from_utf8_lossy(&answer[..head]).lines().next().unwrap_or_default().to_owned();
    if status.split(' ').nth(1) != Some("200") {
        bail!("GET {path} of {host}: {status}");
    }
    Ok(answer.split_off(head + 4))
}
