//! Images as volumes: seen whole or in part, kept while a container has them.

use std::fs;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::tar::Tar;
use berth_testkit::{Node, Pod, image, sandbox_security, script};
use tonic::Code;

/// An image of three layers, the topmost of which takes from the lower ones; the links
/// lead to the node for whoever follows them there.
async fn volume_image(node: &mut Node) -> Result<(String, String)> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let program = program.context("no busybox on this machine")?;
    let lowest = Tar::new()
        .directory("data/", 0o755)
        .file("data/old", 0o644, b"old\n")
        .file("data/kept", 0o644, b"kept\n")
        .file("data/echo", 0o755, &program);
    let links = Tar::new()
        .directory("links/", 0o755)
        .symlink("links/inside", "/data")
        .symlink("links/up", "../../../../data")
        .symlink("links/etc", "/etc");
    let top = Tar::new().file("data/.wh.old", 0o644, b"").file("data/new", 0o644, b"new\n");
    let built = image::ImageBuilder::new().layer(lowest)?.layer(links)?.layer(top)?.build()?;
    let name = node.push("volume", "1", &built)?;
    let id = node.cri.pull(&name).await?;
    Ok((name, id))
}

fn volume(image: &str, at: &str, sub_path: &str) -> v1::Mount {
    let image = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
    v1::Mount {
        container_path: at.to_owned(),
        image: Some(image),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

async fn refusal(
    node: &mut Node,
    pod: &Pod,
    config: &v1::ContainerConfig,
) -> Result<tonic::Status> {
    let refused = node.cri.create_container(&pod.id, &pod.config, config).await.err();
    refused.with_context(|| format!("{:?} was taken", config.mounts))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_seen_read_only_and_its_programs_run() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (volume_name, volume_id) = volume_image(&mut node).await?;
    let probe = "ls /v/data; cat /v/data/kept; touch /v/x 2>&1; /v/data/echo echo ran; \
                 grep ' /v ' /proc/self/mountinfo | cut -d ' ' -f 6; cat /w/new; cat /s/busybox | wc -c";
    let mut config = script(&image, probe);
    config.mounts = vec![
        volume(&volume_name, "/v", ""),
        volume(&volume_id, "/w", "data"),
        // Of a single layer.
        volume(&image, "/s", "bin"),
        v1::Mount { mount_options: vec!["noexec".into()], ..volume(&volume_id, "/n", "") },
    ];
    config.command[2] += "; /n/data/echo echo ran 2>/dev/null || echo not executable";
    let finished = node.finish(&pod, &config).await?;
    let size = fs::metadata("/bin/busybox")?.len();
    assert_eq!(
        finished.stdout,
        format!(
            "echo\nkept\nnew\nkept\ntouch: /v/x: Read-only file system\necho ran\n\
             ro,nosuid,nodev,relatime\nnew\n{size}\nnot executable\n"
        ),
        "{}",
        finished.stderr
    );
    let told = &finished.status.mounts;
    for (mount, sub_path) in told.iter().zip(["", "data", "bin"]) {
        assert!(mount.readonly && mount.host_path.is_empty(), "{mount:?}");
        assert_eq!(mount.image_sub_path, sub_path);
    }
    for mount in [&told[0], &told[1], &told[3]] {
        assert_eq!(mount.image.clone().context("no image")?.image_ref, volume_id);
    }
    assert_eq!(told[3].mount_options, ["noexec"]);
    node.assert_clean().await
}

/// teeth: crates/oci-runtime/src/image_volumes.rs: `Links::Inside` → `Links::Refused`
#[tokio::test(flavor = "multi_thread")]
async fn d10_links_of_an_image_lead_nowhere_but_into_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (name, _) = volume_image(&mut node).await?;
    let mut config = script(&image, "ls /a; ls /b");
    config.mounts = vec![volume(&name, "/a", "links/inside"), volume(&name, "/b", "links/up/")];
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, "echo\nkept\nnew\necho\nkept\nnew\n", "{}", finished.stderr);

    // The image has no such directory, and the node's is not meant.
    for bad in ["links/etc", "absent", "data/kept", "data/old"] {
        config.mounts = vec![volume(&name, "/a", bad)];
        let refused = refusal(&mut node, &pod, &config).await?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad}: {refused:?}");
        assert!(refused.message().starts_with("ImageVolumeMountFailed: "), "{refused:?}");
        assert!(refused.message().contains(bad), "{refused:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_a_volume_is_refused_by_name() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "true");
    config.mounts = vec![volume("registry.test/absent:1", "/v", "")];
    let refused = refusal(&mut node, &pod, &config).await?;
    assert!(refused.message().starts_with("ImageVolumeMountFailed: "), "{refused:?}");
    assert!(refused.message().contains("registry.test/absent:1"), "{refused:?}");
    assert_ne!(refused.code(), Code::Unknown, "{refused:?}");
    for bad in [
        v1::Mount { readonly: false, ..volume(&image, "/v", "") },
        v1::Mount { host_path: "/tmp".into(), ..volume(&image, "/v", "") },
        v1::Mount { propagation: 2, ..volume(&image, "/v", "") },
        volume(&image, "/v", "../etc"),
    ] {
        config.mounts = vec![bad];
        let refused = refusal(&mut node, &pod, &config).await?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().starts_with("config.mounts[0]."), "{refused:?}");
    }
    node.assert_clean().await
}

/// What runs keeps what it sees; what is made or started later finds it as well.
///
/// teeth: crates/engine/src/engine.rs: `container.layers().collect` → `container.chain.into_iter().collect`
#[tokio::test(flavor = "multi_thread")]
async fn an_image_stays_while_a_container_has_it_as_a_volume() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (name, id) = volume_image(&mut node).await?;
    let mut config = script(&image, "sleep 1000");
    config.mounts = vec![volume(&name, "/v", "data")];
    let running = node.run(&pod, &config).await?;
    let metadata = config.metadata.as_mut().context("no metadata")?;
    metadata.name = "later".into();
    config.log_path = "later.log".into();
    let created = node.cri.create_container(&pod.id, &pod.config, &config).await?;

    node.cri.remove_image(&name).await?;
    assert!(!node.cri.has_image(&id).await?);
    // Each removal and each start collects what nobody needs.
    node.kill_and_restart().await?;
    node.cri.remove_image(&name).await?;
    node.cri.start_container(&created).await?;
    for container in [&running, &created] {
        let answer = node.cri.exec(container, &["cat", "/v/kept", "/v/new"], 10).await?;
        assert_eq!(String::from_utf8(answer.stdout)?, "kept\nnew\n", "{:?}", answer.stderr);
        let status = node.cri.container_status(container).await?;
        assert_eq!(status.mounts[0].image.clone().context("no image")?.image_ref, id);
        node.cri.remove_container(container).await?;
    }
    let refused = refusal(&mut node, &pod, &config).await?;
    assert!(refused.message().starts_with("ImageVolumeMountFailed: "), "{refused:?}");
    node.assert_clean().await
}

/// teeth: crates/spec/src/mounts.rs: `let ids = asked.ids.as_ref().or(wanted.ids);` → `let ids = asked.ids.as_ref();`
#[tokio::test(flavor = "multi_thread")]
async fn an_image_belongs_to_a_pods_own_users() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (name, _) = volume_image(&mut node).await?;
    let ids = vec![v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
    let own = v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: ids.clone(),
        gids: ids.clone(),
    };
    let mut config = node.sandbox_config("pod");
    let options = sandbox_security(&mut config).namespace_options.get_or_insert_default();
    options.userns_options = Some(own);
    options.pid = v1::NamespaceMode::Container.into();
    let pod = node.pod_with(config).await?;
    let probe = "stat -c %u:%g /v /v/data/kept /w/new /m/kept; /v/data/echo echo ran; \
                 touch /v/x 2>&1; mount -o remount,bind,rw /v 2>/dev/null && echo writable; true";
    let mut config = script(&image, probe);
    let mapped = v1::Mount {
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..volume(&name, "/m", "data")
    };
    config.mounts = vec![volume(&name, "/v", ""), volume(&name, "/w", "data"), mapped.clone()];
    let finished = node.finish(&pod, &config).await?;
    let expected = "0:0\n0:0\n0:0\n0:0\necho ran\ntouch: /v/x: Read-only file system\n".to_owned();
    assert_eq!(finished.stdout, expected, "{}", finished.stderr);

    let other = vec![v1::IdMapping { host_id: 200_000, ..ids[0] }];
    config.mounts = vec![v1::Mount { uid_mappings: other, ..mapped }];
    let refused = refusal(&mut node, &pod, &config).await?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("/m"), "{refused:?}");
    node.assert_clean().await
}
