//! Id mappings, of a user namespace and of mounts.

use berth_model::{IdMappings, IdRange};
use oci_spec::runtime::{Linux, LinuxIdMapping};

use crate::error::Error;

/// Reads a pair of `uidMappings` and `gidMappings`; `None` if both are empty.
pub(super) fn read(
    field: &'static str,
    uids: Option<&Vec<LinuxIdMapping>>,
    gids: Option<&Vec<LinuxIdMapping>>,
) -> Result<Option<IdMappings>, Error> {
    let all = |mappings: Option<&Vec<LinuxIdMapping>>| {
        mappings.into_iter().flatten().map(range).collect::<Vec<_>>()
    };
    let ids = IdMappings { uids: all(uids), gids: all(gids) };
    if ids == IdMappings::default() {
        return Ok(None);
    }
    ids.check().map_err(|bad| Error::invalid(field, bad.to_string()))?;
    Ok(Some(ids))
}

/// Those of the container's user namespace.
pub(super) fn of_namespace(linux: &Linux) -> Result<Option<IdMappings>, Error> {
    let (uids, gids) = (linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref());
    read("linux.uidMappings", uids, gids)
}

fn range(mapping: &LinuxIdMapping) -> IdRange {
    IdRange { container: mapping.container_id(), host: mapping.host_id(), length: mapping.size() }
}

/// Reads the values of the mount options `uidmap` and `gidmap` with which containerd asks for
/// a root file system whose owners are shown in a user namespace: `CONTAINER:HOST:LENGTH`,
/// several separated by commas or spaces.
pub(super) fn of_options(uids: &str, gids: &str) -> Result<IdMappings, Error> {
    const FIELD: &str = "rootfs";
    let bad = |text: &str| Error::invalid(FIELD, format!("{text:?} is no range of ids"));
    let all = |text: &str| -> Result<Vec<IdRange>, Error> {
        text.split([',', ' '])
            .map(|range| {
                let mut numbers = range.split(':').map(|number| number.parse::<u32>().ok());
                let mut next = || numbers.next().flatten().ok_or_else(|| bad(range));
                let range_read = IdRange { container: next()?, host: next()?, length: next()? };
                if numbers.next().is_some() { Err(bad(range)) } else { Ok(range_read) }
            })
            .collect()
    };
    let ids = IdMappings { uids: all(uids)?, gids: all(gids)? };
    ids.check().map_err(|bad| Error::invalid(FIELD, bad.to_string()))?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_say_where_ids_lie() {
        let ids = of_options("0:1000:10", "0:2000:5,5:9000:1").unwrap();
        assert_eq!(ids.host_uid(3), Some(1003));
        assert_eq!(ids.host_gid(5), Some(9000));
        for bad in ["", "0:1", "0:1:2:3", "0:1:x", "0:1:0", "-1:0:1"] {
            assert!(of_options(bad, "0:1000:10").is_err(), "{bad:?}");
        }
    }
}
