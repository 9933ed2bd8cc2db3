//! Bytes of a plugin's socket: two connections in one, and messages in each.
//!
//! ```text
//! frame    connection u32 | length u32 | bytes            (big-endian)
//! message  length u32 | stream u32 | type u8 | flags u8 | protobuf
//! ```
//!
//! A connection is a stream of bytes: a message may span frames, and a frame may hold
//! several messages. Frames of connections that nobody opened are passed over.

use bytes::{Buf as _, Bytes, BytesMut};

/// Largest message, bytes: ttrpc's own limit.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// Where the plugin serves and the runtime asks.
pub(crate) const PLUGIN: u32 = 1;
/// Where the runtime serves and the plugin asks.
pub(crate) const RUNTIME: u32 = 2;

const FRAME_HEADER: usize = 8;
const MESSAGE_HEADER: usize = 10;
/// Most bytes of the first frame of a message. Plugins built on the public stub read a
/// frame into a buffer of this size, and the rest of a longer message straight into its
/// own; a frame that does not fit where it is read to ends them.
const FIRST_FRAME: usize = 4096;

/// The type of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Request,
    Response,
    /// Part of a stream, which no method of this interface has.
    Other,
}

/// A message as it was received.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) connection: u32,
    pub(crate) stream: u32,
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
}

/// What no plugin may send.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a {what} of {bytes} bytes")]
pub(crate) struct TooLarge {
    what: &'static str,
    bytes: usize,
}

/// Finds messages in what was read.
#[derive(Debug, Default)]
pub(crate) struct Demultiplexer {
    /// Connection, and bytes that are still to come, of the frame being read.
    frame: Option<(u32, usize)>,
    /// What was received of messages that are not whole; at most one message and one read.
    plugin: BytesMut,
    runtime: BytesMut,
}

impl Demultiplexer {
    /// The next whole message; what it takes from `input` it keeps.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Message>, TooLarge> {
        loop {
            for connection in [PLUGIN, RUNTIME] {
                if let Some(message) = take(self.buffer(connection), connection)? {
                    return Ok(Some(message));
                }
            }
            let Some((connection, left)) = self.frame else {
                if input.len() < FRAME_HEADER {
                    return Ok(None);
                }
                let (connection, length) = (input.get_u32(), length(input.get_u32()));
                if length > MESSAGE_HEADER + MAX_MESSAGE {
                    return Err(TooLarge { what: "frame", bytes: length });
                }
                self.frame = Some((connection, length));
                continue;
            };
            let part = left.min(input.len());
            if part == 0 && left > 0 {
                return Ok(None);
            }
            if matches!(connection, PLUGIN | RUNTIME) {
                self.buffer(connection).extend_from_slice(&input[..part]);
            }
            input.advance(part);
            self.frame = (left > part).then_some((connection, left - part));
        }
    }

    fn buffer(&mut self, connection: u32) -> &mut BytesMut {
        if connection == PLUGIN { &mut self.plugin } else { &mut self.runtime }
    }
}

/// The first message in `buffer`, if it is whole.
fn take(buffer: &mut BytesMut, connection: u32) -> Result<Option<Message>, TooLarge> {
    let Some(mut header) = buffer.get(..MESSAGE_HEADER) else { return Ok(None) };
    let (bytes, stream, kind) = (length(header.get_u32()), header.get_u32(), header.get_u8());
    if bytes > MAX_MESSAGE {
        return Err(TooLarge { what: "message", bytes });
    }
    if buffer.len() < MESSAGE_HEADER + bytes {
        return Ok(None);
    }
    buffer.advance(MESSAGE_HEADER);
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Response,
        _ => Kind::Other,
    };
    let payload = buffer.split_to(bytes).freeze();
    Ok(Some(Message { connection, stream, kind, payload }))
}

fn length(raw: u32) -> usize {
    usize::try_from(raw).unwrap_or(usize::MAX)
}

/// A message as it is sent: in two frames at most.
pub(crate) fn encode(
    connection: u32,
    stream: u32,
    kind: Kind,
    payload: &[u8],
) -> Result<Vec<u8>, TooLarge> {
    let too_large = TooLarge { what: "message", bytes: payload.len() };
    let size = u32::try_from(payload.len()).map_err(|_| too_large)?;
    if payload.len() > MAX_MESSAGE {
        return Err(too_large);
    }
    let kind = match kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Other => 3,
    };
    let (first, rest) = payload.split_at(payload.len().min(FIRST_FRAME - MESSAGE_HEADER));
    let mut out = Vec::with_capacity(payload.len() + MESSAGE_HEADER + 2 * FRAME_HEADER);
    frame(&mut out, connection, MESSAGE_HEADER + first.len());
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(first);
    if !rest.is_empty() {
        frame(&mut out, connection, rest.len());
        out.extend_from_slice(rest);
    }
    Ok(out)
}

fn frame(out: &mut Vec<u8>, connection: u32, length: usize) {
    out.extend_from_slice(&connection.to_be_bytes());
    // Not above `MAX_MESSAGE` and a header.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(demultiplexer: &mut Demultiplexer, bytes: &[u8]) -> Vec<Message> {
        let mut input = BytesMut::from(bytes);
        let mut found = Vec::new();
        while let Some(message) = demultiplexer.next(&mut input).unwrap() {
            found.push(message);
        }
        assert!(input.len() < FRAME_HEADER, "nothing whole is left");
        found
    }

    #[test]
    fn what_is_sent_is_received_however_it_is_cut() {
        for size in [0, 1, 4085, 4086, 4087, 8192, 100_000] {
            let payload: Vec<u8> = (0..=255).cycle().take(size).collect();
            let mut bytes = encode(PLUGIN, 7, Kind::Response, &payload).unwrap();
            bytes.extend(encode(RUNTIME, 9, Kind::Request, b"other").unwrap());
            for cut in [0, 5, 8, 12, 18, 4104, bytes.len() - 1] {
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                let mut demultiplexer = Demultiplexer::default();
                let mut input = BytesMut::from(head);
                let mut found = Vec::new();
                while let Some(message) = demultiplexer.next(&mut input).unwrap() {
                    found.push(message);
                }
                input.extend_from_slice(tail);
                while let Some(message) = demultiplexer.next(&mut input).unwrap() {
                    found.push(message);
                }
                assert_eq!(found.len(), 2, "{size} cut at {cut}");
                assert_eq!((found[0].stream, &found[0].payload[..]), (7, &payload[..]));
                assert_eq!((found[1].connection, found[1].kind), (RUNTIME, Kind::Request));
            }
        }
    }

    #[test]
    fn frames_of_connections_that_nobody_opened_are_passed_over() {
        let mut bytes = encode(77, 1, Kind::Request, &[1; 5000]).unwrap();
        bytes.extend(encode(0, 1, Kind::Request, b"").unwrap());
        bytes.extend(encode(PLUGIN, 3, Kind::Response, b"x").unwrap());
        let found = all(&mut Demultiplexer::default(), &bytes);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].stream, 3);
    }

    #[test]
    fn several_messages_fit_in_a_frame() {
        let one = encode(PLUGIN, 1, Kind::Response, b"a").unwrap();
        let two = encode(PLUGIN, 3, Kind::Response, b"b").unwrap();
        let body: Vec<u8> = [&one[8..], &two[8..]].concat();
        let mut bytes = Vec::new();
        frame(&mut bytes, PLUGIN, body.len());
        bytes.extend(body);
        assert_eq!(all(&mut Demultiplexer::default(), &bytes).len(), 2);
    }

    /// teeth: crates/nri/src/frames.rs: `if bytes > MAX_MESSAGE {` → `if false {`
    #[test]
    fn what_is_announced_as_too_large_is_refused_before_it_is_read() {
        let mut huge = BytesMut::new();
        huge.extend_from_slice(&PLUGIN.to_be_bytes());
        huge.extend_from_slice(&u32::MAX.to_be_bytes());
        Demultiplexer::default().next(&mut huge).unwrap_err();

        let mut message = Vec::new();
        frame(&mut message, PLUGIN, MESSAGE_HEADER);
        message.extend_from_slice(&[0xff; MESSAGE_HEADER]);
        Demultiplexer::default().next(&mut BytesMut::from(&message[..])).unwrap_err();
        encode(PLUGIN, 1, Kind::Request, &vec![0; MAX_MESSAGE + 1]).unwrap_err();
    }

    #[test]
    fn the_first_frame_is_no_longer_than_a_plugins_buffer() {
        let bytes = encode(PLUGIN, 1, Kind::Request, &[0; 10_000]).unwrap();
        assert_eq!(bytes[4..8], 4096u32.to_be_bytes());
        let second = 8 + 4096;
        assert_eq!(bytes[second + 4..second + 8], (10_000u32 - 4086).to_be_bytes());
    }
}
