//! Which records a client wants to see: containerd's filters over `ref`, `status` and `repository`, and BuildKit's own
//! comparisons of `startedAt`, `completedAt` and `duration`.

use std::time::Duration;

use castor_progress::Timestamp;
use castor_proto::control::BuildHistoryRecord;
use castor_store::Filter;

use crate::provenance::csv_fields;

/// A filter that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryFilterError {
    /// A time of no known form.
    #[error("invalid time {0}")]
    Time(String),
    /// A duration of no known form.
    #[error("invalid duration {0}")]
    Duration(String),
    /// No filter of containerd's.
    #[error("failed to parse history filters {0}: {1}")]
    Syntax(String, String),
    /// A number of records below nothing.
    #[error("invalid limit {0}")]
    Limit(i32),
}

/// All of these must hold.
#[derive(Debug, Clone)]
pub struct HistoryFilter {
    fields: Filter,
    times: Vec<Comparison>,
}

#[derive(Debug, Clone, Copy)]
struct Comparison {
    what: Quantity,
    sign: Sign,
    /// Seconds since the epoch, or nanoseconds of a duration.
    with: i128,
}

#[derive(Debug, Clone, Copy)]
enum Quantity {
    StartedAt,
    CompletedAt,
    Duration,
}

#[derive(Debug, Clone, Copy)]
enum Sign {
    AtLeast,
    AtMost,
    Above,
    Below,
}

/// In the order in which they are looked for.
const SIGNS: [(&str, Sign); 4] = [(">=", Sign::AtLeast), ("<=", Sign::AtMost), (">", Sign::Above), ("<", Sign::Below)];

impl HistoryFilter {
    /// Reads one filter; `now` is what ages are counted from.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, HistoryFilterError> {
        let syntax = |reason: String| HistoryFilterError::Syntax(text.to_owned(), reason);
        let fields = csv_fields(text).ok_or_else(|| syntax("unterminated quote".into()))?;
        let (mut times, mut rest) = (Vec::new(), Vec::new());
        for field in fields {
            match comparison(&field, now)? {
                Some(comparison) => times.push(comparison),
                None => rest.push(field),
            }
        }
        let fields = rest.join(",").parse().map_err(|error: castor_store::FilterError| syntax(error.reason))?;
        Ok(Self { fields, times })
    }

    /// Whether a record fits.
    pub fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.times.iter().all(|comparison| comparison.holds(record))
            && self.fields.matches_fields(|path| field(record, path))
    }
}

/// The records that fit any of `filters`, or all where there are none; at most `limit` of them, the youngest, where that
/// is not zero.
pub fn select(
    mut records: Vec<BuildHistoryRecord>,
    filters: &[HistoryFilter],
    limit: i32,
) -> Result<Vec<BuildHistoryRecord>, HistoryFilterError> {
    records.retain(|record| filters.is_empty() || filters.iter().any(|filter| filter.matches(record)));
    match usize::try_from(limit) {
        Ok(0) => {}
        Ok(limit) => {
            records.sort_by_key(|record| std::cmp::Reverse(seconds_and_nanos(record.created_at.as_ref())));
            records.truncate(limit);
        }
        Err(_) => return Err(HistoryFilterError::Limit(limit)),
    }
    Ok(records)
}

impl Comparison {
    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        let nanos = |(seconds, nanos): (i64, i32)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let created = seconds_and_nanos(record.created_at.as_ref());
        let completed = record.completed_at.as_ref().map(|time| (time.seconds, time.nanos));
        let value = match self.what {
            Quantity::StartedAt => i128::from(created.0),
            Quantity::CompletedAt => completed.map_or(0, |(seconds, _)| i128::from(seconds)),
            Quantity::Duration => completed.map_or(0, |completed| nanos(completed) - nanos(created)),
        };
        match self.sign {
            Sign::AtLeast => value >= self.with,
            Sign::AtMost => value <= self.with,
            Sign::Above => value > self.with,
            Sign::Below => value < self.with,
        }
    }
}

fn seconds_and_nanos(time: Option<&castor_proto::Timestamp>) -> (i64, i32) {
    time.map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn comparison(field: &str, now: Timestamp) -> Result<Option<Comparison>, HistoryFilterError> {
    let found = SIGNS.iter().find_map(|(text, sign)| Some((field.split_once(text)?, *sign)));
    let Some(((key, value), sign)) = found else { return Ok(None) };
    let (what, with) = match key {
        "startedAt" | "completedAt" => {
            let time = match duration(value) {
                Some(ago) => now - ago,
                None => value.parse().map_err(|_| HistoryFilterError::Time(value.to_owned()))?,
            };
            let what = if key == "startedAt" { Quantity::StartedAt } else { Quantity::CompletedAt };
            (what, i128::from(time.as_second()))
        }
        "duration" => {
            let length = duration(value).ok_or_else(|| HistoryFilterError::Duration(value.to_owned()))?;
            (Quantity::Duration, i128::try_from(length.as_nanos()).unwrap_or(i128::MAX))
        }
        _ => return Ok(None),
    };
    Ok(Some(Comparison { what, sign, with }))
}

/// A span of time in Go's form: `1h30m`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() && rest != "0" {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|&at| at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        let end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    // More than anything that has happened on this machine.
    Duration::try_from_secs_f64(total).ok().filter(|length| length.as_secs() < 200 * 365 * 24 * 3600)
}

fn field(record: &BuildHistoryRecord, path: &[String]) -> Option<String> {
    match path.first()?.as_str() {
        "ref" => (!record.r#ref.is_empty()).then(|| record.r#ref.clone()),
        "status" => Some(status(record).to_owned()),
        "repository" => {
            let source = record.frontend_attrs.get("vcs:source").cloned();
            source.or_else(|| repository(record.frontend_attrs.get("context")?))
        }
        _ => None,
    }
}

fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

/// The remote of a context that is a git repository.
fn repository(context: &str) -> Option<String> {
    let (scheme, rest) = context.split_once("://")?;
    if !matches!(scheme, "http" | "https" | "ssh" | "git") {
        return None;
    }
    let remote = rest.split(['#', '?']).next().unwrap_or(rest);
    Some(format!("{scheme}://{remote}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use castor_proto::rpc;

    const HOUR: i64 = 3600;

    fn record(id: &str, hours_ago: i64, minutes: Option<i64>) -> BuildHistoryRecord {
        let at = |seconds| Some(castor_proto::Timestamp { seconds, nanos: 0 });
        let begun = 1_000_000 - hours_ago * HOUR;
        BuildHistoryRecord {
            r#ref: id.into(),
            created_at: at(begun),
            completed_at: minutes.and_then(|minutes| at(begun + minutes * 60)),
            ..BuildHistoryRecord::default()
        }
    }

    fn records() -> Vec<BuildHistoryRecord> {
        let mut all = vec![record("foo123", 24, Some(1)), record("bar456", 23, None), record("foo789", 22, Some(10))];
        all[1].frontend_attrs.insert("context".into(), "https://github.com/user/repo.git#abcdef".into());
        all[2].frontend_attrs.insert("vcs:source".into(), "testrepo".into());
        all[2].error = Some(rpc::Status { message: "x: context canceled".into(), ..rpc::Status::default() });
        all
    }

    fn selected(filters: &[&str], limit: i32) -> Vec<String> {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let filters: Vec<_> = filters.iter().map(|text| HistoryFilter::parse(text, now).unwrap()).collect();
        select(records(), &filters, limit).unwrap().into_iter().map(|record| record.r#ref).collect()
    }

    #[test]
    fn records_are_selected_as_buildkit_selects_them() {
        for (filters, limit, want) in [
            (&[][..], 0, &["foo123", "bar456", "foo789"][..]),
            (&[], 2, &["foo789", "bar456"]),
            (&["ref==foo"], 2, &[]),
            (&["ref~=foo"], 2, &["foo789", "foo123"]),
            (&["repository!=testrepo"], 2, &["bar456", "foo123"]),
            (&["repository==https://github.com/user/repo.git"], 2, &["bar456"]),
            (&["status==running", "status==canceled"], 5, &["foo789", "bar456"]),
            (&["status==completed,ref~=foo"], 5, &["foo123"]),
            (&["startedAt>22h30m"], 5, &["foo789"]),
            (&["startedAt<22h30m,ref~=foo"], 5, &["foo123"]),
            (&["completedAt>=1970-01-12T00:00:00Z"], 0, &[]),
            (&["duration>5m"], 5, &["foo789"]),
            (&["duration<=1m,status!=running"], 5, &["foo123"]),
        ] {
            assert_eq!(selected(filters, limit), want, "{filters:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let now = Timestamp::UNIX_EPOCH;
        for (text, word) in
            [("startedAt>soon", "soon"), ("duration<x", "x"), ("ref==", "ref=="), ("duration>1000000000h", "duration")]
        {
            let error = HistoryFilter::parse(text, now).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert_eq!(select(Vec::new(), &[], -1), Err(HistoryFilterError::Limit(-1)));
    }
}
