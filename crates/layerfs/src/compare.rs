//! Whether a layer's TOC says what its tar stream holds.
//!
//! Steps see files as the TOC tells of them, while a diff ID is the digest of the tar stream. Once the diff ID is proved,
//! what was built on the layer is found by others under it: a TOC that told of other files would pass them off as those of
//! an honest layer with the same stream. Everything a step can see is compared, except for times, of which a TOC has whole
//! seconds, and which names share an inode.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use castor_archive::Listing;
use castor_archive::listing::{self, NameId};
use castor_oci::{Digest, Hasher};

use crate::tree::{Inode, Kind, Tree};

/// The first thing in which `tree`, made of a TOC, and `listing`, made of the tar stream, differ. `contents` are the
/// digests of the tar's files by tag, and `data` is the layer's. Blocks.
pub(crate) fn difference(
    tree: &Tree,
    data: &File,
    listing: &Listing,
    contents: &[Digest],
) -> io::Result<Option<String>> {
    if tree.names() as usize != listing.len() {
        return Ok(Some(format!("{} entries, the tar has {}", tree.names(), listing.len())));
    }
    let in_tar: HashMap<(NameId, Cow<'_, [u8]>), NameId> =
        listing.names().skip(1).map(|name| ((listing.parent(name), as_toc_text(listing.name(name))), name)).collect();
    // The tar's name for each of the tree's. A directory comes before what it contains.
    let mut same: Vec<NameId> = Vec::with_capacity(tree.names() as usize);
    for number in 0..tree.names() {
        let name = tree.name(number);
        let found = match same.get(name.parent as usize) {
            None => listing.names().next(),
            Some(&parent) => in_tar.get(&(parent, Cow::Borrowed(name.bytes))).copied(),
        };
        let Some(found) = found else { return Ok(Some(format!("{} is not in the tar", path(tree, number)))) };
        same.push(found);
        let (toc, tar) = (tree.inode(name.inode), listing.inode_of(found));
        // Tools differ in whether they tell of the root.
        if number != 0 && toc.implied != listing.inode(tar).implied {
            return Ok(Some(format!("the one names {}, the other does not", path(tree, number))));
        }
        if let Some(what) = of_inodes(tree, &toc, listing, tar) {
            return Ok(Some(format!("{what} of {}", path(tree, number))));
        }
        if toc.kind == Kind::File {
            let expected = contents.get(listing.inode(tar).tag as usize);
            if expected != Some(&content(tree, data, &toc)?) {
                return Ok(Some(format!("content of {}", path(tree, number))));
            }
        }
    }
    Ok(None)
}

/// What is different about an inode, its content aside.
fn of_inodes(tree: &Tree, toc: &Inode, listing: &Listing, id: listing::InodeId) -> Option<&'static str> {
    let tar = listing.inode(id);
    let kind = match tar.kind {
        listing::Kind::File => Kind::File,
        listing::Kind::Directory => Kind::Directory,
        listing::Kind::Symlink => Kind::Symlink,
        listing::Kind::CharDevice => Kind::CharDevice,
        listing::Kind::BlockDevice => Kind::BlockDevice,
        listing::Kind::Fifo => Kind::Fifo,
    };
    let same_value = match toc.kind {
        Kind::File => toc.value == tar.size,
        Kind::CharDevice | Kind::BlockDevice => toc.value == u64::from(tar.rdev.0) << 32 | u64::from(tar.rdev.1),
        Kind::Symlink => tree.target(toc) == as_toc_text(listing.target(id)).as_ref(),
        Kind::Directory | Kind::Fifo => true,
    };
    if toc.kind != kind {
        Some("type")
    } else if (toc.mode, toc.uid, toc.gid) != (tar.mode, tar.uid, tar.gid) {
        Some("mode or owner")
    } else if !same_value {
        Some("size, target or device")
    } else if !tree.xattrs(toc.xattrs).into_iter().eq(listing.xattrs(id)) {
        Some("extended attributes")
    } else {
        None
    }
}

/// The digest of a file's content: what the chunk says, which was checked when it came, or of the data if there are more
/// or nothing was checked.
fn content(tree: &Tree, data: &File, inode: &Inode) -> io::Result<Digest> {
    let (first, count) = inode.chunks;
    if count == 1
        && let chunk = tree.chunk(first)
        && chunk.size == inode.value
        && let Some(digest) = chunk.digest
    {
        return Ok(digest);
    }
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut at, end) = (inode.place, inode.place + inode.value);
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        data.read_exact_at(&mut buffer[..length], at)?;
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(hasher.finish())
}

/// A name as a TOC has it: text, with a replacement character for each byte that is none.
fn as_toc_text(name: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(name).is_ok() {
        return Cow::Borrowed(name);
    }
    let mut text = Vec::new();
    for chunk in name.utf8_chunks() {
        text.extend_from_slice(chunk.valid().as_bytes());
        chunk.invalid().iter().for_each(|_| text.extend_from_slice("\u{fffd}".as_bytes()));
    }
    Cow::Owned(text)
}

/// For messages.
fn path(tree: &Tree, mut number: u32) -> String {
    let mut parts = Vec::new();
    while number != 0 {
        let name = tree.name(number);
        parts.push(name.bytes.escape_ascii().to_string());
        if name.parent >= number {
            break;
        }
        number = name.parent;
    }
    parts.reverse();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufWriter, Write as _};

    use castor_archive::listing::Rules;
    use castor_archive::tar::{self, Header, Writer};

    use super::*;
    use crate::unpack::{Unpacked, unpack};

    /// The entries of a layer: name, type, content or target.
    type Entries<'a> = [(&'a [u8], tar::Kind, &'a [u8])];

    fn blob(entries: &Entries<'_>, more: impl Fn(&mut Header)) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (name, kind, content) in entries {
            let is_file = *kind == tar::Kind::File;
            let (size, link) = if is_file { (content.len() as u64, &b""[..]) } else { (0, *content) };
            let mut header = Header {
                path: name.to_vec(),
                kind: *kind,
                mode: 0o644,
                size,
                link: link.to_vec(),
                ..Header::default()
            };
            more(&mut header);
            writer.append(&header, &mut if is_file { *content } else { b"" }).unwrap();
        }
        let options = castor_estargz::Options { chunk_size: 1000, ..castor_estargz::Options::default() };
        let mut blob = Vec::new();
        castor_estargz::Builder::new(options).build(writer.finish().unwrap().as_slice(), &mut blob).unwrap();
        blob
    }

    /// What the table of contents of `blob` says, with all data.
    fn toc(blob: &Vec<u8>) -> (Tree, File, tempfile::TempDir) {
        let opened = castor_estargz::open(blob, &crate::fetch::tests::annotations(blob), None).unwrap();
        let plan = crate::tree::from_toc(&opened.toc, blob.len() as u64, opened.footer.unwrap().payload_end).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut out = BufWriter::new(File::create_new(dir.path().join("tree")).unwrap());
        plan.write(&mut out).unwrap();
        out.flush().unwrap();
        let data = File::options().read(true).write(true).create_new(true).open(dir.path().join("data")).unwrap();
        unpack(blob.as_slice(), Some(&data), Rules::TAR_WITH_TOC).unwrap();
        (Tree::open(&dir.path().join("tree")).unwrap(), data, dir)
    }

    fn stream(blob: &[u8]) -> Unpacked {
        unpack(blob, None, Rules::TAR_WITH_TOC).unwrap()
    }

    #[test]
    fn a_toc_that_tells_of_other_files_than_the_tar_is_found_out() {
        let big = [7; 2500];
        let mut other = big;
        other[2400] = 8;
        let (file, link) = (tar::Kind::File, tar::Kind::Symlink);
        let honest: &Entries<'_> =
            &[(b"big", file, &big), (b"dir/small", file, b"small"), (b"link", link, b"dir"), (b"n\xff", file, b"")];
        let (tree, data, _dir) = toc(&blob(honest, |_| {}));
        let against = |blob: &[u8]| {
            let tar = stream(blob);
            difference(&tree, &data, &tar.listing, &tar.contents).unwrap()
        };
        assert_eq!(against(&blob(honest, |_| {})), None);
        let change = |place: usize, entry| {
            let mut entries = honest.to_vec();
            entries[place] = entry;
            against(&blob(&entries, |_| {})).unwrap()
        };
        assert_eq!(change(0, (b"big", file, &other)), "content of /big");
        assert_eq!(change(1, (b"dir/small", file, b"smell")), "content of /dir/small");
        assert_eq!(change(1, (b"dir/other", file, b"small")), "/dir/small is not in the tar");
        assert_eq!(change(2, (b"link", link, b"big")), "size, target or device of /link");
        assert_eq!(change(2, (b"link", file, b"")), "type of /link");
        assert!(change(3, (b"m\xff", file, b"")).contains("is not in the tar"));
        let capable = blob(honest, |header| header.push_xattr(b"user.x", b"1"));
        assert_eq!(against(&capable).unwrap(), "extended attributes of /big");
        let owned = blob(honest, |header| header.uid = 1);
        assert_eq!(against(&owned).unwrap(), "mode or owner of /big");
    }

    #[test]
    fn names_that_are_no_text_are_replaced_byte_by_byte() {
        assert_eq!(as_toc_text(b"plain"), Cow::Borrowed(b"plain"));
        assert_eq!(as_toc_text(b"a\xff\xfeb\xe2\x82").as_ref(), "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}".as_bytes());
    }
}
