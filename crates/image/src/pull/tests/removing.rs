//! Removal, what keeps things, and recovery.

use std::fs;

use super::registry::{Image, Layer};
use super::{Node, is_root};
use crate::{Error, InUse, Recovered};

/// Two images that share their lowest layer.
async fn node_with_two() -> (Node, [berth_model::image::ImageRecord; 2]) {
    let node = Node::new();
    let base = Layer::of("base", "shared");
    for name in ["one", "two"] {
        let layers = [base.clone(), Layer::of("own", name)];
        Image::put(&node.registry, &layers, name).tag(&node.registry, name);
    }
    let images = [node.pull(":one").await.unwrap(), node.pull(":two").await.unwrap()];
    (node, images)
}

/// teeth: crates/image/src/images.rs: `blobs.contains(&digest)` → `false`.
#[tokio::test]
async fn removal_leaves_what_another_image_needs() {
    if !is_root() {
        return;
    }
    let (node, [one, two]) = node_with_two().await;
    assert_eq!((node.blobs(), node.entries("snapshots/l")), (7, 3));
    let before = node.images.fs_info().await.unwrap().used_bytes;
    node.remove(&one.tags[0], &[]).await;
    assert_eq!((node.blobs(), node.entries("snapshots/l")), (4, 2));
    assert!(node.images.fs_info().await.unwrap().used_bytes < before);
    assert_eq!(node.read(&two, "base").as_deref(), Some("shared"));
    node.remove(&one.tags[0], &[]).await;
    node.remove("never/was", &[]).await;
    node.remove(&two.id.to_string(), &[]).await;
    assert_eq!((node.blobs(), node.entries("snapshots/l")), (0, 0));
    let used = node.images.fs_info().await.unwrap();
    assert_eq!((used.used_bytes, used.used_inodes), (0, 0));
    node.assert_settled();
}

#[tokio::test]
async fn removal_by_one_tag_takes_all_names() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[], "");
    for tag in ["one", "two"] {
        image.tag(&node.registry, tag);
        node.pull(&format!(":{tag}")).await.unwrap();
    }
    node.remove(&node.reference(":one").to_string(), &[]).await;
    assert_eq!(node.images.status(&node.reference(":two").to_string()).await.unwrap(), None);
    assert_eq!(node.images.list().await.unwrap(), []);
}

/// teeth: crates/image/src/images.rs: `Some(_) => Err(Error::Ambiguous(name.to_owned())),` → `Some(_) => Ok(None),`
#[tokio::test]
async fn the_start_of_several_ids_names_no_image_and_removes_none() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let mut ids: Vec<String> = Vec::new();
    // One more than there are digits.
    for number in 0..17 {
        let note = number.to_string();
        Image::put(&node.registry, &[], &note).tag(&node.registry, &note);
        ids.push(node.pull(&format!(":{note}")).await.unwrap().id.hex());
    }
    ids.sort();
    let pair = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]).unwrap();
    for name in [pair[0][..1].to_owned(), format!("sha256:{}", &pair[0][..1])] {
        let error = node.images.status(&name).await.unwrap_err();
        assert!(matches!(&error, Error::Ambiguous(given) if *given == name), "{error:?}");
        assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument);
        assert!(node.images.hold(&name).await.is_err());
        node.images.remove(&name).await.unwrap_err();
    }
    assert_eq!(node.images.list().await.unwrap().len(), 17);
    assert!(node.images.status(&pair[0][..20]).await.unwrap().is_some());
}

#[tokio::test]
async fn layers_of_containers_stay_until_they_are_gone() {
    if !is_root() {
        return;
    }
    let (node, [one, two]) = node_with_two().await;
    node.remove(&one.tags[0], &one.chain).await;
    assert_eq!(node.images.list().await.unwrap().len(), 1);
    assert_eq!(node.read(&one, "own").as_deref(), Some("one"));
    node.remove(&two.tags[0], &one.chain).await;
    assert_eq!(node.read(&one, "base").as_deref(), Some("shared"));
    assert_eq!(node.entries("snapshots/l"), 2);
    // The row of a layer in use stays, so that a restart keeps the layer.
    let recovered = node.recover(&one.chain).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(node.read(&one, "own").as_deref(), Some("one"));
    let recovered = node.recover(&[]).await;
    assert_eq!((recovered.layers, node.entries("snapshots/l")), (2, 0));
}

#[tokio::test]
async fn a_hold_keeps_an_image_that_is_removed_meanwhile() {
    if !is_root() {
        return;
    }
    let (node, [one, _]) = node_with_two().await;
    let held = node.images.hold(&one.tags[0]).await.unwrap();
    assert_eq!(held.image, one);
    node.remove(&one.tags[0], &[]).await;
    assert!(matches!(node.images.hold(&one.tags[0]).await, Err(Error::NotFound(_))));
    assert_eq!(node.read(&one, "own").as_deref(), Some("one"));
    node.images.config(&held.image).await.unwrap();
    drop(held);
    node.remove("two", &[]).await;
    node.remove(&node.reference(":two").to_string(), &[]).await;
    assert_eq!((node.blobs(), node.entries("snapshots/l")), (0, 0));
}

#[tokio::test]
async fn a_pull_keeps_what_it_needs_of_an_image_that_is_removed_meanwhile() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let base = Layer::of("base", "shared");
    Image::put(&node.registry, std::slice::from_ref(&base), "one").tag(&node.registry, "one");
    let two = Image::put(&node.registry, &[base, Layer::of("own", "two")], "two");
    two.tag(&node.registry, "two");
    let one = node.pull(":one").await.unwrap();
    node.registry.hold();
    let remove = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        node.remove(&one.tags[0], &[]).await;
        node.registry.release();
    };
    let (two, ()) = tokio::join!(node.pull(":two"), remove);
    let two = two.unwrap();
    for (path, content) in [("base", "shared"), ("own", "two")] {
        assert_eq!(node.read(&two, path).as_deref(), Some(content));
    }
    let recovered = node.recover(&[]).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(node.images.list().await.unwrap(), [two]);
}

#[tokio::test]
async fn removal_fails_rather_than_guess_what_is_in_use() {
    if !is_root() {
        return;
    }
    let (node, [one, _]) = node_with_two().await;
    *node.in_use.lock().unwrap() = Err("store is closed");
    let failed = node.images.remove(&one.tags[0]).await;
    assert!(matches!(failed, Err(Error::InUse { .. })));
    assert_eq!(node.images.status(&one.tags[0]).await.unwrap(), Some(one.clone()));
    assert_eq!(node.read(&one, "own").as_deref(), Some("one"));
    node.remove(&one.tags[0], &[]).await;
    assert_eq!((node.blobs(), node.entries("snapshots/l")), (4, 2));
}

#[tokio::test]
async fn a_restart_removes_what_no_record_names() {
    if !is_root() {
        return;
    }
    let (mut node, [one, two]) = node_with_two().await;
    let root = node.directory.path().to_owned();
    fs::create_dir_all(root.join("snapshots/ingest/77/half")).unwrap();
    fs::create_dir_all(root.join("snapshots/l/78")).unwrap();
    let stray = berth_model::Digest::of(b"stray");
    fs::write(root.join(format!("content/blobs/sha256/{}", stray.hex())), "stray").unwrap();
    fs::write(root.join("content/ingest/3"), "half").unwrap();
    node.restart();
    let recovered = node.recover(&[]).await;
    assert_eq!(recovered, Recovered { layers: 2, blobs: 1, images: Vec::new() });
    node.assert_settled();
    assert_eq!(node.blobs(), 7);
    for image in [one, two] {
        assert_eq!(node.read(&image, "base").as_deref(), Some("shared"));
    }
}

#[tokio::test]
async fn an_image_that_lost_a_layer_is_forgotten_and_pulled_again() {
    if !is_root() {
        return;
    }
    let (mut node, [one, two]) = node_with_two().await;
    node.images.snapshots().remove_committed(one.chain[1]).unwrap();
    node.restart();
    let recovered = node.recover(&[]).await;
    assert_eq!(recovered.images, [one.id]);
    assert_eq!(node.images.list().await.unwrap(), [two]);
    let again = node.pull(":one").await.unwrap();
    assert_eq!(node.read(&again, "own").as_deref(), Some("one"));
}

#[tokio::test]
async fn a_pull_of_an_image_that_lost_a_layer_mends_it() {
    if !is_root() {
        return;
    }
    let (node, [one, _]) = node_with_two().await;
    node.images.snapshots().remove_committed(one.chain[0]).unwrap();
    node.registry.asked();
    let again = node.pull(":one").await.unwrap();
    assert_eq!(node.registry.asked().0, 0, "its blob is still here");
    assert_eq!(node.read(&again, "base").as_deref(), Some("shared"));
}

/// teeth: crates/image/src/pull/mod.rs: `pin.chains(&found.chain);` → nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_gets_a_name_while_it_is_removed_is_pulled_again() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let image = Image::put(&node.registry, &[Layer::of("a", "1")], "");
    image.tag(&node.registry, "one");
    image.tag(&node.registry, "two");
    let one = node.pull(":one").await.unwrap();
    let gate = node.images.0.pins.close();
    let (images, reference) = (node.images.clone(), node.reference(":two"));
    let pull = tokio::spawn(async move { images.pull(&reference, None).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!pull.is_finished(), "it named what is being removed");
    node.images.0.store.remove_image(&one.id).unwrap();
    node.images.snapshots().remove_committed(one.chain[0]).unwrap();
    drop(gate);
    let two = pull.await.unwrap().unwrap();
    assert_eq!(two.tags, [node.reference(":two").to_string()]);
    assert_eq!(node.read(&two, "a").as_deref(), Some("1"));
    assert_eq!(node.images.list().await.unwrap(), [two]);
}

#[tokio::test]
async fn lost_records_are_made_anew_from_what_is_on_disk() {
    if !is_root() {
        return;
    }
    let (mut node, [one, two]) = node_with_two().await;
    let root = node.directory.path().to_owned();
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(root.join(format!("images.db{suffix}"))).ok();
    }
    node.restart();
    let name = one.digests[0].clone();
    let used = InUse { image: one.id, name: name.clone(), chain: one.chain.clone() };
    assert_eq!(node.images.rebuild(vec![used]).await.unwrap(), 2);
    let recovered = node.recover(&[]).await;
    assert_eq!(recovered, Recovered::default());
    node.assert_settled();
    let found = node.images.status(&name).await.unwrap().unwrap();
    assert_eq!((found.id, &found.chain, found.size), (one.id, &one.chain, one.size));
    assert!(found.tags.is_empty() && found.digests == [name]);
    let found = node.images.status(&two.id.to_string()).await.unwrap().unwrap();
    assert!(found.tags.is_empty() && found.digests.is_empty());

    // The next pull gives the names back, and fetches no blob.
    node.registry.asked();
    for (suffix, before) in [(":one", &one), (":two", &two)] {
        let again = node.pull(suffix).await.unwrap();
        assert_eq!(
            (again.id, &again.tags, &again.digests),
            (before.id, &before.tags, &before.digests)
        );
        assert_eq!(again.blobs.len(), before.blobs.len());
    }
    assert_eq!(node.registry.asked().0, 0, "a blob was fetched again");
}

#[tokio::test]
async fn a_layer_in_use_outlives_the_loss_of_its_row() {
    if !is_root() {
        return;
    }
    let (mut node, [one, two]) = node_with_two().await;
    let root = node.directory.path().to_owned();
    node.restart();
    let store = berth_metadata::ImageStore::open(&root.join("images.db")).unwrap();
    for image in [&one, &two] {
        store.forget(Some(&image.id), &image.chain, &[]).unwrap();
    }
    drop(store);
    let used = InUse { image: one.id, name: String::new(), chain: one.chain.clone() };
    assert_eq!(node.images.rebuild(vec![used]).await.unwrap(), 0, "records of blobs are left");
    node.recover(&one.chain).await;
    assert_eq!(node.read(&one, "own").as_deref(), Some("one"));
    assert_eq!(node.entries("snapshots/l"), one.chain.len());
}
