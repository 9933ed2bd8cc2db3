//! WebSocket (RFC 6455) as far as Kubernetes speaks it: numbered channels, each message
//! beginning with its channel, or the bytes of another protocol (SPDY) without any channel.

mod drive;
mod frame;

use bytes::Bytes;
pub(crate) use drive::{Error, drive};
use frame::Opcode;

use crate::status::Form;

/// How messages are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Codec {
    /// The channel as a byte, and the bytes.
    Binary,
    /// The channel as a digit, and the bytes in base64.
    Base64,
    /// The bytes alone, all on stream 0.
    Raw,
}

/// A protocol over numbered channels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Protocol {
    pub(crate) name: &'static str,
    pub(crate) codec: Codec,
    pub(crate) form: Form,
    /// Whether a message on channel 255 ends another one.
    pub(crate) closes: bool,
}

const fn protocol(name: &'static str, codec: Codec, form: Form) -> Protocol {
    Protocol { name, codec, form, closes: false }
}

/// What clients of exec and attach may ask for; one that asks for nothing gets the last.
pub(crate) const REMOTE: [Protocol; 6] = [
    Protocol { name: "v5.channel.k8s.io", codec: Codec::Binary, form: Form::Status, closes: true },
    protocol("v4.channel.k8s.io", Codec::Binary, Form::Status),
    protocol("v4.base64.channel.k8s.io", Codec::Base64, Form::Status),
    protocol("channel.k8s.io", Codec::Binary, Form::Text),
    protocol("base64.channel.k8s.io", Codec::Base64, Form::Text),
    protocol("", Codec::Binary, Form::Text),
];

/// What clients of port-forward may ask for.
pub(crate) const FORWARD: [Protocol; 4] = [
    protocol("SPDY/3.1+portforward.k8s.io", Codec::Raw, Form::Text),
    protocol("v4.channel.k8s.io", Codec::Binary, Form::Text),
    protocol("v4.base64.channel.k8s.io", Codec::Base64, Form::Text),
    protocol("", Codec::Binary, Form::Text),
];

/// Most ports of one connection: each has two channels, and a byte numbers them.
pub(crate) const MAX_PORTS: usize = 128;

/// The channels of exec and attach.
pub(crate) mod channel {
    pub(crate) const STDIN: u32 = 0;
    pub(crate) const STDOUT: u32 = 1;
    pub(crate) const STDERR: u32 = 2;
    pub(crate) const ERROR: u32 = 3;
    pub(crate) const RESIZE: u32 = 4;
}

/// Code 1000, "the purpose for which the connection was established has been fulfilled".
pub(crate) fn farewell() -> Bytes {
    frame::message(Opcode::Close, &[&1000u16.to_be_bytes()])
}

/// What tells the client that its session has begun: an empty message of a channel.
pub(crate) fn greeting(codec: Codec, channel: u32) -> Bytes {
    drive::message(codec, channel, &[])
}
