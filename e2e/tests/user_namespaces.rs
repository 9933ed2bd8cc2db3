//! Pods with users of their own (KEP-127).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{
    Node, Pod, bind, container_config, log, resources, sandbox_security, script, security,
};
use tonic::Code;

/// Where the pods' root lies on the node.
const HOST: u32 = 100_000;
const LENGTH: u32 = 65_536;

fn mapping(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
    v1::IdMapping { host_id, container_id, length }
}

fn users(mode: v1::NamespaceMode, mappings: &[v1::IdMapping]) -> v1::UserNamespace {
    v1::UserNamespace { mode: mode.into(), uids: mappings.to_vec(), gids: mappings.to_vec() }
}

fn own() -> v1::UserNamespace {
    users(v1::NamespaceMode::Pod, &[mapping(0, HOST, LENGTH)])
}

fn options(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    sandbox_security(config).namespace_options.get_or_insert_default()
}

/// A node, an image, and a pod with users of its own that `change` has changed.
async fn with_pod(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<(Node, String, Pod)> {
    pod_of(Node::start().await?, change).await
}

/// The same on a node that runs already.
async fn pod_of(
    mut node: Node,
    change: impl FnOnce(&mut v1::PodSandboxConfig),
) -> Result<(Node, String, Pod)> {
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("pod");
    let options = options(&mut config);
    options.userns_options = Some(own());
    options.pid = v1::NamespaceMode::Container.into();
    change(&mut config);
    let pod = node.pod_with(config).await?;
    Ok((node, image, pod))
}

/// A container of one script that says nothing of users, or the same as its pod.
fn in_pod(pod: &Pod, image: &str, text: &str) -> v1::ContainerConfig {
    let mut config = script(image, text);
    let linux = pod.config.linux.as_ref();
    let asked = linux.and_then(|linux| linux.security_context.as_ref());
    let asked = asked.and_then(|security| security.namespace_options.clone());
    security(&mut config).namespace_options = asked;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_the_users_that_were_asked_for() -> Result<()> {
    let (mut node, image, pod) = with_pod(|config| {
        options(config).userns_options =
            Some(users(v1::NamespaceMode::Pod, &[mapping(0, 1000, 100_000)]));
        let sysctls = &mut config.linux.get_or_insert_default().sysctls;
        sysctls.insert("net.core.somaxconn".into(), "777".into());
        sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        config.hostname = "own-users".into();
    })
    .await?;
    let status = node.cri.runtime.status(v1::StatusRequest::default()).await?.into_inner();
    let features = status.features.context("no features")?;
    ensure!(features.user_namespaces_host_network, "{features:?}");
    let handlers = status.runtime_handlers.iter();
    ensure!(handlers.clone().all(|one| one.features.is_some_and(|it| it.user_namespaces)));

    let look = "cat /proc/self/uid_map /proc/self/gid_map /proc/sys/net/core/somaxconn \
                /proc/sys/kernel/shm_rmid_forced; hostname; id -u; cat /etc/hostname; \
                echo 10.9.9.9 added >> /etc/hosts && grep -c added /etc/hosts; \
                touch /root-of-pod && stat -c %u:%g /root-of-pod /bin/busybox; \
                ls /dev/pts/ptmx /dev/mqueue /sys/class/net/eth0/ > /dev/null && echo mounts; \
                grep -q . /etc/resolv.conf && ping -c 1 -W 2 127.0.0.1 > /dev/null && echo net";
    let finished = node.finish(&pod, &in_pod(&pod, &image, look)).await?;
    let words: Vec<&str> = finished.stdout.split_whitespace().collect();
    let ids = ["0", "1000", "100000", "0", "1000", "100000"];
    let rest = ["777", "1", "own-users", "0", "own-users", "1", "0:0", "0:0", "mounts", "net"];
    assert_eq!(words, [&ids[..], &rest[..]].concat(), "{}", finished.stderr);
    assert_eq!(finished.status.exit_code, 0, "{}", finished.stderr);

    let status = node.cri.sandbox_status(&pod.id).await?;
    let told = status.linux.and_then(|linux| linux.namespaces?.options?.userns_options);
    assert_eq!(told, Some(users(v1::NamespaceMode::Pod, &[mapping(0, 1000, 100_000)])));
    node.assert_clean().await
}

/// teeth: crates/cri/src/translate/fields.rs: `if range.container != 0 {` → `if false {`
#[tokio::test(flavor = "multi_thread")]
async fn users_that_cannot_be_are_refused_by_name() -> Result<()> {
    use v1::NamespaceMode::{Container, Node as OfNode, Pod as OfPod, Target};
    let mut node = Node::start().await?;
    let good = mapping(0, 1000, 100_000);
    for (field, asked) in [
        ("uids", users(OfPod, &[good, mapping(0, 2000, 100_000)])),
        ("container_id", users(OfPod, &[mapping(1, 1000, 100_000)])),
        ("host_id", users(OfPod, &[mapping(0, 0, 100_000)])),
        ("length", users(OfPod, &[mapping(0, 1000, 0)])),
        ("length", v1::UserNamespace { gids: vec![mapping(0, 1000, 9)], ..users(OfPod, &[good]) }),
        ("uids", users(OfPod, &[])),
        ("mode", users(Container, &[])),
        ("mode", users(Target, &[])),
        ("userns_options", users(OfNode, &[good])),
    ] {
        let mut config = node.sandbox_config("pod");
        options(&mut config).userns_options = Some(asked);
        let refused = node.cri.run_sandbox(&config).await.err().context("taken")?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused:?}");
        ensure!(refused.message().contains(field), "{field}: {refused:?}");
    }
    for kind in ["pid", "ipc"] {
        let mut config = node.sandbox_config("pod");
        let options = options(&mut config);
        options.userns_options = Some(own());
        let place = if kind == "pid" { &mut options.pid } else { &mut options.ipc };
        *place = OfNode.into();
        let refused = node.cri.run_sandbox(&config).await.err().context("taken")?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        ensure!(refused.message().contains(kind), "{refused:?}");
    }
    assert!(node.cri.sandboxes().await?.is_empty());
    node.assert_clean().await
}

/// teeth: crates/cri/src/container.rs: `said && asked.user != sandbox.user` → `false`
#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_cannot_have_among_a_pods_users_is_refused_by_name() -> Result<()> {
    use v1::NamespaceMode::{Node as OfNode, Pod as OfPod};
    let (mut node, image, pod) = with_pod(|_| {}).await?;
    for (word, change) in [
        (
            "userns_options",
            Box::new(|config: &mut v1::ContainerConfig| {
                let asked = security(config).namespace_options.get_or_insert_default();
                asked.userns_options = Some(users(OfNode, &[]));
            }) as Box<dyn Fn(&mut v1::ContainerConfig)>,
        ),
        (
            "userns_options",
            Box::new(|config| {
                let asked = security(config).namespace_options.get_or_insert_default();
                asked.userns_options = Some(users(OfPod, &[mapping(0, HOST + 1, LENGTH)]));
            }),
        ),
        (
            "70000",
            Box::new(|config| {
                security(config).run_as_user = Some(v1::Int64Value { value: 70_000 });
            }),
        ),
        (
            "bidirectional",
            Box::new(|config| {
                let propagation = v1::MountPropagation::PropagationBidirectional.into();
                config.mounts = vec![v1::Mount { propagation, ..bind("/data", Path::new("/tmp")) }];
            }),
        ),
    ] {
        let mut config = script(&image, "true");
        change(&mut config);
        let refused = node.cri.create_container(&pod.id, &pod.config, &config).await;
        let refused = refused.err().with_context(|| format!("{word} was taken"))?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{word}: {refused:?}");
        ensure!(refused.message().contains(word), "{word}: {refused:?}");
    }
    node.assert_clean().await
}

/// A sysctl that the kernel does not have is the request's fault, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_the_kernel_lacks_is_refused_by_name() -> Result<()> {
    let mut node = Node::start().await?;
    let mut config = node.sandbox_config("pod");
    options(&mut config).userns_options = Some(own());
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.no_such.parameter".into(), "1".into());
    let refused = node.cri.run_sandbox(&config).await.err().context("taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    ensure!(refused.message().contains("net.no_such.parameter"), "{refused:?}");
    node.assert_clean().await
}

/// teeth: crates/oci-runtime/src/worker.rs: `users.enter()?;` → ``
/// teeth: crates/daemon/src/directories.rs: `PRIVATE: u32 = 0o700;` → `PRIVATE: u32 = 0o777;`
/// teeth: crates/daemon/src/directories.rs: `PASSABLE: u32 = 0o711;` → `PASSABLE: u32 = 0o777;`
#[tokio::test(flavor = "multi_thread")]
async fn d17_a_remapped_root_cannot_touch_what_is_the_nodes() -> Result<()> {
    let (mut node, image, pod) = with_pod(|_| {}).await?;
    // The test's own directory keeps everybody out, and would hide what the daemon forgot.
    fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o755))?;
    let attack = "id -u; ls /node | grep -cx -e root -e run; \
         cat /node/root/pods.db 2>/dev/null | wc -c; find /node -user 0 2>/dev/null; \
         for dir in /node /node/root /node/run /node/run/sandboxes; do \
         touch $dir/x 2>/dev/null && echo \"made in $dir\"; \
         chmod 777 $dir 2>/dev/null && echo \"opened $dir\"; \
         mv $dir /node/y 2>/dev/null && echo \"moved $dir\"; done; \
         mv /node/root/pods.db /node/root/y 2>/dev/null && echo moved pods.db; \
         mknod /tmp/m b 8 0 2>/dev/null && echo node; \
         echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo panic; \
         mount -t tmpfs t /tmp 2>/dev/null && mount -o remount,rw /sys 2>/dev/null; \
         echo 1 > /sys/kernel/profiling 2>/dev/null && echo sys; true";
    let mut config = in_pod(&pod, &image, attack);
    config.mounts = vec![bind("/node", node.dir())];
    let capabilities =
        v1::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() };
    security(&mut config).capabilities = Some(capabilities);
    let dirs = ["", "root", "run", "run/sandboxes"].map(|dir| node.path(dir));
    let modes = |dirs: &[PathBuf]| {
        let mode = |dir: &PathBuf| Ok(fs::metadata(dir)?.mode());
        dirs.iter().map(mode).collect::<Result<Vec<_>>>()
    };
    let before = modes(&dirs)?;
    ensure!(fs::metadata(node.path("root/pods.db"))?.len() > 0, "nothing to read");
    let finished = node.finish(&pod, &config).await?;
    // It is root, sees both directories, reads no byte, and has done nothing else.
    assert_eq!(finished.stdout, "0\n2\n0\n", "{finished:?}");
    assert_eq!(modes(&dirs)?, before);
    ensure!(!dirs.iter().any(|dir| dir.join("x").exists() || dir.join("y").exists()));
    node.assert_clean().await
}

/// teeth: crates/oci-runtime/src/init.rs: `cgroup.join_self().map_err(Error::setup("join the cgroup"))?;` → ``
/// teeth: crates/engine/src/sandbox/plan.rs: `cgroup_path(parent)?.to_string()` → `format!("{}x", cgroup_path(parent)?)`
#[tokio::test(flavor = "multi_thread")]
async fn d8_users_of_its_own_change_nothing_about_limits_and_shared_memory() -> Result<()> {
    let node = Node::start().await?;
    let parent = format!("{}/kubepods/pod1", node.cgroup_base());
    let named = parent.clone();
    let below = |config: &mut v1::PodSandboxConfig| {
        config.linux.get_or_insert_default().cgroup_parent = named;
    };
    let (mut node, image, pod) = pod_of(node, below).await?;
    let mut config = in_pod(
        &pod,
        &image,
        "df -k /dev/shm | tail -n 1; stat -c %a:%u /dev/shm; \
         exec dd if=/dev/zero of=/dev/shm/fill bs=1M count=60",
    );
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 16 << 20;
    limits.memory_swap_limit_in_bytes = 16 << 20;
    let id = node.run(&pod, &config).await?;
    let ended = node.wait_exit(&id).await?;
    let text = log::text(&node.read_log("pod", "main")?, "stdout");
    let size = text.split_whitespace().nth(1).context("no size")?.to_owned();
    assert_eq!(size, "65536", "{text}");
    ensure!(text.contains("1777:0"), "{text}");
    // What it writes there counts as its own.
    assert_eq!(ended.reason, "OOMKilled", "{ended:?} {text}");

    let mut config = in_pod(&pod, &image, "echo up; sleep 1000");
    config.metadata = Some(v1::ContainerMetadata { name: "second".into(), attempt: 0 });
    config.log_path = "second.log".into();
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "second", "up").await?;
    let pid = node.container_pid(&id).await?;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let below = format!("{parent}/{id}");
    ensure!(cgroups.lines().all(|line| line.ends_with(&below)), "{below}: {cgroups}");
    node.cri.stop_container(&id, 0).await?;

    // What kubelet limits is the pod; a container without a limit has that one.
    limit_memory(&parent, 40 << 20)?;
    let mut config = in_pod(&pod, &image, "exec dd if=/dev/zero of=/dev/shm/more bs=1M count=60");
    config.metadata = Some(v1::ContainerMetadata { name: "third".into(), attempt: 0 });
    config.log_path = "third.log".into();
    let id = node.run(&pod, &config).await?;
    let ended = node.wait_exit(&id).await?;
    assert_eq!(ended.reason, "OOMKilled", "{ended:?}");
    node.cri.remove_sandbox(&pod.id).await?;
    remove_parent(&parent)?;
    node.assert_clean().await
}

/// Where the cgroup `path` lies: once, or once for each controller (cgroups(7)).
fn places(path: &str) -> Result<Vec<PathBuf>> {
    let (root, path) = (PathBuf::from("/sys/fs/cgroup"), path.trim_start_matches('/'));
    let mut found = vec![root.join(path)];
    for controller in fs::read_dir(root)? {
        found.push(controller?.path().join(path));
    }
    found.retain(|dir| dir.is_dir());
    Ok(found)
}

fn limit_memory(cgroup: &str, bytes: u64) -> Result<()> {
    let files = ["memory.max", "memory.limit_in_bytes"];
    let mut files = places(cgroup)?.into_iter().flat_map(|dir| files.map(|file| dir.join(file)));
    let file = files.find(|file| file.exists()).context("memory is not limited here")?;
    Ok(fs::write(file, bytes.to_string())?)
}

/// Removes a cgroup that the test named, and the one that holds it: both are its maker's.
fn remove_parent(cgroup: &str) -> Result<()> {
    for dir in places(cgroup)? {
        fs::remove_dir(&dir).with_context(|| format!("{} is not empty", dir.display()))?;
        fs::remove_dir(dir.parent().context("no parent")?)?;
    }
    Ok(())
}

/// teeth: crates/spec/src/mounts.rs: `Ok(map_mount(bind, asked.ids.as_ref()))` → `Ok(bind)`
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_and_the_writable_layer_belong_to_the_pods_users() -> Result<()> {
    let (mut node, image, pod) = with_pod(|_| {}).await?;
    let volume = node.dir().join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "")?;
    chown(volume.join("file"), Some(5), Some(6))?;
    let look = "stat -c %u:%g /data /data/file /plain/file; touch /data/new; \
                echo x > /kept; echo done; sleep 1000";
    let mut config = in_pod(&pod, &image, look);
    let mapped = v1::Mount {
        uid_mappings: vec![mapping(0, HOST, LENGTH)],
        gid_mappings: vec![mapping(0, HOST, LENGTH)],
        ..bind("/data", &volume)
    };
    config.mounts = vec![mapped.clone(), bind("/plain", &volume)];
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "done").await?;
    let text = log::text(&node.read_log("pod", "main")?, "stdout");
    assert_eq!(text, "0:0\n5:6\n65534:65534\ndone\n");
    let made = fs::metadata(volume.join("new"))?;
    assert_eq!((made.uid(), made.gid()), (0, 0), "on the disk it is the volume's root");
    let status = node.cri.container_status(&id).await?;
    assert_eq!(status.mounts[0].uid_mappings, mapped.uid_mappings);

    // Accounted, and removed with the container.
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats;
    let layer = stats.and_then(|stats| stats.writable_layer).context("no writable layer")?;
    ensure!(layer.inodes_used.is_some_and(|inodes| inodes.value > 1), "{layer:?}");
    let pid = node.container_pid(&id).await?;
    assert_eq!(fs::metadata(format!("/proc/{pid}/root/kept"))?.uid(), HOST);
    node.cri.remove_container(&id).await?;

    let mut config = in_pod(&pod, &image, "true");
    let nowhere = v1::Mount { host_path: "/proc/fs".into(), ..mapped };
    config.mounts = vec![nowhere];
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let refused = node.cri.start_container(&id).await.err().context("started")?;
    ensure!(refused.message().contains("/proc/fs"), "{refused:?}");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    node.assert_clean().await
}

/// What holds the namespaces is the shim, and nothing of them is left after the pod.
#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_pod_outlive_the_daemon_and_end_with_the_pod() -> Result<()> {
    let (mut node, image, pod) =
        with_pod(|config| options(config).pid = v1::NamespaceMode::Pod.into()).await?;
    let id = node.run(&pod, &in_pod(&pod, &image, "echo up; sleep 1000")).await?;
    node.wait_for_line("pod", "main", "up").await?;
    let shim = node.shim_pid(&pod.id).await?;
    let held = fs::read_link(format!("/proc/{shim}/fd/14"))?;
    ensure!(held.display().to_string().starts_with("user:["), "{held:?}");

    node.kill_and_restart().await?;
    let look =
        ["sh", "-c", "readlink /proc/self/ns/user; cat /proc/self/uid_map; id -u; ps | wc -l"];
    let answer = node.cri.exec(&id, &look, 10).await?;
    let text = String::from_utf8(answer.stdout)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let held = held.display().to_string();
    assert_eq!(words[..5], [held.as_str(), "0", "100000", "65536", "0"], "{text}");
    let mut second = in_pod(&pod, &image, "readlink /proc/self/ns/user; ps");
    second.metadata = Some(v1::ContainerMetadata { name: "second".into(), attempt: 0 });
    second.log_path = "second.log".into();
    let finished = node.run(&pod, &second).await?;
    node.wait_exit(&finished).await?;
    let text = log::text(&node.read_log("pod", "second")?, "stdout");
    ensure!(text.starts_with(&held) && text.contains("sleep 1000"), "{text}");

    node.cri.stop_sandbox(&pod.id).await?;
    node.kill_and_restart().await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_its_own_go_with_the_nodes_network_and_with_privileges() -> Result<()> {
    let (mut node, image, pod) = with_pod(|config| {
        options(config).network = v1::NamespaceMode::Node.into();
        sandbox_security(config).privileged = true;
    })
    .await?;
    let look = "cat /proc/self/uid_map; readlink /proc/self/ns/net; \
                ls /sys/class/net/lo > /dev/null && echo sysfs; \
                ip link set lo down 2>/dev/null && echo down; \
                mount -t tmpfs t /tmp && echo own-mounts; head -c 1 /dev/zero | wc -c; \
                for disk in /dev/[svn][dv]*; do [ -b $disk ] && head -c 1 $disk 2>/dev/null; done; true";
    let mut config = in_pod(&pod, &image, look);
    security(&mut config).privileged = true;
    let finished = node.finish(&pod, &config).await?;
    let net = node.machine.run(|| Ok(fs::read_link("/proc/thread-self/ns/net")?))?;
    let words: Vec<String> = finished.stdout.split_whitespace().map(str::to_owned).collect();
    let expected = ["0", "100000", "65536", &net.display().to_string(), "sysfs", "own-mounts", "1"];
    assert_eq!(words, expected, "{}", finished.stderr);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_pod_is_on_the_nodes_users() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = container_config("main", &image, &["cat", "/proc/self/uid_map"]);
    let asked = security(&mut config).namespace_options.get_or_insert_default();
    asked.userns_options = Some(users(v1::NamespaceMode::Node, &[]));
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, fs::read_to_string("/proc/self/uid_map")?);
    node.assert_clean().await
}
