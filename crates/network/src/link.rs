//! Host links: how they are named, found and deleted.

use berth_model::{Digest, SandboxId};
use nix::errno::Errno;

use crate::error::Error;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::route::{self, Link};

/// What the names of our host links start with.
const PREFIX: &str = "bv";
const DIGITS: usize = 12;

/// The name of the link of a sandbox on the node: the start of the id when that is
/// hexadecimal (so people recognise it), else of its digest; 14 bytes.
pub(crate) fn host_name(sandbox: &SandboxId) -> String {
    match sandbox.as_str().get(..DIGITS) {
        Some(start) if is_lower_hex(start) => format!("{PREFIX}{start}"),
        _ => format!("{PREFIX}{}", &Digest::of(sandbox.as_str().as_bytes()).hex()[..DIGITS]),
    }
}

/// Whether a name is one that [`host_name`] makes.
pub(crate) fn is_host_name(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == DIGITS && is_lower_hex(rest))
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Finds a link by name.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let mut request = Request::new();
    route::get_link(&mut request, name);
    let mut found = None;
    let result = socket.query(request, |answer| {
        found = found.take().or(route::parse_link(&answer)?);
        Ok(())
    });
    match result {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// The ports of a bridge.
pub(crate) fn ports(socket: &mut Socket, bridge: u32) -> Result<Vec<Link>, Error> {
    let mut links = list(socket, Some(bridge))?;
    // A kernel that does not know the filter sends every link.
    links.retain(|link| link.master == Some(bridge));
    Ok(links)
}

/// Every link, or the ports of a bridge.
pub(crate) fn list(socket: &mut Socket, bridge: Option<u32>) -> Result<Vec<Link>, Error> {
    let mut request = Request::new();
    route::list_links(&mut request, bridge);
    let mut links = Vec::new();
    socket.query(request, |answer| {
        links.extend(route::parse_link(&answer)?);
        Ok(())
    })?;
    Ok(links)
}

/// Deletes links by name; those that are gone already count as deleted.
pub(crate) fn delete(socket: &mut Socket, names: &[&str]) -> Result<(), Error> {
    const LINKS_PER_REQUEST: usize = 512;
    for some in names.chunks(LINKS_PER_REQUEST) {
        let mut request = Request::new();
        match some {
            [one] => route::delete_link(&mut request, one),
            some => route::delete_links(&mut request, some),
        }
        match socket.run(request) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str) -> String {
        host_name(&SandboxId::new(id).unwrap())
    }

    #[test]
    fn a_link_is_named_after_a_hexadecimal_id() {
        assert_eq!(name("0123456789abcdef0123456789abcdef"), "bv0123456789ab");
    }

    #[test]
    fn other_ids_give_names_of_the_same_form() {
        for id in ["pod", "0123456789AB", "a-name.with_dots", "0123456789a"] {
            assert!(is_host_name(&name(id)), "{id}");
        }
        assert_ne!(name("pod"), name("pod2"));
    }

    #[test]
    fn names_of_others_are_not_taken_for_ours() {
        for name in ["", "bv", "eth0", "veth0123456789a", "bv0123456789a", "bv0123456789aG"] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
