//! Pulls that must fail: typed, and without a trace.

use std::error::Error as _;

use berth_model::{Digest, ErrorKind};
use serde_json::json;

use super::registry::{GZIP, Image, Layer, Registry, for_platform, gzip, index};
use super::{Node, config, is_root};
use crate::tar::build::Tar;
use crate::{BadArchive, BadEntry, Config, Error, LayerError, Limits};

/// Pulls an image whose first layer `bend` has changed; nothing may be left of it.
async fn pull_bent(bend: impl FnOnce(&Registry, &mut Image, &Layer)) -> std::sync::Arc<Error> {
    let node = Node::new();
    let layers = [Layer::of("a", "content"), Layer::of("b", "other")];
    let mut image = Image::put(&node.registry, &layers, "");
    bend(&node.registry, &mut image, &layers[0]);
    image.tag(&node.registry, "t");
    let error = node.failure(":t").await;
    assert_eq!(node.images.list().await.unwrap(), []);
    // Threads of a failed pull end on their own, soon.
    for _ in 0..100 {
        if node.entries("snapshots/ingest") + node.entries("content/ingest") == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    node.assert_settled();
    assert_eq!(node.entries("snapshots/l"), 0);
    // What is kept for the next try is counted, and gives way to who wants space.
    let kept = node.images.fs_info().await.unwrap();
    assert_eq!(usize::try_from(kept.used_inodes).unwrap(), node.blobs());
    node.remove("never/was", &[]).await;
    assert_eq!(node.images.fs_info().await.unwrap().used_bytes, 0);
    error
}

#[tokio::test]
async fn a_blob_with_another_digest_is_refused() {
    if !is_root() {
        return;
    }
    let lie = |registry: &Registry, _: &mut Image, layer: &Layer| {
        let mut blob = layer.blob.clone();
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
        registry.put_lie(Digest::of(&layer.blob), &blob);
    };
    let error = pull_bent(lie).await;
    let source = error.source().unwrap();
    let expected = matches!(
        source.downcast_ref::<berth_content::Error>(),
        Some(berth_content::Error::WrongDigest { .. })
    );
    assert!(expected, "{error}: {source}");
}

#[tokio::test]
async fn a_layer_with_another_diff_id_is_refused() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let mut layer = Layer::of("a", "x");
    let wanted = Digest::of(b"something else");
    layer.diff_id = wanted;
    Image::put(&node.registry, &[layer], "").tag(&node.registry, "t");
    let error = node.failure(":t").await;
    assert!(
        matches!(&*error, Error::Layer { source: LayerError::DiffId { wanted: said, .. }, .. }
            if said.0 == wanted),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    node.assert_settled();
}

#[tokio::test]
async fn a_compression_that_is_not_supported_is_named() {
    if !is_root() {
        return;
    }
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/octet-stream",
        "",
    ] {
        let error = pull_bent(|_, image, _| {
            image.manifest["layers"][0]["mediaType"] = media_type.into();
        })
        .await;
        assert!(
            matches!(&*error, Error::MediaType { media_type: named, .. } if named == media_type)
        );
        assert_eq!(error.kind(), ErrorKind::Unimplemented);
    }
}

#[tokio::test]
async fn a_stream_that_is_not_what_its_type_says_is_refused() {
    if !is_root() {
        return;
    }
    let tar = || Tar::new().file("a", b"x").finish();
    let packed = gzip(&tar());
    let cut = packed[..packed.len() - 9].to_vec();
    let trailing = [packed.as_slice(), b"garbage"].concat();
    for blob in [tar(), cut, trailing, Vec::new(), b"\x1f\x8b".to_vec()] {
        let node = Node::new();
        let layer = Layer { media_type: GZIP, blob, diff_id: Digest::of(&tar()) };
        Image::put(&node.registry, &[layer], "").tag(&node.registry, "t");
        let error = node.failure(":t").await;
        let stream = matches!(&*error, Error::Layer { source, .. }
            if matches!(source, LayerError::Stream(_) | LayerError::DiffId { .. }));
        assert!(stream, "{error:?}");
    }
}

#[tokio::test]
async fn several_gzip_members_are_one_stream() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let plain = Tar::new().file("a", &[b'x'; 5000]).finish();
    let (head, tail) = plain.split_at(700);
    let blob = [gzip(head), gzip(b""), gzip(tail)].concat();
    let layer = Layer { media_type: GZIP, blob, diff_id: Digest::of(&plain) };
    Image::put(&node.registry, &[layer], "").tag(&node.registry, "t");
    let image = node.pull(":t").await.unwrap();
    assert_eq!(node.read(&image, "a").unwrap().len(), 5000);
}

/// Two frames, as tools that compress in parallel make them; then what is none.
#[tokio::test]
async fn layers_of_zstd_are_unpacked_and_broken_ones_are_not() {
    if !is_root() {
        return;
    }
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    let plain = Tar::new().file("a", &[b'x'; 5000]).finish();
    let (head, tail) = plain.split_at(700);
    let packed = [head, tail].map(|part| zstd::encode_all(part, 3).unwrap()).concat();
    let node = Node::new();
    let layer = |blob| Layer { media_type: ZSTD, blob, diff_id: Digest::of(&plain) };
    Image::put(&node.registry, &[layer(packed.clone())], "").tag(&node.registry, "t");
    let image = node.pull(":t").await.unwrap();
    assert_eq!(node.read(&image, "a").unwrap().len(), 5000);

    let cut = packed[..packed.len() - 5].to_vec();
    let trailing = [packed.as_slice(), b"garbage"].concat();
    for blob in [cut, trailing, plain.clone(), gzip(&plain), Vec::new()] {
        let node = Node::new();
        Image::put(&node.registry, &[layer(blob)], "").tag(&node.registry, "t");
        let error = node.failure(":t").await;
        assert!(matches!(&*error, Error::Layer { .. }), "{error:?}");
        node.assert_settled();
    }
}

/// teeth: crates/image/src/pull/stream.rs: `self.seen > self.most` → `false`.
#[tokio::test]
async fn i3_a_bomb_is_stopped() {
    if !is_root() {
        return;
    }
    let bomb = Layer::gzip(Tar::new().file("zeros", &vec![0; 32 << 20]));
    for (limits, expansion) in [
        (Limits { expansion_ratio: 20, expansion_free_bytes: 1 << 20, ..Limits::default() }, true),
        (Limits { layer_bytes: 1 << 20, ..Limits::default() }, false),
    ] {
        let node = Node::with(Config { limits, ..config() });
        Image::put(&node.registry, std::slice::from_ref(&bomb), "").tag(&node.registry, "t");
        let error = node.failure(":t").await;
        let Error::Layer { source, .. } = &*error else { panic!("{error:?}") };
        assert_eq!(matches!(source, LayerError::Expansion(20)), expansion, "{source:?}");
        assert_eq!(matches!(source, LayerError::Size(1_048_576)), !expansion, "{source:?}");
        node.assert_settled();
    }
}

#[tokio::test]
async fn a_hostile_layer_names_its_entry_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let hostile = Layer::gzip(Tar::new().file("ok", b"").file("../escape", b""));
    Image::put(&node.registry, &[Layer::of("a", ""), hostile], "").tag(&node.registry, "t");
    let error = node.failure(":t").await;
    let Error::Layer { source: LayerError::Entry { path, source }, .. } = &*error else {
        panic!("{error:?}")
    };
    assert_eq!((path.as_str(), source), ("../escape", &BadEntry::ParentReference));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    node.assert_settled();
}

#[tokio::test]
async fn an_archive_that_is_none_is_refused() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let blob = gzip(&[b'x'; 2000]);
    let layer = Layer { media_type: GZIP, blob, diff_id: Digest::of(&[b'x'; 2000]) };
    Image::put(&node.registry, &[layer], "").tag(&node.registry, "t");
    let error = node.failure(":t").await;
    let checksum = LayerError::Archive(BadArchive::Checksum).to_string();
    assert_eq!(error.source().unwrap().to_string(), checksum);
}

#[tokio::test]
async fn a_missing_layer_or_image_is_not_found() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    assert_eq!(node.failure(":absent").await.kind(), ErrorKind::NotFound);
    let mut image = Image::put(&node.registry, &[Layer::of("a", "")], "");
    image.manifest["layers"][0]["digest"] = Digest::of(b"absent").to_string().into();
    image.tag(&node.registry, "t");
    assert_eq!(node.failure(":t").await.kind(), ErrorKind::NotFound);
    node.assert_settled();
}

#[tokio::test]
async fn an_image_for_other_platforms_says_which() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[], "");
    let list = index(&[
        for_platform(image.descriptor(), "arm64", "v8"),
        for_platform(image.descriptor(), "s390x", ""),
    ]);
    node.registry.put_manifest("t", "application/vnd.oci.image.index.v1+json", &list);
    let error = node.failure(":t").await;
    assert!(matches!(&*error, Error::NoPlatform { found, .. }
        if found == "linux/arm64/v8, linux/s390x"));
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_config_for_another_platform_is_refused_unless_an_index_chose_it() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let config = json!({
        "architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let id = node.registry.put_blob(&config);
    let mut image = Image::put(&node.registry, &[], "");
    image.manifest["config"]["digest"] = id.to_string().into();
    image.manifest["config"]["size"] = config.len().into();
    image.tag(&node.registry, "t");
    assert!(matches!(&*node.failure(":t").await, Error::NoPlatform { .. }));
    let list = index(&[for_platform(image.descriptor(), "amd64", "")]);
    node.registry.put_manifest("chosen", "application/vnd.oci.image.index.v1+json", &list);
    assert_eq!(node.pull(":chosen").await.unwrap().id, id);
}

#[tokio::test]
async fn what_a_failed_pull_unpacked_is_removed_beside_others_work() {
    if !is_root() {
        return;
    }
    let node = Node::with(Config { parallel_layers: 1, ..config() });
    let many = (0..5000).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), b""));
    let mut bad = Layer::of("b", "");
    bad.diff_id = Digest::of(b"something else");
    Image::put(&node.registry, &[Layer::gzip(many), bad], "").tag(&node.registry, "t");
    let mut seen = false;
    let watch = async {
        loop {
            // On one thread nothing of this is seen while that thread removes.
            seen |= node.entries("snapshots/trash") > 0;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        error = node.failure(":t") => assert!(matches!(&*error, Error::Layer { .. }), "{error}"),
        () = watch => {}
    }
    assert!(seen);
    node.assert_settled();
}
