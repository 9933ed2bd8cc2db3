//! Makes the network, IPC and UTS namespaces of sandboxes.
//!
//! A thread of its own leaves the node's namespaces, sets the new ones up from inside
//! (host name, kernel parameters), opens them, and comes back. Nobody else runs there in
//! between. If the way back fails the thread ends, and the next request starts another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use berth_model::sandbox::{NamespaceMode, NamespaceOptions};
use berth_model::{IdMappings, SandboxId};
use berth_network::Inside;
use berth_shim_client::{Error as ShimError, NamespacesRequest, Runtime};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;
use crate::worker::Worker;

/// Numbers that the in-tree shim inherits the namespaces under.
pub(crate) const NET_FD: i32 = 10;
/// See [`NET_FD`].
pub(crate) const IPC_FD: i32 = 11;
/// See [`NET_FD`].
pub(crate) const UTS_FD: i32 = 12;
/// The shared process namespace, which the shim makes itself.
pub(crate) const PID_FD: i32 = 13;
/// The user namespace that owns the others, for a pod with users of its own.
pub(crate) const USER_FD: i32 = 14;

/// The namespaces a sandbox has for itself; `None` is the node's.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) net: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
    pub(crate) user: Option<OwnedFd>,
    /// A socket in the network namespace, for whoever attaches it.
    pub(crate) inside: Option<Inside>,
}

/// Which namespaces to make, and what to write inside.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) sandbox: SandboxId,
    pub(crate) net: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
    /// Where the ids of its own users lie on the node.
    pub(crate) user: Option<IdMappings>,
    pub(crate) hostname: String,
    /// By dotted name; checked by `berth_spec::sysctl::check` before.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Where kernel parameters are.
const SYSCTLS: &str = "/proc/sys";

/// sysctl(8): dots separate, and a slash stands for a dot within a name.
fn sysctl_path(name: &str) -> PathBuf {
    let parts = name.split('.').map(|part| part.replace('/', "."));
    parts.fold(PathBuf::from(SYSCTLS), |path, part| path.join(part))
}

impl Wanted {
    pub(crate) fn new(
        sandbox: SandboxId,
        options: &NamespaceOptions,
        hostname: String,
        sysctls: BTreeMap<String, String>,
    ) -> Self {
        let net = options.network != NamespaceMode::Node;
        let ipc = options.ipc != NamespaceMode::Node;
        // With the node's network goes the node's name (CRI has no UTS mode).
        Self { sandbox, net, ipc, uts: net, user: options.user.clone(), hostname, sysctls }
    }
}

/// The thread, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Spawner {
    thread: Mutex<Option<Worker>>,
}

impl Spawner {
    /// Makes the namespaces of one sandbox; `runtime` is whose program makes those of a pod
    /// with users of its own.
    pub(crate) async fn make(
        &self,
        wanted: Wanted,
        runtime: &Runtime,
    ) -> Result<Namespaces, Error> {
        if wanted.user.is_some() {
            return self.make_with_users(wanted, runtime).await;
        }
        if !(wanted.net || wanted.ipc || wanted.uts) {
            return Ok(Namespaces::default());
        }
        self.away(move || make(&wanted)).await
    }

    /// The thread enters the network namespace only, to open a socket there: a process with
    /// threads cannot enter a user namespace (setns(2)).
    async fn make_with_users(
        &self,
        wanted: Wanted,
        runtime: &Runtime,
    ) -> Result<Namespaces, Error> {
        let id = wanted.sandbox.to_string();
        let path = |(name, value): (&String, &String)| {
            let path = sysctl_path(name);
            let below = path.strip_prefix(SYSCTLS).unwrap_or(&path);
            (below.to_string_lossy().into_owned(), value.clone())
        };
        let request = NamespacesRequest {
            ids: wanted.user.clone().unwrap_or_default(),
            net: wanted.net,
            ipc: wanted.ipc,
            uts: wanted.uts,
            hostname: wanted.hostname.clone(),
            sysctls: wanted.sysctls.iter().map(path).collect(),
        };
        let made = berth_shim_client::namespaces(runtime, &id, &request).await;
        let made = made.map_err(|source| match source {
            ShimError::Sysctl { name, source } => {
                Error::invalid("sysctl", format!("{}: {source}", name.replace('/', ".")))
            }
            source => Error::Shim { action: "make namespaces of sandbox", id, source },
        })?;
        let inside = match &made.net {
            Some(net) => {
                let failed = Error::io("duplicate namespace of", wanted.sandbox.as_str());
                let net = net.try_clone().map_err(failed)?;
                Some(self.away(move || visit(wanted.sandbox, &net)).await?)
            }
            None => None,
        };
        Ok(Namespaces {
            net: made.net,
            ipc: made.ipc,
            uts: made.uts,
            user: Some(made.user),
            inside,
        })
    }

    /// Runs `work` on the thread; its second result is about the way back.
    async fn away<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> (Result<T, Error>, Result<(), Error>) + Send + 'static,
    ) -> Result<T, Error> {
        let (made, home) = self.worker()?.run(work).await?;
        if let Err(error) = home {
            // The thread is in the wrong namespaces for good: nothing more may run there.
            tracing::error!(error = &error as &dyn std::error::Error, "leave namespaces");
            self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        made
    }

    fn worker(&self) -> Result<Worker, Error> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = &*thread {
            return Ok(worker.clone());
        }
        let worker = Worker::start("berth-spawner", 64)?;
        *thread = Some(worker.clone());
        Ok(worker)
    }
}

/// Descriptors of the namespaces this thread is in.
struct Home {
    all: [(CloneFlags, File); 3],
}

impl Home {
    fn open() -> io::Result<Self> {
        Ok(Self {
            all: [
                (CloneFlags::CLONE_NEWNET, File::open("/proc/thread-self/ns/net")?),
                (CloneFlags::CLONE_NEWIPC, File::open("/proc/thread-self/ns/ipc")?),
                (CloneFlags::CLONE_NEWUTS, File::open("/proc/thread-self/ns/uts")?),
            ],
        })
    }

    fn enter(&self, flags: CloneFlags) -> io::Result<()> {
        for (flag, namespace) in &self.all {
            if flags.contains(*flag) {
                setns(namespace, *flag)?;
            }
        }
        Ok(())
    }
}

/// Opens a socket in a network namespace, on the spawner's thread.
fn visit(sandbox: SandboxId, net: &OwnedFd) -> (Result<Inside, Error>, Result<(), Error>) {
    let failed = |step: &str| {
        let (sandbox, step) = (sandbox.clone(), step.to_owned());
        move |source: io::Error| Error::Namespaces { sandbox, step, source }
    };
    let home = match Home::open().map_err(failed("open the node's namespaces")) {
        Ok(home) => home,
        Err(error) => return (Err(error), Ok(())),
    };
    if let Err(errno) = setns(net, CloneFlags::CLONE_NEWNET) {
        return (Err(failed("enter the network namespace")(errno.into())), Ok(()));
    }
    let back = failed("return to the node's namespaces");
    let inside = Inside::here().map_err(|source| Error::Network {
        action: "prepare network",
        sandbox: sandbox.clone(),
        source,
    });
    (inside, home.enter(CloneFlags::CLONE_NEWNET).map_err(back))
}

/// Runs on the spawner's thread. The second result is about the way back.
fn make(wanted: &Wanted) -> (Result<Namespaces, Error>, Result<(), Error>) {
    let failed = |step: &str| {
        let (sandbox, step) = (wanted.sandbox.clone(), step.to_owned());
        move |source| Error::Namespaces { sandbox, step, source }
    };
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, wanted.net);
    flags.set(CloneFlags::CLONE_NEWIPC, wanted.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, wanted.uts);

    let home = match Home::open().map_err(failed("open the node's namespaces")) {
        Ok(home) => home,
        Err(error) => return (Err(error), Ok(())),
    };
    if let Err(errno) = unshare(flags) {
        return (Err(failed("unshare")(errno.into())), Ok(()));
    }
    let made = set_up(wanted);
    (made, home.enter(flags).map_err(failed("return to the node's namespaces")))
}

/// Inside the new namespaces.
fn set_up(wanted: &Wanted) -> Result<Namespaces, Error> {
    let failed = |step: String| {
        let sandbox = wanted.sandbox.clone();
        move |source: io::Error| Error::Namespaces { sandbox, step, source }
    };
    if wanted.uts {
        nix::unistd::sethostname(&wanted.hostname).map_err(|errno| {
            failed(format!("set host name {:?}", wanted.hostname))(errno.into())
        })?;
    }
    let inside = wanted.net.then(Inside::here).transpose().map_err(|source| Error::Network {
        action: "prepare network",
        sandbox: wanted.sandbox.clone(),
        source,
    })?;
    for (name, value) in &wanted.sysctls {
        let path = sysctl_path(name);
        fs::write(&path, value).map_err(|source| match source.raw_os_error() {
            // The request names what this kernel does not have, or a value it refuses.
            Some(nix::libc::ENOENT | nix::libc::EINVAL | nix::libc::ERANGE) => {
                Error::invalid("sysctl", format!("{name} = {value:?}: {source}"))
            }
            _ => failed(format!("write {}", path.display()))(source),
        })?;
    }
    let open = |wanted: bool, name: &str| -> Result<Option<OwnedFd>, Error> {
        if !wanted {
            return Ok(None);
        }
        let path = format!("/proc/thread-self/ns/{name}");
        let file = File::open(&path).map_err(failed(format!("open {path}")))?;
        Ok(Some(file.into()))
    };
    Ok(Namespaces {
        net: open(wanted.net, "net")?,
        ipc: open(wanted.ipc, "ipc")?,
        uts: open(wanted.uts, "uts")?,
        user: None,
        inside,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;

    fn root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root");
        }
        root
    }

    fn inode(fd: impl AsFd) -> u64 {
        nix::sys::stat::fstat(fd).unwrap().st_ino
    }

    fn inside<T: Send + 'static>(
        namespace: OwnedFd,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let look = move || {
            setns(&namespace, CloneFlags::empty()).unwrap();
            look()
        };
        thread::spawn(look).join().unwrap()
    }

    /// Of no use to a pod on the node's users.
    fn runtime() -> Runtime {
        Runtime { path: "/nonexistent".into(), namespace: String::new(), params: false }
    }

    fn wanted(sysctls: &[(&str, &str)]) -> Wanted {
        let sysctls = sysctls.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let options = NamespaceOptions::default();
        berth_spec::sysctl::check(&sysctls, &options).unwrap();
        Wanted::new(SandboxId::new("s").unwrap(), &options, "web-1".into(), sysctls)
    }

    #[tokio::test]
    async fn a_sandbox_gets_namespaces_with_its_name_and_parameters() {
        if !root() {
            return;
        }
        let spawner = Spawner::default();
        let sysctls =
            [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shm_rmid_forced", "1")];
        let made = spawner.make(wanted(&sysctls), &runtime()).await.unwrap();

        let name = inside(made.uts.unwrap(), || nix::unistd::gethostname().unwrap());
        assert_eq!(name, "web-1");
        assert_ne!(nix::unistd::gethostname().unwrap(), "web-1", "the node keeps its own");
        let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let read = move || fs::read_to_string(port).unwrap();
        assert_eq!(inside(made.net.unwrap(), read).trim(), "80");
        assert_ne!(fs::read_to_string(port).unwrap().trim(), "80", "the node keeps its own");
        let forced = || fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
        assert_eq!(inside(made.ipc.unwrap(), forced).trim(), "1");
    }

    #[tokio::test]
    async fn the_thread_is_back_home_after_a_failure() {
        if !root() {
            return;
        }
        let spawner = Spawner::default();
        let here = inode(File::open("/proc/thread-self/ns/net").unwrap());
        let error = spawner
            .make(wanted(&[("net.nonexistent.parameter", "1")]), &runtime())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument, "{error}");
        let there = || inode(File::open("/proc/thread-self/ns/net").unwrap());
        assert_eq!(spawner.worker().unwrap().run(there).await.unwrap(), here);

        let one = spawner.make(wanted(&[]), &runtime()).await.unwrap();
        let two = spawner.make(wanted(&[]), &runtime()).await.unwrap();
        assert_ne!(inode(one.net.unwrap()), inode(two.net.unwrap()));
    }

    #[test]
    fn a_slash_in_a_parameter_is_a_dot_of_an_interface_name() {
        let path = "/proc/sys/net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), PathBuf::from(path));
    }

    #[tokio::test]
    async fn the_nodes_namespaces_are_none() {
        let options = NamespaceOptions {
            network: NamespaceMode::Node,
            ipc: NamespaceMode::Node,
            ..NamespaceOptions::default()
        };
        let id = SandboxId::new("s").unwrap();
        let wanted = Wanted::new(id, &options, "x".into(), BTreeMap::new());
        let made = Spawner::default().make(wanted, &runtime()).await.unwrap();
        assert!(made.net.is_none() && made.ipc.is_none() && made.uts.is_none());
    }
}
