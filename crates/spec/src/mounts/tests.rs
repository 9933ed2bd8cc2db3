use super::*;
use crate::build::tests::Fixture;

fn bind(container_path: &str) -> BindMount {
    BindMount {
        container_path: container_path.into(),
        host_path: "/host".into(),
        ..BindMount::default()
    }
}

fn all(fixture: &Fixture) -> Vec<Mount> {
    fixture.build().unwrap().mounts().clone().unwrap()
}

fn find(mounts: &[Mount], destination: &str) -> Mount {
    let mut at = mounts.iter().filter(|mount| mount.destination() == Path::new(destination));
    let found = at.next().unwrap_or_else(|| panic!("{destination}")).clone();
    assert_eq!(at.next(), None, "{destination} is mounted twice");
    found
}

fn options(mount: &Mount) -> Vec<&str> {
    mount.options().iter().flatten().map(String::as_str).collect()
}

#[test]
fn every_container_has_the_default_mounts_and_the_sandboxes_files() {
    let mounts = all(&Fixture::new());
    assert_eq!(mounts.len(), 10);
    assert_eq!(options(&find(&mounts, "/sys")), ["nosuid", "noexec", "nodev", "ro"]);
    assert!(options(&find(&mounts, "/sys/fs/cgroup")).contains(&"ro"));
    let hosts = find(&mounts, "/etc/hosts");
    assert_eq!(hosts.source().as_deref(), Some(Path::new("/run/s1/hosts")));
    assert_eq!(options(&hosts), ["rbind", "rprivate", "rw"]);
    let shm = find(&mounts, "/dev/shm");
    assert_eq!(shm.typ().as_deref(), Some(SHARED_MOUNT));
    assert_eq!(shm.source().as_deref(), Some(Path::new("shm")));
}

#[test]
fn a_read_only_root_makes_the_sandboxes_files_read_only() {
    let mut fixture = Fixture::new();
    fixture.spec.security.readonly_rootfs = true;
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        assert_eq!(options(&find(&all(&fixture), file)), ["rbind", "rprivate", "ro"]);
    }
    assert_eq!(fixture.build().unwrap().root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn a_privileged_container_may_write_to_sys_and_cgroups() {
    let mounts = all(&Fixture::privileged());
    for at in ["/sys", "/sys/fs/cgroup"] {
        let mount = find(&mounts, at);
        assert!(options(&mount).contains(&"rw") && !options(&mount).contains(&"ro"), "{at}");
    }
}

#[test]
fn a_host_shm_is_bound() {
    let mut fixture = Fixture::new();
    fixture.files.shm = Some(Shm::Bind("/dev/shm".into()));
    let shm = find(&all(&fixture), "/dev/shm");
    assert_eq!(
        (shm.typ().as_deref(), options(&shm).as_slice()),
        (Some("bind"), &["rbind", "rprivate", "rw"][..])
    );
}

#[test]
fn the_requests_mounts_replace_the_defaults_at_their_place() {
    for at in ["/etc/hosts", "/dev/shm", "/etc/resolv.conf", "/sys", "/etc//hosts/", "/etc/./hosts"]
    {
        let mut fixture = Fixture::new();
        fixture.spec.mounts = vec![bind(at)];
        let mounts = all(&fixture);
        assert_eq!(mounts.len(), 10, "{at}");
        let clean = destination("mount", Path::new(at)).unwrap();
        let found = find(&mounts, clean.to_str().unwrap());
        assert_eq!(found.source().as_deref(), Some(Path::new("/host")), "{at}");
    }
    let mut fixture = Fixture::new();
    fixture.spec.mounts = vec![bind("/dev")];
    let mounts = all(&fixture);
    assert!(
        mounts.iter().all(|mount| mount.destination().parent() != Some(Path::new("/dev"))),
        "{mounts:?}"
    );
}

#[test]
fn parents_are_mounted_before_children_and_equals_in_the_requests_order() {
    let mut fixture = Fixture::new();
    fixture.spec.mounts = ["/a/b/c", "/z", "/a", "/a/b", "/a/../y/x", "/b"].map(bind).to_vec();
    fixture.spec.mounts[1].host_path = "/first".into();
    fixture.spec.mounts.push(BindMount { host_path: "/second".into(), ..bind("/z") });
    let mounts = all(&fixture);
    let place = |at: &str| mounts.iter().position(|m| m.destination() == Path::new(at)).unwrap();
    assert!(place("/a") < place("/a/b") && place("/a/b") < place("/a/b/c"));
    assert!(place("/dev") < place("/dev/shm"));
    assert!(place("/y/x") > place("/b"));
    let sources: Vec<_> = mounts.iter().filter(|m| m.destination() == Path::new("/z")).collect();
    assert_eq!(sources[0].source().as_deref(), Some(Path::new("/first")));
    assert_eq!(sources[1].source().as_deref(), Some(Path::new("/second")));
}

#[test]
fn access_and_propagation_become_options() {
    let mut mount = bind("/m");
    let mut check = |propagation, readonly, recursive_readonly, expected: [&str; 3], root| {
        mount = BindMount { propagation, readonly, recursive_readonly, ..mount.clone() };
        let mut fixture = Fixture::new();
        fixture.spec.mounts = vec![mount.clone()];
        assert_eq!(options(&find(&all(&fixture), "/m")), expected);
        assert_eq!(fixture.linux().rootfs_propagation().as_deref(), root);
    };
    check(Propagation::Private, false, false, ["rbind", "rprivate", "rw"], None);
    check(Propagation::Private, true, false, ["rbind", "rprivate", "ro"], None);
    check(Propagation::Private, true, true, ["rbind", "rprivate", "rro"], None);
    check(Propagation::HostToContainer, true, false, ["rbind", "rslave", "ro"], Some("rslave"));
    check(Propagation::Bidirectional, false, false, ["rbind", "rshared", "rw"], Some("rshared"));
}

#[test]
fn recursive_read_only_needs_read_only_and_private() {
    for (readonly, propagation) in [
        (false, Propagation::Private),
        (true, Propagation::HostToContainer),
        (true, Propagation::Bidirectional),
    ] {
        let mut fixture = Fixture::new();
        fixture.spec.mounts =
            vec![BindMount { readonly, propagation, recursive_readonly: true, ..bind("/m") }];
        assert!(matches!(fixture.build(), Err(Error::RecursiveReadOnly(_))));
    }
}

#[test]
fn a_mount_point_is_absolute_and_not_the_root() {
    for bad in ["", "relative", "./a", "../a", "/", "//", "/.", "/..", "/a/..", "/a\0b"] {
        let mut fixture = Fixture::new();
        fixture.spec.mounts = vec![bind(bad)];
        assert!(matches!(fixture.build(), Err(Error::ContainerPath { .. })), "{bad:?}");
    }
    let clean = |path: &str| destination("mount", Path::new(path)).unwrap();
    assert_eq!(clean("/../../etc/x"), Path::new("/etc/x"));
    assert_eq!(clean("/a/./b//c/"), Path::new("/a/b/c"));
}

#[test]
fn what_a_device_brings_replaces_what_is_at_its_place() {
    let mut fixture = Fixture::new();
    fixture.spec.mounts = vec![bind("/lib/v"), bind("/lib/v/more")];
    fixture.device_mounts = vec![crate::DeviceMount {
        path: "/lib//v".into(),
        source: "/usr/lib/v".into(),
        kind: "bind".to_owned(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
    }];
    let mounts = all(&fixture);
    let found = find(&mounts, "/lib/v");
    assert_eq!(found.source().as_deref(), Some(Path::new("/usr/lib/v")));
    assert_eq!(options(&found), ["rbind", "ro"]);
    let place = |at: &str| mounts.iter().position(|m| m.destination() == Path::new(at));
    assert!(place("/lib/v") < place("/lib/v/more"));
    fixture.device_mounts[0].path = "/".into();
    assert!(fixture.build().is_err());
}

#[test]
fn an_image_brings_neither_devices_nor_rights() {
    let mut fixture = Fixture::new();
    let image = ImageMount { name: "i".into(), sub_path: "etc".into(), ..ImageMount::default() };
    fixture.spec.mounts = vec![BindMount {
        host_path: PathBuf::new(),
        readonly: true,
        image: Some(image),
        options: vec![berth_model::mount::MountOption::NoExec],
        ..bind("/v")
    }];
    assert!(matches!(fixture.build(), Err(Error::ImageMissing(_))));
    let layers = berth_model::mount::Mount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec!["lowerdir=/l/2:/l/1".to_owned()],
    };
    fixture.volumes.insert("i".to_owned(), layers);
    let spec = fixture.build().unwrap();
    let mount = find(spec.mounts().as_ref().unwrap(), "/v");
    assert_eq!(mount.typ().as_deref(), Some(IMAGE_MOUNT));
    let expected =
        ["ro", "nosuid", "nodev", "rprivate", "noexec", "lowerdir=/l/2:/l/1", "subpath=etc"];
    assert_eq!(options(&mount), expected);
    let exact = spec.annotations().as_ref().unwrap().get(crate::EXACT_ANNOTATION);
    assert_eq!(exact, None, "an image has no path on the host");
}
