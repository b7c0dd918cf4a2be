use super::*;
use crate::tar::Writer;

fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(header) = reader.next()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(|source| TarError::Io { offset: 0, source })?;
        entries.push((header, data));
    }
    Ok(entries)
}

/// A block of an entry of another writer.
fn block(name: &str, kind: u8, size: &[u8], magic: &[u8; 8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[field::MODE].copy_from_slice(b"0000644\0");
    block[field::SIZE.start..field::SIZE.start + size.len()].copy_from_slice(size);
    block[field::TYPE] = kind;
    block[field::MAGIC].copy_from_slice(magic);
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    let sum = header::checksum(block);
    block[field::CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[test]
fn what_is_written_is_read() {
    let base = Header { mode: 0o644, mtime: Timestamp::from_seconds(1_600_000_000), ..Header::default() };
    let mut with_xattrs = Header { path: b"x".to_vec(), ..base.clone() };
    with_xattrs.push_xattr(b"user.a=b", b"1");
    let with_xattrs = Header { records: vec![(b"SCHILY.xattr.user.a".to_vec(), b"\0\xff=\n".to_vec())], ..with_xattrs };
    let headers = [
        Header { path: b"d/".to_vec(), kind: Kind::Directory, ..base.clone() },
        Header { path: b"d/file".to_vec(), size: 700, uid: 1 << 40, gid: 1 << 21, ..base.clone() },
        Header { path: [&[b'p'; 150][..], b"/", &[b'n'; 100]].concat(), ..base.clone() },
        Header { path: [b'n'; 300].to_vec(), size: 1, ..base.clone() },
        Header { path: "ünï/".into(), kind: Kind::Directory, ..base.clone() },
        Header { path: b"\xff\xfe".to_vec(), link: b"\xfd".to_vec(), kind: Kind::Symlink, ..base.clone() },
        Header { path: b"l".to_vec(), link: [b't'; 200].to_vec(), kind: Kind::Hardlink, ..base.clone() },
        Header { path: b"c".to_vec(), kind: Kind::CharDevice, dev_major: 511, dev_minor: 1_048_575, ..base.clone() },
        Header { path: b"b".to_vec(), kind: Kind::BlockDevice, dev_major: 1, ..base.clone() },
        Header { path: b"p".to_vec(), kind: Kind::Fifo, uname: b"u".to_vec(), gname: "grüße".into(), ..base.clone() },
        Header { path: b"t1".to_vec(), mtime: Timestamp::new(-5, 999_999_999), ..base.clone() },
        Header { path: b"t2".to_vec(), mtime: Timestamp::new(-1, 1), ..base.clone() },
        Header { path: b"t3".to_vec(), mtime: Timestamp::new(1 << 40, 120_000_000), ..base.clone() },
        with_xattrs,
    ];
    let mut writer = Writer::new(Vec::new());
    for header in &headers {
        writer.append(header, &mut io::repeat(7).take(header.size)).unwrap();
    }
    let bytes = writer.finish().unwrap();
    let entries = read_all(&bytes).unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.0).collect::<Vec<_>>(), headers.iter().collect::<Vec<_>>());
    assert!(entries.iter().all(|(header, data)| *data == vec![7; header.size as usize]));
    // Whatever is cut off, there is an answer; without the final zeros it is the same one.
    assert_eq!(read_all(&bytes[..bytes.len() - 2 * BLOCK]).unwrap(), entries);
    for end in (1..bytes.len() - 2 * BLOCK).filter(|end| end % 97 == 0) {
        assert!(read_all(&bytes[..end]).map_or(true, |read| read.len() < entries.len()));
    }
}

#[test]
fn the_writer_insists_on_the_size() {
    let header = Header { path: b"a".to_vec(), size: 3, ..Header::default() };
    let mut writer = Writer::new(Vec::new());
    assert!(writer.append(&header, &mut &b"12"[..]).is_err());
    let mut writer = Writer::new(Vec::new());
    assert!(writer.append(&header, &mut &b"1234"[..]).is_err());
    let mut writer = Writer::new(Vec::new());
    writer.start(&header).unwrap();
    assert!(writer.finish().is_err());
}

#[test]
fn gnu_names_and_numbers_are_read() {
    let long = [b'n'; 300];
    let mut bytes = Vec::new();
    bytes.extend(block("././@LongLink", b'L', b"00000000455\0", header::GNU_MAGIC));
    bytes.extend(padded(&[&long[..], b"\0"].concat()));
    bytes.extend(block("././@LongLink", b'K', b"00000000004\0", header::GNU_MAGIC));
    bytes.extend(padded(b"to\0\0"));
    let mut entry = block("short", b'2', b"00000000000\0", header::GNU_MAGIC);
    entry[field::UID].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    entry[field::MTIME].copy_from_slice(&[0xff; 12]);
    seal(&mut entry);
    bytes.extend(entry);
    bytes.extend(END);
    let (header, _) = read_all(&bytes).unwrap().remove(0);
    assert_eq!((header.path.as_slice(), header.link.as_slice()), (&long[..], &b"to"[..]));
    assert_eq!((header.uid, header.mtime.seconds), (4_294_967_294, -1));
}

#[test]
fn old_forms_are_read() {
    let mut bytes = Vec::new();
    for (name, kind) in [("dir/", 0), ("file", 0), ("contiguous", b'7')] {
        bytes.extend(block(name, kind, b"0", &[0; 8]));
    }
    // Sums of signed bytes, and a star header with a short prefix.
    let mut entry = block("caf\u{e9}", b'0', b"0", &[0; 8]);
    let signed: i64 = entry
        .iter()
        .enumerate()
        .map(|(at, byte)| if field::CHECKSUM.contains(&at) { 32 } else { i64::from(byte.cast_signed()) })
        .sum();
    entry[field::CHECKSUM].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    bytes.extend(entry);
    let mut entry = block("name", b'0', b"0", header::USTAR_MAGIC);
    entry[field::PREFIX.start..field::PREFIX.start + 6].copy_from_slice(b"prefix");
    entry[476..487].copy_from_slice(b"15724623140");
    entry[field::STAR_TRAILER].copy_from_slice(b"tar\0");
    seal(&mut entry);
    bytes.extend(entry);
    bytes.extend(END);
    let entries = read_all(&bytes).unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| entry.0.kind).collect();
    assert_eq!(kinds, [Kind::Directory, Kind::File, Kind::File, Kind::File, Kind::File]);
    assert_eq!(entries[4].0.path, b"prefix/name");
}

#[test]
fn a_size_in_a_record_counts_for_its_entry_alone() {
    // The record says 600 bytes, the header 0; between them a long name with a size of its own.
    let mut bytes = Vec::new();
    bytes.extend(block("x", b'x', b"00000000014\0", header::USTAR_MAGIC));
    bytes.extend(padded(b"12 size=600\n"));
    bytes.extend(block("L", b'L', b"00000000003\0", header::GNU_MAGIC));
    bytes.extend(padded(b"abc"));
    bytes.extend(block("short", b'0', b"00000000000\0", header::USTAR_MAGIC));
    // Data that looks like an entry must not be taken for one.
    bytes.extend(block("smuggled", b'0', b"00000000000\0", header::USTAR_MAGIC));
    bytes.extend(padded(&[1; 88]));
    bytes.extend(block("next", b'0', b"00000000000\0", header::USTAR_MAGIC));
    bytes.extend(END);
    let entries = read_all(&bytes).unwrap();
    let names: Vec<_> = entries.iter().map(|(header, data)| (header.path.as_slice(), data.len())).collect();
    assert_eq!(names, [(&b"abc"[..], 600), (b"next", 0)]);
}

#[test]
fn only_files_have_data() {
    let mut bytes = Vec::new();
    for kind in [b'1', b'2', b'3', b'5', b'6'] {
        bytes.extend(block("odd", kind, b"00000001000\0", header::USTAR_MAGIC));
    }
    bytes.extend(END);
    let entries = read_all(&bytes).unwrap();
    assert!(entries.len() == 5 && entries.iter().all(|(header, data)| header.size == 0 && data.is_empty()));
}

#[test]
fn hostile_headers_are_refused() {
    let malformed = |bytes: &[u8]| matches!(read_all(bytes), Err(TarError::Malformed { .. }));
    let mut entry = block("a", b'0', b"00000000000\0", header::USTAR_MAGIC);
    entry[0] = b'b';
    assert!(malformed(&entry));
    let one_zero_block = [&[0; BLOCK][..], &block("a", b'0', b"0", header::USTAR_MAGIC)].concat();
    assert!(malformed(&one_zero_block));
    for size in
        [&b"-0000000001\0"[..], b"9999\0", &[0xff; 12], &[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0], b"77777777777z"]
    {
        assert!(malformed(&block("a", b'0', size, header::USTAR_MAGIC)), "{}", size.escape_ascii());
    }
    for record in [
        "12 path=a\0b\n",
        "5 =v\n",
        "99999999999 k=v\n",
        "7 k=v",
        "k=v\n",
        "-6 k=v\n",
        "13 size=-600\n",
        "8 uid=x\n",
        "13 mtime=1.x\n",
        "14 mtime=+1.5\n",
    ] {
        let size = format!("{:011o}\0", record.len());
        let mut bytes = block("x", b'x', size.as_bytes(), header::USTAR_MAGIC).to_vec();
        bytes.extend(padded(record.as_bytes()));
        bytes.extend(block("a", b'0', b"0", header::USTAR_MAGIC));
        assert!(malformed(&bytes), "{record:?}");
    }
    let dangling = [&block("x", b'x', b"0", header::USTAR_MAGIC)[..], &END].concat();
    assert!(malformed(&dangling));
}

#[test]
fn sparse_and_unknown_types_are_refused_by_name() {
    let message = |bytes: &[u8]| read_all(bytes).unwrap_err().to_string();
    assert_eq!(message(&block("s", b'S', b"0", header::GNU_MAGIC)), "unsupported tar entry \"s\": GNU sparse file");
    assert_eq!(message(&block("v", b'V', b"0", header::GNU_MAGIC)), "unsupported tar entry \"v\": type 'V'");
    let mut bytes = block("x", b'x', b"00000000026\0", header::USTAR_MAGIC).to_vec();
    bytes.extend(padded(b"22 GNU.sparse.major=1\n"));
    bytes.extend(block("p", b'0', b"0", header::USTAR_MAGIC));
    assert_eq!(message(&bytes), "unsupported tar entry \"p\": GNU sparse file");
}

#[test]
fn limits_hold() {
    let limited = |bytes: &[u8], limits| {
        let mut reader = Reader::with_limits(bytes, limits);
        loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => return matches!(error, TarError::Limit { .. }),
            }
        }
    };
    let huge = block("x", b'x', b"77777777777\0", header::USTAR_MAGIC);
    assert!(limited(&huge, Limits::default()));
    let endless = block("L", b'L', b"0", header::GNU_MAGIC).repeat(3000);
    assert!(limited(&endless, Limits::default()));
    let three = [&block("a", b'0', b"0", header::USTAR_MAGIC).repeat(3)[..], &END].concat();
    assert!(limited(&three, Limits { entries: 2, ..Limits::default() }));
    assert!(!limited(&three, Limits { entries: 3, ..Limits::default() }));
}
