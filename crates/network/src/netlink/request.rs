//! Encoding of requests: messages, attributes, nests.

/// Length of `struct nlmsghdr`, bytes.
pub(crate) const HEADER_BYTES: usize = 16;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Ask for all objects.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// Replace what exists.
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
/// Refuse when it exists.
pub(crate) const NLM_F_EXCL: u16 = 0x200;
/// Make it when it does not exist.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Put it last.
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

struct Message {
    start: usize,
    operation: String,
}

/// Messages that go to the kernel in one write.
#[derive(Default)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// Whether the kernel obeys all messages or none (an nfnetlink batch).
    transaction: bool,
}

impl Request {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn transaction() -> Self {
        Self { transaction: true, ..Self::default() }
    }

    /// Begins a message. `operation` names it in errors: a verb and the object.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        operation: impl Into<String>,
    ) -> &mut Self {
        self.close();
        let start = self.bytes.len();
        self.messages.push(Message { start, operation: operation.into() });
        self.raw(&[0; 4]);
        self.raw(&kind.to_ne_bytes());
        self.raw(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.raw(&[0; 8])
    }

    /// Bytes as they are: the family's own header.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// An attribute of the current message or nest.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes of ours are short");
        self.raw(&length.to_ne_bytes()).raw(&kind.to_ne_bytes()).raw(value);
        self.pad()
    }

    /// A number in the byte order of this machine (rtnetlink).
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order (nfnetlink).
    pub(crate) fn number_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// A string with its final NUL.
    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An attribute whose value is what `inner` adds.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.raw(&[0; 2]).raw(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(self);
        let length = self.bytes.len() - start;
        let length = u16::try_from(length).expect("callers bound the elements of a nest");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad()
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn close(&mut self) {
        if let Some(Message { start, .. }) = self.messages.last() {
            let length = u32::try_from(self.bytes.len() - start).expect("requests are short");
            self.bytes[*start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Numbers the messages from `first` on, and asks for an acknowledgement of the last.
    ///
    /// In a transaction the very last one only ends it, and is never acknowledged.
    pub(crate) fn finish(mut self, first: u32) -> Sent {
        self.close();
        let mut sequence = first;
        let acknowledged = self.messages.len() - if self.transaction { 2 } else { 1 };
        let mut last = first;
        for (position, Message { start, .. }) in self.messages.iter().enumerate() {
            let header = &mut self.bytes[*start..start + HEADER_BYTES];
            if position == acknowledged {
                let flags = u16::from_ne_bytes([header[6], header[7]]) | NLM_F_ACK;
                header[6..8].copy_from_slice(&flags.to_ne_bytes());
                last = sequence;
            }
            header[8..12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
        }
        Sent {
            bytes: self.bytes,
            operations: self.messages.into_iter().map(|message| message.operation).collect(),
            transaction: self.transaction,
            first,
            last,
        }
    }
}

/// A request with its sequence numbers.
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    operations: Vec<String>,
    pub(crate) transaction: bool,
    /// Sequence number of the first message.
    pub(crate) first: u32,
    /// Sequence number of the message whose acknowledgement ends the exchange.
    pub(crate) last: u32,
}

impl Sent {
    fn position(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.first)).ok()
    }

    /// Whether `sequence` is that of a message of this request.
    pub(crate) fn covers(&self, sequence: u32) -> bool {
        self.position(sequence).is_some_and(|position| position < self.operations.len())
    }

    /// What the message of that number asks for.
    pub(crate) fn operation(&self, sequence: u32) -> &str {
        let operation = self.position(sequence).and_then(|at| self.operations.get(at));
        operation.map_or("netlink request", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_numbered_and_the_last_is_acknowledged() {
        let mut request = Request::new();
        request.message(16, NLM_F_CREATE, "first").raw(&[0; 16]).string(3, "eth0");
        request.message(20, 0, "second").nest(18, |nest| {
            nest.attribute(1, &[7]);
        });
        let sent = request.finish(u32::MAX);
        let expected = [
            &[44, 0, 0, 0, 16, 0, 1, 4, 255, 255, 255, 255, 0, 0, 0, 0][..],
            &[0; 16],
            &[9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0],
            &[28, 0, 0, 0, 20, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[12, 0, 18, 0x80, 5, 0, 1, 0, 7, 0, 0, 0],
        ]
        .concat();
        assert_eq!(sent.bytes, expected);
        assert_eq!((sent.first, sent.last), (u32::MAX, 0));
        assert_eq!((sent.operation(u32::MAX), sent.operation(0)), ("first", "second"));
        assert!(sent.covers(u32::MAX) && sent.covers(0) && !sent.covers(1));
    }

    #[test]
    fn a_transaction_acknowledges_its_last_command_and_not_its_end() {
        let mut request = Request::transaction();
        for operation in ["begin", "command", "end"] {
            request.message(0, 0, operation);
        }
        let sent = request.finish(5);
        assert_eq!((sent.first, sent.last), (5, 6));
        let flags: Vec<u8> = sent.bytes.chunks(HEADER_BYTES).map(|header| header[6]).collect();
        assert_eq!(flags, [1, 5, 1]);
    }
}
