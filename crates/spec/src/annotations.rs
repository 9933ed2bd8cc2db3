//! Annotations: what a shim or runtime must know beyond the specification.
//!
//! Only these are written. Annotations of requests and images are not passed on: runtimes
//! act on some (`org.systemd.property.*`, `run.oci.*`, hypervisor settings), and policy
//! comes from the request's typed fields alone.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Wanted, mounts};

/// Annotations with this prefix are ours; none comes from outside.
pub const PREFIX: &str = "dev.berth.";

/// The whole environment as a JSON list of base64 strings, each `NAME=value`; present
/// when a value is not UTF-8, which `process.env` cannot hold. It then replaces it.
pub const ENV_ANNOTATION: &str = "dev.berth.process.env";

/// Destinations of the bind mounts, as a JSON list, whose sources were found to be paths
/// without symbolic links: one that is there later is an attack (CVE-2021-25741), and is
/// refused rather than followed. A shim of an earlier release follows it.
pub const EXACT_ANNOTATION: &str = "dev.berth.mounts.exact";

/// Keys that containerd sets and third-party shims read.
const CONTAINERD: &str = "io.kubernetes.cri.";

pub(crate) fn annotations(wanted: &Wanted<'_>, env: &[Vec<u8>]) -> HashMap<String, String> {
    let sandbox = wanted.sandbox_name;
    let mut all: HashMap<String, String> = [
        ("container-type", "container"),
        ("sandbox-id", wanted.sandbox.as_str()),
        ("sandbox-name", &sandbox.name),
        ("sandbox-namespace", &sandbox.namespace),
        ("sandbox-uid", &sandbox.uid),
        ("container-name", &wanted.spec.name.name),
        ("image-name", wanted.image_name),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{CONTAINERD}{key}"), value.to_owned()))
    .collect();
    if env.iter().any(|entry| std::str::from_utf8(entry).is_err()) {
        let encoded: Vec<_> = env.iter().map(|entry| STANDARD.encode(entry)).collect();
        let json = serde_json::to_string(&encoded).expect("a list of strings is always JSON");
        all.insert(ENV_ANNOTATION.to_owned(), json);
    }
    let exact: Vec<_> = mounts::exact(wanted).collect();
    // A path that is not UTF-8 came from nowhere but a record of our own.
    if !exact.is_empty()
        && let Ok(json) = serde_json::to_string(&exact)
    {
        all.insert(EXACT_ANNOTATION.to_owned(), json);
    }
    all
}
