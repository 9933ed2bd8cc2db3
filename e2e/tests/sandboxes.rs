//! Sandboxes: names, shared memory, kernel parameters, cgroups, life.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, sandbox_security};
use tonic::Code;

fn host_namespaces(config: &mut v1::PodSandboxConfig) {
    sandbox_security(config).namespace_options = Some(node_namespaces());
}

fn node_namespaces() -> v1::NamespaceOption {
    let node = v1::NamespaceMode::Node.into();
    v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_the_pods_own() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("named");
    config.hostname = "a-name-of-its-own".into();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["one.example".into(), "two.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.pod_with(config).await?;
    let ip = node.address(&pod).await?;
    let seen = node.shell(&pod, &image, "hostname; cat /etc/hostname /etc/resolv.conf").await?;
    assert_eq!(
        seen,
        "a-name-of-its-own\na-name-of-its-own\n\
         search one.example two.example\nnameserver 192.0.2.53\noptions ndots:5\n"
    );
    let hosts = node.shell(&pod, &image, "cat /etc/hosts").await?;
    assert!(hosts.contains("127.0.0.1\tlocalhost"), "{hosts}");
    assert!(hosts.contains(&format!("{ip}\ta-name-of-its-own")), "{hosts}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_file_that_the_request_mounts_wins() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("hosts").await?;
    let own = node.dir().join("hosts");
    fs::write(&own, "192.0.2.1 mine\n")?;
    let mut config = container_config("main", &image, &["cat", "/etc/hosts"]);
    config.mounts = vec![v1::Mount {
        container_path: "/etc/hosts".into(),
        host_path: own.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    assert_eq!(node.finish(&pod, &config).await?.stdout, "192.0.2.1 mine\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_memory_network_and_ipc_but_not_processes() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("shared").await?;
    let write = "echo shared > /dev/shm/word; sleep 1000";
    let first = node.run(&pod, &container_config("first", &image, &["sh", "-c", write])).await?;
    let script = "for i in $(seq 100); do [ -e /dev/shm/word ] && break; sleep 0.05; done; cat /dev/shm/word; \
                  df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2";
    assert_eq!(node.shell(&pod, &image, script).await?, "shared\n65536\n");

    let links = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done";
    let here = node.cri.exec(&first, &["sh", "-c", links], 10).await?.stdout;
    let here = String::from_utf8(here)?;
    let there = node.shell(&pod, &image, links).await?;
    let same: Vec<bool> = here.lines().zip(there.lines()).map(|(a, b)| a == b).collect();
    assert_eq!(same, [true, true, true, false, false], "{here} {there}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_namespace_for_the_pod_when_asked() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("pids");
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Pod.into(), ..Default::default() };
    sandbox_security(&mut config).namespace_options = Some(options.clone());
    let pod = node.pod_with(config).await?;
    let share = |mut config: v1::ContainerConfig| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
        config
    };
    let first = share(container_config("first", &image, &["sleep", "4321"]));
    node.run(&pod, &first).await?;
    let second = share(container_config("second", &image, &["ps"]));
    let seen = node.finish(&pod, &second).await?.stdout;
    assert!(seen.contains("sleep 4321"), "{seen}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_use_the_nodes_own_namespaces() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("host");
    host_namespaces(&mut config);
    config.hostname = String::new();
    let pod = node.pod_with(config).await?;
    let status = node.cri.sandbox_status(&pod.id).await?;
    assert_eq!(status.network.map(|network| network.ip).unwrap_or_default(), "");

    let mut container = container_config(
        "main",
        &image,
        &["sh", "-c", "for n in net ipc pid; do readlink /proc/self/ns/$n; done; hostname"],
    );
    let linux = container.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(node_namespaces());
    let seen = node.finish(&pod, &container).await?.stdout;
    let mut expected = String::new();
    let daemon = node.daemon().pid().context("no daemon")?;
    for namespace in ["net", "ipc", "pid"] {
        let link = fs::read_link(format!("/proc/{daemon}/ns/{namespace}"))?;
        expected.push_str(&format!("{}\n", link.display()));
    }
    expected.push_str(fs::read_to_string("/proc/sys/kernel/hostname")?.as_str());
    assert_eq!(seen, expected);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_parameters_are_the_pods_own_and_others_are_refused() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("sysctls");
    config.linux.get_or_insert_default().sysctls = BTreeMap::from([
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
    ]);
    let pod = node.pod_with(config).await?;
    let script =
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(node.shell(&pod, &image, script).await?, "1\n80\n");

    for (name, value) in [
        ("kernel.core_pattern", "|/x"),
        ("vm.swappiness", "1"),
        ("a=1+kernel.core_pattern", "x"),
        ("net/../kernel/x", "1"),
    ] {
        let mut config = node.sandbox_config("refused");
        config.linux.get_or_insert_default().sysctls =
            BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let status = node.cri.run_sandbox(&config).await.err().context("it was taken")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().contains(name), "{status:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn cgroups_lie_below_the_parent_that_the_client_names() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let parent = format!("{}/kubepods/pod1", node.cgroup_base());
    let mut config = node.sandbox_config("parented");
    config.linux.get_or_insert_default().cgroup_parent = parent.clone();
    let pod = node.pod_with(config).await?;
    let container = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&container).await?;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let expected = format!("{parent}/{container}");
    assert!(
        cgroups.lines().any(|line| line.contains(":memory:") && line.ends_with(&expected)),
        "{cgroups}"
    );
    assert!(
        cgroups.lines().any(|line| line.contains(":pids:") && line.ends_with(&expected)),
        "{cgroups}"
    );
    node.cri.remove_sandbox(&pod.id).await?;
    // The parent is its maker's: a real one is kubelet's, this one is the test's.
    for controller in fs::read_dir("/sys/fs/cgroup")? {
        let dir = controller?.path().join(parent.trim_start_matches('/'));
        if dir.is_dir() {
            fs::remove_dir(&dir).with_context(|| format!("{} is not empty", dir.display()))?;
            fs::remove_dir(dir.parent().context("no parent")?)?;
        }
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_costs_one_process_with_one_thread() -> Result<()> {
    let mut node = Node::start().await?;
    let before = node.processes()?;
    let _pod = node.pod("lean").await?;
    let made: Vec<u32> =
        node.processes()?.into_iter().filter(|pid| !before.contains(pid)).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    let threads = fs::read_dir(format!("/proc/{}/task", made[0]))?.count();
    assert_eq!(threads, 1);
    // A process that is not dumpable has root's files in /proc, and nobody's core file.
    assert_eq!(fs::metadata(format!("/proc/{}/environ", made[0]))?.uid(), 0);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_remove_are_idempotent_and_a_name_can_be_used_again() -> Result<()> {
    let mut node = Node::start().await?;
    let pod = node.pod("again").await?;
    let same = node.cri.run_sandbox(&pod.config).await;
    assert!(same.as_ref().is_ok_and(|id| *id == pod.id), "a retry joins: {same:?}");
    for _ in 0..2 {
        node.cri.stop_sandbox(&pod.id).await?;
    }
    let status = node.cri.sandbox_status(&pod.id).await?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    for _ in 0..2 {
        node.cri.remove_sandbox(&pod.id).await?;
    }
    let status = node.cri.sandbox_status(&pod.id).await.err().context("it is still there")?;
    assert_eq!(status.code(), Code::NotFound);
    let again = node.pod("again").await?;
    assert_ne!(again.id, pod.id);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_listed_by_id_state_and_label() -> Result<()> {
    let mut node = Node::start().await?;
    let mut config = node.sandbox_config("one");
    config.labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
    let one = node.pod_with(config).await?;
    let two = node.pod("two").await?;
    node.cri.stop_sandbox(&two.id).await?;
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    for (filter, expected) in [
        (v1::PodSandboxFilter { id: one.id.clone(), ..Default::default() }, &one.id),
        (v1::PodSandboxFilter { id: two.id[..12].to_owned(), ..Default::default() }, &two.id),
        (
            v1::PodSandboxFilter {
                state: state(v1::PodSandboxState::SandboxNotready),
                ..Default::default()
            },
            &two.id,
        ),
        (
            v1::PodSandboxFilter {
                label_selector: BTreeMap::from([("app".to_owned(), "a".to_owned())]),
                ..Default::default()
            },
            &one.id,
        ),
    ] {
        let request = v1::ListPodSandboxRequest { filter: Some(filter.clone()) };
        let items = node.cri.runtime.list_pod_sandbox(request).await?.into_inner().items;
        let ids: Vec<_> = items.iter().map(|item| &item.id).collect();
        assert_eq!(ids, [expected], "{filter:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_one_pod_are_different_sandboxes() -> Result<()> {
    let mut node = Node::start().await?;
    let mut config = node.sandbox_config("pod");
    let first = node.pod_with(config.clone()).await?;
    config.metadata.as_mut().context("no metadata")?.attempt = 1;
    let second = node.pod_with(config.clone()).await?;
    assert_ne!(first.id, second.id);
    assert_ne!(node.address(&first).await?, node.address(&second).await?);
    for (pod, attempt) in [(&first, 0), (&second, 1)] {
        let metadata = node.cri.sandbox_status(&pod.id).await?.metadata.context("no metadata")?;
        assert_eq!((metadata.name.as_str(), metadata.attempt), ("pod", attempt));
    }
    // Another pod of the same name: one that was deleted and made anew has another uid.
    config.metadata.as_mut().context("no metadata")?.uid = "another".into();
    let third = node.pod_with(config).await?;
    assert!(third.id != first.id && third.id != second.id);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_may_write_its_hosts_file_and_share_it() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("hosts").await?;
    node.shell(&pod, &image, "echo 192.0.2.7 added >> /etc/hosts").await?;
    let hosts = node.shell(&pod, &image, "cat /etc/hosts").await?;
    assert!(hosts.contains("192.0.2.7 added"), "{hosts}");
    let other = node.pod("other").await?;
    let hosts = node.shell(&other, &image, "cat /etc/hosts").await?;
    assert!(!hosts.contains("192.0.2.7"), "{hosts}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_dns_settings_has_the_nodes() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("plain").await?;
    let seen = node.shell(&pod, &image, "cat /etc/resolv.conf").await?;
    assert_eq!(seen, fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    node.assert_clean().await
}
