//! The worker: what has to be done outside the container, then the clone of its process.
//!
//! It closes the caller's descriptors but those it works with; the process it clones closes all
//! but those handed to it here. It ends as soon as the process exists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_cgroup::{Cgroup, JoinHandles};
use berth_sys::descriptor::close_all_but;
use berth_sys::process::{ForkOptions, InChild, fork};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::{
    DumpableBehavior, Pid, Signal, set_dumpable_behavior, set_parent_process_death_signal,
};

use crate::error::{AnyErrno, Error};
use crate::image_volumes;
use crate::init::{self, Inherited, root, stdio};
use crate::plan::{ContainerPlan, MountWhat, Namespace, ProcessPlan};
use crate::request::Stdio;
use crate::shared::SharedMounts;
use crate::user::{self, Users};
use crate::{outside, wire};

/// What [`create`] works on beside its plan.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) bundle: &'a Path,
    pub(crate) shared: &'a SharedMounts,
    pub(crate) cgroups: &'a berth_cgroup::Hierarchy,
    pub(crate) stdio: &'a Stdio,
    pub(crate) socket: BorrowedFd<'a>,
}

/// What [`exec`] works on beside its plan.
#[derive(Debug)]
pub(crate) struct Joined<'a> {
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) stdio: &'a Stdio,
    pub(crate) socket: BorrowedFd<'a>,
}

/// Runs the worker of a new container; the code is the process's exit code.
pub(crate) fn create(
    child: &InChild,
    plan: &ContainerPlan,
    around: &Surroundings<'_>,
    caller: Pid,
) -> u8 {
    let made = become_worker(caller).and_then(|()| make_container(child, plan, around, caller));
    finish(around.socket, made)
}

/// Runs the worker of a further process.
pub(crate) fn exec(child: &InChild, plan: &ProcessPlan, around: &Joined<'_>, caller: Pid) -> u8 {
    let made = become_worker(caller).and_then(|()| make_process(child, plan, around));
    finish(around.socket, made)
}

fn finish(socket: BorrowedFd<'_>, outcome: Result<(), Error>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            wire::send_failure(socket, &error);
            1
        }
    }
}

fn make_container(
    child: &InChild,
    plan: &ContainerPlan,
    around: &Surroundings<'_>,
    caller: Pid,
) -> Result<(), Error> {
    // Before the others go: a namespace may be named by its descriptor.
    let namespaces = open_namespaces(&plan.namespaces.join)?;
    let users = plan.namespaces.user.as_ref();
    let users = users.map(|user| Users::of(user, open_namespace)).transpose()?;
    let mut keep: Vec<BorrowedFd<'_>> = namespaces.iter().map(|(_, fd)| fd.as_fd()).collect();
    keep.extend(users.as_ref().map(Users::fd));
    keep.push(around.socket);
    keep.extend(around.shared.namespace());
    let_go(child, keep, around.stdio)?;
    let mut handles = make_cgroup(plan, around)?;
    let mut sources = open_sources(plan, around, users.as_ref())?;
    let stdio = stdio::guard(around.stdio)?;
    let mut root = None;
    if let Some(users) = &users {
        outside::file_systems(plan, users, &mut sources)?;
        root = Some(outside::root(plan, around.bundle, users)?);
        user::prepare(&plan.process, &stdio, users.ids)?;
        handles.for_user_namespace().map_err(Error::setup("open the cgroup"))?;
    }
    let cgroup_namespace = join_namespaces(namespaces)?;
    if let Some(users) = &users {
        users.enter()?;
        // Another user is another death signal, and may be dumpable again (prctl(2)).
        become_worker(caller)?;
    }
    let inherited = Inherited {
        socket: around.socket,
        stdio: &stdio,
        cgroup: Some(&handles),
        sources: &sources,
        bundle: around.bundle,
        cgroup_namespace: cgroup_namespace.as_ref().map(AsFd::as_fd),
        root: root.as_ref().map(AsFd::as_fd),
    };
    // The cgroup namespace's root is the cgroup it is made in: init makes it after joining.
    let options = ForkOptions {
        namespaces: Some(plan.namespaces.new - CloneFlags::CLONE_NEWCGROUP),
        sibling: true,
        cgroup: handles.unified().filter(|_| users.is_none()),
        ..ForkOptions::default()
    };
    fork(&options, |child| init::container(child, plan, &inherited))
        .map(drop)
        .map_err(Error::fork("the container's init"))
}

fn make_process(child: &InChild, plan: &ProcessPlan, around: &Joined<'_>) -> Result<(), Error> {
    let init = around.init;
    let_go(child, vec![around.socket, init], around.stdio)?;
    let handles = match around.cgroup {
        Some(cgroup) => Some(cgroup.join_handles().map_err(cgroup_error(cgroup.path()))?),
        None => None,
    };
    let stdio = stdio::guard(around.stdio)?;
    if let Some(ids) = &plan.ids {
        user::prepare(plan, &stdio, ids)?;
    }
    // Only the children of a process enter the pid namespace it joins.
    setns(init, CloneFlags::CLONE_NEWPID)
        .map_err(Error::setup("join the container's pid namespace"))?;
    let inherited = Inherited {
        socket: around.socket,
        stdio: &stdio,
        cgroup: handles.as_ref(),
        sources: &[],
        bundle: Path::new("/"),
        cgroup_namespace: None,
        root: None,
    };
    let options = ForkOptions {
        sibling: true,
        cgroup: handles.as_ref().and_then(JoinHandles::unified),
        ..ForkOptions::default()
    };
    fork(&options, |child| init::process(child, plan, init, &inherited))
        .map(drop)
        .map_err(Error::fork("the process"))
}

/// What the worker changes about itself, and so about what is cloned from it.
///
/// Both become invisible to ptrace and `/proc/PID` readers without `CAP_SYS_PTRACE` on the
/// host until `execve` (CVE-2016-9962). The caller's signal handlers and mask go: they are not
/// meant for this process, and a program would inherit what is ignored or blocked. A worker dies
/// with its caller: nobody would know of what it makes.
pub(crate) fn become_worker(caller: Pid) -> Result<(), Error> {
    hide_and_die_with_parent()?;
    // It may have died before: this process then has another parent already.
    if rustix::process::getppid() != Some(caller) {
        let outcome = "before its worker began".to_owned();
        return Err(Error::Gone { what: "the caller".into(), outcome });
    }
    berth_sys::signal::reset_to_default().map_err(Error::setup("reset signals"))
}

/// Closes what is the caller's alone. A worker may hang where no signal reaches it: with the
/// caller's sockets open its death would be noticed by nobody, and with the pipes of its
/// containers no stream would end.
fn let_go<'a>(
    child: &InChild,
    mut keep: Vec<BorrowedFd<'a>>,
    stdio: &'a Stdio,
) -> Result<(), Error> {
    if let Stdio::Fds { stdin, stdout, stderr } = stdio {
        keep.extend([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    }
    close_all_but(child, &keep).map_err(Error::setup("close the caller's descriptors"))
}

/// See [`become_worker`].
pub(crate) fn hide_and_die_with_parent() -> Result<(), Error> {
    die_with_parent()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Error::setup("make the worker not dumpable"))
}

/// Has the kernel kill this process when its parent, the caller, dies.
pub(crate) fn die_with_parent() -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::setup("ask to die with the caller"))
}

pub(crate) fn cgroup_error(
    path: &berth_cgroup::CgroupPath,
) -> impl FnOnce(berth_cgroup::Error) -> Error {
    move |error| Error::Cgroup {
        path: path.to_string(),
        source: crate::plan::reported(error.kind(), &error),
    }
}

fn make_cgroup(plan: &ContainerPlan, around: &Surroundings<'_>) -> Result<JoinHandles, Error> {
    let cgroup = around.cgroups.create(&plan.cgroup).map_err(cgroup_error(&plan.cgroup))?;
    cgroup.apply(&plan.limits).map_err(cgroup_error(&plan.cgroup))?;
    cgroup.join_handles().map_err(cgroup_error(&plan.cgroup))
}

/// Clones what bind mounts mount, one entry per mount of the plan. Done here, where the host's
/// mounts are not copies: propagation to and from the host then works.
fn open_sources(
    plan: &ContainerPlan,
    around: &Surroundings<'_>,
    users: Option<&Users<'_>>,
) -> Result<Vec<Option<OwnedFd>>, Error> {
    let mut sources = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        sources.push(match &mount.what {
            MountWhat::Bind { source, recursive } => {
                let path = around.bundle.join(source);
                let tree = clone_source(&path, *recursive, mount.exact)?;
                if let Some(ids) = &mount.ids {
                    user::map_mount(tree.as_fd(), &path, ids, users)?;
                }
                Some(tree)
            }
            MountWhat::SharedShm => {
                let home = rustix::fs::open(
                    c"/proc/self/ns/mnt",
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(Error::setup("open the host's mount namespace"))?;
                Some(around.shared.clone_shm(home.as_fd())?)
            }
            _ => None,
        });
    }
    image_volumes::open(&plan.mounts, around.bundle, users, &mut sources)?;
    Ok(sources)
}

fn clone_source(source: &Path, recursive: bool, exact: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let clone = || {
        if !exact {
            return rustix::mount::open_tree(CWD, source, flags);
        }
        let found = root::open_exact(source)?;
        rustix::mount::open_tree(&found, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
    };
    clone().map_err(|errno| Error::MountSource {
        path: source.to_owned(),
        source: AnyErrno::from(errno).0,
    })
}

/// Opens existing namespaces. All are opened before the first is joined: a path may depend on
/// where this process is.
fn open_namespaces(namespaces: &[Namespace]) -> Result<Vec<(&Namespace, OwnedFd)>, Error> {
    let mut opened = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        opened.push((namespace, open_namespace(namespace)?));
    }
    Ok(opened)
}

fn open_namespace(namespace: &Namespace) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&namespace.path, flags, Mode::empty())
        .map_err(|errno| unjoined(namespace, AnyErrno::from(errno).0))
}

/// Joins them; that of cgroups is returned, for init to join it after it has joined its cgroup.
fn join_namespaces(opened: Vec<(&Namespace, OwnedFd)>) -> Result<Option<OwnedFd>, Error> {
    let mut cgroup = None;
    for (namespace, fd) in opened {
        if namespace.flag == CloneFlags::CLONE_NEWCGROUP {
            cgroup = Some(fd);
        } else {
            // The flag makes the kernel refuse a namespace of another kind.
            setns(&fd, namespace.flag).map_err(|errno| unjoined(namespace, errno))?;
        }
    }
    Ok(cgroup)
}

fn unjoined(namespace: &Namespace, source: Errno) -> Error {
    Error::Namespace { kind: namespace.kind.into(), path: namespace.path.clone(), source }
}
