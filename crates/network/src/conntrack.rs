//! Connections the kernel remembers (nf_conntrack over nfnetlink).
//!
//! A flow keeps its translation for as long as it lasts. That is right for TCP, whose
//! clients notice; a UDP client sends on and would be led to a sandbox that is gone.

use std::collections::HashSet;

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
const CTA_ID: u16 = 12;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPPROTO_UDP: u8 = 17;
/// `struct nfgenmsg`: IPv4, version 0, no resource.
const HEADER: [u8; 4] = [2, 0, 0, 0];

/// A flow, as the kernel must be told to name it.
struct Flow {
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// Forgets UDP flows that began towards one of these ports of the node.
pub(crate) fn forget_udp(socket: &mut Socket, ports: &[PortMapping]) -> Result<(), Error> {
    let udp = ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let ports: HashSet<u16> = udp.map(|port| port.host_port).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let mut request = Request::new();
    request.message(GET, NLM_F_DUMP, "list connections").raw(&HEADER);
    let mut flows = Vec::new();
    socket.query(request, |answer| {
        flows.extend(flow_to(&answer, &ports)?);
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

fn flow_to(answer: &Answer<'_>, ports: &HashSet<u16>) -> Result<Option<Flow>, &'static str> {
    let (mut tuple, mut id) = (None, None);
    for (kind, value) in answer.attributes(HEADER.len())? {
        match kind {
            CTA_TUPLE_ORIG => tuple = Some(value),
            CTA_ID => id = Some(value),
            _ => {}
        }
    }
    let (Some(tuple), Some(id)) = (tuple, id) else { return Ok(None) };
    let protocol = answer::find(tuple, CTA_TUPLE_PROTO).ok_or("a flow without protocol")?;
    if answer::find(protocol, CTA_PROTO_NUM) != Some(&[IPPROTO_UDP]) {
        return Ok(None);
    }
    let port = answer::find(protocol, CTA_PROTO_DST_PORT).and_then(|port| port.first_chunk());
    let port = u16::from_be_bytes(*port.ok_or("a UDP flow without port")?);
    Ok(ports.contains(&port).then(|| Flow { tuple: tuple.to_vec(), id: id.to_vec() }))
}
