//! Registries: TLS, platforms, documents of several kinds.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result};
use berth_testkit::tls::Certificate;
use berth_testkit::{Node, NodeOptions, image};
use serde_json::json;
use tonic::Code;

/// The bridge's address: the only one of the machine that is not loopback.
const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 85, 0, 1));

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_under_tls_from_a_private_authority() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificate = Certificate::write(dir.path(), &["10.85.0.1"])?;
    let options = NodeOptions {
        config: format!("[image]\nca_files = ['{}']\n", certificate.authority.display()),
        ..Default::default()
    };
    let mut node = Node::start_with(options).await?;
    node.push("busybox", "latest", &image::busybox()?)?;
    let private = node.registry.under_tls(&node.machine, BRIDGE, certificate)?;
    let reference = private.reference("busybox", "latest");
    node.cri.pull(&reference).await?;
    drop(private);
    let pod = node.pod("pod").await?;
    assert_eq!(node.shell(&pod, &reference, "echo runs").await?, "runs\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_whose_certificate_nobody_trusts_is_refused() -> Result<()> {
    let mut node = Node::start().await?;
    let certificate = Certificate::write(node.dir(), &["10.85.0.1"])?;
    node.push("busybox", "latest", &image::busybox()?)?;
    let private = node.registry.under_tls(&node.machine, BRIDGE, certificate)?;
    let reference = private.reference("busybox", "latest");
    let refused = node.cri.pull(&reference).await.err().context("it was trusted")?;
    assert!(refused.message().contains(&private.address().to_string()), "{refused:?}");
    assert!(refused.message().to_lowercase().contains("certificate"), "{refused:?}");
    drop(private);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_registry_that_is_not_configured_is_not_spoken_to_plainly() -> Result<()> {
    for plain in [false, true] {
        let config = if plain { "[image]\nplain_http = ['10.85.0.1']\n" } else { "" };
        let options = NodeOptions { config: config.into(), ..Default::default() };
        let mut node = Node::start_with(options).await?;
        node.push("busybox", "latest", &image::busybox()?)?;
        let open = node.registry.at(&node.machine, BRIDGE)?;
        let reference = open.reference("busybox", "latest");
        match (plain, node.cri.pull(&reference).await) {
            (true, pulled) => drop(pulled?),
            (false, Ok(_)) => anyhow::bail!("it was spoken to without TLS"),
            (false, Err(refused)) => {
                assert!(refused.message().contains("10.85.0.1"), "{refused:?}");
            }
        }
        drop(open);
        node.assert_clean().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_of_this_platform_is_found_behind_foreign_ones() -> Result<()> {
    let mut node = Node::start().await?;
    let foreign = image::ImageBuilder::new().config("Cmd", json!(["foreign"])).build()?;
    let attestation = image::ImageBuilder::new().config("Cmd", json!(["attestation"])).build()?;
    let made = image::busybox()?
        .behind(foreign, json!({"architecture": "arm64", "os": "linux", "variant": "v8"}))?
        .behind(attestation, json!({"architecture": "unknown", "os": "unknown"}))?;
    let reference = node.push("platforms", "latest", &made)?;
    assert_eq!(node.cri.pull(&reference).await?, made.id.to_string());
    let pod = node.pod("pod").await?;
    assert_eq!(node.shell(&pod, &reference, "echo ours").await?, "ours\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_without_this_platform_is_refused_by_name() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox()?.made_for(&json!({"architecture": "arm64", "os": "linux"}))?;
    let reference = node.push("foreign", "latest", &made)?;
    let refused = node.cri.pull(&reference).await.err().context("it was pulled")?;
    assert!(refused.message().contains("foreign:latest"), "{refused:?}");
    assert!(refused.message().contains("linux/amd64"), "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_pulled_by_its_own_digest_without_an_index() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox()?;
    let tagged = node.push("busybox", "latest", &made)?;
    let repository = tagged.rsplit_once(':').context("no tag")?.0.to_owned();
    let by_digest = format!("{repository}@{}", made.manifests[0].0.digest());
    assert_eq!(node.cri.pull(&by_digest).await?, made.id.to_string());
    let pod = node.pod("pod").await?;
    assert_eq!(node.shell(&pod, &by_digest, "echo runs").await?, "runs\n");
    node.assert_clean().await
}

/// A node that looks for the hosts of registries in `dir`.
async fn node_with_hosts(dir: &Path) -> Result<Node> {
    let config = format!("[registry]\nconfig_path = '{}'\n", dir.display());
    Node::start_with(NodeOptions { config, ..Default::default() }).await
}

fn write_hosts(dir: &Path, registry: &str, text: &str) -> Result<()> {
    std::fs::create_dir_all(dir.join(registry))?;
    Ok(std::fs::write(dir.join(registry).join("hosts.toml"), text)?)
}

/// `docker.io` cannot be reached from here: all that is pulled comes from the mirror.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_registry_that_is_out_of_reach_come_from_its_mirrors() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificate = Certificate::write(dir.path(), &["10.85.0.1"])?;
    let authority = certificate.authority.display().to_string();
    let mut node = node_with_hosts(dir.path()).await?;
    let made = image::busybox()?;
    node.push("library/busybox", "latest", &made)?;
    let mirror = node.registry.under_tls(&node.machine, BRIDGE, certificate)?;
    // The first one is dead: nobody listens on port 1 of this machine.
    let text = format!(
        "[host.'http://127.0.0.1:1']\n[host.'https://{}']\nca = '{authority}'\n",
        mirror.address()
    );
    write_hosts(dir.path(), "docker.io", &text)?;
    write_hosts(dir.path(), "_default", &text)?;

    assert_eq!(node.cri.pull("docker.io/library/busybox:latest").await?, made.id.to_string());
    let digest = made.manifests[0].0.digest();
    let by_digest = format!("r.example:5000/library/busybox@{digest}");
    assert_eq!(node.cri.pull(&by_digest).await?, made.id.to_string());
    let pod = node.pod("pod").await?;
    assert_eq!(node.shell(&pod, "busybox", "echo runs").await?, "runs\n");
    drop(mirror);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_no_host_served_tells_what_each_of_them_said() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = node_with_hosts(dir.path()).await?;
    let text =
        format!("server = 'http://127.0.0.1:2'\n[host.'http://{}']\n", node.registry.address());
    write_hosts(dir.path(), "r.example", &text)?;
    let refused = node.cri.pull("r.example/none:t").await.err().context("it was pulled")?;
    // kubelet tells a registry that is away from an image that is not there by this prefix.
    assert_eq!(refused.code(), Code::Unknown, "{refused:?}");
    assert!(refused.message().starts_with("RegistryUnavailable: "), "{refused:?}");
    for part in ["none of 2 hosts", "does not exist", "127.0.0.1:2"] {
        assert!(refused.message().contains(part), "{part}: {refused:?}");
    }
    write_hosts(dir.path(), "r.example", "\nservr = 'x'\n")?;
    let refused = node.cri.pull("r.example/none:t").await.err().context("it was pulled")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("r.example/hosts.toml:2:1: unknown key"), "{refused:?}");
    node.assert_clean().await
}
