//! Places where tests end the process as a power cut would.

/// Ends the process here, without any clean-up, if the environment says so: `CASTOR_CRASH_AT=<name>`, or `<name>:<n>` for
/// the n-th time that the place is passed. Release builds have no such places.
#[inline]
pub fn crash_point(name: &str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Where to crash, and how many times the place is still passed first.
    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();

    pub(super) fn pass(name: &str) {
        let Some((wanted, left)) = ARMED.get_or_init(read) else { return };
        // Once it is zero the process is gone.
        if wanted == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            eprintln!("crash at {name}");
            std::process::abort();
        }
    }

    fn read() -> Option<(String, AtomicU64)> {
        let text = std::env::var("CASTOR_CRASH_AT").ok()?;
        let (name, times) = match text.rsplit_once(':') {
            Some((name, times)) => (name.to_owned(), times.parse().unwrap_or(1)),
            None => (text, 1),
        };
        Some((name, AtomicU64::new(times)))
    }
}
