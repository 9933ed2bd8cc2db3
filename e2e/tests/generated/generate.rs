//! Requests that a seed repeats: of the right schema, and of any content.
//!
//! A field has a value that looks right, one at the edge of what can be, or one that means
//! harm. What would reach beyond the test's node, were it obeyed, is left out: paths of the
//! host, commands, cgroups, registries and grace periods are the test's own.

use std::sync::LazyLock;

use crate::schema::{Field, Kind, Schema};

/// Xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero stays zero for ever.
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(1).max(1);
        usize::try_from((self.next() >> 16) % end).unwrap_or(0)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// What exists on the test's node, and what of its host may be named.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) sandboxes: Vec<String>,
    pub(crate) containers: Vec<String>,
    /// Images that may be used.
    pub(crate) images: Vec<String>,
    /// Images that may be removed.
    pub(crate) removable: Vec<String>,
    /// Directories that may be mounted.
    pub(crate) directories: Vec<String>,
    /// Where logs may go.
    pub(crate) logs: String,
    /// A cgroup below which sandboxes may lie.
    pub(crate) cgroup: String,
}

/// A request as it is sent, and for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    pub(crate) text: String,
}

/// Makes requests.
pub(crate) struct Generator<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) random: Random,
    pub(crate) world: World,
    /// The RPC that the request is for.
    rpc: String,
    /// How often, of a hundred times, a value of this request means harm.
    malice: usize,
    made: u64,
}

/// Text that is no name, path or list; long text is made once.
static HOSTILE: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut all: Vec<String> = [
        "",
        " ",
        ".",
        "..",
        "../../etc",
        "/../..",
        "a\0b",
        "a\nnameserver 1.1.1.1",
        "-1",
        "0",
        "4294967296",
        "99999999999999999999",
        "%2e%2e%2f",
        "sha256:../../x",
        "\u{202e}\u{feff}ü",
        "'; true #",
        "{}",
        "=",
        "*",
        "ALL",
        "localhost/",
        "localhost/../../x",
        "::1",
        "a=1+kernel.core_pattern=x",
        "org.systemd.property.ExecStart",
    ]
    .map(str::to_owned)
    .into();
    all.push("x".repeat(300));
    all.push("/x".repeat(3000));
    all.push("é".repeat(40_000));
    all
});

const NUMBERS: [i64; 24] = [
    0,
    1,
    2,
    3,
    -1,
    -2,
    100,
    1000,
    1001,
    -1000,
    65_535,
    65_536,
    100_000,
    262_144,
    1 << 20,
    64 << 20,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 31,
    1 << 32,
    -(1 << 32),
    1 << 62,
    i64::MAX,
    i64::MIN,
];

impl<'a> Generator<'a> {
    pub(crate) fn new(schema: &'a Schema, seed: u64, world: World) -> Self {
        Self { schema, random: Random::new(seed), world, rpc: String::new(), malice: 0, made: 0 }
    }

    /// A request of an RPC.
    pub(crate) fn request(&mut self, rpc: &str, message: &str) -> Request {
        self.rpc = rpc.to_owned();
        self.made += 1;
        let mut request = Request::default();
        // Some requests are nearly empty, most say much.
        let density = self.random.pick(&[10, 40, 70, 95]);
        self.malice = self.random.pick(&[0, 0, 1, 5, 30]);
        self.message(message, density, 0, &mut request);
        request
    }

    fn message(&mut self, message: &str, often: usize, depth: usize, out: &mut Request) {
        out.text.push('{');
        let schema = self.schema;
        for field in schema.fields(message) {
            let wanted = match (is_needed(message, &field.name), is_special(message, &field.name)) {
                (true, _) => 100 - self.malice,
                (_, true) if self.malice == 0 => often / 16,
                _ => density(&field.name, often, depth),
            };
            if !self.random.chance(wanted) {
                continue;
            }
            let most = if self.random.below(1000) < self.malice { 200 } else { 2 };
            let count = match (field.repeated, &field.kind) {
                (true, _) | (_, Kind::Map(_)) => self.random.below(most + 1),
                _ => 1,
            };
            for _ in 0..count {
                out.text.push_str(&field.name);
                out.text.push(':');
                self.field(field, &field.kind, often, depth, out);
                out.text.push(' ');
            }
        }
        out.text.push('}');
    }

    fn field(
        &mut self,
        field: &Field,
        kind: &Kind,
        density: usize,
        depth: usize,
        out: &mut Request,
    ) {
        match kind {
            Kind::Text => {
                let text = self.text(&field.name);
                out.text.push_str(&format!("{:?}", text.chars().take(60).collect::<String>()));
                delimited(field.number, text.as_bytes(), out);
            }
            Kind::Bytes => {
                let text = self.random.pick(&HOSTILE);
                delimited(field.number, text.as_bytes(), out);
            }
            Kind::Bool => {
                let value = u64::from(self.random.chance(50));
                number(field.number, value, out);
            }
            Kind::Number(bits) => {
                let value = self.number(&field.name, *bits);
                number(field.number, value.cast_unsigned(), out);
            }
            Kind::Enum(values) => {
                let value = match self.random.chance(self.malice) {
                    false => self.random.pick(values),
                    true => self.random.pick(&[-1, 77, i64::from(i32::MAX), i64::from(i32::MIN)]),
                };
                number(field.number, value.cast_unsigned(), out);
            }
            Kind::Message(name) => {
                let mut inner = Request::default();
                self.message(name, density, depth + 1, &mut inner);
                out.text.push_str(&inner.text);
                delimited(field.number, &inner.bytes, out);
            }
            Kind::Map(value) => {
                let mut entry = Request::default();
                let key = Field {
                    number: 1,
                    name: format!("{}.key", field.name),
                    repeated: false,
                    kind: Kind::Text,
                };
                self.field(&key, &Kind::Text, density, depth, &mut entry);
                let of = Field { number: 2, name: format!("{}.value", field.name), ..key };
                self.field(&of, value, density, depth, &mut entry);
                out.text.push_str(&entry.text);
                delimited(field.number, &entry.bytes, out);
            }
        }
    }

    fn number(&mut self, name: &str, bits: u32) -> i64 {
        match name {
            // A grace period is waited for, and a port of the node is taken.
            "timeout" => self.random.pick(&[0, 0, 0, 0, 0, 0, 0, 1, -1, i64::MIN]),
            "host_port" => self.random.pick(&[0, 0, 8080, 70_000, -1, i64::from(i32::MAX)]),
            "attempt" => i64::try_from(self.made).unwrap_or(0),
            _ if !self.random.chance(self.malice) => self.random.pick(usual(name)),
            _ => {
                let value = self.random.pick(&NUMBERS);
                if bits == 32 { value.clamp(i32::MIN.into(), u32::MAX.into()) } else { value }
            }
        }
    }

    fn text(&mut self, name: &str) -> String {
        let hostile_wanted = self.random.chance(self.malice);
        let own = self.own(name);
        match own {
            Some(choices) if !choices.is_empty() && !hostile_wanted => self.random.pick(&choices),
            Some(_) if is_bound(name) => self.random.pick(&harmless()),
            _ => self.random.pick(&HOSTILE),
        }
    }

    fn ends(&self) -> bool {
        self.rpc.starts_with("Stop") || self.rpc.starts_with("Remove")
    }

    /// Values that look right.
    fn own(&self, name: &str) -> Option<Vec<String>> {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let world = &self.world;
        match name {
            // What is stopped or removed each time is there for nothing else.
            "pod_sandbox_id" | "container_id" if self.ends() && !self.made.is_multiple_of(5) => {
                words(&["0123456789abcdef", "no-such-id"])
            }
            "pod_sandbox_id" => Some(world.sandboxes.clone()),
            "container_id" | "target_id" => Some(world.containers.clone()),
            "id" => Some([world.sandboxes.clone(), world.containers.clone()].concat()),
            "image" | "image_ref" | "user_specified_image" => Some(match self.rpc.as_str() {
                "RemoveImage" => world.removable.clone(),
                "CreateContainer" => world.images.iter().take(1).cloned().collect(),
                _ => world.images.clone(),
            }),
            "host_path" => {
                let devices = ["/dev/null".to_owned(), "/dev/zero".to_owned()];
                Some([world.directories.clone(), devices.into()].concat())
            }
            "log_directory" => Some(vec![world.logs.clone()]),
            "log_path" => words(&["a.log", "a/0.log", "b.log"]),
            "cgroup_parent" => Some(vec![String::new(), world.cgroup.clone()]),
            "command" | "args" | "cmd" => words(&["true", "false", "id", "/bin/true"]),
            "working_dir" => words(&["/", "/tmp", "/new/dir"]),
            "container_path" | "masked_paths" | "readonly_paths" => {
                words(&["/data", "/data/a", "/proc/kcore", "/etc/hosts", "/dev/x", "/srv"])
            }
            "name" | "namespace" | "uid" => Some(vec![format!("n{}", self.made)]),
            "hostname" => words(&["host", "host.example"]),
            "servers" | "host_ip" => words(&["127.0.0.1", "10.0.0.1", "::1", "0.0.0.0"]),
            "searches" => words(&["example.com", "cluster.local"]),
            "options" => words(&["ndots:5", "rotate"]),
            "mount_options" => words(&["noexec", "nodev", "nosuid"]),
            "runtime_handler" => words(&[""]),
            "location" => words(&["/no/such/checkpoint"]),
            "add_capabilities" | "drop_capabilities" | "add_ambient_capabilities" => {
                words(&["ALL", "CHOWN", "CAP_NET_RAW", "SYS_ADMIN", "FLY"])
            }
            "cpuset_cpus" | "cpuset_mems" => words(&["0", "0", "9999"]),
            "page_size" => words(&["2MB", "1GB", "64KB", "3MB"]),
            "sysctls.key" => {
                words(&["kernel.shm_rmid_forced", "net.ipv4.ip_forward", "fs.mqueue.msg_max"])
            }
            "sysctls.value" => words(&["0", "1", "10"]),
            "unified.key" => words(&["memory.high", "memory.max", "pids.max", "cgroup.procs"]),
            "unified.value" => words(&["max", "1048576", "x"]),
            "permissions" => words(&["r", "rw", "rwm", "x"]),
            "localhost_ref" | "seccomp_profile_path" | "apparmor_profile" => {
                words(&["runtime/default", "unconfined", "localhost/none", "none"])
            }
            "run_as_username" | "username" => words(&["root", "nobody"]),
            "server_address" => words(&["127.0.0.1", "https://127.0.0.1:1/v1/"]),
            "pod_cidr" => words(&["10.0.0.0/8", "10.0.0.0/8,fd00::/8"]),
            "image_sub_path" => words(&["etc", "bin/../etc", "no/such"]),
            _ => words(&["a", "b", "value"]),
        }
    }
}

/// How often, of a hundred times, a field is there.
fn density(field: &str, often: usize, depth: usize) -> usize {
    match field {
        "windows" => often / 12,
        // Where a plain request is refused if it is there.
        "CDI_devices" | "selinux_options" | "userns_options" | "uidMappings" | "gidMappings" => {
            often / 4
        }
        "sysctls" | "unified" | "devices" | "port_mappings" => often / 2,
        _ if depth > 4 => often / 2,
        _ => often,
    }
}

/// Whether a request without it is refused at once, and shows nothing more.
fn is_needed(message: &str, name: &str) -> bool {
    match message {
        "ContainerConfig" => matches!(name, "metadata" | "image" | "command"),
        "PodSandboxConfig" | "RunPodSandboxRequest" => matches!(name, "metadata" | "config"),
        "PodSandboxMetadata" | "ContainerMetadata" => true,
        "ImageSpec" => name == "image",
        "Device" | "Mount" => matches!(name, "host_path" | "container_path"),
        _ if message.ends_with("Request") => {
            matches!(name, "container_id" | "pod_sandbox_id" | "config" | "image" | "cmd")
        }
        _ => false,
    }
}

/// Numbers that look right.
fn usual(name: &str) -> &'static [i64] {
    match name {
        "cpu_period" => &[0, 100_000, 50_000],
        "cpu_quota" => &[0, -1, 50_000, 200_000],
        "cpu_shares" => &[0, 2, 512, 1024],
        "memory_limit_in_bytes" => &[0, 32 << 20, 128 << 20],
        "memory_swap_limit_in_bytes" => &[0, 0, -1, 256 << 20],
        "oom_score_adj" => &[0, 500, 1000],
        "container_port" | "port" => &[80, 8080, 443],
        "value" | "supplemental_groups" => &[0, 1, 1000, 65534],
        "limit" => &[0, 2 << 20],
        "host_id" => &[100_000, 200_000],
        "container_id" => &[0],
        "length" => &[65_536],
        _ => &[0, 1, 2],
    }
}

/// Whether plain requests are without it.
fn is_special(message: &str, name: &str) -> bool {
    let of_mount = message == "Mount" && matches!(name, "image" | "image_sub_path");
    of_mount
        || matches!(
            name,
            "windows"
                | "CDI_devices"
                | "selinux_options"
                | "userns_options"
                | "uidMappings"
                | "gidMappings"
                | "devices"
                | "sysctls"
                | "unified"
                | "hugepage_limits"
                | "apparmor"
                | "apparmor_profile"
                | "seccomp"
                | "seccomp_profile_path"
                | "capabilities"
                | "target_id"
                | "pid"
                | "network"
                | "ipc"
                | "privileged"
                | "run_as_username"
                | "run_as_group"
                | "mounts"
                | "recursive_read_only"
        )
}

/// Whether anything else might be obeyed beyond the test's node.
fn is_bound(name: &str) -> bool {
    matches!(
        name,
        "host_path"
            | "log_directory"
            | "cgroup_parent"
            | "command"
            | "args"
            | "cmd"
            | "image"
            | "image_ref"
            | "sysctls.key"
            | "location"
    )
}

/// Refused whatever it names.
fn harmless() -> Vec<String> {
    let mut all: Vec<String> =
        ["", "..", "../x", "/../x", "a\0b", "/a\0b", "a\nb", "\u{202e}", "sha256:../../x"]
            .map(str::to_owned)
            .into();
    all.push(format!("/no/such/{}", "x".repeat(5000)));
    all
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn number(field: u32, value: u64, out: &mut Request) {
    out.text.push_str(&value.cast_signed().to_string());
    varint(u64::from(field) << 3, &mut out.bytes);
    varint(value, &mut out.bytes);
}

fn delimited(field: u32, bytes: &[u8], out: &mut Request) {
    varint(u64::from(field) << 3 | 2, &mut out.bytes);
    varint(u64::try_from(bytes.len()).unwrap_or(0), &mut out.bytes);
    out.bytes.extend_from_slice(bytes);
}

/// The text in field 1 of an answer: the id of what was made.
pub(crate) fn first_text(answer: &[u8]) -> Option<String> {
    let (&0x0a, rest) = answer.split_first()? else { return None };
    let (length, rest) = rest.split_first()?;
    String::from_utf8(rest.get(..usize::from(*length))?.to_vec()).ok()
}
