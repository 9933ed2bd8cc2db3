//! What a pull must be told, and what no image may exceed.

use std::time::Duration;

/// What the image store must be told; the default suits a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Layers of one image that are fetched and unpacked at once.
    pub parallel_layers: usize,
    /// How long a pull goes on after its last waiter is gone.
    pub orphan_grace: Duration,
    /// Longest time one pull may take.
    pub pull_deadline: Duration,
    /// How long what a failed pull has fetched is kept for the next try, unless space is
    /// wanted before.
    pub leftover_grace: Duration,
    /// The platform whose images are wanted.
    pub platform: Platform,
    /// What no image may exceed.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            parallel_layers: 3,
            orphan_grace: Duration::from_secs(60),
            pull_deadline: Duration::from_secs(6 * 3600),
            // Three times the longest pause of kubelet between two tries.
            leftover_grace: Duration::from_secs(15 * 60),
            platform: Platform::host(),
            limits: Limits::default(),
        }
    }
}

/// What no image may exceed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Size of a manifest or index, bytes.
    pub manifest_bytes: u64,
    /// Size of a config, bytes.
    pub config_bytes: u64,
    /// Layers of one image: as many as can be mounted.
    pub layers: usize,
    /// Indexes within indexes.
    pub index_depth: usize,
    /// Entries of all indexes on the way to a manifest.
    pub index_nodes: usize,
    /// Entries of one layer.
    pub entries: u64,
    /// Length of a path in a layer, bytes.
    pub path_bytes: usize,
    /// Components of a path in a layer.
    pub path_depth: usize,
    /// Size of an extended attribute's value, bytes.
    pub xattr_bytes: usize,
    /// Size of one layer when uncompressed, bytes.
    pub layer_bytes: u64,
    /// How many times larger than compressed an uncompressed layer may be, beyond
    /// [`Limits::expansion_free_bytes`].
    pub expansion_ratio: u64,
    /// Uncompressed bytes to which the ratio does not apply.
    pub expansion_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: berth_snapshot::MAX_LAYERS,
            index_depth: 4,
            index_nodes: 1000,
            entries: 2_000_000,
            path_bytes: 4096,
            path_depth: 256,
            xattr_bytes: 64 << 10,
            layer_bytes: 64 << 30,
            expansion_ratio: 200,
            expansion_free_bytes: 64 << 20,
        }
    }
}

/// An operating system and processor, in the names OCI gives them (Go's).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// Processor: `amd64`, `arm64` …
    pub architecture: String,
    /// Variants of the processor that will do, best first; empty text is "none named".
    pub variants: Vec<String>,
}

impl Platform {
    /// That of this program.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variants): (_, &[&str]) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", &["", "v1"]),
            "aarch64" => ("arm64", &["v8", ""]),
            "arm" => ("arm", &["v7", "v6", "v5", ""]),
            "x86" => ("386", &[""]),
            "powerpc64" => ("ppc64le", &[""]),
            "loongarch64" => ("loong64", &[""]),
            other => (other, &[""]),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variants: variants.iter().map(|variant| (*variant).to_owned()).collect(),
        }
    }

    /// How well a named platform suits: lower is better, `None` is not at all.
    pub(crate) fn rank(&self, os: &str, architecture: &str, variant: &str) -> Option<usize> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        self.variants.iter().position(|ours| ours == variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}
