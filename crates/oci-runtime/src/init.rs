//! The container's side: what a new process does to itself before it executes its program.
//!
//! It has all the caller's privileges until [`finish`] gives them up, and everything it needs
//! from outside the container is a descriptor that it opened, or was handed, before it
//! entered.

mod cgroup_mounts;
mod console;
mod credentials;
pub(crate) mod devices;
pub(crate) mod filesystem;
pub(crate) mod finish;
mod masks;
pub(crate) mod mounts;
pub(crate) mod pivot;
pub(crate) mod procfs;
pub(crate) mod root;
pub(crate) mod rootfs;
pub(crate) mod stdio;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_cgroup::JoinHandles;
use berth_sys::process::InChild;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::Mode;

use crate::error::Error;
use crate::hooks;
use crate::plan::{ContainerPlan, ProcessPlan};
use crate::request::Stdio;
use crate::wire;

use procfs::Procfs;
use root::Root;

/// What a new process has from its worker.
#[derive(Debug)]
pub(crate) struct Inherited<'a> {
    /// Its end of the socket to the caller.
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) stdio: &'a Stdio,
    /// How it joins its cgroup.
    pub(crate) cgroup: Option<&'a JoinHandles>,
    /// What the bind mounts mount, one entry per mount of the plan.
    pub(crate) sources: &'a [Option<OwnedFd>],
    pub(crate) bundle: &'a Path,
    /// An existing cgroup namespace to join.
    pub(crate) cgroup_namespace: Option<BorrowedFd<'a>>,
    /// The root file system, mounted by the worker; it has entered a user namespace since.
    pub(crate) root: Option<BorrowedFd<'a>>,
}

/// Runs the init of a new container; returns only when that failed, with its exit code.
pub(crate) fn container(child: &InChild, plan: &ContainerPlan, from: &Inherited<'_>) -> u8 {
    let failed = match set_up_container(child, plan, from) {
        Ok(()) => finish::execute_when_told(&plan.process, from.socket, || {
            hooks::before_start(&plan.hooks, from.bundle)
        }),
        Err(error) => Some(error),
    };
    exit_code(failed, from.socket)
}

/// Runs a further process of a container; returns only when that failed, with its exit code.
pub(crate) fn process(
    child: &InChild,
    plan: &ProcessPlan,
    init: BorrowedFd<'_>,
    from: &Inherited<'_>,
) -> u8 {
    let failed = match set_up_process(child, plan, init, from) {
        Ok(()) => finish::execute_when_told(plan, from.socket, || Ok(())),
        Err(error) => Some(error),
    };
    exit_code(failed, from.socket)
}

/// Reports a failure; `None` means that the caller is gone, and nobody wants a report.
fn exit_code(failed: Option<Error>, socket: BorrowedFd<'_>) -> u8 {
    let Some(error) = failed else { return 1 };
    wire::send_failure(socket, &error);
    error.shell_code().unwrap_or(1)
}

fn set_up_container(
    child: &InChild,
    plan: &ContainerPlan,
    from: &Inherited<'_>,
) -> Result<(), Error> {
    let procfs = arrive(child, &plan.process, from, &[])?;
    if let Some(namespace) = from.cgroup_namespace {
        setns(namespace, CloneFlags::CLONE_NEWCGROUP)
            .map_err(Error::setup("join the cgroup namespace"))?;
    } else if plan.namespaces.new.contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(Error::setup("make a cgroup namespace"))?;
    }
    name_host(plan)?;
    if plan.namespaces.new.contains(CloneFlags::CLONE_NEWNET) {
        berth_sys::network::loopback_up().map_err(Error::setup("bring up the loopback"))?;
    }
    for (name, value) in &plan.sysctls {
        procfs.set_sysctl(name, value)?;
    }
    // Modes of what is made from here on are exactly those asked for.
    rustix::process::umask(Mode::empty());
    let console = build_root(plan, from, &procfs)?;
    stdio::install(from.stdio, console.as_ref(), &plan.process)?;
    wire::send_ready(from.socket, console.as_ref().map(|console| console.master.as_fd()))
        .map_err(Error::setup("report that the container is ready"))
}

/// Mounts everything, enters it, and leaves the host's behind.
fn build_root(
    plan: &ContainerPlan,
    from: &Inherited<'_>,
    procfs: &Procfs,
) -> Result<Option<console::Console>, Error> {
    let null = devices::host_null()?;
    let mounted = match from.root {
        Some(_) => None,
        None => Some(rootfs::mount(&plan.rootfs, from.bundle, None)?),
    };
    let mount = match (&mounted, from.root) {
        (Some(mounted), _) => mounted.as_fd(),
        (None, Some(mount)) => {
            rootfs::adopt(mount)?;
            mount
        }
        (None, None) => return Err(Error::Protocol("a root file system".into())),
    };
    let root = Root::new(mount);
    let later = mounts::perform(&root, plan, from.sources, procfs)?;
    if plan.fill_dev {
        // A root of a user namespace cannot make nodes; the worker has.
        let nodes = if from.root.is_some() { &[] } else { plan.devices.as_slice() };
        devices::fill(&root, nodes)?;
    }
    let console = if plan.process.terminal {
        let console = console::Console::open(&root, plan.process.window)?;
        console.bind(&root)?;
        Some(console)
    } else {
        None
    };
    root.ensure_directory(&plan.process.cwd, root::Links::Inside)?;
    // While what they are for can still be written to, whatever the program may.
    hooks::before_pivot(&plan.hooks, from.bundle, from.socket)?;
    procfs.label_next_program(&plan.process.labels)?;
    masks::hide(&root, &plan.masked_paths, null.as_fd())?;
    masks::protect(&root, &plan.readonly_paths)?;
    later.apply()?;
    rootfs::protect(&plan.rootfs, mount)?;
    pivot::pivot_into(mount)?;
    rootfs::propagate(&plan.rootfs, mount)?;
    Ok(console)
}

fn set_up_process(
    child: &InChild,
    plan: &ProcessPlan,
    init: BorrowedFd<'_>,
    from: &Inherited<'_>,
) -> Result<(), Error> {
    arrive(child, plan, from, &[init])?.label_next_program(&plan.labels)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // One's own user namespace cannot be joined (setns(2)).
    namespaces.set(CloneFlags::CLONE_NEWUSER, plan.ids.is_some());
    setns(init, namespaces).map_err(Error::setup("join the container's namespaces"))?;
    if plan.ids.is_some() {
        crate::user::become_root()?;
        // Another user is another death signal, and may be dumpable again (prctl(2)).
        crate::worker::hide_and_die_with_parent()?;
    }
    let console = if plan.terminal {
        let root = Root::own()?;
        Some(console::Console::open(&root, plan.window)?)
    } else {
        None
    };
    stdio::install(from.stdio, console.as_ref(), plan)?;
    wire::send_ready(from.socket, console.as_ref().map(|console| console.master.as_fd()))
        .map_err(Error::setup("report that the process is ready"))
}

/// What every new process does first, still outside the container: joins its cgroup, lets go
/// of the caller's descriptors, starts a session.
fn arrive(
    child: &InChild,
    plan: &ProcessPlan,
    from: &Inherited<'_>,
    also_keep: &[BorrowedFd<'_>],
) -> Result<Procfs, Error> {
    // Not inherited from the worker. A caller that died before this is noticed at the report.
    crate::worker::die_with_parent()?;
    wire::send_hello(from.socket).map_err(Error::setup("report to the caller"))?;
    if let Some(cgroup) = from.cgroup {
        cgroup.join_self().map_err(Error::setup("join the cgroup"))?;
        if from.root.is_some() {
            // It could not be cloned into it from a user namespace.
            cgroup.join_unified_self().map_err(Error::setup("join the cgroup"))?;
        }
    }
    let mut keep = vec![from.socket];
    keep.extend(also_keep);
    keep.extend(from.cgroup_namespace);
    keep.extend(from.root);
    keep.extend(from.sources.iter().flatten().map(AsFd::as_fd));
    if let Stdio::Fds { stdin, stdout, stderr } = from.stdio {
        keep.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    }
    berth_sys::descriptor::close_all_but(child, &keep)
        .map_err(Error::setup("close the caller's descriptors"))?;
    rustix::process::setsid().map_err(Error::setup("start a session"))?;
    let procfs = Procfs::of_host()?;
    procfs.with_key_label(&plan.labels, || join_keyring(plan))?;
    if let Some(score) = plan.oom_score_adj {
        procfs.set_oom_score_adj(score)?;
    }
    Ok(procfs)
}

/// A session keyring of its own, so that it does not see the caller's.
fn join_keyring(plan: &ProcessPlan) -> Result<(), Error> {
    use nix::errno::Errno;
    match berth_sys::keyring::join_new_session(&plan.keyring) {
        // A kernel without keys has no keyring to hide.
        Ok(()) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(Error::setup("join a session keyring")(errno)),
    }
}

fn name_host(plan: &ContainerPlan) -> Result<(), Error> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(Error::setup("set the host name"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(Error::setup("set the domain name"))?;
    }
    Ok(())
}
