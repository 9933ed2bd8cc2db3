//! Mounts of every kind.

use std::path::{Path, PathBuf};

use berth_model::mount::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::fixture::{Fixture, shared_mounts};

crate::tests![
    bind_mounts_are_writable_or_not,
    a_readonly_tree_is_readonly_all_the_way_down,
    mounts_of_the_host_travel_only_when_asked,
    mounts_of_a_container_travel_only_when_asked,
    r6_a_destination_behind_a_link_stays_inside,
    containers_of_a_sandbox_share_their_memory,
    an_overlay_is_mounted_where_only_the_container_sees_it,
    an_overlay_may_have_many_layers,
    the_kernels_file_systems_are_there,
    r17_cgroups_cannot_be_written,
    cgroups_without_a_namespace_show_only_the_own,
    a_tmpfs_has_its_size_and_mode,
];

/// A directory beside the bundle, with a file.
fn data(fixture: &Fixture, name: &str) -> PathBuf {
    let path = fixture.directory.path().join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("file"), name).unwrap();
    path
}

fn tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn unmount(at: &Path) {
    umount2(at, MntFlags::MNT_DETACH).unwrap();
}

fn bind_mounts_are_writable_or_not() {
    let mut fixture = Fixture::shell(
        "cat /a/file /b/deep/file /one; touch /a/new; touch /b/deep/new; echo x > /one",
    );
    let (a, b) = (data(&fixture, "a"), data(&fixture, "b"));
    fixture.mount("/a", "bind", a.to_str().unwrap(), &["rbind", "rprivate"]);
    fixture.mount("/b/deep", "bind", b.to_str().unwrap(), &["rbind", "ro", "nosuid"]);
    fixture.mount("/one", "bind", b.join("file").to_str().unwrap(), &["bind", "ro"]);
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout, "abb");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
    assert!(a.join("new").exists() && !b.join("new").exists());
    fixture.assert_clean();
}

fn a_readonly_tree_is_readonly_all_the_way_down() {
    let mut fixture = Fixture::shell("touch /ro/below/x; touch /rro/below/x");
    let tree = data(&fixture, "tree");
    tmpfs(&tree.join("below"));
    let source = tree.to_str().unwrap().to_owned();
    fixture.mount("/ro", "bind", &source, &["rbind", "ro"]);
    fixture.mount("/rro", "bind", &source, &["rbind", "rro"]);
    let outcome = fixture.start().unwrap().finish();
    assert!(outcome.stderr.contains("/rro/below/x: Read-only"), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    unmount(&tree.join("below"));
    fixture.assert_clean();
}

/// A shared mount of the "host", three ways into a container that waits.
fn with_shared(fixture: &mut Fixture) -> PathBuf {
    let tree = fixture.directory.path().join("shared");
    tmpfs(&tree);
    mount(None::<&str>, &tree, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    std::fs::create_dir(tree.join("later")).unwrap();
    std::fs::create_dir(tree.join("inner")).unwrap();
    let source = tree.to_str().unwrap().to_owned();
    fixture.mount("/private", "bind", &source, &["rbind", "rprivate"]);
    fixture.mount("/default", "bind", &source, &["rbind"]);
    fixture.mount("/slave", "bind", &source, &["rbind", "rslave"]);
    fixture.mount("/shared", "bind", &source, &["rbind", "rshared"]);
    tree
}

fn mounts_of_the_host_travel_only_when_asked() {
    let mut fixture = Fixture::shell("echo up; sleep 60");
    let tree = with_shared(&mut fixture);
    let running = fixture.start().unwrap();
    running.first_line();
    tmpfs(&tree.join("later"));
    std::fs::write(tree.join("later/file"), "").unwrap();
    let look = fixture.process(&["sh", "-c", "cd /; ls -d */later/file"]);
    let outcome = fixture.exec(&running, &look).unwrap().finish();
    assert_eq!(outcome.stdout, "shared/later/file\nslave/later/file\n", "{outcome:?}");
    running.kill();
    unmount(&tree.join("later"));
    unmount(&tree);
    fixture.assert_clean();
}

fn mounts_of_a_container_travel_only_when_asked() {
    let mut fixture = Fixture::shell(
        "for d in private default slave shared; do
            mount -t tmpfs $d /$d/inner && touch /$d/inner/$d; done; echo done; sleep 60",
    );
    let tree = with_shared(&mut fixture);
    fixture.spec["linux"]["rootfsPropagation"] = json!("rshared");
    for set in fixture.spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
    }
    let running = fixture.start().unwrap();
    assert_eq!(running.first_line(), "done");
    let seen: Vec<_> =
        std::fs::read_dir(tree.join("inner")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(seen, ["shared"]);
    running.kill();
    unmount(&tree.join("inner"));
    unmount(&tree);
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init/root.rs: `ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS` →
/// `ResolveFlags::NO_MAGICLINKS`
fn r6_a_destination_behind_a_link_stays_inside() {
    use std::os::unix::fs::symlink;
    let mut fixture = Fixture::shell("cat /data/file; ls /data/made");
    let outside = data(&fixture, "outside");
    let source = data(&fixture, "source");
    symlink("../../../../data", fixture.root("relative")).unwrap();
    symlink(&outside, fixture.root("absolute")).unwrap();
    let source = source.to_str().unwrap().to_owned();
    fixture.mount("/relative", "bind", &source, &["bind"]);
    fixture.mount("/relative/made/x", "tmpfs", "tmpfs", &[]);
    // This link leads to a path that the container does not have, but the host has.
    fixture.mount("/absolute/file", "bind", &format!("{source}/file"), &["bind"]);
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout, "sourcex\n", "{outcome:?}");
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "outside");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    fixture.assert_clean();
}

fn containers_of_a_sandbox_share_their_memory() {
    let mut fixture = Fixture::shell("echo shared > /dev/shm/file; df -k /dev/shm | tail -1");
    fixture.shared = shared_mounts(8 * 1024 * 1024);
    fixture.mount("/dev/shm", "berth-shared", "shm", &["nosuid", "nodev", "noexec"]);
    let outcome = fixture.start().unwrap().finish();
    assert!(outcome.stdout.contains(" 8192 "), "{outcome:?}");
    // Another container, with the first one gone.
    fixture.spec["process"]["args"] =
        json!(["sh", "-c", "cat /dev/shm/file; stat -c %a /dev/shm; grep -c shm /proc/mounts"]);
    assert_eq!(fixture.start().unwrap().finish().stdout, "shared\n1777\n1\n");
    fixture.assert_clean();
}

/// Layers of an image in the test's own directory.
fn overlay(fixture: &mut Fixture, layers: usize) {
    let top = fixture.directory.path().to_owned();
    let mut lower = Vec::new();
    for layer in 0..layers {
        let path = top.join(format!("layer-with-a-rather-long-name-so-that-they-add-up-{layer}"));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(format!("in{layer}")), "").unwrap();
        lower.push(path.to_str().unwrap().to_owned());
    }
    lower.push(fixture.root("").to_str().unwrap().trim_end_matches('/').to_owned());
    for name in ["upper", "work"] {
        std::fs::create_dir(top.join(name)).unwrap();
    }
    fixture.spec["root"]["path"] = json!("merged");
    fixture.rootfs = vec![Mount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", top.join("upper").display()),
            format!("workdir={}", top.join("work").display()),
            "volatile".to_owned(),
        ],
    }];
}

fn an_overlay_is_mounted_where_only_the_container_sees_it() {
    let mut fixture =
        Fixture::shell("echo x > /data/new; ls -d /in*; grep -c overlay /proc/mounts");
    overlay(&mut fixture, 2);
    let (stdio, out, err) = crate::fixture::pipes();
    let created = fixture.create(stdio).unwrap();
    // A created container has its mounts already, and the host does not.
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains("overlay"));
    let mut running = crate::fixture::Running::new(created, out, err);
    running.start().unwrap();
    assert_eq!(running.finish().stdout, "/in0\n/in1\n1\n");
    assert!(fixture.directory.path().join("upper/data/new").exists());
    fixture.assert_clean();
}

fn an_overlay_may_have_many_layers() {
    let mut fixture = Fixture::shell("ls -d /in* | wc -l");
    overlay(&mut fixture, 120);
    assert_eq!(fixture.start().unwrap().finish().stdout, "120\n");
    fixture.assert_clean();
}

fn the_kernels_file_systems_are_there() {
    let outcome = Fixture::shell("cut -d' ' -f2,3,4 /proc/mounts").run();
    for wanted in [
        "/proc proc rw,nosuid,nodev,noexec",
        "/dev tmpfs rw,nosuid",
        "/dev/pts devpts rw,nosuid,noexec",
        "/dev/mqueue mqueue rw,nosuid,nodev,noexec",
        "/sys sysfs ro,nosuid,nodev,noexec",
    ] {
        assert!(
            outcome.stdout.lines().any(|line| line.starts_with(wanted)),
            "{wanted}\n{outcome:?}"
        );
    }
}

/// teeth: crates/oci-runtime/src/init/cgroup_mounts.rs: `mount_flags(attributes))\n            .map(Some)` →
/// `mount_flags(attributes.writable()))\n            .map(Some)`
fn r17_cgroups_cannot_be_written() {
    let outcome = Fixture::shell(
        "cd /sys/fs/cgroup; ls -d */ 2>/dev/null | wc -l; for d in . */; do
            mkdir $d/mine 2>&1 | grep -v Read-only; echo $$ 2>/dev/null > $d/cgroup.procs && echo $d
        done; cat */cgroup.procs cgroup.procs 2>/dev/null | sort -u | head -1",
    )
    .run();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{outcome:?}");
    assert_eq!(lines[1], "1", "it sees its own processes: {outcome:?}");
}

fn cgroups_without_a_namespace_show_only_the_own() {
    let mut fixture = Fixture::shell(
        "cat /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | sort -u | head -1
         mkdir /sys/fs/cgroup/memory/mine || mkdir /sys/fs/cgroup/mine",
    );
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "1\n", "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only"), "{outcome:?}");
}

fn a_tmpfs_has_its_size_and_mode() {
    let mut fixture = Fixture::shell("df -k /scratch | tail -1; stat -c %a /scratch");
    fixture.mount("/scratch", "tmpfs", "tmpfs", &["size=64k", "mode=1770", "noexec"]);
    let outcome = fixture.run();
    assert!(outcome.stdout.contains(" 64 ") && outcome.stdout.ends_with("1770\n"), "{outcome:?}");
}
