//! Tests on a real kernel, each in a network namespace of its own that plays the node.
//!
//! Nothing here touches the namespace of the process; when a test's thread ends, its
//! node is gone with all that is on it. They need root.

mod lifecycle;
mod paths;
mod ports;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_model::SandboxId;
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::StoreError;
use crate::inside::{Inside, visit};
use crate::link;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::route::{self, Veth};
use crate::*;

const LIMIT: Duration = Duration::from_secs(5);

/// A network namespace.
struct Netns(OwnedFd);

impl Netns {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::own()
        });
        made.join().unwrap()
    }

    /// One that belongs to a user namespace of its own, as that of a pod with user namespaces.
    fn of_a_user_namespace() -> Self {
        // Only a process with a single thread may enter a user namespace that it made.
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "--net", "sh", "-c", "echo; read end"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        Self(netns.into())
    }

    /// That of the calling thread.
    fn own() -> Self {
        Self(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a thread in there. A socket it makes stays in there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn listen(&self, address: impl Into<IpAddr>, port: u16) -> TcpListener {
        let address = SocketAddr::new(address.into(), port);
        self.run(|| TcpListener::bind(address).unwrap())
    }

    fn connect(&self, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        let address = SocketAddr::new(address.into(), port);
        self.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))
    }
}

/// Connects, sends a word there and back; returns the client's address as the server
/// sees it.
#[track_caller]
fn converse(client: &Netns, (address, port): (Ipv4Addr, u16), server: &TcpListener) -> IpAddr {
    let mut near = client.connect(address, port).unwrap();
    server.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + LIMIT;
    let (mut far, peer) = loop {
        match server.accept() {
            Ok(accepted) => break accepted,
            Err(error) => assert!(Instant::now() < deadline, "not led to this server: {error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    far.set_nonblocking(false).unwrap();
    let mut word = [0; 4];
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
    }
    near.write_all(b"ping").unwrap();
    far.read_exact(&mut word).unwrap();
    far.write_all(&word).unwrap();
    near.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    peer.ip()
}

/// Leases in memory.
#[derive(Default)]
struct MemoryLeases(Mutex<Leased>);

#[derive(Default)]
struct Leased {
    last: Option<Ipv4Addr>,
    /// How often a release is still refused.
    refusals: u32,
    held: BTreeMap<Ipv4Addr, SandboxId>,
}

impl Leases for MemoryLeases {
    fn lease(&self, sandbox: &SandboxId, from: &Subnet) -> Result<Ipv4Addr, LeaseError> {
        let mut leased = self.0.lock().unwrap();
        let free = from.next_free(leased.last, |address| leased.held.contains_key(&address));
        let address = free.ok_or(LeaseError::Exhausted)?;
        leased.last = Some(address);
        leased.held.insert(address, sandbox.clone());
        Ok(address)
    }

    fn release(&self, sandbox: &SandboxId, address: Ipv4Addr) -> Result<(), StoreError> {
        let mut leased = self.0.lock().unwrap();
        if let Some(left) = leased.refusals.checked_sub(1) {
            leased.refusals = left;
            return Err("the store is away".into());
        }
        if leased.held.get(&address) == Some(sandbox) {
            leased.held.remove(&address);
        }
        Ok(())
    }

    fn leased(&self) -> Result<Vec<(SandboxId, Ipv4Addr)>, StoreError> {
        let leased = self.0.lock().unwrap();
        Ok(leased.held.iter().map(|(address, sandbox)| (sandbox.clone(), *address)).collect())
    }
}

/// A namespace that plays the node, and the network of a daemon on it.
struct Node {
    netns: Netns,
    network: Network,
    leases: Arc<MemoryLeases>,
    route: Mutex<Socket>,
}

/// Runs a test on a node of its own, then proves that teardown leaves nothing.
fn on_node(config: NetworkConfig, test: impl FnOnce(&Node) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let netns = Netns::own();
            visit(netns.fd()).unwrap().loopback_up().unwrap();
            let leases = Arc::new(MemoryLeases::default());
            let network = Network::new(config, Arc::clone(&leases) as Arc<dyn Leases>).unwrap();
            let route = Mutex::new(Socket::route().unwrap());
            let node = Node { netns, network, leases, route };
            node.network.ensure_base().unwrap();
            test(&node);
            node.tear_down();
        });
        thread.join().unwrap();
    });
}

/// As [`on_node`], with a small subnet and the names of this test.
fn on_default_node(test: impl FnOnce(&Node) + Send) {
    on_node(small(), test);
}

fn small() -> NetworkConfig {
    NetworkConfig {
        bridge: "brtest0".into(),
        subnet: "10.200.4.0/24".parse().unwrap(),
        table: "berth-test".into(),
        ..NetworkConfig::default()
    }
}

fn id(name: &str) -> SandboxId {
    SandboxId::new(name).unwrap()
}

/// A sandbox's namespace and how it is attached.
struct Pod {
    id: SandboxId,
    netns: Netns,
    attachment: Attachment,
}

impl Pod {
    fn address(&self) -> Ipv4Addr {
        self.attachment.address
    }
}

impl Node {
    fn try_attach(&self, name: &str, ports: &[PortMapping]) -> Result<Pod, Error> {
        let (id, netns) = (id(name), Netns::new());
        let attachment = attach(&self.network, &id, netns.fd(), ports)?;
        Ok(Pod { id, netns, attachment })
    }

    fn attach(&self, name: &str, ports: &[PortMapping]) -> Pod {
        self.try_attach(name, ports).unwrap()
    }

    /// Detaches and drops the namespace.
    fn remove(&self, pod: Pod) {
        self.network.detach(&pod.id, &pod.attachment).unwrap();
    }

    fn gateway(&self) -> Ipv4Addr {
        self.network.config().subnet.gateway()
    }

    /// Names of the ports of the bridge.
    fn links(&self) -> Vec<String> {
        let mut route = self.route.lock().unwrap();
        let bridge = link::find(&mut route, &self.network.config().bridge).unwrap().unwrap();
        let ports = link::ports(&mut route, bridge.index).unwrap();
        ports.into_iter().map(|port| port.name).collect()
    }

    fn leased(&self) -> Vec<SandboxId> {
        self.leases.leased().unwrap().into_iter().map(|(sandbox, _)| sandbox).collect()
    }

    /// Another machine at 192.0.2.2, which the node sees at 192.0.2.1 and which knows no
    /// way to the sandboxes.
    fn outside(&self) -> Netns {
        let outside = Netns::new();
        let network: Subnet = "192.0.2.0/24".parse().unwrap();
        let veth = Veth {
            host_name: "out0",
            bridge_index: 0,
            peer_name: "eth0",
            peer_netns: outside.fd(),
            peer_mac: MacAddr::of(OUTSIDE),
            mtu: 1500,
        };
        let mut route = self.route.lock().unwrap();
        let mut request = Request::new();
        route::add_veth(&mut request, &veth);
        let mut made = None;
        route
            .query(request, |answer| {
                made = made.take().or(route::parse_link(&answer)?);
                Ok(())
            })
            .unwrap();
        let made = made.unwrap();
        add_address(&mut route, made.index, NODE, &network);
        let Inside { mut socket } = visit(outside.fd()).unwrap();
        let mut request = Request::new();
        route::set_index_up(&mut request, made.peer.unwrap());
        socket.run(request).unwrap();
        add_address(&mut socket, made.peer.unwrap(), OUTSIDE, &network);
        outside
    }

    fn tear_down(&self) {
        self.network.teardown().unwrap();
        self.network.teardown().unwrap(); // it is safe to repeat
        assert!(self.network.wait_drained(LIMIT), "links are left");
        let bridge = &self.network.config().bridge;
        let mut route = self.route.lock().unwrap();
        let left = link::list(&mut route, None).unwrap();
        let ours = |link: &&route::Link| link::is_host_name(&link.name) || link.name == *bridge;
        assert_eq!(left.iter().find(ours), None);
        let Err(error) = self.network.ready() else { panic!("ready after teardown") };
        assert_eq!(error.to_string(), format!("interface {bridge} not found"));
    }
}

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn add_address(socket: &mut Socket, index: u32, address: Ipv4Addr, subnet: &Subnet) {
    let mut request = Request::new();
    route::add_address(&mut request, index, address, subnet);
    socket.run(request).unwrap();
}

use berth_model::sandbox::{PortMapping, Protocol};

fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: None }
}

fn udp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Udp, ..tcp(host_port, container_port) }
}

fn counters(node: &Node, netns: BorrowedFd<'_>) -> Vec<crate::InterfaceCounters> {
    let watched = node.network.watch(netns).unwrap();
    watched.counters().unwrap()
}

/// Attaches a namespace that exists already.
fn attach(
    network: &Network,
    sandbox: &SandboxId,
    netns: BorrowedFd<'_>,
    ports: &[PortMapping],
) -> Result<Attachment, Error> {
    network.attach(sandbox, netns, visit(netns)?, ports)
}
