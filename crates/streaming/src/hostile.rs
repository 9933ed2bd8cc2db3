//! Bytes that no client sends, by the ten thousand: seeded, so that a failure comes again.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::mux::{Mux, Reader, Writer};
use crate::peer::Peer;
use crate::spdy::frame::{self, Head, kind};
use crate::spdy::{self, Encoder, Headers};
use crate::websocket::{self, Codec};

/// Longer than any connection takes whose bytes have ended.
const LIMIT: Duration = Duration::from_secs(30);

/// xorshift64*: what it gives depends on its seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap()
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Mostly what could be, sometimes what is on the edge of it, sometimes anything.
    fn number(&mut self) -> u32 {
        let edges = [0, 1, 2, 3, 7, 1 << 14, (1 << 14) + 1, (1 << 24) - 1, 1 << 31, u32::MAX];
        match self.below(4) {
            0 => edges[self.below(10)],
            1 => u32::try_from(self.next() >> 32).unwrap(),
            _ => u32::try_from(self.below(12)).unwrap(),
        }
    }
}

/// A frame of SPDY: right, nearly right, or wrong.
fn spdy_frame(random: &mut Random, encoder: &mut Encoder, next: &mut u32) -> Vec<u8> {
    let id = if random.below(4) == 0 { random.number() } else { next.saturating_sub(2) };
    let flags = if random.below(3) == 0 { random.next().to_le_bytes()[0] } else { 0 };
    let mut frame = match random.below(10) {
        0..3 => {
            let names = ["error", "stdin", "stdout", "data", "x"];
            let name = names[random.below(5)];
            let headers: Headers = [("streamtype", name), ("port", "80")].into_iter().collect();
            let block = match random.below(8) {
                0 => random.bytes(64),
                _ => encoder.encode(&headers).unwrap(),
            };
            let id = if random.below(8) == 0 { random.number() } else { *next };
            *next = next.wrapping_add(2);
            frame::control(kind::SYN_STREAM, flags, &[id, 0], &[&[0, 0], &block[..]].concat())
                .to_vec()
        }
        3..5 => {
            let bytes = random.bytes(40_000);
            let length = u32::try_from(bytes.len()).unwrap();
            [&Head::Data { id, flags, length }.bytes()[..], &bytes].concat()
        }
        5 => frame::control(kind::PING, flags, &[random.number()], &[]).to_vec(),
        6 => frame::control(kind::WINDOW_UPDATE, 0, &[id, random.number()], &[]).to_vec(),
        7 => {
            let entry = [random.number(), random.number(), random.number()];
            frame::control(kind::SETTINGS, 0, &entry, &random.bytes(16)).to_vec()
        }
        8 => frame::control(kind::RST_STREAM, 0, &[id, random.number()], &[]).to_vec(),
        _ => {
            let kind = u16::try_from(random.below(12)).unwrap();
            frame::control(kind, flags, &[random.number()], &random.bytes(40)).to_vec()
        }
    };
    damage(random, &mut frame);
    frame
}

/// A message of WebSocket: right, nearly right, or wrong.
fn websocket_frame(random: &mut Random) -> Vec<u8> {
    let most = if random.below(4) == 0 { 40_000 } else { 100 };
    let bytes = random.bytes(most);
    let opcode = [0, 1, 2, 2, 2, 2, 8, 9, 10, 11][random.below(10)];
    let last = if random.below(5) == 0 { 0 } else { 0x80 };
    let mut frame = vec![last | opcode];
    match (bytes.len(), u16::try_from(bytes.len()).unwrap()) {
        (length @ 0..126, _) => frame.push(0x80 | u8::try_from(length).unwrap()),
        (_, length) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    // The mask, and a channel under it.
    frame.extend_from_slice(&[0, 0, 0, 0]);
    let start = frame.len();
    frame.extend_from_slice(&bytes);
    if let Some(channel) = frame.get_mut(start) {
        *channel = [0, 4, b'0', 255, *channel][random.below(5)];
    }
    damage(random, &mut frame);
    frame
}

/// Changes, cuts or lengthens one frame in sixteen.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    if random.below(16) > 0 || frame.is_empty() {
        return;
    }
    let length = u64::try_from(frame.len()).unwrap();
    match random.below(3) {
        0 => {
            let place = random.below(length.min(16));
            frame[place] = random.next().to_le_bytes()[0];
        }
        1 => frame.truncate(random.below(length)),
        _ => frame.extend(random.bytes(20)),
    }
}

/// A session that reads and writes, keeps, or drops what it gets.
async fn session(number: usize, (mut reader, mut writer): (Reader, Writer)) {
    match number % 4 {
        0 => {
            // What fails here, fails for the client.
            _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
        1 => {
            _ = writer.write_all(&[0; 1000]).await;
        }
        2 => drop(reader),
        _ => {}
    }
}

/// Feeds `bytes` to a transport; whatever they are, it ends when they have.
async fn survive(bytes: Vec<u8>, serve: impl AsyncFnOnce(tokio::io::DuplexStream)) {
    let (near, far) = tokio::io::duplex(8 << 10);
    let (mut read, mut write) = tokio::io::split(near);
    let client = async {
        // The server may end the connection before it has read everything.
        _ = write.write_all(&bytes).await;
        _ = write.shutdown().await;
    };
    let answers = async {
        let mut sink = [0; 4096];
        while matches!(read.read(&mut sink).await, Ok(1..)) {}
    };
    let all = async { tokio::join!(client, answers, serve(far)) };
    tokio::time::timeout(LIMIT, all).await.expect("the connection ends with its bytes");
}

/// teeth: crates/streaming/src/mux/state.rs: `stream.reset || (stream.end_sent && stream.finished)` → `stream.end_sent && stream.finished`
#[tokio::test]
async fn d11_thousands_of_frames_of_spdy_that_nobody_agreed_on() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let (mut encoder, mut next) = (Encoder::new().unwrap(), 1);
        let count = 1 + random.below(40);
        let bytes: Vec<u8> =
            (0..count).flat_map(|_| spdy_frame(&mut random, &mut encoder, &mut next)).collect();
        survive(bytes, async |socket| {
            let mux = Mux::new(Peer::default());
            let (connection, mut opened) = spdy::Connection::new(mux.clone()).unwrap();
            let sessions = async {
                let mut running = tokio::task::JoinSet::new();
                for number in 0.. {
                    match opened.recv().await {
                        Some(incoming) if number % 5 == 4 => incoming.refuse(),
                        Some(incoming) => {
                            let streams = incoming.accept().unwrap();
                            running.spawn(session(number, streams));
                        }
                        None => break,
                    }
                }
                running.join_all().await;
            };
            // What is wrong with them is another matter.
            let (_, ()) = tokio::join!(spdy::drive(socket, connection), sessions);
            assert_eq!(mux.count(), 0, "seed {seed}");
        })
        .await;
    }
}

/// teeth: crates/streaming/src/mux/state.rs: `self.streams.values_mut().for_each(Stream::break_off);` → ``
#[tokio::test]
async fn d11_thousands_of_messages_of_websocket_that_nobody_agreed_on() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let count = 1 + random.below(40);
        let bytes: Vec<u8> = (0..count).flat_map(|_| websocket_frame(&mut random)).collect();
        let codec = [Codec::Binary, Codec::Base64, Codec::Raw][random.below(3)];
        survive(bytes, async |socket| {
            let mux = Mux::new(Peer::default());
            let streams = [0, 1, 4].map(|id| mux.open(id, false));
            let mut running = tokio::task::JoinSet::new();
            for (number, streams) in streams.into_iter().enumerate() {
                running.spawn(session(number, streams));
            }
            let drive = websocket::drive(socket, mux.clone(), codec, random.below(2) == 0);
            // As above.
            let (_, _) = tokio::join!(drive, running.join_all());
            assert_eq!(mux.count(), 0, "seed {seed}");
        })
        .await;
    }
}

/// teeth: crates/streaming/src/spdy/drive.rs: `mux.wait_for_answers().await;` → ``
#[tokio::test(start_paused = true)]
async fn d11_refusals_that_nobody_reads_are_not_kept() {
    let (mut client, far) = tokio::io::duplex(8 << 10);
    let (connection, mut opened) = spdy::Connection::new(Mux::new(Peer::default())).unwrap();
    let refusing = async {
        while let Some(incoming) = opened.recv().await {
            incoming.refuse();
        }
    };
    let mut encoder = Encoder::new().unwrap();
    let asking = async {
        for id in (1..200_000).step_by(2) {
            let headers: Headers = [("streamtype", "x")].into_iter().collect();
            let block = [&[0, 0], &encoder.encode(&headers).unwrap()[..]].concat();
            let frame = frame::control(kind::SYN_STREAM, 0, &[id, 0], &block);
            client.write_all(&frame).await.unwrap();
        }
    };
    tokio::select! {
        _ = spdy::drive(far, connection) => panic!("the connection ended"),
        () = refusing => panic!("the connection takes no streams"),
        stuck = tokio::time::timeout(LIMIT, asking) => {
            stuck.expect_err("the client waits until it reads");
        }
    }
}

/// teeth: crates/streaming/src/spdy/drive.rs: `if id > self.last {` → `if false {`
#[tokio::test]
async fn d11_noise_is_neither_protocol() {
    for seed in 1..=500 {
        let mut random = Random(seed);
        let bytes = random.bytes(2000);
        survive(bytes.clone(), async |socket| {
            let (connection, _opened) = spdy::Connection::new(Mux::new(Peer::default())).unwrap();
            let ended = spdy::drive(socket, connection).await;
            let refused = matches!(ended, Err(spdy::Error::Malformed(_)));
            assert!(refused || bytes.len() < frame::HEAD_BYTES, "seed {seed}: {ended:?}");
        })
        .await;
        survive(bytes, async |socket| {
            let mux = Mux::new(Peer::default());
            _ = websocket::drive(socket, mux, Codec::Binary, true).await;
        })
        .await;
    }
}
