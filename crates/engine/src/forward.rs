//! A client's connection to a port in a sandbox.
//!
//! A socket belongs for ever to the network namespace of the thread that made it
//! (socket(2)), so only the making needs a thread in there: one of its own, which ends in
//! there. Servers that listen on the loopback address only are reached too, as kubelet's
//! clients expect.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use berth_model::sandbox::NamespaceMode;
use berth_model::{SandboxId, SandboxState};
use nix::sched::{CloneFlags, setns};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::Error;
use crate::client::Duplex;
use crate::core::Core;
use crate::sandbox::Sandbox;

/// How long a connection within a node may take to be accepted.
const CONNECT: Duration = Duration::from_secs(10);
/// Where servers are looked for, in this order.
const ADDRESSES: [fn(u16) -> SocketAddr; 2] = [
    |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
];

/// Connects `client` with `port`; see [`crate::Engine::port_forward`].
pub(crate) async fn port_forward(
    core: &Arc<Core>,
    id: &SandboxId,
    port: u16,
    mut client: Box<dyn Duplex>,
) -> Result<(), Error> {
    let sandbox = find(core, id)?;
    if port == 0 {
        return Err(Error::invalid("port", "0 is no port"));
    }
    let shim = sandbox.live_shim("forward a port")?;
    let work = async {
        let mut server = connect(core, &sandbox, port).await?;
        // A half that is closed is closed on the other side too, and the rest goes on.
        match copy_bidirectional(&mut client, &mut server).await {
            Ok(_) => Ok(()),
            Err(error) if is_end(&error) => Ok(()),
            Err(source) => Err(Error::Forward { sandbox: id.clone(), port, source }),
        }
    };
    let bounded = async {
        tokio::select! {
            done = work => done,
            // The sandbox is gone: a socket of ours would keep its network.
            () = shim.closed() => Ok(()),
            () = core.shutdown.cancelled() => Err(Error::ShuttingDown),
        }
    };
    core.tasks.track_future(bounded).await
}

/// The sandbox, if it runs.
pub(crate) fn find(core: &Core, id: &SandboxId) -> Result<Arc<Sandbox>, Error> {
    let sandbox = core.sandbox(id)?;
    match sandbox.is_ready() {
        true => Ok(sandbox),
        false => Err(Error::SandboxNotReady { verb: "forward a port", id: id.clone() }),
    }
}

/// Whether one side has merely gone away.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
}

/// A connection to whoever listens, by IPv4 if possible.
async fn connect(core: &Core, sandbox: &Sandbox, port: u16) -> Result<TcpStream, Error> {
    let mut first = None;
    for address in ADDRESSES.map(|address| address(port)) {
        match connect_to(core, sandbox, address).await {
            Ok(stream) => return Ok(stream),
            Err(error @ Error::Forward { .. }) => _ = first.get_or_insert(error),
            Err(error) => return Err(error),
        }
    }
    Err(first.unwrap_or(Error::ShuttingDown))
}

async fn connect_to(
    core: &Core,
    sandbox: &Sandbox,
    address: SocketAddr,
) -> Result<TcpStream, Error> {
    let failed = |source| {
        let sandbox = sandbox.id.clone();
        Error::Forward { sandbox, port: address.port(), source }
    };
    let socket = match netns(sandbox)? {
        None => socket(address),
        Some(netns) => core.links.run(move || visit(&netns, address)).await?,
    };
    let connecting = socket.map_err(failed)?.connect(address);
    let connected = timeout(CONNECT, connecting).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
}

/// The sandbox's network namespace; `None` is the node's.
fn netns(sandbox: &Sandbox) -> Result<Option<File>, Error> {
    if sandbox.spec.namespaces.network == NamespaceMode::Node {
        return Ok(None);
    }
    let gone = || Error::SandboxNotReady { verb: "forward a port", id: sandbox.id.clone() };
    let path = sandbox.status.get().netns.clone().ok_or_else(gone)?;
    let netns = File::open(&path).map_err(Error::io("open network namespace", path))?;
    // By a pid that may have become another's, had the sandbox ended meanwhile.
    match sandbox.status.get().state {
        SandboxState::Ready => Ok(Some(netns)),
        SandboxState::NotReady => Err(gone()),
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Makes a socket in `netns`, by a thread that ends in there.
fn visit(netns: &File, address: SocketAddr) -> io::Result<TcpSocket> {
    thread::scope(|scope| {
        let visitor =
            thread::Builder::new().name("netns-visit".into()).spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                socket(address)
            })?;
        visitor.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters it died")))
    })
}

#[cfg(test)]
mod tests {
    use nix::sched::unshare;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_socket_of_another_network_is_used_from_here() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let netns = thread::spawn(make).join().unwrap();
        let address = ADDRESSES[0](9);
        // The loopback of a new network is down: nothing leads to its own addresses, while
        // a socket of the node's network would be refused.
        let there = visit(&netns, address).unwrap().connect(address).await.unwrap_err();
        assert_eq!(there.kind(), io::ErrorKind::NetworkUnreachable, "{there}");
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(here, std::fs::read_link("/proc/self/ns/net").unwrap());
    }

    #[tokio::test]
    async fn a_half_that_is_closed_leaves_the_other_open() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut client, mut near) = tokio::io::duplex(64);
        let forward = tokio::spawn(async move {
            let mut server = socket(address).unwrap().connect(address).await.unwrap();
            copy_bidirectional(&mut near, &mut server).await.unwrap()
        });
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
        assert_eq!(forward.await.unwrap(), (8, 6));
    }
}
