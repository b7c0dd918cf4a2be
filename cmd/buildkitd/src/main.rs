//! `buildkitd`: castor's daemon under the name its users' tools call.

mod config;
mod flags;

fn main() {
    let flags = flags::Flags::from_env();
    println!("{flags:?} {:?}", config::load(std::path::Path::new("/x"), false));
}
