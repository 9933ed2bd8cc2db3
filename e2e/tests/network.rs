//! The network of sandboxes: bridge, addresses, ports.

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_the_node_by_address() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (server, client) = (node.pod("server").await?, node.pod("client").await?);
    let serve = "while true; do echo from-$(hostname) | nc -l -p 8080; done";
    node.run(&server, &container_config("serve", &image, &["sh", "-c", serve])).await?;
    let target = node.address(&server).await?;
    assert_ne!(target, node.address(&client).await?);

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
        seen.push(node.address(&pod).await?);
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
        assert!(node.address(&pod).await?.starts_with("10.99.0."));
    }
    let config = node.sandbox_config("one-too-many");
    let status = node.cri.run_sandbox(&config).await.err().context("a sixth address was found")?;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    node.assert_clean().await
}

/// A pod that answers `mapped` at port 12000 of the node.
async fn mapped(node: &mut Node) -> Result<()> {
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
    Ok(())
}

/// What port 12000 of the node answers.
fn heard(node: &Node) -> Result<String> {
    node.machine.run(|| {
        use std::io::Read as _;
        for _ in 0..200 {
            let mut text = String::new();
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], 12_000));
            let patience = std::time::Duration::from_millis(200);
            if let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, patience) {
                stream.read_to_string(&mut text).ok();
            }
            if !text.is_empty() {
                return Ok(text);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        anyhow::bail!("nothing came from port 12000")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_leads_to_the_pod() -> Result<()> {
    let mut node = Node::start().await?;
    mapped(&mut node).await?;
    assert_eq!(heard(&node)?, "mapped\n");
    node.assert_clean().await
}

/// While the daemon runs, whoever asks for the node's status has it made again; after that the
/// next daemon does.
///
/// teeth: crates/engine/src/network.rs: `if !broken && shared.network.ready().is_ok() {` → `if !broken {`
/// teeth: crates/engine/src/network.rs: `core.tasks.spawn(reattach_all(Arc::clone(core)));` → `drop(reattach_all(Arc::clone(core)));`
/// teeth: crates/engine/src/network.rs: `let owed = AtomicBool::new(true);` → `let owed = AtomicBool::new(false);`
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_somebody_deleted_is_made_again_and_pods_are_reached() -> Result<()> {
    let mut node = Node::start().await?;
    mapped(&mut node).await?;
    let delete = || {
        let mut busybox = std::process::Command::new("busybox");
        Ok(busybox.args(["ip", "link", "del", "berth0"]).status()?.success())
    };
    assert!(node.machine.run(delete)?, "the bridge was not deleted");
    let status = node.cri.runtime.status(v1::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.context("no status")?.conditions;
    assert!(conditions.iter().all(|condition| condition.status), "{conditions:?}");
    assert_eq!(heard(&node)?, "mapped\n");

    node.kill_daemon()?;
    assert!(node.machine.run(delete)?, "the bridge was not deleted again");
    node.restart().await?;
    assert_eq!(heard(&node)?, "mapped\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_belongs_to_one_pod_until_that_is_gone() -> Result<()> {
    let mut node = Node::start().await?;
    let mapped = |node: &Node, name: &str| v1::PodSandboxConfig {
        port_mappings: vec![v1::PortMapping {
            protocol: v1::Protocol::Udp.into(),
            container_port: 53,
            host_port: 5353,
            host_ip: String::new(),
        }],
        ..node.sandbox_config(name)
    };
    let first = node.pod_with(mapped(&node, "first")).await?;
    let second = mapped(&node, "second");
    let refused = node.cri.run_sandbox(&second).await.err().context("a port was given twice")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("5353"), "{refused:?}");
    assert!(refused.message().contains(&first.id), "{refused:?}");
    assert_eq!(node.cri.sandboxes().await?, std::slice::from_ref(&first.id));
    node.cri.remove_sandbox(&first.id).await?;
    node.pod_with(second).await.context("the port is still taken")?;
    node.assert_clean().await
}
