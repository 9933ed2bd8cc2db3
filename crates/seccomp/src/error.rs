//! Why a profile cannot become a program.

use berth_model::ErrorKind;

/// Why a seccomp profile was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The profile asks a user-space agent to decide (`SCMP_ACT_NOTIFY`), which Berth does not do.
    #[error("seccomp action SCMP_ACT_NOTIFY{} is not supported", of(.syscall.as_deref()))]
    Notify {
        /// The system call it is asked for; `None` for the default action.
        syscall: Option<String>,
    },
    /// An argument index beyond the six that a system call has.
    #[error("seccomp rule for {syscall}: argument index {index} is above 5")]
    ArgumentIndex {
        /// First system call of the rule.
        syscall: String,
        /// The index as given.
        index: usize,
    },
    /// An errno (or trace value) that does not fit the 16 bits the kernel has for it.
    #[error("seccomp profile: return value {0} does not fit 16 bits")]
    ReturnValue(u32),
    /// The machine's own architecture has no table of system calls here.
    #[error("seccomp: no system call table for this machine's architecture")]
    NativeArchitecture,
    /// The program would be longer than the kernel takes (`BPF_MAXINSNS`).
    #[error("seccomp program has {instructions} instructions, the kernel takes {limit}")]
    TooLong {
        /// What the profile needs.
        instructions: usize,
        /// What the kernel takes.
        limit: usize,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Notify { .. } | Self::NativeArchitecture => ErrorKind::Unimplemented,
            Self::ArgumentIndex { .. } | Self::ReturnValue(_) | Self::TooLong { .. } => {
                ErrorKind::InvalidArgument
            }
        }
    }
}

fn of(syscall: Option<&str>) -> String {
    syscall.map_or_else(|| " as default action".to_owned(), |name| format!(" for {name}"))
}
