//! The entry: one [`Network`] per daemon.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::config::NetworkConfig;
use crate::counters::COUNTERS;
use crate::error::Error;
use crate::inside::Opener;
use crate::leases::Leases;
use crate::link;
use crate::netlink::Socket;
use crate::reclaim::Reclaimer;

/// The sandbox network of one daemon. All methods may be called from several threads.
pub struct Network {
    pub(crate) config: NetworkConfig,
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) opener: Opener,
    pub(crate) reclaimer: Reclaimer,
    /// The kernel does the work inside sendmsg(2) under a lock of its own, so that one
    /// socket for all threads costs no concurrency.
    route: Mutex<Socket>,
    netfilter: Mutex<Socket>,
    /// Index of the bridge; 0 when it is not known.
    bridge: AtomicU32,
    /// Whether `route_localnet` of the bridge is known to be set.
    pub(crate) localnet: AtomicBool,
}

impl Network {
    /// Opens sockets and starts two threads in the calling thread's network namespace,
    /// which is the node's for the life of the value. Changes nothing on the node.
    ///
    /// # Errors
    /// A configuration that cannot be used; no socket or thread to be had.
    pub fn new(config: NetworkConfig, leases: Arc<dyn Leases>) -> Result<Self, Error> {
        config.validate().map_err(Error::Config)?;
        let open = |socket: Result<Socket, Errno>| {
            let operation = || "open socket".to_owned();
            socket.map_err(|source| Error::Netlink { operation: operation(), source })
        };
        Ok(Self {
            opener: Opener::new(COUNTERS)?,
            reclaimer: Reclaimer::new(open(Socket::route())?, Arc::clone(&leases))?,
            route: Mutex::new(open(Socket::route())?),
            netfilter: Mutex::new(open(Socket::netfilter())?),
            bridge: AtomicU32::new(0),
            localnet: AtomicBool::new(false),
            config,
            leases,
        })
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The socket for links, addresses and routes of the node.
    pub(crate) fn route(&self) -> MutexGuard<'_, Socket> {
        // Answers carry sequence numbers: what a panicking holder left unread is skipped.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket for nftables and conntrack of the node.
    pub(crate) fn netfilter(&self) -> MutexGuard<'_, Socket> {
        self.netfilter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Index of the bridge, looked up at first.
    pub(crate) fn bridge_index(&self, route: &mut Socket) -> Result<u32, Error> {
        match self.bridge.load(Ordering::Relaxed) {
            0 => self.find_bridge(route),
            known => Ok(known),
        }
    }

    /// Index of the bridge as it is now.
    pub(crate) fn find_bridge(&self, route: &mut Socket) -> Result<u32, Error> {
        let name = &self.config.bridge;
        let found = link::find(route, name)?.ok_or_else(|| Error::NoInterface(name.clone()));
        self.set_bridge(found.as_ref().map_or(0, |link| link.index));
        found.map(|link| link.index)
    }

    /// Remembers the index of the bridge; another bridge has its own `route_localnet`.
    pub(crate) fn set_bridge(&self, index: u32) {
        if self.bridge.swap(index, Ordering::Relaxed) != index {
            self.localnet.store(false, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("config", &self.config).finish_non_exhaustive()
    }
}
