//! Mounts of a container: bound, read-only, propagated.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, Pod, bind, container_config, script, security};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

/// Mounts a tmpfs on the node.
fn mount_tmpfs(node: &Node, at: &Path) -> Result<()> {
    let at = at.to_owned();
    node.machine.run(move || {
        fs::create_dir_all(&at)?;
        let none: Option<&str> = None;
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mount {}", at.display()))
    })
}

/// Takes a mount of the node's away, with everything on it.
fn unmount(node: &Node, at: &Path) -> Result<()> {
    let at = at.to_owned();
    node.machine.run(move || {
        umount2(&at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", at.display()))
    })
}

/// Where the node has mounts at or below `dir`.
fn mounted(node: &Node, dir: &Path) -> Result<Vec<String>> {
    let dir = dir.display().to_string();
    node.machine.run(move || {
        let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(places.filter(|place| place.starts_with(&dir)).map(str::to_owned).collect())
    })
}

/// Runs what waits for a mount in `/data/later`, and mounts one there meanwhile.
async fn mount_later(node: &mut Node, pod: &Pod, image: &str, mount: v1::Mount) -> Result<String> {
    let later = PathBuf::from(&mount.host_path).join("later");
    let probe = "echo ready; for i in $(seq 100); do [ -e /tmp/look ] && break; sleep 0.05; done; \
                 ls /data/later";
    let mut config = script(image, probe);
    config.mounts = vec![mount];
    let id = node.run(pod, &config).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    mount_tmpfs(node, &later)?;
    let place = later.join("seen");
    node.machine.run(move || Ok(fs::write(place, "")?))?;
    let answer = node.cri.exec(&id, &["touch", "/tmp/look"], 10).await?;
    assert_eq!(answer.exit_code, 0, "{answer:?}");
    node.wait_exit(&id).await?;
    let lines = node.read_log("pod", "main")?;
    node.cri.remove_container(&id).await?;
    fs::remove_file(node.log_directory("pod").join("main.log"))?;
    unmount(node, &later)?;
    Ok(berth_testkit::log::text(&lines, "stdout"))
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_bound_writable_or_read_only() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    fs::write(dir.join("file"), "from the host\n")?;
    let mut config = script(&image, "cat /data/file; echo x > /data/new && cat /data/new");
    config.mounts = vec![bind("/data", &dir)];
    assert_eq!(node.finish(&pod, &config).await?.stdout, "from the host\nx\n");
    assert_eq!(fs::read_to_string(dir.join("new"))?, "x\n");

    let mut config = script(&image, "echo y > /data/new; cat /data/new");
    config.mounts = vec![v1::Mount { readonly: true, ..bind("/data", &dir) }];
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, "x\n");
    assert!(finished.stderr.contains("Read-only file system"), "{}", finished.stderr);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_is_read_only() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(
        &image,
        "touch /x 2>/dev/null && echo rw || echo ro; echo x > /dev/shm/x && echo shm",
    );
    security(&mut config).readonly_rootfs = true;
    assert_eq!(node.finish(&pod, &config).await?.stdout, "ro\nshm\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_the_node_makes_later_is_seen_only_when_propagated() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    mount_tmpfs(&node, &dir)?;
    for (propagation, seen) in [
        (v1::MountPropagation::PropagationPrivate, "ready\n"),
        (v1::MountPropagation::PropagationHostToContainer, "ready\nseen\n"),
        (v1::MountPropagation::PropagationBidirectional, "ready\nseen\n"),
    ] {
        let mount = v1::Mount { propagation: propagation.into(), ..bind("/data", &dir) };
        assert_eq!(mount_later(&mut node, &pod, &image, mount).await?, seen, "{propagation:?}");
    }
    unmount(&node, &dir)?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_a_container_makes_reaches_the_node_only_when_bidirectional() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut pod_config = node.sandbox_config("pod");
    berth_testkit::sandbox_security(&mut pod_config).privileged = true;
    let pod = node.pod_with(pod_config).await?;
    let dir = node.dir().join("volume");
    mount_tmpfs(&node, &dir)?;
    let inner = dir.join("inner").display().to_string();
    let make =
        "mkdir -p /data/inner && mount -t tmpfs none /data/inner && echo mounted; sleep 1000";
    for (propagation, reaches) in [
        (v1::MountPropagation::PropagationPrivate, false),
        (v1::MountPropagation::PropagationHostToContainer, false),
        (v1::MountPropagation::PropagationBidirectional, true),
    ] {
        let mut config = script(&image, make);
        security(&mut config).privileged = true;
        config.mounts = vec![v1::Mount { propagation: propagation.into(), ..bind("/data", &dir) }];
        let id = node.run(&pod, &config).await?;
        node.wait_for_line("pod", "main", "mounted").await?;
        let there = mounted(&node, &dir)?;
        assert_eq!(there.contains(&inner), reaches, "{propagation:?}: {there:?}");
        node.cri.remove_container(&id).await?;
        fs::remove_file(node.log_directory("pod").join("main.log"))?;
        if reaches {
            unmount(&node, Path::new(&inner))?;
        }
    }
    unmount(&node, &dir)?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_from_what_is_not_shared_is_refused_by_name() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    mount_tmpfs(&node, &dir)?;
    let place = dir.clone();
    node.machine.run(move || {
        let none: Option<&str> = None;
        Ok(mount(none, &place, none, MsFlags::MS_PRIVATE, none)?)
    })?;
    let mut config = script(&image, "true");
    for propagation in [
        v1::MountPropagation::PropagationBidirectional,
        v1::MountPropagation::PropagationHostToContainer,
    ] {
        config.mounts = vec![v1::Mount { propagation: propagation.into(), ..bind("/data", &dir) }];
        let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
        let refused = refused.with_context(|| format!("{propagation:?} was taken"))?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(&dir.display().to_string()), "{refused:?}");
    }
    unmount(&node, &dir)?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_recursive_read_only_mount_covers_the_mounts_below() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    mount_tmpfs(&node, &dir)?;
    mount_tmpfs(&node, &dir.join("below"))?;
    let probe = "for d in /data /data/below; do touch $d/x 2>/dev/null && echo rw || echo ro; done";
    let mut config = script(&image, probe);
    for (recursive, seen) in [(false, "ro\nrw\n"), (true, "ro\nro\n")] {
        config.mounts = vec![v1::Mount {
            readonly: true,
            recursive_read_only: recursive,
            ..bind("/data", &dir)
        }];
        assert_eq!(node.finish(&pod, &config).await?.stdout, seen);
    }
    config.mounts = vec![v1::Mount { recursive_read_only: true, ..bind("/data", &dir) }];
    let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
    let refused = refused.context("recursive, but not read-only: taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    unmount(&node, &dir)?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_directories_and_places_that_are_missing_are_mounted() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let file = node.dir().join("one-file");
    fs::write(&file, "one file\n")?;
    let dir = node.dir().join("folder");
    fs::create_dir(&dir)?;
    fs::write(dir.join("inside"), "")?;
    let mut config = script(&image, "cat /a/b/c /etc/group; ls /d/e");
    config.mounts = vec![bind("/a/b/c", &file), bind("/etc/group", &file), bind("/d/e", &dir)];
    assert_eq!(node.finish(&pod, &config).await?.stdout, "one file\none file\ninside\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_mounted_as_what_it_leads_to_and_what_is_missing_is_made() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (dir, link) = (node.dir().join("folder"), node.dir().join("link"));
    fs::create_dir(&dir)?;
    fs::write(dir.join("inside"), "")?;
    std::os::unix::fs::symlink(&dir, &link)?;
    let missing = node.dir().join("not/there");
    let mut config = script(&image, "ls /link; touch /made/by-the-container");
    config.mounts = vec![bind("/link", &link), bind("/made", &missing)];
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, "inside\n", "{}", finished.stderr);
    assert!(missing.join("by-the-container").exists());
    // What was asked for is told, not what it led to.
    assert_eq!(finished.status.mounts[0].host_path, link.display().to_string());
    node.assert_clean().await
}

/// teeth: crates/oci-runtime/src/worker.rs: `if !exact {` → `if true {`
#[tokio::test(flavor = "multi_thread")]
async fn d10_a_source_that_became_a_link_is_not_followed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (volume, secret) = (node.dir().join("volume"), node.dir().join("secret"));
    fs::create_dir_all(volume.join("a/b"))?;
    fs::create_dir_all(secret.join("b"))?;
    fs::write(secret.join("b/key"), "secret\n")?;
    fs::write(secret.join("key"), "secret\n")?;
    for (swapped, target) in [("a/b", secret.clone()), ("a", secret.clone())] {
        let mut config = script(&image, "cat /data/key");
        config.mounts = vec![bind("/data", &volume.join("a/b"))];
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        // As another container with the volume could do.
        fs::rename(volume.join(swapped), volume.join("aside"))?;
        std::os::unix::fs::symlink(&target, volume.join(swapped))?;
        let refused = node.cri.start_container(&id).await.err().context("it was followed")?;
        assert!(refused.message().contains("open mount source"), "{refused:?}");
        node.cri.remove_container(&id).await?;
        fs::remove_file(volume.join(swapped))?;
        fs::rename(volume.join("aside"), volume.join(swapped))?;
        fs::remove_file(node.log_directory("pod").join("main.log")).ok();
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_options_hold_for_the_mount_that_asked_for_them() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let probe = "cp /bin/busybox /all/busybox; \
                 for d in /all /none; do $d/busybox true 2>/dev/null && echo runs || echo not; \
                 grep \" $d \" /proc/self/mountinfo | cut -d ' ' -f 6; done";
    let mut config = script(&image, probe);
    let options = ["noexec", "nodev", "nosuid"].map(str::to_owned).to_vec();
    config.mounts = vec![
        bind("/all", &dir),
        v1::Mount { mount_options: options.clone(), ..bind("/none", &dir) },
    ];
    let finished = node.finish(&pod, &config).await?;
    let lines: Vec<_> = finished.stdout.lines().collect();
    let [runs, plain, not, held] = lines[..] else { anyhow::bail!("{finished:?}") };
    assert_eq!((runs, not), ("runs", "not"), "{finished:?}");
    for option in &options {
        let has = |text: &str| text.split(',').any(|word| word == option);
        assert!(has(held) && !has(plain), "{option}: {finished:?}");
    }
    assert_eq!(finished.status.mounts[1].mount_options, options);

    config.mounts[1].mount_options = vec!["suid".into()];
    let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
    let refused = refused.context("suid was taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().starts_with("config.mounts[1].mount_options"), "{refused:?}");
    let request = v1::StatusRequest::default();
    let status = node.cri.runtime.status(request).await?.into_inner();
    assert!(status.features.context("no features")?.mount_options);
    node.assert_clean().await
}

/// The sandbox's hosts file lies on the node and may be written to (CVE-2020-8557).
///
/// teeth: crates/engine/src/stats/layers.rs: `*bytes > MADE` → `false`
#[tokio::test(flavor = "multi_thread")]
async fn d10_what_is_written_to_the_hosts_file_is_counted() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let probe = "dd if=/dev/zero of=/etc/hosts bs=1M count=8 2>/dev/null; echo written; sleep 1000";
    let idle = node.run(&pod, &container_config("idle", &image, &["sleep", "1000"])).await?;
    let mut ended = Vec::new();
    for number in 0..3 {
        let name = format!("ended-{number}");
        ended.push(node.run(&pod, &container_config(&name, &image, &["true"])).await?);
        node.wait_exit(&ended[number]).await?;
    }
    let id = node.run(&pod, &script(&image, probe)).await?;
    node.wait_for_line("pod", "main", "written").await?;
    // It is the pod's: kubelet adds up what its containers have written that run.
    let mut used = 0;
    for container_id in [&id, &idle].map(Clone::clone) {
        let request = v1::ContainerStatsRequest { container_id };
        let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats;
        let layer = stats.and_then(|stats| stats.writable_layer).context("no writable layer")?;
        used += layer.used_bytes.context("no bytes")?.value;
    }
    assert!((8 << 20..16 << 20).contains(&used), "{used}");
    for container in ended.iter().chain([&idle, &id]) {
        node.cri.remove_container(container).await?;
    }
    node.assert_clean().await
}
