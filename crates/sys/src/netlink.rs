//! Options of netlink sockets that `nix` and `rustix` lack.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Asks the kernel to explain its refusals in words (`NETLINK_EXT_ACK`) and not to send
/// the refused request back (`NETLINK_CAP_ACK`); netlink(7).
///
/// # Errors
/// `ENOPROTOOPT` on a descriptor that is no netlink socket; `ENOTSOCK`.
pub fn extended_ack(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(|_| Errno::EINVAL)?;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        // SAFETY: setsockopt(2) reads `length` bytes at the pointer, which are those of `on`.
        let ret = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                std::ptr::from_ref(&on).cast(),
                length,
            )
        };
        Errno::result(ret)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;

    #[test]
    fn only_netlink_sockets_have_the_option() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let route = SockProtocol::NetlinkRoute;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, route).unwrap();
        assert_eq!(extended_ack(netlink.as_fd()), Ok(()));
        let unix = socket(AddressFamily::Unix, SockType::Datagram, flags, None).unwrap();
        assert!(extended_ack(unix.as_fd()).is_err());
    }
}
