//! A disk that is full: what cannot be kept is an error that says so, nothing wrong is shown, and space that was taken in vain
//! is given back. Needs root, for a small file system of its own.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use castor_archive::{Compression, Encoder};
use castor_layerfs::Lazy;
use castor_oci::{Descriptor, Digest, media_type};
use castor_progress::Reporter;
use support::rand_like::Random;
use support::{Bench, Blob, Source, Tar, estargz, gzip, read};

const MIB: usize = 1 << 20;

/// A small ext4, mounted; unmounted when dropped.
struct Disk {
    _dir: tempfile::TempDir,
    mounted: PathBuf,
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, mounted) = (dir.path().join("image"), dir.path().join("mounted"));
        std::fs::File::create(&image).unwrap().set_len(size as u64).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), mounted.as_ref()]);
        Self { _dir: dir, mounted }
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mounted).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all space but `left`, until what it returns is deleted.
    fn ballast(&self, left: usize) -> PathBuf {
        let path = self.mounted.join("ballast");
        let file = std::fs::File::create(&path).unwrap();
        let length = self.free() - left as u64;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Files that a failing test leaves open must not keep it from going.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
    }
}

fn files(count: usize) -> (Tar, Vec<Vec<u8>>) {
    let mut random = Random::new(21);
    let contents: Vec<_> = (0..count).map(|_| random.bytes(2 * MIB)).collect();
    let tar =
        contents.iter().enumerate().fold(Tar::default(), |tar, (number, content)| tar.file(&name(number), content));
    (tar, contents)
}

fn name(number: usize) -> String {
    format!("f{number}")
}

async fn bench_at(path: &Path) -> Bench {
    let root = path.join("state");
    std::fs::create_dir_all(&root).unwrap();
    Bench::at(&root).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_full_disk_in_mid_fetch_is_an_error_of_who_reads() {
    let disk = Disk::new(64 * MIB);
    let bench = bench_at(&disk.mounted).await;
    let (tar, contents) = files(6);
    let blob = estargz(&tar.bytes(), 4 << 20);
    let source = Source::new(&blob);
    let layer = bench.engine.layer(source.layer(Lazy::Require), &Reporter::discard()).await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    let ballast = disk.ballast(5 * MIB);
    let mut failed = 0;
    for (number, content) in contents.iter().enumerate() {
        match read(&tree, &name(number)).await {
            Ok(read) => assert!(read == *content, "wrong bytes in {}", name(number)),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "{} bytes are left of the disk", disk.free());
    let errors = layer.errors(0);
    assert!(errors.iter().any(|error| error.cause.contains("No space left on device")), "{errors:?}");
    // With space again all is well, without a restart.
    std::fs::remove_file(ballast).unwrap();
    for (number, content) in contents.iter().enumerate() {
        assert!(read(&tree, &name(number)).await.unwrap() == *content, "{}", name(number));
    }
    layer.complete().await.unwrap();
    assert_eq!(layer.verified(), Some(blob.diff_id));
    drop((tree, layer));
    bench.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_download_that_does_not_fit_gives_its_space_back() {
    let disk = Disk::new(64 * MIB);
    let bench = bench_at(&disk.mounted).await;
    let (tar, contents) = files(4);
    let ballast = disk.ballast(6 * MIB);
    let before = disk.free();
    let refused = async |blob: &Blob| {
        let source = Source::new(blob);
        let layer = bench.engine.layer(source.layer(Lazy::Never), &Reporter::discard()).await.unwrap();
        let error = layer.ready().await.unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert!(error.contains(&blob.descriptor.digest.to_string()), "{error}");
        drop(layer);
        assert!(disk.free() + (MIB as u64) > before, "{} of {before} bytes are free", disk.free());
    };
    let blob = gzip(&tar.bytes());
    refused(&blob).await;
    // A few bytes that stand for more than any disk has room for.
    for compression in [Compression::Gzip { level: Some(9) }, Compression::Zstd { level: None }] {
        let bomb = bomb(compression);
        assert!(bomb.bytes.len() < 2 * MIB);
        refused(&bomb).await;
    }
    std::fs::remove_file(ballast).unwrap();
    let layer = bench.engine.layer(Source::new(&blob).layer(Lazy::Never), &Reporter::discard()).await.unwrap();
    layer.ready().await.unwrap();
    let tree = bench.engine.image_tree(&[layer.id()]).await.unwrap();
    assert!(read(&tree, "f3").await.unwrap() == contents[3]);
    drop((tree, layer));
    bench.engine.shutdown().await;
}

/// A layer of one file of zeros.
fn bomb(compression: Compression) -> Blob {
    let size = 512 * MIB as u64;
    let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
    let header =
        castor_archive::tar::Header { size, ..support::header("zeros", castor_archive::tar::Kind::File, 0o644) };
    let mut writer = castor_archive::tar::Writer::new(&mut encoder);
    writer.append(&header, &mut std::io::Read::take(std::io::repeat(0), size)).unwrap();
    writer.finish().unwrap();
    let bytes = encoder.finish().unwrap();
    let kind = match compression {
        Compression::Zstd { .. } => media_type::OCI_LAYER_ZSTD,
        _ => media_type::OCI_LAYER_GZIP,
    };
    let descriptor = Descriptor::new(kind, Digest::of(&bytes), bytes.len() as u64);
    Blob { bytes: bytes.into(), descriptor, diff_id: Digest::of("never known") }
}
