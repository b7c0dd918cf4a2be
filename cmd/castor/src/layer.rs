//! Layers, as a daemon tells of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::table::{align, seconds, shorten, size};

/// What the daemon said of a layer, and what of that this program knows. A daemon of another version may say more or less.
#[derive(Debug)]
pub struct Layer {
    said: Value,
    known: Known,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Known {
    digest: String,
    toc: Option<String>,
    media_type: String,
    image: String,
    origins: Vec<String>,
    state: String,
    mode: String,
    reason: Option<String>,
    in_use: bool,
    bytes: u64,
    fetched: u64,
    requests: u64,
    waited_milliseconds: u64,
    chunks: Chunks,
    disk_bytes: u64,
    compressed_bytes: u64,
    claimed: Option<String>,
    verified: Option<String>,
    refuted: Option<String>,
    records: Vec<String>,
    last_used: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunks {
    here: u64,
    all: u64,
}

/// Reads what `/debug/layers` answers.
pub fn parse(body: &[u8]) -> Result<Vec<Layer>> {
    let values: Vec<Value> = serde_json::from_slice(body).context("its answer is not a list of layers")?;
    let layer = |said: Value| {
        let known: Known = serde_json::from_value(said.clone()).context("its answer is not a list of layers")?;
        if known.digest.is_empty() {
            bail!("its answer has a layer without a digest");
        }
        Ok(Layer { said, known })
    };
    let mut layers = values.into_iter().map(layer).collect::<Result<Vec<_>>>()?;
    layers.sort_by(|a, b| {
        let key = |layer: &Layer| (!layer.known.in_use, layer.known.image.clone(), layer.known.digest.clone());
        key(a).cmp(&key(b))
    });
    Ok(layers)
}

/// Those in `state`, and in use if so wanted.
pub fn select(mut layers: Vec<Layer>, state: Option<&str>, in_use: bool) -> Vec<Layer> {
    layers.retain(|layer| state.is_none_or(|state| layer.known.state == state) && (layer.known.in_use || !in_use));
    layers
}

/// Those whose digests begin as `wanted` say, each of which must mean one blob.
pub fn find(layers: Vec<Layer>, wanted: &[String]) -> Result<Vec<Layer>> {
    let mut chosen = BTreeSet::new();
    for text in wanted {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let fits = |layer: &Layer| {
            let digest = layer.known.digest.strip_prefix("sha256:").unwrap_or(&layer.known.digest);
            !hex.is_empty() && digest.starts_with(hex)
        };
        let digests: BTreeSet<&str> =
            layers.iter().filter(|layer| fits(layer)).map(|layer| layer.known.digest.as_str()).collect();
        match digests.len() {
            0 => bail!("no layer {text:?}"),
            1 => {}
            _ => bail!("{text:?} is how several layers begin: {}", digests.into_iter().collect::<Vec<_>>().join(", ")),
        }
        chosen.extend(digests.into_iter().map(ToOwned::to_owned));
    }
    Ok(layers.into_iter().filter(|layer| chosen.contains(&layer.known.digest)).collect())
}

/// What the daemon said, as it said it.
pub fn json(layers: &[Layer]) -> Result<String> {
    let values: Vec<&Value> = layers.iter().map(|layer| &layer.said).collect();
    Ok(serde_json::to_string_pretty(&values).context("write JSON")? + "\n")
}

/// Digests, one a line.
pub fn digests(layers: &[Layer]) -> String {
    layers.iter().map(|layer| format!("{}\n", layer.known.digest)).collect()
}

/// A table, and sums below it.
pub fn list(layers: &[Layer], whole: bool) -> String {
    let header = ["LAYER", "IMAGE", "STATE", "FETCHED", "SIZE", "REQUESTS", "WAITED", "DISK", "IN USE", "REASON"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for Layer { known, .. } in layers {
        let hex = known.digest.strip_prefix("sha256:").unwrap_or(&known.digest);
        let reason = known.reason.clone().unwrap_or_default();
        rows.push(vec![
            if whole { known.digest.clone() } else { hex.chars().take(12).collect() },
            if whole { known.image.clone() } else { shorten(&known.image, 40) },
            known.shown_state(),
            size(known.fetched),
            size(known.bytes),
            known.requests.to_string(),
            seconds(known.waited_milliseconds),
            size(known.disk_bytes + known.compressed_bytes),
            if known.in_use { "yes" } else { "no" }.to_owned(),
            if whole { reason } else { shorten(&reason, 60) },
        ]);
    }
    let sum = |value: fn(&Known) -> u64| size(layers.iter().map(|layer| value(&layer.known)).sum());
    let mut text = align(&rows);
    let _ = writeln!(
        text,
        "{} layers, {} of {} fetched, {} on disk",
        layers.len(),
        sum(|known| known.fetched),
        sum(|known| known.bytes),
        sum(|known| known.disk_bytes + known.compressed_bytes)
    );
    text
}

/// All that is known, a paragraph each.
pub fn inspect(layers: &[Layer]) -> String {
    let mut paragraphs = Vec::new();
    for Layer { known, .. } in layers {
        let none = || "-".to_owned();
        let verified = match (&known.verified, &known.refuted) {
            (Some(diff_id), _) => diff_id.clone(),
            (None, Some(reason)) => format!("refuted: {reason}"),
            (None, None) => "not yet".to_owned(),
        };
        let mut rows = vec![
            ("Digest:", known.digest.clone()),
            ("TOC:", known.toc.clone().unwrap_or_else(none)),
            ("Media type:", known.media_type.clone()),
            ("Image:", known.image.clone()),
        ];
        rows.extend(known.origins.iter().map(|origin| ("Origin:", origin.clone())));
        rows.extend([
            ("State:", known.shown_state()),
            ("Reason:", known.reason.clone().unwrap_or_else(none)),
            ("In use:", if known.in_use { "yes" } else { "no" }.to_owned()),
            ("Fetched:", format!("{} of {}", size(known.fetched), size(known.bytes))),
            ("Requests:", known.requests.to_string()),
            ("Waited:", seconds(known.waited_milliseconds)),
        ]);
        if known.chunks.all > 0 {
            rows.push(("Chunks:", format!("{} of {}", known.chunks.here, known.chunks.all)));
        }
        rows.extend([
            ("Data on disk:", size(known.disk_bytes)),
            ("Compressed on disk:", size(known.compressed_bytes)),
            ("Claimed diff ID:", known.claimed.clone().unwrap_or_else(none)),
            ("Verified diff ID:", verified),
            ("Last used:", known.last_used.clone().unwrap_or_else(none)),
        ]);
        rows.extend(known.records.iter().map(|record| ("Record:", record.clone())));
        paragraphs.push(align(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect::<Vec<_>>()));
    }
    paragraphs.join("\n")
}

impl Known {
    /// `lazy 12%`, `eager`, `complete (lazy)`.
    fn shown_state(&self) -> String {
        match self.state.as_str() {
            "lazy" if self.chunks.all > 0 => format!("lazy {}%", self.chunks.here * 100 / self.chunks.all),
            "complete" if !self.mode.is_empty() => format!("complete ({})", self.mode),
            other => other.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const BODY: &str = r#"[
        {"digest": "sha256:aa11", "image": "r/i:1", "state": "lazy", "mode": "lazy", "bytes": 2000, "fetched": 500,
         "requests": 3, "waitedMilliseconds": 1500, "chunks": {"here": 1, "all": 4}, "diskBytes": 4096, "inUse": true,
         "later": [1]},
        {"digest": "sha256:aa22", "image": "r/i:1", "state": "complete", "mode": "eager", "reason": "no annotation",
         "bytes": 1000, "verified": "sha256:ff"},
        {"digest": "sha256:bb", "image": "a/b:1", "state": "complete", "mode": "lazy", "toc": "sha256:cc"}
    ]"#;

    fn layers() -> Vec<Layer> {
        parse(BODY.as_bytes()).unwrap()
    }

    #[test]
    fn a_table_shows_those_in_use_first() {
        let text = list(&layers(), false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("aa11") && lines[1].contains("lazy 25%") && lines[1].contains("1.5s"), "{text}");
        assert!(lines[2].starts_with("bb") && lines[2].contains("complete (lazy)"), "{text}");
        assert!(lines[3].ends_with("no annotation"), "{text}");
        assert_eq!(lines[4], "3 layers, 500B of 3.00kB fetched, 4.10kB on disk");
    }

    #[test]
    fn layers_are_chosen_by_state_use_and_how_they_begin() {
        assert_eq!(digests(&select(layers(), Some("complete"), false)), "sha256:bb\nsha256:aa22\n");
        assert_eq!(digests(&select(layers(), None, true)), "sha256:aa11\n");
        assert_eq!(digests(&find(layers(), &["aa1".into(), "sha256:bb".into()]).unwrap()), "sha256:aa11\nsha256:bb\n");
        let error = |text: &str| find(layers(), &[text.into()]).unwrap_err().to_string();
        assert_eq!(error("sha256:dd"), "no layer \"sha256:dd\"");
        assert_eq!(error("aa"), "\"aa\" is how several layers begin: sha256:aa11, sha256:aa22");
        assert_eq!(error(""), "no layer \"\"");
    }

    #[test]
    fn json_is_what_the_daemon_said() {
        let text = json(&select(layers(), Some("lazy"), false)).unwrap();
        let values: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(values[0]["later"], serde_json::json!([1]));
        for bad in ["{}", "[1]", "[{}]", "<html>"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_layer_is_shown_with_all_that_is_known() {
        let text = inspect(&find(layers(), &["aa22".into()]).unwrap());
        for part in ["Digest:", "sha256:aa22", "complete (eager)", "no annotation", "sha256:ff"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
