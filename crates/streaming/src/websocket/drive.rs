//! The two loops of a connection: messages off the socket, and messages onto it.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::Codec;
use super::frame::{self, Head, Malformed, Opcode, read_head, unmask};
use crate::mux::{Mux, Output};

/// Read off the socket at once, bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// How long a peer has to take the frame that ends the connection.
const FAREWELL: Duration = Duration::from_secs(1);
/// The first byte of a message that ends a channel.
const CLOSE_SIGNAL: u8 = 255;
/// "An endpoint is terminating the connection due to a protocol error."
const PROTOCOL_ERROR: u16 = 1002;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("not the protocol that was agreed on")]
    Malformed(#[from] Malformed),
}

/// Carries messages until the client ends the connection or breaks the protocol, or until
/// everything is sent after [`Mux::end`].
pub(crate) async fn drive<S: AsyncRead + AsyncWrite>(
    socket: S,
    mux: Mux,
    codec: Codec,
    closes: bool,
) -> Result<(), Error> {
    let (reader, writer) = tokio::io::split(socket);
    let mut sending = std::pin::pin!(send(writer, mux.clone(), codec));
    let mut receiver = Receiver {
        reader: BufReader::with_capacity(CHUNK_BYTES, reader),
        mux: mux.clone(),
        codec,
        closes,
        message: None,
    };
    let ended = tokio::select! {
        received = receiver.run() => received,
        sent = &mut sending => {
            mux.close();
            return Ok(sent?);
        }
    };
    let farewell = match &ended {
        // Its own code comes back, as section 5.5.1 wants.
        Ok(Some(code)) => Some(frame::message(Opcode::Close, &[code])),
        Err(Error::Malformed(_)) => {
            Some(frame::message(Opcode::Close, &[&PROTOCOL_ERROR.to_be_bytes()]))
        }
        _ => None,
    };
    if let Some(frame) = farewell {
        mux.farewell(frame);
        mux.end();
        // Whether the peer reads it is its own affair.
        _ = tokio::time::timeout(FAREWELL, sending).await;
    }
    mux.close();
    ended.map(drop)
}

/// A message of a channel.
pub(super) fn message(codec: Codec, channel: u32, bytes: &[u8]) -> Bytes {
    // There are never more channels than a byte can number.
    let channel = u8::try_from(channel).unwrap_or(u8::MAX);
    match codec {
        Codec::Raw => frame::message(Opcode::Binary, &[bytes]),
        Codec::Binary => frame::message(Opcode::Binary, &[&[channel], bytes]),
        Codec::Base64 => {
            let digit = b'0'.wrapping_add(channel);
            frame::message(Opcode::Text, &[&[digit], STANDARD.encode(bytes).as_bytes()])
        }
    }
}

async fn send(mut writer: impl AsyncWrite + Unpin, mux: Mux, codec: Codec) -> io::Result<()> {
    loop {
        let frame = match mux.next().await {
            Output::Control(frame) => frame,
            Output::Data { id, bytes, .. } if !bytes.is_empty() => message(codec, id, &bytes),
            // A channel has neither an end nor a window of its own.
            Output::Data { .. } | Output::Credit { .. } | Output::Reset { .. } => continue,
            Output::End => return writer.shutdown().await,
        };
        writer.write_all(&frame).await?;
        writer.flush().await?;
        mux.touch();
    }
}

struct Receiver<R> {
    reader: BufReader<R>,
    mux: Mux,
    codec: Codec,
    closes: bool,
    message: Option<Message>,
}

/// A message of which the end has not come yet.
#[derive(Debug, Default)]
struct Message {
    channel: Option<u8>,
    /// Less than one group of base64, or the channel of a close signal.
    rest: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Reads until the connection ends: by a close frame with its payload, or without.
    async fn run(&mut self) -> Result<Option<Vec<u8>>, Error> {
        while let Some(head) = read_head(&mut self.reader).await? {
            let head = head?;
            self.mux.touch();
            if head.opcode.is_control() {
                if let Some(code) = self.control(head).await? {
                    return Ok(Some(code));
                }
                continue;
            }
            if (head.opcode == Opcode::Continuation) != self.message.is_some() {
                return Err(Malformed::Order.into());
            }
            let mut message = self.message.take().unwrap_or_default();
            self.payload(head, &mut message).await?;
            if head.last {
                self.finish(message)?;
            } else {
                self.message = Some(message);
            }
        }
        Ok(None)
    }

    async fn control(&mut self, head: Head) -> Result<Option<Vec<u8>>, Error> {
        let length = usize::try_from(head.length).map_err(|_| Malformed::Length)?;
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).await?;
        unmask(&mut payload, head.mask, 0);
        match head.opcode {
            Opcode::Close => {
                payload.truncate(2);
                // What was tunnelled ended in good order.
                self.mux.finish(0);
                return Ok(Some(payload));
            }
            Opcode::Ping => self.mux.control(frame::message(Opcode::Pong, &[&payload])).await,
            _ => {}
        }
        Ok(None)
    }

    /// Hands payload on piece by piece: a message may be larger than what is kept of it.
    async fn payload(&mut self, head: Head, message: &mut Message) -> Result<(), Error> {
        let mut chunk =
            vec![0; CHUNK_BYTES.min(usize::try_from(head.length).unwrap_or(CHUNK_BYTES))];
        let mut done = 0;
        while done < head.length {
            let room = usize::try_from(head.length - done).unwrap_or(usize::MAX).min(chunk.len());
            let piece = &mut chunk[..room];
            let read = self.reader.read(piece).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let piece = &mut piece[..read];
            unmask(piece, head.mask, done);
            done += u64::try_from(read).unwrap_or(u64::MAX);
            self.piece(piece, message).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, piece: &[u8], message: &mut Message) -> Result<(), Error> {
        if self.codec == Codec::Raw {
            self.mux.deliver(0, piece).await?;
            return Ok(());
        }
        let (channel, bytes) = match (message.channel, piece) {
            (Some(channel), bytes) => (channel, bytes),
            (None, [channel, bytes @ ..]) => (*message.channel.insert(*channel), bytes),
            (None, []) => return Ok(()),
        };
        if self.closes && channel == CLOSE_SIGNAL {
            // One byte, however many pieces the message comes in.
            if message.rest.len() + bytes.len() > 1 {
                return Err(Malformed::CloseSignal.into());
            }
            message.rest.extend_from_slice(bytes);
            return Ok(());
        }
        if self.codec == Codec::Binary {
            self.mux.deliver(u32::from(channel), bytes).await?;
            return Ok(());
        }
        message.rest.extend_from_slice(bytes);
        let whole = message.rest.len() / 4 * 4;
        let decoded = STANDARD.decode(&message.rest[..whole]).map_err(|_| Malformed::Base64)?;
        message.rest.drain(..whole);
        self.mux.deliver(u32::from(channel.wrapping_sub(b'0')), &decoded).await?;
        Ok(())
    }

    fn finish(&self, message: Message) -> Result<(), Malformed> {
        match (message.channel, message.rest.as_slice()) {
            (Some(CLOSE_SIGNAL), [channel]) if self.closes => self.mux.finish(u32::from(*channel)),
            (Some(CLOSE_SIGNAL), _) if self.closes => return Err(Malformed::CloseSignal),
            (_, []) => {}
            _ => return Err(Malformed::Base64),
        }
        Ok(())
    }
}
