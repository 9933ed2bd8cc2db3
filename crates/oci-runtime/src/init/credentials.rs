//! User, groups and capabilities: given up for good.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets as KernelSets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::Error;
use crate::plan::{CapabilitySets, UserPlan};

/// Highest capability number the kernel's two 32-bit words have room for.
const LAST: u32 = 63;

/// Becomes the user, with exactly the capabilities given, as far as this process has them: what
/// the host has taken from us cannot be given on.
pub(crate) fn assume(user: &UserPlan, wanted: &CapabilitySets) -> Result<(), Error> {
    let own = capabilities(None).map_err(Error::setup("read own capabilities"))?.permitted;
    bound(wanted.bounding)?;
    set_keep_capabilities(true).map_err(Error::setup("keep capabilities"))?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // These are the bare system calls, for the calling thread alone; it is the only one.
    set_thread_groups(&groups).map_err(Error::setup("set supplementary groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(Error::setup("set the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(Error::setup("set the user"))?;
    let ambient = wanted.ambient & own;
    let sets = KernelSets {
        effective: wanted.effective & own,
        permitted: wanted.permitted & own,
        // Ambient capabilities have to be inheritable, and nothing else may (CVE-2022-29162).
        inheritable: ambient,
    };
    set_capabilities(None, sets).map_err(Error::setup("set capabilities"))?;
    set_keep_capabilities(false).map_err(Error::setup("stop keeping capabilities"))?;
    clear_ambient_capability_set().map_err(Error::setup("clear ambient capabilities"))?;
    for capability in ambient.iter() {
        configure_capability_in_ambient_set(capability, true)
            .map_err(Error::setup("raise an ambient capability"))?;
    }
    Ok(())
}

/// Drops every capability from the bounding set that is not in `keep`, those too that this
/// program does not know by name.
fn bound(keep: CapabilitySet) -> Result<(), Error> {
    for number in 0..=LAST {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has no capability of that number, nor any above it.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(Error::setup("bound capabilities")(errno)),
        }
    }
    Ok(())
}
