//! Code generated from `proto/`: Kubernetes' CRI v1, the Node Resource Interface, and the
//! extension of our shim.
//!
//! Features: `shim` for [`shim`], `nri` for [`nri`], `cri` for the messages of [`v1`], `client` and
//! `server` for its two services and [`Encoded`]. Nothing is on by default, so that the static shim
//! links prost alone.
//!
//! Invariants: a test holds every message, field, enum and RPC of [`v1`] against
//! `proto/cri-v1.json`; formatting an `AuthConfig` never shows a secret. Not here:
//! translation to our own types (`cri`), ttrpc (`shim`, `shim-client`).

/// Kubernetes' container runtime interface, package `runtime.v1`.
#[cfg(feature = "cri")]
#[allow(clippy::all, clippy::pedantic, missing_docs, missing_debug_implementations)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    #[cfg(feature = "server")]
    include!(concat!(env!("OUT_DIR"), "/served/runtime.v1.rs"));
}

/// An answer that is one list, as its server sends it: every item is encoded by whoever made
/// it, and no tree of all items is ever made. On the wire it is the same as the answer it
/// stands for, whose items are its field 1 (a message and bytes are encoded alike).
#[cfg(feature = "server")]
#[derive(Clone, PartialEq, prost::Message)]
pub struct Encoded {
    /// The items.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub items: Vec<Vec<u8>>,
}

/// The extension service of `containerd-shim-berth-v1`, package `berth.shim.v1`.
#[cfg(feature = "shim")]
#[allow(clippy::all, clippy::pedantic)]
pub mod shim {
    include!(concat!(env!("OUT_DIR"), "/berth.shim.v1.rs"));

    /// ttrpc name of the service.
    pub const SERVICE: &str = "berth.shim.v1.Extension";
    /// ttrpc name of the method that opens a container's log file again.
    pub const REOPEN_LOG: &str = "ReopenLog";
    /// ttrpc name of the method that says which protocol a shim speaks.
    pub const INFO: &str = "Info";
    /// ttrpc name of the method that gives a container's streams to one more client.
    pub const ATTACH: &str = "Attach";
    /// The protocol of this release; `shim.proto` says what each number has.
    pub const PROTOCOL: u32 = 3;

    /// What the first byte of an attached client's packet means.
    pub mod packet {
        /// Input, to the shim.
        pub const STDIN: u8 = 0;
        /// Standard output, from the shim.
        pub const STDOUT: u8 = 1;
        /// Standard error, from the shim.
        pub const STDERR: u8 = 2;
        /// The input has ended; from the shim, it was given to the process.
        pub const STDIN_END: u8 = 3;
        /// So many bytes were skipped.
        pub const SKIPPED: u8 = 4;
        /// The process has ended, and its output.
        pub const END: u8 = 5;
        /// Most bytes after the first one.
        pub const MAX: usize = 32 << 10;
    }
}

/// The Node Resource Interface, package `nri.pkg.api.v1alpha1`.
#[cfg(feature = "nri")]
#[allow(clippy::all, clippy::pedantic)]
pub mod nri {
    include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));

    /// ttrpc name of what a plugin serves.
    pub const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
    /// ttrpc name of what the runtime serves.
    pub const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
}

#[cfg(feature = "cri")]
mod redacted;

#[cfg(test)]
#[cfg(feature = "cri")]
#[path = "coverage_tests.rs"]
mod coverage;
#[cfg(test)]
#[cfg(feature = "cri")]
mod tests;
