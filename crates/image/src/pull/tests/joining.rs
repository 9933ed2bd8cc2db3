//! Several clients, clients that leave, and shutdown.

use std::time::Duration;

use berth_model::ErrorKind;
use berth_registry::Auth;
use tokio::time::{sleep, timeout};

use super::registry::{Image, Layer};
use super::{Node, is_root};
use crate::Error;
use crate::tar::build::Tar;

fn node_with_image() -> Node {
    let node = Node::new();
    let image = Image::put(&node.registry, &[Layer::of("a", "1"), Layer::of("b", "2")], "");
    image.tag(&node.registry, "t");
    node
}

/// Waits until `done`, two seconds at most.
async fn until(done: impl Fn() -> bool) {
    for _ in 0..100 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not happen");
}

/// teeth: crates/image/src/pull/flight.rs: `if let Some(flight) = flights.get(&key)` → never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_one_image_are_one_pull() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    let reference = node.reference(":t");
    let pulls: Vec<_> = (0..20)
        .map(|_| {
            let (images, reference) = (node.images.clone(), reference.clone());
            tokio::spawn(async move { images.pull(&reference, None).await })
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    node.registry.release();
    let mut ids = std::collections::HashSet::new();
    for pull in pulls {
        ids.insert(pull.await.unwrap().unwrap().id);
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(node.registry.asked(), (3, 1));
}

#[tokio::test]
async fn other_credentials_are_another_pull() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    let reference = node.reference(":t");
    let token = Some(Auth::RegistryToken("secret".to_owned()));
    let both = async {
        tokio::join!(node.images.pull(&reference, None), node.images.pull(&reference, token))
    };
    let release = async {
        sleep(Duration::from_millis(100)).await;
        node.registry.release();
    };
    let ((one, two), ()) = tokio::join!(both, release);
    assert_eq!(one.unwrap().id, two.unwrap().id);
    assert_eq!(node.registry.asked().1, 2);
    node.assert_settled();
    assert_eq!(node.entries("snapshots/l"), 2);
}

#[tokio::test]
async fn a_pull_outlives_its_client() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    timeout(Duration::from_millis(30), node.pull(":t")).await.unwrap_err();
    node.registry.release();
    let listed = || async { node.images.list().await.unwrap().len() };
    for _ in 0..100 {
        if listed().await == 1 {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(listed().await, 1);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    timeout(Duration::from_millis(30), node.pull(":t")).await.unwrap_err();
    sleep(Duration::from_millis(300)).await;
    node.registry.release();
    until(|| node.entries("snapshots/ingest") + node.entries("content/ingest") == 0).await;
    assert_eq!(node.images.list().await.unwrap(), []);
    node.assert_settled();
    node.pull(":t").await.unwrap();
}

#[tokio::test]
async fn a_client_that_comes_back_in_time_keeps_the_pull() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    timeout(Duration::from_millis(30), node.pull(":t")).await.unwrap_err();
    let release = async {
        sleep(Duration::from_millis(300)).await;
        node.registry.release();
    };
    let (pulled, ()) = tokio::join!(node.pull(":t"), release);
    pulled.unwrap();
    assert_eq!(node.registry.asked(), (3, 1));
}

#[tokio::test]
async fn a_failure_reaches_all_and_stays_with_no_one() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let (one, two) = tokio::join!(node.pull(":t"), node.pull(":t"));
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    Image::put(&node.registry, &[], "").tag(&node.registry, "t");
    node.pull(":t").await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_pulls_and_refuses_new_ones() {
    if !is_root() {
        return;
    }
    let node = node_with_image();
    node.registry.hold();
    let stop = async {
        sleep(Duration::from_millis(50)).await;
        node.images.shutdown().await;
    };
    let (pulled, ()) = tokio::join!(node.pull(":t"), stop);
    assert_eq!(pulled.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(matches!(node.pull(":t").await, Err(Error::Stopped(_))));
    node.registry.release();
    until(|| node.entries("snapshots/ingest") + node.entries("content/ingest") == 0).await;
}

/// Its two threads wait for each other, and for the network.
#[test]
fn a_pull_takes_no_blocking_thread_while_it_waits() {
    if !is_root() {
        return;
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
    let pulled = runtime.block_on(async {
        let node = Node::new();
        let content = "x".repeat(16 << 20); // more than the queues hold
        let layer = Layer::plain(Tar::new().file("a", content.as_bytes()));
        Image::put(&node.registry, &[layer], "").tag(&node.registry, "t");
        timeout(Duration::from_secs(20), node.pull(":t")).await
    });
    runtime.shutdown_background();
    pulled.unwrap().unwrap();
}
