//! Footers and annotations in their place: 8 bytes for the size of the blob, then its end.

use castor_estargz::footer::{self, Footer, MAX_SIZE, MAX_TOC};
use castor_estargz::{TocDigests, annotation, toc};

use super::{Target, hash, kind_of_error, magnitude, samples};
use crate::{Random, mutate};

pub(super) const TARGET: Target = Target { name: "footer", seeds, mutate, run };

/// Bytes of a blob's end: enough for the TOC of most.
const TAIL: usize = 4096;

fn seeds() -> Vec<Vec<u8>> {
    let tail = |blob: &[u8]| [&(blob.len() as u64).to_le_bytes(), &blob[blob.len().saturating_sub(TAIL)..]].concat();
    samples().iter().map(|sample| tail(&sample.blob)).collect()
}

fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut input = seed.to_vec();
    match random.below(3) {
        // A number or a digit in the footer itself.
        0 => {
            let at = input.len().saturating_sub(1 + random.below(MAX_SIZE));
            if random.once_in(2) {
                mutate::number(random, &mut input, at);
            } else if let Some(digit) = input.get_mut(at) {
                *digit = b"0123456789abcdefABg-"[random.below(20)];
            }
        }
        1 => mutate::number(random, &mut input, 0),
        _ => mutate::bytes(random, &mut input, other),
    }
    input
}

fn run(input: &[u8]) -> u64 {
    let Some((size, tail)) = input.split_first_chunk::<8>() else { return 0 };
    let size = u64::from_le_bytes(*size);
    let end = &tail[tail.len().saturating_sub(MAX_SIZE)..];
    // The same bytes as an annotation.
    let text = String::from_utf8_lossy(end).into_owned();
    for key in [annotation::ZSTD_POSITION, annotation::ZSTD_POSITION_CONTAINERS, annotation::TOC_DIGEST] {
        let annotations = [(key.to_owned(), text.clone())].into();
        let _ = annotation::toc_digests(&annotations);
        if let Ok(Some(at)) = annotation::toc_location(&annotations, size) {
            assert!(at.offset.checked_add(at.compressed_size).is_some_and(|end| end <= size), "out of the blob");
        }
    }
    let footer = match footer::parse(end, size) {
        Ok(footer) => footer,
        Err(error) => return kind_of_error(&error),
    };
    check(&footer, size);
    // What it points at, as far as it is here.
    let decoded = footer.toc.and_then(|at| {
        let begin = size.checked_sub(tail.len() as u64)?;
        let start = usize::try_from(at.offset.checked_sub(begin)?).ok()?;
        let compressed = tail.get(start..start.checked_add(usize::try_from(at.compressed_size).ok()?)?)?;
        Some(toc::decode(&at, compressed, &TocDigests::default()))
    });
    let decoded = match decoded {
        None => 0,
        Some(Ok(json)) => {
            assert!(json.len() as u64 <= MAX_TOC, "a TOC beyond the limit");
            1 + u64::from(magnitude(json.len()))
        }
        Some(Err(error)) => kind_of_error(&error),
    };
    hash((footer.kind, decoded))
}

fn check(footer: &Footer, size: u64) {
    assert!(footer.payload_end <= size, "members end behind the blob");
    if let Some(at) = footer.toc {
        assert!(at.offset.checked_add(at.compressed_size).is_some_and(|end| end <= size), "a TOC out of the blob");
        assert!(at.compressed_size <= MAX_TOC && at.size.unwrap_or(0) <= MAX_TOC, "a TOC beyond the limit");
        assert!(at.payload_end <= at.offset, "members behind the TOC");
    }
}
