//! What a build fetched of its lazy layers, in one line.

use std::collections::BTreeMap;
use std::fmt;

use crate::size;
use crate::status::{SolveStatus, VertexStatus};

/// How the id of a layer's status begins; see the daemon's documentation of lazy layers.
const LAYER: &str = "layer ";

/// Reasons that are told; a hostile daemon has no end of them.
const TOLD: usize = 8;

/// Layers that are kept in mind.
const KEPT: usize = 10_000;

/// A status that is one of a layer, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerStatus<'a> {
    /// The digest of its blob.
    pub digest: &'a str,
    /// Why it is fetched as a whole; `None` if it is lazy.
    pub fallback: Option<&'a str>,
}

impl<'a> LayerStatus<'a> {
    /// Reads `layer sha256:... lazy` and `layer sha256:... eager: why`.
    pub fn parse(id: &'a str) -> Option<Self> {
        let (digest, state) = id.strip_prefix(LAYER)?.split_once(' ')?;
        if !digest.contains(':') {
            return None;
        }
        match state.strip_prefix("eager: ") {
            Some(reason) => Some(Self { digest, fallback: Some(reason) }),
            None if state == "lazy" => Some(Self { digest, fallback: None }),
            None => None,
        }
    }
}

/// The layers of a build of which the daemon says whether they are lazy.
#[derive(Debug, Default)]
pub struct Summary {
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    size: i64,
    fetched: i64,
    fallback: Option<String>,
}

impl Summary {
    /// Takes in what is said of layers.
    pub fn update(&mut self, status: &SolveStatus) {
        status.statuses.iter().for_each(|status| self.status(status));
    }

    fn status(&mut self, status: &VertexStatus) {
        let Some(said) = LayerStatus::parse(&status.id) else { return };
        if self.layers.len() >= KEPT && !self.layers.contains_key(said.digest) {
            return;
        }
        // Several steps may use a layer; what was fetched by then was fetched once.
        let layer = self.layers.entry(said.digest.to_owned()).or_default();
        layer.size = layer.size.max(status.total);
        layer.fetched = layer.fetched.max(status.current);
        if let Some(reason) = said.fallback {
            layer.fallback = Some(reason.to_owned());
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// `lazy layers: fetched 12.35MB of 190.32MB (6%); 1 of 3 fell back: sha256:9d48abcdef12: it has no annotation`
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |number: fn(&Layer) -> i64| self.layers.values().map(number).fold(0, i64::saturating_add);
        let (size, fetched) = (sum(|layer| layer.size), sum(|layer| layer.fetched));
        write!(f, "lazy layers: fetched {} of {}", size::rounded(fetched), size::rounded(size))?;
        if let Some(share) = share(fetched, size) {
            write!(f, " ({share}%)")?;
        }
        let fallen: Vec<(&String, &String)> =
            self.layers.iter().filter_map(|(digest, layer)| Some((digest, layer.fallback.as_ref()?))).collect();
        if fallen.is_empty() {
            return Ok(());
        }
        write!(f, "; {} of {} fell back: ", fallen.len(), self.layers.len())?;
        for (place, (digest, reason)) in fallen.iter().take(TOLD).enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{} ({})", size::short_digest(digest), reason.replace(char::is_control, " "))?;
        }
        if fallen.len() > TOLD {
            write!(f, ", ...")?;
        }
        Ok(())
    }
}

/// How many of a hundred parts `part` is of `whole`.
pub fn share(part: i64, whole: i64) -> Option<i64> {
    (whole > 0).then(|| (i128::from(part) * 100 / i128::from(whole)).clamp(0, 100) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: &str, current: i64, total: i64) -> SolveStatus {
        let status = VertexStatus { id: id.into(), current, total, ..VertexStatus::default() };
        SolveStatus { statuses: vec![status], ..SolveStatus::default() }
    }

    #[test]
    fn only_layers_are_counted() {
        let parse = LayerStatus::parse;
        assert_eq!(parse("layer sha256:ab lazy"), Some(LayerStatus { digest: "sha256:ab", fallback: None }));
        let eager = parse("layer sha256:ab eager: no range");
        assert_eq!(eager, Some(LayerStatus { digest: "sha256:ab", fallback: Some("no range") }));
        for other in ["sha256:ab", "layer x lazy", "layer sha256:ab", "exporting layers", "layer sha256:ab fast"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let mut summary = Summary::default();
        summary.update(&status("extracting sha256:ab", 1, 2));
        assert!(summary.is_empty());
    }

    #[test]
    fn a_line() {
        let mut summary = Summary::default();
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        summary.update(&status(&format!("layer {} lazy", digest("a")), 1_000_000, 40_000_000));
        summary.update(&status(&format!("layer {} lazy", digest("a")), 2_000_000, 40_000_000));
        // Another step looks at it again.
        summary.update(&status(&format!("layer {} lazy", digest("a")), 0, 40_000_000));
        assert_eq!(summary.to_string(), "lazy layers: fetched 2.00MB of 40.00MB (5%)");
        summary.update(&status(&format!("layer {} lazy", digest("b")), 0, 10_000_000));
        summary.update(&status(&format!("layer {} eager: no ranges", digest("b")), 10_000_000, 10_000_000));
        assert_eq!(
            summary.to_string(),
            "lazy layers: fetched 12.00MB of 50.00MB (24%); 1 of 2 fell back: sha256:bbbbbbbbbbbb (no ranges)"
        );
    }
}
