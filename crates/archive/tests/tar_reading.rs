//! Reading what others write: sparse files of GNU tar, and anything at all.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{self, Read};

use castor_archive::listing::{Builder, Claim, ClaimKind, Rules};
use castor_archive::tar::{Header, Kind, Limits, Reader, TarError, Writer};
use castor_archive::{HashingReader, decompress};
use proptest::prelude::*;

/// Archives of the same three files, made with `tar -S` in each of its forms: `s`, 1,000,000 bytes with "start" at 0 and
/// "middle" at 500,000; `hole`, 300,000 bytes of nothing; `many`, a few bytes at each of 60 places.
const SPARSE: [(&str, &[u8]); 4] = [
    ("gnu", include_bytes!("../testdata/sparse-gnu.tar.gz")),
    ("0.0", include_bytes!("../testdata/sparse-0.0.tar.gz")),
    ("0.1", include_bytes!("../testdata/sparse-0.1.tar.gz")),
    ("1.0", include_bytes!("../testdata/sparse-1.0.tar.gz")),
];

const WANT: [(&str, u64, &str); 3] = [
    ("s", 1_000_000, "sha256:a032373815a885389ac1976db252b41c1266f2ade9b6798a332c86336f2330cd"),
    ("hole", 300_000, "sha256:886715e4051e827f4fe215df3053af3f85ad0d352db2c829c7487af6d78efe30"),
    ("many", 983_045, "sha256:500ffab3932d70a7e7bc0095439a58b0e6e4246cafadf1b938190532243d040a"),
];

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    decompress(bytes).unwrap().1.read_to_end(&mut tar).unwrap();
    tar
}

#[test]
fn sparse_files_are_read_in_every_form() {
    for (form, archive) in SPARSE {
        let tar = unzip(archive);
        let mut reader = Reader::new(&tar[..]).allow_sparse();
        let mut read = Vec::new();
        while let Some(header) = reader.next().unwrap() {
            assert!(reader.is_sparse(), "{form}");
            assert!(header.records.is_empty() && header.mtime.seconds == 1_600_000_000);
            let (digest, size) = HashingReader::new(&mut reader).drain().unwrap();
            read.push((String::from_utf8(header.path).unwrap(), header.size, digest.to_string()));
            assert_eq!(size, header.size);
        }
        let want = WANT.map(|(name, size, digest)| (name.to_owned(), size, digest.to_owned()));
        assert_eq!(read, want, "{form}");
        // Skipped, not read.
        let mut reader = Reader::new(&tar[..]).allow_sparse();
        let mut names = 0;
        while reader.next().unwrap().is_some() {
            names += 1;
        }
        assert_eq!(names, 3);
    }
}

#[test]
fn sparse_files_are_refused_unless_asked_for() {
    for (form, archive) in SPARSE {
        let tar = unzip(archive);
        assert!(matches!(Reader::new(&tar[..]).next(), Err(TarError::Unsupported { .. })), "{form}");
    }
}

/// Reads all of an archive, within bounds.
fn exhaust(bytes: &[u8]) {
    let limits = Limits { extension: 1 << 16, entries: 1000 };
    let mut reader = Reader::with_limits(bytes, limits).allow_sparse();
    let mut listing = Builder::new(Rules::TAR);
    while let Ok(Some(header)) = reader.next() {
        let read = io::copy(&mut reader.by_ref().take(1 << 20), &mut io::sink());
        assert!(reader.is_sparse() || read.is_err() || header.size <= bytes.len() as u64);
        let kind = match header.kind {
            Kind::File => ClaimKind::File(header.size),
            Kind::Hardlink => ClaimKind::Hardlink(&header.link),
            Kind::Symlink => ClaimKind::Symlink(&header.link),
            Kind::Directory => ClaimKind::Directory,
            Kind::CharDevice => ClaimKind::CharDevice(header.dev_major, header.dev_minor),
            Kind::BlockDevice => ClaimKind::BlockDevice(header.dev_major, header.dev_minor),
            Kind::Fifo => ClaimKind::Fifo,
        };
        let xattrs: Vec<_> = header.xattrs().collect();
        let (mtime, uid, gid) = (header.mtime, header.uid as u32, header.gid as u32);
        let claim = Claim { path: &header.path, kind, mode: header.mode, uid, gid, mtime, xattrs: &xattrs, tag: 0 };
        if listing.push(&claim).is_err() {
            return;
        }
    }
    let _ = listing.finish();
}

fn any_header() -> impl Strategy<Value = Header> {
    let name = prop::collection::vec(1u8.., 1..300);
    let record = ("[A-Za-z.]{1,12}", prop::collection::vec(any::<u8>(), 1..40));
    let numbers = (0u32..0o10000, 0..=i64::MAX as u64, 0..=i64::MAX as u64, 0u64..3000);
    let time = (any::<i32>(), 0u32..1_000_000_000, 0i64..4);
    (name.clone(), name, 0u8..7, numbers, time, prop::collection::btree_map(record.0, record.1, 0..4)).prop_map(
        |(mut path, link, kind, (mode, uid, gid, size), (seconds, nanoseconds, far), records)| {
            let kinds = [
                Kind::File,
                Kind::Hardlink,
                Kind::Symlink,
                Kind::CharDevice,
                Kind::BlockDevice,
                Kind::Directory,
                Kind::Fifo,
            ];
            let kind = kinds[usize::from(kind)];
            while path.len() > 1 && path.ends_with(b"/") {
                path.pop();
            }
            if path == b"/" {
                path = b"x".to_vec();
            }
            let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            Header {
                path,
                kind,
                mode,
                uid,
                gid,
                size: if kind == Kind::File { size } else { 0 },
                mtime: castor_archive::Timestamp::new(i64::from(seconds) * (1 << (far * 8)), nanoseconds),
                link: if matches!(kind, Kind::Hardlink | Kind::Symlink) { link } else { Vec::new() },
                dev_major: if is_device { mode } else { 0 },
                dev_minor: if is_device { 1_048_575 - mode } else { 0 },
                records: records.into_iter().map(|(key, value)| (format!("X.{key}").into_bytes(), value)).collect(),
                ..Header::default()
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read(headers in prop::collection::vec(any_header(), 0..8)) {
        let mut writer = Writer::new(Vec::new());
        for header in &headers {
            writer.append(header, &mut io::repeat(3).take(header.size)).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..]);
        for header in &headers {
            let mut read = reader.next().unwrap().unwrap();
            read.records.sort();
            prop_assert_eq!(&read, header);
        }
        prop_assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn nothing_makes_the_reader_panic(
        headers in prop::collection::vec(any_header(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        form in 0usize..5,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = match SPARSE.get(form) {
            Some((_, archive)) => unzip(archive),
            None => {
                let mut writer = Writer::new(Vec::new());
                for header in &headers {
                    writer.append(header, &mut io::repeat(3).take(header.size)).unwrap();
                }
                writer.finish().unwrap()
            }
        };
        for (at, byte) in damage {
            // Near the start, where the headers are.
            let at = at.index(bytes.len().min(6000));
            bytes[at] = byte;
        }
        // With right checksums damage gets further.
        for block in bytes.as_chunks_mut::<512>().0.iter_mut().filter(|block| block[257..262] == *b"ustar") {
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>()
                - block[148..156].iter().map(|byte| u32::from(*byte)).sum::<u32>()
                + 256;
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        exhaust(&bytes);
        exhaust(&bytes[..cut.index(bytes.len())]);
    }
}
