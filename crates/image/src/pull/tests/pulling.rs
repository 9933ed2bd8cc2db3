//! Pulls that succeed.

use berth_model::{ChainId, DiffId, Digest};
use serde_json::json;

use super::registry::{Image, Layer, Registry, descriptor, for_platform, index};
use super::{Node, is_root};
use crate::tar::build::Tar;

#[tokio::test]
async fn an_index_becomes_the_image_of_this_platform() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let layers = [
        Layer::of("etc/passwd", "low"),
        Layer::plain(Tar::new().file("etc/passwd", b"top").file("etc/.wh.gone", b"")),
    ];
    let ours = Image::put(&node.registry, &layers, "ours");
    let other = Image::put(&node.registry, &layers, "other");
    ours.tag(&node.registry, "");
    let list = index(&[
        for_platform(other.descriptor(), "arm64", "v8"),
        for_platform(ours.descriptor(), "amd64", ""),
        for_platform(other.descriptor(), "unknown", ""),
    ]);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let top = node.registry.put_manifest("t", media_type, &list);

    let image = node.pull(":t").await.unwrap();
    assert_eq!(image.id, ours.id);
    assert_eq!(image.tags, [node.reference(":t").to_string()]);
    assert_eq!(image.digests, [node.reference(&format!("@{top}")).to_string()]);
    let diff_ids: Vec<_> = layers.iter().map(|layer| DiffId(layer.diff_id)).collect();
    assert_eq!(image.chain, ChainId::chain(&diff_ids));
    assert_eq!(image.user, "1000:1000");
    assert_eq!(image.blobs.len(), 5);
    assert!(image.size > 0 && image.pulled_at.0 > 0);
    assert_eq!(node.read(&image, "etc/passwd").as_deref(), Some("top"));
    assert_eq!(node.images.list().await.unwrap(), std::slice::from_ref(&image));
    let config = node.images.config(&image).await.unwrap();
    let env = config.config().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env, ["NOTE=ours"]);
    let used = node.images.fs_info().await.unwrap();
    assert!(used.used_bytes > 4096 * 5 && used.used_inodes > 5, "{used:?}");
    node.assert_settled();
}

/// teeth: crates/image/src/images.rs: `Ok(self.is_complete(&image)?.then_some(image))` → `Ok(None)`.
#[tokio::test]
async fn a_second_pull_downloads_nothing() {
    if !is_root() {
        return;
    }
    let mut node = Node::new();
    let image = Image::put(&node.registry, &[Layer::of("a", "1"), Layer::of("b", "2")], "");
    let digest = image.tag(&node.registry, "t");
    let first = node.pull(":t").await.unwrap();
    assert_eq!(node.registry.asked(), (3, 1));
    assert_eq!(node.pull(":t").await.unwrap(), first);
    assert_eq!(node.registry.asked(), (0, 1));
    assert_eq!(node.pull(&format!("@{digest}")).await.unwrap(), first);
    assert_eq!(node.pull(&format!(":t@{digest}")).await.unwrap(), first);
    assert_eq!(node.registry.asked(), (0, 0));
    node.restart();
    assert_eq!(node.pull(":t").await.unwrap(), first);
    assert_eq!(node.registry.asked(), (0, 1));
}

/// teeth: crates/image/src/pull/mod.rs: `if committed && ` → `if `.
#[tokio::test]
async fn what_two_images_share_is_downloaded_once() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let base = Layer::of("base", "shared");
    Image::put(&node.registry, std::slice::from_ref(&base), "one").tag(&node.registry, "one");
    let two = Image::put(&node.registry, &[base, Layer::of("own", "2")], "two");
    two.tag(&node.registry, "two");
    let one = node.pull(":one").await.unwrap();
    node.registry.asked();
    let two = node.pull(":two").await.unwrap();
    assert_eq!(node.registry.asked(), (2, 1));
    assert_eq!(one.chain[0], two.chain[0]);
    assert_eq!(node.entries("snapshots/l"), 2);
    assert_eq!(node.read(&two, "base").as_deref(), Some("shared"));
}

#[tokio::test]
async fn a_layer_that_is_repeated_is_downloaded_once_and_unpacked_twice() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let twice = Layer::of("a", "twice");
    let layers = [twice.clone(), Layer::of("a", "between"), twice];
    Image::put(&node.registry, &layers, "").tag(&node.registry, "t");
    let image = node.pull(":t").await.unwrap();
    assert_eq!(node.registry.asked(), (3, 1));
    assert_eq!(node.read(&image, "a").as_deref(), Some("twice"));
    assert_eq!(node.entries("snapshots/l"), 3);
}

#[tokio::test]
async fn an_image_without_layers_is_an_image() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    Image::put(&node.registry, &[], "").tag(&node.registry, "t");
    let image = node.pull(":t").await.unwrap();
    assert!(image.chain.is_empty() && image.size > 0);
    assert_eq!(node.pull(":t").await.unwrap(), image);
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_nameless() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    Image::put(&node.registry, &[Layer::of("a", "old")], "old").tag(&node.registry, "t");
    let old = node.pull(":t").await.unwrap();
    Image::put(&node.registry, &[Layer::of("a", "new")], "new").tag(&node.registry, "t");
    let new = node.pull(":t").await.unwrap();
    assert_ne!(old.id, new.id);
    let tag = node.reference(":t").to_string();
    assert_eq!(node.images.status(&tag).await.unwrap().unwrap().id, new.id);
    let left = node.images.status(&old.id.to_string()).await.unwrap().unwrap();
    assert!(left.tags.is_empty());
    assert_eq!(left.digests, old.digests);
}

#[tokio::test]
async fn two_tags_of_one_image_are_one_image() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[Layer::of("a", "1")], "");
    image.tag(&node.registry, "one");
    image.tag(&node.registry, "two");
    node.pull(":one").await.unwrap();
    let both = node.pull(":two").await.unwrap();
    assert_eq!(both.tags, ["one", "two"].map(|tag| node.reference(&format!(":{tag}")).to_string()));
    assert_eq!(node.images.list().await.unwrap(), [both]);
}

#[tokio::test]
async fn an_image_is_found_by_every_name_it_has() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[], "");
    let digest = image.tag(&node.registry, "latest");
    let pulled = node.pull("").await.unwrap();
    let id = pulled.id.to_string();
    let digested = format!("@{digest}");
    for name in [
        id.clone(),
        pulled.id.hex(),
        pulled.id.hex()[..12].to_owned(),
        id[..20].to_owned(),
        node.reference("").to_string(),
        node.reference(":latest").to_string(),
        node.reference(&digested).to_string(),
        node.reference(&format!(":other{digested}")).to_string(),
    ] {
        let found = node.images.status(&name).await.unwrap();
        assert_eq!(found.as_ref(), Some(&pulled), "{name}");
    }
    let absent = format!("sha256:{}", "0".repeat(64));
    for name in ["", "..", "sha256:../../x", "%2f", &absent, "nothing", &"f".repeat(10_000)] {
        assert_eq!(node.images.status(name).await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn nested_indexes_are_followed_and_variants_ranked() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let good = Image::put(&node.registry, &[], "good");
    let better = Image::put(&node.registry, &[], "better");
    let wrong = Image::put(&node.registry, &[], "wrong");
    for image in [&good, &better, &wrong] {
        image.tag(&node.registry, "");
    }
    let inner = index(&[
        for_platform(wrong.descriptor(), "amd64", "v3"),
        for_platform(good.descriptor(), "amd64", "v1"),
        for_platform(better.descriptor(), "amd64", ""),
    ]);
    let size = serde_json::to_vec(&inner).unwrap().len();
    let inner = node.registry.put_manifest("", media_type, &inner);
    let empty = index(&[for_platform(wrong.descriptor(), "s390x", "")]);
    let empty_size = serde_json::to_vec(&empty).unwrap().len();
    let empty = node.registry.put_manifest("", media_type, &empty);
    let artifact = json!({"mediaType": "application/vnd.example", "digest": empty, "size": 1});
    let outer = index(&[
        artifact,
        descriptor(media_type, empty, empty_size),
        descriptor(media_type, inner, size),
    ]);
    node.registry.put_manifest("t", media_type, &outer);
    assert_eq!(node.pull(":t").await.unwrap().id, better.id);
}

/// I8, I9: labels, annotations and volumes are carried and never obeyed.
#[tokio::test]
async fn i9_what_an_image_says_of_itself_decides_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Volumes": {"../../canary": {}, "/": {}},
            "Labels": {"containerd.io/restart.loguri": "binary:///bin/sh"},
        },
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let id = node.registry.put_blob(&config);
    let mut image = Image::put(&node.registry, &[], "");
    let media_type = "application/vnd.oci.image.config.v1+json";
    image.manifest["config"] = descriptor(media_type, id, config.len());
    image.manifest["annotations"] = json!({"io.example": "x"});
    image.tag(&node.registry, "t");
    let pulled = node.pull(":t").await.unwrap();
    assert_eq!(pulled.id, id);
    assert_eq!(node.entries("."), 5, "images.db and its two companions, content, snapshots");
}

/// teeth: crates/image/src/pull/layer.rs: `Some(actual) if liars.add(&blob, actual)` → `Some(actual) if !liars.add(&blob, actual)`
/// teeth: crates/image/src/pull/resolve.rs: `actual == digest || !liars.add(&blob, actual)` → `true`
#[tokio::test]
async fn what_a_mirror_has_other_bytes_for_comes_from_the_registry() {
    if !is_root() {
        return;
    }
    let layers = [Layer::of("a", "content"), Layer::of("b", "other")];
    for wrong in ["config", "layer"] {
        let node = Node::new();
        let mirror = Registry::start();
        node.mirrored_by(&mirror);
        for registry in [&node.registry, &mirror] {
            Image::put(registry, &layers, "").tag(registry, "t");
        }
        let image = Image::put(&mirror, &layers, "");
        match wrong {
            "config" => {
                let size = image.manifest["config"]["size"].as_u64().unwrap();
                mirror.put_lie(image.id, &vec![b'x'; usize::try_from(size).unwrap()]);
            }
            _ => {
                let mut blob = layers[0].blob.clone();
                let middle = blob.len() / 2;
                blob[middle] ^= 1;
                mirror.put_lie(Digest::of(&layers[0].blob), &blob);
            }
        }
        assert_eq!(node.pull(":t").await.unwrap().id, image.id, "{wrong}");
        let (mirrored, own) = (mirror.asked().0, node.registry.asked().0);
        assert!(own > 0 && mirrored > 0, "{wrong}: {mirrored} and {own}");
        // What was verified is not fetched again.
        assert_eq!(mirrored + own, 4, "{wrong}: {mirrored} and {own}");
        node.assert_settled();
    }
}
