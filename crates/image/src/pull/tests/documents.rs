//! Manifests, indexes and configs that break the rules (I4, I5, I6).

use berth_model::{Digest, ErrorKind};
use berth_registry::MediaType;
use serde_json::{Value, json};

use super::registry::{Image, Layer, descriptor, for_platform, index};
use super::{Node, is_root};
use crate::document::{Choice, Compression, Config as ImageConfig, ImageManifest, choose};
use crate::{BadDocument, Error, Limits, Platform};

const OCI: MediaType = MediaType::OciManifest;

fn manifest() -> Value {
    let config = Digest::of(b"c");
    json!({
        "schemaVersion": 2,
        "mediaType": OCI.as_str(),
        "config": descriptor("application/vnd.oci.image.config.v1+json", config, 1),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", Digest::of(b"l"), 2)],
    })
}

fn parse(document: &Value) -> Result<ImageManifest, BadDocument> {
    ImageManifest::parse(&serde_json::to_vec(document).unwrap(), OCI, &Limits::default())
}

/// The manifest with one field replaced.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = manifest();
    match document.pointer_mut(pointer) {
        Some(field) => *field = value,
        None => document[pointer.trim_start_matches('/')] = value,
    }
    document
}

#[test]
fn a_manifest_says_what_it_is_or_nothing() {
    assert_eq!(parse(&manifest()).unwrap().total(), Some(3));
    let mut silent = manifest();
    silent.as_object_mut().unwrap().remove("mediaType");
    parse(&silent).unwrap();
    for other in [MediaType::OciIndex, MediaType::DockerManifest] {
        let error = parse(&with("/mediaType", other.as_str().into())).unwrap_err();
        assert!(matches!(error, BadDocument::MediaTypeMismatch { .. }), "{error}");
    }
}

/// teeth: crates/image/src/document.rs: `if raw.manifests.is_some()` → `if false`.
#[test]
fn i6_a_document_of_two_kinds_is_refused() {
    for (field, value) in [("/manifests", json!([])), ("/fsLayers", json!([]))] {
        let error = parse(&with(field, value)).unwrap_err();
        assert!(matches!(error, BadDocument::Ambiguous(_)), "{error}");
    }
    let platform = Platform::host();
    for field in ["layers", "config"] {
        let mut list = index(&[]);
        list[field] = manifest()[field].clone();
        let bytes = serde_json::to_vec(&list).unwrap();
        let limits = Limits::default();
        let error = choose(&bytes, MediaType::OciIndex, &platform, &limits, &mut 0).unwrap_err();
        assert!(matches!(error, BadDocument::Ambiguous(_)), "{error}");
    }
    let twice = br#"{"schemaVersion":2,"layers":[],"layers":[]}"#;
    let error = ImageManifest::parse(twice, OCI, &Limits::default()).unwrap_err();
    assert!(matches!(error, BadDocument::Json(_)));
}

#[test]
fn i4_malformed_manifests_are_refused() {
    let digest = "/layers/0/digest";
    for bad in [
        with("/schemaVersion", json!(1)),
        with("/schemaVersion", json!("2")),
        with("/schemaVersion", Value::Null),
        with("/config", Value::Null),
        with("/config", json!([])),
        with("/config/size", json!(-1)),
        with("/config/size", json!(1.5)),
        with("/config/size", json!("1")),
        with("/config/size", json!(9 << 20)),
        with("/config/mediaType", json!("application/vnd.oci.empty.v1+json")),
        with("/layers", Value::Null),
        with("/layers", json!({})),
        with("/layers/0", Value::Null),
        with("/layers/0/size", json!(-1)),
        with("/layers/0/size", json!(1e30)),
        with("/layers/0/size", json!(u64::MAX)),
        with("/layers/0/mediaType", json!(7)),
        with(digest, json!("")),
        with(digest, json!("sha256:../../x")),
        with(digest, json!("..")),
        with(digest, json!("%2f")),
        with(digest, json!("a".repeat(10_000))),
        with(digest, json!(format!("sha512:{}", "0".repeat(128)))),
        with(digest, json!(format!("sha256:{}", "A".repeat(64)))),
        with("/layers", json!(vec![manifest()["layers"][0].clone(); 513])),
        json!([]),
        json!(null),
        json!({}),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let limits = Limits::default();
    for bytes in [&b""[..], b"{", b"\xff", b"[[[[[[", &b"[".repeat(1 << 20)] {
        assert!(ImageManifest::parse(bytes, OCI, &limits).is_err());
    }
}

#[test]
fn a_blob_named_twice_must_be_the_same() {
    let layer = manifest()["layers"][0].clone();
    parse(&with("/layers", json!([layer, layer]))).unwrap();
    let mut larger = layer.clone();
    larger["size"] = json!(3);
    let error = parse(&with("/layers", json!([layer, larger]))).unwrap_err();
    assert!(matches!(error, BadDocument::Contradiction(_)));
}

#[test]
fn layers_are_known_by_their_media_type() {
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Compression::Zstd)),
        ("application/vnd.oci.image.layer.v1.tar+xz", None),
        ("application/vnd.oci.image.layer.v1.", None),
        ("text/html", None),
    ] {
        assert_eq!(Compression::of(media_type), expected, "{media_type}");
    }
}

#[test]
fn indexes_have_a_limit_for_all_their_entries() {
    let entry = for_platform(descriptor(OCI.as_str(), Digest::of(b"m"), 1), "s390x", "");
    let bytes = serde_json::to_vec(&index(&vec![entry; 600])).unwrap();
    let (limits, platform) = (Limits::default(), Platform::host());
    let mut nodes = 0;
    let mut look = || choose(&bytes, MediaType::OciIndex, &platform, &limits, &mut nodes);
    assert!(matches!(look().unwrap(), Choice::Nothing(found) if found.len() == 20));
    assert!(matches!(look().unwrap_err(), BadDocument::Nodes(1000)));
}

#[test]
fn configs_that_contradict_their_manifest_are_refused() {
    let platform = Platform::host();
    let parse = |document: &Value, layers| {
        ImageConfig::parse(&serde_json::to_vec(document).unwrap(), layers, &platform)
    };
    let config = |root| json!({"architecture": "amd64", "os": "linux", "rootfs": root});
    let empty = config(json!({"type": "layers", "diff_ids": []}));
    parse(&empty, 0).unwrap();
    assert!(matches!(parse(&empty, 1), Err(BadDocument::DiffIds { layers: 1, diff_ids: 0 })));
    for bad in [
        config(json!({"type": "other", "diff_ids": []})),
        config(json!({"type": "layers", "diff_ids": ["sha256:x"]})),
        config(json!({"diff_ids": []})),
        config(Value::Null),
        json!({"rootfs": {"type": "layers", "diff_ids": []}, "config": []}),
        json!([]),
    ] {
        assert!(parse(&bad, 0).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_bad_manifest_is_the_callers_error_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let good = Image::put(&node.registry, &[Layer::of("a", "x")], "");
    let media_type = OCI.as_str();
    for (tag, field, value) in [
        ("both", "manifests", json!([])),
        ("type", "mediaType", MediaType::OciIndex.as_str().into()),
        ("schema", "schemaVersion", json!(1)),
        ("layers", "layers", json!([])),
    ] {
        let mut bent = good.manifest.clone();
        bent[field] = value;
        node.registry.put_manifest(tag, media_type, &bent);
        let error = node.failure(&format!(":{tag}")).await;
        assert!(matches!(&*error, Error::Document { .. }), "{tag}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    assert_eq!(node.registry.asked().0, 1, "only the config of the last is a blob to be asked for");
    node.assert_settled();
}

#[tokio::test]
async fn indexes_that_never_end_are_refused() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let media_type = MediaType::OciIndex.as_str();
    let mut inner = Image::put(&node.registry, &[], "").descriptor();
    for _ in 0..6 {
        let list = index(&[inner]);
        let size = serde_json::to_vec(&list).unwrap().len();
        inner = descriptor(media_type, node.registry.put_manifest("t", media_type, &list), size);
    }
    let error = node.failure(":t").await;
    let deep = matches!(&*error, Error::Document { source: BadDocument::Depth(4), .. });
    assert!(deep, "{error:?}");
}

#[tokio::test]
async fn a_manifest_of_another_size_or_type_than_its_index_says_is_refused() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[], "");
    image.tag(&node.registry, "");
    let mut short = for_platform(image.descriptor(), "amd64", "");
    short["size"] = json!(7);
    let mut docker = for_platform(image.descriptor(), "amd64", "");
    docker["mediaType"] = MediaType::DockerManifest.as_str().into();
    for entry in [short, docker] {
        node.registry.put_manifest(
            "t",
            MediaType::OciIndex.as_str(),
            &index(std::slice::from_ref(&entry)),
        );
        let error = node.failure(":t").await;
        assert!(matches!(&*error, Error::Document { .. }), "{entry}: {error:?}");
    }
}
