//! Id mappings, of the container's user namespace and of its mounts.

use berth_model::{IdMappings, IdRange};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, Mount};

pub(crate) fn map_namespace(linux: &mut Linux, ids: Option<&IdMappings>) {
    if let Some(ids) = ids {
        linux.set_uid_mappings(Some(mappings(&ids.uids)));
        linux.set_gid_mappings(Some(mappings(&ids.gids)));
    }
}

pub(crate) fn map_mount(mut mount: Mount, ids: Option<&IdMappings>) -> Mount {
    if let Some(ids) = ids {
        mount.set_uid_mappings(Some(mappings(&ids.uids)));
        mount.set_gid_mappings(Some(mappings(&ids.gids)));
    }
    mount
}

fn mappings(ranges: &[IdRange]) -> Vec<LinuxIdMapping> {
    let mapping = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container)
            .host_id(range.host)
            .size(range.length)
            .build()
            .expect("every field is set")
    };
    ranges.iter().map(mapping).collect()
}
