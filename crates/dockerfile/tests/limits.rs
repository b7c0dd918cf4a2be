//! Files that would make much of little are refused, soon and by name.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use async_trait::async_trait;
use castor_dockerfile::{
    IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, Options, Request, ResolvedImage, TimeLookup,
    convert,
};
use castor_llb::CapSet;
use castor_oci::Platform;

struct Nothing;

#[async_trait]
impl MetaResolver for Nothing {
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError> {
        Err(format!("{}: not found", image.reference).into())
    }

    async fn source_time(&self, _: &TimeLookup) -> Result<Option<i64>, LookupError> {
        Ok(None)
    }

    async fn ignore_file(&self, _: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError> {
        Ok(None)
    }
}

fn build(dockerfile: &[u8]) -> Result<(), String> {
    let options = Options::from_attrs(&BTreeMap::new(), "s", BTreeMap::new()).unwrap();
    let request = Request {
        dockerfile,
        options: &options,
        dockerfile_definition: None,
        build_platform: Platform::new("linux", "amd64", ""),
        target_platform: None,
        caps: CapSet::supported(),
        lint: true,
    };
    futures::executor::block_on(convert(&request, &Nothing)).map(drop).map_err(|error| error.to_string())
}

#[test]
fn small_files_cannot_make_large_things() {
    let doubling: String = (1..40).map(|n| format!("ENV V{n}=$V{p}$V{p}\n", p = n - 1)).collect();
    let many = |n: usize, text: &str| text.repeat(n);
    let variables: String = (0..20_000).map(|n| format!(" v{n}=1 \\\n")).collect();
    let undefined: String = (0..100_000).map(|n| format!(" l{n}=$u{n} \\\n")).collect();
    for (text, want) in [
        (format!("FROM scratch\nENV V0=0123456789abcdef\n{doubling}"), "limit of 1048576 bytes"),
        (format!("FROM scratch\n{}", many(20_000, "RUN x\n")), "limit of 10000 instructions"),
        (format!("FROM scratch\n{}", many(9_000, "EXPOSE 0-65535\n")), "bytes of history"),
        (format!("FROM scratch\nEXPOSE {}", many(10_000, "0-65535 \\\n ")), "limit of 196608 ports"),
        (format!("FROM scratch\nENV{}\n", variables), "limit of 10000 variables"),
        (format!("FROM scratch\nRUN {} x\n", many(20_000, "--mount=target=/x \\\n ")), "limit of 10000 stages"),
        (
            format!(
                "FROM scratch\nCOPY {} \\\n {} /\n",
                many(5_000, "--exclude=abcdefgh \\\n "),
                many(10_000, "a \\\n ")
            ),
            "one copy",
        ),
        (format!("FROM scratch\nLABEL{}\n", undefined), ""),
    ] {
        match build(text.as_bytes()) {
            Err(error) => assert!(!want.is_empty() && error.contains(want), "{error:.300}, want {want}"),
            Ok(()) => assert!(want.is_empty(), "no error, want {want}"),
        }
    }
}

#[test]
fn no_bytes_make_the_frontend_panic() {
    // A small generator is enough here: what matters is that nothing is taken for granted.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    println!("seed {seed}");
    let mut next = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % n as u64).unwrap()
    };
    let parts: [&[u8]; 24] = [
        b"FROM scratch\n",
        b"RUN ",
        b"COPY ",
        b"ADD ",
        b"ENV ",
        b"ONBUILD ",
        b"EXPOSE ",
        b"--mount=",
        b"--from=a",
        b"${A",
        b"}",
        b"\"",
        b"'",
        b"\\",
        b"\n",
        b"<<E",
        b"[\"a\"",
        b"]",
        b"\xff\xfe",
        b"\xc3",
        b"\xe2\x80\xa8",
        b"=",
        b" ",
        b"# escape=`\n",
    ];
    for _ in 0..20_000 {
        let mut text = b"FROM scratch AS a\n".to_vec();
        for _ in 0..next(12) {
            text.extend_from_slice(parts[next(parts.len())]);
        }
        drop(build(&text));
    }
}
