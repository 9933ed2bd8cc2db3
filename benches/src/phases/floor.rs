//! What a phase costs at least.
//!
//! The figures were measured once, on the machine Berth is developed on (2 cores, a virtual
//! machine, kernel 6.18), with a C program written by hand that does only the necessary
//! syscalls. They are its p10 and median with warm caches, one pod after another. On another
//! machine they are a hint of proportion, no more.

/// What a phase at least has to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    /// Ends of the paths of the phases, as spans are called.
    phases: &'static [&'static str],
    /// Least cost, ms: the p10, since what else the machine does only adds to it.
    pub(super) least: f64,
    /// What is done for it.
    pub(super) what: &'static str,
}

const FLOORS: [Floor; 9] = [
    Floor {
        phases: &["namespaces"],
        least: 0.287,
        what: "network, IPC and UTS namespace made and held",
    },
    Floor {
        phases: &["run_sandbox/network"],
        least: 0.346,
        what: "veth pair, bridge port, address, routes",
    },
    Floor {
        phases: &["shim_start"],
        least: 0.546,
        what: "spawn of a static glibc binary, to its end (no monitor in the floor)",
    },
    Floor {
        phases: &["task_create"],
        least: 1.049,
        what: "worker and init below; nothing to plan",
    },
    Floor {
        phases: &["task_create/worker"],
        least: 0.412,
        what: "ten cgroups with limits 0.215, clone3 0.093, the child runs 0.104",
    },
    Floor {
        phases: &["task_create/init"],
        least: 0.637,
        what: "cgroups joined 0.100, namespaces 0.009, overlay 0.141, mounts 0.248, root 0.139",
    },
    Floor {
        phases: &["start_container/task_start"],
        least: 0.131,
        what: "capabilities 0.021, seccomp 0.110, then execve",
    },
    Floor {
        phases: &["exec_start"],
        least: 0.513,
        what: "spawn of a static glibc binary, to its end",
    },
    Floor { phases: &["store"], least: 0.06, what: "one commit to SQLite in WAL mode" },
];

/// The whole of `up` until the program was executed, p10 and median of the floor, ms.
pub(super) const UP: (f64, f64) = (2.021, 2.276);
/// The same when the machine was idle for 100 ms before, ms.
pub(super) const UP_AFTER_IDLE: (f64, f64) = (4.592, 5.005);
/// The part of `down` that a caller waits for: cgroups removed, descriptors closed, ms.
pub(super) const DOWN: (f64, f64) = (0.092, 0.098);

/// The floor of a phase, if it has one.
pub(super) fn of(path: &[String]) -> Option<&'static Floor> {
    // A phase that is passed again costs the same again.
    let name =
        |part: &String| part.trim_end_matches(|c: char| c == ' ' || c.is_ascii_digit()).to_owned();
    let path = path.iter().map(name).collect::<Vec<_>>().join("/");
    let matches = |end: &&str| path == **end || path.ends_with(&format!("/{end}"));
    FLOORS.iter().find(|floor| floor.phases.iter().any(matches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_belongs_to_a_whole_name() {
        let path = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
        assert!(of(&path("cri.run_pod_sandbox/run_sandbox/network")).is_some());
        assert!(of(&path("cri.stop_pod_sandbox/stop_sandbox/network")).is_none());
        assert!(of(&path("cri.start_container/start_container/task_create")).is_some());
        assert!(of(&path("cri.start_container/start_container/task_start")).is_some());
        assert!(of(&path("cri.exec_sync/exec_sync/exec_start/task_start")).is_none());
        assert!(of(&path("x/restore")).is_none());
        assert_eq!(of(&path("x/store 2")).map(|floor| floor.least), Some(0.06));
    }
}
