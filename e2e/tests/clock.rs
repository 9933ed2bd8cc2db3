//! Row "clock ±1 y, NTP step": the wall clock of daemon and shims is set a year ahead or
//! back in the middle of what takes time, by failpoint; no duration and no order changes.
//!
//! Never the machine's own clock.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::image::ImageBuilder;
use berth_testkit::tar::Tar;
use berth_testkit::{Cri, Node, Pod, bind, container_config, log, script};
use tonic::Code;

/// Seconds.
const YEAR: i64 = 31_536_000;
/// What a duration may be off on a busy machine; a clock that was counted with is off by a
/// [`YEAR`].
const TOLERANCE: Duration = Duration::from_secs(10);
/// Both ways.
const STEPS: [i64; 2] = [YEAR, -YEAR];

/// Sets the clock of the node off by `seconds`.
fn set(node: &Node, seconds: i64) -> Result<()> {
    node.daemon().arm(&format!("clock {seconds:+}\n"))
}

/// What `work` answers and how long it took; the clock is stepped a second after it began,
/// from right to `step` off and, another second later, as far off the other way.
async fn stepped<T: Send + 'static>(
    node: &Node,
    step: i64,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<(T, Duration)> {
    set(node, 0)?;
    let began = Instant::now();
    let work = tokio::spawn(async move { (work.await, began.elapsed()) });
    for seconds in [step, -step] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if work.is_finished() {
            // Too early, or this test had to wait: how long it took tells which.
            break;
        }
        set(node, seconds)?;
    }
    let done = work.await?;
    set(node, 0)?;
    Ok(done)
}

#[track_caller]
fn lasted(found: Duration, expected: Duration) {
    assert!(found >= expected && found <= expected + TOLERANCE, "{found:?}, not {expected:?}");
}

/// The time that the clock of the node says now, as a log line has it.
async fn year_of_log(node: &mut Node, pod: &Pod, image: &str) -> Result<u32> {
    let id = node.run(pod, &container_config("dated", image, &["echo", "now"])).await?;
    node.wait_exit(&id).await?;
    let name = &pod.config.metadata.as_ref().context("no metadata")?.name;
    let year = node.read_log(name, "dated")?[0].time[..4].parse()?;
    node.cri.remove_container(&id).await?;
    fs::remove_file(node.log_directory(name).join("dated.log"))?;
    Ok(year)
}

/// teeth: crates/failpoint/src/wall.rs: `let now = crate::armed::shift(now);` → ``
#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_daemon_and_shim_can_be_set_wrong() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let right = year_of_log(&mut node, &pod, &image).await?;
    for step in STEPS {
        set(&node, 10 * step)?;
        let wrong = year_of_log(&mut node, &pod, &image).await?;
        assert!(wrong.abs_diff(right).abs_diff(10) <= 1, "{wrong} {right}");
        let made = node.pod(&format!("made{step}")).await?;
        let at = node.cri.sandbox_status(&made.id).await?.created_at;
        let off = at / 1_000_000_000 - i64::try_from(unix_seconds()?)?;
        assert!((off - 10 * step).abs() < 3600, "{off}");
    }
    node.assert_clean().await
}

fn unix_seconds() -> Result<u64> {
    // A file that was just written: the kernel's word, since ours is what is tested.
    let file = tempfile::NamedTempFile::new()?;
    Ok(file.as_file().metadata()?.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_has_its_grace_whatever_the_clock_does() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let deaf = "trap '' TERM; echo ready; while true; do sleep 1; done";
    let slow = "trap 'sleep 3; exit 9' TERM; echo ready; while true; do sleep 0.1; done";
    for step in STEPS {
        let id = node.run(&pod, &script(&image, deaf)).await?;
        node.wait_for_line("pod", "main", "ready").await?;
        let (stopped, took) = stepped(&node, step, stop(node.cri.clone(), &id, 3)).await?;
        stopped?;
        lasted(took, Duration::from_secs(3));
        forget(&mut node, &id, 137).await?;

        // It ends by itself, long before its grace does.
        let id = node.run(&pod, &script(&image, slow)).await?;
        node.wait_for_line("pod", "main", "ready").await?;
        let (stopped, took) = stepped(&node, step, stop(node.cri.clone(), &id, 60)).await?;
        stopped?;
        lasted(took, Duration::from_secs(3));
        forget(&mut node, &id, 9).await?;
    }
    node.assert_clean().await
}

fn stop(
    mut cri: Cri,
    id: &str,
    grace: i64,
) -> impl Future<Output = Result<(), tonic::Status>> + use<> {
    let id = id.to_owned();
    async move { cri.stop_container(&id, grace).await }
}

/// Removes `main`, which must have ended with `code`, after it began.
async fn forget(node: &mut Node, id: &str, code: i32) -> Result<()> {
    let status = node.wait_exit(id).await?;
    assert_eq!(status.exit_code, code, "{status:?}");
    let times = [status.created_at, status.started_at, status.finished_at];
    assert!(times.is_sorted() && times[0] > 0, "{times:?}");
    node.cri.remove_container(id).await?;
    fs::remove_file(node.log_directory("pod").join("main.log"))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_time_whatever_the_clock_does() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    for step in STEPS {
        for (seconds, timeout) in [("777", 3), ("3", 60), ("3", 0)] {
            let (mut cri, id) = (node.cri.clone(), id.clone());
            let command = async move { cri.exec(&id, &["sleep", seconds], timeout).await };
            let (answer, took) = stepped(&node, step, command).await?;
            lasted(took, Duration::from_secs(3));
            match answer {
                Ok(answer) => assert_eq!((answer.exit_code, seconds), (0, "3")),
                Err(status) => {
                    assert_eq!((status.code(), seconds), (Code::DeadlineExceeded, "777"));
                }
            }
        }
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_takes_the_time_that_its_registry_takes_whatever_the_clock_does() -> Result<()> {
    const RATE: usize = 500_000;
    let node = Node::start().await?;
    let mut usual = None;
    for (number, step) in [0].into_iter().chain(STEPS).enumerate() {
        let data = noise(3 * RATE, u64::try_from(number)? + 1);
        let image = ImageBuilder::new().plain_layer(Tar::new().file("data", 0o644, &data));
        let name = format!("slow{number}");
        node.push(&name, "latest", &image.build()?)?;
        let proxy = Proxy::start(&node, RATE, None)?;
        let (mut cri, reference) = (node.cri.clone(), proxy.reference(&name));
        let pull = async move { cri.pull(&reference).await };
        let (pulled, took) = stepped(&node, step, pull).await?;
        pulled?;
        assert!(took >= Duration::from_millis(2900), "{took:?}");
        // The first one, by a right clock, is what the others are held against.
        let usual = *usual.get_or_insert(took);
        assert!(took.abs_diff(usual) <= TOLERANCE, "{took:?}, not {usual:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_names_a_date_is_asked_again_then_whatever_the_clock_says() -> Result<()> {
    let node = Node::start().await?;
    for (number, step) in STEPS.into_iter().enumerate() {
        let image = ImageBuilder::new().plain_layer(Tar::new().file("data", 0o644, b"x"));
        let name = format!("later{number}");
        node.push(&name, "latest", &image.build()?)?;
        // Three seconds by the registry's clock, which nobody else has.
        let later = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\
                     Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                     Retry-After: Sun, 06 Nov 1994 08:49:40 GMT\r\n\r\n";
        let proxy = Proxy::start(&node, 10_000_000, Some(later))?;
        let (mut cri, reference) = (node.cri.clone(), proxy.reference(&name));
        let pull = async move { cri.pull(&reference).await };
        let (pulled, took) = stepped(&node, step, pull).await?;
        pulled?;
        lasted(took, Duration::from_secs(3));
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_keeps_its_order_over_restarts_whatever_the_clock_says() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("running", &image, &["sleep", "1000"])).await?;
    let (mut containers, mut sandboxes) = (vec![running.clone()], vec![pod.id.clone()]);
    let dir = node.dir().join("volume");
    fs::create_dir(&dir)?;
    for (number, step) in [YEAR, -YEAR, 0].into_iter().enumerate() {
        let wait = format!("while [ ! -e /data/{number} ]; do sleep 0.02; done; exit 42");
        let mut config = container_config(&format!("brief{number}"), &image, &["sh", "-c", &wait]);
        config.mounts = vec![bind("/data", &dir)];
        let brief = node.run(&pod, &config).await?;
        containers.push(brief.clone());
        let known = node.cri.container_status(&running).await?;

        node.kill_daemon()?;
        set(&node, step)?;
        fs::write(dir.join(number.to_string()), "")?;
        let began = Instant::now();
        node.kill_and_restart().await?;
        let status = node.wait_exit(&brief).await?;
        // Nothing waits for a time that is a year away.
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
        let times = [status.created_at, status.started_at, status.finished_at];
        assert!(times.is_sorted() && times[0] > 0, "{times:?}");
        assert_eq!(node.cri.container_status(&running).await?, known);

        // Made by the clock as it is now, and younger than what was made by another one.
        let after = container_config(&format!("after{number}"), &image, &["true"]);
        let after = node.run(&pod, &after).await?;
        let status = node.wait_exit(&after).await?;
        let times = [status.created_at, status.started_at, status.finished_at];
        assert!(times.is_sorted() && times[0] > 0, "{times:?}");
        containers.push(after);
        // Lists are sorted by the time at which the daemon says that a thing was made.
        assert_eq!(node.cri.containers().await?, containers);
        let mut again = pod.config.clone();
        again.metadata.as_mut().context("no metadata")?.attempt = u32::try_from(number)? + 1;
        sandboxes.push(node.pod_with(again).await?.id);
    }
    let mut times = Vec::new();
    for id in &sandboxes {
        times.push(node.cri.sandbox_status(id).await?.created_at);
    }
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(node.cri.exec(&running, &["echo", "alive"], 10).await?.stdout, b"alive\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_logs_go_on_whatever_the_clock_does() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let count = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let id = node.run(&pod, &script(&image, count)).await?;
    node.wait_for_line("pod", "main", "line 5").await?;
    let (current, mut text) = (node.log_directory("pod").join("main.log"), String::new());
    for step in [0, YEAR, -YEAR, 0] {
        set(&node, step)?;
        // Two readings: by their distance a rate is told.
        let mut last = None;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1100)).await;
            let request = v1::ContainerStatsRequest { container_id: id.clone() };
            let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats;
            last = stats.context("no stats")?.cpu;
        }
        let rate = last.and_then(|cpu| cpu.usage_nano_cores).context("no rate")?.value;
        assert!(rate > 0 && rate < 64_000_000_000, "{rate}");

        let rotated = current.with_extension(format!("log.{}", text.len()));
        fs::rename(&current, &rotated)?;
        let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
        node.cri.runtime.reopen_container_log(request).await?;
        // Each line is read as one of a log, with a time.
        text.push_str(&log::text(&log::read(&rotated)?, "stdout"));
    }
    node.cri.stop_container(&id, 0).await?;
    text.push_str(&log::text(&node.read_log("pod", "main")?, "stdout"));
    let numbers: Vec<usize> =
        text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    assert!(numbers.len() > 100 && numbers.iter().copied().eq(0..numbers.len()), "{text}");
    node.assert_clean().await
}

/// Bytes that do not compress (xorshift).
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// Passes what the node's registry sends on, at a rate of its own.
struct Proxy {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Answers the first connection with `refusal`, if any, and passes `rate` bytes a second
    /// of each other one.
    fn start(node: &Node, rate: usize, refusal: Option<&'static str>) -> Result<Self> {
        let (registry, ended) = (node.registry.address(), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&ended);
        // Threads that start there live in the machine's network, as the registry does.
        let (address, accepting) = node.machine.run(move || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let accepting = thread::spawn(move || {
                let mut refusal = refusal;
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => drop(serve(client, registry, rate, refusal.take())),
                        Err(_none_yet) => thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
            Ok((address, accepting))
        })?;
        Ok(Self { address, ended, accepting: Some(accepting) })
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}:latest", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.accepting.take().map(JoinHandle::join);
    }
}

/// Threads pass the bytes until either side closes.
fn serve(
    mut client: TcpStream,
    registry: SocketAddr,
    rate: usize,
    refusal: Option<&str>,
) -> Result<()> {
    client.set_nonblocking(false)?;
    if let Some(refusal) = refusal {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        return Ok(client.write_all(refusal.as_bytes())?);
    }
    let server = TcpStream::connect(registry)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pass(from, to, usize::MAX));
    thread::spawn(move || pass(server, client, rate));
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, rate: usize) {
    let mut chunk = [0; 8192];
    let rate = u32::try_from(rate).unwrap_or(u32::MAX);
    let mut due = Instant::now();
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        // Time in which nothing was asked for is not made up for.
        let length_u32 = u32::try_from(length).unwrap_or(u32::MAX);
        due = due.max(Instant::now()) + Duration::from_secs(1) * length_u32 / rate;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Write).ok();
}
