//! tar streams, compressed or not: read, and made a tree of as when a layer is unpacked.

use std::io::{self, Read as _};

use castor_archive::listing::{Builder, Claim, ClaimKind, Rules};
use castor_archive::tar::{self, Kind};
use castor_archive::{Listing, decompress};

use super::{Target, hash, kind_of_error, magnitude, samples, toc};
use crate::{Random, mutate};

pub(super) const TARGET: Target = Target { name: "tar", seeds, mutate, run };

const BLOCK: usize = 512;
/// Decompressed bytes that are looked at.
const BUDGET: u64 = 16 << 20;
/// Bytes of an entry that are read.
const ENTRY: u64 = 1 << 20;
/// Samples that are whole come first.
const GOOD: usize = 46;
/// Header fields: place and length.
const FIELDS: [(usize, usize); 16] = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (148, 8),
    (156, 1),
    (157, 100),
    (257, 8),
    (265, 32),
    (297, 32),
    (329, 8),
    (337, 8),
    (345, 155),
    (482, 30),
];
const TYPES: &[u8] = b"0123456LKxgS7VMAD\0\xff";

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![sparse(), Vec::new()];
    // Those that were broken have the same tars.
    for sample in samples().into_iter().take(GOOD) {
        let mut stream = Vec::new();
        let decompressed = decompress(&sample.blob[..])
            .and_then(|(_, input)| input.take(mutate::LARGEST as u64).read_to_end(&mut stream));
        if decompressed.is_ok() {
            seeds.push(stream);
        }
        seeds.push(sample.blob);
    }
    seeds
}

/// A sparse file, of which real layers have none.
fn sparse() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..6].copy_from_slice(b"sparse");
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(b"00000001000");
    block[156] = b'S';
    block[257..265].copy_from_slice(b"ustar  \0");
    block[386..397].copy_from_slice(b"00000010000");
    block[398..409].copy_from_slice(b"00000001000");
    block[483..494].copy_from_slice(b"00000100000");
    mend(&mut block);
    block.resize(3 * BLOCK + 1024, 0);
    block
}

/// Sets the checksum of a header.
fn mend(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut stream = seed.to_vec();
    if random.once_in(5) {
        mutate::bytes(random, &mut stream, other);
        return stream;
    }
    for _ in 0..=random.below(3) {
        let blocks = stream.len() / BLOCK;
        let headers: Vec<usize> = (0..blocks).filter(|block| is_header(&stream[block * BLOCK..][..BLOCK])).collect();
        let Some(at) = random.pick(&headers).map(|block| block * BLOCK) else {
            mutate::bytes(random, &mut stream, other);
            continue;
        };
        match random.below(10) {
            0 => {
                let block = stream[at..at + BLOCK].to_vec();
                stream.splice(at..at, block);
            }
            1 => drop(stream.drain(at..at + BLOCK)),
            2 => {
                let records = pax(random);
                stream.splice(at..at, records);
            }
            3 => {
                let start = random.below(other.len() / BLOCK) * BLOCK;
                let end = (start + BLOCK * (1 + random.below(8))).min(other.len());
                stream.splice(at..at, other[start..end].iter().copied());
            }
            _ => {
                let block = &mut stream[at..at + BLOCK];
                field(random, block);
                if !random.once_in(20) {
                    mend(block);
                }
            }
        }
    }
    stream
}

fn is_header(block: &[u8]) -> bool {
    block[0] != 0 && block[148..156].iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ' | 0))
}

/// Changes a field of a header.
fn field(random: &mut Random, block: &mut [u8]) {
    let (start, length) = *random.pick(&FIELDS).unwrap_or(&(0, 100));
    let field = &mut block[start..start + length];
    match (length, random.below(4)) {
        (1, _) => field[0] = *random.pick(TYPES).unwrap_or(&b'0'),
        // Base 256, of any size and sign.
        (_, 0) => {
            let number = random.number().to_be_bytes();
            let tail = length.min(8);
            field.fill(if random.once_in(4) { 0xff } else { 0 });
            field[length - tail..].copy_from_slice(&number[8 - tail..]);
            field[0] |= 0x80;
        }
        (8 | 12, 1 | 2) => {
            let digits = format!("{:0width$o}", random.number(), width = length - 1);
            field.copy_from_slice(&[&digits.as_bytes()[..length - 1], b"\0"].concat());
        }
        _ => {
            let name = mutate::name(random);
            field.fill(0);
            let used = name.len().min(length);
            field[..used].copy_from_slice(&name.as_bytes()[..used]);
        }
    }
}

/// A PAX header with records, right or nearly so.
fn pax(random: &mut Random) -> Vec<u8> {
    const KEYS: [&str; 14] = [
        "path",
        "linkpath",
        "size",
        "uid",
        "gid",
        "mtime",
        "SCHILY.xattr.user.a",
        "SCHILY.xattr.trusted.overlay.opaque",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "GNU.sparse.realsize",
        "GNU.sparse.name",
    ];
    let mut records = Vec::new();
    for _ in 0..=random.below(4) {
        let key = random.pick(&KEYS).copied().unwrap_or_default();
        let value = match random.below(5) {
            0 => mutate::name(random),
            1 => format!("{}.{}", random.number() as i64, random.draw()),
            2 => format!("{},{},{},{}", random.below(99), random.below(99), random.number(), random.number()),
            3 => random.below(3).to_string(),
            _ => random.number().to_string(),
        };
        let body = format!(" {key}={value}\n");
        let mut length = body.len();
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        if random.once_in(15) {
            length = random.below(2 * length);
        }
        records.extend(format!("{length}{body}").bytes());
    }
    let mut block = vec![0; BLOCK];
    block[..3].copy_from_slice(b"pax");
    block[124..136].copy_from_slice(format!("{:011o}\0", records.len()).as_bytes());
    block[156] = if random.once_in(8) { b'g' } else { b'x' };
    block[257..265].copy_from_slice(b"ustar\x0000");
    mend(&mut block);
    records.resize(records.len().next_multiple_of(BLOCK), 0);
    block.extend(records);
    block
}

fn run(input: &[u8]) -> u64 {
    let read = |rules, sparse| match read(input, rules, sparse) {
        Ok(listing) => {
            toc::check_listing(&listing);
            u64::from(magnitude(listing.len()))
        }
        Err(error) => kind_of_error(&error),
    };
    hash((read(Rules::TAR, false), read(Rules::TAR_WITH_TOC, false), read(Rules::TAR, true)))
}

/// As much as when a layer is unpacked.
fn read(input: &[u8], rules: Rules, sparse: bool) -> Result<Listing, String> {
    let (_, stream) = decompress(input).map_err(|error| error.to_string())?;
    let mut reader = tar::Reader::new(stream.take(BUDGET));
    if sparse {
        reader = reader.allow_sparse();
    }
    let mut builder = Builder::new(rules);
    let mut files = 0;
    while let Some(header) = reader.next().map_err(|error| error.to_string())? {
        let kind = match header.kind {
            Kind::File => ClaimKind::File(header.size),
            Kind::Directory => ClaimKind::Directory,
            Kind::Symlink => ClaimKind::Symlink(&header.link),
            Kind::Hardlink => ClaimKind::Hardlink(&header.link),
            Kind::CharDevice => ClaimKind::CharDevice(header.dev_major, header.dev_minor),
            Kind::BlockDevice => ClaimKind::BlockDevice(header.dev_major, header.dev_minor),
            Kind::Fifo => ClaimKind::Fifo,
        };
        let xattrs: Vec<(&[u8], &[u8])> = header.xattrs().collect();
        let claim = Claim {
            path: &header.path,
            kind,
            mode: header.mode,
            uid: header.uid as u32,
            gid: header.gid as u32,
            mtime: header.mtime,
            xattrs: &xattrs,
            tag: files,
        };
        builder.push(&claim).map_err(|error| error.to_string())?;
        if header.kind == Kind::File {
            files += 1;
            let limit = if reader.is_sparse() { ENTRY } else { u64::MAX };
            let read =
                io::copy(&mut reader.by_ref().take(limit), &mut io::sink()).map_err(|error| error.to_string())?;
            assert!(read == header.size || reader.is_sparse() && read == limit, "an entry of another size than told");
            if read == limit {
                return Err("a sparse file that is too large here".into());
            }
        }
    }
    builder.finish().map_err(|error| error.to_string())
}
