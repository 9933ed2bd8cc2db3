//! The entry: one [`Network`] per daemon.

use std::fmt;
use std::sync::Arc;

use crate::config::NetworkConfig;
use crate::error::Error;
use crate::leases::Leases;

/// The sandbox network of one daemon.
pub struct Network {
    pub(crate) config: NetworkConfig,
    pub(crate) leases: Arc<dyn Leases>,
}

impl Network {
    /// Opens sockets and threads in the calling thread's network namespace, which is the
    /// node's for the life of the value. Changes nothing on the node.
    ///
    /// # Errors
    /// A configuration that cannot be used; no socket or thread to be had.
    pub fn new(config: NetworkConfig, leases: Arc<dyn Leases>) -> Result<Self, Error> {
        config.validate().map_err(Error::Config)?;
        Ok(Self { config, leases })
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("config", &self.config).finish_non_exhaustive()
    }
}
