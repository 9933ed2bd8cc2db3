//! Blobs and layers that went bad on disk: the next pull mends them, or says which.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use berth_model::image::ImageRecord;

use super::registry::{Image, Layer};
use super::{Node, is_root};
use crate::{Defect, Error};

/// Two images that share their lowest layer.
async fn node_with_two() -> (Node, [ImageRecord; 2]) {
    let node = Node::new();
    let base = Layer::of("base", "shared");
    for name in ["one", "two"] {
        let layers = [base.clone(), Layer::of("own", name)];
        Image::put(&node.registry, &layers, name).tag(&node.registry, name);
    }
    let images = [node.pull(":one").await.unwrap(), node.pull(":two").await.unwrap()];
    (node, images)
}

/// teeth: crates/image/src/collect.rs: `size != Some(row.size)` → `false`.
#[tokio::test]
async fn a_lost_blob_that_another_image_relies_on_is_fetched_with_the_next_pull() {
    if !is_root() {
        return;
    }
    let (node, [one, _]) = node_with_two().await;
    let third = Image::put(&node.registry, &[Layer::of("base", "shared")], "three");
    third.tag(&node.registry, "three");
    let shared = node.images.0.store.images().unwrap();
    let [first, second] = shared.as_slice() else { panic!("{shared:?}") };
    let shared = *first.blobs.iter().find(|blob| second.blobs.contains(blob)).unwrap();
    fs::remove_file(node.blob(&shared)).unwrap();
    node.registry.asked();
    node.pull(":three").await.unwrap();
    assert_eq!(node.registry.asked().0, 2, "its config, and the shared blob");
    node.images.0.content.verify(&shared).unwrap();
    assert_eq!(node.pull(":one").await.unwrap(), one);
}

#[tokio::test]
async fn an_image_that_is_not_whole_is_not_there_until_it_is_pulled_again() {
    if !is_root() {
        return;
    }
    let (node, [one, two]) = node_with_two().await;
    let layer = node.layer(&two.chain[1]);
    fs::remove_dir_all(layer).unwrap();
    match node.images.hold(&two.tags[0]).await {
        Err(Error::Broken { id, source: Defect::Layer(chain) }) => {
            assert_eq!((id, chain), (two.id, two.chain[1]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(node.images.status(&two.tags[0]).await.unwrap(), None);
    assert_eq!(node.images.status(&one.tags[0]).await.unwrap(), Some(one));
    let again = node.pull(":two").await.unwrap();
    assert_eq!(node.read(&again, "own").as_deref(), Some("two"));
    node.images.hold(&two.tags[0]).await.unwrap();

    fs::write(node.blob(&two.id), "{}").unwrap();
    assert_eq!(node.images.status(&two.tags[0]).await.unwrap(), None);
    node.pull(":two").await.unwrap();
    node.images.config(&again).await.unwrap();
}

/// teeth: crates/image/src/pull/layer.rs: `if damaged {` → `if false {`.
#[tokio::test]
async fn a_layer_is_never_made_of_a_damaged_blob() {
    if !is_root() {
        return;
    }
    let (node, [one, _]) = node_with_two().await;
    for blob in &one.blobs {
        let mut bytes = fs::read(node.blob(blob)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::write(node.blob(blob), bytes).unwrap();
    }
    node.images.snapshots().remove_committed(one.chain[0]).unwrap();
    node.images.snapshots().remove_committed(one.chain[1]).unwrap();
    let again = node.pull(":one").await.unwrap();
    for (path, content) in [("base", "shared"), ("own", "one")] {
        assert_eq!(node.read(&again, path).as_deref(), Some(content));
    }
    for blob in &again.blobs {
        node.images.0.content.verify(blob).unwrap();
    }
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// Breaks something of the image.
fn break_one(node: &Node, image: &ImageRecord, random: &mut Random) -> &'static str {
    let blob = node.blob(&random.of(&image.blobs));
    let chain = random.of(&image.chain);
    let link = node.directory.path().join("snapshots/committed").join(chain.0.hex());
    match random.below(6) {
        // What is gone already cannot be broken once more.
        0 => fs::remove_file(blob).map_or("nothing", |()| "blob removed"),
        1 => fs::metadata(&blob).map_or("nothing", |found| {
            fs::File::options().write(true).open(&blob).unwrap().set_len(found.size() / 2).unwrap();
            "blob cut"
        }),
        2 => fs::read(&blob).map_or("nothing", |mut bytes| {
            let place = random.below(bytes.len().max(1));
            bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= 0x40);
            fs::write(&blob, bytes).unwrap();
            "blob flipped"
        }),
        3 => fs::remove_file(link).map_or("nothing", |()| "layer unlinked"),
        4 => match fs::read_link(&link) {
            Ok(_) => fs::remove_dir_all(node.layer(&chain)).map_or("nothing", |()| "layer removed"),
            Err(_) => "nothing",
        },
        _ => match fs::remove_file(&link) {
            Ok(()) => {
                std::os::unix::fs::symlink("../l/none", link).map_or("nothing", |()| "layer misled")
            }
            Err(_) => "nothing",
        },
    }
}

/// Failures table: "missing/bad snapshot or blob: refetch or error naming it".
#[tokio::test]
async fn whatever_blob_or_layer_is_deleted_or_damaged_a_pull_mends() {
    if !is_root() {
        return;
    }
    let (mut node, images) = node_with_two().await;
    let mut random = Random(20_261_121);
    let mut broken = std::collections::BTreeMap::<_, u32>::new();
    for round in 0..300 {
        let image = random.of(&images);
        for _ in 0..=random.below(3) {
            *broken.entry(break_one(&node, &image, &mut random)).or_default() += 1;
        }
        if random.below(10) == 0 {
            node.restart();
            node.recover(&[]).await;
        }
        // Whole or not there; never an error, and never an image that cannot be mounted.
        if let Some(found) = node.images.status(&image.tags[0]).await.unwrap() {
            node.images.hold(&found.tags[0]).await.unwrap();
            assert!(node.read(&found, "own").is_some(), "round {round}");
        }
        for (number, image) in images.iter().enumerate() {
            let name = ["one", "two"][number];
            let again = node.pull(&format!(":{name}")).await.unwrap();
            assert_eq!((again.id, &again.chain), (image.id, &image.chain));
            assert_eq!(node.read(&again, "base").as_deref(), Some("shared"), "round {round}");
            assert_eq!(node.read(&again, "own").as_deref(), Some(name), "round {round}");
            node.images.hold(&again.tags[0]).await.unwrap();
            for blob in &again.blobs {
                let row = node.images.0.store.blob(blob).unwrap().unwrap();
                assert_eq!(node.images.0.content.size(blob).unwrap(), Some(row.size));
            }
        }
    }
    assert_eq!(broken.len(), 7, "everything was broken in every way: {broken:?}");
    node.restart();
    node.recover(&[]).await;
    node.assert_settled();
}
