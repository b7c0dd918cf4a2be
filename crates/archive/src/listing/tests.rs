use super::*;

fn claim<'a>(path: &'a str, kind: ClaimKind<'a>, tag: u32) -> Claim<'a> {
    let mtime = Timestamp::from_seconds(i64::from(tag));
    Claim { path: path.as_bytes(), kind, mode: 0o100_640, uid: 1, gid: 2, mtime, xattrs: &[], tag }
}

fn build(rules: Rules, claims: &[(&str, ClaimKind<'_>)]) -> Result<Listing, ListingError> {
    let mut builder = Builder::new(rules);
    for (tag, (path, kind)) in claims.iter().enumerate() {
        builder.push(&claim(path, *kind, tag as u32 + 1))?;
    }
    builder.finish()
}

/// Path and tag of all names; directories end in a slash, implied ones have no tag.
fn shown(listing: &Listing) -> Vec<String> {
    let mut all: Vec<_> = listing
        .names()
        .map(|name| {
            let inode = listing.inode(listing.inode_of(name));
            let slash = if inode.kind == Kind::Directory { "/" } else { "" };
            let tag = if inode.implied { String::new() } else { inode.tag.to_string() };
            assert!(name.0 == 0 || listing.parent(name) < name);
            format!("{}{slash} {tag}", String::from_utf8_lossy(&listing.path(name)))
        })
        .collect();
    all.sort();
    all
}

const FILE: ClaimKind<'static> = ClaimKind::File(1);
const DIR: ClaimKind<'static> = ClaimKind::Directory;

#[test]
fn names_are_cleaned_and_parents_implied() {
    let listing = build(Rules::TOC, &[("./a//b/./c", FILE), ("/a/", DIR), ("", DIR), ("d/", DIR)]).unwrap();
    assert_eq!(shown(&listing), ["/ 3", "a/ 2", "a/b/ ", "a/b/c 1", "d/ 4"]);
    let root = listing.inode(InodeId(0));
    assert_eq!((root.mode, root.uid, root.mtime.seconds), (0o640, 1, 3));
}

#[test]
fn the_last_of_a_name_wins() {
    let claims =
        [("a", FILE), ("d", DIR), ("d/x", FILE), ("a", FILE), ("d", FILE), ("d", DIR), ("d/y", FILE), ("d", DIR)];
    let listing = build(Rules::TAR, &claims).unwrap();
    assert_eq!(shown(&listing), ["/ ", "a 4", "d/ 8", "d/y 7"]);
    assert_eq!(listing.inodes().len(), 4);
}

#[test]
fn links_lead_where_the_rules_say() {
    let claims = [("a", FILE), ("l", ClaimKind::Hardlink(b"./a")), ("a", FILE), ("m", ClaimKind::Hardlink(b"l"))];
    assert_eq!(shown(&build(Rules::TAR, &claims).unwrap()), ["/ ", "a 3", "l 1", "m 1"]);
    assert_eq!(shown(&build(Rules::TOC, &claims).unwrap()), ["/ ", "a 3", "l 3", "m 3"]);
    let early = [("l", ClaimKind::Hardlink(b"m")), ("m", ClaimKind::Hardlink(b"a")), ("a", FILE)];
    for rules in [Rules::TAR, Rules::TOC] {
        let listing = build(rules, &early).unwrap();
        assert_eq!(shown(&listing), ["/ ", "a 3", "l 3", "m 3"]);
        assert_eq!(listing.inodes().len(), 2);
    }
}

#[test]
fn links_to_nothing_are_refused() {
    for rules in [Rules::TAR, Rules::TOC] {
        for claims in [
            &[("l", ClaimKind::Hardlink(b"none"))][..],
            &[("l", ClaimKind::Hardlink(b"l"))],
            &[("l", ClaimKind::Hardlink(b"m")), ("m", ClaimKind::Hardlink(b"l"))],
            &[("d", DIR), ("l", ClaimKind::Hardlink(b"d"))],
            &[("l", ClaimKind::Hardlink(b"d")), ("d", DIR)],
            &[("l", ClaimKind::Hardlink(b""))],
        ] {
            assert!(matches!(build(rules, claims), Err(ListingError::Hardlink { .. })), "{claims:?}");
        }
    }
}

#[test]
fn a_long_chain_of_links_ends() {
    let names: Vec<String> = (0..5000).map(|number| format!("l{number}")).collect();
    let mut builder = Builder::new(Rules::TOC);
    for pair in names.windows(2) {
        builder.push(&claim(&pair[0], ClaimKind::Hardlink(pair[1].as_bytes()), 0)).unwrap();
    }
    builder.push(&claim("l4999", FILE, 9)).unwrap();
    let listing = builder.finish().unwrap();
    assert_eq!((listing.len(), listing.inodes().len()), (5001, 2));
}

#[test]
fn tars_may_go_through_symlinks_and_tocs_may_not() {
    let claims = [
        ("lib", ClaimKind::Symlink(b"usr/lib")),
        ("lib/a", FILE),
        ("up", ClaimKind::Symlink(b"/usr/../../etc")),
        ("up/b", FILE),
        ("../../c", FILE),
        ("l", ClaimKind::Hardlink(b"lib/a")),
    ];
    let listing = build(Rules::TAR, &claims).unwrap();
    assert_eq!(
        shown(&listing),
        ["/ ", "c 5", "etc/ ", "etc/b 4", "l 2", "lib 1", "up 3", "usr/ ", "usr/lib/ ", "usr/lib/a 2"]
    );
    assert!(matches!(build(Rules::TOC, &claims[..2]), Err(ListingError::NotADirectory(_))));
    assert!(matches!(build(Rules::TOC, &claims[4..5]), Err(ListingError::Name { .. })));
    let looping = [("a", ClaimKind::Symlink(b"b")), ("b", ClaimKind::Symlink(b"a")), ("a/c", FILE)];
    assert!(matches!(build(Rules::TAR, &looping), Err(ListingError::NotADirectory(_))));
    assert!(matches!(build(Rules::TAR, &[("a", FILE), ("a/b", FILE)]), Err(ListingError::NotADirectory(_))));
}

#[test]
fn what_no_file_system_holds_is_refused() {
    let long = "x".repeat(256);
    let deep = "y/".repeat(2049);
    for path in ["a\0b", &long, &deep, ".wh.", "d/.wh..", "d/.wh..."] {
        assert!(matches!(build(Rules::TAR, &[(path, FILE)]), Err(ListingError::Name { .. })));
    }
    for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        let claims = [("s", ClaimKind::Symlink(target))];
        assert!(matches!(build(Rules::TAR, &claims), Err(ListingError::Target(_))));
    }
    assert!(matches!(build(Rules::TAR, &[("/", FILE)]), Err(ListingError::Root)));
    for kind in [ClaimKind::File(u64::MAX), ClaimKind::CharDevice(4096, 0), ClaimKind::BlockDevice(0, 1 << 20)] {
        assert!(matches!(build(Rules::TAR, &[("v", kind)]), Err(ListingError::Value { .. })));
    }
    let few = Rules { max_names: 3, ..Rules::TAR };
    assert!(build(few, &[("a/b", FILE)]).is_ok());
    assert_eq!(build(few, &[("a/b/c", FILE)]).unwrap_err(), ListingError::Limit(3));
}

#[test]
fn what_a_layer_may_not_show_is_hidden() {
    let claims = [("stargz.index.json", FILE), ("./.prefetch.landmark", FILE), ("d/.no.prefetch.landmark", FILE)];
    assert_eq!(shown(&build(Rules::TOC, &claims).unwrap()), ["/ ", "d/ ", "d/.no.prefetch.landmark 3"]);
    assert_eq!(build(Rules::TAR, &claims).unwrap().len(), 5);
    let mut builder = Builder::new(Rules::TAR);
    let xattrs: [(&[u8], &[u8]); 5] = [
        (b"trusted.overlay.opaque", b"y"),
        (b"user.overlay.redirect", b"/"),
        (b"com.example.x", b""),
        (b"user.", b""),
        (b"user.kept", b"v"),
    ];
    let inode = builder.push(&Claim { xattrs: &xattrs, ..claim("f", FILE, 1) }).unwrap().unwrap();
    let listing = builder.finish().unwrap();
    assert_eq!(listing.xattrs(inode).collect::<Vec<_>>(), [(&b"user.kept"[..], &b"v"[..])]);
}
