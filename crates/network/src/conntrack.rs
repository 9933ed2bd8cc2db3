//! Connections the kernel remembers (nf_conntrack over nfnetlink).
//!
//! A flow keeps its translation for as long as it lasts. That is right for TCP, whose
//! clients notice; a UDP client sends on and would be led to a sandbox that is gone.

use std::net::Ipv4Addr;

use berth_model::sandbox::{PortMapping, Protocol};
use nix::errno::Errno;

use crate::error::Error;
use crate::netlink::Socket;
use crate::netlink::answer::{self, Answer};
use crate::netlink::request::{NLM_F_DUMP, Request};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPPROTO_UDP: u8 = 17;
/// `struct nfgenmsg`: IPv4, version 0, no resource.
const HEADER: [u8; 4] = [2, 0, 0, 0];

/// A UDP flow.
#[derive(Debug, Eq, PartialEq)]
struct Flow {
    /// Where its client sends to.
    target: Ipv4Addr,
    target_port: u16,
    /// Who answers: another than `target` when the destination is translated.
    server: Ipv4Addr,
    answered: bool,
    /// Its name towards the kernel.
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// Whether any of the mappings is of UDP.
pub(crate) fn concerns(ports: &[PortMapping]) -> bool {
    ports.iter().any(|port| port.protocol == Protocol::Udp)
}

/// Forgets flows to ports that lead somewhere only now: they are known as flows to the
/// node, where nobody answered, and would go there as long as their clients try.
pub(crate) fn forget_unanswered(socket: &mut Socket, ports: &[PortMapping]) -> Result<(), Error> {
    let mapped =
        |port: u16| ports.iter().any(|one| one.protocol == Protocol::Udp && one.host_port == port);
    forget(socket, |flow| mapped(flow.target_port) && flow.server == flow.target && !flow.answered)
}

/// Forgets flows to a sandbox that is gone.
pub(crate) fn forget_served(socket: &mut Socket, sandbox: Ipv4Addr) -> Result<(), Error> {
    forget(socket, |flow| flow.server == sandbox)
}

fn forget(socket: &mut Socket, doomed: impl Fn(&Flow) -> bool) -> Result<(), Error> {
    let mut request = Request::new();
    request.message(GET, NLM_F_DUMP, "list connections").raw(&HEADER);
    let mut flows = Vec::new();
    socket.query(request, |answer| {
        flows.extend(flow(&answer)?.filter(&doomed));
        Ok(())
    })?;
    for flow in flows {
        let mut request = Request::new();
        request
            .message(DELETE, 0, "forget UDP flow")
            .raw(&HEADER)
            .nest(CTA_TUPLE_ORIG, |nest| {
                nest.raw(&flow.tuple);
            })
            .attribute(CTA_ID, &flow.id);
        match socket.run(request) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Reads an answer about a connection; `None` for one that is no UDP flow.
fn flow(answer: &Answer<'_>) -> Result<Option<Flow>, &'static str> {
    let (mut tuple, mut reply, mut id, mut status) = (None, None, None, 0);
    for (kind, value) in answer.attributes(HEADER.len())? {
        match kind {
            CTA_TUPLE_ORIG => tuple = Some(value),
            CTA_TUPLE_REPLY => reply = Some(value),
            CTA_STATUS => {
                status = u32::from_be_bytes(*value.first_chunk().ok_or("short status")?);
            }
            CTA_ID => id = Some(value),
            _ => {}
        }
    }
    let (Some(tuple), Some(reply), Some(id)) = (tuple, reply, id) else { return Ok(None) };
    let protocol = answer::find(tuple, CTA_TUPLE_PROTO).ok_or("a flow without protocol")?;
    if answer::find(protocol, CTA_PROTO_NUM) != Some(&[IPPROTO_UDP]) {
        return Ok(None);
    }
    let port = answer::find(protocol, CTA_PROTO_DST_PORT).and_then(|port| port.first_chunk());
    Ok(Some(Flow {
        target: address(tuple, CTA_IP_V4_DST).ok_or("a flow without target")?,
        target_port: u16::from_be_bytes(*port.ok_or("a UDP flow without port")?),
        server: address(reply, CTA_IP_V4_SRC).ok_or("a flow without server")?,
        answered: status & IPS_SEEN_REPLY != 0,
        tuple: tuple.to_vec(),
        id: id.to_vec(),
    }))
}

fn address(tuple: &[u8], kind: u16) -> Option<Ipv4Addr> {
    let addresses = answer::find(tuple, CTA_TUPLE_IP)?;
    answer::find(addresses, kind)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}
