//! Seeing that somebody reads all of a directory tree: then the rest of it comes at full speed.
//!
//! A *streak* is a reader who goes forward through the blob and leaves little out. One that has come through many directories
//! and used many bytes is a scan of the directory that they all lie in; when it leaves that one, of a larger one.

use super::members::Members;
use crate::tree::Tree;

/// A streak that has come through so many directories, and used so many bytes, is a scan.
const CROSSINGS: u32 = 12;
const BYTES: u64 = 4 << 20;
/// Members that a reader may leave out and still go on with a streak.
const SKIP: u32 = 16;
/// Of the members on the way this part may be left out.
const LEFT_OUT: u32 = 4;
/// Streaks that are remembered.
const STREAKS: usize = 16;
/// The root's name in a tree.
const ROOT: u32 = 0;
/// Deepest directory that is looked at.
const DEPTH: usize = 256;

/// The streaks of a layer, the latest last.
#[derive(Debug, Default)]
pub(super) struct Scans {
    streaks: Vec<Streak>,
}

#[derive(Debug)]
struct Streak {
    last: u32,
    group: u32,
    /// What all directories lie in so far.
    scope: u32,
    /// The scope that is being fetched.
    begun: Option<u32>,
    crossings: u32,
    /// Used, since the last fetch that failed.
    bytes: u64,
    /// Members gone past, and of these left out.
    past: u32,
    skipped: u32,
}

impl Scans {
    /// Notes the first use of `member`, of `size` bytes and in the directory `group`. Returns a directory all of which is
    /// wanted from there on, once for each.
    pub(super) fn used(&mut self, tree: &Tree, member: u32, size: u64, group: u32) -> Option<u32> {
        let goes_on = |streak: &Streak| member > streak.last && member - streak.last <= SKIP + 1;
        let Some(place) = self.streaks.iter().rposition(goes_on) else {
            if self.streaks.len() >= STREAKS {
                self.streaks.remove(0);
            }
            self.streaks.push(Streak {
                last: member,
                group,
                scope: group,
                begun: None,
                crossings: 0,
                bytes: size,
                past: 0,
                skipped: 0,
            });
            return None;
        };
        let mut streak = self.streaks.remove(place);
        streak.past += member - streak.last;
        streak.skipped += member - streak.last - 1;
        streak.last = member;
        streak.bytes += size;
        if streak.group != group {
            streak.group = group;
            streak.crossings += 1;
            streak.scope = common(tree, streak.scope, group);
        }
        let seen = streak.is_scan() && streak.begun != Some(streak.scope);
        if seen {
            streak.begun = Some(streak.scope);
        }
        let scope = streak.scope;
        self.streaks.push(streak);
        seen.then_some(scope)
    }

    /// What was begun did not end well: it is wanted again when as much more was used, not with every file that cannot be had.
    pub(super) fn forget(&mut self) {
        for streak in &mut self.streaks {
            (streak.begun, streak.bytes) = (None, 0);
        }
    }
}

impl Streak {
    fn is_scan(&self) -> bool {
        self.crossings >= CROSSINGS && self.bytes >= BYTES && self.skipped <= self.past / LEFT_OUT
    }
}

/// Where the members of the directory `scope` end that begin at `from`.
pub(super) fn end_of(tree: &Tree, members: &Members, scope: u32, from: u32) -> u32 {
    if scope == ROOT {
        return members.len();
    }
    let mut last = None;
    (from..members.len())
        .find(|member| {
            let group = members.group(*member);
            // Mostly the one before was of the same directory.
            let inside = last == Some(group) || above(tree, group).any(|directory| directory == scope);
            last = inside.then_some(group);
            !inside
        })
        .unwrap_or(members.len())
}

/// The deepest directory that has both in it.
fn common(tree: &Tree, one: u32, other: u32) -> u32 {
    let ways: Vec<u32> = above(tree, one).collect();
    above(tree, other).find(|directory| ways.contains(directory)).unwrap_or(ROOT)
}

/// A directory and those it lies in, up to the root.
fn above(tree: &Tree, directory: u32) -> impl Iterator<Item = u32> {
    let parent = |at: &u32| (*at != ROOT).then(|| tree.name(*at).parent);
    std::iter::successors(Some(directory), parent).take(DEPTH)
}
