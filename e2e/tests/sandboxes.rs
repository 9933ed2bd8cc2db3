//! Sandboxes: their network, names, shared memory, kernel parameters and cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, Pod, container_config};
use tonic::Code;

async fn address(node: &mut Node, pod: &Pod) -> Result<String> {
    let status = node.cri.sandbox_status(&pod.id).await?;
    Ok(status.network.context("no network status")?.ip)
}

fn security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn host_namespaces(config: &mut v1::PodSandboxConfig) {
    security(config).namespace_options = Some(node_namespaces());
}

fn node_namespaces() -> v1::NamespaceOption {
    let node = v1::NamespaceMode::Node.into();
    v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_the_node_by_address() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (server, client) = (node.pod("server").await?, node.pod("client").await?);
    let serve = "while true; do echo from-$(hostname) | nc -l -p 8080; done";
    node.run(&server, &container_config("serve", &image, &["sh", "-c", serve])).await?;
    let target = address(&mut node, &server).await?;
    assert_ne!(target, address(&mut node, &client).await?);

    let script = format!(
        "for i in $(seq 100); do nc {target} 8080 </dev/null && exit; sleep 0.1; done; exit 1"
    );
    assert_eq!(node.shell(&client, &image, &script).await?, "from-server\n");
    let script = "ping -c 1 -W 5 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo reached";
    assert_eq!(node.shell(&client, &image, script).await?, "reached\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_leased_until_its_sandbox_is_gone() -> Result<()> {
    let mut node = Node::start().await?;
    let mut seen = Vec::new();
    for number in 0..5 {
        let pod = node.pod(&format!("pod-{number}")).await?;
        seen.push(address(&mut node, &pod).await?);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5, "{seen:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_subnet_is_the_configured_one_and_can_be_used_up() -> Result<()> {
    let options = berth_testkit::NodeOptions {
        config: "[network]\nsubnet = '10.99.0.0/29'\n".into(),
        ..Default::default()
    };
    let mut node = Node::start_with(options).await?;
    // Eight addresses, without those of the network, the bridge and the broadcast.
    for number in 0..5 {
        let pod = node.pod(&format!("pod-{number}")).await?;
        assert!(address(&mut node, &pod).await?.starts_with("10.99.0."));
    }
    let config = node.sandbox_config("one-too-many");
    let status = node.cri.run_sandbox(&config).await.err().context("a sixth address was found")?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_leads_to_the_pod() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("web");
    config.port_mappings = vec![v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 8080,
        host_port: 12_000,
        host_ip: String::new(),
    }];
    let pod = node.pod_with(config).await?;
    let serve = "while true; do echo mapped | nc -l -p 8080; done";
    node.run(&pod, &container_config("serve", &image, &["sh", "-c", serve])).await?;
    let heard = node.machine.run(|| {
        use std::io::Read as _;
        for _ in 0..200 {
            let mut text = String::new();
            if let Ok(mut stream) = std::net::TcpStream::connect("127.0.0.1:12000") {
                stream.read_to_string(&mut text).ok();
            }
            if !text.is_empty() {
                return Ok(text);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        anyhow::bail!("nothing came from port 12000")
    })?;
    assert_eq!(heard, "mapped\n");
    node.assert_clean().await
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
    let ip = address(&mut node, &pod).await?;
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
    security(&mut config).namespace_options = Some(options.clone());
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
    let request = v1::ContainerStatusRequest { container_id: container.clone(), verbose: true };
    let info = node.cri.runtime.container_status(request).await?.into_inner().info;
    let text: String = info.values().cloned().collect();
    let verbose: serde_json::Value = serde_json::from_str(&text)?;
    let pid = verbose["pid"].as_u64().with_context(|| format!("no pid in {text}"))?;
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
