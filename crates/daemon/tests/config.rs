//! Bad configurations: each is refused with its file, line, column and key, by `berthd` as
//! by `berthd config check`, before anything on disk is made or changed.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file, and what is said of it after its path: one line for each case. `$D` is the
/// directory of the test.
const BAD: &[(&str, &str)] = &[
    // Not TOML.
    ("root", ":1:5: key with no value, expected `=`"),
    ("root =", ":1:7: string values must be quoted, expected literal string"),
    ("root = /var/lib", ":1:8: string values must be quoted, expected literal string"),
    ("# fine\n\n[network\nmtu = 1500", ":3:9: unclosed table, expected `]`"),
    ("root = \"/a", ":1:11: invalid basic string, expected `\"`"),
    ("root = '''/a\n", ":2:1: invalid multi-line literal string"),
    ("[image]\nplain_http = ['a', 'b'", ":2:23: unclosed array, expected `]`"),
    ("root = \"/a\\qb\"", ":1:12: missing escaped value, expected"),
    ("[network]\nmtu = 15_00_", ":2:12: `_` may only go between digits"),
    ("[network]\nmtu = 01500", ":2:7: unexpected leading zero"),
    ("[network]\nmasquerade = yes", ":2:14: string values must be quoted"),
    ("a b = 1", ":1:3: key with no value, expected `=`"),
    ("root = '/a' state = '/b'", ":1:13: "),
    ("{\n  \"root\": \"/a\"\n}", ":1:1: "),
    ("root: /a\n", ":1:"),
    ("root = \"/a\0b\"", ":1:11: invalid basic string"),
    ("[log]\nfilter = 'in\0fo'", ":2:13: invalid literal string"),
    ("\u{feff}\u{feff}root = '/a'", ":1:"),
    // The same twice.
    ("root = '/a'\nroot = '/b'", ":2:1: duplicate key"),
    ("[network]\nmtu = 1500\n[log]\n[network]\n", ":4:2: duplicate key"),
    ("network.mtu = 1500\n[network]\nmtu = 1500", ":2:2: duplicate key"),
    ("[runtime.handlers.a]\nshim='a'\n[runtime.handlers.a]\nshim='b'", ":3:19: duplicate key"),
    // Unknown.
    ("rot = '/a'", ":1:1: rot: unknown field `rot`, expected one of `root`, `state`"),
    ("rot = '/a'", "did you mean `root`?"),
    (
        "[network]\nmtuu = 9000",
        ":2:1: network.mtuu: unknown field `mtuu`, expected one of `bridge`",
    ),
    ("[network]\nmtuu = 9000", "did you mean `mtu`?"),
    ("network.Bridge = 'a'", ":1:9: network.Bridge: unknown field"),
    ("[networks]\nmtu = 1500", ":1:2: networks: unknown field `networks`"),
    ("[networks]\nmtu = 1500", "did you mean `network`?"),
    ("\n[[network]]\nmtu = 1500", ":2:1: network: must be one table, not an array"),
    ("cri = ['/run/a.sock']", ":1:7: cri: must be one table, not an array"),
    ("[runtime.handlers]\nkata = ['sh']", ":2:8: runtime.handlers.kata: must be one table"),
    ("[plugins.cri]\nx = 1", ":1:2: plugins: unknown field `plugins`, expected one of"),
    (
        "[runtime.handlers.kata]\nshim = 'sh'\nroot = '/a'",
        ":3:1: runtime.handlers.kata.root: unknown",
    ),
    ("[runtime.handlers.kata]\nshin = 'sh'", ":2:1: runtime.handlers.kata.shin: unknown"),
    ("[runtime.handlers.berth]\n", ":1:1: runtime.handlers.berth: missing field `shim`"),
    // Of the wrong type.
    ("root = 5", ":1:8: root: invalid type: integer `5`, expected path string"),
    ("root = ['/a']", ":1:8: root: invalid type: sequence, expected path string"),
    ("[root]\npath = '/a'", ":1:1: root: invalid type: map, expected path string"),
    ("network = 'bridge'", ":1:11: network: invalid type: string \"bridge\""),
    ("[network]\nmtu = '1500'", ":2:7: network.mtu: invalid type: string \"1500\", expected u32"),
    ("[network]\nmtu = '1500'", "must be a whole number from 1280 to 65535"),
    ("[network]\nmtu = 1500.0", ":2:7: network.mtu: invalid type: floating point `1500.0`"),
    ("[network]\nmtu = inf", ":2:7: network.mtu: invalid type: floating point"),
    ("[network]\nmasquerade = 'true'", ":2:14: network.masquerade: invalid type: string \"true\""),
    ("[network]\nmasquerade = 1", ":2:14: network.masquerade: invalid type: integer `1`"),
    ("[image]\nplain_http = 'r:5000'", ":2:14: image.plain_http: invalid type: string"),
    ("[image]\nplain_http = [\n  'r',\n  5000,\n]", ":4:3: image.plain_http[1]: invalid type"),
    ("[image]\nca_files = true", ":2:12: image.ca_files: invalid type: boolean `true`"),
    ("[container]\nshm_size = '64M'", "must be a whole number from 4096 to 1099511627776"),
    ("[container]\npids_limit = 1979-05-27", ":2:14: container.pids_limit: invalid type"),
    ("[log]\nfilter = {berth = 'info'}", ":2:10: log.filter: invalid type: map, expected a string"),
    // Numbers out of range.
    ("[network]\nmtu = 1279", ":2:7: network.mtu: must be from 1280 to 65535, not 1279"),
    ("[network]\n# jumbo\nmtu = 65536", ":3:7: network.mtu: must be from 1280 to 65535, not 65536"),
    ("network.mtu = -1500", ":1:15: network.mtu: must be from 1280 to 65535, not -1500"),
    ("network = {mtu = 0x1}", ":1:18: network.mtu: must be from 1280 to 65535"),
    ("[image]\nparallel_layers = 0", ":2:19: image.parallel_layers: must be from 1 to 16, not 0"),
    ("[image]\nparallel_layers = 17", ":2:19: image.parallel_layers: must be from 1 to 16, not 17"),
    ("[container]\npids_limit = -1", ":2:14: container.pids_limit: must be from 0 to 4194304"),
    ("[container]\npids_limit = 4194305", ":2:14: container.pids_limit: must be from 0 to 4194304"),
    ("[container]\nshm_size = 4095", ":2:12: container.shm_size: must be from 4096 to"),
    ("[container]\nshm_size = 9223372036854775808", ":2:12: container.shm_size: must be from"),
    (
        "[container]\nshm_size = 999999999999999999999999999999999999999999",
        ":2:12: container.shm_size: must be from 4096 to 1099511627776, not 99999",
    ),
    // Directories and the socket.
    ("root = ''", ":1:8: root: must be an absolute path below /, not \"\""),
    (
        "root = 'var/lib/berth'",
        ":1:8: root: must be an absolute path below /, not \"var/lib/berth\"",
    ),
    ("root = '/'", ":1:8: root: must be an absolute path below /, not \"/\""),
    ("state = './run'", ":1:9: state: must be an absolute path"),
    ("state = '/run/../etc'", ":1:9: state: must be an absolute path below /"),
    ("root = '$D/a:b'", ":1:8: root: must not hold ':', ',' or '\\'"),
    ("root = '$LONG'", ":1:8: root: must be at most 1024 bytes long, not "),
    ("\n\nstate = '$LONG'", ":3:9: state: must be at most 80 bytes long, not "),
    ("root = '$D/x'\nstate = '$D/x'", ":2:9: state: state $D/x and root $D/x must not lie in each"),
    ("root = '$D/x'\nstate = '$D/x/run'", ":2:9: state: state $D/x/run and root $D/x must not"),
    ("state = '/run/b'\nroot = '/run/b/lib'", ":1:9: state: state /run/b and root /run/b/lib must"),
    ("root = '/run/berth'", ":1:8: root: state /run/berth and root /run/berth must not lie"),
    ("[cri]\nsocket = 'berth.sock'", ":2:10: cri.socket: must be an absolute path"),
    ("[cri]\nsocket = 'unix:///run/berth.sock'", ":2:10: cri.socket: must be an absolute path"),
    ("[cri]\nsocket = '$LONG'", ":2:10: cri.socket: must be at most 107 bytes long"),
    (
        "root = '$D/a'\n[cri]\nsocket = '$D/a/berth.sock'",
        ":3:10: cri.socket: must lie neither in root",
    ),
    ("state = '$D/a/b'\n[cri]\nsocket = '$D/a'", ":3:10: cri.socket: must lie neither in root"),
    ("state = '$D/a'\n[cri]\nsocket = '$D/a'", ":3:10: cri.socket: must lie neither in root"),
    ("state = '$D/a'\n[cri]\nsocket = '$D/a/s'", ":3:10: cri.socket: is a name that berthd uses"),
    // Logging.
    ("[log]\nformat = 'xml'", ":2:10: log.format: log format \"xml\" is not auto, human or json"),
    ("[log]\nformat = 'JSON'", ":2:10: log.format: log format \"JSON\" is not"),
    ("[log]\nfilter = ''", ":2:10: log.filter: log filter \"\" is not a level"),
    ("[log]\nfilter = 'verbose'", ":2:10: log.filter: log filter \"verbose\" is not a level"),
    ("[log]\nfilter = 'info,berth_engine=loud'", ":2:10: log.filter: log filter"),
    // Registries.
    ("[image]\nplain_http = ['http://r:80']", ":2:15: image.plain_http[0]: must be a host"),
    ("[image]\nplain_http = ['r', 'r:x']", ":2:20: image.plain_http[1]: must be a host"),
    ("[image]\nplain_http = ['r/library']", ":2:15: image.plain_http[0]: must be a host"),
    ("[image]\nplain_http = ['10.0.0.0/8']", ":2:15: image.plain_http[0]: must be a host"),
    ("[image]\nca_files = ['ca.pem']", ":2:13: image.ca_files[0]: must be an absolute path"),
    (
        "[image]\nca_files = ['$D/none.pem']",
        ":2:13: image.ca_files[0]: read certificate authorities",
    ),
    ("[image]\nca_files = ['$D/none.pem']", "No such file"),
    ("[image]\nca_files = ['/bin']", ":2:13: image.ca_files[0]: read certificate authorities"),
    ("[image]\nca_files = ['/dev/zero']", ":2:13: image.ca_files[0]: read certificate authorities"),
    ("[image]\nca_files = [\n'$D/berthd.toml']", ":3:1: image.ca_files[0]: read certificate"),
    ("[registry]\nconfig_path = 'certs.d'", ":2:15: registry.config_path: must be an absolute"),
    ("[registry]\nmirrors = 5", ":2:1: registry.mirrors: unknown field `mirrors`"),
    // Networks.
    (
        "[network]\nsubnet = '10.85.0.0'",
        ":2:10: network.subnet: subnet \"10.85.0.0\" is not an IPv4",
    ),
    (
        "[network]\nsubnet = '10.85.0.0/33'",
        ":2:10: network.subnet: subnet \"10.85.0.0/33\" must have",
    ),
    ("[network]\nsubnet = '10.85.0.0/30'", "must have a prefix of 8 to 29 bits"),
    ("[network]\nsubnet = '0.0.0.0/0'", "must have a prefix of 8 to 29 bits"),
    ("[network]\nsubnet = '10.85.0.1/16'", "has bits set after its prefix"),
    ("[network]\nsubnet = '10.85.256.0/24'", "is not an IPv4 subnet"),
    ("[network]\nsubnet = '127.0.0.0/8'", "is not of addresses that interfaces can have"),
    ("[network]\nsubnet = '224.0.0.0/8'", "is not of addresses that interfaces can have"),
    ("[network]\nsubnet = '169.254.0.0/16'", "is not of addresses that interfaces can have"),
    ("[network]\nsubnet = 'fd00::/64'", "is not an IPv4 subnet"),
    ("[network]\nsubnet = ['10.85.0.0/16', '10.85.0.0/24']", ":2:10: network.subnet: invalid type"),
    ("[network]\ngateway = '10.85.0.1'", ":2:1: network.gateway: unknown field `gateway`"),
    ("[network]\nbridge = 'berth-bridge-zero'", ":2:10: network.bridge: bridge name"),
    ("[network]\nbridge = 'lo'", ":2:10: network.bridge: bridge name \"lo\" must be"),
    ("[network]\nbridge = 'a/b'", ":2:10: network.bridge: bridge name \"a/b\" must be"),
    ("[network]\ntable = 'a; flush ruleset'", ":2:9: network.table: table name"),
    // What containers get.
    (
        "[container]\ncgroup_base = 'berth'",
        ":2:15: container.cgroup_base: must be an absolute path",
    ),
    ("[container]\ncgroup_base = '/'", ":2:15: container.cgroup_base: must be an absolute path"),
    (
        "[container]\ncgroup_base = '/a/../b'",
        ":2:15: container.cgroup_base: must be an absolute path",
    ),
    ("[container]\ncgroup_base = \"/a\\nb\"", ":2:15: container.cgroup_base: must be an absolute"),
    (
        "[container]\nseccomp_profiles = 'x'",
        ":2:20: container.seccomp_profiles: must be an absolute",
    ),
    // Runtime handlers.
    (
        "[runtime]\ndefault = 'kata'",
        ":2:11: runtime.default: handler \"kata\" has no table; handlers: berth",
    ),
    ("[runtime]\ndefault = ''", ":2:11: runtime.default: handler \"\" has no table"),
    (
        "[runtime.handlers.kata]\nshim = 'sh'",
        ":1:10: runtime.handlers: handler \"berth\" has no table",
    ),
    (
        "[runtime]\nhandlers = {}",
        ":2:1: runtime.handlers: handler \"berth\" has no table; handlers: none",
    ),
    (
        "[runtime.handlers.'']\nshim = 'sh'",
        ":1:19: runtime.handlers.\"\": a handler without a name",
    ),
    (
        "[runtime.handlers.\"a\\nb\"]\nshim = 'sh'",
        ":1:19: runtime.handlers.\"a\\nb\": must be at most",
    ),
    (
        "[runtime.handlers.berth]\nshim = ''",
        ":2:8: runtime.handlers.berth.shim: must be an absolute",
    ),
    ("[runtime.handlers.berth]\nshim = 'bin/shim'", ":2:8: runtime.handlers.berth.shim: must be"),
    (
        "[runtime.handlers.berth]\nshim = '$D/no-shim'",
        ":2:8: runtime.handlers.berth.shim: $D/no-shim does not exist",
    ),
    (
        "[runtime.handlers.berth]\nshim = 'no-such-shim'",
        ":2:8: runtime.handlers.berth.shim: no-such-shim is no program beside",
    ),
    (
        "[runtime.handlers.berth]\nshim = '$D'",
        ":2:8: runtime.handlers.berth.shim: $D is not a file",
    ),
    ("[runtime.handlers.berth]\nshim = '$D/berthd.toml'", "berthd.toml is not executable"),
    (
        "[runtime.handlers.berth]\nshim = 'sh'\n[runtime.handlers.'k.x']\nshim = '/none'",
        ":4:8: runtime.handlers.\"k.x\".shim: /none does not exist",
    ),
];

fn berthd(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
    command.args(arguments).env_remove("NOTIFY_SOCKET").output().expect("run berthd")
}

/// Everything below `dir` and where berthd works by default: names, sizes, times.
fn on_disk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![dir.into(), "/var/lib/berth".into(), "/run/berth".into()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        found.push(format!("{} {} {:?}", path.display(), metadata.len(), metadata.modified()));
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("list directory")
                    .map(|entry| entry.expect("list directory").path()),
            );
        }
    }
    found
}

/// Has `file` refused by the check and by the daemon, which must say the path and `words`;
/// what is wrong with that.
fn not_refused(dir: &Path, file: &str, words: &str) -> Option<String> {
    let before = on_disk(dir);
    // The check first: what it does not refuse would serve, on this machine.
    for arguments in [&["config", "check", file][..], &["--config", file]] {
        let answer = berthd(arguments);
        let said = String::from_utf8_lossy(&answer.stderr).trim_end().to_owned();
        let refused = answer.status.code() == Some(1)
            && answer.stdout.is_empty()
            && said.starts_with(&format!("berthd: {file}:"))
            && said.lines().count() == 1
            && said.contains(words);
        if !refused {
            return Some(format!("{arguments:?} lacks {words}: {said:?}, {}", answer.status));
        }
    }
    (on_disk(dir) != before).then(|| format!("{file}: something was made"))
}

#[track_caller]
fn refused(dir: &Path, file: &str, words: &str) {
    let wrong = not_refused(dir, file, words);
    assert!(wrong.is_none(), "{wrong:?}");
}

#[test]
fn a_bad_configuration_is_refused_with_its_line_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berthd.toml");
    let long = format!("{}/{}", dir.path().display(), "a/".repeat(512));
    let fill =
        |text: &str| text.replace("$D", dir.path().to_str().unwrap()).replace("$LONG", &long);
    let mut wrong = Vec::new();
    for (text, words) in BAD {
        fs::write(&file, fill(text)).unwrap();
        wrong.extend(not_refused(dir.path(), file.to_str().unwrap(), &fill(words)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut texts: Vec<_> = BAD.iter().map(|(text, _)| text).collect();
    texts.dedup();
    assert!(texts.len() >= 100, "{}", texts.len());
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berthd.toml");
    let utf16: Vec<u8> = "root = '/a'".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, words) in [
        (&b"# caf\xe9\n"[..], ":1:6: byte 0xe9 is not UTF-8"),
        (b"[log]\n\nfilter = 'in\xfffo'\n", ":3:13: byte 0xff is not UTF-8"),
        (b"[log]\nfilter = 'b\xc3\xb6se\xc3\x28'", ":2:15: byte 0xc3 is not UTF-8"),
        (&[&b"\xff\xfe"[..], &utf16].concat(), ":1:1: byte 0xff is not UTF-8"),
        (&utf16, ":1:"),
        (b"\x7fELF\x02\x01\x01\0\0", ":1:"),
        (&[0; 4096], ":1:"),
    ] {
        fs::write(&file, bytes).unwrap();
        refused(dir.path(), file.to_str().unwrap(), words);
    }
}

#[test]
fn what_is_no_file_or_too_large_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    nix::unistd::mkfifo(Path::new(&path("fifo")), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(path("socket")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    symlink("circle", path("circle")).unwrap();
    File::create(path("sparse")).unwrap().set_len(1 << 40).unwrap();
    fs::write(path("large"), "# a comment\n".repeat(100_000)).unwrap();
    fs::write(path("file"), "").unwrap();
    for (file, words) in [
        (path("none"), "cannot be read: No such file"),
        (path("file/below"), "cannot be read: Not a directory"),
        (path("dangling"), "cannot be read: No such file"),
        (path("circle"), "cannot be read: Too many levels"),
        (path("fifo"), "is a FIFO, not a file"),
        (path("socket"), "cannot be read: No such device or address"),
        (path(""), "is a directory, not a file"),
        ("/dev/zero".to_owned(), "is a device, not a file"),
        ("/dev/null".to_owned(), "is a device, not a file"),
        ("/proc/self/mem".to_owned(), "cannot be read: Input/output error"),
        (path("sparse"), "is larger than 1048576 bytes"),
        (path("large"), "is larger than 1048576 bytes"),
    ] {
        refused(dir.path(), &file, words);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_file_that_may_not_be_read_is_refused: needs another user");
        return;
    }
    use std::os::unix::process::CommandExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berthd.toml");
    fs::write(&file, "").unwrap();
    // A copy: the folder that it was built in may be closed to others.
    let program = dir.path().join("berthd");
    fs::copy(env!("CARGO_BIN_EXE_berthd"), &program).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&file, 0o600)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for arguments in [&["config", "check"][..], &["--config"]] {
        let mut command = Command::new(&program);
        let answer = command.args(arguments).arg(&file).uid(65_534).gid(65_534).output().unwrap();
        let said = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(1), "{said}");
        assert!(said.contains("berthd.toml: cannot be read: Permission denied"), "{said}");
    }
}

/// As editors of other systems write it.
#[test]
fn a_byte_order_mark_and_carriage_returns_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berthd.toml");
    let shim = "[runtime.handlers.berth]\r\nshim = 'sh'\r\n";
    fs::write(&file, format!("\u{feff}root = '/a'\r\n\r\n{shim}")).unwrap();
    let answer = berthd(&["config", "check", file.to_str().unwrap()]);
    assert!(answer.status.success(), "{answer:?}");
    fs::write(&file, format!("\u{feff}{shim}\r\nmtu = 5\r\n")).unwrap();
    refused(dir.path(), file.to_str().unwrap(), ":4:1: runtime.handlers.berth.mtu: unknown field");
}

#[test]
fn a_proxy_of_the_environment_that_is_none_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("berthd.toml");
    let (root, state) = (dir.path().join("root"), dir.path().join("run"));
    let text = format!("root = '{}'\nstate = '{}'\n", root.display(), state.display());
    fs::write(&file, text + "[runtime.handlers.berth]\nshim = 'sh'\n").unwrap();
    let before = on_disk(dir.path());
    for (variable, value) in [("HTTPS_PROXY", "socks5://127.0.0.1:1"), ("http_proxy", "::")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
        let answer = command.arg("--config").arg(&file).env(variable, value).output().unwrap();
        let said = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(1), "{said}");
        assert!(said.starts_with("berthd: environment: proxy for"), "{said}");
        assert_eq!(on_disk(dir.path()), before);
    }
}
