//! Manifests, indexes and configs: parsed strictly, since they come from anyone.
//!
//! A document is what its descriptor (or, at the root, the registry) says it is; one that
//! says otherwise of itself, or has the fields of another kind, is refused (the
//! specification's advisory on manifest and index confusion).

use std::collections::HashMap;

use berth_model::{DiffId, Digest};
use berth_registry::MediaType;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::BadDocument;
use crate::{Limits, Platform};

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// A reference to a blob or document (OCI image specification, "Content Descriptors").
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<PlatformField>,
}

#[derive(Clone, Debug, Deserialize)]
struct PlatformField {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

/// How a layer's archive is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the media type of its descriptor; `None` for what is not unpacked.
    pub(crate) fn of(media_type: &str) -> Option<Self> {
        let tar = media_type
            .strip_prefix("application/vnd.oci.image.layer.v1.")
            .or_else(|| {
                media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1.")
            })
            .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
            .or_else(|| {
                media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff.")
            })?;
        match tar {
            "tar" => Some(Self::None),
            "tar+gzip" | "tar.gzip" => Some(Self::Gzip),
            "tar+zstd" | "tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The manifest of one platform.
#[derive(Clone, Debug)]
pub(crate) struct ImageManifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Parses the manifest or index that was named as `media_type`.
fn raw(bytes: &[u8], media_type: MediaType) -> Result<Raw, BadDocument> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(BadDocument::Json)?;
    if raw.schema_version != 2 {
        return Err(BadDocument::Schema(raw.schema_version));
    }
    if let Some(inside) = &raw.media_type
        && inside != media_type.as_str()
    {
        return Err(BadDocument::MediaTypeMismatch {
            inside: inside.chars().take(200).collect(),
            outside: media_type.to_string(),
        });
    }
    if raw.fs_layers.is_some() {
        return Err(BadDocument::Ambiguous("fsLayers"));
    }
    Ok(raw)
}

impl ImageManifest {
    pub(crate) fn parse(
        bytes: &[u8],
        media_type: MediaType,
        limits: &Limits,
    ) -> Result<Self, BadDocument> {
        let raw = raw(bytes, media_type)?;
        if raw.manifests.is_some() {
            return Err(BadDocument::Ambiguous("manifests"));
        }
        let missing = |field| BadDocument::Json(serde::de::Error::missing_field(field));
        let config = raw.config.ok_or_else(|| missing("config"))?;
        let layers = raw.layers.ok_or_else(|| missing("layers"))?;
        if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
            return Err(BadDocument::MediaType(config.media_type.chars().take(200).collect()));
        }
        if layers.len() > limits.layers {
            let (layers, limit) = (layers.len(), limits.layers);
            return Err(BadDocument::Layers { layers, limit });
        }
        if config.size > limits.config_bytes {
            let (size, limit) = (config.size, limits.config_bytes);
            return Err(BadDocument::TooLarge { size, limit });
        }
        let manifest = Self { config, layers };
        manifest.check_repeated()?;
        manifest.total().ok_or(BadDocument::Sizes)?;
        Ok(manifest)
    }

    /// A blob that is named twice must be the same thing both times.
    fn check_repeated(&self) -> Result<(), BadDocument> {
        let mut seen = HashMap::new();
        for named in self.layers.iter().chain([&self.config]) {
            let what = (named.size, named.media_type.as_str());
            if *seen.entry(named.digest).or_insert(what) != what {
                return Err(BadDocument::Contradiction(named.digest));
            }
        }
        Ok(())
    }

    /// Size of config and layers, bytes.
    pub(crate) fn total(&self) -> Option<u64> {
        self.layers.iter().try_fold(self.config.size, |sum, layer| sum.checked_add(layer.size))
    }
}

/// Where an index leads.
#[derive(Debug)]
pub(crate) enum Choice {
    /// The manifest for the wanted platform.
    Manifest(Descriptor, MediaType),
    /// Not known yet: the only manifest names no platform, its config will.
    Unnamed(Descriptor, MediaType),
    /// Further indexes, one of which may have it.
    Indexes(Vec<(Descriptor, MediaType)>),
    /// Nowhere; these platforms it has.
    Nothing(Vec<String>),
}

/// Chooses from the index `bytes`. Adds its entries to `nodes`.
pub(crate) fn choose(
    bytes: &[u8],
    media_type: MediaType,
    platform: &Platform,
    limits: &Limits,
    nodes: &mut usize,
) -> Result<Choice, BadDocument> {
    let raw = raw(bytes, media_type)?;
    for (field, present) in [("layers", raw.layers.is_some()), ("config", raw.config.is_some())] {
        if present {
            return Err(BadDocument::Ambiguous(field));
        }
    }
    let missing = || BadDocument::Json(serde::de::Error::missing_field("manifests"));
    let manifests = raw.manifests.ok_or_else(missing)?;
    *nodes = nodes.saturating_add(manifests.len());
    if *nodes > limits.index_nodes {
        return Err(BadDocument::Nodes(limits.index_nodes));
    }
    let known: Vec<_> = manifests
        .into_iter()
        .filter_map(|entry| MediaType::parse(&entry.media_type).map(|found| (entry, found)))
        .collect();
    Ok(pick(known, platform))
}

fn pick(entries: Vec<(Descriptor, MediaType)>, platform: &Platform) -> Choice {
    let (indexes, mut manifests): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(_, media_type)| media_type.is_index());
    let best = manifests
        .iter()
        .enumerate()
        .filter_map(|(at, (entry, _))| Some((entry.rank(platform)??, at)))
        .min();
    if let Some((_, at)) = best {
        let (entry, media_type) = manifests.swap_remove(at);
        return Choice::Manifest(entry, media_type);
    }
    let indexes: Vec<_> =
        indexes.into_iter().filter(|(entry, _)| entry.rank(platform) != Some(None)).collect();
    if !indexes.is_empty() {
        return Choice::Indexes(indexes);
    }
    if let [(only, media_type)] = manifests.as_slice()
        && only.platform.is_none()
    {
        return Choice::Unnamed(only.clone(), *media_type);
    }
    Choice::Nothing(manifests.iter().take(20).map(|(entry, _)| entry.shown()).collect())
}

impl Descriptor {
    /// How well its platform suits; outer `None` if it names none.
    fn rank(&self, platform: &Platform) -> Option<Option<usize>> {
        let named = self.platform.as_ref()?;
        Some(platform.rank(&named.os, &named.architecture, &named.variant))
    }

    fn shown(&self) -> String {
        let Some(named) = &self.platform else { return "an unnamed platform".to_owned() };
        let text = match named.variant.as_str() {
            "" => format!("{}/{}", named.os, named.architecture),
            variant => format!("{}/{}/{variant}", named.os, named.architecture),
        };
        text.chars().take(60).collect()
    }
}

/// What a pull needs of a config.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) diff_ids: Vec<DiffId>,
    pub(crate) user: String,
    /// Whether it is for the platform that was asked for.
    pub(crate) suits: bool,
    /// Its platform, for people.
    pub(crate) platform: String,
}

#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RawSettings>,
    rootfs: RawRootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RawSettings {
    #[serde(rename = "User", default)]
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<DiffId>>,
}

impl Config {
    pub(crate) fn parse(
        bytes: &[u8],
        layers: usize,
        platform: &Platform,
    ) -> Result<Self, BadDocument> {
        let raw: RawConfig = serde_json::from_slice(bytes).map_err(BadDocument::Json)?;
        configuration(bytes)?;
        if raw.rootfs.kind != "layers" {
            return Err(BadDocument::RootFs(raw.rootfs.kind.chars().take(60).collect()));
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(BadDocument::DiffIds { layers, diff_ids: diff_ids.len() });
        }
        let variant = raw.variant.unwrap_or_default();
        Ok(Self {
            suits: platform.rank(&raw.os, &raw.architecture, &variant).is_some(),
            platform: format!("{}/{}", raw.os, raw.architecture).chars().take(60).collect(),
            user: raw.config.and_then(|settings| settings.user).unwrap_or_default(),
            diff_ids,
        })
    }
}

/// The whole config, for whoever starts a container.
pub(crate) fn configuration(bytes: &[u8]) -> Result<ImageConfiguration, BadDocument> {
    serde_json::from_slice(bytes).map_err(BadDocument::Json)
}
