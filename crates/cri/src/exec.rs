//! Run a command in a container to its end.

use berth_api::v1::{ExecSyncRequest, ExecSyncResponse};
use berth_engine::Engine;

use crate::container::seconds;
use crate::serve::MAX_MESSAGE_BYTES;
use crate::{Error, ids};

/// What an answer needs beside the two streams.
const FRAMING_BYTES: usize = 64;

pub(crate) async fn exec_sync(
    engine: &Engine,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, Error> {
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(Error::Missing("cmd"));
    }
    let timeout = seconds("timeout", request.timeout)?;
    let id = ids::container(engine, "container_id", &request.container_id)?;
    let timeout = (!timeout.is_zero()).then_some(timeout);
    let output = engine.exec_sync(&id, request.cmd, timeout).await?;
    let (stdout, stderr) = fitted(output.stdout, output.stderr);
    Ok(ExecSyncResponse { stdout, stderr, exit_code: output.code })
}

/// Cuts the streams so that both fit into one message: kubelet drops a larger answer
/// whole, exit code included. Standard error keeps at least half of the room.
fn fitted(mut stdout: Vec<u8>, mut stderr: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let room = MAX_MESSAGE_BYTES - FRAMING_BYTES;
    if stdout.len().saturating_add(stderr.len()) > room {
        stderr.truncate(room.saturating_sub(stdout.len()).max(room / 2));
        stdout.truncate(room - stderr.len());
    }
    (stdout, stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/cri/src/exec.rs: `stdout.truncate(room - stderr.len());` → ``
    /// teeth: crates/cri/src/exec.rs: `.max(room / 2)` → ``
    #[test]
    fn d1_both_streams_fit_into_one_message() {
        let all = MAX_MESSAGE_BYTES;
        for (out, err) in [(all, all), (all, 0), (0, all), (all, 10), (10, all), (all / 2, all / 2)]
        {
            let (stdout, stderr) = fitted(vec![0; out], vec![0; err]);
            assert!(length(&stdout) + length(&stderr) + 11 <= all, "{out} {err}");
            assert!(stdout.len() + stderr.len() >= all - FRAMING_BYTES, "{out} {err}");
            assert!(stderr.len() >= err.min((all - FRAMING_BYTES) / 2), "{out} {err}");
        }
        let (stdout, stderr) = fitted(vec![1; 5], vec![2; 7]);
        assert_eq!((stdout.len(), stderr.len()), (5, 7));
    }

    /// Encoded length of a bytes field: tag, four bytes of length, content.
    fn length(bytes: &[u8]) -> usize {
        5 + bytes.len()
    }
}
