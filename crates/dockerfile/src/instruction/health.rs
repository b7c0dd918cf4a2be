//! HEALTHCHECK.

use castor_oci::HealthConfig;

use super::flags::{Flags, Takes};
use crate::error::{DockerfileError, Result};
use crate::gofmt::{parse_duration, parse_int, quote};
use crate::parser::Node;

fn interval(flags: &Flags, name: &str) -> Result<i64> {
    let text = flags.text(name);
    if text.is_empty() {
        return Ok(0);
    }
    let duration = parse_duration(&text).map_err(DockerfileError::new)?;
    if duration != 0 && duration < 1_000_000 {
        return Err(DockerfileError::new(format!("Interval {} cannot be less than 1ms", quote(name))));
    }
    Ok(duration)
}

pub(super) fn parse(node: &Node) -> Result<HealthConfig> {
    let refuse = |message: String| Err(DockerfileError::new(message));
    let Some((kind, rest)) = node.args.split_first() else {
        return refuse("HEALTHCHECK requires at least one argument".into());
    };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !rest.is_empty() {
            return refuse("HEALTHCHECK NONE takes no arguments".into());
        }
        return Ok(HealthConfig { test: vec![kind], ..HealthConfig::default() });
    }
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"].map(|name| (name, Takes::Text));
    let flags = Flags::parse(&node.flags, &known)?;
    if kind != "CMD" {
        return refuse(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind)));
    }
    let command = super::parse::json_args(rest, node.json);
    if command.is_empty() {
        return refuse("Missing command after HEALTHCHECK CMD".into());
    }
    let mut test = vec![if node.json { kind } else { "CMD-SHELL".into() }];
    test.extend(command);
    let mut health = HealthConfig {
        test,
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries: 0,
    };
    let retries = flags.text("retries");
    if !retries.is_empty() {
        health.retries = parse_int(&retries, 32).map_err(DockerfileError::new)?;
        if health.retries < 0 {
            return refuse(format!("--retries cannot be negative ({})", health.retries));
        }
    }
    Ok(health)
}
