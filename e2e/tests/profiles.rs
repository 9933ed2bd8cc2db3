//! AppArmor, SELinux and seccomp profiles that a request names.

use std::fs;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_api::v1::security_profile::ProfileType;
use berth_testkit::{Node, Pod, sandbox_security, script, security};
use tonic::Code;

fn profile(kind: ProfileType, name: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

async fn refusal(
    node: &mut Node,
    pod: &Pod,
    config: &v1::ContainerConfig,
) -> Result<tonic::Status> {
    let refused = node.cri.create_container(&pod.id, &pod.config, config).await.err();
    refused.with_context(|| format!("{:?} was taken", config.linux))
}

/// Whatever the host has: a profile that is not loaded confines nobody, so nothing runs.
///
/// teeth: crates/engine/src/lsm/apparmor.rs: `(Profile::Localhost(name), None) => Err(` → `(Profile::Localhost(name), None) if name.is_empty() => Err(`
#[tokio::test(flavor = "multi_thread")]
#[expect(deprecated, reason = "older clients name profiles there")]
async fn an_apparmor_profile_that_is_not_loaded_is_refused_by_name() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "true");
    for name in ["localhost/no-such-profile", "no-such-profile"] {
        security(&mut config).apparmor = profile(ProfileType::Localhost, name);
        let refused = refusal(&mut node, &pod, &config).await?;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("no-such-profile"), "{refused:?}");
    }
    security(&mut config).apparmor = None;
    security(&mut config).apparmor_profile = "localhost/no-such-profile".into();
    let refused = refusal(&mut node, &pod, &config).await?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    // The newer field wins over the name.
    security(&mut config).apparmor = profile(ProfileType::Unconfined, "");
    config.command[2] = "echo ran".into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "ran\n");
    security(&mut config).apparmor = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(node.finish(&pod, &config).await?.stdout, "ran\n");
    security(&mut config).apparmor = profile(ProfileType::Localhost, "");
    assert_eq!(refusal(&mut node, &pod, &config).await?.code(), Code::InvalidArgument);
    node.assert_clean().await
}

/// A host without SELinux has no contexts to give; words that are none are refused anyway.
#[tokio::test(flavor = "multi_thread")]
async fn selinux_options_are_checked_and_of_no_effect_without_selinux() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let options = v1::SeLinuxOption {
        user: "system_u".into(),
        role: "system_r".into(),
        r#type: "svirt_lxc_net_t".into(),
        level: "s0:c4,c5".into(),
    };
    let mut config = node.sandbox_config("pod");
    sandbox_security(&mut config).selinux_options = Some(options.clone());
    let pod = node.pod_with(config).await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    let mut config = script(&image, "echo ran");
    config.mounts = vec![v1::Mount { selinux_relabel: true, ..berth_testkit::bind("/v", &dir) }];
    security(&mut config).selinux_options = Some(options.clone());
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, "ran\n", "{}", finished.stderr);
    assert!(finished.status.mounts[0].selinux_relabel);

    let wrong = v1::SeLinuxOption { level: "s0,c4,c5".into(), ..options };
    security(&mut config).selinux_options = Some(wrong.clone());
    let refused = refusal(&mut node, &pod, &config).await?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("selinux_options.level"), "{refused:?}");
    let mut config = node.sandbox_config("other");
    sandbox_security(&mut config).selinux_options = Some(wrong);
    let refused = node.cri.run_sandbox(&config).await.err().context("it was taken")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    node.assert_clean().await
}

/// The file is read when the container is made; what is not there, or not a profile, is
/// refused, and never taken for "none" (CVE-2023-2431).
///
/// teeth: crates/engine/src/container/mounts.rs: `other => other.map(Some),` → `other => other.map(|_| None),`
#[tokio::test(flavor = "multi_thread")]
async fn d7_a_seccomp_profile_of_the_node_is_in_force_or_the_request_refused() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let file = node.dir().join("no-mkdir.json");
    fs::write(
        &file,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )?;
    let path = file.display().to_string();
    let mut config = script(&image, "mkdir /tmp/x 2>/dev/null && echo made || echo denied");
    security(&mut config).seccomp = profile(ProfileType::Localhost, &path);
    assert_eq!(node.finish(&pod, &config).await?.stdout, "denied\n");
    fs::write(&file, "{\"defaultAction\":")?;
    for bad in [path.as_str(), "", "/nonexistent/profile.json", "../../etc/passwd"] {
        security(&mut config).seccomp = profile(ProfileType::Localhost, bad);
        let refused = refusal(&mut node, &pod, &config).await?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}: {refused:?}");
    }
    node.assert_clean().await
}
