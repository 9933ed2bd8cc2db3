//! Processes added to a running container.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use berth_model::{ContainerId, ErrorKind, ExecId};
use berth_shim_client::{Error, ExecRequest, Input, Output, Process};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{LONG, Pod, is_root};

/// Opens the reading end of a new FIFO, as berthd does before it asks for an exec.
fn fifo(path: &Path) -> File {
    nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
    let file =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    file
}

/// Runs `args` in the container: what it wrote to both streams, and its code.
async fn exec(
    pod: &Pod,
    container: &ContainerId,
    id: &str,
    args: &[&str],
) -> Result<(String, String, i32), Error> {
    let (out, err) =
        (pod.dir.path().join(format!("{id}.o")), pod.dir.path().join(format!("{id}.e")));
    let (mut stdout, mut stderr) = (fifo(&out), fifo(&err));
    let exec = ExecId::new(id).unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin", "A=b"], "cwd": "/tmp"
    });
    pod.shim
        .exec(&ExecRequest {
            container: container.clone(),
            id: exec.clone(),
            process: process.to_string().into_bytes(),
            terminal: false,
            stdin: Input::Null,
            stdout: Output::Fifo(out),
            stderr: Output::Fifo(err),
        })
        .await?;
    let process = Process { container, exec: Some(&exec) };
    let started = pod.shim.start(process).await;
    let exit = timeout(LONG, pod.shim.wait(process)).await.unwrap().unwrap();
    pod.shim.delete(process).await.unwrap();
    started?;
    let mut texts = [String::new(), String::new()];
    stdout.read_to_string(&mut texts[0]).unwrap();
    stderr.read_to_string(&mut texts[1]).unwrap();
    let [out, err] = texts;
    Ok((out, err, exit.code))
}

#[tokio::test]
async fn an_exec_has_its_own_output_code_and_environment() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let script = "echo $A $PWD; cat /proc/self/oom_score_adj; echo bad >&2; exit 3";
    let answer = exec(&pod, &container, "one", &["sh", "-c", script]).await.unwrap();
    assert_eq!(answer, ("b /tmp\n500\n".into(), "bad\n".into(), 3));

    // Nothing of the container's own output, and the container goes on.
    assert_eq!(pod.lines("a"), Vec::<String>::new());
    let (_, _, code) =
        exec(&pod, &container, "two", &["/bin/sh", "-c", "kill -9 $$"]).await.unwrap();
    assert_eq!(code, 137);

    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    let late = exec(&pod, &container, "three", &["/bin/echo"]).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::FailedPrecondition);
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_missing_program_is_named_and_the_container_goes_on() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let error = exec(&pod, &container, "one", &["none"]).await.unwrap_err();
    let words = error.exec_failure().unwrap_or_else(|| panic!("{error}"));
    assert!(words.starts_with("exec none: "), "{words}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let answer = exec(&pod, &container, "two", &["echo", "hello"]).await.unwrap();
    assert_eq!(answer.0, "hello\n");
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn many_execs_at_once_mix_up_neither_output_nor_codes() {
    if !is_root() {
        return;
    }
    let pod = std::sync::Arc::new(Pod::start().await);
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (pod, container) = (std::sync::Arc::clone(&pod), container.clone());
        tasks.spawn(async move {
            let script = format!("echo {n}; exit {n}");
            let args = ["sh", "-c", &script];
            let (out, _, code) = exec(&pod, &container, &format!("e{n}"), &args).await.unwrap();
            assert_eq!((out, code), (format!("{n}\n"), n));
        });
    }
    timeout(LONG, tasks.join_all()).await.unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", pod.process.pid)).unwrap().count();
    assert!(fds < 40, "{fds} descriptors are open");
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    std::sync::Arc::into_inner(pod).unwrap().finish().await;
}

/// teeth: crates/shim/src/shim.rs: `!process.is_pending()` → `false`
#[tokio::test]
async fn a_process_is_forgotten_before_its_start_or_after_its_end_never_between() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let mut refused = 0;
    for n in 0..10 {
        let exec = ExecId::new(format!("e{n}")).unwrap();
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "100"], "env": [], "cwd": "/"
        });
        let request = ExecRequest {
            container: container.clone(),
            id: exec.clone(),
            process: process.to_string().into_bytes(),
            terminal: false,
            stdin: Input::Null,
            stdout: Output::Null,
            stderr: Output::Null,
        };
        pod.shim.exec(&request).await.unwrap();
        let process = Process { container: &container, exec: Some(&exec) };
        if n == 0 {
            pod.shim.delete(process).await.unwrap();
            assert_eq!(pod.shim.start(process).await.unwrap_err().kind(), ErrorKind::NotFound);
            continue;
        }
        let (started, deleted) = tokio::join!(pod.shim.start(process), pod.shim.delete(process));
        match deleted {
            Ok(_) => assert!(started.is_err(), "it runs, and nobody can end it"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
                refused += 1;
                started.unwrap();
                pod.shim.kill(process, 9, false, LONG).await.unwrap();
                timeout(LONG, pod.shim.wait(process)).await.unwrap().unwrap();
                pod.shim.delete(process).await.unwrap();
            }
        }
    }
    assert!(refused > 0, "no start was met");
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn what_a_terminal_showed_reaches_a_slow_reader_after_the_end() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let (path, id) = (pod.dir.path().join("tty"), ExecId::new("tty").unwrap());
    let mut output = fifo(&path);
    // More than the FIFO holds, however it is filled, and less than the terminal does.
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let script = "head -c 6000 /dev/zero | tr '\\0' x";
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"],
        "cwd": "/tmp", "terminal": true
    });
    pod.shim
        .exec(&ExecRequest {
            container: container.clone(),
            id: id.clone(),
            process: process.to_string().into_bytes(),
            terminal: true,
            stdin: Input::Null,
            stdout: Output::Fifo(path),
            stderr: Output::Null,
        })
        .await
        .unwrap();
    let process = Process { container: &container, exec: Some(&id) };
    pod.shim.start(process).await.unwrap();
    assert_eq!(timeout(LONG, pod.shim.wait(process)).await.unwrap().unwrap().code, 0);
    let reader = tokio::task::spawn_blocking(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text.len()
    });
    pod.shim.delete(process).await.unwrap();
    assert_eq!(reader.await.unwrap(), 6000);
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_paused_container_takes_no_process() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    pod.shim.pause(&container).await.unwrap();
    let id = ExecId::new("one").unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["sleep", "0"], "env": ["PATH=/bin"], "cwd": "/tmp"
    });
    pod.shim
        .exec(&ExecRequest {
            container: container.clone(),
            id: id.clone(),
            process: process.to_string().into_bytes(),
            terminal: false,
            stdin: Input::Null,
            stdout: Output::Null,
            stderr: Output::Null,
        })
        .await
        .unwrap();
    let process = Process { container: &container, exec: Some(&id) };
    let refused = timeout(LONG, pod.shim.start(process)).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused:?}");
    pod.shim.resume(&container).await.unwrap();
    pod.shim.start(process).await.unwrap();
    assert_eq!(timeout(LONG, pod.shim.wait(process)).await.unwrap().unwrap().code, 0);
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}
