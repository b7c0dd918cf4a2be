//! Plain progress of two daemons, made comparable: what may differ between two runs of one daemon is normalised, nothing else.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use regex::Regex;

/// What is replaced in each line, and why.
const PATTERNS: [(&str, &str, &str); 5] = [
    (r"sha256:[0-9a-f]{64}", "sha256:<digest>", "digests of what is built depend on times and compressors"),
    (r"^\d+\.\d{1,3} ", "<time> ", "seconds since the step began, before each line of its output"),
    (r"^DONE \d+\.\d+s$", "DONE <time>", "how long a vertex took"),
    (r" \d+\.\d+s done$", " done", "how long a part of a vertex took, shown where it is not nothing"),
    (r" \(\d+\.\d+s\)", " (<time>)", "the same in parentheses"),
];

/// A download half way, which one run shows and another does not.
const HALF_WAY: &str = r"^sha256:\S+ [\d.]+[kM]?B / [\d.]+[kM]?B( \d+\.\d+s)?$";

/// Parts of a vertex: said once more with `done` when they are, and before that only if they take long enough.
const PARTS: [&str; 7] = ["extracting ", "resolve ", "exporting ", "transferring ", "pushing ", "copying ", "sending "];

/// Between two looks at a vertex another one was shown.
const ELSEWHERE: &str = "...";

/// A build's progress by vertex, in the order of their names; then what followed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    vertices: BTreeMap<String, Vec<String>>,
    end: Vec<String>,
}

impl Transcript {
    /// Reads what a client printed with `--progress=plain`.
    pub fn parse(stderr: &str) -> Result<Self> {
        let patterns: Vec<(Regex, &str)> = PATTERNS
            .iter()
            .map(|(pattern, replacement, _)| Ok((Regex::new(pattern)?, *replacement)))
            .collect::<Result<_>>()?;
        let half_way = Regex::new(HALF_WAY)?;
        let is_moment = |text: &str| {
            let is_part = PARTS.iter().any(|part| text.starts_with(part));
            text == ELSEWHERE || half_way.is_match(text) || (is_part && !text.ends_with(" done"))
        };
        let normal = |line: &str| {
            let replace =
                |line: String, (pattern, with): &(Regex, &str)| pattern.replace_all(&line, *with).into_owned();
            patterns.iter().fold(line.to_owned(), replace)
        };
        let numbered = Regex::new(r"^#(\d+) (.*)$").context("the pattern of numbered lines")?;
        let mut names: BTreeMap<u64, String> = BTreeMap::new();
        let mut vertices: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut end = Vec::new();
        for line in stderr.lines() {
            let Some(found) = numbered.captures(line) else {
                if !line.is_empty() {
                    end.push(normal(line));
                }
                continue;
            };
            let number: u64 = found[1].parse()?;
            let text = &found[2];
            let Some(name) = names.get(&number) else {
                names.insert(number, normal(text));
                vertices.entry(normal(text)).or_default();
                continue;
            };
            let text = normal(text);
            // The name is said again where a vertex is shown for the second time.
            if text == *name || is_moment(&text) {
                continue;
            }
            let lines = vertices.entry(name.clone()).or_default();
            // A vertex that is shown twice ends twice.
            if text.starts_with("DONE ") {
                lines.retain(|line| !line.starts_with("DONE "));
            }
            lines.push(text);
        }
        // Parts of one vertex run side by side; the output of a process keeps its order.
        for lines in vertices.values_mut() {
            let (mut parts, output): (Vec<String>, Vec<String>) =
                lines.drain(..).partition(|line| !line.starts_with("<time> "));
            parts.sort();
            parts.dedup();
            lines.extend(output);
            lines.extend(parts);
        }
        Ok(Self { vertices, end })
    }

    /// All of it as lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, shown) in &self.vertices {
            lines.push(name.clone());
            lines.extend(shown.iter().map(|line| format!("    {line}")));
        }
        lines.extend(self.end.iter().cloned());
        lines
    }

    /// Copies with one thing wrong each, and what: a comparison must see them all.
    pub fn mutants(&self) -> Vec<(String, Self)> {
        let mut mutants = Vec::new();
        for (name, lines) in &self.vertices {
            let mut without = self.clone();
            without.vertices.remove(name);
            mutants.push((format!("{name:?} is missing"), without));
            for place in 0..lines.len() {
                let mut changed = self.clone();
                if let Some(line) = changed.vertices.get_mut(name).and_then(|lines| lines.get_mut(place)) {
                    line.push('!');
                    mutants.push((format!("{line:?} is changed"), changed));
                }
                let mut without = self.clone();
                if let Some(lines) = without.vertices.get_mut(name) {
                    let line = lines.remove(place);
                    mutants.push((format!("{line:?} is missing"), without));
                }
            }
        }
        let mut more = self.clone();
        more.end.push("error: planted".to_owned());
        mutants.push(("a line too many".to_owned(), more));
        mutants
    }

    /// The lines that only one of the two has, in their order; empty if they are equal.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (here, there) = (self.lines(), other.lines());
        if here == there {
            return Vec::new();
        }
        let only = |lines: &[String], others: &[String], sign: char| -> Vec<String> {
            let mut left = others.to_vec();
            let missing = |line: &&String| match left.iter().position(|other| other == *line) {
                Some(place) => {
                    left.swap_remove(place);
                    false
                }
                None => true,
            };
            lines.iter().filter(missing).map(|line| format!("{sign} {line}")).collect()
        };
        let mut lines = only(&here, &there, '-');
        lines.extend(only(&there, &here, '+'));
        if lines.is_empty() {
            lines.push("the same lines in another order".to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "#1 [internal] load build definition from Dockerfile\n#1 transferring dockerfile: 100B done\n\
                       #1 DONE 0.0s\n\n#2 [1/2] RUN a\n#2 0.051 one\n#2 ...\n\n#3 [1/1] RUN b\n#3 0.1 two\n#3 DONE 0.2s\n\n\
                       #2 [1/2] RUN a\n#2 0.2 three\n#2 DONE 1.1s\n";
    const TWO: &str = "#1 [internal] load build definition from Dockerfile\n#1 transferring dockerfile: 100B 0.1s done\n\
                       #1 DONE 0.1s\n\n#2 [1/1] RUN b\n#2 0.151 two\n#2 DONE 0.4s\n\n#3 [1/2] RUN a\n#3 0.1 one\n\
                       #3 0.2 three\n#3 DONE 1.5s\n";

    #[test]
    fn times_and_the_order_of_vertices_do_not_count() {
        let (one, two) = (Transcript::parse(ONE).unwrap(), Transcript::parse(TWO).unwrap());
        assert_eq!(one.differences(&two), Vec::<String>::new());
    }

    #[test]
    fn everything_else_does() {
        let one = Transcript::parse(ONE).unwrap();
        let others = [
            TWO.replace("two", "2"),
            TWO.replace("#3 0.2 three\n", ""),
            TWO.replace("RUN b", "RUN c"),
            TWO.replace("#2 DONE 0.4s", "#2 CACHED"),
            TWO.replace("#3 0.1 one\n#3 0.2 three\n", "#3 0.1 three\n#3 0.2 one\n"),
            format!("{TWO}error: x\n"),
        ];
        for other in others {
            assert!(!one.differences(&Transcript::parse(&other).unwrap()).is_empty(), "not seen:\n{other}");
        }
    }
}
