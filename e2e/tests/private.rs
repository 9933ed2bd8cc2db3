//! What other users of the node, and other containers, do not get at.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, NodeOptions, container_config, sandbox_security, security};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// A user who is nobody here.
const STRANGER: u32 = 65534;

/// Does `work` with a stranger's rights to files. They are a thread's own (setfsuid(2)), and
/// take the capabilities over files away (capabilities(7)).
fn as_stranger<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(|| {
        setfsgid(Gid::from_raw(STRANGER));
        setfsuid(Uid::from_raw(STRANGER));
        work()
    });
    thread.join().map_err(|_| anyhow::anyhow!("the stranger died"))
}

/// Everything below `dir`, without following links.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path.clone());
            }
            all.push(path);
        }
    }
    all
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// A node with a pod of the node's network that runs, and that strangers can reach as far as
/// the daemon lets them.
async fn open_node() -> Result<(Node, String, String)> {
    // A plugin that says nothing is not dropped for that.
    let nri = "registration_timeout_ms = 60000".to_owned();
    let mut node = Node::start_with(NodeOptions { nri, ..NodeOptions::default() }).await?;
    let image = node.busybox().await?;
    let mut config = node.sandbox_config("pod");
    let options = sandbox_security(&mut config).namespace_options.get_or_insert_default();
    options.network = v1::NamespaceMode::Node.into();
    let pod = node.pod_with(config).await?;
    let mut main = container_config("main", &image, &["sleep", "1000"]);
    let options = security(&mut main).namespace_options.get_or_insert_default();
    options.network = v1::NamespaceMode::Node.into();
    let id = node.run(&pod, &main).await?;
    // The test's own directory keeps everybody out, and would hide what the daemon forgot.
    fs::set_permissions(node.dir(), fs::Permissions::from_mode(0o755))?;
    Ok((node, id, image))
}

/// teeth: crates/daemon/src/listen.rs: `from_mode(0o660)` → `from_mode(0o666)`
#[tokio::test(flavor = "multi_thread")]
async fn d3_no_socket_is_reachable_by_name_or_by_strangers() -> Result<()> {
    let (mut node, id, _) = open_node().await?;
    // A socket in the abstract namespace is reachable from whoever shares the network.
    let names = node.cri.exec(&id, &["cat", "/proc/net/unix"], 10).await?.stdout;
    let names = String::from_utf8(names)?;
    assert!(names.lines().count() > 1, "nothing to see: {names}");
    let reachable = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        // One of a pair may get a name of the kernel's (unix(7), "Autobind"), and hears its
        // peer alone: what can be reached listens, or takes datagrams.
        let listens = words.get(3) == Some(&"00010000") || words.get(4) == Some(&"0002");
        listens && words.last().is_some_and(|name| name.starts_with('@'))
    };
    let bare: Vec<_> = names.lines().filter(reachable).collect();
    assert!(bare.is_empty(), "{bare:?}");

    let sockets: Vec<_> = below(node.dir()).into_iter().filter(|path| is_socket(path)).collect();
    assert!(sockets.len() >= 2, "those of the daemon and of a shim: {sockets:?}");
    for socket in &sockets {
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    }
    let tried = sockets.clone();
    let reached = as_stranger(move || {
        tried.into_iter().filter(|socket| UnixStream::connect(socket).is_ok()).collect::<Vec<_>>()
    })?;
    assert!(reached.is_empty(), "a stranger reaches {reached:?}");
    node.assert_clean().await
}

/// Connects as a stranger and waits for what comes: `closed`, or nothing after 20 seconds.
const CONNECT: &str = "alarm 20; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; \
    connect($s, sockaddr_un($ARGV[0])) or die \"connect: $!\"; \
    my $n = sysread($s, my $b, 1); print !defined $n || $n == 0 ? 'closed' : 'heard';";

/// teeth: crates/cri/src/serve.rs: `Ok(peer) if peer.uid() == 0 => true,` → `Ok(_) if true => true,`
/// teeth: crates/shim/src/daemon.rs: `stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)` → `true`
/// teeth: crates/nri/src/listen.rs: `stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)` → `true`
#[tokio::test(flavor = "multi_thread")]
async fn d3_a_stranger_is_not_heard_even_at_a_socket_that_is_open_to_all() -> Result<()> {
    let (node, _, _) = open_node().await?;
    let dirs = ["run", "nri"].map(|name| node.dir().join(name));
    let all: Vec<_> = dirs.iter().flat_map(|dir| below(dir)).chain(dirs.clone()).collect();
    for path in &all {
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_dir() || kind.is_socket() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        }
    }
    let sockets: Vec<_> = all.iter().filter(|path| is_socket(path)).collect();
    assert!(sockets.len() >= 3, "those of the daemon, of plugins and of a shim: {sockets:?}");
    for socket in sockets {
        let mut perl = std::process::Command::new("/usr/bin/perl");
        perl.args(["-MSocket", "-e", CONNECT]).arg(socket).uid(STRANGER).gid(STRANGER);
        let said = perl.output()?;
        let answer = String::from_utf8_lossy(&said.stdout);
        assert_eq!(answer, "closed", "{}: {said:?}", socket.display());
    }
    node.assert_clean().await
}

/// teeth: crates/engine/src/open.rs: `files::make_dir(&dir, 0o700)?;` → `files::make_dir(&dir, 0o755)?;`
#[tokio::test(flavor = "multi_thread")]
async fn d4_strangers_read_nothing_of_ours() -> Result<()> {
    let (node, _, _) = open_node().await?;
    let (root, state) = (node.dir().join("root"), node.dir().join("run"));
    let mode = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.permissions().mode());
    assert_eq!(mode(&root)? & 0o7777, 0o700);
    assert_eq!(mode(&state)? & 0o7777, 0o711);
    let all: Vec<_> = [below(&root), below(&state)].concat();
    assert!(all.len() > 20, "nothing to see: {all:?}");
    for socket in all.iter().filter(|path| is_socket(path)) {
        assert_eq!(mode(socket)? & 0o007, 0, "{}", socket.display());
    }
    // By their names, which are no secret.
    let seen = as_stranger(move || {
        let read = |path: &PathBuf| fs::File::open(path).is_ok() || fs::read_dir(path).is_ok();
        all.into_iter().filter(read).collect::<Vec<_>>()
    })?;
    assert!(seen.is_empty(), "a stranger reads {seen:?}");
    node.assert_clean().await
}

/// What every container of the image has.
const OF_ALL: [&str; 3] = ["PATH=", "HOSTNAME=", "HOME="];

/// teeth: crates/cri/src/translate/container.rs: `env: config.envs.iter().map(env).collect(),` → `env: Vec::new(),`
#[tokio::test(flavor = "multi_thread")]
async fn d5_each_container_has_its_own_environment_and_no_other() -> Result<()> {
    let pairs = std::env::var("BERTH_PAIRS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut running = Vec::new();
    for number in 0..pairs {
        for side in ["left", "right"] {
            let name = format!("{side}{number}");
            let mut config = container_config(&name, &image, &["env"]);
            let value = format!("{name}-{}", "x".repeat(number % 40)).into_bytes();
            config.envs = vec![v1::KeyValue { key: format!("OF_{name}"), value }];
            let (mut cri, pod) = (node.cri.clone(), pod.clone());
            running.push(tokio::spawn(async move {
                let id = cri.create_container(&pod.id, &pod.config, &config).await?;
                cri.start_container(&id).await?;
                Ok::<_, tonic::Status>((id, name, number))
            }));
        }
    }
    for running in running {
        let (id, name, number) = running.await??;
        node.wait_exit(&id).await?;
        let lines = node.read_log("pod", &name)?;
        let mut environment: Vec<_> =
            lines.iter().map(|line| line.text.as_str()).filter(|line| !line.is_empty()).collect();
        environment.retain(|line| !OF_ALL.iter().any(|name| line.starts_with(name)));
        let expected = format!("OF_{name}={name}-{}", "x".repeat(number % 40));
        assert_eq!(environment, [expected.as_str()], "{name}");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}
