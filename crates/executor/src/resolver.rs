//! The generated `/etc/hosts` and `/etc/resolv.conf` of a container.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::error::ExecError;
use crate::process::HostIp;
use crate::runc::Dns;
use crate::{DEFAULT_HOSTNAME, rooted};

const HOST_FILE: &str = "/etc/resolv.conf";

/// What systemd-resolved writes for those who cannot reach its stub resolver.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";

const RESOLVED_STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Used where nothing else is known.
const FALLBACK: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
];

/// The text of `/etc/hosts`.
pub fn hosts(hostname: &str, extra: &[HostIp]) -> String {
    let hostname = if hostname.is_empty() { DEFAULT_HOSTNAME } else { hostname };
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for line in extra {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}\t{}", line.ip, line.host);
    }
    text
}

/// The text of `/etc/resolv.conf`: the host's, with the settings of `dns`. Name servers on the loopback interface are
/// left out where the container has one of its own.
pub fn resolv_conf(dns: &Dns, host_network: bool) -> Result<String, ExecError> {
    let mut conf = read(Path::new(HOST_FILE))?;
    if !host_network && matches!(conf.nameservers[..], [Server { ip: RESOLVED_STUB, .. }]) {
        conf = read(Path::new(RESOLVED_FILE))?;
    }
    conf.apply(dns, host_network)?;
    Ok(conf.text())
}

fn read(path: &Path) -> Result<Conf, ExecError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Conf::parse(&String::from_utf8_lossy(&bytes))),
        Err(err) if rooted::missing(&err) => Ok(Conf::default()),
        Err(err) => Err(ExecError::setup(format!("read {path:?}"), err)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    ip: IpAddr,
    /// The interface of a link-local address.
    zone: String,
}

impl Server {
    fn parse(text: &str) -> Result<Self, std::net::AddrParseError> {
        let (address, zone) = text.split_once('%').unwrap_or((text, ""));
        let ip = if zone.is_empty() { text.parse()? } else { IpAddr::V6(address.parse()?) };
        Ok(Self { ip, zone: zone.to_owned() })
    }
}

#[derive(Debug, Default)]
struct Conf {
    nameservers: Vec<Server>,
    search: Vec<String>,
    options: Vec<String>,
    /// Lines that are passed on as they are.
    other: Vec<String>,
}

impl Conf {
    fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            let Some(keyword) = words.next() else { continue };
            let words: Vec<String> = words.map(str::to_owned).collect();
            match keyword {
                "nameserver" => conf.nameservers.extend(words.first().and_then(|word| Server::parse(word).ok())),
                // The last one counts.
                "search" | "domain" if !words.is_empty() => conf.search = words,
                "options" => conf.options.extend(words),
                "search" | "domain" => {}
                _ => conf.other.push(line.to_owned()),
            }
        }
        conf
    }

    fn apply(&mut self, dns: &Dns, host_network: bool) -> Result<(), ExecError> {
        if !dns.nameservers.is_empty() {
            let parse = |address: &String| {
                Server::parse(address).map_err(|source| ExecError::NameServer { address: address.clone(), source })
            };
            self.nameservers = dns.nameservers.iter().map(parse).collect::<Result<_, _>>()?;
        }
        if !dns.search_domains.is_empty() {
            self.search = dns.search_domains.iter().filter(|domain| *domain != ".").cloned().collect();
        }
        if !dns.options.is_empty() {
            self.options.clone_from(&dns.options);
        }
        if !host_network && dns.nameservers.is_empty() {
            self.nameservers.retain(|server| !server.ip.is_loopback());
        }
        if self.nameservers.is_empty() {
            tracing::info!("no name server but local ones in {HOST_FILE}: containers use public ones");
            self.nameservers = FALLBACK.iter().map(|&ip| Server { ip, zone: String::new() }).collect();
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            let zone = if server.zone.is_empty() { String::new() } else { format!("%{}", server.zone) };
            let _ = writeln!(text, "nameserver {}{zone}", server.ip);
        }
        for (keyword, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        }
        for line in &self.other {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// Writes a file that every user of the container can read.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    // Whatever the umask says.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transformed(text: &str, dns: &Dns, host_network: bool) -> String {
        let mut conf = Conf::parse(text);
        conf.apply(dns, host_network).unwrap();
        conf.text()
    }

    const HOST: &str = "# made by hand\nnameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\n\
        nameserver bogus\nsearch old\ndomain example.com corp\noptions ndots:1\noptions edns0\nsortlist 1.2.3.4\n";

    #[test]
    fn loopback_servers_are_the_hosts_own() {
        let common = "nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch example.com corp\noptions ndots:1 edns0\nsortlist 1.2.3.4\n";
        assert_eq!(transformed(HOST, &Dns::default(), false), common);
        assert_eq!(transformed(HOST, &Dns::default(), true), format!("nameserver 127.0.0.1\n{common}"));
    }

    #[test]
    fn nothing_left_means_public_servers() {
        let expected = "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n";
        assert_eq!(transformed("nameserver ::1\n", &Dns::default(), false), expected);
        assert_eq!(transformed("", &Dns::default(), true), expected);
    }

    #[test]
    fn configuration_wins() {
        let dns = Dns {
            nameservers: vec!["127.0.0.9".into()],
            options: vec!["timeout:3".into()],
            search_domains: vec![".".into(), "a.example".into()],
        };
        assert_eq!(
            transformed(HOST, &dns, false),
            "nameserver 127.0.0.9\nsearch a.example\noptions timeout:3\nsortlist 1.2.3.4\n"
        );
        let bad = Dns { nameservers: vec!["x".into()], ..Dns::default() };
        assert_eq!(Conf::default().apply(&bad, false).unwrap_err().to_string(), "bad nameserver address \"x\"");
    }

    #[test]
    fn hosts_file() {
        let extra = [HostIp { host: "db".into(), ip: "10.1.2.3".parse().unwrap() }];
        assert_eq!(
            hosts("", &extra),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n"
        );
        assert!(hosts("me", &[]).starts_with("127.0.0.1\tlocalhost me\n"));
    }
}
