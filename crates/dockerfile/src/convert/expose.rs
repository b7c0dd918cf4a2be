//! EXPOSE.

use super::Converter;
use super::dispatch::Step;
use crate::error::{DockerfileError, Result};
use crate::gofmt;
use crate::gofmt::quote;
use crate::lint::Rule;

/// All ports of all protocols.
const MAX_PORTS: usize = 3 << 16;

/// First and last port of `N` or `N-M`.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let digits = text.strip_prefix('+').unwrap_or(text);
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    };
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let first = number(start)?;
    if start == end {
        return Some((first, first));
    }
    let last = number(end)?;
    (last >= first).then_some((first, last))
}

/// `[ip:][host:]container[/protocol]`, taken apart.
fn split(text: &str) -> (&str, &str, &str) {
    match text.rsplit_once(':') {
        None => ("", "", text),
        Some((rest, container)) => match rest.rsplit_once(':') {
            None => ("", rest, container),
            Some((ip, host)) => (ip, host, container),
        },
    }
}

impl Converter<'_> {
    pub(super) fn expose(&mut self, step: &Step<'_>, ports: &[String]) -> Result<()> {
        let mut words = Vec::new();
        for port in ports {
            words.extend(self.lexer.words(port, self.state(step.stage).get_env())?);
        }
        let mut exposed = Vec::new();
        for word in &words {
            ports_of(step, word, &mut exposed)?;
        }
        let config = &mut self.stages[step.stage].image.config;
        config.exposed_ports.extend(exposed.iter().map(|port| (port.clone(), serde_json::json!({}))));
        self.commit(step.stage, &format!("EXPOSE {}", gofmt::list(&exposed)));
        Ok(())
    }
}

/// What is in the brackets of an IPv6 address; the error is that of Go's `net.SplitHostPort`.
fn unbracketed(ip: &str) -> Result<&str, String> {
    let refuse = |what: &str| Err(format!("address {ip}:: {what}"));
    let Some(end) = ip.find(']') else { return refuse("missing ']' in address") };
    match &ip[end + 1..] {
        "" if ip[1..end].contains('[') => refuse("unexpected '[' in address"),
        "" => Ok(&ip[1..end]),
        rest if rest.starts_with(':') => refuse("too many colons in address"),
        _ => refuse("missing port in address"),
    }
}

fn ports_of(step: &Step<'_>, text: &str, exposed: &mut Vec<String>) -> Result<()> {
    let refuse = |message: String| Err(DockerfileError::new(message));
    let (ip, host, container) = split(text);
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return refuse(format!("invalid port: {}: no port specified", quote(text)));
    }
    let lower = protocol.to_lowercase();
    let lower = match lower.as_str() {
        "" => "tcp",
        lower @ ("tcp" | "udp" | "sctp") => lower,
        _ => return refuse(format!("invalid port: {}: invalid proto: {protocol}", quote(text))),
    };
    if protocol != protocol.to_lowercase() {
        let text = format!("Defined protocol '{text}' in EXPOSE instruction should be lowercase");
        step.linter.report(Rule::ExposeProtoCasing, step.location(), text);
    }
    if !ip.is_empty() || !host.is_empty() {
        let text = format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'");
        step.linter.report(Rule::ExposeInvalidFormat, step.location(), text);
    }
    let address = if ip.starts_with('[') {
        unbracketed(ip).map_err(|error| DockerfileError::new(format!("invalid IP address {ip}: {error}")))?
    } else {
        ip
    };
    if !ip.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return refuse(format!("invalid IP address: {address}"));
    }
    let Some((first, last)) = range(ports) else { return refuse(format!("invalid containerPort: {ports}")) };
    if !host.is_empty() {
        let Some((host_first, host_last)) = range(host) else { return refuse(format!("invalid hostPort: {host}")) };
        if last - first != host_last - host_first && first != last {
            return refuse(format!("invalid ranges specified for container and host Ports: {ports} and {host}"));
        }
    }
    if exposed.len() > MAX_PORTS {
        return refuse(format!("EXPOSE exceeds the limit of {MAX_PORTS} ports"));
    }
    exposed.extend((first..=last).map(|port| format!("{port}/{lower}")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges_and_mappings() {
        assert_eq!(range("80"), Some((80, 80)));
        assert_eq!(range("80-82"), Some((80, 82)));
        for text in ["", "90-80", "x", "1-", "65536", "-1"] {
            assert_eq!(range(text), None, "{text}");
        }
        assert_eq!(split("::1:8:9/udp"), ("::1", "8", "9/udp"));
        assert_eq!(split("8:9"), ("", "8", "9"));
    }
}
