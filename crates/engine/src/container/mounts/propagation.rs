//! Whether mounts can propagate from a place of the host (mount_namespaces(7)).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use berth_model::mount::{BindMount, Propagation};
use nix::fcntl::OFlag;

use crate::{Error, files};

/// Largest table of mounts read, bytes: some 100,000 of them.
const MAX_TABLE: u64 = 16 << 20;
/// More than what `/proc` tells of a descriptor without content, bytes.
const MAX_DESCRIPTOR: u64 = 4096;

/// Refuses a propagation that the source cannot give: without this the container would
/// run, and never see what it waits for.
pub(super) fn check(mount: &BindMount, table: &mut Table) -> Result<(), Error> {
    if mount.propagation == Propagation::Private {
        return Ok(());
    }
    let id = mount_id(&mount.host_path)?;
    if table.read()?.gives(&id, mount.propagation) {
        return Ok(());
    }
    let needed = match mount.propagation {
        Propagation::Bidirectional => "a shared mount",
        _ => "a shared or slave mount",
    };
    let problem = format!("{} does not lie on {needed}", mount.host_path.display());
    Err(Error::invalid("mount propagation", problem))
}

/// Id of the mount that `path` lies on, as the table has it.
fn mount_id(path: &Path) -> Result<String, Error> {
    let file = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    let file = file.map_err(Error::io("open", path))?;
    let told = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let text = files::read_bounded(Path::new(&told), MAX_DESCRIPTOR)?;
    let text = String::from_utf8_lossy(&text);
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.map(|id| id.trim().to_owned())
        .ok_or_else(|| Error::io("find mount of", path)(std::io::ErrorKind::InvalidData.into()))
}

/// The mounts of the host that propagate, by id; read when it is asked for, once.
#[derive(Debug, Default)]
pub(super) struct Table {
    peers: Option<HashMap<String, Peers>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Peers {
    shared: bool,
    slave: bool,
}

impl Table {
    fn read(&mut self) -> Result<&Self, Error> {
        if self.peers.is_none() {
            let text = files::read_bounded(Path::new("/proc/thread-self/mountinfo"), MAX_TABLE)?;
            *self = Self::parse(&String::from_utf8_lossy(&text));
        }
        Ok(self)
    }

    /// The optional fields lie between the sixth and a dash (proc_pid_mountinfo(5)).
    fn parse(text: &str) -> Self {
        let mut peers: HashMap<String, Peers> = HashMap::new();
        for line in text.lines() {
            let mut fields = line.split(' ');
            let id = fields.next().unwrap_or_default();
            let mut found = Peers::default();
            for field in fields.skip(5).take_while(|field| *field != "-") {
                found.shared |= field.starts_with("shared:");
                found.slave |= field.starts_with("master:");
            }
            if found.shared || found.slave {
                peers.insert(id.to_owned(), found);
            }
        }
        Self { peers: Some(peers) }
    }

    /// Whether mount `id` has a peer group that gives `wanted`.
    fn gives(&self, id: &str, wanted: Propagation) -> bool {
        let found = self.peers.as_ref().and_then(|peers| peers.get(id));
        found.is_some_and(|it| it.shared || (wanted == Propagation::HostToContainer && it.slave))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_propagates_is_told_by_the_fields_before_the_dash() {
        let table = "22 1 0:21 / / rw shared:1 - ext4 /dev/a rw\n\
                     23 22 0:22 / /b rw master:1 - ext4 /dev/b rw\n\
                     24 22 0:22 / /c rw shared:7 master:1 - ext4 /dev/b rw\n\
                     25 22 0:22 / /d rw - ext4 shared:9 rw\n";
        let both = |id| {
            [Propagation::Bidirectional, Propagation::HostToContainer]
                .map(|wanted| Table::parse(table).gives(id, wanted))
        };
        assert_eq!(both("22"), [true, true]);
        assert_eq!(both("23"), [false, true]);
        assert_eq!(both("24"), [true, true]);
        assert_eq!(both("25"), [false, false]);
        assert_eq!(both("2"), [false, false]);
    }

    #[test]
    fn the_table_is_read_once_for_all_mounts() {
        let mut table = Table::parse("");
        let found = table.read().unwrap().peers.as_ref().map(HashMap::len);
        assert_eq!(found, Some(0), "what was read is what counts");
    }

    #[test]
    fn the_mount_of_a_path_is_in_the_table() {
        let id = mount_id(Path::new("/proc/self")).unwrap();
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.split(' ').next() == Some(id.as_str())).unwrap();
        assert!(line.contains(" - proc "), "{line}");
    }
}
