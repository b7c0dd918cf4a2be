//! Whole layers: a codec, 4 bytes for the length of the members, the members, and the JSON of the table of contents, of which
//! a blob is made that vouches for it. So the chunk table is read that hostile makers can write, and what it leads to.

use std::io::Write as _;

use castor_archive::tar;
use castor_estargz::toc::Chunk;
use castor_estargz::{Codec, Opened, TOC_NAME, chunk, open};
use castor_oci::Digest;
use serde_json::Value;

use super::{Target, hash, kind_of_error, magnitude, samples, toc};
use crate::{Random, mutate};

pub(super) const TARGET: Target = Target { name: "chunks", seeds, mutate, run };

/// Decompressed bytes of one input that are looked at.
const BUDGET: u64 = 8 << 20;

struct Layer<'a> {
    codec: Codec,
    members: &'a [u8],
    json: &'a [u8],
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for sample in samples() {
        let opened = open(&sample.blob, &sample.annotations, sample.external.as_deref());
        let Ok(Opened { toc, footer }) = opened else { continue };
        let json = toc::json_of(&sample);
        let end = footer.map_or(sample.blob.len() as u64, |footer| footer.payload_end);
        if let (Some(json), Some(members)) = (json, sample.blob.get(..end as usize)) {
            seeds.push(encode(&Layer { codec: toc.codec, members, json: &json }));
        }
    }
    seeds
}

fn encode(layer: &Layer<'_>) -> Vec<u8> {
    let codec = u8::from(layer.codec == Codec::Zstd);
    [&[codec], &(layer.members.len() as u32).to_le_bytes()[..], layer.members, layer.json].concat()
}

fn parts(input: &[u8]) -> Option<Layer<'_>> {
    let (codec, rest) = input.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (members, json) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some(Layer { codec: if *codec == 0 { Codec::Gzip } else { Codec::Zstd }, members, json })
}

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let Some(layer) = parts(seed) else {
        let mut input = seed.to_vec();
        mutate::bytes(random, &mut input, other);
        return input;
    };
    let (mut members, mut json) = (layer.members.to_vec(), layer.json.to_vec());
    let other = parts(other);
    match random.below(6) {
        0 | 1 => mutate::bytes(random, &mut members, other.as_ref().map_or(&[], |other| other.members)),
        2 => mutate::bytes(random, &mut json, other.as_ref().map_or(&[], |other| other.json)),
        _ => {
            if let Ok(mut table) = serde_json::from_slice::<Value>(&json) {
                let other = other.and_then(|other| serde_json::from_slice(other.json).ok()).unwrap_or_default();
                mutate::toc(random, &mut table, &other);
                json = serde_json::to_vec(&table).unwrap_or_default();
            }
        }
    }
    encode(&Layer { codec: layer.codec, members: &members, json: &json })
}

/// The blob of a layer, and the annotations that vouch for it.
fn blob(layer: &Layer<'_>) -> Option<(Vec<u8>, castor_oci::Annotations)> {
    let mut blob = layer.members.to_vec();
    let mut annotations = castor_oci::Annotations::new();
    annotations.insert(castor_oci::ANNOTATION_TOC_DIGEST.into(), Digest::of(layer.json).to_string());
    let offset = blob.len() as u64;
    match layer.codec {
        Codec::Gzip => {
            let mut writer = tar::Writer::new(Vec::new());
            let header = tar::Header {
                path: TOC_NAME.into(),
                kind: tar::Kind::File,
                size: layer.json.len() as u64,
                ..tar::Header::default()
            };
            writer.append(&header, &mut &layer.json[..]).ok()?;
            let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast());
            encoder.write_all(&writer.finish().ok()?).ok()?;
            encoder.finish().ok()?;
            blob.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
            blob.extend(format!("{offset:016x}STARGZ").bytes());
            blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        Codec::Zstd => {
            let compressed = zstd::bulk::compress(layer.json, 1).ok()?;
            blob.extend([0x50, 0x2a, 0x4d, 0x18]);
            blob.extend((compressed.len() as u32).to_le_bytes());
            blob.extend(&compressed);
            blob.extend([0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0]);
            for number in [offset + 8, compressed.len() as u64, layer.json.len() as u64, 1] {
                blob.extend(number.to_le_bytes());
            }
            blob.extend(b"GnUlInUx");
        }
    }
    Some((blob, annotations))
}

fn run(input: &[u8]) -> u64 {
    let Some(layer) = parts(input) else { return 0 };
    let Some((blob, annotations)) = blob(&layer) else { return 1 };
    let toc = match open(&blob, &annotations, None) {
        Ok(opened) => opened.toc,
        Err(error) => return kind_of_error(&error),
    };
    toc::check(&toc, layer.members.len() as u64);
    let (mut budget, mut right, mut wrong, mut errors) = (BUDGET, 0, 0, 0u64);
    let mut chunks: Vec<Chunk> = toc.chunks.clone();
    chunks.sort_by_key(|chunk| (chunk.offset, chunk.inner_offset));
    for member in chunks.chunk_by(|a, b| !a.zeros && !b.zeros && a.offset == b.offset) {
        // Daemons refuse such tables as ask for more (`layerfs`); here it is not worth the time.
        let cost: u64 = member.iter().map(|chunk| chunk.inner_offset.saturating_add(chunk.size)).sum();
        let Some(left) = budget.checked_sub(cost) else { continue };
        budget = left;
        let end = member.iter().map(|chunk| chunk.end).max().unwrap_or(0);
        let compressed = match member {
            [chunk] if chunk.zeros => &[][..],
            _ => &blob[member[0].offset as usize..end as usize],
        };
        let mut seen = 0;
        let together = chunk::decode_group(toc.codec, member, compressed, &mut |index, data| {
            assert_eq!((index, data.len() as u64), (seen, member[index].size), "another chunk than was asked for");
            if let Some(digest) = member[index].digest.filter(|_| !member[index].zeros) {
                assert_eq!(digest, Digest::of(&data), "wrong bytes");
            }
            let alone = chunk::decode(toc.codec, &member[index], compressed);
            assert!(alone.is_ok_and(|alone| alone == data), "alone a chunk is another");
            seen += 1;
            Ok(())
        });
        match together {
            Ok(()) => right += 1,
            Err(error) => {
                wrong += 1;
                errors ^= kind_of_error(&error);
            }
        }
    }
    hash((magnitude(right), magnitude(wrong), errors))
}
