//! What `strace -f -y` wrote, as calls, each with the process that made it. Pure.

use std::collections::{HashMap, HashSet};

/// Who makes a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// `berthd`, its children, and programs that work for it; not its shims.
    Daemon,
    /// A shim, and what it forks until that is the container's own program.
    Shim,
    /// A container's program. What it does is not Berth's work.
    Workload,
}

/// A call that came back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Call {
    pub(crate) role: Role,
    pub(crate) name: String,
    /// As strace writes them, with what each descriptor is.
    pub(crate) arguments: String,
    /// As strace writes it: a number, a descriptor, or `-1` and an error.
    pub(crate) result: String,
}

impl Call {
    /// The result as a number; `None` when the call failed or does not return.
    pub(crate) fn number(&self) -> Option<u64> {
        let digits = self.result.split(|letter: char| !letter.is_ascii_digit()).next()?;
        digits.parse().ok()
    }

    /// What the descriptor in the first argument is: a path, `socket:[7]`, ….
    pub(crate) fn descriptor(&self) -> Option<&str> {
        within(self.arguments.split(", ").next()?)
    }

    /// What the descriptor that was returned is.
    pub(crate) fn returned(&self) -> Option<&str> {
        within(&self.result)
    }

    /// The number of the descriptor in the first argument.
    pub(crate) fn descriptor_number(&self) -> Option<u32> {
        self.arguments.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
    }
}

/// `socket:[7]` of `3<socket:[7]>`.
fn within(descriptor: &str) -> Option<&str> {
    let (_, rest) = descriptor.split_once('<')?;
    Some(rest.rsplit_once('>')?.0)
}

/// Reads a trace piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Calls that did not come back yet, by thread.
    begun: HashMap<u32, String>,
    roles: HashMap<u32, Role>,
    /// The path of the shim's executable.
    shim: String,
    /// Netlink sockets, as `-y` names them.
    netlink: HashSet<String>,
}

impl Trace {
    /// A trace of a daemon whose shims are the executable `shim`.
    pub(crate) fn new(shim: &str) -> Self {
        Self { shim: shim.to_owned(), ..Self::default() }
    }

    /// Says that `socket` (`socket:[7]`), which was there before the trace, is of netlink.
    pub(crate) fn knows_netlink(&mut self, socket: String) {
        self.netlink.insert(socket);
    }

    /// Whether `descriptor` is a netlink socket.
    pub(crate) fn is_netlink(&self, descriptor: &str) -> bool {
        self.netlink.contains(descriptor)
    }

    /// The calls that came back in `text`, the next piece.
    pub(crate) fn read(&mut self, text: &str) -> Vec<Call> {
        let whole: Vec<(u32, Line)> = text.lines().filter_map(|line| self.join(line)).collect();
        // A child may be seen before its parent's clone has come back.
        let parent = |(parent, line): &(u32, Line)| match line {
            Line::Call { name, result, .. } if is_clone(name) => {
                Some((number(result)?.try_into().ok()?, *parent))
            }
            _ => None,
        };
        let parents: HashMap<u32, u32> = whole.iter().filter_map(parent).collect();
        let mut calls = Vec::new();
        for (thread, line) in whole {
            let role = self.role(thread, &parents);
            let Line::Call { name, arguments, result } = line else {
                self.roles.remove(&thread);
                continue;
            };
            let call = Call { role, name, arguments, result };
            self.learn(thread, &call);
            calls.push(call);
        }
        calls
    }

    /// What a thread is: what it became, or what its parent is.
    fn role(&mut self, thread: u32, parents: &HashMap<u32, u32>) -> Role {
        let mut ancestor = thread;
        // As far as this piece knows; a loop of reused ids ends as well.
        for _ in 0..parents.len() {
            if self.roles.contains_key(&ancestor) {
                break;
            }
            let Some(parent) = parents.get(&ancestor) else { break };
            ancestor = *parent;
        }
        let role = self.roles.get(&ancestor).copied().unwrap_or(Role::Daemon);
        self.roles.insert(thread, role);
        role
    }

    fn learn(&mut self, thread: u32, call: &Call) {
        if matches!(call.name.as_str(), "execve" | "execveat") && call.number() == Some(0) {
            let named = call.arguments.starts_with(&format!("\"{}\"", self.shim));
            let shim = named || call.descriptor() == Some(&*self.shim);
            let role = match call.role {
                _ if shim => Role::Shim,
                // What a daemon has another program do is its own work.
                Role::Daemon => Role::Daemon,
                Role::Shim | Role::Workload => Role::Workload,
            };
            self.roles.insert(thread, role);
        }
        if is_clone(&call.name)
            && let Some(child) = call.number().and_then(|child| u32::try_from(child).ok())
        {
            self.roles.entry(child).or_insert(call.role);
        }
        if call.name == "socket"
            && call.arguments.starts_with("AF_NETLINK")
            && let Some(socket) = call.returned()
        {
            self.netlink.insert(socket.to_owned());
        }
    }

    /// Puts the two halves of a call together that another thread's call came between.
    fn join(&mut self, line: &str) -> Option<(u32, Line)> {
        let (thread, rest) = line.split_once(' ')?;
        let (thread, rest) = (thread.parse().ok()?, rest.trim_start());
        if rest.starts_with("+++") {
            self.begun.remove(&thread);
            return Some((thread, Line::Exit));
        }
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            self.begun.insert(thread, head.to_owned());
            return None;
        }
        match rest.strip_prefix("<... ") {
            Some(tail) => {
                let (_, tail) = tail.split_once(" resumed>")?;
                let whole = self.begun.remove(&thread)? + tail;
                Some((thread, Line::call(&whole)?))
            }
            None => Some((thread, Line::call(rest)?)),
        }
    }
}

/// A line that is whole.
#[derive(Debug)]
enum Line {
    Call { name: String, arguments: String, result: String },
    Exit,
}

impl Line {
    fn call(text: &str) -> Option<Self> {
        let (call, result) = text.rsplit_once(" = ")?;
        let (name, arguments) = call.split_once('(')?;
        let arguments = arguments.trim_end().strip_suffix(')').unwrap_or(arguments).trim_end();
        Some(Self::Call {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            result: result.trim().to_owned(),
        })
    }
}

pub(crate) fn is_clone(name: &str) -> bool {
    matches!(name, "clone" | "clone3" | "fork" | "vfork")
}

fn number(result: &str) -> Option<u64> {
    result.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(Role, String)> {
        let calls = Trace::new("/shim").read(text);
        calls.into_iter().map(|call| (call.role, call.name)).collect()
    }

    #[test]
    fn the_halves_of_a_call_are_one_call() {
        let mut trace = Trace::new("/shim");
        assert!(trace.read("7 read(3</a b>,  <unfinished ...>\n8 close(4</x>) = 0\n").len() == 1);
        let calls = trace.read("7 <... read resumed>\"\"..., 10) = 10\n");
        assert_eq!(calls[0].arguments, "3</a b>,  \"\"..., 10");
        assert_eq!((calls[0].descriptor(), calls[0].number()), (Some("/a b"), Some(10)));
    }

    #[test]
    fn what_a_container_runs_is_told_from_shim_and_daemon() {
        let text = "\
1 clone3({flags=CLONE_VM}, 88 <unfinished ...>
2 dup2(4</x>, 0) = 0</x>
1 <... clone3 resumed>) = 2
2 execve(\"/shim\", [\"/shim\"], 0x1) = 0
3 prctl(PR_SET_DUMPABLE) = 0
2 clone(child_stack=NULL, flags=SIGCHLD) = 3
3 execve(\"/bin/true\", [\"true\"], 0x1) = 0
3 brk(NULL) = 0x5
3 +++ exited with 0 +++
1 close(3</x>) = 0
";
        let roles: Vec<Role> = told(text).into_iter().map(|(role, _)| role).collect();
        let (daemon, shim, workload) = (Role::Daemon, Role::Shim, Role::Workload);
        // A call of execve is of whom makes it.
        assert_eq!(roles, [daemon, daemon, daemon, shim, shim, shim, workload, daemon]);
    }

    #[test]
    fn a_program_that_works_for_the_daemon_is_the_daemon() {
        let text = "\
1 clone3({flags=CLONE_VFORK}, 88) = 2
2 execve(\"/sbin/iptables\", [\"iptables\"], 0x1) = 0
2 brk(NULL) = 0x5
1 clone3({flags=CLONE_VFORK}, 88) = 3
3 execveat(7</shim>, \"\", [\"shim\"], 0x1, AT_EMPTY_PATH) = 0
3 brk(NULL) = 0x5
3 execveat(7</sleep>, \"\", [\"sleep\"], 0x1, AT_EMPTY_PATH) = 0
3 brk(NULL) = 0x5
";
        let roles: Vec<Role> = told(text)
            .into_iter()
            .filter_map(|(role, name)| (name == "brk").then_some(role))
            .collect();
        assert_eq!(roles, [Role::Daemon, Role::Shim, Role::Workload]);
    }

    #[test]
    fn a_failure_has_no_number_and_a_netlink_socket_is_known() {
        let mut trace = Trace::new("/shim");
        let calls = trace.read(
            "1 openat(AT_FDCWD</>, \"/a\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
             1 socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) = 5<socket:[77]>\n",
        );
        assert_eq!(calls[0].number(), None);
        assert!(trace.is_netlink("socket:[77]") && !trace.is_netlink("socket:[78]"));
    }
}
