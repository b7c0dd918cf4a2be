//! `SOURCE_DATE_EPOCH` as the name of something that has a time.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use castor_dockerfile::{
    IgnoreFile, IgnoreLookup, ImageLookup, LookupError, MetaResolver, Options, Request, ResolvedImage, Target,
    TimeLookup, convert,
};
use castor_llb::CapSet;
use castor_oci::Platform;

/// Knows times by identifier, and notes which vertices asked.
#[derive(Default)]
struct Clock {
    times: BTreeMap<&'static str, i64>,
    asked: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl MetaResolver for Clock {
    async fn image_config(&self, image: &ImageLookup) -> Result<ResolvedImage, LookupError> {
        Err(format!("{}: not found", image.reference).into())
    }

    async fn source_time(&self, source: &TimeLookup) -> Result<Option<i64>, LookupError> {
        let identifier = source.source.identifier.clone();
        let time = self.times.get(identifier.as_str()).copied();
        self.asked.lock().unwrap().push((identifier, source.log_name.clone()));
        Ok(time)
    }

    async fn ignore_file(&self, _: &IgnoreLookup) -> Result<Option<IgnoreFile>, LookupError> {
        Ok(None)
    }
}

fn build(clock: &Clock, dockerfile: &str, attrs: &[(&str, &str)]) -> Result<Target, String> {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let options = Options::from_attrs(&attrs, "s", BTreeMap::new()).unwrap();
    let request = Request {
        dockerfile: dockerfile.as_bytes(),
        options: &options,
        dockerfile_definition: None,
        build_platform: Platform::new("linux", "amd64", ""),
        target_platform: None,
        caps: CapSet::supported(),
        lint: true,
    };
    futures::executor::block_on(convert(&request, clock)).map_err(|error| error.to_string())
}

const STAGE: &str = "ARG SOURCE_DATE_EPOCH=mysource\nFROM scratch AS mysource\nARG FILE=a.tar\n\
                     ADD https://example.com/${FILE} /\nFROM scratch\nCOPY a /\n";

#[test]
fn a_stage_that_adds_one_thing_has_its_time() {
    let clock = Clock { times: [("https://example.com/b.tar", 1_700_000_000)].into(), ..Clock::default() };
    let target = build(&clock, STAGE, &[("build-arg:FILE", "b.tar")]).unwrap();
    assert_eq!(target.epoch, Some(1_700_000_000));
    assert_eq!(target.config.history[0].created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let asked = clock.asked.lock().unwrap();
    let log_name = "[internal] resolve SOURCE_DATE_EPOCH source stage mysource";
    assert_eq!(*asked, [("https://example.com/b.tar".to_owned(), log_name.to_owned())]);
    // Nothing is known of the file: then there is no time, and no such argument.
    let target = build(&Clock::default(), STAGE, &[]).unwrap();
    assert_eq!((target.epoch, &target.config.history[0].created), (None, &None));
}

#[test]
fn a_stage_that_does_more_has_none() {
    let build = |stage: &str| {
        let text = format!("FROM {stage}\nFROM scratch\nCOPY a /\n");
        build(&Clock::default(), &text, &[("build-arg:SOURCE_DATE_EPOCH", "s")]).unwrap_err()
    };
    for (stage, error) in [
        ("base AS s\nADD https://example.com/a /", "must use FROM scratch"),
        ("scratch AS S", "must contain exactly one remote ADD"),
        ("scratch AS S\nADD https://a.com/a /\nADD https://a.com/a /", "must contain exactly one remote ADD"),
        ("scratch AS S\nADD https://a.com/a https://a.com/b /", "must contain exactly one remote ADD source"),
        ("scratch AS S\nADD a /", "source must be a single HTTP(S) or Git ADD"),
        ("scratch AS S\nCOPY a /", "does not meet source-only requirements: unsupported copy instruction"),
        ("scratch AS S\nENV a=b", "does not meet source-only requirements: unsupported env instruction"),
    ] {
        assert_eq!(build(stage), format!("SOURCE_DATE_EPOCH stage {error}"));
    }
    assert_eq!(build("scratch AS other"), "invalid SOURCE_DATE_EPOCH: s");
}

#[test]
fn contexts_have_the_time_of_what_they_are_made_of() {
    let clock = Clock {
        times: [("git://example.com/a.git", 5), ("git://example.com/b.git", 6), ("http://example.com/c", 7)].into(),
        ..Clock::default()
    };
    let epoch = |attrs: &[(&str, &str)]| build(&clock, "FROM scratch\nCOPY a /\n", attrs).map(|target| target.epoch);
    let (context, x) = (("build-arg:SOURCE_DATE_EPOCH", "context"), ("build-arg:SOURCE_DATE_EPOCH", "x"));
    assert_eq!(epoch(&[context, ("context", "https://example.com/a.git")]), Ok(Some(5)));
    assert_eq!(epoch(&[x, ("context:x", "https://example.com/b.git")]), Ok(Some(6)));
    assert_eq!(epoch(&[x, ("context:x", "http://example.com/c")]), Ok(Some(7)));
    // Directories and images have none.
    assert_eq!(epoch(&[context]), Ok(None));
    assert_eq!(epoch(&[x, ("context:x", "local:x")]), Ok(None));
    assert_eq!(epoch(&[x, ("context:x", "docker-image://x")]), Ok(None));
    assert_eq!(epoch(&[x, ("context:x", "input:x")]), Err("invalid input x for x".to_owned()));
    let asked: Vec<String> = clock.asked.lock().unwrap().iter().map(|(_, name)| name.clone()).collect();
    let named = "[internal] resolve SOURCE_DATE_EPOCH named context x";
    assert_eq!(asked, ["[internal] resolve main build context metadata", named, named]);
}
