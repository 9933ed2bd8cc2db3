//! IPv4 subnets and hardware addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Why a string is not a subnet sandboxes can live in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSubnet {
    /// Not `a.b.c.d/n`.
    #[error("subnet {0:?} is not an IPv4 subnet like \"10.85.0.0/16\"")]
    Syntax(String),
    /// Bits after the prefix are set.
    #[error("subnet {0:?} has bits set after its prefix")]
    HostBits(String),
    /// Too small for a gateway and a sandbox, or so large that it is surely a mistake.
    #[error("subnet {0:?} must have a prefix of 8 to 29 bits")]
    Size(String),
    /// Loopback, multicast, link-local, or the unspecified network.
    #[error("subnet {0:?} is not of addresses that interfaces can have")]
    Unusable(String),
}

/// An IPv4 subnet of sandboxes. Its first address is the gateway's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The network address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Length of the prefix, bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The address of the bridge: the first of the subnet.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The first address a sandbox may have.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 2)
    }

    /// The last address a sandbox may have: the one before the broadcast address.
    #[must_use]
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.broadcast()) - 1)
    }

    /// The broadcast address: the last of the subnet.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | !mask(self.prefix))
    }

    /// How many sandboxes can have an address at one time.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        u32::from(self.last()) - u32::from(self.first()) + 1
    }

    /// Whether `address` is of this subnet.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    /// Whether some address is of both this subnet and `address/prefix`.
    #[must_use]
    pub fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let common = mask(self.prefix.min(prefix));
        u32::from(address) & common == u32::from(self.network) & common
    }

    /// The netmask.
    #[must_use]
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The first free address after `previous`, round robin; `None` when all are taken.
    ///
    /// `taken` says which are; the gateway, the network and the broadcast address are
    /// never answered. An address so rests as long as the subnet allows.
    #[must_use]
    pub fn next_free(
        &self,
        previous: Option<Ipv4Addr>,
        taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let (first, last) = (u32::from(self.first()), u32::from(self.last()));
        let start = match previous.map(u32::from) {
            Some(previous) if (first..last).contains(&previous) => previous + 1,
            _ => first,
        };
        (start..=last).chain(first..start).map(Ipv4Addr::from).find(|address| !taken(*address))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let shown = || text.chars().take(64).collect::<String>();
        let syntax = || InvalidSubnet::Syntax(shown());
        let (network, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let network: Ipv4Addr = network.parse().map_err(|_| syntax())?;
        if prefix.is_empty() || prefix.len() > 2 || !prefix.bytes().all(|c| c.is_ascii_digit()) {
            return Err(syntax());
        }
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        if !(8..=29).contains(&prefix) {
            return Err(InvalidSubnet::Size(shown()));
        }
        if u32::from(network) & !mask(prefix) != 0 {
            return Err(InvalidSubnet::HostBits(shown()));
        }
        if network.octets()[0] == 0
            || network.octets()[0] >= 224
            || network.is_loopback()
            || network.is_link_local()
        {
            return Err(InvalidSubnet::Unusable(shown()));
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Why a string is not a hardware address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("hardware address {0:?} is not like \"0a:58:0a:55:00:02\"")]
pub struct InvalidMac(String);

/// A hardware address of an Ethernet interface.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The one that goes with an IPv4 address: `0a:58` and its four bytes, as the CNI
    /// plugins have it.
    ///
    /// An address that is given again keeps its hardware address, so neighbours' ARP
    /// entries stay true; and it needs not be read back from the kernel.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x0a, 0x58, a, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() || text.contains('+') { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_knows_its_special_addresses() {
        let net = subnet("10.85.0.0/16");
        assert_eq!(net.to_string(), "10.85.0.0/16");
        assert_eq!(net.gateway(), ip("10.85.0.1"));
        assert_eq!((net.first(), net.last()), (ip("10.85.0.2"), ip("10.85.255.254")));
        assert_eq!(net.broadcast(), ip("10.85.255.255"));
        assert_eq!(net.netmask(), ip("255.255.0.0"));
        assert_eq!(net.capacity(), 65_533);
        assert!(net.contains(ip("10.85.7.7")) && !net.contains(ip("10.86.0.0")));
    }

    #[test]
    fn the_smallest_subnet_has_five_sandboxes() {
        assert_eq!(subnet("192.168.7.8/29").capacity(), 5);
    }

    #[test]
    fn what_is_not_a_subnet_is_refused() {
        use InvalidSubnet::{HostBits, Size, Syntax, Unusable};
        let refused = |text: &str| text.parse::<Subnet>().unwrap_err();
        for text in ["", "10.85.0.0", "10.85.0.0/", "10.85.0.0/+8", "10.85/16", "::1/16", "x/16"] {
            assert_eq!(refused(text), Syntax(text.to_owned()));
        }
        assert!(matches!(refused("10.85.0.1/16"), HostBits(_)));
        for text in ["10.85.0.0/30", "0.0.0.0/0", "10.0.0.0/33"] {
            assert!(matches!(refused(text), Size(_)), "{text}");
        }
        for text in ["127.0.0.0/8", "224.0.0.0/8", "169.254.0.0/16", "0.0.0.0/8", "255.0.0.0/8"] {
            assert!(matches!(refused(text), Unusable(_)), "{text}");
        }
    }

    #[test]
    fn overlap_is_found_in_both_directions() {
        let net = subnet("10.85.0.0/16");
        assert!(net.overlaps(ip("10.85.3.4"), 24));
        assert!(net.overlaps(ip("10.1.1.1"), 8));
        assert!(net.overlaps(ip("10.85.3.4"), 32));
        assert!(!net.overlaps(ip("10.86.0.1"), 16));
        assert!(net.overlaps(ip("192.168.1.1"), 0));
    }

    #[test]
    fn addresses_are_given_round_robin() {
        let net = subnet("10.0.0.0/29");
        let mut previous = None;
        let mut given = Vec::new();
        for _ in 0..6 {
            previous = net.next_free(previous, |_| false);
            given.push(previous.unwrap().octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6, 2]);
    }

    #[test]
    fn taken_addresses_are_skipped_until_none_is_left() {
        let net = subnet("10.0.0.0/29");
        let free = |address: Ipv4Addr| address.octets()[3] == 4;
        assert_eq!(net.next_free(Some(ip("10.0.0.5")), |a| !free(a)), Some(ip("10.0.0.4")));
        assert_eq!(net.next_free(Some(ip("10.0.0.4")), |a| !free(a)), Some(ip("10.0.0.4")));
        assert_eq!(net.next_free(Some(ip("10.0.0.5")), |_| true), None);
        assert_eq!(net.next_free(Some(ip("172.16.0.1")), |_| false), Some(ip("10.0.0.2")));
    }

    #[test]
    fn a_hardware_address_follows_the_address_and_survives_its_text() {
        let mac = MacAddr::of(ip("10.85.0.2"));
        assert_eq!(mac.to_string(), "0a:58:0a:55:00:02");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for text in ["", "0a:58", "0a:58:0a:55:00:02:03", "0a:58:0a:55:00:2", "+a:58:0a:55:00:02"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
