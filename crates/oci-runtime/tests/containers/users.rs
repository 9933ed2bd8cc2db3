//! Containers in a user namespace.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use berth_model::mount::Mount;
use serde_json::json;

use crate::fixture::{Fixture, chain, shared_mounts};

crate::tests![
    a_user_namespace_maps_its_root_to_where_it_was_asked_to,
    d17_a_remapped_root_writes_and_reads_as_the_mapped_ids_only,
    what_every_container_has_works_in_a_user_namespace,
    d8_a_user_namespace_changes_nothing_about_the_cgroup,
    a_further_process_enters_the_user_namespace,
    a_volume_shows_its_owners_as_mapped,
    a_volume_can_be_mapped_without_a_user_namespace,
    a_file_system_that_cannot_map_ids_is_named,
    devices_of_the_host_keep_their_owner,
    the_nodes_network_comes_with_the_nodes_sysfs,
    a_user_that_is_not_mapped_is_refused,
    giving_up_on_a_user_namespace_leaves_nothing,
    a_joined_user_namespace_owns_what_is_made_in_it,
];

/// First id on the host.
const HOST: u32 = 100_000;

/// A container of one shell command, in a user namespace, with an overlay for a root.
fn fixture(command: &str) -> Fixture {
    let mut fixture = Fixture::shell(command);
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": HOST, "size": 65536}]);
    fixture.spec["linux"]["uidMappings"] = map.clone();
    fixture.spec["linux"]["gidMappings"] = map;
    overlay(&mut fixture);
    fixture
}

/// The bundle's root as the lower layer of an overlay, whose upper one belongs to the mapped
/// root; nobody but the host's root can reach it.
fn overlay(fixture: &mut Fixture) {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = fixture.directory.path();
    let layers = directory.join("layers");
    std::fs::create_dir(&layers).unwrap();
    std::fs::set_permissions(&layers, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::rename(directory.join("rootfs"), layers.join("lower")).unwrap();
    for made in ["layers/upper", "layers/work", "rootfs"] {
        std::fs::create_dir(directory.join(made)).unwrap();
    }
    chown(layers.join("upper"), Some(HOST), Some(HOST)).unwrap();
    let at = |name: &str| layers.join(name).to_str().unwrap().to_owned();
    fixture.rootfs = vec![Mount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={}", at("lower")),
            format!("upperdir={}", at("upper")),
            format!("workdir={}", at("work")),
            format!("uidmap=0:{HOST}:65536"),
            format!("gidmap=0:{HOST}:65536"),
        ],
    }];
}

fn upper(fixture: &Fixture, path: &str) -> PathBuf {
    fixture.directory.path().join("layers/upper").join(path)
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

fn a_user_namespace_maps_its_root_to_where_it_was_asked_to() {
    let outcome = fixture("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g").run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "100000", "65536", "0", "0"]);
}

/// teeth: crates/oci-runtime/src/worker.rs: `users.enter()?;` → ``
fn d17_a_remapped_root_writes_and_reads_as_the_mapped_ids_only() {
    let mut fixture = fixture(
        "stat -c %u:%g /bin/busybox && echo new > /made && chmod 600 /etc/group && \
         chown 7:8 /made && stat -c %u:%g /made /etc/group && \
         ! cat /host/secret && ! ls /host/closed && ! touch /host/there && \
         stat -c %u /host",
    );
    let secret = fixture.directory.path().join("shared");
    std::fs::create_dir_all(secret.join("closed")).unwrap();
    std::fs::write(secret.join("secret"), "s").unwrap();
    for path in ["secret", "closed"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(secret.join(path), mode).unwrap();
    }
    fixture.mount("/host", "bind", secret.to_str().unwrap(), &["rbind", "rprivate"]);
    let capabilities = &mut fixture.spec["process"]["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        capabilities[set].as_array_mut().unwrap().push(json!("CAP_DAC_READ_SEARCH"));
    }
    let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let outcome = running.finish();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, "0:0\n7:8\n0:0\n65534\n");
    assert_eq!(owner(&upper(&fixture, "made")), (HOST + 7, HOST + 8));
    assert_eq!(owner(&upper(&fixture, "etc/group")), (HOST, HOST));
    assert_eq!(owner(&fixture.directory.path().join("layers/lower/etc/group")), (0, 0));
    fixture.assert_clean();
}

fn what_every_container_has_works_in_a_user_namespace() {
    let mut fixture = fixture(
        "set -e; echo x > /dev/null; head -c 4 /dev/zero | od -An -tx1; stat -c %a:%u /dev /dev/null; \
         ls /dev/pts/ptmx /dev/mqueue /sys/kernel /sys/fs/cgroup > /dev/null; \
         touch /dev/shm/x; echo out > /dev/stdout; hostname; \
         ! echo 1 > /proc/sys/kernel/panic; ! mknod /tmp/null c 1 3; ! cat /proc/kcore; \
         grep -c . /proc/keys || true; cat /proc/self/oom_score_adj",
    );
    fixture.shared = shared_mounts(1 << 20);
    fixture.mount("/dev/shm", "berth-shared", "shm", &["nosuid", "nodev", "noexec"]);
    let outcome = fixture.run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let lines: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    assert_eq!(lines[..5], ["00 00 00 00", "755:0", "666:65534", "out", "box"], "{outcome:?}");
    assert_eq!(lines.last(), Some(&"500"), "{outcome:?}");
}

/// teeth: crates/oci-runtime/src/init.rs: `cgroup.join_self().map_err(Error::setup("join the cgroup"))?;` → ``
fn d8_a_user_namespace_changes_nothing_about_the_cgroup() {
    let mut fixture = fixture("echo up; sleep 100");
    fixture.spec["linux"]["resources"] =
        json!({"pids": {"limit": 3}, "memory": {"limit": 33554432}});
    let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.first_line(), "up");
    let cgroup = fixture.cgroup();
    assert!(cgroup.pids().unwrap().contains(&running.pid));
    // Every hierarchy has it, v2 too where there is one.
    let at = fixture.spec["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
    assert!(own.lines().all(|line| line.ends_with(&at)), "{own}");
    cgroup.kill_all().unwrap();
    assert_eq!(running.finish().code, 137);
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init.rs: `namespaces.set(CloneFlags::CLONE_NEWUSER, plan.ids.is_some());` → ``
fn a_further_process_enters_the_user_namespace() {
    let fixture = fixture("echo up; sleep 100");
    let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.first_line(), "up");
    let look = "cat /proc/self/uid_map; id -u; echo x > /dev/stdout; touch /by-exec; \
         cat /proc/self/oom_score_adj";
    let mut process = fixture.process(&["sh", "-c", look]);
    process["oomScoreAdj"] = json!(300);
    let outcome = fixture.exec(&running, &process).unwrap().finish();
    let words: Vec<&str> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "x", "300"], "{outcome:?}");
    assert_eq!(owner(&upper(&fixture, "by-exec")), (HOST, HOST));
    process["user"] = json!({"uid": 70000, "gid": 0});
    assert!(fixture.exec(&running, &process).is_err(), "an id that is not mapped");
    running.kill();
    fixture.assert_clean();
}

fn volume(fixture: &mut Fixture, host: u32) -> PathBuf {
    let volume = fixture.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "data").unwrap();
    chown(volume.join("file"), Some(5), Some(6)).unwrap();
    let map = json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    fixture.spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "idmap"],
        "uidMappings": map, "gidMappings": map,
    }));
    volume
}

/// teeth: crates/oci-runtime/src/worker.rs: `user::map_mount(tree.as_fd(), &path, ids, users)?;` → ``
fn a_volume_shows_its_owners_as_mapped() {
    for host in [HOST, HOST + 10] {
        let mut fixture =
            fixture("stat -c %u:%g /data/file; touch /data/new && chown 0:0 /data/new");
        let volume = volume(&mut fixture, host);
        let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let outcome = running.finish();
        let offset = host - HOST;
        assert_eq!(outcome.stdout, format!("{}:{}\n", 5 + offset, 6 + offset), "{outcome:?}");
        if host == HOST {
            assert_eq!(outcome.code, 0, "{outcome:?}");
            assert_eq!(owner(&volume.join("new")), (0, 0), "on the disk it is the volume's root");
        }
        assert_eq!(owner(&volume.join("file")), (5, 6));
        fixture.assert_clean();
    }
}

fn a_volume_can_be_mapped_without_a_user_namespace() {
    let mut fixture = Fixture::shell("stat -c %u:%g /data/file");
    volume(&mut fixture, 1000);
    assert_eq!(fixture.run().stdout, "1005:1006\n");
}

fn a_file_system_that_cannot_map_ids_is_named() {
    let mut fixture = fixture("true");
    volume(&mut fixture, HOST);
    let mounts = fixture.spec["mounts"].as_array_mut().unwrap();
    mounts.last_mut().unwrap()["source"] = json!("/proc/fs");
    let error = fixture.start().err().unwrap();
    assert!(chain(&error).contains("map the ids of /proc/fs"), "{}", chain(&error));
    fixture.assert_undone();
}

/// teeth: crates/oci-runtime/src/outside.rs: `devices::make(parent.as_fd(), Path::new(name), node)?;` → `devices::make(parent.as_fd(), Path::new(name), &DeviceNode { uid: root_uid, gid: root_gid, ..node.clone() })?;`
fn devices_of_the_host_keep_their_owner() {
    let mut fixture = fixture(
        "stat -c %u:%g:%t:%T /dev/deep/null; echo x > /dev/deep/null && echo open; stat -c %u /dev/deep",
    );
    fixture.spec["linux"]["devices"] = json!([{
        "path": "/dev/deep/null", "type": "c", "major": 1, "minor": 3,
        "fileMode": 0o600, "uid": 0, "gid": 0,
    }]);
    fixture.spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "65534:65534:1:3\n0\n", "{outcome:?}");
}

fn the_nodes_network_comes_with_the_nodes_sysfs() {
    let mut fixture = fixture("ls /sys/class/net/lo > /dev/null && ! touch /sys/x && echo ok");
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "ok\n", "{outcome:?}");
}

fn a_user_that_is_not_mapped_is_refused() {
    for user in [
        json!({"uid": 65536, "gid": 0}),
        json!({"uid": 0, "gid": 65536}),
        json!({"uid": 0, "gid": 0, "additionalGids": [70000]}),
    ] {
        let mut fixture = fixture("true");
        fixture.spec["process"]["user"] = user;
        let error = fixture.start().err().unwrap();
        assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument, "{}", chain(&error));
        fixture.assert_undone();
    }
}

fn giving_up_on_a_user_namespace_leaves_nothing() {
    // Without an upper directory, whose unmount may wait for the disk.
    let mut fixture = fixture("true");
    let options = &mut fixture.rootfs[0].options;
    options.retain(|option| !option.starts_with("upperdir=") && !option.starts_with("workdir="));
    let empty = fixture.directory.path().join("layers/upper");
    options[0] = format!("{}:{}", options[0], empty.display());
    crate::failures::give_up(fixture);
}

/// As a pod has it: namespaces that somebody else has made, all owned by one of users.
fn a_joined_user_namespace_owns_what_is_made_in_it() {
    use berth_model::{IdMappings, IdRange};
    use nix::sched::CloneFlags;
    use std::os::fd::AsRawFd as _;

    let mut fixture = fixture(
        "hostname; readlink /proc/self/ns/user; id -u; echo 1 > /proc/sys/net/ipv4/ip_forward && \
         cat /proc/sys/net/ipv4/ip_forward",
    );
    let range = vec![IdRange { container: 0, host: HOST, length: 65536 }];
    let ids = IdMappings { uids: range.clone(), gids: range };
    let also = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    let holder = berth_oci_runtime::Holder::new(&ids, also, || {
        rustix::system::sethostname(b"pod").unwrap();
        Ok(())
    })
    .unwrap();
    let held: Vec<_> = [("user", "user"), ("network", "net"), ("uts", "uts"), ("ipc", "ipc")]
        .map(|(kind, file)| (kind, holder.open(file).unwrap()))
        .into();
    drop(holder);
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    for (kind, fd) in &held {
        let path = json!(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        namespaces.iter_mut().find(|one| one["type"] == *kind).unwrap()["path"] = path;
    }
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut fixture.spec["process"]["capabilities"][set];
        set.as_array_mut().unwrap().push(json!("CAP_NET_ADMIN"));
    }
    fixture.spec["hostname"] = json!(null);
    fixture.spec["linux"]["readonlyPaths"] = json!([]);
    let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let outcome = running.finish();
    let user = std::fs::read_link(format!("/proc/self/fd/{}", held[0].1.as_raw_fd())).unwrap();
    assert_eq!(outcome.stdout, format!("pod\n{}\n0\n1\n", user.display()), "{outcome:?}");
    drop(held);
    fixture.assert_clean();
}
