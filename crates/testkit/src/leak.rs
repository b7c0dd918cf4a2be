//! Whether a test leaves something behind.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// Remembers mounts, child processes and network namespaces, and panics on drop if there are more then.
///
/// Tests of one process run in parallel and see each other's: use it where a test has its process for itself, or where
/// only the outermost guard of a serial group checks.
#[derive(Debug)]
pub struct LeakCheck {
    before: Seen,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    mounts: Vec<String>,
    children: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

impl LeakCheck {
    /// Remembers what is there now.
    pub fn new() -> Self {
        Self { before: Seen::now() }
    }

    /// What is there now and was not before; empty if nothing leaked. Waits a moment for processes that are just ending.
    pub fn leaked(&self) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let leaked = self.leaked_now();
            if leaked.is_empty() || Instant::now() > end {
                return leaked;
            }
            // Nothing signals the end of somebody else's mount or grandchild: look again.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// [`leaked`](Self::leaked) without waiting.
    pub fn leaked_now(&self) -> Vec<String> {
        let now = Seen::now();
        let mut leaked = Vec::new();
        let mut mounts = self.before.mounts.clone();
        for mount in now.mounts {
            match mounts.iter().position(|m| *m == mount) {
                Some(at) => drop(mounts.swap_remove(at)),
                None => leaked.push(format!("mount {mount}")),
            }
        }
        for pid in now.children.difference(&self.before.children) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            leaked.push(format!("process {pid} {}", name.trim()));
        }
        leaked
            .extend(now.namespaces.difference(&self.before.namespaces).map(|name| format!("network namespace {name}")));
        leaked
    }
}

impl Default for LeakCheck {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let leaked = self.leaked();
            assert!(leaked.is_empty(), "left behind: {leaked:#?}");
        }
    }
}

impl Seen {
    fn now() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // Target, file system and source; ids and counters change by themselves.
        let mounts = mounts
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let tail = line.split_once(" - ").map_or("", |(_, tail)| tail);
                format!("{} {}", fields.get(4).unwrap_or(&""), tail.split(' ').take(2).collect::<Vec<_>>().join(" "))
            })
            .collect();
        let namespaces = ["/run/netns", "/var/run/netns"]
            .into_iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        Self { mounts, children: descendants(), namespaces }
    }
}

/// Processes below this one that have not ended, zombies aside.
fn descendants() -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name stands in parentheses and may hold anything.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|p| p.parse::<u32>().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "Z"
        {
            parents.push((pid, parent));
        }
    }
    let mut found = BTreeSet::from([std::process::id()]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|p| p.0)
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(&std::process::id());
    found
}
