//! Packets go where they should, and nowhere else.

use std::net::UdpSocket;

use super::*;

#[test]
fn sandboxes_reach_each_other_by_their_own_addresses() {
    on_default_node(|node| {
        let (one, two) = (node.attach("one", &[]), node.attach("two", &[]));
        let server = two.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        assert_eq!(converse(&one.netns, (two.address(), 80), &server), one.address());
    });
}

#[test]
fn the_node_and_its_sandboxes_reach_each_other() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let inside = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        assert_eq!(converse(&node.netns, (pod.address(), 80), &inside), node.gateway());
        let on_node = node.netns.listen(Ipv4Addr::UNSPECIFIED, 53);
        assert_eq!(converse(&pod.netns, (node.gateway(), 53), &on_node), pod.address());
    });
}

#[test]
fn a_sandbox_has_its_own_loopback() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let server = pod.netns.listen(Ipv4Addr::LOCALHOST, 80);
        assert_eq!(converse(&pod.netns, (Ipv4Addr::LOCALHOST, 80), &server), Ipv4Addr::LOCALHOST);
        let ipv6 = pod.netns.run(|| TcpListener::bind("[::1]:0").is_ok());
        assert!(ipv6, "programs may name ::1");
    });
}

#[test]
fn what_leaves_the_subnet_has_the_address_of_the_node() {
    on_default_node(|node| {
        let outside = node.outside();
        let pod = node.attach("pod", &[]);
        let server = outside.listen(OUTSIDE, 80);
        assert_eq!(converse(&pod.netns, (OUTSIDE, 80), &server), NODE);
    });
}

#[test]
fn without_masquerade_what_leaves_keeps_its_address() {
    on_node(NetworkConfig { masquerade: false, ..small() }, |node| {
        let outside = node.outside();
        let pod = node.attach("pod", &[]);
        let server = outside.run(|| UdpSocket::bind((OUTSIDE, 9)).unwrap());
        let client = pod.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        server.set_read_timeout(Some(LIMIT)).unwrap();
        client.send_to(b"hello", (OUTSIDE, 9)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip(), pod.address());
    });
}

#[test]
fn ipv6_of_a_sandbox_is_off_but_for_its_loopback() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let addresses = pod
            .netns
            .run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default());
        assert!(addresses.lines().all(|line| line.ends_with(" lo")), "{addresses}");
    });
}

/// CVE-2020-8558: `route_localnet`, which ports at 127.0.0.1 need, must not let sandboxes
/// reach what listens on the node's loopback only.
#[test]
fn the_loopback_of_the_node_is_closed_to_sandboxes() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[tcp(8080, 80)]);
        let localnet = node.netns.run(|| {
            std::fs::read_to_string("/proc/sys/net/ipv4/conf/brtest0/route_localnet").unwrap()
        });
        assert_eq!(localnet, "1\n", "or this test shows nothing");
        let secret = node.netns.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 10_250)).unwrap());
        let open = node.netns.run(|| UdpSocket::bind((node.gateway(), 10_250)).unwrap());
        let hostile = pod.netns.run(|| {
            // Without its own loopback the sandbox sends 127.0.0.1 to its gateway.
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            let mut request = Request::new();
            route::delete_loopback_address(&mut request);
            Socket::route().unwrap().run(request).unwrap();
            UdpSocket::bind((pod.address(), 0)).unwrap()
        });
        hostile.send_to(b"secret", (Ipv4Addr::LOCALHOST, 10_250)).unwrap();
        hostile.send_to(b"open", (node.gateway(), 10_250)).unwrap();
        for socket in [&open, &secret] {
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        }
        assert_eq!(open.recv(&mut [0; 16]).unwrap(), 4, "packets do arrive");
        assert!(secret.recv(&mut [0; 16]).is_err(), "the guard is open");
        let mut netfilter = node.network.netfilter();
        crate::firewall::remove(&mut netfilter, &node.network.config().table).unwrap();
        hostile.send_to(b"secret", (Ipv4Addr::LOCALHOST, 10_250)).unwrap();
        assert_eq!(secret.recv(&mut [0; 16]).unwrap(), 6, "it was the guard that closed it");
    });
}

#[test]
fn counters_count_what_went_through() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let before = eth0(node, &pod);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        let mut sender = node.netns.connect(pod.address(), 80).unwrap();
        let (mut receiver, _) = server.accept().unwrap();
        sender.write_all(&[7; 100_000]).unwrap();
        receiver.read_exact(&mut [0; 100_000]).unwrap();
        let after = eth0(node, &pod);
        assert!(after.rx_bytes - before.rx_bytes >= 100_000, "{before:?} {after:?}");
        assert!(after.rx_packets > before.rx_packets && after.tx_packets > before.tx_packets);
        assert!((1..100_000).contains(&after.tx_bytes), "{after:?}");
        assert_eq!((after.rx_errors, after.tx_errors, after.rx_dropped), (0, 0, 0));
    });
}

fn eth0(node: &Node, pod: &Pod) -> crate::InterfaceCounters {
    let all = counters(node, pod.netns.fd());
    let [eth0] = <[_; 1]>::try_from(all).unwrap();
    assert_eq!(eth0.name, "eth0");
    eth0
}

/// teeth: crates/network/src/inside.rs: `let opened = match setns(&netns, CloneFlags::CLONE_NEWNET) {` → `let opened = match Ok::<(), Errno>(()) {`
#[test]
fn every_interface_of_a_namespace_is_counted_and_no_other_namespaces() {
    on_default_node(|node| {
        let bare = Netns::new();
        assert_eq!(counters(node, bare.fd()), [], "lo is not told");
        let (one, two) = (node.attach("one", &[]), node.attach("two", &[]));
        let Inside { mut socket } = visit(one.netns.fd()).unwrap();
        let mut request = Request::new();
        route::add_bridge(&mut request, "more", 1500, crate::MacAddr([2, 0, 0, 0, 0, 9]));
        socket.run(request).unwrap();
        let names = |pod: &Pod| -> Vec<String> {
            let all = counters(node, pod.netns.fd());
            all.into_iter().map(|interface| interface.name).collect()
        };
        assert_eq!(names(&one), ["eth0", "more"]);
        assert_eq!(names(&two), ["eth0"]);
        let server = one.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        let before = eth0(node, &two);
        let mut sender = node.netns.connect(one.address(), 80).unwrap();
        let (mut receiver, _) = server.accept().unwrap();
        sender.write_all(&[7; 100_000]).unwrap();
        receiver.read_exact(&mut [0; 100_000]).unwrap();
        assert!(eth0(node, &two).rx_bytes - before.rx_bytes < 50_000, "they are another's");
    });
}

#[test]
fn a_namespace_of_another_user_namespace_is_counted() {
    on_default_node(|node| {
        let netns = Netns::of_a_user_namespace();
        assert_eq!(counters(node, netns.fd()), []);
        let id = id("users");
        attach(&node.network, &id, netns.fd(), &[]).unwrap();
        let all = counters(node, netns.fd());
        assert_eq!(all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
    });
}
