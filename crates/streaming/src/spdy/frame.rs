//! Frames of SPDY/3.1: eight bytes that say what follows, and what follows.
//!
//! ```text
//! control: 1 | version 3 (15) | type (16) | flags (8) | length (24) | payload
//! data:    0 | stream id (31)             | flags (8) | length (24) | payload
//! ```

use bytes::Bytes;

/// Bytes before the payload.
pub const HEAD_BYTES: usize = 8;
/// Longest payload of a control frame. Kubernetes' have less than 300 bytes.
pub(crate) const MAX_CONTROL_BYTES: usize = 16 << 10;
const VERSION: u16 = 3;
/// The bit of a word that is not the number's.
const TOP: u32 = 1 << 31;

/// The last frame of its sender on a stream.
pub const FIN: u8 = 1;
/// A stream on which only its opener sends.
pub(crate) const UNIDIRECTIONAL: u8 = 2;

/// Why a peer's bytes are not SPDY.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Another protocol, or another version of it.
    #[error("a control frame of version {0}")]
    Version(u16),
    /// A frame that is longer than any need be.
    #[error("a control frame of {0} bytes")]
    Long(u32),
    /// A frame whose length is not that of its type.
    #[error("a frame of type {0} with a wrong length")]
    Length(u16),
    /// A frame that a client does not send.
    #[error("a frame of type {0} from a client")]
    Unexpected(u16),
    /// An id that cannot be.
    #[error("stream id {0}, which cannot be")]
    Stream(u32),
    /// A header block that breaks the compression.
    #[error("a header block that does not decompress")]
    Compression,
    /// A header block that is not one.
    #[error("{0} in a header block")]
    Headers(&'static str),
    /// A window larger than one can be.
    #[error("a window update beyond the largest window")]
    Window,
}

/// Why a stream is given up (section 2.6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reset {
    /// What the peer did makes no sense.
    Protocol,
    /// There is no place for another stream.
    Refused,
    /// The stream is not wanted any more.
    Cancel,
    /// More was let through than a window can hold.
    FlowControl,
}

impl From<Reset> for u32 {
    fn from(why: Reset) -> Self {
        match why {
            Reset::Protocol => 1,
            Reset::Refused => 3,
            Reset::Cancel => 5,
            Reset::FlowControl => 7,
        }
    }
}

/// The types of control frames.
pub mod kind {
    /// Opens a stream.
    pub const SYN_STREAM: u16 = 1;
    /// Accepts a stream.
    pub const SYN_REPLY: u16 = 2;
    /// Gives up a stream.
    pub const RST_STREAM: u16 = 3;
    /// Says what the sender assumes.
    pub const SETTINGS: u16 = 4;
    /// Asks for an answer.
    pub const PING: u16 = 6;
    /// No more streams are taken.
    pub const GOAWAY: u16 = 7;
    /// Adds headers to a stream.
    pub const HEADERS: u16 = 8;
    /// Lets more through.
    pub const WINDOW_UPDATE: u16 = 9;
}

/// What the first eight bytes say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Head {
    /// A control frame.
    Control {
        /// One of [`kind`], or unknown.
        kind: u16,
        /// Bits whose meaning depends on the type.
        flags: u8,
        /// Bytes that follow.
        length: u32,
    },
    /// Payload of a stream.
    Data {
        /// The stream.
        id: u32,
        /// [`FIN`] or nothing.
        flags: u8,
        /// Bytes that follow.
        length: u32,
    },
}

impl Head {
    /// Reads the head of a frame.
    ///
    /// # Errors
    ///
    /// [`Malformed::Version`].
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, Malformed> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let word = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, x, y, z]);
        if word & TOP == 0 {
            return Ok(Self::Data { id: word, flags, length });
        }
        match u16::from_be_bytes([a & 0x7f, b]) {
            VERSION => Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length }),
            other => Err(Malformed::Version(other)),
        }
    }

    /// Writes the head of a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; HEAD_BYTES] {
        let (word, flags, length) = match self {
            Self::Control { kind, flags, length } => {
                (TOP | u32::from(VERSION) << 16 | u32::from(kind), flags, length)
            }
            Self::Data { id, flags, length } => (id & !TOP, flags, length),
        };
        let ([a, b, c, d], [_, x, y, z]) = (word.to_be_bytes(), length.to_be_bytes());
        [a, b, c, d, flags, x, y, z]
    }
}

/// A control frame of `words`, each four bytes, and of `rest`.
#[must_use]
pub fn control(kind: u16, flags: u8, words: &[u32], rest: &[u8]) -> Bytes {
    let length = u32::from_be_bytes(length_of(rest)) + 4 * u32::from_be_bytes(count_of(words));
    let mut frame = Head::Control { kind, flags, length }.bytes().to_vec();
    for word in words {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(rest);
    frame.into()
}

fn count_of(words: &[u32]) -> [u8; 4] {
    u32::try_from(words.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// A length as it stands before what has it. Nothing that is sent is as long as 4 GiB.
pub(crate) fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Exactly `N` words out of a payload of type `kind`, and what follows them.
pub(crate) fn words<const N: usize>(
    kind: u16,
    payload: &[u8],
) -> Result<([u32; N], &[u8]), Malformed> {
    let (head, rest) = payload.split_at_checked(4 * N).ok_or(Malformed::Length(kind))?;
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(head.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    Ok((words, rest))
}

/// The id of a stream without the bit that is reserved.
pub(crate) fn stream_id(word: u32) -> Result<u32, Malformed> {
    match word & !TOP {
        0 => Err(Malformed::Stream(0)),
        id => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for head in [
            Head::Control { kind: kind::PING, flags: 0, length: 4 },
            Head::Control { kind: 0xffff, flags: 0xff, length: 0xff_ffff },
            Head::Data { id: 1, flags: FIN, length: 0 },
            Head::Data { id: !TOP, flags: 0, length: 0xff_ffff },
        ] {
            assert_eq!(Head::parse(head.bytes()).unwrap(), head);
        }
        Head::parse([0x80, 2, 0, 6, 0, 0, 0, 4]).unwrap_err();
        Head::parse(*b"\xffGET / H").unwrap_err();
    }

    #[test]
    fn a_control_frame_has_the_length_of_its_payload() {
        let frame = control(kind::RST_STREAM, 0, &[3, 5], &[]);
        assert_eq!(&frame[..], [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!(words::<2>(3, &frame[8..]).unwrap(), ([3, 5], &[][..]));
        words::<3>(3, &frame[8..]).unwrap_err();
    }
}
