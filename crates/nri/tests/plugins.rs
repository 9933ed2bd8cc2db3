//! Plugins that connect, hear, refuse, adjust, and fail, against a plugin of the tests'
//! own making.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod node;

use std::time::Duration;

use berth_nri::Error;
use berth_nri::api::{
    ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Event,
    KeyValue, LinuxContainerUpdate, LinuxResources, StopContainerResponse, SynchronizeRequest,
    UpdateContainerResponse, UpdateContainersRequest, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};
use berth_testkit::nri::{Options, Plugin, Reaction, message};
use node::{Test, config, container, pod, start, start_with};
use tokio::sync::oneshot;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);

fn env(key: &str, value: &str) -> ContainerAdjustment {
    let variable = KeyValue { key: key.into(), value: value.into() };
    ContainerAdjustment { env: vec![variable], ..ContainerAdjustment::default() }
}

/// Adjusts every container that is created, and objects to nothing.
fn adjusting(index: &str, adjust: ContainerAdjustment) -> Options {
    Options::reacting(index, move |heard| match heard.method.as_str() {
        "CreateContainer" => Reaction::answer(&CreateContainerResponse {
            adjust: Some(adjust.clone()),
            ..CreateContainerResponse::default()
        }),
        _ => Reaction::Nothing,
    })
}

async fn until_it_hears_nothing(test: &Test) {
    let quiet = async {
        while test.nri.wants(Event::CreateContainer) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, quiet).await.expect("a plugin that is gone is still wanted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_hears_each_event_once_in_order_and_only_what_it_wants() {
    let test = start().await;
    assert!(!test.nri.wants(Event::RunPodSandbox), "there is no plugin");
    let all = Plugin::connect(&test.socket, Options::observer("10", "all")).await.unwrap();
    let mut few = Options::observer("20", "few");
    few.events = 1 << (Event::StopPodSandbox as i32 - 1);
    let few = Plugin::connect(&test.socket, few).await.unwrap();
    let (nri, pod, c) = (&test.nri, pod("pod"), container("c"));
    nri.run_pod_sandbox(&pod).await.unwrap();
    nri.create_container(&pod, &c).await.unwrap();
    nri.post_create_container(&pod, &c).await.unwrap();
    nri.start_container(&pod, &c).await.unwrap();
    nri.post_start_container(&pod, &c).await.unwrap();
    nri.update_container(&pod, &c, LinuxResources::default()).await.unwrap();
    nri.post_update_container(&pod, &c).await.unwrap();
    nri.stop_container(&pod, &c).await.unwrap();
    nri.remove_container(&pod, &c).await.unwrap();
    nri.update_pod_sandbox(&pod, None, None).await.unwrap();
    nri.post_update_pod_sandbox(&pod).await.unwrap();
    nri.stop_pod_sandbox(&pod).await.unwrap();
    nri.remove_pod_sandbox(&pod).await.unwrap();
    let mut expected = vec![
        "RunPodSandbox",
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "StopContainer",
        "RemoveContainer",
        "UpdatePodSandbox",
        "PostUpdatePodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    assert_eq!(all.methods("pod"), expected);
    expected.retain(|method| *method == "StopPodSandbox");
    assert_eq!(few.methods("pod"), expected);
    let heard = all.wait_for("StartContainer", |heard| heard.method == "StartContainer").await;
    assert_eq!(heard.unwrap().container().id, "c");
    drop((all, few));
    until_it_hears_nothing(&test).await;
    test.nri.shutdown().await;
    assert!(!test.socket.exists());
}

/// Time passes by itself here, so that nobody waits.
///
/// teeth: crates/nri/src/listen.rs: `Ok(_) => false,` → `Ok(_) => { std::fs::remove_file(socket).ok(); true }`
#[tokio::test(start_paused = true)]
async fn a_socket_that_another_runtime_has_is_left_to_it_and_taken_once_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let config = node::config(dir.path());
    let socket = config.socket.clone().unwrap();
    let other = tokio::net::UnixListener::bind(&socket).unwrap();
    let nri = berth_nri::Nri::new(config);
    nri.start(std::sync::Arc::new(node::Node::default())).await.unwrap();
    nri.run_pod_sandbox(&pod("goes on")).await.unwrap();
    assert!(!nri.status().listening);
    // What looks whether anybody listens, again and again.
    for _ in 0..4 {
        let _looked = other.accept().await.unwrap();
    }
    let (_client, answered) =
        tokio::join!(tokio::net::UnixStream::connect(&socket), other.accept());
    answered.unwrap();
    assert!(!nri.status().listening);

    drop(other);
    let taken = async {
        while !nri.status().listening {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    timeout(LONG * 10, taken).await.unwrap();
    tokio::time::resume();
    let plugin = Plugin::connect(&socket, Options::observer("10", "late")).await.unwrap();
    // It has joined once it has answered what it was told last.
    let joined = async {
        while nri.status().plugins.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, joined).await.unwrap();
    let plugins = nri.status().plugins;
    assert_eq!((plugins[0].index.as_str(), plugins[0].name.as_str()), ("10", "late"));
    drop(plugin);
    nri.shutdown().await;
    assert!(!socket.exists());
}

/// teeth: crates/nri/src/synchronize.rs: `let _still = still.map_err(going_away)?;` → `drop(still);`
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_be_while_a_plugin_joins_is_told_once() {
    let test = start().await;
    test.node.snapshot.lock().unwrap().pods.push(pod("old"));
    let passage = test.nri.pass().await.unwrap();
    let joining = tokio::spawn({
        let socket = test.socket.clone();
        async move { Plugin::connect(&socket, Options::observer("00", "late")).await }
    });
    // It is expected, so hooks ask for their turn, and it waits for what is being made.
    let expected = async {
        while !test.nri.wants(Event::RunPodSandbox) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, expected).await.unwrap();
    test.nri.run_pod_sandbox(&pod("new")).await.unwrap();
    test.node.snapshot.lock().unwrap().pods.push(pod("new"));
    drop(passage);
    let plugin = joining.await.unwrap().unwrap();
    let told = plugin.heard().into_iter().find(|heard| heard.method == "Synchronize").unwrap();
    let ids: Vec<_> =
        told.read::<SynchronizeRequest>().unwrap().pods.into_iter().map(|p| p.id).collect();
    assert_eq!(ids, ["old", "new"]);
    assert!(plugin.methods("new").is_empty(), "it was told already");
    let _passage = timeout(LONG, test.nri.pass()).await.unwrap().unwrap();
    test.nri.stop_pod_sandbox(&pod("new")).await.unwrap();
    assert_eq!(plugin.methods("new"), ["StopPodSandbox"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_to_be_while_a_plugin_is_told_what_exists() {
    let test = start().await;
    let (release, released) = oneshot::channel();
    let held = std::sync::Mutex::new(Some(released));
    let options = Options::reacting("00", move |heard| match heard.method.as_str() {
        "Synchronize" => Reaction::Wait(held.lock().unwrap().take().unwrap()),
        _ => Reaction::Nothing,
    });
    let plugin = Plugin::connect(&test.socket, options).await.unwrap();
    let nri = test.nri.clone();
    let creating = tokio::spawn(async move {
        let _passage = nri.pass().await.unwrap();
        nri.create_container(&pod("pod"), &container("c")).await.map(drop)
    });
    tokio::task::yield_now().await;
    assert!(!creating.is_finished());
    assert!(plugin.methods("c").is_empty());
    release.send(()).unwrap();
    timeout(LONG, creating).await.unwrap().unwrap().unwrap();
    assert!(plugin.methods("c").contains(&"CreateContainer".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_a_plugin_was_told_of_when_it_joined_is_not_told_again() {
    let test = start().await;
    test.node.snapshot.lock().unwrap().ended.push("c".into());
    let plugin = Plugin::connect(&test.socket, Options::observer("00", "late")).await.unwrap();
    test.nri.stop_container(&pod("pod"), &container("c")).await.unwrap();
    test.nri.stop_container(&pod("pod"), &container("d")).await.unwrap();
    assert!(plugin.methods("c").is_empty());
    assert_eq!(plugin.methods("d"), ["StopContainer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_larger_than_a_message_is_told_in_parts() {
    let test = start().await;
    let text = "x".repeat(64 << 10);
    for n in 0..200 {
        let mut one = container(&format!("c{n}"));
        one.annotations.insert("text".into(), text.clone());
        test.node.snapshot.lock().unwrap().containers.push(one);
    }
    let plugin = Plugin::connect(&test.socket, Options::observer("00", "late")).await.unwrap();
    let parts: Vec<SynchronizeRequest> = plugin
        .heard()
        .iter()
        .filter(|heard| heard.method == "Synchronize")
        .map(|heard| heard.read().unwrap())
        .collect();
    assert!(parts.len() > 2);
    let ids: Vec<_> = parts.iter().flat_map(|part| &part.containers).map(|c| &c.id).collect();
    assert_eq!(ids.len(), 200);
    assert_eq!(parts.iter().map(|part| part.more).filter(|more| !more).count(), 1);

    let deaf = Options::reacting("10", |_| Reaction::Answer(Vec::new()));
    let deaf = Plugin::register(&test.socket, deaf).await.unwrap();
    deaf.wait_closed().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_adjust_in_the_order_of_their_indices_and_may_not_contradict() {
    let test = start().await;
    let second = Plugin::connect(&test.socket, adjusting("20", env("B", "2"))).await.unwrap();
    let _first = Plugin::connect(&test.socket, adjusting("10", env("A", "1"))).await.unwrap();
    let wanted = test.nri.create_container(&pod("pod"), &container("c")).await.unwrap();
    let keys: Vec<_> = wanted.adjustment.env.iter().map(|v| v.key.as_str()).collect();
    assert_eq!(keys, ["A", "B"]);
    let seen =
        second.wait_for("creation", |heard| heard.method == "CreateContainer").await.unwrap();
    assert_eq!(seen.container().env, ["A=1"], "it sees what the first one adjusted");

    let _third = Plugin::connect(&test.socket, adjusting("30", env("A", "3"))).await.unwrap();
    let refused = test.nri.create_container(&pod("pod"), &container("c")).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Conflict { first, second, .. }
        if first == "10-reacting" && second == "30-reacting"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_in_the_plugins_words_and_ends_the_hook() {
    let test = start().await;
    let options = Options::reacting("10", |heard| match heard.method.as_str() {
        "Synchronize" => Reaction::Nothing,
        _ => Reaction::Refuse("not on my node".into()),
    });
    let _first = Plugin::connect(&test.socket, options).await.unwrap();
    let last = Plugin::connect(&test.socket, Options::observer("20", "last")).await.unwrap();
    let refused = test.nri.run_pod_sandbox(&pod("pod")).await.unwrap_err();
    assert_eq!(refused.kind(), berth_model::ErrorKind::FailedPrecondition);
    let text = refused.to_string();
    assert!(text.contains("10-reacting") && text.contains("not on my node"), "{text}");
    assert!(last.methods("pod").is_empty());
    test.nri.create_container(&pod("pod"), &container("c")).await.unwrap_err();
    test.nri.start_container(&pod("pod"), &container("c")).await.unwrap_err();
}

/// teeth: crates/nri/src/relay.rs: `Ok(ValidateContainerAdjustmentResponse { reject: false, .. }) => continue,` → `Ok(ValidateContainerAdjustmentResponse { .. }) => continue,`
#[tokio::test(flavor = "multi_thread")]
async fn a_validator_sees_who_set_what_and_can_reject_it() {
    let test = start().await;
    let _adjuster = Plugin::connect(&test.socket, adjusting("50", env("A", "1"))).await.unwrap();
    let mut options = Options::reacting("10", |heard| match heard.method.as_str() {
        "ValidateContainerAdjustment" => {
            let asked: ValidateContainerAdjustmentRequest = heard.read().unwrap();
            let owners = asked.owners.unwrap_or_default();
            let env = &owners.owners["c"].compound[&6].owners;
            assert_eq!(asked.container.unwrap_or_default().env, Vec::<String>::new());
            let reason = format!("{} set A", env["A"]);
            Reaction::answer(&ValidateContainerAdjustmentResponse { reject: true, reason })
        }
        _ => Reaction::Nothing,
    });
    options.events = 1 << (Event::ValidateContainerAdjustment as i32 - 1);
    let _validator = Plugin::connect(&test.socket, options).await.unwrap();
    let rejected = test.nri.create_container(&pod("pod"), &container("c")).await.unwrap_err();
    assert!(matches!(&rejected, Error::Rejected { reason, .. } if reason == "50-reacting set A"));
}

/// teeth: crates/nri/src/error.rs: `matches!(self, Self::Closed | Self::Deadline(_) | Self::Unreadable(_))` → `matches!(self, Self::Closed | Self::Unreadable(_))`
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_does_not_answer_is_dropped_and_the_pod_goes_on() {
    let quick = Duration::from_millis(200);
    let test = start_with(|config| berth_nri::Config { request_timeout: quick, ..config }).await;
    let silent = Options::reacting("10", |heard| match heard.method.as_str() {
        "Synchronize" => Reaction::Nothing,
        _ => Reaction::Silence,
    });
    let silent = Plugin::connect(&test.socket, silent).await.unwrap();
    let closing = Options::reacting("20", |heard| match heard.method.as_str() {
        "Synchronize" => Reaction::Nothing,
        _ => Reaction::Close,
    });
    let closing = Plugin::connect(&test.socket, closing).await.unwrap();
    let good = Plugin::connect(&test.socket, Options::observer("30", "good")).await.unwrap();
    test.nri.run_pod_sandbox(&pod("pod")).await.unwrap();
    silent.wait_closed().await.unwrap();
    closing.wait_closed().await.unwrap();
    assert_eq!(good.methods("pod"), ["RunPodSandbox"]);
    let again = Plugin::connect(&test.socket, Options::observer("10", "again")).await.unwrap();
    test.nri.stop_pod_sandbox(&pod("pod")).await.unwrap();
    assert_eq!(again.methods("pod"), ["StopPodSandbox"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_older_than_its_events_hears_of_them_as_changes_of_state() {
    let test = start().await;
    let old = Options::reacting("10", |heard| match heard.method.as_str() {
        "StartContainer" | "ValidateContainerAdjustment" => Reaction::Unimplemented,
        _ => Reaction::Nothing,
    });
    let old = Plugin::connect(&test.socket, old).await.unwrap();
    for _ in 0..2 {
        test.nri.start_container(&pod("pod"), &container("c")).await.unwrap();
    }
    let methods: Vec<_> = old.heard().into_iter().map(|heard| heard.method).skip(1).collect();
    assert_eq!(methods[1..], ["StartContainer", "StateChange", "StateChange"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_reach_the_runtime_from_answers_and_unasked() {
    let test = start().await;
    let update = |id: &str| ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate { resources: Some(LinuxResources::default()) }),
        ignore_failure: false,
    };
    let options = Options::reacting("10", move |heard| match heard.method.as_str() {
        "StopContainer" => Reaction::answer(&StopContainerResponse { update: vec![update("b")] }),
        "UpdateContainer" => Reaction::answer(&UpdateContainerResponse {
            update: vec![update("d")],
            evict: vec![ContainerEviction { container_id: "e".into(), reason: "full".into() }],
        }),
        _ => Reaction::Nothing,
    });
    let plugin = Plugin::connect(&test.socket, options).await.unwrap();
    let wanted = test.nri.stop_container(&pod("pod"), &container("c")).await.unwrap();
    assert_eq!(wanted.updates.len(), 1);
    let (_, wanted) = test
        .nri
        .update_container(&pod("pod"), &container("c"), LinuxResources::default())
        .await
        .unwrap();
    assert_eq!((wanted.updates[0].container_id.as_str(), wanted.evictions.len()), ("d", 1));
    let request =
        UpdateContainersRequest { update: vec![update("b"), update("unknown")], evict: vec![] };
    assert_eq!(plugin.update(&request).await.unwrap(), ["unknown"]);
    assert_eq!(test.node.updates.lock().unwrap().len(), 2);
    let flood = UpdateContainersRequest { update: vec![update("b"); 5000], evict: vec![] };
    plugin.update(&flood).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_register_as_it_must_is_cut_off() {
    let quick = Duration::from_millis(300);
    let short = |config| berth_nri::Config { registration_timeout: quick, ..config };
    let test = start_with(short).await;
    let stream = tokio::net::UnixStream::connect(&test.socket).await.unwrap();
    let mute = Plugin::over(stream, Options::observer("10", "mute"));
    mute.wait_closed().await.unwrap();
    for (index, name) in
        [("1", "a"), ("1a", "a"), ("10", ""), ("10", "a/b"), ("10", &"x".repeat(256))]
    {
        let refused = Plugin::register(&test.socket, Options::observer(index, name)).await;
        assert!(refused.is_err(), "{index}-{name}");
    }
    let mut strange = Options::observer("10", "strange");
    strange.events = 1 << 20;
    let strange = Plugin::register(&test.socket, strange).await.unwrap();
    strange.wait_closed().await.unwrap();
    assert!(!test.nri.wants(Event::RunPodSandbox));
}

/// teeth: crates/nri/src/connection.rs: `asked.try_send((message.stream, request)).is_ok()` → `{ asked.try_send((message.stream, request)).ok(); true }`
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_floods_is_cut_off() {
    let test = start().await;
    let plugin = Plugin::connect(&test.socket, Options::observer("10", "flood")).await.unwrap();
    let huge = [1u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
    plugin.send(huge).await.unwrap();
    plugin.wait_closed().await.unwrap();

    let plugin = Plugin::connect(&test.socket, Options::observer("10", "flood")).await.unwrap();
    let mut many = Vec::new();
    for n in 0..20_000 {
        many.extend(message(2, 1 + 2 * n, 1, &[]).unwrap());
    }
    plugin.send(many).await.unwrap();
    plugin.wait_closed().await.unwrap();
    test.nri.run_pod_sandbox(&pod("pod")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_the_directory_gets_its_socket_and_is_ended_with_the_runtime() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let config = berth_nri::Config {
        registration_timeout: Duration::from_millis(300),
        ..config(dir.path())
    };
    std::fs::create_dir_all(&config.plugins).unwrap();
    let program = config.plugins.join("10-shell");
    // It says what it was given, and never registers.
    let script = "#!/bin/sh\nenv > $0.env; ls -l /proc/$$/fd > $0.fds; exec sleep 1000 <&3\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let nri = berth_nri::Nri::new(config.clone());
    nri.start(std::sync::Arc::new(node::Node::default())).await.unwrap();
    let text = |suffix: &str| {
        std::fs::read_to_string(config.plugins.join(format!("10-shell{suffix}"))).unwrap()
    };
    let env = text(".env");
    for expected in ["NRI_PLUGIN_NAME=shell", "NRI_PLUGIN_IDX=10", "NRI_PLUGIN_SOCKET=3"] {
        assert!(env.contains(expected), "{env}");
    }
    assert!(text(".fds").contains("3 -> socket:"), "{}", text(".fds"));
    nri.shutdown().await;
    let path = program.to_str().unwrap();
    let left = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|process| {
        std::fs::read(process.path().join("environ")).is_ok_and(|environ| {
            String::from_utf8_lossy(&environ).contains("NRI_PLUGIN_NAME=shell")
        }) && std::fs::read_to_string(process.path().join("cmdline"))
            .is_ok_and(|line| line.contains(path))
    });
    assert!(!left, "the program runs still");
}
