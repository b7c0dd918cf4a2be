//! What builds may do beyond the ordinary.

use std::collections::BTreeSet;

use castor_ops::{BridgeError, Entitlements};

/// Steps may use the host's network.
pub const NETWORK_HOST: &str = "network.host";
/// Steps may run with all privileges.
pub const SECURITY_INSECURE: &str = "security.insecure";

/// What one build was granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted(BTreeSet<String>);

impl Granted {
    /// Grants what is `wanted`, if the daemon allows it.
    pub fn new(wanted: &[String], allowed: &BTreeSet<String>) -> Result<Self, BridgeError> {
        let mut granted = BTreeSet::new();
        for wish in wanted {
            // Parameters behind the name narrow a wish down.
            let name = wish.split(['=', ',']).next().unwrap_or(wish);
            if !matches!(name, NETWORK_HOST | SECURITY_INSECURE | "device") {
                return Err(BridgeError::unknown(format!("unknown entitlement {name}")));
            }
            if !allowed.contains(name) {
                let message = format!("granting entitlement {name} is not allowed by build daemon configuration");
                return Err(BridgeError::unknown(message));
            }
            granted.insert(name.to_owned());
        }
        Ok(Self(granted))
    }

    /// As ops ask for it.
    pub fn for_ops(&self) -> Entitlements {
        Entitlements {
            network_host: self.0.contains(NETWORK_HOST),
            security_insecure: self.0.contains(SECURITY_INSECURE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_daemon_allows_is_granted() {
        let allowed = [NETWORK_HOST.to_owned()].into();
        assert!(Granted::new(&[NETWORK_HOST.into()], &allowed).is_ok());
        let error = Granted::new(&[SECURITY_INSECURE.into()], &allowed).unwrap_err();
        assert_eq!(
            error.message,
            "granting entitlement security.insecure is not allowed by build daemon configuration"
        );
        assert_eq!(Granted::new(&["root".into()], &allowed).unwrap_err().message, "unknown entitlement root");
    }
}
