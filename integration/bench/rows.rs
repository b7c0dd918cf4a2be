//! The rows: each a workload, its goal, and how it is measured.

use anyhow::{Context, Result};
use castor_integration::hello;
use castor_testkit::Relay;

use crate::report::{Goal, Sample, Who};
use crate::world::{GZIP, ONE, THREE, World};

/// A workload.
pub struct Row {
    pub name: &'static str,
    pub goal: Goal,
    /// One run: a sample, or a few, of each who takes part.
    pub measure: fn(&mut World) -> Result<Vec<Sample>>,
}

/// What daemons do in all rows but the one with many layers.
pub const USUAL: &str = "the rows on the Go base";
const MANY: &str = "the image of 40 layers";

pub const ALL: &[Row] = &[
    Row { name: "`RUN true`, cold, far, whole build", goal: Goal::Seconds(0.40), measure: nothing_far },
    Row { name: "hello, cold, far, whole build", goal: Goal::OverFloor(1.0), measure: hello_far },
    Row { name: "hello on three layers, cold, far, whole build", goal: Goal::OverFloor(1.0), measure: hello_three },
    Row { name: "hello on the hot base, the step", goal: Goal::TimesFloor(1.0), measure: hello_hot },
    Row {
        name: "`find -size +0` in the tool chain, first time, the step",
        goal: Goal::TimesFloor(1.3),
        measure: find_first,
    },
    Row {
        name: "read every file, cold, near, whole build",
        goal: Goal::TimesEager(1.0, Some(4.0)),
        measure: read_near,
    },
    Row { name: "read every file, cold, far, whole build", goal: Goal::TimesEager(1.05, None), measure: read_far },
    Row { name: "read every file again, warm, the step", goal: Goal::TimesFloor(1.1), measure: read_warm },
    Row { name: "eager pull of gzip, near, `RUN true`", goal: Goal::EagerSeconds(3.0), measure: pull_gzip },
    Row { name: "`RUN true` on 40 layers of 10,000 files, near", goal: Goal::Seconds(2.0), measure: many_layers },
];

pub const READ_ALL: &str = "find / -xdev -type f -exec cat {} + | wc -c";
const FIND: &str = "find /usr/local/go -type f -size +0 | wc -l";
const COMPILE: &str = "go build -o /out/hello /src/main.go";
/// Pairs in each run of a row that compares with the floor.
const PAIRS: usize = 3;

fn nothing_far(world: &mut World) -> Result<Vec<Sample>> {
    cold_far(world, ONE, "RUN true")
}

fn read_far(world: &mut World) -> Result<Vec<Sample>> {
    cold_far(world, ONE, &format!("RUN {READ_ALL}"))
}

fn hello_far(world: &mut World) -> Result<Vec<Sample>> {
    hello_on(world, ONE)
}

fn hello_three(world: &mut World) -> Result<Vec<Sample>> {
    hello_on(world, THREE)
}

/// The hello build on `image` by everybody, and on a daemon of ours that has all of it.
fn hello_on(world: &mut World, image: &str) -> Result<Vec<Sample>> {
    let steps = format!("COPY main.go /src/\nRUN {COMPILE}");
    let mut samples = cold_far(world, image, &steps)?;
    let host = world.near();
    let running = world.fresh(Who::Floor, &host)?;
    world.build(&running, &format!("FROM {host}/{image}\nRUN {READ_ALL}\n"))?.run()?.success()?;
    let again = world.build(&running, &format!("FROM {host}/{image}\n{steps}\n"))?.arg("--no-cache");
    samples.push(world.timed(Who::Floor, &again, None)?);
    world.end(running, USUAL)?;
    Ok(samples)
}

/// `steps` on the far `image`, by fresh daemons.
fn cold_far(world: &mut World, image: &str, steps: &str) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for who in world.builders() {
        let relay = world.far();
        let host = relay.host();
        samples.push(cold(world, who, &host, image, steps, Some(&relay))?);
    }
    Ok(samples)
}

fn cold(world: &mut World, who: Who, host: &str, image: &str, steps: &str, relay: Option<&Relay>) -> Result<Sample> {
    let running = world.fresh(who, host)?;
    let build = world.build(&running, &format!("FROM {host}/{image}\n{steps}\n"))?;
    let sample = world.timed(who, &build, relay)?;
    world.end(running, USUAL)?;
    Ok(sample)
}

fn read_near(world: &mut World) -> Result<Vec<Sample>> {
    let host = world.near();
    let builders = world.builders();
    builders.into_iter().map(|who| cold(world, who, &host, ONE, &format!("RUN {READ_ALL}"), None)).collect()
}

fn pull_gzip(world: &mut World) -> Result<Vec<Sample>> {
    let host = world.near();
    let builders = world.builders().into_iter().filter(|who| matches!(who, Who::Eager | Who::RealEager));
    builders.collect::<Vec<_>>().into_iter().map(|who| cold(world, who, &host, GZIP, "RUN true", None)).collect()
}

fn many_layers(world: &mut World) -> Result<Vec<Sample>> {
    let (host, image) = world.many();
    let running = world.fresh(Who::Lazy, &host)?;
    let sample = world.timed(Who::Lazy, &world.build(&running, &format!("FROM {image}\nRUN true\n"))?, None)?;
    world.end(running, MANY)?;
    Ok(vec![sample])
}

fn hello_hot(world: &mut World) -> Result<Vec<Sample>> {
    let lines: Vec<String> = hello::PROGRAM.lines().map(|line| format!("echo '{line}'")).collect();
    let script = format!("mkdir -p /src; {{ {}; }} > /src/main.go; {}", lines.join("; "), clocked(COMPILE));
    in_pairs(world, &script)
}

fn read_warm(world: &mut World) -> Result<Vec<Sample>> {
    in_pairs(world, &clocked(READ_ALL))
}

/// `script` on the hot daemon and on the floor, in turn.
fn in_pairs(world: &mut World, script: &str) -> Result<Vec<Sample>> {
    // Once before: both are to be hot.
    world.on_hot(script)?;
    world.floor.run(script, hello::VARIABLES)?;
    let mut samples = Vec::new();
    for _ in 0..PAIRS {
        let printed = world.on_hot(script)?;
        samples.push(Sample { who: Who::Lazy, seconds: clock(&printed)?, traffic: None });
        let printed = world.floor.run(script, hello::VARIABLES)?;
        samples.push(Sample { who: Who::Floor, seconds: clock(&printed)?, traffic: None });
    }
    Ok(samples)
}

fn find_first(world: &mut World) -> Result<Vec<Sample>> {
    let host = world.near();
    let script = clocked(FIND);
    world.floor.run(&script, hello::VARIABLES)?;
    let printed = world.floor.run(&script, hello::VARIABLES)?;
    let mut samples = vec![Sample { who: Who::Floor, seconds: clock(&printed)?, traffic: None }];
    for who in world.builders() {
        let running = world.fresh(who, &host)?;
        let built = world.build(&running, &format!("FROM {host}/{ONE}\nRUN {script}\n"))?.run()?.success()?;
        samples.push(Sample { who, seconds: clock(&built.stderr)?, traffic: None });
        world.end(running, USUAL)?;
    }
    Ok(samples)
}

/// A script that tells how long `command` took.
fn clocked(command: &str) -> String {
    format!("begun=$(date +%s%N); {command}; echo took $(($(date +%s%N) - begun)) ns")
}

/// What such a script told.
fn clock(printed: &str) -> Result<f64> {
    let told = printed.lines().find_map(|line| line.split_once("took ")?.1.strip_suffix(" ns")?.parse::<f64>().ok());
    Ok(told.with_context(|| format!("no time in:\n{printed}"))? / 1e9)
}
