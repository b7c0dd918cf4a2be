//! Some inputs of each target, the same ones each time; `make fuzz` runs more.
#![allow(missing_docs)]

use castor_fuzz::{Session, all, by_name};

const SEED: u64 = 20_260_101;

fn short(name: &str, inputs: usize) {
    let Some(target) = by_name(name) else { panic!("no target {name}") };
    // What is printed last is what failed: panics in tests show what was printed.
    let mut last = Vec::new();
    let mut session = Session::new(target, SEED, &mut |input| last = input.to_vec());
    let known = session.outcomes();
    for number in 0..inputs {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            session.step(&mut |input| last = input.to_vec());
        }));
        if let Err(panic) = result {
            let path = std::env::temp_dir().join(format!("castor-fuzz-{name}"));
            let _ = std::fs::write(&path, &last);
            println!("{name}: input {number} of seed {SEED} fails; it is in {}", path.display());
            std::panic::resume_unwind(panic);
        }
    }
    assert!(session.outcomes() > known, "{name}: changed inputs show nothing that the corpus does not");
}

#[test]
fn tables_of_contents() {
    short("toc", 600);
}

#[test]
fn footers() {
    short("footer", 3000);
}

#[test]
fn chunk_tables() {
    short("chunks", 300);
}

#[test]
fn erofs_images() {
    short("erofs", 600);
}

#[test]
fn tars() {
    short("tar", 500);
}

#[test]
fn a_run_is_the_same_again() {
    for target in all() {
        let run = || {
            let mut digests = Vec::new();
            let mut session = Session::new(target, 1, &mut |_| {});
            for _ in 0..20 {
                session.step(&mut |input| digests.push(castor_oci::Digest::of(input)));
            }
            digests
        };
        assert!(run() == run(), "{}", target.name);
    }
}
