//! Terminals.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;

use berth_oci_runtime::{Error, ExecRequest, Stdio, exec, start};
use oci_spec::runtime::Process;
use serde_json::json;

use crate::fixture::{Fixture, PATIENCE, await_readable, wait};

crate::tests![
    a_terminal_is_the_containers_own,
    a_further_process_gets_a_terminal,
    r8_a_console_that_is_a_link_is_refused,
    r10_streams_that_are_files_keep_their_owner,
];

/// Reads a terminal until its other half is closed.
fn read_terminal(master: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        await_readable(master.as_fd());
        match rustix::io::read(master, &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::IO) => break,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(errno) => panic!("{errno}"),
        }
    }
    String::from_utf8(text).unwrap().replace("\r\n", "\n")
}

const LOOK: &str = "tty; stty size; stat -c '%F %u %t:%T' /dev/console; [ -t 0 ] && [ -t 2 ] && \
    echo all; echo > /dev/tty && echo controlling";

fn a_terminal_is_the_containers_own() {
    let mut fixture = Fixture::shell(LOOK);
    fixture.spec["process"]["terminal"] = json!(true);
    fixture.spec["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let created = fixture.create(Stdio::Terminal).unwrap();
    let (master, pidfd) = (created.console.unwrap(), created.pidfd);
    start(created.start, PATIENCE).unwrap();
    let text = read_terminal(&master);
    assert_eq!(wait(&pidfd), 0, "{text}");
    let expected = "/dev/pts/0\n33 77\ncharacter special file 1000 88:0\nall\n\ncontrolling\n";
    assert_eq!(text, expected);
    drop((master, pidfd));
    fixture.assert_clean();
}

fn a_further_process_gets_a_terminal() {
    let fixture = Fixture::shell("echo up; sleep 60");
    let running = fixture.start().unwrap();
    running.first_line();
    let mut process = fixture.process(&["sh", "-c", "tty; [ -t 1 ] && echo yes; exit 5"]);
    process["terminal"] = json!(true);
    let process: Process = serde_json::from_value(process).unwrap();
    let cgroup = fixture.cgroup();
    let created = exec(ExecRequest {
        id: &fixture.id,
        init: running.pidfd.as_fd(),
        spec: &fixture.typed(),
        process: &process,
        stdio: Stdio::Terminal,
        cgroup: Some(&cgroup),
    })
    .unwrap()
    .wait(PATIENCE)
    .unwrap();
    start(created.start, PATIENCE).unwrap();
    let text = read_terminal(created.console.as_ref().unwrap());
    assert_eq!((text.as_str(), wait(&created.pidfd)), ("/dev/pts/0\nyes\n", 5));
    drop((created.console, created.pidfd));
    running.kill();
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init/console.rs: `root.ensure_file(path, Links::Refused)?` →
/// `root.ensure_file(path, Links::Inside)?`
fn r8_a_console_that_is_a_link_is_refused() {
    for (link, target) in [("dev/console", "/data/canary"), ("dev/pts", "/tmp")] {
        let mut fixture = Fixture::new(&["true"]);
        std::fs::write(fixture.root("data/canary"), "alive").unwrap();
        let mounts = fixture.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| {
            mount["destination"] != "/dev" && mount["destination"] != "/dev/mqueue"
        });
        symlink(target, fixture.root(link)).unwrap();
        fixture.spec["process"]["terminal"] = json!(true);
        let answer = fixture.create(Stdio::Terminal).err();
        assert!(matches!(answer, Some(Error::Path { .. })), "{link}: {answer:?}");
        assert_eq!(std::fs::read_to_string(fixture.root("data/canary")).unwrap(), "alive");
        fixture.assert_undone();
    }
}

/// teeth: crates/oci-runtime/src/init/stdio.rs: `!= FileType::Fifo ||` → `== FileType::Unknown ||`
fn r10_streams_that_are_files_keep_their_owner() {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::unix::fs::MetadataExt as _;
    let mut fixture = Fixture::shell("echo out");
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let path = fixture.directory.path().join("log");
    let file =
        open(&path, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from(0o600)).unwrap();
    // Not the host's own null device: a runtime that fails this test would give that away.
    let private = fixture.directory.path().join("null");
    let device = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &private, kind, Mode::from(0o600), device).unwrap();
    let null = || open(&private, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stdio = Stdio::Fds { stdin: null(), stdout: file, stderr: null() };
    let created = fixture.create(stdio).unwrap();
    start(created.start, PATIENCE).unwrap();
    assert_eq!(wait(&created.pidfd), 0);
    drop(created.pidfd);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\n");
    let owner = std::fs::metadata(&path).unwrap();
    assert_eq!((owner.uid(), owner.mode() & 0o777), (0, 0o600));
    assert_eq!(std::fs::metadata(&private).unwrap().uid(), 0);
    fixture.assert_clean();
}
