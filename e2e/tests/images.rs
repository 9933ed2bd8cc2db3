//! Images: pulled once, verified, listed, removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::tar::{Entry, Tar};
use berth_testkit::{Node, container_config, image};
use serde_json::json;
use tonic::Code;

/// How long what goes on in the background may take.
const DEADLINE: Duration = Duration::from_secs(20);

async fn images(node: &mut Node) -> Result<Vec<v1::Image>> {
    Ok(node.cri.image.list_images(v1::ListImagesRequest::default()).await?.into_inner().images)
}

async fn image_status(node: &mut Node, image: &str) -> Result<Option<v1::Image>> {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    let request = v1::ImageStatusRequest { image, verbose: false };
    Ok(node.cri.image.image_status(request).await?.into_inner().image)
}

async fn remove_image(node: &mut Node, image: &str) -> Result<()> {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    node.cri.image.remove_image(v1::RemoveImageRequest { image }).await?;
    Ok(())
}

async fn refused(node: &mut Node, image: &str) -> Result<tonic::Status> {
    node.cri.pull(image).await.err().with_context(|| format!("{image} was pulled"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_by_tag_and_by_digest_and_known_by_its_id() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox()?;
    let reference = node.push("busybox", "1.35", &made)?;

    let id = node.cri.pull(&reference).await?;
    assert_eq!(id, made.id.to_string());
    let repository = reference.rsplit_once(':').context("no tag")?.0.to_owned();
    let by_digest = format!("{repository}@{}", made.index.digest());
    assert_eq!(node.cri.pull(&by_digest).await?, id);

    let listed = images(&mut node).await?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].id, id);
    assert_eq!(listed[0].repo_tags, std::slice::from_ref(&reference));
    assert!(listed[0].repo_digests.contains(&by_digest), "{listed:?}");
    assert!(listed[0].size > 0);
    let short = &id["sha256:".len()..][..13];
    for name in [reference.as_str(), by_digest.as_str(), id.as_str(), short] {
        let found = image_status(&mut node, name).await?;
        assert_eq!(found.with_context(|| format!("{name} is unknown"))?.id, id);
    }
    let other = node.push("other", "latest", &image::ImageBuilder::new().build()?)?;
    let other = node.cri.pull(&other).await?;
    for (wanted, expected) in [(&reference, &id), (&id, &id), (&other, &other)] {
        let image = Some(v1::ImageSpec { image: wanted.clone(), ..Default::default() });
        let request = v1::ListImagesRequest { filter: Some(v1::ImageFilter { image }) };
        let listed = node.cri.image.list_images(request).await?.into_inner().images;
        let ids: Vec<_> = listed.iter().map(|image| &image.id).collect();
        assert_eq!(ids, [expected], "{wanted}");
    }
    for verbose in [false, true] {
        let image = Some(v1::ImageSpec { image: id.clone(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose };
        let info = node.cri.image.image_status(request).await?.into_inner().info;
        let told = info.values().any(|info| info.contains("\"chain\":[\"sha256:"));
        assert_eq!((told, info.is_empty()), (verbose, !verbose), "{info:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_downloads_nothing() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox()?;
    let reference = node.push("busybox", "latest", &made)?;
    node.cri.pull(&reference).await?;
    let layer = blob_file(node.registry.storage(), &made.blobs[1].digest().hex());
    fs::remove_file(&layer).with_context(|| format!("remove {}", layer.display()))?;
    node.cri.pull(&reference).await.context("the layer was asked for again")?;
    node.assert_clean().await
}

/// Where the registry keeps a blob.
fn blob_file(storage: &Path, hex: &str) -> PathBuf {
    storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_image_removes_all_its_names_and_gives_space_back() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox()?;
    let one = node.push("busybox", "one", &made)?;
    let two = node.push("busybox", "two", &made)?;
    node.cri.pull(&one).await?;
    node.cri.pull(&two).await?;
    let used = used_bytes(&mut node).await?;
    assert!(used > 0);

    remove_image(&mut node, &one).await?;
    assert!(image_status(&mut node, &two).await?.is_none());
    assert!(images(&mut node).await?.is_empty());
    remove_image(&mut node, &one).await.context("removing twice is success")?;
    // Its files go in the background.
    let deadline = Instant::now() + DEADLINE;
    while used_bytes(&mut node).await? >= used / 2 {
        ensure!(Instant::now() < deadline, "it takes {used} bytes still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.cri.pull(&two).await?;
    node.assert_clean().await
}

async fn used_bytes(node: &mut Node) -> Result<u64> {
    let request = v1::ImageFsInfoRequest::default();
    let info = node.cri.image.image_fs_info(request).await?.into_inner();
    let first = info.image_filesystems.first().context("no image file system")?;
    let mountpoint = &first.fs_id.as_ref().context("no file system id")?.mountpoint;
    assert!(Path::new(mountpoint).exists(), "{mountpoint}");
    Ok(first.used_bytes.context("no used bytes")?.value)
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_applied_in_order_with_whiteouts_and_implied_parents() -> Result<()> {
    let mut node = Node::start().await?;
    let lower = Tar::new()
        .entry(&Entry {
            name: "data/",
            mode: 0o1770,
            uid: 7,
            gid: 8,
            kind: b'5',
            ..Entry::default()
        })
        .file("data/gone", 0o644, b"x")
        .file("data/kept", 0o640, b"kept")
        .directory("opaque/", 0o755)
        .file("opaque/hidden", 0o644, b"x")
        .hard_link("data/twin", "data/kept");
    // The upper layer names files in `data` but not the directory itself.
    let upper = Tar::new()
        .file("data/.wh.gone", 0o644, b"")
        .file("data/new", 0o644, b"new")
        .directory("opaque/", 0o755)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/shown", 0o644, b"y");
    let made = image::busybox_builder()?.layer(lower)?.plain_layer(upper).build()?;
    let reference = node.push("layers", "latest", &made)?;
    node.cri.pull(&reference).await?;
    let pod = node.pod("layers").await?;
    let script =
        "cd /data; ls; cat kept new; stat -c '%a %u %g' . kept; stat -c %h twin; ls /opaque";
    let seen = node.shell(&pod, &reference, script).await?;
    assert_eq!(seen, "kept\nnew\ntwin\nkeptnew1770 7 8\n640 0 0\n2\nshown\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_says_of_its_user_is_reported() -> Result<()> {
    let mut node = Node::start().await?;
    for (tag, user, uid, name) in [
        ("id", "1002", Some(1002), ""),
        ("group", "1003:1004", Some(1003), ""),
        ("name", "user", None, "user"),
    ] {
        let made = image::busybox_builder()?.config("User", json!(user)).build()?;
        let reference = node.push("user", tag, &made)?;
        node.cri.pull(&reference).await?;
        let status = image_status(&mut node, &reference).await?.context("unknown")?;
        assert_eq!(status.uid.map(|uid| uid.value), uid, "{user}");
        assert_eq!(status.username, name, "{user}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_pulls_are_refused_with_the_name_and_leave_nothing() -> Result<()> {
    let mut node = Node::start().await?;
    let unknown = node.registry.reference("nothing", "here");
    let status = refused(&mut node, &unknown).await?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("nothing:here"), "{status:?}");

    for bad in ["", "Upper", "a b", "x@sha256:12", "../../etc/passwd"] {
        let status = refused(&mut node, bad).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}: {status:?}");
    }

    // One byte of a layer differs from what the manifest says.
    let made = image::busybox()?;
    let reference = node.push("damaged", "latest", &made)?;
    let layer = blob_file(node.registry.storage(), &made.blobs[1].digest().hex());
    let mut bytes = fs::read(&layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&layer, bytes)?;
    let status = refused(&mut node, &reference).await?;
    assert!(status.message().contains(&made.blobs[1].digest().to_string()), "{status:?}");
    assert!(images(&mut node).await?.is_empty());

    node.registry.stop()?;
    let status = refused(&mut node, &reference).await?;
    // kubelet looks for this prefix, and only in errors whose code is Unknown.
    assert!(status.message().starts_with("RegistryUnavailable"), "{status:?}");
    assert!(status.message().contains("damaged"), "{status:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_at_once_are_one() -> Result<()> {
    let mut node = Node::start().await?;
    let reference = node.push("busybox", "latest", &image::busybox()?)?;
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (mut cri, reference) = (node.cri.clone(), reference.clone());
            tokio::spawn(async move { cri.pull(&reference).await })
        })
        .collect();
    let mut ids = Vec::new();
    for pull in pulls {
        ids.push(pull.await??);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(images(&mut node).await?.len(), 1);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_on_when_its_image_is_removed() -> Result<()> {
    let mut node = Node::start().await?;
    let reference = node.busybox().await?;
    let pod = node.pod("orphan").await?;
    let config = container_config("main", &reference, &["sleep", "1000"]);
    let container = node.run(&pod, &config).await?;
    remove_image(&mut node, &reference).await?;
    let answer = node.cri.exec(&container, &["cat", "/etc/group"], 10).await?;
    assert_eq!(answer.exit_code, 0, "{answer:?}");
    node.assert_clean().await
}
