use super::*;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    # a comment\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    broken:x:1\n\
    app:x:1000:1001:App:/home/app:/bin/sh\n\
    1000:x:0:0:trap:/root:/bin/sh\n\
    +0:x:0:0:trap:/root:/bin/sh\n\
    far:x:4294967295:5:too far:/:/bin/sh\n\
    odd:x:1003:1003::relative:/bin/sh\n";
const GROUP: &[u8] = b"root:x:0:\n\
    bin:x:2:root,daemon\n\
    app:x:1001:\n\
    video:x:44:app,daemon\n\
    1000:x:0:\n\
    audio:x:29:daemon,app\n\
    prefix:x:77:application\n";
const FILES: UserFiles<'_> = UserFiles { passwd: PASSWD, group: GROUP };

fn image(user: &str) -> Result<ResolvedUser, Error> {
    resolve(&RunAs::Image, user, &[], SupplementalGroupsPolicy::Merge, FILES)
}

#[track_caller]
fn check(user: &str, uid: u32, groups: &[u32]) {
    let resolved = image(user).unwrap_or_else(|error| panic!("{user:?}: {error}"));
    assert_eq!((resolved.uid, resolved.gid), (uid, groups[0]), "{user:?}");
    assert_eq!(resolved.groups, groups, "{user:?}");
}

#[test]
fn an_images_user_is_a_name_or_a_number_with_or_without_group() {
    check("", 0, &[0, 2]);
    check("root", 0, &[0, 2]);
    check("0", 0, &[0, 2]);
    check("app", 1000, &[1001, 44, 29]);
    check("1000", 1000, &[1001, 44, 29]);
    check("app:video", 1000, &[44, 29]);
    check("app:7", 1000, &[7, 44, 29]);
    check("1000:7", 1000, &[7, 44, 29]);
    check("2000", 2000, &[0]);
    check("2000:video", 2000, &[44]);
    check("app:", 1000, &[1001, 44, 29]);
    check(":7", 0, &[7, 2]);
    check("2147483647:2147483647", 2_147_483_647, &[2_147_483_647]);
}

#[test]
fn an_image_without_user_files_has_numbers_only() {
    let none = UserFiles::default();
    let resolve = |user| resolve(&RunAs::Image, user, &[], Default::default(), none);
    assert_eq!(resolve("").unwrap().groups, [0]);
    assert_eq!(
        resolve("5:6").unwrap(),
        ResolvedUser { uid: 5, gid: 6, groups: vec![6], home: None }
    );
    assert!(matches!(resolve("app"), Err(Error::NoSuchId { what: "user", .. })));
    assert!(matches!(resolve("5:app"), Err(Error::NoSuchId { what: "group", .. })));
}

/// teeth: crates/spec/src/user.rs: `Ok(id) if id <= MAX_ID` → `Ok(id) if id <= u32::MAX`
#[test]
fn r14_ids_out_of_range_are_errors() {
    let digits = format!("1{}", "0".repeat(20));
    for bad in [
        "2147483648",
        "4294967295",
        "4294967296",
        "4294968296",
        "18446744073709551616",
        &digits,
        "1000:2147483648",
        "1000:4294967296",
        "app:4294967295",
        "root:18446744073709551615",
    ] {
        let error = image(bad).unwrap_err();
        assert!(matches!(error, Error::IdRange { .. }), "{bad}: {error}");
        assert!(error.to_string().len() < 160, "{error}");
    }
}

/// teeth: crates/spec/src/user.rs: `None if user.is_empty()` → `None if accounts(files.passwd).all(|a| a.name != user.as_bytes())`
#[test]
fn r14_what_is_neither_a_number_nor_a_known_name_is_an_error() {
    for bad in [
        "-1",
        "+0",
        "+1000",
        "0x0",
        "0x10",
        "1000x",
        "x1000",
        " 0",
        "0 ",
        "0\n",
        "1e3",
        "1_000",
        "１０００",
        "nobody",
        "Root",
        "app ",
        "root\0",
        "far",
        "broken",
        "# a comment",
        ":video:x",
        "app:video:x",
        "app:-1",
        "app:+0",
        "app:0x0",
        "app: 0",
        "app:nobody",
        "app:44x",
        "app/x",
        "a,b",
    ] {
        let error = image(bad).unwrap_err();
        let named = matches!(error, Error::NoSuchId { .. } | Error::IdName { .. });
        assert!(named, "{bad:?}: {error}");
    }
}

/// The image's passwd calls uid 0 "1000", and its group file gid 0.
///
/// teeth: crates/spec/src/user.rs: `let digits = name.bytes().all(|c| c.is_ascii_digit());` → `let digits = false;`
#[test]
fn r14_digits_are_never_looked_up_as_a_name() {
    check("1000:1000", 1000, &[1000, 44, 29]);
    for digits in ["1000", "0", "007", "99999999999"] {
        let run_as = RunAs::Name { user: digits.to_owned(), gid: None };
        let error = resolve(&run_as, "", &[], Default::default(), FILES).unwrap_err();
        assert!(matches!(error, Error::IdName { .. }), "{digits}: {error}");
    }
}

#[test]
fn the_request_wins_over_the_image() {
    let resolve = |run_as| resolve(&run_as, "daemon:bin", &[], Default::default(), FILES).unwrap();
    let by_id = resolve(RunAs::Id { uid: 1000, gid: None });
    assert_eq!((by_id.uid, by_id.gid), (1000, 1001));
    let unknown = resolve(RunAs::Id { uid: 4000, gid: None });
    assert_eq!((unknown.uid, unknown.groups), (4000, vec![0]));
    let with_group = resolve(RunAs::Id { uid: 1000, gid: Some(5) });
    assert_eq!((with_group.gid, with_group.groups), (5, vec![5, 44, 29]));
    let by_name = resolve(RunAs::Name { user: "app".to_owned(), gid: Some(6) });
    assert_eq!((by_name.uid, by_name.gid), (1000, 6));
}

#[test]
fn r14_ids_of_the_request_have_the_same_range() {
    for run_as in [
        RunAs::Id { uid: 2_147_483_648, gid: None },
        RunAs::Id { uid: u32::MAX, gid: None },
        RunAs::Id { uid: 1, gid: Some(u32::MAX) },
        RunAs::Name { user: "app".to_owned(), gid: Some(u32::MAX) },
    ] {
        let result = resolve(&run_as, "", &[], Default::default(), FILES);
        assert!(matches!(result, Err(Error::IdRange { .. })), "{run_as:?}");
    }
    let result = resolve(&RunAs::Image, "", &[u32::MAX], Default::default(), FILES);
    assert!(matches!(result, Err(Error::IdRange { .. })));
}

/// teeth: crates/spec/src/user.rs: `let mut groups = vec![gid];` → `let mut groups = vec![];`
#[test]
fn r15_groups_are_the_primary_one_the_images_and_those_asked_for() {
    let asked = [3000, 44, 3000, 1001];
    let resolve = |policy| resolve(&RunAs::Image, "app", &asked, policy, FILES).unwrap().groups;
    assert_eq!(resolve(SupplementalGroupsPolicy::Merge), [1001, 44, 29, 3000]);
    assert_eq!(resolve(SupplementalGroupsPolicy::Strict), [1001, 3000, 44]);
}

#[test]
fn a_home_directory_is_absolute_and_of_printable_bytes() {
    assert_eq!(image("app").unwrap().home.as_deref(), Some(&b"/home/app"[..]));
    assert_eq!(image("odd").unwrap().home, None);
    let passwd = b"a:x:1:1::/h\tx:\nb:x:2:2::/\xff:\nc:x:3:3\n";
    let files = UserFiles { passwd, group: b"" };
    let home = |user| resolve(&RunAs::Image, user, &[], Default::default(), files).unwrap().home;
    assert_eq!(home("a"), None);
    assert_eq!(home("b").as_deref(), Some(&b"/\xff"[..]));
    assert_eq!(home("c"), None);
}

#[test]
fn a_file_of_noise_is_read_without_harm() {
    let noise: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let colons = b":".repeat(100_000);
    for bytes in [noise.as_slice(), &colons, b"\n\n\n", b"a", b"a:", b":::::::"] {
        let files = UserFiles { passwd: bytes, group: bytes };
        assert!(resolve(&RunAs::Image, "nobody", &[], Default::default(), files).is_err());
        assert_eq!(resolve(&RunAs::Image, "7", &[], Default::default(), files).unwrap().gid, 0);
    }
}
