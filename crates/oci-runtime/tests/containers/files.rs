//! The root file system, `/dev`, and what is hidden or guarded.

use std::os::unix::fs::symlink;

use berth_oci_runtime::Error;
use serde_json::json;

use crate::fixture::Fixture;

crate::tests![
    a_writable_root_can_be_written,
    r11_a_readonly_root_stays_readonly,
    r22_masked_paths_are_empty,
    the_hosts_null_device_is_not_the_containers_to_change,
    readonly_paths_cannot_be_written,
    the_default_devices_are_there,
    a_wanted_device_is_made,
    r18_a_device_that_is_not_allowed_cannot_be_opened,
    r9_dev_that_is_a_link_is_refused,
    r5_procfs_and_sysfs_are_mounted_on_no_link,
    r5_nothing_takes_the_place_of_procfs,
    r7_a_null_device_that_is_a_link_is_refused,
    r12_a_mount_point_below_a_dangling_link_is_made_inside,
    devices_of_a_bound_dev_are_left_alone,
];

fn a_writable_root_can_be_written() {
    let fixture = Fixture::shell("echo x > /data/file && cat /data/file");
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout, "x\n");
    assert!(fixture.root("data/file").exists());
    fixture.assert_clean();
}

/// The image ships a directory where a careless runtime looks for its descriptors.
///
/// teeth: crates/oci-runtime/src/init/rootfs.rs: `if plan.readonly {` → `if false {`
fn r11_a_readonly_root_stays_readonly() {
    let mut fixture = Fixture::shell(
        "touch /x /data/x /mnt/x; touch /tmp/x /dev/x && echo tmp; grep -E ' / / | /mnt ' /proc/self/mountinfo",
    );
    std::fs::create_dir_all(fixture.root("proc/self/fd")).unwrap();
    fixture.spec["root"]["readonly"] = json!(true);
    fixture.mount("/tmp", "tmpfs", "tmpfs", &[]);
    fixture.mount("/mnt", "tmpfs", "tmpfs", &["ro"]);
    // A mount point inside a mount that is to be read-only.
    let file = fixture.directory.path().join("file");
    std::fs::write(&file, "bound").unwrap();
    fixture.mount("/mnt/file", "bind", file.to_str().unwrap(), &["bind", "ro"]);
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
    assert!(outcome.stdout.starts_with("tmp\n"), "{outcome:?}");
    for line in outcome.stdout.lines().skip(1) {
        assert!(line.contains(" ro,"), "{line}");
    }
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init.rs: `masks::hide(&root, &plan.masked_paths, null.as_fd())?;` → ``
fn r22_masked_paths_are_empty() {
    let mut fixture = Fixture::shell(
        "wc -c < /proc/interrupts; ls /proc/acpi /sys/firmware /hidden | grep -v :; cat /secret;
         touch /hidden/x; touch /sys/firmware/x",
    );
    std::fs::create_dir(fixture.root("hidden")).unwrap();
    std::fs::write(fixture.root("hidden/key"), "key").unwrap();
    std::fs::write(fixture.root("secret"), "secret").unwrap();
    let masked = fixture.spec["linux"]["maskedPaths"].as_array_mut().unwrap();
    masked.extend([
        json!("/proc/interrupts"),
        json!("/hidden"),
        json!("/secret"),
        json!("/absent/x"),
    ]);
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout.trim(), "0", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
    fixture.assert_clean();
}

/// Masks and absent streams are the host's null device: a container that could change its mode
/// would shut the whole host out of it.
///
/// teeth: crates/oci-runtime/src/init/devices.rs: `&Attributes::READ_ONLY.change(), false)?;` → `&Default::default(), false)?;`
fn the_hosts_null_device_is_not_the_containers_to_change() {
    use nix::mount::{MsFlags, mount};
    use std::os::unix::fs::PermissionsExt as _;

    let change =
        "echo x > /proc/keys; cat /proc/keys; chmod 600 /proc/keys /proc/self/fd/0; echo done";
    let fixture = Fixture::shell(&format!("{change}; exec sleep 1000"));
    // A node of this test's own stands for the host's, in this binary's mounts alone.
    let private = fixture.directory.path().join("null");
    let device = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &private, kind, 0o666.into(), device).unwrap();
    let everyone = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(&private, everyone).unwrap();
    let none = None::<&str>;
    mount(Some(&private), "/dev/null", none, MsFlags::MS_BIND, none).unwrap();
    let answers = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let running = fixture.start().unwrap();
        let line = running.first_line();
        let further = fixture.exec(&running, &fixture.process(&["sh", "-c", change]));
        let further = further.unwrap().finish();
        (line, further, running.kill())
    }));
    nix::mount::umount("/dev/null").unwrap();
    let (line, further, first) = answers.unwrap();
    assert_eq!((line.as_str(), further.stdout.as_str()), ("done", "done\n"));
    for stderr in [&first.stderr, &further.stderr] {
        assert_eq!(stderr.matches("Read-only file system").count(), 2, "{stderr}");
    }
    let mode = std::fs::metadata(&private).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    fixture.assert_clean();
}

fn readonly_paths_cannot_be_written() {
    let mut fixture =
        Fixture::shell("echo 1 > /proc/sys/net/ipv4/ip_forward; echo x > /data/guarded/x");
    std::fs::create_dir(fixture.root("data/guarded")).unwrap();
    fixture.spec["linux"]["readonlyPaths"].as_array_mut().unwrap().push(json!("/data/guarded"));
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
    fixture.assert_clean();
}

fn the_default_devices_are_there() {
    let outcome = Fixture::shell(
        "for d in null zero full random urandom tty; do
            [ -c /dev/$d ] && stat -c '%a %t:%T' /dev/$d; done
         for l in fd stdin stdout stderr core ptmx; do readlink /dev/$l; done
         echo x > /dev/null && head -c 3 /dev/zero | wc -c
         echo hello > /dev/stdout",
    )
    .run();
    let expected = "666 1:3\n666 1:5\n666 1:7\n666 1:8\n666 1:9\n666 5:0\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n/proc/kcore\npts/ptmx\n\
        3\nhello\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

fn a_wanted_device_is_made() {
    let mut fixture = Fixture::shell("stat -c '%a %u %g %t:%T' /dev/net/tun /data/pipe");
    fixture.spec["linux"]["devices"] = json!([
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640,
         "uid": 3, "gid": 4},
        {"path": "/data/pipe", "type": "p", "fileMode": 0o600},
    ]);
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "640 3 4 a:c8\n600 0 0 0:0\n", "{outcome:?}");
}

/// teeth: crates/oci-runtime/src/worker.rs: `cgroup.apply(&plan.limits)` →
/// `cgroup.apply(&berth_cgroup::Limits::default())`
fn r18_a_device_that_is_not_allowed_cannot_be_opened() {
    // The kernel's log (1:11), a disk (8:0), and one that every container has.
    let command = "mknod /data/kmsg c 1 11; echo x > /data/kmsg; mknod /data/sda b 8 0;
        cat /data/sda | head -c 1; mknod /data/full c 1 7; echo > /data/full";
    let outcome = Fixture::shell(command).run();
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
    // And one that is; opened for writing it needs no capability.
    let mut fixture = Fixture::shell("mknod /data/kmsg c 1 11; : > /data/kmsg && echo opened");
    fixture.spec["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ]});
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "opened\n", "{outcome:?}");
}

/// teeth: crates/oci-runtime/src/init/root.rs: `resolve |= ResolveFlags::NO_SYMLINKS;` → ``
fn r9_dev_that_is_a_link_is_refused() {
    for target in ["/tmp", "tmp", "dev", "../../../tmp"] {
        let fixture = Fixture::new(&["true"]);
        std::fs::remove_dir(fixture.root("dev")).unwrap();
        symlink(target, fixture.root("dev")).unwrap();
        let answer = fixture.start().err();
        assert!(matches!(answer, Some(Error::Path { .. })), "{target}: {answer:?}");
        fixture.assert_undone();
    }
}

/// teeth: crates/oci-runtime/src/init/root.rs: `resolve |= ResolveFlags::NO_SYMLINKS;` → ``
fn r5_procfs_and_sysfs_are_mounted_on_no_link() {
    for name in ["proc", "sys"] {
        let fixture = Fixture::new(&["true"]);
        std::fs::remove_dir(fixture.root(name)).unwrap();
        symlink("/tmp", fixture.root(name)).unwrap();
        let answer = fixture.start().err();
        assert!(matches!(answer, Some(Error::Path { .. })), "{name}: {answer:?}");
        fixture.assert_undone();
    }
}

/// teeth: crates/oci-runtime/src/init/mounts.rs: `check_proc(mount, Some(source.as_fd()))?;` → ``
fn r5_nothing_takes_the_place_of_procfs() {
    let mut fixture = Fixture::new(&["true"]);
    let fake = fixture.directory.path().join("fake");
    std::fs::create_dir(&fake).unwrap();
    let fake = fake.to_str().unwrap().to_owned();
    let plain = fixture.spec["mounts"].clone();
    for (destination, fs_type) in [
        ("/proc", "bind"),
        ("/proc/self/attr", "bind"),
        ("/proc/sys", "bind"),
        ("/proc/../proc//1", "bind"),
        ("/proc", "tmpfs"),
    ] {
        fixture.spec["mounts"] = plain.clone();
        let options: &[&str] = if fs_type == "bind" { &["bind"] } else { &[] };
        fixture.mount(destination, fs_type, &fake, options);
        let answer = fixture.start().err();
        assert!(matches!(answer, Some(Error::Refused { .. })), "{destination}: {answer:?}");
    }
    // Nor by a link of the image.
    symlink("/proc/sys", fixture.root("volume")).unwrap();
    fixture.spec["mounts"] = plain.clone();
    fixture.mount("/volume", "bind", &fake, &["bind"]);
    let answer = fixture.start().err();
    assert!(matches!(answer, Some(Error::Refused { .. })), "{answer:?}");
    // What LXCFS does is allowed, and so is the host's own procfs.
    let file = fixture.directory.path().join("uptime");
    std::fs::write(&file, "1.00 1.00\n").unwrap();
    fixture.spec["mounts"] = plain;
    fixture.spec["process"]["args"] = json!(["cat", "/proc/uptime"]);
    fixture.mount("/proc/uptime", "bind", file.to_str().unwrap(), &["bind", "ro"]);
    assert_eq!(fixture.start().unwrap().finish().stdout, "1.00 1.00\n");
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init/devices.rs: `return if same {` → `return if true {`
fn r7_a_null_device_that_is_a_link_is_refused() {
    let mut fixture = Fixture::new(&["true"]);
    fixture.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/proc/sys/kernel/core_pattern", fixture.root("dev/null")).unwrap();
    let answer = fixture.start().err();
    assert!(matches!(answer, Some(Error::Device { .. })), "{answer:?}");
    fixture.assert_undone();
}

/// teeth: crates/oci-runtime/src/init/root.rs: `ResolveFlags::IN_ROOT |
/// ResolveFlags::NO_MAGICLINKS;` → `ResolveFlags::NO_MAGICLINKS;`
fn r12_a_mount_point_below_a_dangling_link_is_made_inside() {
    // As images of distributions have it for /etc/resolv.conf.
    let mut fixture = Fixture::new(&["cat", "/etc/resolv.conf"]);
    let canary = fixture.directory.path().join("canary");
    let source = fixture.directory.path().join("source");
    std::fs::write(&source, "bound").unwrap();
    symlink(&canary, fixture.root("etc/resolv.conf")).unwrap();
    fixture.mount("/etc/resolv.conf", "bind", source.to_str().unwrap(), &["bind"]);
    assert_eq!(fixture.start().unwrap().finish().stdout, "bound");
    assert!(!canary.exists());
    fixture.assert_clean();
}

fn devices_of_a_bound_dev_are_left_alone() {
    let mut fixture = Fixture::shell("ls /dev; cat /dev/null");
    let dev = fixture.directory.path().join("dev");
    std::fs::create_dir(&dev).unwrap();
    std::fs::write(dev.join("null"), "not a device").unwrap();
    fixture.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    fixture.mount("/dev", "bind", dev.to_str().unwrap(), &["rbind"]);
    assert_eq!(fixture.start().unwrap().finish().stdout, "null\nnot a device");
    fixture.assert_clean();
}
