//! Who is at the other end: the identity that a certificate carries as a SAN URI.

use std::fmt;
use std::str::FromStr;

/// Longest name of a host or process; the same limit as in the contracts.
const NAME_BYTES_MAX: usize = 40;
const ROLE_BYTES_MAX: usize = 16;

/// Identity of a peer, `novacron://<role>/<name>` in its certificate's subject alternative names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    role: String,
    name: String,
}

impl PeerIdentity {
    /// Identity of the runner of a host; `None` when the name is not one.
    pub fn host(name: &str) -> Option<Self> {
        Self::new("host", name)
    }

    /// `None` unless role is a-z and name is a-z, 0-9, '-' starting with a letter.
    pub fn new(role: &str, name: &str) -> Option<Self> {
        let role_fits = (1..=ROLE_BYTES_MAX).contains(&role.len())
            && role.bytes().all(|byte| byte.is_ascii_lowercase());
        let name_fits = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (role_fits && name_fits).then(|| Self { role: role.to_owned(), name: name.to_owned() })
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "novacron://{}/{}", self.role, self.name)
    }
}

impl FromStr for PeerIdentity {
    type Err = ();

    /// Inverse of `Display`; an error for anything else.
    fn from_str(uri: &str) -> Result<Self, ()> {
        let rest = uri.strip_prefix("novacron://").ok_or(())?;
        let (role, name) = rest.split_once('/').ok_or(())?;
        Self::new(role, name).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_identity_are_inverse() {
        let host = PeerIdentity::host("host-a").expect("a valid name");
        assert_eq!(host.to_string(), "novacron://host/host-a");
        assert_eq!("novacron://host/host-a".parse(), Ok(host));
    }

    #[test]
    fn anything_else_is_no_identity() {
        for text in [
            "",
            "novacron://",
            "novacron://host",
            "novacron://host/",
            "novacron:///a",
            "novacron://host/A",
            "novacron://host/a/b",
            "novacron://Host/a",
            "http://host/a",
            "novacron://host/1a",
            "novacron://host/a b",
            "novacron://host/é",
        ] {
            assert!(text.parse::<PeerIdentity>().is_err(), "{text}");
        }
        assert!(PeerIdentity::host(&"a".repeat(41)).is_none());
    }
}
