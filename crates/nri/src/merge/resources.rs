//! Limits: each one has its own owner.

use berth_api::nri::{Field, LinuxCpu, LinuxMemory, LinuxResources};

use super::owners::Claim;
use crate::Error;

/// Sets in every place what a plugin wants.
pub(super) fn merge(
    claim: &mut Claim<'_>,
    wanted: &LinuxResources,
    places: &mut [&mut LinuxResources],
) -> Result<(), Error> {
    if let Some(memory) = &wanted.memory {
        merge_memory(claim, memory, places)?;
    }
    if let Some(cpu) = &wanted.cpu {
        merge_cpu(claim, cpu, places)?;
    }
    for limit in &wanted.hugepage_limits {
        claim.take_entry(Field::HugepageLimits, &limit.page_size)?;
        for place in places.iter_mut() {
            place.hugepage_limits.retain(|known| known.page_size != limit.page_size);
            place.hugepage_limits.push(limit.clone());
        }
    }
    for (key, value) in &wanted.unified {
        claim.take_entry(Field::CgroupsUnified, key)?;
        for place in places.iter_mut() {
            place.unified.insert(key.clone(), value.clone());
        }
    }
    for place in places.iter_mut() {
        place.devices.extend_from_slice(&wanted.devices);
    }
    if wanted.blockio_class.is_some() {
        claim.take(Field::BlockioClass)?;
        places.iter_mut().for_each(|place| place.blockio_class.clone_from(&wanted.blockio_class));
    }
    if wanted.rdt_class.is_some() {
        claim.take(Field::RdtClass)?;
        places.iter_mut().for_each(|place| place.rdt_class.clone_from(&wanted.rdt_class));
    }
    if wanted.pids.is_some() {
        claim.take(Field::PidsLimit)?;
        places.iter_mut().for_each(|place| place.pids = wanted.pids);
    }
    Ok(())
}

/// Takes each field that is given, and sets it in every place.
macro_rules! take {
    ($claim:ident, $wanted:ident, $places:ident, $part:ident: $($name:ident = $field:ident,)*) => {
        $(if $wanted.$name.is_some() {
            $claim.take(Field::$field)?;
            for place in $places.iter_mut() {
                place.$part.get_or_insert_default().$name = $wanted.$name;
            }
        })*
    };
}

fn merge_memory(
    claim: &mut Claim<'_>,
    wanted: &LinuxMemory,
    places: &mut [&mut LinuxResources],
) -> Result<(), Error> {
    take! { claim, wanted, places, memory:
        limit = MemLimit,
        reservation = MemReservation,
        swap = MemSwapLimit,
        kernel = MemKernelLimit,
        kernel_tcp = MemTcpLimit,
        swappiness = MemSwappiness,
        disable_oom_killer = MemDisableOomKiller,
        use_hierarchy = MemUseHierarchy,
    }
    Ok(())
}

fn merge_cpu(
    claim: &mut Claim<'_>,
    wanted: &LinuxCpu,
    places: &mut [&mut LinuxResources],
) -> Result<(), Error> {
    take! { claim, wanted, places, cpu:
        shares = CpuShares,
        quota = CpuQuota,
        period = CpuPeriod,
        realtime_runtime = CpuRealtimeRuntime,
        realtime_period = CpuRealtimePeriod,
    }
    if !wanted.cpus.is_empty() {
        claim.take(Field::CpusetCpus)?;
        for place in places.iter_mut() {
            place.cpu.get_or_insert_default().cpus.clone_from(&wanted.cpus);
        }
    }
    if !wanted.mems.is_empty() {
        claim.take(Field::CpusetMems)?;
        for place in places.iter_mut() {
            place.cpu.get_or_insert_default().mems.clone_from(&wanted.mems);
        }
    }
    Ok(())
}
