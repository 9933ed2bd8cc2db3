//! What holds a container: devices, capabilities, seccomp, hidden paths.

use std::fs;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, sandbox_security, script, security};

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_those_asked_for_and_no_others() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let probe = "ls -d /dev/kmsg /dev/null /dev/urandom /dev/zero 2>/dev/null; \
                 mknod /tmp/kmsg c 1 11 2>/dev/null; \
                 { head -c 0 /tmp/kmsg; } 2>/dev/null && echo readable || echo denied";
    let mut config = script(&image, probe);
    assert_eq!(
        node.finish(&pod, &config).await?.stdout,
        "/dev/null\n/dev/urandom\n/dev/zero\ndenied\n"
    );

    config.devices = vec![v1::Device {
        container_path: "/dev/given".into(),
        host_path: "/dev/full".into(),
        permissions: "rw".into(),
    }];
    config.command[2] = "head -c 2 /dev/given | wc -c; stat -c %F /dev/given".into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "2\ncharacter special file\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_the_default_set_with_what_was_added_and_dropped() -> Result<()> {
    const NET_RAW: u64 = 1 << 13;
    const SYS_ADMIN: u64 = 1 << 21;
    const CHOWN: u64 = 1;
    let (mut node, image, pod) = Node::with_pod().await?;
    let status = "grep -E 'Cap(Inh|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status | cut -f 2";
    let read = |text: &str| -> Result<Vec<u64>> {
        text.lines().map(|line| Ok(u64::from_str_radix(line, 16)?)).collect()
    };
    let mut config = script(&image, status);
    let plain = read(&node.finish(&pod, &config).await?.stdout)?;
    let [inheritable, effective, bounding, ambient, no_new_privs, seccomp] = plain[..] else {
        anyhow::bail!("not six lines: {plain:?}");
    };
    assert_eq!((inheritable, ambient, no_new_privs, seccomp), (0, 0, 0, 2));
    assert_eq!(effective, bounding);
    assert!(effective & CHOWN != 0 && effective & SYS_ADMIN == 0, "{effective:x}");

    security(&mut config).no_new_privs = true;
    security(&mut config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        drop_capabilities: vec!["CHOWN".into()],
        ..Default::default()
    });
    let changed = read(&node.finish(&pod, &config).await?.stdout)?;
    assert!(changed[1] & SYS_ADMIN != 0 && changed[1] & CHOWN == 0, "{changed:x?}");
    assert_eq!(changed[4], 1);

    security(&mut config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["NET_RAW".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    let changed = read(&node.finish(&pod, &config).await?.stdout)?;
    assert_eq!(changed[1], NET_RAW);

    security(&mut config).capabilities = Some(v1::Capability {
        add_ambient_capabilities: vec!["NET_RAW".into()],
        ..Default::default()
    });
    let changed = read(&node.finish(&pod, &config).await?.stdout)?;
    assert_eq!((changed[0], changed[3]), (NET_RAW, NET_RAW));
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_seccomp_profile_is_in_force_unless_unconfined() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    // The kernel lets anyone make a user namespace; the default profile does not.
    let probe = "unshare -U true 2>/dev/null && echo allowed || echo denied; \
                 grep Seccomp: /proc/self/status | cut -f 2";
    let mut config = script(&image, probe);
    assert_eq!(node.finish(&pod, &config).await?.stdout, "denied\n2\n");
    let id = node.run(&pod, &script(&image, "sleep 1000")).await?;
    let answer = node.cri.exec(&id, &["sh", "-c", probe], 10).await?;
    assert_eq!(String::from_utf8(answer.stdout)?, "denied\n2\n");
    node.cri.remove_container(&id).await?;

    security(&mut config).seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "allowed\n0\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_masked_and_read_only_but_for_the_privileged() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut pod_config = node.sandbox_config("pod");
    sandbox_security(&mut pod_config).privileged = true;
    let pod = node.pod_with(pod_config).await?;
    let probe = "head -c 1 /proc/timer_list | wc -c; ls /sys/firmware | wc -l; \
                 touch /proc/sys/kernel/domainname 2>/dev/null && echo rw || echo ro; \
                 mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo rw || echo ro";
    let mut config = script(&image, probe);
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n0\nro\nro\n");

    let status = "grep CapEff /proc/self/status | cut -f 2; grep Seccomp: /proc/self/status | cut -f 2; \
                  ls -d /dev/kmsg; mount -t tmpfs none /tmp && echo mounted";
    config.command[2] = status.into();
    security(&mut config).privileged = true;
    let seen = node.finish(&pod, &config).await?.stdout;
    let bounding = fs::read_to_string("/proc/self/status")?;
    let all =
        bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    assert_eq!(seen, format!("{}\n0\n/dev/kmsg\nmounted\n", all.trim()));
    node.assert_clean().await
}

/// As `kubectl debug --profile=sysadmin` has it: kubelet says anew what the pod is. All else of
/// the pod is what it was run with.
///
/// teeth: crates/cri/src/container.rs: `if container && !sandbox && !now` → `if container && !sandbox || now`
/// teeth: crates/cri/src/container.rs: `if container && !sandbox && !now` → `if false && !now`
#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_may_come_late_to_a_pod() -> Result<()> {
    let (mut node, image, mut pod) = Node::with_pod().await?;
    let mut config = script(&image, "mount -t tmpfs none /tmp && echo mounted");
    security(&mut config).privileged = true;
    let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
    let refused = refused.context("privileged, and the pod is not")?;
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("privileged"), "{refused:?}");
    sandbox_security(&mut pod.config).privileged = true;
    assert_eq!(node.finish(&pod, &config).await?.stdout, "mounted\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_run_later_is_held_like_the_first() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let status = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:|Groups' /proc/self/status; \
                  id; cat /proc/self/oom_score_adj";
    let mut config = script(&image, &format!("{status}; sleep 1000"));
    security(&mut config).run_as_username = "user".into();
    security(&mut config).no_new_privs = true;
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "0").await?;
    let first = berth_testkit::log::text(&node.read_log("pod", "main")?, "stdout");
    let later = node.cri.exec(&id, &["sh", "-c", status], 10).await?;
    assert_eq!(String::from_utf8(later.stdout)?, first);
    node.assert_clean().await
}
