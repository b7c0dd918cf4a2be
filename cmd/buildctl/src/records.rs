//! Records of the cache: `du` and `prune`.

use std::fmt::Write as _;

use anyhow::Result;
use castor_client::records::UsageRecord;
use castor_client::{Client, PruneOptions, size, status};
use futures::TryStreamExt as _;

use crate::data::Data;
use crate::failure::show;
use crate::flags::Values;
use crate::table::{Padding, align};
use crate::template::Template;

/// `du`
pub async fn usage(client: &Client, values: &Values) -> Result<()> {
    let filter = values.texts("filter").to_vec();
    let filtered = !filter.is_empty();
    let records = client.disk_usage(filter).await?;
    if let Some(template) = template(values)? {
        let list = Data::list(records.iter().map(to_data));
        show(&(template.render(&list)? + "\n"))?;
        return Ok(());
    }
    if values.bool("verbose") {
        show(&verbose(&records))?;
    } else {
        show(&align(&(HEADER.to_owned() + &rows(&records)), Padding::Tabs))?;
    }
    if !filtered {
        show(&summary(&records))?;
    }
    Ok(())
}

/// `prune`
pub async fn prune(client: &Client, values: &Values) -> Result<()> {
    let megabytes = |name: &str| (values.float(name) * 1e6) as i64;
    let options = PruneOptions {
        filter: values.texts("filter").to_vec(),
        all: values.bool("all"),
        keep_duration: values.duration("keep-duration"),
        reserved_space: megabytes("keep-storage-min"),
        max_used_space: megabytes("keep-storage"),
        min_free_space: megabytes("free-storage"),
    };
    let template = template(values)?;
    let mut removed = Box::pin(client.prune(options).await?);
    let (mut total, mut first) = (0, true);
    while let Some(record) = removed.try_next().await? {
        total += record.size;
        let records = [record];
        if let Some(template) = &template {
            show(&(template.render(&to_data(&records[0]))? + "\n"))?;
        } else if values.bool("verbose") {
            show(&verbose(&records))?;
        } else {
            let header = if first { HEADER } else { "" };
            show(&align(&(header.to_owned() + &rows(&records)), Padding::Tabs))?;
            first = false;
        }
    }
    if template.is_none() {
        show(&align(&format!("Total:\t{}\n", size::rounded(total)), Padding::Tabs))?;
    }
    Ok(())
}

/// The template of `--format`, if there is one.
pub fn template(values: &Values) -> Result<Option<Template>> {
    let format = values.text("format");
    if format.is_empty() {
        return Ok(None);
    }
    if values.bool("verbose") {
        tracing::debug!("Ignoring --verbose");
    }
    Ok(Some(Template::parse(format)?))
}

const HEADER: &str = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n";

fn rows(records: &[UsageRecord]) -> String {
    let mut text = String::new();
    for record in records {
        let id = format!("{}{}", record.id, if record.mutable { "*" } else { "" });
        let size = format!("{}{}", size::rounded(record.size), if record.shared { "*" } else { "" });
        let _ = writeln!(text, "{id:<71}\t{:<11}\t{size}\t", !record.in_use);
    }
    text
}

fn verbose(records: &[UsageRecord]) -> String {
    let mut text = String::new();
    for record in records {
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{name}:\t{value}");
        };
        line("ID", &record.id);
        if !record.parents.is_empty() {
            line("Parents", &record.parents.join(";"));
        }
        line("Created at", &go_time(record.created_at));
        line("Mutable", &record.mutable);
        line("Reclaimable", &!record.in_use);
        line("Shared", &record.shared);
        line("Size", &size::rounded(record.size));
        if !record.description.is_empty() {
            line("Description", &record.description);
        }
        line("Usage count", &record.usage_count);
        if record.last_used_at.is_some() {
            line("Last used", &go_time(record.last_used_at));
        }
        if !record.record_type.is_empty() {
            line("Type", &record.record_type);
        }
        text.push('\n');
    }
    align(&text, Padding::Tabs)
}

fn summary(records: &[UsageRecord]) -> String {
    let sum = |wanted: &dyn Fn(&&UsageRecord) -> bool| -> i64 {
        records.iter().filter(|record| record.size > 0).filter(wanted).map(|record| record.size).sum()
    };
    let (total, shared) = (sum(&|_| true), sum(&|record| record.shared));
    let mut text = String::new();
    if shared > 0 {
        let _ = writeln!(text, "Shared:\t{}", size::rounded(shared));
        let _ = writeln!(text, "Private:\t{}", size::rounded(total - shared));
    }
    let _ = writeln!(text, "Reclaimable:\t{}", size::rounded(sum(&|record| !record.in_use)));
    let _ = writeln!(text, "Total:\t{}", size::rounded(total));
    align(&text, Padding::Tabs)
}

fn to_data(record: &UsageRecord) -> Data {
    let time = |time: Option<castor_client::records::Timestamp>| time.map(to_time).map_or(Data::Null, Data::Time);
    Data::map([
        ("id", (&record.id).into()),
        ("mutable", record.mutable.into()),
        ("inUse", record.in_use.into()),
        ("size", record.size.into()),
        ("createdAt", time(record.created_at)),
        ("lastUsedAt", time(record.last_used_at)),
        ("usageCount", record.usage_count.into()),
        ("parents", Data::list(record.parents.iter().map(Data::from))),
        ("description", (&record.description).into()),
        ("recordType", (&record.record_type).into()),
        ("shared", record.shared.into()),
    ])
}

/// `2026-01-02 03:04:05.6 +0000 UTC`
fn go_time(time: Option<castor_client::records::Timestamp>) -> String {
    Data::Time(to_time(time.unwrap_or_default())).text()
}

fn to_time(time: castor_client::records::Timestamp) -> String {
    status::timestamp(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let record = UsageRecord {
            id: "abc".into(),
            size: 1_500_000,
            in_use: false,
            mutable: true,
            shared: true,
            ..UsageRecord::default()
        };
        let table = align(&(HEADER.to_owned() + &rows(std::slice::from_ref(&record))), Padding::Tabs);
        let mut lines = table.lines();
        assert_eq!(lines.next(), Some("ID\t\t\t\t\t\t\t\t\tRECLAIMABLE\tSIZE\tLAST ACCESSED"));
        assert_eq!(lines.next().map(str::len), Some("abc*".len() + 67 + 1 + "true       \t1.50MB*\t".len()));
        assert_eq!(summary(&[record]), "Shared:\t\t1.50MB\nPrivate:\t0B\nReclaimable:\t1.50MB\nTotal:\t\t1.50MB\n");
    }

    #[test]
    fn times() {
        let time = castor_client::records::Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 };
        assert_eq!(go_time(Some(time)), "2023-11-14 22:13:20.005 +0000 UTC");
    }
}
