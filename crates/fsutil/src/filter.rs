//! Which entries of a tree are seen.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::pattern::Rule;
use crate::walk::Step;
use crate::{ParentMatches, PatternError, Patterns, Stat, Walk, WalkError, follow_links, path};

/// What a [`Mapper`] wants done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapResult {
    /// Show it.
    Keep,
    /// Leave it out and go on; children of a directory still appear.
    Exclude,
    /// Leave out a directory with all below it.
    SkipDir,
}

/// Changes the details of an entry before they are shown.
pub type Mapper = Arc<dyn Fn(&mut Stat) -> MapResult + Send + Sync>;

/// The choice of a tree's entries, as asked for.
#[derive(Debug, Clone, Default)]
pub struct FilterOptions {
    /// Show only what matches, and the directories above it.
    pub include: Vec<String>,
    /// Hide what matches.
    pub exclude: Vec<String>,
    /// Show these paths too, and every link's target on the way to them. The
    /// last element may have wildcards.
    pub follow: Vec<String>,
}

/// A choice that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A list of rules is malformed.
    #[error("invalid {kind}: [{}]: {source}", rules.join(" "))]
    Patterns {
        /// `includepatterns` or `excludepatterns`.
        kind: &'static str,
        /// The list.
        rules: Vec<String>,
        /// What is wrong with it.
        source: PatternError,
    },
    /// A link could not be followed.
    #[error(transparent)]
    Follow(#[from] WalkError),
}

/// A choice that is ready for a walk.
#[derive(Clone, Default)]
pub struct Filter {
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    /// Every rule to include names a path, so a directory that is no part of
    /// one need not be entered.
    plain_includes: bool,
    /// The same of the exceptions from the rules to exclude.
    plain_exceptions: bool,
    map: Option<Mapper>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("include", &self.include).field("exclude", &self.exclude).finish_non_exhaustive()
    }
}

impl Filter {
    /// Prepares a choice; links are followed inside `root`, now.
    pub fn new(root: &Path, options: &FilterOptions) -> Result<Self, FilterError> {
        let mut include: Vec<Vec<u8>> = options.include.iter().map(|rule| rule.clone().into_bytes()).collect();
        if !options.follow.is_empty() {
            include.extend(follow_links(root, &options.follow)?);
            include = crate::follow::without_covered(include);
        }
        let include = rules("includepatterns", &include)?;
        let exclude = rules("excludepatterns", &options.exclude)?;
        let plain = |patterns: &Option<Patterns>, exception: bool| {
            patterns
                .iter()
                .flat_map(|patterns| patterns.rules())
                .filter(|rule| rule.exception == exception)
                .all(is_plain)
        };
        Ok(Self {
            plain_includes: plain(&include, false),
            plain_exceptions: plain(&exclude, true),
            include,
            exclude,
            map: None,
        })
    }

    /// A filter that shows everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Also changes what is shown.
    #[must_use]
    pub fn with_map(mut self, map: Mapper) -> Self {
        self.map = Some(map);
        self
    }

    /// Walks and shows what the filter lets through; a directory above it is
    /// shown first even if it would not be by itself.
    pub fn walk(&self, mut walk: Walk, visit: &mut dyn FnMut(Stat) -> Result<(), WalkError>) -> Result<(), WalkError> {
        let mut parents: Vec<Parent> = Vec::new();
        let mut last_skipped = false;
        while let Some(step) = walk.step() {
            let step = match step {
                Ok(step) => step,
                // A directory that is hidden need not be readable.
                Err(WalkError::Entry { source, .. })
                    if last_skipped && source.kind() == std::io::ErrorKind::PermissionDenied =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            while parents.last().is_some_and(|parent| !parent.holds(&step.path)) {
                parents.pop();
            }
            let verdict = self.judge(&step, parents.last())?;
            last_skipped = !verdict.show;
            if !verdict.enter {
                walk.skip();
            }
            let mut shown = false;
            if verdict.show {
                let Some(stat) = self.details(&mut walk, &step)? else { continue };
                match stat {
                    Details::Keep(stat) => {
                        if !self.show_parents(&mut walk, &mut parents, visit)? {
                            walk.skip();
                            continue;
                        }
                        visit(stat)?;
                        shown = true;
                    }
                    Details::Exclude => shown = true,
                    Details::SkipDir => walk.skip(),
                }
            }
            if step.is_dir && verdict.enter {
                parents.push(Parent { step, include: verdict.include, exclude: verdict.exclude, shown, hidden: false });
            }
        }
        Ok(())
    }

    /// Shows the directories above that are not shown yet; false if one of them
    /// is hidden with all below it.
    fn show_parents(
        &self,
        walk: &mut Walk,
        parents: &mut [Parent],
        visit: &mut dyn FnMut(Stat) -> Result<(), WalkError>,
    ) -> Result<bool, WalkError> {
        for parent in parents {
            if parent.hidden {
                return Ok(false);
            }
            if parent.shown {
                continue;
            }
            match self.details(walk, &parent.step)? {
                Some(Details::Keep(stat)) => {
                    parent.shown = true;
                    visit(stat)?;
                }
                Some(Details::Exclude) => {}
                Some(Details::SkipDir) | None => {
                    parent.hidden = true;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn details(&self, walk: &mut Walk, step: &Step) -> Result<Option<Details>, WalkError> {
        let Some(mut stat) = walk.stat(step)? else { return Ok(None) };
        Ok(Some(match self.map.as_ref().map_or(MapResult::Keep, |map| map(&mut stat)) {
            MapResult::Keep => Details::Keep(stat),
            MapResult::Exclude => Details::Exclude,
            MapResult::SkipDir => Details::SkipDir,
        }))
    }

    fn judge(&self, step: &Step, parent: Option<&Parent>) -> Result<Verdict, WalkError> {
        let mut verdict =
            Verdict { show: true, enter: true, include: ParentMatches::default(), exclude: ParentMatches::default() };
        let failed = |kind, source| WalkError::Match { kind, source };
        if let Some(patterns) = &self.include {
            let (hit, matches) = patterns
                .matches_below(&step.path, parent.map(|parent| &parent.include))
                .map_err(|source| failed("includepatterns", source))?;
            verdict.include = matches;
            if !hit {
                verdict.show = false;
                let includes = patterns.rules().iter().filter(|rule| !rule.exception);
                if step.is_dir && self.plain_includes && !leads_to(&step.path, includes) {
                    verdict.enter = false;
                    return Ok(verdict);
                }
            }
        }
        if let Some(patterns) = &self.exclude {
            let (hit, matches) = patterns
                .matches_below(&step.path, parent.map(|parent| &parent.exclude))
                .map_err(|source| failed("excludepatterns", source))?;
            verdict.exclude = matches;
            if hit {
                verdict.show = false;
                let exceptions = patterns.rules().iter().filter(|rule| rule.exception);
                if step.is_dir && self.plain_exceptions && !leads_to(&step.path, exceptions) {
                    verdict.enter = false;
                }
            }
        }
        Ok(verdict)
    }
}

/// The rules of a list; nothing if there are none.
fn rules<S: AsRef<[u8]>>(kind: &'static str, rules: &[S]) -> Result<Option<Patterns>, FilterError> {
    match Patterns::new(rules) {
        Ok(patterns) => Ok((!rules.is_empty()).then_some(patterns)),
        Err(source) => {
            let rules = rules.iter().map(|rule| path::display(rule).into_owned()).collect();
            Err(FilterError::Patterns { kind, rules, source })
        }
    }
}

enum Details {
    Keep(Stat),
    Exclude,
    SkipDir,
}

struct Verdict {
    show: bool,
    enter: bool,
    include: ParentMatches,
    exclude: ParentMatches,
}

/// A directory that the walk is in.
struct Parent {
    step: Step,
    include: ParentMatches,
    exclude: ParentMatches,
    shown: bool,
    hidden: bool,
}

impl Parent {
    fn holds(&self, path: &[u8]) -> bool {
        path::is_below(path, &self.step.path)
    }
}

fn is_plain(rule: &Rule) -> bool {
    !rule.without_trailing_glob().iter().any(|byte| b"*[]?^\\".contains(byte))
}

/// Whether a rule speaks of something inside the directory.
fn leads_to<'a>(dir: &[u8], mut rules: impl Iterator<Item = &'a Rule>) -> bool {
    rules.any(|rule| {
        let rule = rule.without_trailing_glob();
        rule == dir || path::is_below(rule, dir)
    })
}
