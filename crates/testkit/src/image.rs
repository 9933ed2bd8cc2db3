//! Images made in memory: layers, config, manifest, index.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use berth_model::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::tar::Tar;

/// OCI media types (image specification, "Media types").
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A blob or manifest with what a registry must be told of it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Media type.
    pub media_type: &'static str,
    /// Content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Digest of the content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The OCI descriptor of the content.
    #[must_use]
    pub fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.digest().to_string(),
            "size": self.bytes.len(),
        })
    }
}

/// An image ready to be pushed.
#[derive(Clone, Debug)]
pub struct Image {
    /// Config and layers.
    pub blobs: Vec<Blob>,
    /// The manifest of each platform, with the platform as the index has it.
    pub manifests: Vec<(Blob, Value)>,
    /// The index that names the manifests in this order.
    pub index: Blob,
    /// Digest of the config of this machine's platform: the image's id.
    pub id: Digest,
}

impl Image {
    /// Puts `other` into the index before this image, for `platform`.
    pub fn behind(mut self, other: Self, platform: Value) -> Result<Self> {
        self.blobs.extend(other.blobs);
        let others = other.manifests.into_iter().map(|(manifest, _)| (manifest, platform.clone()));
        self.manifests = others.chain(self.manifests).collect();
        self.index = index_of(&self.manifests)?;
        Ok(self)
    }

    /// Names all manifests of the index as made for `platform`.
    pub fn made_for(mut self, platform: &Value) -> Result<Self> {
        for (_, made_for) in &mut self.manifests {
            made_for.clone_from(platform);
        }
        self.index = index_of(&self.manifests)?;
        Ok(self)
    }
}

/// Builds an [`Image`] layer by layer.
#[derive(Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<(Blob, Digest)>,
    config: BTreeMap<String, Value>,
}

impl ImageBuilder {
    /// An image with neither layers nor configuration.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gzip layer.
    pub fn layer(mut self, tar: Tar) -> Result<Self> {
        let plain = tar.finish();
        let diff_id = Digest::of(&plain);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&plain)?;
        let bytes = encoder.finish().context("compress a layer")?;
        self.layers.push((Blob { media_type: LAYER_GZIP, bytes }, diff_id));
        Ok(self)
    }

    /// Adds a layer that is not compressed.
    #[must_use]
    pub fn plain_layer(mut self, tar: Tar) -> Self {
        let blob = Blob { media_type: LAYER_TAR, bytes: tar.finish() };
        let diff_id = blob.digest();
        self.layers.push((blob, diff_id));
        self
    }

    /// Sets a field of the image's `config` object (`Cmd`, `Env`, `User` …).
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config.insert(field.to_owned(), value);
        self
    }

    /// Writes config, manifest and index.
    pub fn build(self) -> Result<Image> {
        let diff_ids: Vec<_> = self.layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [],
        });
        let config = Blob { media_type: CONFIG, bytes: serde_json::to_vec(&config)? };
        let layers: Vec<_> = self.layers.iter().map(|(blob, _)| blob.descriptor()).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": layers,
        });
        let manifest = Blob { media_type: MANIFEST, bytes: serde_json::to_vec(&manifest)? };
        let manifests = vec![(manifest, json!({"architecture": "amd64", "os": "linux"}))];
        let index = index_of(&manifests)?;
        let id = config.digest();
        let mut blobs = vec![config];
        blobs.extend(self.layers.into_iter().map(|(blob, _)| blob));
        Ok(Image { blobs, manifests, index, id })
    }
}

fn index_of(manifests: &[(Blob, Value)]) -> Result<Blob> {
    let entry = |(manifest, platform): &(Blob, Value)| {
        let mut entry = manifest.descriptor();
        entry["platform"] = platform.clone();
        entry
    };
    let entries: Vec<_> = manifests.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    Ok(Blob { media_type: INDEX, bytes: serde_json::to_vec(&index)? })
}

/// The image of the demo and of most tests: busybox, its links, users and groups.
///
/// The program is the machine's own (Debian's `busybox-static`).
pub fn busybox() -> Result<Image> {
    busybox_builder()?.build()
}

/// [`busybox`] before it is built, for tests that add a layer or a setting.
pub fn busybox_builder() -> Result<ImageBuilder> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .context("no busybox on this machine: install busybox-static")?;
    let mut base = Tar::new();
    for (dir, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("home/user/", 0o700),
        ("tmp/", 0o1777),
    ] {
        base = base.directory(dir, mode);
    }
    base = base.file("bin/busybox", 0o755, &program);
    for applet in APPLETS {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let users = base
        .file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n");
    Ok(ImageBuilder::new()
        .layer(users)?
        .config("Cmd", json!(["sh"]))
        .config("Env", json!(["PATH=/bin"])))
}

/// The applets that tests call by name.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cut", "date", "dd", "df", "du", "echo", "env", "false", "grep",
    "head", "hostname", "id", "ifconfig", "ip", "kill", "ls", "mkdir", "mknod", "mount", "nc",
    "od", "pgrep", "ping", "printf", "ps", "pwd", "readlink", "rm", "route", "sed", "seq", "sh",
    "sleep", "sort", "stat", "stty", "sync", "tail", "tee", "test", "timeout", "touch", "tr",
    "trap", "true", "tty", "ulimit", "umount", "unshare", "vi", "wc", "wget", "yes",
];
