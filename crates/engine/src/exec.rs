//! A command in a running container, to its end.
//!
//! Its streams are FIFOs in a directory of its own. It ends with its client: whatever drops
//! the future has the process killed, by the shim or without it; what a daemon did not live
//! to end, the next one does.
//!
//! ```text
//! client --stdin--> in  --> shim --> process      back-pressure all the way: who reads
//! client <-stdout-- out <----------- process      slowly slows down the command, and
//! client <-stderr-- err <----------- process      loses nothing
//! ```

mod end;
mod fifos;
mod session;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::{ContainerId, ExecId};
use berth_shim_client::Shim;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, debug_span};

pub(crate) use self::end::sweep;
use self::fifos::{Directory, process};
use self::session::Session;
use self::stream::{Input, Output, Sink};
use crate::client::{Io, Size};
use crate::container::Container;
use crate::core::{Core, step, step_blocking};
use crate::{Error, ExecOutput, clock};

/// Longest that a command without a timeout of its own may run.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs `command`; see [`crate::Engine::exec_sync`].
pub(crate) async fn exec_sync(
    core: &Arc<Core>,
    id: &ContainerId,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let limit = limit.filter(|limit| !limit.is_zero()).unwrap_or(FOREVER).min(FOREVER);
    let until = Instant::now() + limit;
    let (container, shim) = find(core, id)?;
    let wanted = Wanted {
        command,
        tty: false,
        stdin: None,
        stdout: Sink::Kept(Vec::new()),
        stderr: Sink::Kept(Vec::new()),
        resizes: None,
    };
    let late = || Error::Deadline { what: format!("command in container {id}"), limit };
    let run = timeout_at(until, run(core, &container, shim, wanted));
    let ended = async { run.await.unwrap_or_else(|_| Err(late())) };
    let Ended { stdout, stderr, code } = tracked(core, ended).await?;
    Ok(ExecOutput { stdout: stdout.kept(), stderr: stderr.kept(), code })
}

/// Runs `command` for a client; see [`crate::Engine::exec`].
pub(crate) async fn exec(
    core: &Arc<Core>,
    id: &ContainerId,
    command: Vec<String>,
    tty: bool,
    io: Io,
) -> Result<i32, Error> {
    let (container, shim) = find(core, id)?;
    let wanted = Wanted {
        command,
        tty,
        stdin: io.stdin,
        stdout: Sink::Client(io.stdout),
        stderr: Sink::Client(io.stderr),
        resizes: tty.then_some(io.resizes),
    };
    Ok(tracked(core, run(core, &container, shim, wanted)).await?.code)
}

/// The container, if a command can run in it, and its shim.
pub(crate) fn find(core: &Core, id: &ContainerId) -> Result<(Arc<Container>, Shim), Error> {
    let container = core.container(id)?;
    let status = container.status.get();
    if status.pid().is_none() {
        let state = status.state.name();
        return Err(Error::ContainerState { verb: "exec in", id: id.clone(), state });
    }
    let shim = container.sandbox.live_shim("exec")?;
    Ok((container, shim))
}

/// A shutdown ends `work`, and waits for what it tracks: until the command was taken back.
async fn tracked<T>(core: &Core, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let bounded = async {
        tokio::select! {
            done = work => done,
            () = core.shutdown.cancelled() => Err(Error::ShuttingDown),
        }
    };
    core.tasks.track_future(bounded).await
}

/// What is to be run, and for whom.
struct Wanted {
    command: Vec<String>,
    tty: bool,
    stdin: Option<crate::client::Reader>,
    stdout: Sink,
    stderr: Sink,
    resizes: Option<mpsc::Receiver<Size>>,
}

/// What a command leaves.
struct Ended {
    stdout: Sink,
    stderr: Sink,
    code: i32,
}

async fn run(
    core: &Arc<Core>,
    container: &Container,
    shim: Shim,
    wanted: Wanted,
) -> Result<Ended, Error> {
    let Wanted { command, tty, stdin, stdout, stderr, mut resizes } = wanted;
    // A client says at once how large its terminal is: a program need not see another size.
    let size = resizes.as_mut().and_then(|resizes| resizes.try_recv().ok());
    let exec = ExecId::from_random(clock::random()?);
    let dir = Directory::at(core.config.execs().join(exec.as_str()), stdin.is_some());
    // From here on whatever happens takes back what was made.
    let mut session = Session {
        core: Arc::clone(core),
        shim,
        container: container.id.clone(),
        exec,
        dir: dir.clone(),
        tty,
        known: false,
        process: None,
        ended: false,
    };
    let (bundle, id) = (container.bundle.clone(), container.id.clone());
    step(Point::EXEC_ENTERED).await?;
    let prepare = move || {
        dir.make(&id)?;
        step_blocking(Point::EXEC_FIFOS)?;
        process(&bundle, command, tty, size)
    };
    let process = core.disk.run(prepare).instrument(debug_span!("prepare")).await??;
    let dir = &session.dir;
    let mut out = Output::open(&dir.stdout(), stdout)?;
    let mut err = Output::open(&dir.stderr(), stderr)?;
    let input = stdin.map(|client| Input::open(&dir.stdin(), client)).transpose()?;

    session.known = true;
    let sandbox = &container.sandbox.id;
    let started = session.start(process, sandbox).instrument(debug_span!("exec_start")).await;
    // The process has its ends by now, or never will.
    out.let_go();
    err.let_go();
    started?;

    let wait = session.wait(&mut out, &mut err, input, resizes);
    let exited = wait.instrument(debug_span!("exec_wait")).await?;
    session.ended = true;
    step(Point::EXEC_ENDED).await?;
    Ok(Ended { stdout: out.into_sink(), stderr: err.into_sink(), code: exited.code })
}
