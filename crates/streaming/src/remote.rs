//! Exec and attach: the streams of one process.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::backend::{Io, Outcome, Size};
use crate::mux::{Reader, Writer};
use crate::spdy::Incoming;
use crate::status::{Ending, Form};

/// Longest text for one size of a terminal.
const MAX_SIZE_BYTES: usize = 1 << 10;

/// What a client was promised by its token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// A protocol that was agreed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// Whether the client tells how large its terminal is.
    pub(crate) resizes: bool,
}

/// What SPDY clients may ask for, by name.
pub(crate) const VERSIONS: [Version; 4] = [
    Version { name: "v4.channel.k8s.io", form: Form::Status, resizes: true },
    Version { name: "v3.channel.k8s.io", form: Form::Text, resizes: true },
    Version { name: "v2.channel.k8s.io", form: Form::Text, resizes: false },
    Version { name: "channel.k8s.io", form: Form::Text, resizes: false },
];

/// The streams of a session.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<Reader>,
    pub(crate) stdout: Option<Writer>,
    pub(crate) stderr: Option<Writer>,
    pub(crate) error: Option<Writer>,
    pub(crate) resize: Option<Reader>,
    /// Directions in which nothing is said: a client takes their end for the session's.
    pub(crate) silent: Vec<Writer>,
    /// Directions in which nothing is listened to.
    pub(crate) deaf: Vec<Reader>,
}

/// Runs a process with the streams of a client, and tells it the end.
///
/// Gives back what must not be closed before the client has read everything.
pub(crate) async fn run(
    mut streams: Streams,
    form: Form,
    process: impl FnOnce(Io) -> Outcome<Ending>,
) -> Vec<Reader> {
    let (resized, resizes) = mpsc::channel(1);
    let io = Io {
        stdin: streams.stdin.take().map(|stdin| Box::new(stdin) as _),
        stdout: streams.stdout.take().map(|stdout| Box::new(stdout) as _),
        stderr: streams.stderr.take().map(|stderr| Box::new(stderr) as _),
        resizes,
    };
    let ending = tokio::select! {
        ending = process(io) => ending,
        never = forward_sizes(streams.resize.take(), resized) => match never {},
    };
    let ending = ending.unwrap_or_else(|error| Ending::Failed("error in container", error));
    if let Some(mut error) = streams.error.take() {
        // It fails when the client is gone; then nobody is left to be told.
        _ = error.write_all(&ending.text(form)).await;
    }
    streams.deaf
}

/// Hands sizes on as they come, for as long as the process runs.
async fn forward_sizes(
    resize: Option<Reader>,
    resized: mpsc::Sender<Size>,
) -> std::convert::Infallible {
    if let Some(mut resize) = resize {
        let mut text = Vec::new();
        let mut chunk = [0; 256];
        while let Ok(read @ 1..) = resize.read(&mut chunk).await {
            text.extend_from_slice(&chunk[..read]);
            for size in take_sizes(&mut text) {
                // A backend that does not listen loses nothing.
                _ = resized.send(size).await;
            }
        }
    }
    std::future::pending().await
}

/// The sizes that are complete in `text`, which keeps the rest.
fn take_sizes(text: &mut Vec<u8>) -> Vec<Size> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut whole, mut end, mut wrong) = (Vec::new(), 0, false);
    while let Some(size) = sizes.next() {
        match size {
            Ok(size) => whole.push(size),
            Err(error) => {
                wrong = !error.is_eof();
                break;
            }
        }
        end = sizes.byte_offset();
    }
    if wrong || text.len() - end > MAX_SIZE_BYTES {
        text.clear();
    } else {
        text.drain(..end);
    }
    whole
}

/// Waits until a SPDY client has opened the streams that it was promised; `None` when it
/// does not do so in time. What it opens afterwards is refused: to leave it waiting would
/// be to read nothing more of what the client sends.
pub(crate) async fn gather(
    mut opened: mpsc::Receiver<Incoming>,
    wanted: Wanted,
    version: Version,
    limit: Duration,
) -> Option<Streams> {
    let gathered = gather_all(&mut opened, wanted, version);
    let streams = tokio::time::timeout(limit, gathered).await.ok().flatten();
    opened.close();
    while let Ok(late) = opened.try_recv() {
        late.refuse();
    }
    streams
}

async fn gather_all(
    opened: &mut mpsc::Receiver<Incoming>,
    wanted: Wanted,
    version: Version,
) -> Option<Streams> {
    let mut streams = Streams {
        stdin: None,
        stdout: None,
        stderr: None,
        error: None,
        resize: None,
        silent: Vec::new(),
        deaf: Vec::new(),
    };
    while !streams.has(wanted, version) {
        let incoming = opened.recv().await?;
        streams.add(incoming, wanted)?;
    }
    Some(streams)
}

impl Streams {
    fn has(&self, wanted: Wanted, version: Version) -> bool {
        let resizes = wanted.tty && version.resizes;
        self.error.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr)
            && (self.resize.is_some() || !resizes)
    }

    fn add(&mut self, incoming: Incoming, wanted: Wanted) -> Option<()> {
        let (read, write, asked) = match incoming.headers.get("streamtype") {
            Some("error") => (None, Some(&mut self.error), true),
            Some("stdin") => (Some(&mut self.stdin), None, wanted.stdin),
            Some("stdout") => (None, Some(&mut self.stdout), wanted.stdout),
            Some("stderr") => (None, Some(&mut self.stderr), wanted.stderr),
            Some("resize") => (Some(&mut self.resize), None, true),
            _ => {
                incoming.refuse();
                return Some(());
            }
        };
        let twice = read.as_ref().is_some_and(|slot| slot.is_some())
            || write.as_ref().is_some_and(|slot| slot.is_some());
        if twice {
            incoming.refuse();
            return Some(());
        }
        let (reader, writer) = incoming.accept().ok()?;
        match (read, write) {
            // Opened without having been asked for: it is taken, and stays empty.
            _ if !asked => {
                self.deaf.push(reader);
            }
            (Some(slot), _) => {
                *slot = Some(reader);
                self.silent.push(writer);
            }
            (None, Some(slot)) => {
                *slot = Some(writer);
                self.deaf.push(reader);
            }
            (None, None) => {}
        }
        Some(())
    }
}

/// A future in a box, whose ending a client is told.
pub(crate) fn told<T: Send + 'static>(
    outcome: Outcome<T>,
    what: &'static str,
    ending: impl FnOnce(T) -> Ending + Send + 'static,
) -> Outcome<Ending> {
    let told: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
        Ok(match outcome.await {
            Ok(done) => ending(done),
            Err(error) => Ending::Failed(what, error),
        })
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, sizes: &[(u16, u16)], rest: &str) {
        let mut bytes = text.as_bytes().to_vec();
        let found: Vec<_> =
            take_sizes(&mut bytes).into_iter().map(|size| (size.width, size.height)).collect();
        assert_eq!((found.as_slice(), bytes.as_slice()), (sizes, rest.as_bytes()), "{text}");
    }

    #[test]
    fn sizes_are_taken_as_soon_as_they_are_whole() {
        check("", &[], "");
        check("{\"Width\":80,\"Height\":24}\n", &[(80, 24)], "\n");
        check("{\"Width\":80,\"Height\":24}{\"Width\":1", &[(80, 24)], "{\"Width\":1");
        check("{\"Width\":1,\"Height\":2}\n{\"width\":3,\"height\":4}", &[(1, 2), (3, 4)], "");
        check("{\"Width\":7}", &[(7, 0)], "");
    }

    #[test]
    fn what_is_no_size_is_thrown_away() {
        check("{\"Width\":70000,\"Height\":1}", &[], "");
        check("nonsense", &[], "");
        check(&"[".repeat(4000), &[], "");
        check(&format!("{{\"a\":\"{}", "x".repeat(2000)), &[], "");
    }
}
