//! Frames of RFC 6455, section 5.2.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a frame is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const ALL: [(u8, Self); 6] = [
        (0, Self::Continuation),
        (1, Self::Text),
        (2, Self::Binary),
        (8, Self::Close),
        (9, Self::Ping),
        (10, Self::Pong),
    ];

    fn byte(self) -> u8 {
        Self::ALL.iter().find(|(_, code)| *code == self).map_or(0, |(byte, _)| *byte)
    }

    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Why a peer's bytes are not WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a frame with bits that nobody agreed on")]
    Reserved,
    #[error("a frame with opcode {0}, which nobody knows")]
    Opcode(u8),
    #[error("a client's frame without a mask")]
    Unmasked,
    #[error("a control frame in parts, or longer than 125 bytes")]
    Control,
    #[error("a part of a message out of its order")]
    Order,
    #[error("a length that cannot be")]
    Length,
    #[error("text that is not base64")]
    Base64,
    #[error("a close signal that names no channel")]
    CloseSignal,
}

/// What comes before the payload of a client's frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Head {
    pub(crate) last: bool,
    pub(crate) opcode: Opcode,
    pub(crate) length: u64,
    pub(crate) mask: [u8; 4],
}

/// Reads the next head; `None` where the connection ends between two frames.
pub(crate) async fn read_head(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Result<Head, Malformed>>> {
    let mut start = [0; 2];
    if reader.read(&mut start[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut start[1..]).await?;
    let [first, second] = start;
    if first & 0x70 != 0 {
        return Ok(Some(Err(Malformed::Reserved)));
    }
    let code = first & 0x0f;
    let Some((_, opcode)) = Opcode::ALL.iter().find(|(byte, _)| *byte == code) else {
        return Ok(Some(Err(Malformed::Opcode(code))));
    };
    if second & 0x80 == 0 {
        return Ok(Some(Err(Malformed::Unmasked)));
    }
    let (last, opcode) = (first & 0x80 != 0, *opcode);
    let length = match second & 0x7f {
        126 => u64::from(reader.read_u16().await?),
        127 => reader.read_u64().await?,
        short => u64::from(short),
    };
    if opcode.is_control() && (!last || length > 125) {
        return Ok(Some(Err(Malformed::Control)));
    }
    if length > i64::MAX.unsigned_abs() {
        return Ok(Some(Err(Malformed::Length)));
    }
    let mut mask = [0; 4];
    reader.read_exact(&mut mask).await?;
    Ok(Some(Ok(Head { last, opcode, length, mask })))
}

/// Takes the mask off a piece of a payload that begins `offset` bytes into it.
pub(crate) fn unmask(piece: &mut [u8], mask: [u8; 4], offset: u64) {
    // Only the place in the mask matters.
    let start = usize::try_from(offset % 4).unwrap_or(0);
    for (byte, key) in piece.iter_mut().zip(mask.iter().cycle().skip(start)) {
        *byte ^= key;
    }
}

/// A server's message in one frame.
pub(crate) fn message(opcode: Opcode, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(length + 10);
    frame.push(0x80 | opcode.byte());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Option<Result<Head, Malformed>> {
        read_head(&mut &bytes[..]).await.unwrap()
    }

    #[tokio::test]
    async fn heads_are_read_in_all_three_lengths() {
        let head = |length| Head { last: true, opcode: Opcode::Binary, length, mask: [1, 2, 3, 4] };
        for (bytes, length) in [
            (&[0x82, 0x80 | 125, 1, 2, 3, 4][..], 125),
            (&[0x82, 0x80 | 126, 1, 0, 1, 2, 3, 4], 256),
            (&[0x82, 0x80 | 127, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4], 1 << 24),
        ] {
            assert_eq!(read(bytes).await.unwrap().unwrap(), head(length));
        }
        assert!(read(&[]).await.is_none());
    }

    /// teeth: crates/streaming/src/websocket/frame.rs: `if second & 0x80 == 0 {` → `if second == 0 {`
    #[tokio::test]
    async fn d11_what_no_client_may_send_is_refused() {
        let cases: [&[u8]; 6] = [
            &[0xc2, 0x80, 0, 0, 0, 0],
            &[0x83, 0x80, 0, 0, 0, 0],
            &[0x82, 0x05, 1, 2, 3, 4, 5],
            &[0x09, 0x80, 0, 0, 0, 0],
            &[0x89, 0x80 | 126, 1, 0, 0, 0, 0, 0],
            &[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ];
        for bytes in cases {
            read(bytes).await.unwrap().unwrap_err();
        }
    }

    #[test]
    fn a_mask_goes_on_where_the_last_piece_ended() {
        let (mask, plain) = ([7, 77, 177, 250], b"what a client says".to_vec());
        let mut whole = plain.clone();
        unmask(&mut whole, mask, 0);
        assert_ne!(whole, plain);
        let (a, b) = whole.split_at_mut(5);
        unmask(a, mask, 0);
        unmask(b, mask, 5);
        assert_eq!(whole, plain);
    }
}
