//! Builds of the past: `prune-histories` and `debug histories`, `logs`, `get`, `ctl` and `monitor`.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use castor_client::progress::{Display, Mode};
use castor_client::records::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor,
    Exporter, RpcStatus, Timestamp, local_time,
};
use castor_client::{Client, ClientError, Digest, Target, base64_of};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use crate::data::Data;
use crate::failure::show;
use crate::flags::Values;
use crate::records::template;
use crate::table::{Padding, align};

/// Messages of progress on their way to the screen.
const IN_FLIGHT: usize = 64;

/// All records, and then the end.
fn all() -> BuildHistoryRequest {
    BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() }
}

/// `debug histories`
pub async fn list(target: &Target, values: &Values) -> Result<()> {
    let client = Client::connect(target, "").await?;
    let mut events = Box::pin(client.histories(all()).await?);
    if let Some(template) = template(values)? {
        while let Some(event) = events.try_next().await? {
            show(&(template.render(&to_data(&event))? + "\n"))?;
        }
        return Ok(());
    }
    let mut table = Table::new("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\tPINNED\n");
    while let Some(event) = events.try_next().await? {
        let pinned = if event.record.as_ref().is_some_and(|record| record.pinned) { "*" } else { "" };
        table.row(&format!("{}\t{pinned}\n", columns(&event)))?;
    }
    table.end()
}

/// `prune-histories`: removes all records that are not pinned.
pub async fn prune(target: &Target, values: &Values) -> Result<()> {
    let client = Client::connect(target, "").await?;
    let mut events = Box::pin(client.histories(all()).await?);
    let template = template(values)?;
    let mut table = Table::new("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\n");
    let mut failures: Vec<String> = Vec::new();
    while let Some(event) = events.try_next().await? {
        let Some(record) = event.record.as_ref().filter(|record| !record.pinned) else { continue };
        if let Err(error) = client.update_history(&record.r#ref, false, true).await {
            failures.push(error.to_string());
            continue;
        }
        match &template {
            Some(template) => show(&(template.render(&to_data(&event))? + "\n"))?,
            None => table.row(&format!("{}\n", columns(&event)))?,
        }
    }
    if template.is_none() {
        table.end()?;
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

/// A table whose rows are shown as they come; the first one decides how wide the columns of the header are.
struct Table {
    header: &'static str,
}

impl Table {
    fn new(header: &'static str) -> Self {
        Self { header }
    }

    fn row(&mut self, row: &str) -> Result<()> {
        show(&align(&(std::mem::take(&mut self.header).to_owned() + row), Padding::Tabs))?;
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if self.header.is_empty() { Ok(()) } else { self.row("") }
    }
}

fn columns(event: &BuildHistoryEvent) -> String {
    let kind = kind(event);
    let Some(record) = &event.record else { return format!("{kind}\t\t\t\t0") };
    let time = |time: Option<Timestamp>| time.map(local_time).unwrap_or_default();
    let (created, completed) = (time(record.created_at), time(record.completed_at));
    format!("{kind}\t{}\t{created}\t{completed}\t{}", record.r#ref, record.generation)
}

/// The name of what happened; one without a name is its number.
fn kind(event: &BuildHistoryEvent) -> String {
    match BuildHistoryEventType::try_from(event.r#type) {
        Ok(kind) => kind.as_str_name().to_owned(),
        Err(_) => event.r#type.to_string(),
    }
}

/// The first argument; it must not be missing.
fn argument<'a>(values: &'a Values, what: &str) -> Result<&'a str> {
    values.arguments.first().map(String::as_str).with_context(|| format!("{what} must be specified"))
}

/// `debug logs`
pub async fn logs(target: &Target, values: &Values) -> Result<()> {
    let reference = argument(values, "build ref")?;
    let client = Client::connect(target, "").await?;
    if values.bool("trace") {
        return trace(&client, reference).await;
    }
    let mut news = Box::pin(client.logs(reference).await?);
    let mode: Mode = match values.text("progress") {
        "" => Mode::Auto,
        name => name.parse()?,
    };
    let mut display = Display::new(io::stdout(), mode)?;
    let (sender, shown) = mpsc::channel(IN_FLIGHT);
    let forwarding = async {
        while let Some(update) = news.try_next().await? {
            if sender.send(update).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, ClientError>(())
    };
    let (forwarded, drawn) = tokio::join!(forwarding, display.run(shown));
    forwarded?;
    drawn.context("write the progress")?;
    Ok(())
}

/// `debug logs --trace`
async fn trace(client: &Client, reference: &str) -> Result<()> {
    // Without the early exit a build that there never was is waited for.
    let request = BuildHistoryRequest { r#ref: reference.to_owned(), ..all() };
    let mut events = Box::pin(client.histories(request).await?);
    let Some(event) = events.try_next().await? else { bail!("ref {reference} not found") };
    let trace = event.record.and_then(|record| record.trace);
    let Some(trace) = trace else { bail!("ref {reference} does not have trace") };
    copy(client, &digest(&trace.digest)?).await
}

/// `debug get`
pub async fn get(target: &Target, values: &Values) -> Result<()> {
    let digest = digest(argument(values, "blob digest")?)?;
    copy(&Client::connect(target, "").await?, &digest).await
}

/// Reads a digest; what is wrong is said in the words of Go's.
fn digest(text: &str) -> Result<Digest> {
    let Some((algorithm, hex)) = text.split_once(':').filter(|(_, hex)| !hex.is_empty()) else {
        bail!("invalid checksum digest format");
    };
    match text.parse() {
        Ok(digest) => Ok(digest),
        Err(_) if algorithm != "sha256" => bail!("unsupported digest algorithm"),
        Err(_) if hex.len() != 64 => bail!("invalid checksum digest length"),
        Err(_) => bail!("invalid checksum digest format"),
    }
}

/// A blob to standard output.
async fn copy(client: &Client, digest: &Digest) -> Result<()> {
    let bytes = client.blob(digest).await?;
    write_all(bytes).await
}

async fn write_all(bytes: impl Stream<Item = Result<Bytes, ClientError>>) -> Result<()> {
    let mut bytes = Box::pin(bytes);
    let mut stdout = io::stdout().lock();
    while let Some(piece) = bytes.next().await {
        stdout.write_all(&piece?)?;
    }
    stdout.flush()?;
    Ok(())
}

/// `debug ctl`
pub async fn control(target: &Target, values: &Values) -> Result<()> {
    let reference = argument(values, "build ref")?;
    let (pin, unpin, delete) = (values.bool("pin"), values.bool("unpin"), values.bool("delete"));
    if !pin && !unpin && !delete {
        bail!("must specify one of --pin, --unpin, --delete");
    }
    if pin && unpin {
        bail!("cannot specify both --pin and --unpin");
    }
    if delete && (pin || unpin) {
        bail!("cannot specify --delete with --pin or --unpin");
    }
    Client::connect(target, "").await?.update_history(reference, pin, delete).await?;
    Ok(())
}

/// `debug monitor`
pub async fn monitor(target: &Target, values: &Values) -> Result<()> {
    let client = Client::connect(target, "").await?;
    let request = BuildHistoryRequest {
        active_only: !values.bool("completed"),
        r#ref: values.text("ref").to_owned(),
        ..BuildHistoryRequest::default()
    };
    let mut events = Box::pin(client.histories(request).await?);
    while let Some(event) = events.try_next().await? {
        show(&event_text(&event))?;
    }
    // The daemon has no more to tell; it ends this way only when it ends itself.
    bail!("EOF")
}

fn event_text(event: &BuildHistoryEvent) -> String {
    let mut text = String::new();
    let record = event.record.clone().unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(text, "event: {} ref:{}", kind(event), record.r#ref);
    if record.num_total_steps != 0 {
        let _ = writeln!(text, "  cache: {}/{}", record.num_cached_steps, record.num_total_steps);
    }
    if record.num_warnings != 0 {
        let _ = writeln!(text, "  warnings: {}", record.num_warnings);
    }
    for (name, descriptor) in [("logs", &record.logs), ("trace", &record.trace)] {
        if let Some(descriptor) = descriptor {
            let _ = writeln!(text, "  {name}: {}", descriptor_data(descriptor).text());
        }
    }
    let mut result = |label: &str, info: &BuildResultInfo| {
        let old = info.result_deprecated.iter().filter(|_| info.results.is_empty());
        for descriptor in info.results.values().chain(old) {
            let _ = writeln!(text, "  {label}descriptor: {}", descriptor_data(descriptor).text());
        }
        for descriptor in &info.attestations {
            let _ = writeln!(text, "  {label}attestation: {}", descriptor_data(descriptor).text());
        }
    };
    record.result.iter().for_each(|info| result("", info));
    record.results.iter().for_each(|(platform, info)| result(&format!("[{platform}] "), info));
    text
}

fn to_data(event: &BuildHistoryEvent) -> Data {
    Data::record([
        ("type", Data::Name(kind(event), event.r#type.into())),
        ("record", event.record.as_ref().map(record_data).into()),
    ])
}

fn record_data(record: &BuildHistoryRecord) -> Data {
    let texts = |map: &std::collections::BTreeMap<String, String>| {
        Data::map(map.iter().map(|(name, value)| (name.as_str(), value.into())))
    };
    let exporter =
        |exporter: &Exporter| Data::record([("Type", (&exporter.r#type).into()), ("Attrs", texts(&exporter.attrs))]);
    let number = |value: i32| Data::from(i64::from(value));
    Data::record([
        ("Ref", (&record.r#ref).into()),
        ("Frontend", (&record.frontend).into()),
        ("FrontendAttrs", texts(&record.frontend_attrs)),
        ("Exporters", Data::list(record.exporters.iter().map(exporter))),
        ("error", record.error.as_ref().map(error_data).into()),
        ("CreatedAt", record.created_at.map(time_data).into()),
        ("CompletedAt", record.completed_at.map(time_data).into()),
        ("logs", record.logs.as_ref().map(descriptor_data).into()),
        ("ExporterResponse", texts(&record.exporter_response)),
        ("Result", record.result.as_ref().map(result_data).into()),
        ("Results", Data::map(record.results.iter().map(|(name, info)| (name.as_str(), result_data(info))))),
        ("Generation", number(record.generation)),
        ("trace", record.trace.as_ref().map(descriptor_data).into()),
        ("pinned", record.pinned.into()),
        ("numCachedSteps", number(record.num_cached_steps)),
        ("numTotalSteps", number(record.num_total_steps)),
        ("numCompletedSteps", number(record.num_completed_steps)),
        ("externalError", record.external_error.as_ref().map(descriptor_data).into()),
        ("numWarnings", number(record.num_warnings)),
    ])
}

fn error_data(error: &RpcStatus) -> Data {
    let details = error.details.iter().map(|detail| {
        Data::record([("type_url", Data::from(&detail.type_url)), ("value", base64_of(&detail.value).into())])
    });
    Data::record([
        ("code", Data::from(i64::from(error.code))),
        ("message", (&error.message).into()),
        ("details", Data::list(details)),
    ])
}

fn time_data(time: Timestamp) -> Data {
    Data::record([("seconds", time.seconds.into()), ("nanos", i64::from(time.nanos).into())])
}

fn descriptor_data(descriptor: &Descriptor) -> Data {
    let annotations = descriptor.annotations.iter().map(|(name, value)| (name.as_str(), value.into()));
    Data::record([
        ("media_type", Data::from(&descriptor.media_type)),
        ("digest", (&descriptor.digest).into()),
        ("size", descriptor.size.into()),
        ("annotations", Data::map(annotations)),
    ])
}

fn result_data(info: &BuildResultInfo) -> Data {
    let results: Vec<(String, Data)> =
        info.results.iter().map(|(index, descriptor)| (index.to_string(), descriptor_data(descriptor))).collect();
    Data::record([
        ("ResultDeprecated", info.result_deprecated.as_ref().map(descriptor_data).into()),
        ("Attestations", Data::list(info.attestations.iter().map(descriptor_data))),
        ("Results", Data::Map(results)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Template;

    fn event() -> BuildHistoryEvent {
        let descriptor = |letter: &str| Descriptor {
            media_type: "application/x".into(),
            digest: format!("sha256:{letter}"),
            size: 7,
            ..Descriptor::default()
        };
        let record = BuildHistoryRecord {
            r#ref: "abc".into(),
            created_at: Some(Timestamp { seconds: 5, nanos: 0 }),
            logs: Some(descriptor("l")),
            result: Some(BuildResultInfo {
                results: [(0, descriptor("r"))].into(),
                result_deprecated: Some(descriptor("old")),
                attestations: vec![descriptor("a")],
            }),
            num_total_steps: 3,
            ..BuildHistoryRecord::default()
        };
        BuildHistoryEvent { r#type: 1, record: Some(record) }
    }

    #[test]
    fn events_as_templates_see_them() {
        let made = |template: &str| Template::parse(template).unwrap().render(&to_data(&event())).unwrap();
        assert_eq!(
            made("json"),
            concat!(
                r#"{"type":1,"record":{"Ref":"abc","CreatedAt":{"seconds":5},"#,
                r#""logs":{"media_type":"application/x","digest":"sha256:l","size":7},"#,
                r#""Result":{"ResultDeprecated":{"media_type":"application/x","digest":"sha256:old","size":7},"#,
                r#""Attestations":[{"media_type":"application/x","digest":"sha256:a","size":7}],"#,
                r#""Results":{"0":{"media_type":"application/x","digest":"sha256:r","size":7}}},"numTotalSteps":3}}"#
            )
        );
        assert_eq!(
            made("{{.Type}} {{.Record.Ref}} {{.Record.Pinned}} {{.Record.NumTotalSteps}}"),
            "COMPLETE abc false 3"
        );
        assert_eq!(made("{{.Record.Logs.MediaType}}"), "application/x");
    }

    #[test]
    fn events_as_the_monitor_shows_them() {
        let of = |letter: &str| format!("media_type:\"application/x\" digest:\"sha256:{letter}\" size:7");
        assert_eq!(
            event_text(&event()),
            format!(
                "event: COMPLETE ref:abc\n  cache: 0/3\n  logs: {}\n  descriptor: {}\n  attestation: {}\n",
                of("l"),
                of("r"),
                of("a")
            )
        );
        assert_eq!(event_text(&BuildHistoryEvent::default()), "event: STARTED ref:\n");
    }

    #[test]
    fn digests_are_checked() {
        let wrong = |text: &str| digest(text).unwrap_err().to_string();
        assert_eq!(wrong("x"), "invalid checksum digest format");
        assert_eq!(wrong("sha256:aa"), "invalid checksum digest length");
        assert_eq!(wrong(&format!("sha256:{}", "G".repeat(64))), "invalid checksum digest format");
        assert_eq!(wrong("md5:aa"), "unsupported digest algorithm");
        assert!(digest(&format!("sha256:{}", "a".repeat(64))).is_ok());
    }
}
