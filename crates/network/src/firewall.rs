//! Our nftables table.
//!
//! ```text
//! table ip berth {
//!   map host_ports    { inet_proto . inet_service : ipv4_addr . inet_service }
//!   map address_ports { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!   chain guard       { filter, prerouting, raw:  iifname BRIDGE ip saddr 127.0.0.0/8 drop
//!                                                 iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//!   chain prerouting  { nat, dstnat:   fib daddr type local jump ports }
//!   chain output      { nat, dstnat:   fib daddr type local jump ports }
//!   chain ports       { dnat to ip daddr . meta l4proto . th dport map @address_ports
//!                       dnat to meta l4proto . th dport map @host_ports }
//!   chain postrouting { nat, srcnat:
//!     oifname BRIDGE ip saddr 127.0.0.0/8 masquerade                      (127.0.0.1:port)
//!     oifname BRIDGE ip saddr SUBNET ct status dnat masquerade            (hairpin)
//!     ip saddr SUBNET ip daddr != SUBNET oifname != BRIDGE ip daddr != 224.0.0.0/4 masquerade }
//! }
//! ```
//!
//! Ports are elements whose comment is the sandbox's id, so that the kernel itself says
//! whose a port is, before and after a restart. A mapping of one address of the node
//! precedes one of all its addresses; both may exist.
//!
//! `guard` closes what `route_localnet` opens: without it a sandbox could reach services
//! that listen on the node's 127.0.0.1 (CVE-2020-8558). Only local addresses are
//! translated, so a mapping never captures traffic that passes through. There is no forward
//! chain: an accept of ours could not undo the drop of another table, and with no other
//! table nothing is dropped.

use std::net::{IpAddr, Ipv4Addr};

use berth_model::SandboxId;
use berth_model::sandbox::{PortMapping, Protocol};
use nix::errno::Errno;

use crate::config::NetworkConfig;
use crate::error::{Error, HostPort};
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::nft::expression::{self as on, Field, Is, Meta};
use crate::nft::{self, DataType, Element, Hook, REG};

const HOST_PORTS: (&str, u32) = ("host_ports", 1);
const ADDRESS_PORTS: (&str, u32) = ("address_ports", 2);
const LOOPBACK: (Ipv4Addr, [u8; 4]) = (Ipv4Addr::new(127, 0, 0, 0), [255, 0, 0, 0]);
const MULTICAST: (Ipv4Addr, [u8; 4]) = (Ipv4Addr::new(224, 0, 0, 0), [240, 0, 0, 0]);
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// Most port mappings of one sandbox.
const MAX_PORTS: usize = 4096;

/// Makes the table, or replaces its rules; elements of its maps stay.
pub(crate) fn ensure(socket: &mut Socket, config: &NetworkConfig) -> Result<(), Error> {
    use DataType::{InetProtocol, InetService, Ipv4Address};
    let table = config.table.as_str();
    let request = nft::transaction(&format!("set up nftables table {table}"), |request| {
        nft::add_table(request, table);
        let port = [InetProtocol, InetService];
        let address_port = [Ipv4Address, InetProtocol, InetService];
        let target = [Ipv4Address, InetService];
        nft::add_map(request, table, HOST_PORTS, &port, &target);
        nft::add_map(request, table, ADDRESS_PORTS, &address_port, &target);
        let hook = |kind, number, priority| Some(Hook { kind, number, priority });
        nft::add_chain(request, table, "guard", hook("filter", PREROUTING, -300));
        nft::add_chain(request, table, "ports", None);
        nft::add_chain(request, table, "prerouting", hook("nat", PREROUTING, -100));
        nft::add_chain(request, table, "output", hook("nat", OUTPUT, -100));
        nft::add_chain(request, table, "postrouting", hook("nat", POSTROUTING, 100));
        add_guard(request, config);
        add_ports(request, table);
        add_masquerade(request, config);
    });
    socket.run(request)
}

fn add_guard(request: &mut Request, config: &NetworkConfig) {
    for field in [Field::SourceAddress, Field::DestinationAddress] {
        nft::add_rule(request, &config.table, "guard", |rule| {
            interface(rule, Meta::InputInterface, Is::Equal, &config.bridge);
            address(rule, field, Is::Equal, LOOPBACK);
            on::drop_packet(rule);
        });
    }
}

fn add_ports(request: &mut Request, table: &str) {
    for chain in ["prerouting", "output"] {
        nft::add_rule(request, table, chain, |rule| {
            const RTN_LOCAL: u32 = 2;
            on::load_destination_type(rule, REG);
            on::compare(rule, REG, Is::Equal, &RTN_LOCAL.to_ne_bytes());
            on::jump(rule, "ports");
        });
    }
    nft::add_rule(request, table, "ports", |rule| {
        on::load_field(rule, Field::DestinationAddress, REG);
        on::load_meta(rule, Meta::Protocol, REG + 1);
        on::load_field(rule, Field::DestinationPort, REG + 2);
        on::look_up(rule, ADDRESS_PORTS, REG);
        on::destination_nat(rule, REG, REG + 1);
    });
    nft::add_rule(request, table, "ports", |rule| {
        on::load_meta(rule, Meta::Protocol, REG);
        on::load_field(rule, Field::DestinationPort, REG + 1);
        on::look_up(rule, HOST_PORTS, REG);
        on::destination_nat(rule, REG, REG + 1);
    });
}

fn add_masquerade(request: &mut Request, config: &NetworkConfig) {
    const IPS_DST_NAT: u32 = 1 << 5;
    let (table, bridge) = (config.table.as_str(), config.bridge.as_str());
    let subnet = (config.subnet.network(), config.subnet.netmask().octets());
    nft::add_rule(request, table, "postrouting", |rule| {
        interface(rule, Meta::OutputInterface, Is::Equal, bridge);
        address(rule, Field::SourceAddress, Is::Equal, LOOPBACK);
        on::masquerade(rule);
    });
    nft::add_rule(request, table, "postrouting", |rule| {
        interface(rule, Meta::OutputInterface, Is::Equal, bridge);
        address(rule, Field::SourceAddress, Is::Equal, subnet);
        on::load_connection_status(rule, REG);
        on::mask(rule, REG, IPS_DST_NAT.to_ne_bytes());
        on::compare(rule, REG, Is::NotEqual, &[0; 4]);
        on::masquerade(rule);
    });
    if !config.masquerade {
        return;
    }
    nft::add_rule(request, table, "postrouting", |rule| {
        address(rule, Field::SourceAddress, Is::Equal, subnet);
        address(rule, Field::DestinationAddress, Is::NotEqual, subnet);
        interface(rule, Meta::OutputInterface, Is::NotEqual, bridge);
        address(rule, Field::DestinationAddress, Is::NotEqual, MULTICAST);
        on::masquerade(rule);
    });
}

fn interface(rule: &mut Request, which: Meta, is: Is, name: &str) {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    on::load_meta(rule, which, REG);
    on::compare(rule, REG, is, &padded);
}

fn address(rule: &mut Request, field: Field, is: Is, (network, mask): (Ipv4Addr, [u8; 4])) {
    on::load_field(rule, field, REG);
    on::mask(rule, REG, mask);
    on::compare(rule, REG, is, &network.octets());
}

/// One mapping as an element, and the map it is in.
#[derive(Clone, Debug)]
pub(crate) struct PortElement {
    host: HostPort,
    map: &'static str,
    element: Element,
}

impl PortElement {
    /// Whether processes of the node can reach it at 127.0.0.1.
    pub(crate) fn serves_loopback(&self) -> bool {
        match self.host.address {
            None => true,
            Some(address) => address.is_loopback(),
        }
    }

    fn is(&self, map: &str, element: &Element) -> bool {
        self.map == map && self.element.key == element.key
    }
}

/// Checks the mappings of a sandbox and makes elements of them.
pub(crate) fn port_elements(
    sandbox: &SandboxId,
    address: Ipv4Addr,
    ports: &[PortMapping],
) -> Result<Vec<PortElement>, Error> {
    if ports.len() > MAX_PORTS {
        let (sandbox, count) = (sandbox.clone(), ports.len());
        return Err(Error::TooManyPorts { sandbox, count, limit: MAX_PORTS });
    }
    let mut seen = std::collections::HashSet::new();
    let mut elements = Vec::with_capacity(ports.len());
    for mapping in ports {
        let element = port_element(sandbox, address, mapping)?;
        if !seen.insert(element.host) {
            return Err(Error::PortRepeated(element.host));
        }
        elements.push(element);
    }
    Ok(elements)
}

fn port_element(
    sandbox: &SandboxId,
    address: Ipv4Addr,
    mapping: &PortMapping,
) -> Result<PortElement, Error> {
    let PortMapping { protocol, container_port, host_port, host_ip } = *mapping;
    let mut host = HostPort { protocol, address: host_ip, port: host_port };
    if container_port == 0 || host_port == 0 {
        return Err(Error::PortZero { host_port, container_port });
    }
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let padded = |port: u16| {
        let [high, low] = port.to_be_bytes();
        [high, low, 0, 0]
    };
    let mut key = [[number, 0, 0, 0], padded(host_port)].concat();
    let map = match host_ip {
        Some(IpAddr::V6(_)) => return Err(Error::PortIpv6(host)),
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => {
            key.splice(..0, ip.octets());
            ADDRESS_PORTS.0
        }
        _ => {
            host.address = None;
            HOST_PORTS.0
        }
    };
    let data = [address.octets(), padded(container_port)].concat();
    let comment = sandbox.as_str().to_owned();
    Ok(PortElement { host, map, element: Element { key, data, comment } })
}

/// Adds the ports of a sandbox, all or none.
pub(crate) fn add_port_elements(
    socket: &mut Socket,
    table: &str,
    ports: &[PortElement],
) -> Result<(), Error> {
    let request = nft::transaction("map host ports", |request| {
        for map in [HOST_PORTS.0, ADDRESS_PORTS.0] {
            let elements: Vec<Element> = ports
                .iter()
                .filter(|port| port.map == map)
                .map(|port| port.element.clone())
                .collect();
            nft::add_elements(request, table, map, &elements);
        }
    });
    match socket.run(request) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            let holder = holder(socket, table, ports)?;
            Err(holder.map_or(error, |(port, holder)| Error::PortInUse { port, holder }))
        }
        result => result,
    }
}

/// The first of `ports` that is mapped already, and whose it is.
fn holder(
    socket: &mut Socket,
    table: &str,
    ports: &[PortElement],
) -> Result<Option<(HostPort, String)>, Error> {
    for map in [HOST_PORTS.0, ADDRESS_PORTS.0] {
        for element in elements(socket, table, map)? {
            if let Some(port) = ports.iter().find(|port| port.is(map, &element)) {
                return Ok(Some((port.host, element.comment)));
            }
        }
    }
    Ok(None)
}

/// Adds those of `ports` that are not there.
pub(crate) fn restore_port_elements(
    socket: &mut Socket,
    table: &str,
    ports: &[PortElement],
) -> Result<(), Error> {
    let mut missing = ports.to_vec();
    for map in [HOST_PORTS.0, ADDRESS_PORTS.0] {
        for element in elements(socket, table, map)? {
            missing.retain(|port| !(port.is(map, &element) && port.element == element));
        }
    }
    if missing.is_empty() { Ok(()) } else { add_port_elements(socket, table, &missing) }
}

/// Deletes the elements whose sandbox `doomed` names; returns how many.
///
/// A table that is gone has none.
pub(crate) fn remove_port_elements(
    socket: &mut Socket,
    table: &str,
    doomed: impl Fn(&str) -> bool,
) -> Result<usize, Error> {
    let mut count = 0;
    let mut keys = Vec::new();
    for map in [HOST_PORTS.0, ADDRESS_PORTS.0] {
        let found = match elements(socket, table, map) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(0),
            found => found?,
        };
        let found = found.into_iter().filter(|element| doomed(&element.comment));
        let found: Vec<Vec<u8>> = found.map(|element| element.key).collect();
        count += found.len();
        keys.push((map, found));
    }
    if count == 0 {
        return Ok(0);
    }
    socket.run(nft::transaction("unmap host ports", |request| {
        for (map, keys) in &keys {
            nft::delete_elements(request, table, map, keys);
        }
    }))?;
    Ok(count)
}

fn elements(socket: &mut Socket, table: &str, map: &str) -> Result<Vec<Element>, Error> {
    // A table that changes during a dump is reported as such by the kernel (EINTR); we are
    // its only writer, and hold the socket.
    let mut request = Request::new();
    nft::list_elements(&mut request, table, map);
    let mut elements = Vec::new();
    socket.query(request, |answer| {
        elements.append(&mut nft::parse_elements(&answer)?);
        Ok(())
    })?;
    Ok(elements)
}

/// Whether the table is there.
pub(crate) fn check(socket: &mut Socket, table: &str) -> Result<(), Error> {
    let mut request = Request::new();
    nft::get_table(&mut request, table);
    socket.run(request)
}

/// Deletes the table with all that is in it; success when there is none.
pub(crate) fn remove(socket: &mut Socket, table: &str) -> Result<(), Error> {
    let operation = format!("remove nftables table {table}");
    match socket.run(nft::transaction(&operation, |request| nft::delete_table(request, table))) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 85, 0, 2);

    fn mapping(host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip }
    }

    fn made(ports: &[PortMapping]) -> Result<Vec<PortElement>, Error> {
        port_elements(&SandboxId::new("pod").unwrap(), POD, ports)
    }

    #[test]
    fn a_mapping_of_every_address_has_protocol_and_port_as_its_key() {
        for host_ip in [None, Some("0.0.0.0")] {
            let [port] = &made(&[mapping(8080, 80, host_ip)]).unwrap()[..] else { panic!() };
            assert_eq!(port.map, "host_ports");
            assert_eq!(port.element.key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
            assert_eq!(port.element.data, [10, 85, 0, 2, 0, 80, 0, 0]);
            assert_eq!(port.element.comment, "pod");
            assert!(port.serves_loopback());
        }
    }

    #[test]
    fn a_mapping_of_one_address_has_it_in_its_key() {
        let [port] = &made(&[mapping(8080, 80, Some("192.0.2.1"))]).unwrap()[..] else { panic!() };
        assert_eq!(port.map, "address_ports");
        assert_eq!(port.element.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert!(!port.serves_loopback());
    }

    #[test]
    fn mappings_that_make_no_sense_are_refused_by_name() {
        let refused = |ports: &[PortMapping]| made(ports).unwrap_err().to_string();
        let twice = [mapping(80, 80, None), mapping(80, 81, Some("0.0.0.0"))];
        assert_eq!(refused(&twice), "host port tcp *:80 is named twice");
        assert_eq!(refused(&[mapping(0, 80, None)]), "port mapping 0:80 has a port 0");
        assert_eq!(refused(&[mapping(80, 0, None)]), "port mapping 80:0 has a port 0");
        let ipv6 = refused(&[mapping(80, 80, Some("::1"))]);
        assert_eq!(ipv6, "host port tcp [::1]:80 needs IPv6, which sandboxes do not have");
        let many = vec![mapping(80, 80, None); MAX_PORTS + 1];
        assert!(refused(&many).contains("4097 port mappings, more than 4096"));
    }

    #[test]
    fn one_port_of_two_addresses_or_protocols_is_two_ports() {
        let mut udp = mapping(80, 80, None);
        udp.protocol = Protocol::Udp;
        let one_address = mapping(80, 80, Some("127.0.0.1"));
        assert_eq!(made(&[mapping(80, 80, None), udp, one_address]).unwrap().len(), 3);
    }
}
