//! Ports of the node that lead to sandboxes.

use std::net::UdpSocket;

use berth_model::ErrorKind;

use super::*;

#[test]
fn a_mapped_port_is_reached_from_everywhere() {
    on_default_node(|node| {
        let outside = node.outside();
        let (pod, other) = (node.attach("pod", &[tcp(8080, 80)]), node.attach("other", &[]));
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        for address in [Ipv4Addr::LOCALHOST, node.gateway(), NODE] {
            converse(&node.netns, (address, 8080), &server);
        }
        assert_eq!(converse(&outside, (NODE, 8080), &server), OUTSIDE, "the client is seen");
        // Twice: a redirect after the first would spoil the second.
        for _ in 0..2 {
            for address in [node.gateway(), NODE] {
                converse(&other.netns, (address, 8080), &server);
                converse(&pod.netns, (address, 8080), &server);
            }
        }
        assert!(outside.connect(NODE, 80).is_err(), "only what is mapped is open");
        let there = other.netns.listen(Ipv4Addr::UNSPECIFIED, 8080);
        let seen = converse(&pod.netns, (other.address(), 8080), &there);
        assert_eq!(seen, pod.address(), "a port of another sandbox is not the node's");
    });
}

#[test]
fn a_port_of_one_address_is_mapped_there_only() {
    on_default_node(|node| {
        let outside = node.outside();
        let at = |ip: Ipv4Addr| PortMapping { host_ip: Some(ip.into()), ..tcp(8080, 80) };
        let pod = node.attach("pod", &[at(NODE)]);
        let local = node.attach("local", &[at(Ipv4Addr::LOCALHOST)]);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        let near = local.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&outside, (NODE, 8080), &server);
        converse(&node.netns, (NODE, 8080), &server);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &near);
        assert!(node.netns.connect(node.gateway(), 8080).is_err());
        let all = node.attach("all", &[tcp(8080, 80)]);
        let wide = all.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&node.netns, (node.gateway(), 8080), &wide);
        converse(&outside, (NODE, 8080), &server);
    });
}

#[test]
fn udp_ports_lead_to_the_sandbox_that_has_them_now() {
    on_default_node(|node| {
        let outside = node.outside();
        let client = outside.run(|| UdpSocket::bind((OUTSIDE, 5000)).unwrap());
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let serve = |pod: &Pod| {
            let server = pod.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
            server.set_read_timeout(Some(LIMIT)).unwrap();
            server
        };
        // Before a sandbox has the port, the node remembers a flow to itself.
        let node_itself = node.netns.run(|| UdpSocket::bind((NODE, 5353)).unwrap());
        node_itself.set_read_timeout(Some(LIMIT)).unwrap();
        client.send_to(b"nobody", (NODE, 5353)).unwrap();
        assert_eq!(node_itself.recv(&mut [0; 16]).unwrap(), 6);
        drop(node_itself);
        for name in ["first", "second"] {
            let pod = node.attach(name, &[udp(5353, 53)]);
            let server = serve(&pod);
            client.send_to(name.as_bytes(), (NODE, 5353)).unwrap();
            let mut word = [0; 16];
            let (length, from) = server.recv_from(&mut word).unwrap();
            assert_eq!((&word[..length], from.ip()), (name.as_bytes(), OUTSIDE.into()));
            server.send_to(b"back", from).unwrap();
            let (_, from) = client.recv_from(&mut word).unwrap();
            assert_eq!(from, (NODE, 5353).into());
            node.remove(pod);
        }
    });
}

#[test]
fn a_port_that_is_taken_names_its_holder_and_leaves_nothing() {
    on_default_node(|node| {
        let holder = node.attach("holder", &[tcp(8080, 80)]);
        let Err(error) = node.try_attach("late", &[tcp(9090, 90), tcp(8080, 80)]) else {
            panic!("mapped twice");
        };
        assert_eq!(error.to_string(), "host port tcp *:8080 is already mapped to sandbox holder");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(node.network.wait_drained(LIMIT));
        assert_eq!(node.leased(), [id("holder")]);
        assert_eq!(node.links(), std::slice::from_ref(&holder.attachment.host_interface));
        let late = node.attach("late", &[tcp(9090, 90)]);
        assert_eq!(late.attachment.ports, [tcp(9090, 90)], "the refused one had no part");
        node.remove(holder);
        node.attach("next", &[tcp(8080, 80)]);
    });
}

#[test]
fn detaching_twice_does_not_take_the_port_of_another() {
    on_default_node(|node| {
        let first = node.attach("first", &[tcp(8080, 80)]);
        node.network.detach(&first.id, &first.attachment).unwrap();
        let second = node.attach("second", &[tcp(8080, 80)]);
        node.network.detach(&first.id, &first.attachment).unwrap();
        let server = second.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &server);
    });
}

#[test]
fn requests_that_cannot_be_met_change_nothing() {
    on_default_node(|node| {
        for ports in [vec![tcp(80, 80), tcp(80, 81)], vec![tcp(0, 80)]] {
            let error = node.try_attach("pod", &ports).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
        assert!(node.leased().is_empty() && node.links().is_empty());
    });
}

#[test]
fn a_thousand_ports_of_one_sandbox_are_mapped_and_unmapped() {
    on_default_node(|node| {
        let ports: Vec<PortMapping> = (10_000..11_000).map(|port| tcp(port, port)).collect();
        let pod = node.attach("pod", &ports);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 10_999);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 10_999), &server);
        node.network.detach(&pod.id, &pod.attachment).unwrap();
        assert!(node.netns.connect(Ipv4Addr::LOCALHOST, 10_999).is_err());
        assert_eq!(node.network.sweep(&[id("pod")].into()).unwrap().ports, 0);
    });
}

#[test]
fn ports_come_back_after_somebody_flushed_the_table() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[tcp(8080, 80), tcp(8081, 80)]);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        node.network.reattach(&pod.id, &pod.attachment).unwrap();
        let table = &node.network.config().table;
        crate::firewall::remove(&mut node.network.netfilter(), table).unwrap();
        assert!(node.netns.connect(Ipv4Addr::LOCALHOST, 8080).is_err());
        let missing = node.network.ready().unwrap_err();
        assert_eq!(missing.to_string(), "find nftables table berth-test");
        node.network.ensure_base().unwrap();
        node.network.reattach(&pod.id, &pod.attachment).unwrap();
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8081), &server);
    });
}

#[test]
fn setting_up_again_keeps_ports() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[tcp(8080, 80)]);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        let again = node.network.ensure_base().unwrap();
        assert_eq!(again, Base { bridge_made: false, forwarding_enabled: false });
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &server);
    });
}

/// `nft`, where it is installed, must be able to print what we made.
#[test]
fn nft_prints_the_table_as_it_is_meant() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[tcp(8080, 80)]);
        let printed =
            std::process::Command::new("nft").args(["list", "table", "ip", "berth-test"]).output();
        let Ok(printed) = printed else {
            eprintln!("skipped: needs nft");
            return;
        };
        let printed = String::from_utf8(printed.stdout).unwrap();
        let element = format!("tcp . 8080 comment \"pod\" : {} . 80", pod.address());
        for line in [
            element.as_str(),
            "type inet_proto . inet_service : ipv4_addr . inet_service",
            "fib daddr type local jump ports",
            "dnat ip to meta l4proto . th dport map @host_ports",
            "dnat ip to ip daddr . meta l4proto . th dport map @address_ports",
            "iifname \"brtest0\" ip daddr 127.0.0.0/8 drop",
            "oifname \"brtest0\" ip saddr 10.200.4.0/24 ct status dnat masquerade",
            "ip saddr 10.200.4.0/24 ip daddr != 10.200.4.0/24 oifname != \"brtest0\" \
             ip daddr != 224.0.0.0/4 masquerade",
        ] {
            assert!(printed.contains(line), "no {line:?} in\n{printed}");
        }
    });
}
