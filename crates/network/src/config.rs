//! What an operator chooses.

use crate::address::Subnet;

/// Why a configuration cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// Not a name the kernel gives an interface, or one of the kernel's own (`all`, `default`).
    #[error("bridge name {0:?} must be 1 to 15 printable bytes without '/', ':' and blanks")]
    Bridge(String),
    /// Not a name nftables accepts without quotes.
    #[error(
        "table name {0:?} must be 1 to 32 letters, digits, '_' or '-', and start with a letter"
    )]
    Table(String),
    /// Smaller than IPv4 requires of every link, or larger than a veth can have.
    #[error("mtu {0} must be 576 to 65535")]
    Mtu(u32),
}

/// What an operator chooses. [`crate::Network::new`] validates it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkConfig {
    /// Name of the bridge; made when there is none. Each daemon needs its own.
    pub bridge: String,
    /// Where sandboxes get their addresses; its first address is the gateway's.
    pub subnet: Subnet,
    /// MTU of the bridge and of sandboxes, bytes.
    pub mtu: u32,
    /// Whether what sandboxes send out of the subnet takes the address of the node.
    pub masquerade: bool,
    /// Name of the nftables table. Each daemon needs its own.
    pub table: String,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            bridge: "berth0".into(),
            subnet: "10.85.0.0/16".parse().expect("a valid constant"),
            mtu: 1500,
            masquerade: true,
            table: "berth".into(),
        }
    }
}

impl NetworkConfig {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let name = self.bridge.as_bytes();
        let printable = |c: &u8| c.is_ascii_graphic() && !matches!(c, b'/' | b':' | b'%');
        if name.is_empty()
            || name.len() > 15
            || !name.iter().all(printable)
            || matches!(self.bridge.as_str(), "." | ".." | "all" | "default" | "lo")
        {
            return Err(InvalidConfig::Bridge(self.bridge.chars().take(64).collect()));
        }
        let table = self.table.as_bytes();
        let inner = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
        if !table.first().is_some_and(u8::is_ascii_alphabetic)
            || table.len() > 32
            || !table.iter().all(inner)
        {
            return Err(InvalidConfig::Table(self.table.chars().take(64).collect()));
        }
        if !(576..=65_535).contains(&self.mtu) {
            return Err(InvalidConfig::Mtu(self.mtu));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl Fn(&mut NetworkConfig), expected: Option<InvalidConfig>) {
        let mut config = NetworkConfig::default();
        change(&mut config);
        assert_eq!(config.validate().err(), expected);
    }

    #[test]
    fn the_default_is_valid_and_has_room() {
        check(|_| (), None);
        assert!(NetworkConfig::default().subnet.capacity() >= 2_000);
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        for name in ["", "a name", "a/b", "sixteen-bytes-xx", "..", "default", "b%d", "é"] {
            let refused = Some(InvalidConfig::Bridge(name.to_owned()));
            check(|config| name.clone_into(&mut config.bridge), refused);
        }
        for name in ["", "0berth", "be rth", "berth;flush", "a23456789012345678901234567890123"] {
            let refused = Some(InvalidConfig::Table(name.to_owned()));
            check(|config| name.clone_into(&mut config.table), refused);
        }
    }

    #[test]
    fn an_mtu_out_of_range_is_refused() {
        check(|config| config.mtu = 575, Some(InvalidConfig::Mtu(575)));
        check(|config| config.mtu = 65_536, Some(InvalidConfig::Mtu(65_536)));
        check(|config| config.mtu = 9_000, None);
    }
}
