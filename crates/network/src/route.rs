//! rtnetlink(7): links, addresses and routes.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::{MacAddr, Subnet};
use crate::netlink::answer::{self, Answer};
use crate::netlink::request::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Request};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// Leave the counters out of an answer about a link.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
/// `lo` has this index in every namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK_INDEX: u32 = 1;
/// Length of `struct ifinfomsg`, bytes.
const LINK_HEADER: usize = 16;
/// Length of `struct ifaddrmsg`, bytes.
const ADDRESS_HEADER: usize = 8;
/// Links are moved to this link group to be deleted in one batch: one by one each costs 20
/// to 30 ms. Nothing is ever left in it, so two daemons may share it.
const DOOMED_GROUP: u32 = 0x4265_7274;

/// What we want to know of a link.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) mtu: u32,
    /// Index of the bridge it is a port of.
    pub(crate) master: Option<u32>,
    /// Index of the other end of a veth, in the namespace of that end.
    pub(crate) peer: Option<u32>,
    pub(crate) up: bool,
}

/// An IPv4 address of some interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InterfaceAddress {
    pub(crate) index: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A bridge, up, whose hardware address does not change with its ports.
pub(crate) fn add_bridge(request: &mut Request, name: &str, mtu: u32, mac: MacAddr) {
    request
        .message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, format!("add bridge {name}"))
        .raw(&link_header(0, IFF_UP, IFF_UP))
        .string(IFLA_IFNAME, name)
        .number(IFLA_MTU, mtu)
        .attribute(IFLA_ADDRESS, &mac.0)
        .nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |data| {
                // Nobody queries groups here: snooping would only cost timers per port.
                data.attribute(IFLA_BR_MCAST_SNOOPING, &[0]);
            });
        });
}

/// A link that exists: up, with that MTU.
pub(crate) fn set_link_up(request: &mut Request, name: &str, mtu: u32) {
    request
        .message(RTM_SETLINK, 0, format!("bring up link {name}"))
        .raw(&link_header(0, IFF_UP, IFF_UP))
        .string(IFLA_IFNAME, name)
        .number(IFLA_MTU, mtu);
}

/// Lets the link route loopback addresses: replies to what came from 127.0.0.1 and was
/// sent on to a sandbox come back through the bridge.
pub(crate) fn set_route_localnet(request: &mut Request, name: &str) {
    request
        .message(RTM_SETLINK, 0, format!("set route_localnet of link {name}"))
        .raw(&link_header(0, 0, 0))
        .string(IFLA_IFNAME, name)
        .nest(IFLA_AF_SPEC, |families| {
            families.nest(u16::from(AF_INET), |inet| {
                inet.nest(IFLA_INET_CONF, |conf| {
                    conf.number(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
                });
            });
        });
}

/// What a veth pair is made of.
pub(crate) struct Veth<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge_index: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_netns: BorrowedFd<'a>,
    pub(crate) peer_mac: MacAddr,
    pub(crate) mtu: u32,
}

/// A veth pair: the host side a port of the bridge and up, the peer born in the sandbox's
/// namespace (down: it cannot be opened before it has its other end); then asks for the host side, whose answer names both indices.
pub(crate) fn add_veth(request: &mut Request, veth: &Veth<'_>) {
    let name = veth.host_name;
    request
        .message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, format!("add veth {name}"))
        .raw(&link_header(0, IFF_UP, IFF_UP))
        .string(IFLA_IFNAME, name)
        .number(IFLA_MTU, veth.mtu)
        .number(IFLA_MASTER, veth.bridge_index)
        .nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&link_header(0, 0, 0))
                        .string(IFLA_IFNAME, veth.peer_name)
                        .number(IFLA_MTU, veth.mtu)
                        .attribute(IFLA_ADDRESS, &veth.peer_mac.0)
                        .attribute(IFLA_NET_NS_FD, &veth.peer_netns.as_raw_fd().to_ne_bytes());
                });
            });
        });
    if veth.bridge_index != 0 {
        set_hairpin(request, name);
    }
    get_link(request, name);
}

/// Makes a link a port of the bridge with that index, as [`add_veth`] does.
pub(crate) fn set_master(request: &mut Request, name: &str, bridge: u32) {
    request
        .message(RTM_SETLINK, 0, format!("make link {name} a port of the bridge"))
        .raw(&link_header(0, IFF_UP, IFF_UP))
        .string(IFLA_IFNAME, name)
        .number(IFLA_MASTER, bridge);
    set_hairpin(request, name);
}

/// Lets a bridge send frames back through the port they came from: where bridged traffic
/// passes netfilter (`bridge-nf-call-iptables`), a sandbox reaches itself by a mapped port
/// or a service address in this way only.
fn set_hairpin(request: &mut Request, name: &str) {
    request
        .message(RTM_NEWLINK, 0, format!("set hairpin mode of link {name}"))
        .raw(&link_header(0, 0, 0))
        .string(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |data| {
                data.attribute(IFLA_BRPORT_MODE, &[1]);
            });
        });
}

/// Asks for the link of that name; the answer is for [`parse_link`].
pub(crate) fn get_link(request: &mut Request, name: &str) {
    request
        .message(RTM_GETLINK, 0, format!("find link {name}"))
        .raw(&link_header(0, 0, 0))
        .string(IFLA_IFNAME, name)
        .number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

/// Asks for every link, or every port of the bridge with that index.
pub(crate) fn list_links(request: &mut Request, bridge: Option<u32>) {
    request
        .message(RTM_GETLINK, NLM_F_DUMP, "list links")
        .raw(&link_header(0, 0, 0))
        .number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    if let Some(bridge) = bridge {
        request.number(IFLA_MASTER, bridge);
    }
}

/// Deletes a link by name.
pub(crate) fn delete_link(request: &mut Request, name: &str) {
    request
        .message(RTM_DELLINK, 0, format!("delete link {name}"))
        .raw(&link_header(0, 0, 0))
        .string(IFLA_IFNAME, name);
}

/// Deletes links by name in one batch of the kernel's; those that are gone are skipped.
pub(crate) fn delete_links(request: &mut Request, names: &[&str]) {
    for name in names {
        request
            .message(RTM_SETLINK, 0, format!("move link {name} to the group to delete"))
            .raw(&link_header(0, 0, 0))
            .string(IFLA_IFNAME, name)
            .number(IFLA_GROUP, DOOMED_GROUP);
    }
    request
        .message(RTM_DELLINK, 0, format!("delete {} links", names.len()))
        .raw(&link_header(0, 0, 0))
        .number(IFLA_GROUP, DOOMED_GROUP);
}

/// Brings `lo` up.
pub(crate) fn set_loopback_up(request: &mut Request) {
    set_index_up(request, LOOPBACK_INDEX);
}

/// Brings the interface with that index up.
pub(crate) fn set_index_up(request: &mut Request, index: u32) {
    let operation = format!("bring up interface {index}");
    request.message(RTM_SETLINK, 0, operation).raw(&link_header(index, IFF_UP, IFF_UP));
}

/// Gives an interface an address of the subnet.
pub(crate) fn add_address(request: &mut Request, index: u32, address: Ipv4Addr, subnet: &Subnet) {
    let mut header = [0; ADDRESS_HEADER];
    (header[0], header[1]) = (AF_INET, subnet.prefix());
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let operation = format!("add address {address}/{} to interface {index}", subnet.prefix());
    request
        .message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, operation)
        .raw(&header)
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets())
        .attribute(IFA_BROADCAST, &subnet.broadcast().octets());
}

/// Asks for every IPv4 address; the answers are for [`parse_address`].
pub(crate) fn list_addresses(request: &mut Request) {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = AF_INET;
    request.message(RTM_GETADDR, NLM_F_DUMP, "list addresses").raw(&header);
}

/// The default route through an interface.
pub(crate) fn add_default_route(request: &mut Request, index: u32, gateway: Ipv4Addr) {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_STATIC: u8 = 4;
    const RTN_UNICAST: u8 = 1;
    // struct rtmsg: family, two prefix lengths, tos, table, protocol, scope, type, flags.
    let header = [AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    request
        .message(
            RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_EXCL,
            format!("add default route through {gateway}"),
        )
        .raw(&header)
        .attribute(RTA_GATEWAY, &gateway.octets())
        .number(RTA_OIF, index);
}

/// Reads an answer about a link; `None` for one about something else.
pub(crate) fn parse_link(answer: &Answer<'_>) -> Result<Option<Link>, &'static str> {
    if answer.kind != RTM_NEWLINK || answer.payload.first() != Some(&AF_UNSPEC) {
        return Ok(None);
    }
    let header = answer.payload.get(..LINK_HEADER).ok_or("short link")?;
    let number = |at: usize| answer::number(&header[at..]).unwrap_or_default();
    let mut link = Link { index: number(4), up: number(8) & IFF_UP != 0, ..Link::default() };
    for (kind, value) in answer.attributes(LINK_HEADER)? {
        match kind {
            IFLA_IFNAME => link.name = answer::text(value),
            IFLA_MTU => link.mtu = answer::number(value).ok_or("short mtu")?,
            IFLA_MASTER => link.master = answer::number(value),
            IFLA_LINK => link.peer = answer::number(value),
            IFLA_LINKINFO => {
                let kind = answer::find(value, IFLA_INFO_KIND);
                link.kind = kind.map(answer::text).unwrap_or_default();
            }
            _ => {}
        }
    }
    Ok(Some(link))
}

/// Reads an answer about an address; `None` for one about something else.
pub(crate) fn parse_address(answer: &Answer<'_>) -> Result<Option<InterfaceAddress>, &'static str> {
    if answer.kind != RTM_NEWADDR || answer.payload.first() != Some(&AF_INET) {
        return Ok(None);
    }
    let header = answer.payload.get(..ADDRESS_HEADER).ok_or("short address")?;
    let index = answer::number(&header[4..]).ok_or("short address")?;
    let mut found = None;
    for (kind, value) in answer.attributes(ADDRESS_HEADER)? {
        // Of a point-to-point link IFA_ADDRESS is the other end, IFA_LOCAL ours.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
        }
    }
    let address = found.ok_or("an address without its bytes")?;
    Ok(Some(InterfaceAddress { index, address, prefix: header[1] }))
}

/// Takes 127.0.0.1 from `lo`, as a hostile sandbox may.
#[cfg(test)]
pub(crate) fn delete_loopback_address(request: &mut Request) {
    const RTM_DELADDR: u16 = 21;
    request
        .message(RTM_DELADDR, 0, "delete address of lo")
        .raw(&[AF_INET, 8, 0, 0, 1, 0, 0, 0])
        .attribute(IFA_LOCAL, &Ipv4Addr::LOCALHOST.octets());
}
