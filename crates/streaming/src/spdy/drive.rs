//! The two loops of a connection: frames off the socket, and frames onto it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::frame::{
    self, FIN, HEAD_BYTES, Head, MAX_CONTROL_BYTES, Malformed, Reset, UNIDIRECTIONAL, kind,
    stream_id, words,
};
use super::{Connection, Decoder, Error, Incoming, reset};
use crate::mux::{Mux, Output};

/// Most streams that a client may have open at once: each forwarded connection has two.
const MAX_STREAMS: usize = 1000;
/// Read off the socket at once, bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// The setting that says how large windows are before they are updated (section 2.6.4).
const SETTING_INITIAL_WINDOW: u32 = 7;
/// How long a peer that broke the protocol has to take the frame that says so.
const FAREWELL: Duration = Duration::from_secs(1);

/// Statuses of GOAWAY (section 2.6.6).
const GOAWAY_OK: u32 = 0;
const GOAWAY_PROTOCOL: u32 = 1;

/// Carries frames until the client ends the connection or breaks the protocol, or until
/// everything is sent after [`Mux::end`].
pub(crate) async fn drive<S: AsyncRead + AsyncWrite>(
    socket: S,
    connection: Connection,
) -> Result<(), Error> {
    let mux = connection.mux.clone();
    let (reader, writer) = tokio::io::split(socket);
    let mut sending = std::pin::pin!(send(writer, mux.clone()));
    let mut receiver = Receiver {
        reader: BufReader::with_capacity(CHUNK_BYTES, reader),
        decoder: Decoder::new(),
        connection,
        last: 0,
    };
    let ended = tokio::select! {
        received = receiver.run() => received,
        sent = &mut sending => {
            mux.close();
            return Ok(sent?);
        }
    };
    if let Err(Error::Malformed(_)) = &ended {
        mux.farewell(goaway(receiver.last, GOAWAY_PROTOCOL));
        mux.end();
        // Whether the peer reads why it was cut off is its own affair.
        _ = tokio::time::timeout(FAREWELL, sending).await;
    }
    mux.close();
    ended
}

/// The frame that ends a connection without a reproach.
pub(crate) fn farewell() -> Bytes {
    goaway(0, GOAWAY_OK)
}

fn goaway(last: u32, status: u32) -> Bytes {
    frame::control(kind::GOAWAY, 0, &[last, status], &[])
}

async fn send(mut writer: impl AsyncWrite + Unpin, mux: Mux) -> io::Result<()> {
    loop {
        let frame = match mux.next().await {
            Output::Control(frame) => frame,
            Output::Credit { id, bytes } => {
                frame::control(kind::WINDOW_UPDATE, 0, &[id, bytes], &[])
            }
            Output::Reset { id } => reset(id, Reset::Cancel),
            Output::Data { id, bytes, last } => {
                let length = u32::from_be_bytes(frame::length_of(&bytes));
                let flags = if last { FIN } else { 0 };
                writer.write_all(&Head::Data { id, flags, length }.bytes()).await?;
                bytes
            }
            Output::End => return writer.shutdown().await,
        };
        writer.write_all(&frame).await?;
        writer.flush().await?;
        mux.touch();
    }
}

struct Receiver<R> {
    reader: BufReader<R>,
    decoder: Decoder,
    connection: Connection,
    /// The highest id that the client used.
    last: u32,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let mut head = [0; HEAD_BYTES];
            // A connection may end between two frames.
            if self.reader.read(&mut head[..1]).await? == 0 {
                return Ok(());
            }
            self.reader.read_exact(&mut head[1..]).await?;
            self.connection.mux.touch();
            match Head::parse(head)? {
                Head::Data { id, flags, length } => self.data(id, flags, length).await?,
                Head::Control { kind: kind::GOAWAY, .. } => return Ok(()),
                Head::Control { kind, flags, length } => {
                    let length = usize::try_from(length)
                        .ok()
                        .filter(|length| *length <= MAX_CONTROL_BYTES)
                        .ok_or(Malformed::Long(length))?;
                    let mut payload = vec![0; length];
                    self.reader.read_exact(&mut payload).await?;
                    self.control(kind, flags, &payload).await?;
                }
            }
        }
    }

    /// Hands payload on piece by piece: a frame may be larger than what is kept of it.
    async fn data(&mut self, id: u32, flags: u8, length: u32) -> Result<(), Error> {
        let id = stream_id(id)?;
        if id > self.last {
            return Err(Malformed::Stream(id).into());
        }
        let mux = &self.connection.mux;
        let mut left = usize::try_from(length).map_err(|_| Malformed::Long(length))?;
        let mut chunk = vec![0; left.min(CHUNK_BYTES)];
        while left > 0 {
            let room = left.min(chunk.len());
            let read = self.reader.read(&mut chunk[..room]).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= read;
            mux.deliver(id, &chunk[..read]).await?;
        }
        if flags & FIN != 0 {
            mux.finish(id);
        }
        Ok(())
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<(), Error> {
        let mux = self.connection.mux.clone();
        match kind {
            kind::SYN_STREAM => self.syn_stream(flags, payload).await?,
            kind::SYN_REPLY => return Err(Malformed::Unexpected(kind).into()),
            kind::RST_STREAM => {
                let ([id, _], []) = words(kind, payload)? else {
                    return Err(Malformed::Length(kind).into());
                };
                mux.reset(stream_id(id)?);
            }
            kind::SETTINGS => settings(&mux, payload)?,
            kind::PING => {
                let ([id], []) = words(kind, payload)? else {
                    return Err(Malformed::Length(kind).into());
                };
                // Ids of our own pings would be even; there are none.
                if id % 2 == 1 {
                    mux.control(frame::control(kind, 0, &[id], &[])).await;
                }
            }
            kind::HEADERS => {
                let ([id], block) = words(kind, payload)?;
                // It says nothing new, but what follows depends on its having been read.
                self.decoder.decode(block)?;
                if flags & FIN != 0 {
                    mux.finish(stream_id(id)?);
                }
            }
            kind::WINDOW_UPDATE => {
                let ([id, bytes], []) = words(kind, payload)? else {
                    return Err(Malformed::Length(kind).into());
                };
                if bytes == 0 || bytes > i32::MAX.unsigned_abs() {
                    return Err(Malformed::Window.into());
                }
                if !mux.credit(id, bytes) {
                    let id = stream_id(id).map_err(|_| Malformed::Window)?;
                    mux.reset(id);
                    mux.control(reset(id, Reset::FlowControl)).await;
                }
            }
            // "If an endpoint receives a control frame for a type it does not recognize,
            // it must ignore the frame" (section 2.2.1).
            _ => {}
        }
        Ok(())
    }

    async fn syn_stream(&mut self, flags: u8, payload: &[u8]) -> Result<(), Error> {
        let ([id, _associated], rest) = words(kind::SYN_STREAM, payload)?;
        let (_priority, block) =
            rest.split_at_checked(2).ok_or(Malformed::Length(kind::SYN_STREAM))?;
        let headers = self.decoder.decode(block)?;
        let id = stream_id(id)?;
        // A client's ids are odd and grow (section 2.3.2).
        if id % 2 == 0 || id <= self.last {
            return Err(Malformed::Stream(id).into());
        }
        self.last = id;
        let mux = &self.connection.mux;
        // Whoever takes or refuses the stream answers without waiting.
        mux.wait_for_answers().await;
        let refusal = if flags & UNIDIRECTIONAL != 0 {
            Some(Reset::Protocol)
        } else if mux.count() >= MAX_STREAMS {
            Some(Reset::Refused)
        } else {
            None
        };
        if let Some(why) = refusal {
            mux.control(reset(id, why)).await;
            return Ok(());
        }
        let incoming = Incoming {
            id,
            headers,
            streams: mux.open(id, flags & FIN != 0),
            answers: self.connection.answers.clone(),
        };
        if let Err(late) = self.connection.opened.send(incoming).await {
            // The session takes no more streams.
            late.0.refuse();
        }
        Ok(())
    }
}

fn settings(mux: &Mux, payload: &[u8]) -> Result<(), Malformed> {
    let ([count], entries) = words(kind::SETTINGS, payload)?;
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() || usize::try_from(count).ok() != Some(entries.len()) {
        return Err(Malformed::Length(kind::SETTINGS));
    }
    for [_flags, a, b, c, value @ ..] in entries {
        let value = u32::from_be_bytes(*value);
        if u32::from_be_bytes([0, *a, *b, *c]) == SETTING_INITIAL_WINDOW {
            if value > i32::MAX.unsigned_abs() {
                return Err(Malformed::Window);
            }
            mux.set_initial_window(value);
        }
    }
    Ok(())
}
