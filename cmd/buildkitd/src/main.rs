//! `buildkitd`: castor's daemon under the name its users' tools call.

mod config;
mod flags;
mod lock;
mod settings;

fn main() {
    let _ = (lock::RootLock::acquire, settings::Settings::new);
    let flags = flags::Flags::from_env();
    println!("{flags:?} {:?}", config::load(std::path::Path::new("/x"), false));
}
