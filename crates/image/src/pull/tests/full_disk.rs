//! A disk that is full, at every place where it can be.

use std::fs;
use std::path::Path;
use std::time::Duration;

use berth_model::ErrorKind;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use super::registry::{Image, Layer};
use super::{Config, Node, config, is_root};
use crate::tar::build::Tar;

/// What the disk holds, bytes.
const DISK: usize = 24 << 20;
/// What the image takes at most: blobs, layers, documents, records.
const NEED: usize = 5 << 20;
const LAYERS: u8 = 3;
const FILES: u8 = 8;

/// Runs `test` with a mount namespace of its own, on a node whose whole directory is a
/// file system mounted with `options`.
fn on_small_disk(options: &str, config: Config, test: impl AsyncFnOnce(&Node) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let mount_disk = |at: &Path| {
                mount(Some("test"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
            };
            // Threads of the runtime are made by this one, and see what it sees.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let node = Node::at(config, mount_disk);
                test(&node).await;
            });
        });
        thread.join().unwrap();
    });
}

/// Bytes that no compression makes smaller.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let bytes = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.flatten().take(length).collect()
}

/// Pushes an image of several layers of several files.
fn push(node: &Node, tag: &str) {
    let layers: Vec<_> = (0..LAYERS)
        .map(|layer| {
            let files = (0..FILES).fold(Tar::new(), |tar, file| {
                let bytes = noise(layer * FILES + file, 64 << 10);
                tar.file(&format!("l{layer}/f{file}"), &bytes)
            });
            Layer::gzip(files)
        })
        .collect();
    Image::put(&node.registry, &layers, tag).tag(&node.registry, tag);
}

/// Takes all of the node's disk but `leave` bytes.
fn fill(node: &Node, leave: usize) {
    let path = node.directory.path().join("filler");
    fs::remove_file(&path).ok();
    let stat = statvfs(node.directory.path()).unwrap();
    let available = usize::try_from(stat.blocks_available() * stat.fragment_size()).unwrap();
    fs::write(path, vec![1; available.saturating_sub(leave)]).unwrap();
}

/// Failures table: "disk full in pull/unpack/DB".
#[test]
fn a_disk_that_is_full_at_any_point_of_a_pull_is_named_and_gets_its_space_back() {
    if !is_root() {
        return;
    }
    on_small_disk(&format!("size={DISK}"), config(), async |node| {
        push(node, "t");
        let root = node.directory.path().to_string_lossy().into_owned();
        let (mut failed, mut done) = (0, 0);
        for percent in (0..=100).step_by(3) {
            fill(node, NEED / 100 * percent);
            match node.images.pull(&node.reference(":t"), None).await {
                Err(error) => {
                    failed += 1;
                    let told = chain(&error);
                    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{percent}: {told}");
                    assert!(told.contains(&root), "{percent}: no path in {told}");
                    assert_eq!(node.images.list().await.unwrap(), [], "{percent}");
                }
                Ok(image) => {
                    done += 1;
                    assert_eq!(node.images.list().await.unwrap(), [image], "{percent}");
                    node.remove(&node.reference(":t").to_string(), &[]).await;
                }
            }
            // Threads of a failed pull end on their own, soon.
            for _ in 0..250 {
                node.images.cleaned().await;
                if node.images.fs_info().await.unwrap().used_bytes == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let left = node.images.fs_info().await.unwrap();
            assert_eq!((left.used_bytes, left.used_inodes), (0, 0), "{percent}");
            assert_eq!((node.blobs(), node.entries("snapshots/l")), (0, 0), "{percent}");
            node.assert_settled();
        }
        assert!(failed >= 12 && done >= 2, "{failed} failed, {done} did not: nothing was walked");
        fs::remove_file(node.directory.path().join("filler")).unwrap();
        let image = node.pull(":t").await.unwrap();
        assert_eq!(node.images.hold(&image.tags[0]).await.unwrap().image, image);
    });
}

#[test]
fn inodes_that_run_out_in_a_pull_are_a_full_disk_too() {
    if !is_root() {
        return;
    }
    on_small_disk("size=64m,nr_inodes=120", config(), async |node| {
        push(node, "t");
        let spent = node.directory.path().join("spent");
        fs::create_dir(&spent).unwrap();
        let (mut failed, mut number) = (0, 0);
        loop {
            match node.images.pull(&node.reference(":t"), None).await {
                Ok(_) => node.remove(&node.reference(":t").to_string(), &[]).await,
                Err(error) => {
                    failed += 1;
                    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", chain(&error));
                }
            }
            let made = (0..4).all(|_| {
                number += 1;
                fs::File::create(spent.join(number.to_string())).is_ok()
            });
            if !made {
                break;
            }
        }
        assert!(failed >= 5, "{failed}");
        fs::remove_dir_all(spent).unwrap();
        node.pull(":t").await.unwrap();
    });
}

/// A pull that fails after it has fetched everything; `leftover_grace` applies to that.
async fn failed_with(leftover_grace: Duration) -> Node {
    let node = Node::with(Config { leftover_grace, parallel_layers: 1, ..config() });
    let nothing = node.registry.put_blob(b"");
    let mut image = Image::put(&node.registry, &[Layer::of("a", "1"), Layer::of("b", "2")], "");
    image.manifest["layers"][1]["digest"] = nothing.to_string().into();
    image.manifest["layers"][1]["size"] = 0.into();
    image.tag(&node.registry, "t");
    let failure = node.failure(":t").await;
    assert!(matches!(&*failure, crate::Error::Layer { .. }), "{failure:?}");
    node
}

#[tokio::test]
async fn what_a_failed_pull_fetched_is_used_by_the_next() {
    if !is_root() {
        return;
    }
    let node = failed_with(Duration::from_secs(3600)).await;
    assert_eq!(node.blobs(), 4, "manifest, config and layers are kept");
    node.registry.asked();
    node.failure(":t").await;
    assert_eq!(node.registry.asked(), (0, 1), "everything is here");
}

#[tokio::test]
async fn what_a_failed_pull_fetched_goes_after_the_grace_time() {
    if !is_root() {
        return;
    }
    let node = failed_with(Duration::from_millis(10)).await;
    let gone = async {
        while node.blobs() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it stays for ever");
    node.images.cleaned().await;
    node.assert_settled();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
