//! Containers: what runs, as whom, and what it sees.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, Pod, container_config, image};
use serde_json::json;
use tonic::Code;

fn script(image: &str, script: &str) -> v1::ContainerConfig {
    container_config("main", image, &["sh", "-c", script])
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

async fn ready() -> Result<(Node, String, Pod)> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    Ok((node, image, pod))
}

fn mount(container: &str, host: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container.into(),
        host_path: host.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_and_arguments_follow_image_and_request() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox_builder()?
        .config("Entrypoint", json!(["echo", "entry"]))
        .config("Cmd", json!(["command"]))
        .build()?;
    let image = node.push("entry", "latest", &made)?;
    node.cri.pull(&image).await?;
    let pod = node.pod("pod").await?;
    for (command, args, expected) in [
        (vec![], vec![], "entry command\n"),
        (vec![], vec!["args"], "entry args\n"),
        (vec!["echo", "own"], vec![], "own\n"),
        (vec!["echo"], vec!["both"], "both\n"),
    ] {
        let mut config = container_config("main", &image, &command);
        config.args = args.into_iter().map(str::to_owned).collect();
        assert_eq!(node.finish(&pod, &config).await?.stdout, expected);
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_bytes() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let mut config = script(&image, "printf %s \"$RAW\" | od -An -tx1; echo \"$PLAIN\" $PATH");
    config.envs = vec![
        v1::KeyValue { key: "RAW".into(), value: vec![0xff, 0x80, b'x'] },
        v1::KeyValue { key: "PLAIN".into(), value: b"plain text".to_vec() },
    ];
    let seen = node.finish(&pod, &config).await?.stdout;
    assert!(seen.contains("ff 80 78"), "{seen:?}");
    assert!(seen.contains("plain text /bin"), "{seen:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_the_requests_then_the_images() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let mut config = script(&image, "pwd");
    assert_eq!(node.finish(&pod, &config).await?.stdout, "/\n");
    config.working_dir = "/tmp/made/on/demand".into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "/tmp/made/on/demand\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_found_by_id_and_by_name() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let who = "id -u; id -g; id -G";
    let mut config = script(&image, who);
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n0\n0\n");

    security(&mut config).run_as_username = "user".into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "1000\n1000\n1000 2000\n");

    security(&mut config).supplemental_groups = vec![3000];
    security(&mut config).supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "1000\n1000\n1000 3000\n");

    let mut config = script(&image, who);
    security(&mut config).run_as_user = Some(v1::Int64Value { value: 4242 });
    security(&mut config).run_as_group = Some(v1::Int64Value { value: 17 });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "4242\n17\n17\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_bound_read_only_and_propagated_as_asked() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    fs::write(dir.join("file"), "from the host\n")?;
    let mut config = script(&image, "cat /data/file; echo x > /data/new && cat /data/new");
    config.mounts = vec![mount("/data", &dir)];
    assert_eq!(node.finish(&pod, &config).await?.stdout, "from the host\nx\n");
    assert_eq!(fs::read_to_string(dir.join("new"))?, "x\n");

    let mut config = script(&image, "echo y > /data/new; cat /data/new");
    config.mounts = vec![v1::Mount { readonly: true, ..mount("/data", &dir) }];
    let finished = node.finish(&pod, &config).await?;
    assert_eq!(finished.stdout, "x\n");
    assert!(finished.stderr.contains("Read-only file system"), "{}", finished.stderr);

    let optional = "grep ' /data ' /proc/self/mountinfo | cut -d ' ' -f 7";
    let mut config = script(&image, optional);
    config.mounts = vec![mount("/data", &dir)];
    assert_eq!(node.finish(&pod, &config).await?.stdout, "-\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_those_asked_for_and_no_others() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
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
    let (mut node, image, pod) = ready().await?;
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
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_seccomp_profile_is_in_force_unless_unconfined() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let mut config = script(&image, "unshare -n true && echo allowed || echo denied");
    security(&mut config).capabilities =
        Some(v1::Capability { drop_capabilities: vec!["SYS_CHROOT".into()], ..Default::default() });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "denied\n");
    let mut config = script(&image, "grep Seccomp: /proc/self/status | cut -f 2");
    security(&mut config).seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_masked_and_read_only_but_for_the_privileged() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut pod_config = node.sandbox_config("pod");
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_is_read_only() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let mut config = script(
        &image,
        "touch /x 2>/dev/null && echo rw || echo ro; echo x > /dev/shm/x && echo shm",
    );
    security(&mut config).readonly_rootfs = true;
    assert_eq!(node.finish(&pod, &config).await?.stdout, "ro\nshm\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_written_to_the_cgroup() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let files = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us \
                 cpu/cpu.cfs_period_us cpuset/cpuset.cpus /proc/self/oom_score_adj";
    let mut config = script(&image, files);
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 64 << 20;
    limits.cpu_shares = 512;
    limits.cpu_quota = 50_000;
    limits.cpu_period = 100_000;
    limits.cpuset_cpus = "0".into();
    limits.oom_score_adj = 500;
    let expected = format!("{}\n512\n50000\n100000\n0\n500\n", 64 << 20);
    assert_eq!(node.finish(&pod, &config).await?.stdout, expected);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_end_has_its_code_and_reason() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    for (ending, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 3", 3, "Error"), ("exit 255", 255, "Error")]
    {
        let status = node.finish(&pod, &script(&image, ending)).await?.status;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{ending}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0);
    }
    let mut config = script(&image, "x=a; while true; do x=$x$x; done");
    resources(&mut config).memory_limit_in_bytes = 16 << 20;
    let status = node.finish(&pod, &config).await?.status;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_a_start_error_that_names_it() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    for program in ["/no/such/program", "no-such-program", "/etc/passwd", "/etc"] {
        let config = container_config("main", &image, &[program]);
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let refused = node.cri.start_container(&id).await.err().context("it was executed")?;
        assert!(refused.message().contains(program), "{refused:?}");
        let status = node.cri.container_status(&id).await?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{program}");
        assert!(status.message.contains(program), "{status:?}");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_kills_after_the_grace_period() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let polite =
        script(&image, "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.1; done");
    let id = node.run(&pod, &polite).await?;
    wait_for_log(&node, "ready").await?;
    node.cri.stop_container(&id, 20).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 5);
    node.cri.stop_container(&id, 20).await.context("stopping twice is success")?;
    node.cri.remove_container(&id).await?;

    let mut quitter =
        script(&image, "trap 'exit 6' QUIT; echo ready; while true; do sleep 0.1; done");
    quitter.stop_signal = v1::Signal::Sigquit.into();
    quitter.log_path = "quitter.log".into();
    let id = node.run(&pod, &quitter).await?;
    node.cri.stop_container(&id, 20).await?;
    let code = node.cri.container_status(&id).await?.exit_code;
    assert!(code == 6 || code == 131, "{code}");
    node.cri.remove_container(&id).await?;

    let deaf = container_config("deaf", &image, &["sleep", "1000"]);
    let id = node.run(&pod, &deaf).await?;
    node.cri.stop_container(&id, 1).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 137);
    node.assert_clean().await
}

async fn wait_for_log(node: &Node, word: &str) -> Result<()> {
    for _ in 0..1000 {
        if node
            .read_log("pod", "main")
            .is_ok_and(|lines| lines.iter().any(|line| line.text == word))
        {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    anyhow::bail!("{word} never came")
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_listed_by_state_label_and_sandbox() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
    let mut config = container_config("one", &image, &["sleep", "1000"]);
    config.labels.insert("app".into(), "a".into());
    let one = node.run(&pod, &config).await?;
    let two = node
        .cri
        .create_container(&pod.id, &pod.config, &container_config("two", &image, &["true"]))
        .await?;
    let other = node.pod("other").await?;
    let created = v1::ContainerState::ContainerCreated.into();
    for (filter, expected) in [
        (v1::ContainerFilter { id: two.clone(), ..Default::default() }, vec![&two]),
        (
            v1::ContainerFilter {
                state: Some(v1::ContainerStateValue { state: created }),
                ..Default::default()
            },
            vec![&two],
        ),
        (
            v1::ContainerFilter {
                label_selector: [("app".to_owned(), "a".to_owned())].into(),
                ..Default::default()
            },
            vec![&one],
        ),
        (v1::ContainerFilter { pod_sandbox_id: other.id.clone(), ..Default::default() }, vec![]),
    ] {
        let request = v1::ListContainersRequest { filter: Some(filter.clone()) };
        let listed = node.cri.runtime.list_containers(request).await?.into_inner().containers;
        let ids: Vec<_> = listed.iter().map(|container| &container.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    let request = v1::ListContainerStatsRequest::default();
    let stats = node.cri.runtime.list_container_stats(request).await?.into_inner().stats;
    assert_eq!(stats.len(), 2);
    for of in &stats {
        let layer = of.writable_layer.as_ref().context("no writable layer")?;
        assert!(layer.fs_id.is_some(), "{of:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_by_name_and_leave_nothing() -> Result<()> {
    let (mut node, image, pod) = ready().await?;
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
    add("missing mount source", Code::InvalidArgument, "/no/such/source", &|config| {
        config.mounts = vec![mount("/data", Path::new("/no/such/source"))];
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
        config.mounts = vec![mount("relative", Path::new("/tmp"))];
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
