//! What the daemon is: `debug workers` and `debug info`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use castor_client::records::{BuildkitVersion, Platform, WorkerRecord};
use castor_client::{Client, size};
use serde_json::{Value, json};

use crate::flags::Values;
use crate::gotime::format_duration;
use crate::records::template;
use crate::table::{Padding, align};

/// `debug workers`
pub async fn workers(client: &Client, values: &Values) -> Result<()> {
    let workers = client.workers(values.texts("filter").to_vec()).await?;
    if let Some(template) = template(values)? {
        let list = Value::Array(workers.iter().map(to_json).collect());
        println!("{}", template.render(&list)?);
    } else if values.bool("verbose") {
        print!("{}", align(&verbose(&workers), Padding::Tabs));
    } else {
        let mut text = String::from("ID\tPLATFORMS\n");
        for worker in &workers {
            let _ = writeln!(text, "{}\t{}", worker.id, platforms(worker));
        }
        print!("{}", align(&text, Padding::Tabs));
    }
    Ok(())
}

/// `debug info`
pub async fn info(client: &Client, values: &Values) -> Result<()> {
    let version = client.info().await?;
    if let Some(template) = template(values)? {
        println!("{}", template.render(&json!({ "buildkitVersion": version_json(&version) }))?);
        return Ok(());
    }
    print!("{}", align(&version_lines(&version), Padding::Blanks));
    Ok(())
}

fn version_lines(version: &BuildkitVersion) -> String {
    let mut text = format!("BuildKit:\t{} {} {}\n", version.package, version.version, version.revision);
    if !version.dockerfile_version.is_empty() {
        let _ = writeln!(text, "Dockerfile:\t{}", version.dockerfile_version);
    }
    text
}

fn verbose(workers: &[WorkerRecord]) -> String {
    let mut text = String::new();
    for worker in workers {
        let _ = writeln!(text, "ID:\t{}", worker.id);
        let _ = writeln!(text, "Platforms:\t{}", platforms(worker));
        text += &version_lines(&worker.buildkit_version.clone().unwrap_or_default());
        text += "Labels:\n";
        for (name, value) in &worker.labels {
            let _ = writeln!(text, "\t{name}:\t{value}");
        }
        if !worker.cdi_devices.is_empty() {
            text += "Devices:\n";
            for device in &worker.cdi_devices {
                let _ = writeln!(text, "\tName:\t{}", device.name);
                let (name, value) =
                    if device.on_demand { ("OnDemand", true) } else { ("AutoAllow", device.auto_allow) };
                let _ = writeln!(text, "\t{name}:\t{value}");
                for (name, value) in &device.annotations {
                    let _ = writeln!(text, "\tAnnotations:\t{name}:\t{value}");
                }
            }
            text.push('\n');
        }
        for (number, rule) in worker.gc_policy.iter().enumerate() {
            let _ = writeln!(text, "GC Policy rule#{number}:\n\tAll:\t{}", rule.all);
            if !rule.filters.is_empty() {
                let _ = writeln!(text, "\tFilters:\t{}", rule.filters.join(" "));
            }
            if rule.keep_duration > 0 {
                let duration = Duration::from_nanos(rule.keep_duration.unsigned_abs());
                let _ = writeln!(text, "\tKeep duration:\t{}", format_duration(duration));
            }
            for (name, bytes) in [
                ("Reserved space", rule.reserved_space),
                ("Minimum free space", rule.min_free_space),
                ("Maximum used space", rule.max_used_space),
            ] {
                if bytes > 0 {
                    let _ = writeln!(text, "\t{name}:\t{}", size::exact(bytes));
                }
            }
        }
        text.push('\n');
    }
    text
}

fn platforms(worker: &WorkerRecord) -> String {
    worker.platforms.iter().map(platform).collect::<Vec<_>>().join(",")
}

/// `linux/arm/v7`; the variants that are understood are left out.
fn platform(platform: &Platform) -> String {
    let implied =
        matches!((platform.architecture.as_str(), platform.variant.as_str()), ("arm64", "v8") | ("amd64", "v1"));
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    let shown = parts.iter().take(if implied { 2 } else { 3 }).filter(|part| !part.is_empty());
    shown.map(|part| part.as_str()).collect::<Vec<_>>().join("/")
}

fn version_json(version: &BuildkitVersion) -> Value {
    let mut value = json!({
        "package": version.package,
        "version": version.version,
        "revision": version.revision,
    });
    if !version.dockerfile_version.is_empty() {
        value["dockerfileVersion"] = version.dockerfile_version.clone().into();
    }
    value
}

fn to_json(worker: &WorkerRecord) -> Value {
    let platform = |platform: &Platform| {
        let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            value["variant"] = platform.variant.clone().into();
        }
        if !platform.os_version.is_empty() {
            value["os.version"] = platform.os_version.clone().into();
        }
        value
    };
    let policies: Vec<Value> = worker
        .gc_policy
        .iter()
        .map(|rule| {
            json!({
                "all": rule.all,
                "filter": if rule.filters.is_empty() { Value::Null } else { rule.filters.clone().into() },
                "keepDuration": rule.keep_duration,
                "reservedSpace": rule.reserved_space,
                "maxUsedSpace": rule.max_used_space,
                "minFreeSpace": rule.min_free_space,
            })
        })
        .collect();
    let devices: Vec<Value> = worker
        .cdi_devices
        .iter()
        .map(|device| {
            json!({
                "name": device.name,
                "autoAllow": device.auto_allow,
                "annotations": device.annotations,
                "onDemand": device.on_demand,
            })
        })
        .collect();
    json!({
        "id": worker.id,
        "labels": worker.labels,
        "platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
        "gcPolicy": policies,
        "buildkitVersion": version_json(&worker.buildkit_version.clone().unwrap_or_default()),
        "cdiDevices": if devices.is_empty() { Value::Null } else { devices.into() },
    })
}
