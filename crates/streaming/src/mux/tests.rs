//! How much a connection keeps of what was not taken yet, on either side of it.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// As many streams as a client may have.
const STREAMS: u32 = 1000;
/// What all streams of a connection keep in one direction, what each keeps for the socket
/// whatever the others keep, and what each keeps for it at most.
const ALL_KEEP: usize = 2 << 20;
const SHARE: usize = 4 << 10;
const ONE_KEEPS: usize = 32 << 10;
/// Longer than anything takes that goes on.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection with all the streams that it may have.
fn connection() -> (Mux, Vec<(Reader, Writer)>) {
    let mux = Mux::new(Peer::default());
    let streams = (1..=STREAMS).map(|id| mux.open(id, false)).collect();
    (mux, streams)
}

/// Writes until a stream takes no more, which is how much it took.
fn fill(writer: &mut Writer) -> usize {
    let mut taken = 0;
    while let Some(written) = writer.write(&[0; 1000]).now_or_never() {
        taken += written.unwrap();
    }
    taken
}

fn fill_all(streams: &mut [(Reader, Writer)]) -> usize {
    streams.iter_mut().map(|(_, writer)| fill(writer)).sum()
}

/// teeth: crates/streaming/src/mux/state.rs: `const CONNECTION_OUTBOUND_BYTES: usize = 2 << 20;` → `const CONNECTION_OUTBOUND_BYTES: usize = usize::MAX;`
#[tokio::test]
async fn d11_what_waits_for_a_client_that_never_reads_has_a_bound() {
    let (_mux, mut streams) = connection();
    let kept = fill_all(&mut streams);
    assert!(kept <= ALL_KEEP + streams.len() * SHARE, "{kept} bytes are kept");
}

/// teeth: crates/streaming/src/mux/state.rs: `let room = spare.max(OUTBOUND_SHARE.saturating_sub(kept));` → `let room = spare;`
#[tokio::test(start_paused = true)]
async fn d11_streams_that_a_client_does_not_read_do_not_stop_the_one_it_does() {
    let (mux, mut streams) = connection();
    // It lets nothing through but on the first one, and counts all of them on 0.
    mux.set_initial_window(0);
    assert!(mux.credit(0, 1 << 30) && mux.credit(1, 1 << 30));
    fill_all(&mut streams[1..]);
    let bytes = vec![0; 1 << 20];
    let writing = streams[0].1.write_all(&bytes);
    let reading = async {
        let mut got = 0;
        while got < bytes.len() {
            match mux.next().await {
                Output::Data { id: 1, bytes, .. } => got += bytes.len(),
                other => panic!("{other:?} is sent"),
            }
        }
    };
    let both = async { tokio::join!(writing, reading) };
    let (written, ()) = tokio::time::timeout(LIMIT, both).await.expect("the stream goes on");
    written.unwrap();
}

/// teeth: crates/streaming/src/mux/state.rs: `self.outbound -= stream.outbound.len();` → ``
#[tokio::test]
async fn d11_what_a_client_gives_up_is_room_for_others() {
    let (mux, mut streams) = connection();
    fill_all(&mut streams);
    (1..=STREAMS).for_each(|id| mux.reset(id));
    let (_reader, mut writer) = mux.open(STREAMS + 1, false);
    assert_eq!(fill(&mut writer), ONE_KEEPS);
}

/// teeth: crates/streaming/src/mux/state.rs: `self.outbound -= bytes.len();` → ``
#[tokio::test]
async fn d11_what_was_sent_is_room_for_more() {
    let (mux, mut streams) = connection();
    let kept = fill_all(&mut streams);
    let mut sent = 0;
    while let Some(Output::Data { bytes, .. }) = mux.try_next() {
        sent += bytes.len();
    }
    assert_eq!(sent, kept);
    assert_eq!(fill(&mut streams[0].1), ONE_KEEPS);
}

/// teeth: crates/streaming/src/mux/state.rs: `const CONNECTION_BYTES: usize = 2 << 20;` → `const CONNECTION_BYTES: usize = usize::MAX;`
#[tokio::test]
async fn d11_what_waits_for_readers_has_a_bound() {
    let (mux, mut streams) = connection();
    let chunk = [0; 10_000];
    let push = |id| mux.state().push(id, &chunk);
    let kept: usize = (0..10).flat_map(|_| 1..=STREAMS).map(push).sum();
    assert_eq!(kept, ALL_KEEP);
    // Whoever reads makes room, and nobody else has to.
    streams[0].0.read_exact(&mut [0; 10_000]).await.unwrap();
    assert_eq!(push(STREAMS), chunk.len());
    assert_eq!(push(STREAMS), 0);
}

/// teeth: crates/streaming/src/mux/half.rs: `stream.inbound.shrink_to(2 * left);` → ``
#[tokio::test]
async fn d11_what_was_read_keeps_no_memory() {
    let (mux, mut streams) = connection();
    let length = mux.state().push(1, &[0; 100_000]);
    streams[0].0.read_exact(&mut vec![0; length - 1]).await.unwrap();
    let kept = mux.state().streams[&1].inbound.capacity();
    assert!(kept < 1000, "{kept} bytes for one");
}

/// teeth: crates/streaming/src/mux/state.rs: `std::mem::replace(&mut self.outbound, rest)` → `self.outbound.clone()); self.outbound.truncate(0); self.outbound.extend(rest`
#[tokio::test]
async fn d11_what_was_sent_keeps_no_memory() {
    let (mux, mut streams) = connection();
    let written = u32::try_from(fill(&mut streams[0].1)).unwrap();
    // All but one byte of it is let through.
    mux.set_initial_window(written - 1);
    while mux.try_next().is_some() {}
    let state = mux.state();
    let stream = &state.streams[&1];
    assert_eq!(stream.outbound.len(), 1);
    assert!(stream.outbound.capacity() < 1000, "{} bytes for one", stream.outbound.capacity());
}
