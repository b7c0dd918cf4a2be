//! Where a daemon listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, `unix:///run/buildkit/buildkitd.sock`.
    Unix(PathBuf),
    /// A TCP socket, `tcp://127.0.0.1:1234`.
    Tcp(String),
    /// The socket that the service manager passed, `fd://`.
    Inherited,
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `://`.
    #[error("invalid address {0:?}: want unix://<path> or tcp://<host>:<port>")]
    NoScheme(String),
    /// A scheme that castor does not speak.
    #[error("invalid address {0:?}: only unix, tcp and fd addresses are supported")]
    Scheme(String),
    /// Nothing behind the scheme, or no port.
    #[error("invalid address {0:?}: {1}")]
    Incomplete(String, &'static str),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| AddressError::NoScheme(text.into()))?;
        match scheme {
            "unix" if rest.is_empty() => Err(AddressError::Incomplete(text.into(), "no path")),
            "unix" => Ok(Self::Unix(rest.into())),
            "tcp" => match rest.trim_end_matches('/').rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(rest.trim_end_matches('/').into())),
                _ => Err(AddressError::Incomplete(text.into(), "no port")),
            },
            // Of several sockets the first is taken, as by BuildKit.
            "fd" if rest.is_empty() => Ok(Self::Inherited),
            "fd" => Err(AddressError::Incomplete(text.into(), "a socket cannot be chosen: want fd://")),
            _ => Err(AddressError::Scheme(text.into())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Inherited => f.write_str("fd://"),
        }
    }
}

impl Address {
    /// The host of a TCP address without its port, for checking a certificate.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp(address) => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                Some(host.trim_start_matches('[').trim_end_matches(']'))
            }
            Self::Unix(_) | Self::Inherited => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["unix:///run/x.sock", "tcp://127.0.0.1:80", "tcp://[::1]:80", "fd://"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["/run/x.sock", "unix://", "tcp://host", "npipe://x", "tcp://host:http", "fd://3"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!("tcp://[::1]:80".parse::<Address>().unwrap().host(), Some("::1"));
    }
}
