//! What the daemon is: `debug workers` and `debug info`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use castor_client::records::{BuildkitVersion, Platform, WorkerRecord};
use castor_client::{Client, size};

use crate::data::Data;
use crate::failure::show;
use crate::flags::Values;
use crate::gotime::format_duration;
use crate::records::template;
use crate::table::{Padding, align};

/// `debug workers`
pub async fn workers(client: &Client, values: &Values) -> Result<()> {
    let workers = client.workers(values.texts("filter").to_vec()).await?;
    if let Some(template) = template(values)? {
        let list = Data::list(workers.iter().map(to_data));
        show(&(template.render(&list)? + "\n"))?;
    } else if values.bool("verbose") {
        show(&align(&verbose(&workers), Padding::Tabs))?;
    } else {
        let mut text = String::from("ID\tPLATFORMS\n");
        for worker in &workers {
            let _ = writeln!(text, "{}\t{}", worker.id, platforms(worker));
        }
        show(&align(&text, Padding::Tabs))?;
    }
    Ok(())
}

/// `debug info`
pub async fn info(client: &Client, values: &Values) -> Result<()> {
    let version = client.info().await?;
    if let Some(template) = template(values)? {
        show(&(template.render(&Data::map([("buildkitVersion", version_data(&version))]))? + "\n"))?;
        return Ok(());
    }
    show(&align(&version_lines(&version), Padding::Blanks))?;
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

fn version_data(version: &BuildkitVersion) -> Data {
    let mut fields = vec![
        ("package", Data::from(&version.package)),
        ("version", (&version.version).into()),
        ("revision", (&version.revision).into()),
    ];
    if !version.dockerfile_version.is_empty() {
        fields.push(("dockerfileVersion", (&version.dockerfile_version).into()));
    }
    Data::map(fields)
}

fn platform_data(platform: &Platform) -> Data {
    let mut fields = vec![("architecture", Data::from(&platform.architecture)), ("os", (&platform.os).into())];
    if !platform.os_version.is_empty() {
        fields.push(("os.version", (&platform.os_version).into()));
    }
    if !platform.os_features.is_empty() {
        fields.push(("os.features", Data::list(platform.os_features.iter().map(Data::from))));
    }
    if !platform.variant.is_empty() {
        fields.push(("variant", (&platform.variant).into()));
    }
    Data::map(fields)
}

fn to_data(worker: &WorkerRecord) -> Data {
    let strings = |map: &std::collections::BTreeMap<String, String>| {
        Data::map(map.iter().map(|(name, value)| (name.as_str(), value.into())))
    };
    let policies = worker.gc_policy.iter().map(|rule| {
        Data::map([
            ("all", rule.all.into()),
            ("filter", Data::list(rule.filters.iter().map(Data::from))),
            ("keepDuration", rule.keep_duration.into()),
            ("reservedSpace", rule.reserved_space.into()),
            ("maxUsedSpace", rule.max_used_space.into()),
            ("minFreeSpace", rule.min_free_space.into()),
        ])
    });
    let devices = worker.cdi_devices.iter().map(|device| {
        Data::map([
            ("name", (&device.name).into()),
            ("autoAllow", device.auto_allow.into()),
            ("annotations", strings(&device.annotations)),
            ("onDemand", device.on_demand.into()),
        ])
    });
    Data::map([
        ("id", (&worker.id).into()),
        ("labels", strings(&worker.labels)),
        ("platforms", Data::list(worker.platforms.iter().map(platform_data))),
        ("gcPolicy", Data::list(policies)),
        ("buildkitVersion", version_data(&worker.buildkit_version.clone().unwrap_or_default())),
        ("cdiDevices", Data::list(devices)),
    ])
}
