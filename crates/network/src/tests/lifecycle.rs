//! Sandboxes come and go, daemons too, and nothing is left or lost.

use std::collections::HashSet;

use berth_model::ErrorKind;

use crate::reclaim::Draining;

use super::*;

#[test]
fn a_node_is_ready_once_its_base_is_made() {
    on_default_node(|node| {
        node.network.ready().unwrap();
        let mtu = link::find(&mut node.route.lock().unwrap(), "brtest0").unwrap().unwrap().mtu;
        assert_eq!(mtu, 1500);
        let forwarding =
            node.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
        assert_eq!(forwarding, "1\n");
    });
}

#[test]
fn an_address_is_released_when_its_link_is_gone_and_not_before() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let kept = pod.netns.0.try_clone().unwrap();
        node.remove(pod);
        assert!(!node.network.wait_drained(Duration::from_millis(200)));
        assert_eq!((node.leased(), node.network.draining()), (vec![id("pod")], 1));
        drop(kept);
        assert!(node.network.wait_drained(LIMIT));
        assert!(node.leased().is_empty() && node.links().is_empty());
    });
}

#[test]
fn a_link_that_outlives_its_grace_is_deleted_and_its_address_released() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        node.network.reclaimer.drain(Draining {
            name: Some(pod.attachment.host_interface.clone()),
            index: Some(pod.attachment.host_index),
            lease: Some((pod.id.clone(), pod.address())),
            delete_at: Instant::now() + Duration::from_millis(100),
        });
        assert!(!node.network.wait_drained(Duration::from_millis(50)), "too early");
        assert!(node.network.wait_drained(LIMIT), "though its namespace still exists");
        assert!(node.leased().is_empty() && node.links().is_empty());
        assert_eq!(counters(node, pod.netns.fd()), []);
    });
}

#[test]
fn when_every_address_is_used_there_is_none_until_a_link_is_gone() {
    let subnet = "10.200.4.0/29".parse().unwrap();
    on_node(NetworkConfig { subnet, ..small() }, |node| {
        let mut pods: Vec<Pod> = (0..5).map(|n| node.attach(&format!("pod{n}"), &[])).collect();
        let addresses: HashSet<Ipv4Addr> = pods.iter().map(Pod::address).collect();
        assert!(addresses.len() == 5 && !addresses.contains(&node.gateway()));
        let error = node.try_attach("late", &[]).err().unwrap();
        assert_eq!(error.to_string(), "no free address in subnet 10.200.4.0/29");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        node.remove(pods.remove(2));
        assert!(node.network.wait_drained(LIMIT));
        let next = node.attach("late", &[]);
        let server = next.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&pods[0].netns, (next.address(), 80), &server);
    });
}

#[test]
fn a_sandbox_is_attached_once() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let error = attach(&node.network, &pod.id, Netns::new().fd(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert_eq!(node.leased(), [id("pod")]);
        assert_eq!(node.links().len(), 1, "the first is untouched");
    });
}

#[test]
fn a_namespace_with_an_eth0_is_refused_in_the_words_of_the_kernel() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let error = attach(&node.network, &id("other"), pod.netns.fd(), &[]).unwrap_err();
        assert!(error.to_string().starts_with("add veth bv"), "{error}");
        assert_eq!(error.errno(), Some(nix::errno::Errno::EEXIST));
        assert!(node.network.wait_drained(LIMIT));
        assert_eq!(node.leased(), [id("pod")]);
    });
}

#[test]
fn an_address_that_cannot_be_given_back_at_once_is_given_back_later() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        node.leases.0.lock().unwrap().refusals = 3;
        // The one has an `eth0` that is not its own, the other has a link already.
        for other in ["other", "pod"] {
            attach(&node.network, &id(other), pod.netns.fd(), &[]).unwrap_err();
        }
        assert!(node.network.wait_drained(LIMIT));
        assert_eq!(node.leased(), [id("pod")]);
        assert_eq!(node.links().len(), 1, "the first is untouched");
    });
}

#[test]
fn an_address_is_kept_as_long_as_ports_lead_to_it() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[tcp(8080, 80)]);
        let working = std::mem::replace(&mut *node.network.netfilter(), Socket::route().unwrap());
        node.network.detach(&pod.id, &pod.attachment).unwrap_err();
        drop(pod.netns);
        assert!(node.network.wait_drained(LIMIT));
        assert_eq!((node.links().len(), node.leased()), (0, vec![id("pod")]));
        *node.network.netfilter() = working;
        node.network.detach(&pod.id, &pod.attachment).unwrap();
        assert!(node.network.wait_drained(LIMIT));
        assert!(node.leased().is_empty());
    });
}

#[test]
fn what_is_no_namespace_is_refused_and_the_next_attach_works() {
    on_default_node(|node| {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let error = attach(&node.network, &id("pod"), file.as_fd(), &[]).unwrap_err();
        assert_eq!(error.to_string(), "enter network namespace of sandbox");
        assert!(node.leased().is_empty());
        node.attach("pod", &[]);
    });
}

#[test]
fn a_namespace_prepared_on_its_own_thread_is_attached_alike() {
    on_default_node(|node| {
        let (netns, inside) = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            (Netns::own(), Inside::here().unwrap())
        })
        .join()
        .unwrap();
        let attachment = node.network.attach(&id("pod"), netns.fd(), inside, &[]).unwrap();
        let server = netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&node.netns, (attachment.address, 80), &server);
        assert_eq!(attachment.mac, MacAddr::of(attachment.address));
    });
}

#[test]
fn attaching_survives_a_bridge_made_anew_by_somebody() {
    on_default_node(|node| {
        let lost = node.attach("lost", &[tcp(80, 80)]);
        link::delete(&mut node.route.lock().unwrap(), &["brtest0"]).unwrap();
        let error = node.try_attach("pod", &[]).err().unwrap();
        assert_eq!(error.to_string(), "interface brtest0 not found");
        assert!(node.network.ready().is_err());
        assert!(node.network.ensure_base().unwrap().bridge_made);
        let pod = node.attach("pod", &[tcp(81, 81)]);
        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 81);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 81), &server);

        let server = lost.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        node.network.reattach(&lost.id, &lost.attachment).unwrap();
        converse(&pod.netns, (lost.address(), 80), &server);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 80), &server);
    });
}

#[test]
fn a_sweep_removes_what_no_record_names_and_keeps_the_rest() {
    on_default_node(|node| {
        let kept = node.attach("kept", &[tcp(8080, 80)]);
        let lost = [node.attach("lost1", &[tcp(81, 81)]), node.attach("lost2", &[udp(82, 82)])];
        node.leases.lease(&id("never-linked"), &node.network.config().subnet).unwrap();
        // A daemon that was killed and started again: only the stores and the kernel know.
        let leases = Arc::clone(&node.leases) as Arc<dyn Leases>;
        let restarted = Network::new(node.network.config().clone(), leases).unwrap();
        restarted.ensure_base().unwrap();
        let swept = restarted.sweep(&[id("kept")].into()).unwrap();
        assert_eq!(swept, Swept { links: 2, ports: 2, leases: 3 });
        assert!(restarted.wait_drained(LIMIT));
        assert_eq!(node.leased(), [id("kept")]);
        assert_eq!(node.links(), std::slice::from_ref(&kept.attachment.host_interface));
        let server = kept.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &server);
        let again = restarted.sweep(&[id("kept")].into()).unwrap();
        assert_eq!(again, Swept::default());
        drop(lost);
        restarted.detach(&kept.id, &kept.attachment).unwrap();
        drop((kept, server)); // a socket keeps its namespace
        assert!(restarted.wait_drained(LIMIT) && node.leased().is_empty());
    });
}

#[test]
fn two_daemons_on_one_node_do_not_touch_each_other() {
    on_default_node(|node| {
        let mine = node.attach("mine", &[tcp(8080, 80)]);
        let theirs = NetworkConfig {
            bridge: "brtest1".into(),
            subnet: "10.200.5.0/24".parse().unwrap(),
            table: "berth-other".into(),
            ..small()
        };
        let leases = Arc::new(MemoryLeases::default());
        let other = Network::new(theirs, leases as Arc<dyn Leases>).unwrap();
        other.ensure_base().unwrap();
        let netns = Netns::new();
        let foreign = attach(&other, &id("theirs"), netns.fd(), &[tcp(9090, 80)]).unwrap();
        let (near, far) =
            (mine.netns.listen(Ipv4Addr::UNSPECIFIED, 80), netns.listen(Ipv4Addr::UNSPECIFIED, 80));
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &near);
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 9090), &far);
        converse(&mine.netns, (foreign.address, 80), &far);
        other.sweep(&HashSet::new()).unwrap();
        assert!(other.wait_drained(LIMIT));
        other.teardown().unwrap();
        node.network.ready().unwrap();
        converse(&node.netns, (Ipv4Addr::LOCALHOST, 8080), &near);
        assert_eq!(node.links().len(), 1);
    });
}

#[test]
fn a_subnet_that_the_node_uses_elsewhere_is_refused() {
    on_default_node(|_| {
        let config =
            NetworkConfig { bridge: "brtest1".into(), table: "berth-other".into(), ..small() };
        let leases = Arc::new(MemoryLeases::default());
        let other = Network::new(config, leases as Arc<dyn Leases>).unwrap();
        let error = other.ensure_base().unwrap_err();
        let text = "subnet 10.200.4.0/24 overlaps 10.200.4.1/24 of interface brtest0";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    });
}

#[test]
fn an_interface_that_is_no_bridge_is_not_used_as_one() {
    on_default_node(|node| {
        let pod = node.attach("pod", &[]);
        let config = NetworkConfig {
            bridge: pod.attachment.host_interface.clone(),
            table: "berth-other".into(),
            subnet: "10.200.5.0/24".parse().unwrap(),
            ..small()
        };
        let leases = Arc::new(MemoryLeases::default());
        let other = Network::new(config, leases as Arc<dyn Leases>).unwrap();
        assert!(matches!(other.ensure_base(), Err(Error::NotABridge(_))));
    });
}

#[test]
fn many_threads_attach_and_detach_at_once() {
    on_default_node(|node| {
        std::thread::scope(|scope| {
            for worker in 0..4_u16 {
                scope.spawn(move || {
                    for round in 0..10_u16 {
                        let port = 1000 + worker * 100 + round;
                        let pod = node.attach(&format!("pod-{worker}-{round}"), &[tcp(port, 80)]);
                        let server = pod.netns.listen(Ipv4Addr::UNSPECIFIED, 80);
                        converse(&node.netns, (Ipv4Addr::LOCALHOST, port), &server);
                        node.remove(pod);
                    }
                });
            }
        });
        assert!(node.network.wait_drained(LIMIT));
        assert!(node.leased().is_empty() && node.links().is_empty());
    });
}
