//! What the client says beside the progress, in the form of BuildKit's: `time="..." level=info msg="..."`.

use std::fmt;
use std::io::{self, IsTerminal as _};

use anyhow::{Result, bail};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging in a format: `text` or `json`.
pub fn start(format: &str, debug: bool) -> Result<()> {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let builder = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_target(false);
    match format {
        "json" => builder.json().init(),
        "text" | "" => builder.with_ansi(io::stderr().is_terminal()).event_format(Text).init(),
        other => bail!("unsupported log type {other:?}"),
    }
    Ok(())
}

struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let time = castor_client::records::now();
        let mut fields = Fields::default();
        event.record(&mut fields);
        write!(out, "time=\"{time}\" level={level} msg={:?}", fields.message)?;
        writeln!(out, "{}", fields.rest)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
}
