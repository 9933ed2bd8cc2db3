//! Bad requests: refused by name, and nothing is left of them.

use std::path::Path;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, bind, container_config, image, security};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_by_name_and_leave_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let good = container_config("main", &image, &["true"]);
    let mut cases: Vec<(&str, v1::ContainerConfig, Code, &str)> = Vec::new();
    let mut add = |what, code, word, change: &dyn Fn(&mut v1::ContainerConfig)| {
        let mut config = good.clone();
        change(&mut config);
        cases.push((what, config, code, word));
    };
    add("missing image", Code::NotFound, "nowhere", &|config| {
        config.image =
            Some(v1::ImageSpec { image: "nowhere.example/x:1".into(), ..Default::default() });
    });
    add("missing user", Code::InvalidArgument, "nobody-here", &|config| {
        security(config).run_as_username = "nobody-here".into();
    });
    add("missing mount source", Code::InvalidArgument, "/dev/null/source", &|config| {
        config.mounts = vec![bind("/data", Path::new("/dev/null/source"))];
    });
    add("unknown capability", Code::InvalidArgument, "FLY", &|config| {
        let add_capabilities = vec!["FLY".into()];
        security(config).capabilities =
            Some(v1::Capability { add_capabilities, ..Default::default() });
    });
    add("no metadata", Code::InvalidArgument, "metadata", &|config| config.metadata = None);
    add("no image", Code::InvalidArgument, "image", &|config| config.image = None);
    add("escaping log", Code::InvalidArgument, "log", &|config| {
        config.log_path = "../../x.log".into()
    });
    add("relative mount", Code::InvalidArgument, "container_path", &|config| {
        config.mounts = vec![bind("relative", Path::new("/tmp"))];
    });
    for (what, config, code, word) in &cases {
        let refused = node.cri.create_container(&pod.id, &pod.config, config).await.err();
        let refused = refused.with_context(|| format!("{what} was taken"))?;
        assert_eq!(refused.code(), *code, "{what}: {refused:?}");
        assert!(refused.message().contains(word), "{what}: {refused:?}");
    }
    assert!(node.cri.containers().await?.is_empty());

    let absent = "f".repeat(64);
    let refused =
        node.cri.create_container(&absent, &pod.config, &good).await.err().context("taken")?;
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    let refused =
        node.cri.run_sandbox(&v1::PodSandboxConfig::default()).await.err().context("taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let empty = v1::RunPodSandboxRequest::default();
    let refused = node.cri.runtime.run_pod_sandbox(empty).await.err().context("taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let request = v1::RunPodSandboxRequest {
        config: Some(node.sandbox_config("handled")),
        runtime_handler: "no-such".into(),
    };
    let refused = node.cri.runtime.run_pod_sandbox(request).await.err().context("taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("no-such"), "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_command_needs_one() -> Result<()> {
    let (mut node, _, pod) = Node::with_pod().await?;
    let image = node.push("empty", "latest", &image::ImageBuilder::new().build()?)?;
    node.cri.pull(&image).await?;
    let config = container_config("main", &image, &[]);
    let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
    let refused = refused.context("nothing to run, and taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("command"), "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_on_what_does_not_exist_say_so_or_are_done() -> Result<()> {
    let mut node = Node::start().await?;
    let absent = "f".repeat(64);
    node.cri.stop_sandbox(&absent).await.context("stopping what is gone is success")?;
    node.cri.remove_sandbox(&absent).await.context("removing what is gone is success")?;
    node.cri.stop_container(&absent, 0).await.context("stopping what is gone is success")?;
    node.cri.remove_container(&absent).await.context("removing what is gone is success")?;
    let stats = v1::ContainerStatsRequest { container_id: absent.clone() };
    let sandbox_stats = v1::PodSandboxStatsRequest { pod_sandbox_id: absent.clone() };
    for (what, refused) in [
        ("status", node.cri.container_status(&absent).await.err()),
        ("sandbox status", node.cri.sandbox_status(&absent).await.err()),
        ("start", node.cri.start_container(&absent).await.err()),
        ("stats", node.cri.runtime.container_stats(stats).await.err()),
        ("sandbox stats", node.cri.runtime.pod_sandbox_stats(sandbox_stats).await.err()),
    ] {
        let refused = refused.with_context(|| format!("{what} answered"))?;
        assert_eq!(refused.code(), Code::NotFound, "{what}: {refused:?}");
        assert!(refused.message().contains(&absent), "{what}: {refused:?}");
    }
    node.assert_clean().await
}

/// A path of the request may lead where the kernel makes nothing: that is no fault of Berth.
///
/// teeth: crates/oci-runtime/src/error.rs: `| Errno::EOPNOTSUPP => ErrorKind::FailedPrecondition,` → `| Errno::EOPNOTSUPP => ErrorKind::Internal,`
#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_does_not_make_at_a_path_is_the_requests_fault() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for (name, path) in [("one", "/proc/of-berth"), ("two", "/sys/class/of-berth")] {
        let mut config = container_config(name, &image, &["true"]);
        config.devices = vec![v1::Device {
            container_path: path.into(),
            host_path: "/dev/null".into(),
            permissions: "rwm".into(),
        }];
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let refused = node.cri.start_container(&id).await.err();
        let refused = refused.with_context(|| format!("a device was made at {path}"))?;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{path}: {refused:?}");
        assert!(refused.message().contains(path), "{refused:?}");
    }
    node.assert_clean().await
}
