//! Decoding of answers. The kernel is trusted to mean well, but every length is checked.

use nix::errno::Errno;

use super::request::HEADER_BYTES;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The bits of an attribute's type that are flags.
const NLA_FLAGS: u16 = 0xc000;

/// One message of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// How a request ended.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Acknowledgement {
    /// Why it was refused.
    pub(crate) error: Option<Errno>,
    /// The kernel's own words.
    pub(crate) words: Option<String>,
}

/// The messages of one datagram.
pub(crate) fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Result<Answer<'_>, &'static str>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let whole = bytes;
        bytes = &[];
        let Some(header) = whole.get(..HEADER_BYTES) else { return Some(Err("short header")) };
        let length = usize::try_from(u32_at(header, 0)).unwrap_or(usize::MAX);
        let Some(payload) = whole.get(HEADER_BYTES..length) else {
            return Some(Err("message longer than its datagram"));
        };
        bytes = whole.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok(Answer {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            sequence: u32_at(header, 8),
            payload,
        }))
    })
}

impl<'a> Answer<'a> {
    /// The end of a request; `None` for an answer with content.
    pub(crate) fn acknowledgement(&self) -> Result<Option<Acknowledgement>, &'static str> {
        let attributes_at = match self.kind {
            NLMSG_DONE if self.flags & NLM_F_MULTI != 0 => 4,
            NLMSG_ERROR => {
                let header = self.payload.get(4..4 + HEADER_BYTES).ok_or("short error")?;
                let sent_back = usize::try_from(u32_at(header, 0)).unwrap_or(usize::MAX);
                match self.flags & NLM_F_CAPPED {
                    0 => sent_back.saturating_add(4).next_multiple_of(4),
                    _ => 4 + HEADER_BYTES,
                }
            }
            _ => return Ok(None),
        };
        let number = self.payload.get(..4).ok_or("short error")?;
        let number = i32::from_ne_bytes([number[0], number[1], number[2], number[3]]);
        let error = (number != 0).then(|| Errno::from_raw(number.saturating_neg()));
        let mut words = None;
        if self.flags & NLM_F_ACK_TLVS != 0 {
            let rest = self.payload.get(attributes_at..).unwrap_or(&[]);
            words = find(rest, NLMSGERR_ATTR_MSG).map(text);
        }
        Ok(Some(Acknowledgement { error, words }))
    }

    /// The attributes after a family header of `header` bytes.
    pub(crate) fn attributes(
        &self,
        header: usize,
    ) -> Result<impl Iterator<Item = (u16, &'a [u8])>, &'static str> {
        Ok(attributes(self.payload.get(header..).ok_or("short message")?))
    }
}

/// The attributes in `bytes`, types without flags; ends at the first that is cut short.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16_at(header, 0));
        let value = bytes.get(4..length)?;
        let kind = u16_at(header, 2) & !NLA_FLAGS;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of that type.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A string without its final NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number of four bytes in this machine's order; `None` when there are fewer.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.get(..4).map(|value| u32_at(value, 0))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with the flags given: header, then payload.
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(9_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn acknowledgement(bytes: &[u8]) -> Result<Option<Acknowledgement>, &'static str> {
        answers(bytes).next().unwrap()?.acknowledgement()
    }

    #[test]
    fn a_refusal_carries_the_words_of_the_kernel() {
        let words = [&[13, 0, 1, 0][..], b"no space\0\0\0\0"].concat();
        for (flags, sent_back) in [(0x300, 0), (0x200, 8)] {
            let mut payload = (-28_i32).to_ne_bytes().to_vec();
            payload.extend(message(1, 0, &[5; 8])[..HEADER_BYTES + sent_back].iter());
            payload.extend(&words);
            let expected =
                Acknowledgement { error: Some(Errno::ENOSPC), words: Some("no space".into()) };
            let found = acknowledgement(&message(NLMSG_ERROR, flags, &payload));
            assert_eq!(found, Ok(Some(expected)));
        }
    }

    #[test]
    fn an_error_number_of_zero_is_success() {
        let payload = [&[0; 4][..], &message(1, 0, &[])].concat();
        let success = Acknowledgement { error: None, words: None };
        assert_eq!(acknowledgement(&message(NLMSG_ERROR, 0x100, &payload)), Ok(Some(success)));
        let end = Acknowledgement { error: None, words: None };
        assert_eq!(acknowledgement(&message(NLMSG_DONE, NLM_F_MULTI, &[0; 4])), Ok(Some(end)));
    }

    #[test]
    fn what_is_cut_short_is_malformed_and_never_read_past_its_end() {
        assert!(acknowledgement(&message(NLMSG_ERROR, 0, &[0; 4])).is_err());
        let whole = message(16, 0, &[1; 40]);
        for end in 1..whole.len() {
            assert!(answers(&whole[..end]).next().unwrap().is_err(), "{end}");
        }
        let mut longer = whole.clone();
        longer[0] = 255;
        assert!(answers(&longer).next().unwrap().is_err());
        longer[..4].copy_from_slice(&[3, 0, 0, 0]);
        assert!(answers(&longer).next().unwrap().is_err());
    }

    #[test]
    fn attributes_end_where_they_do_not_fit() {
        let good = [&[5, 0, 7, 0x80, 1, 0, 0, 0][..], &[8, 0, 8, 0, 2, 0, 0, 0]].concat();
        let all: Vec<_> = attributes(&good).collect();
        assert_eq!(all, [(7, &[1][..]), (8, &[2, 0, 0, 0])]);
        assert_eq!(find(&good, 8).and_then(number), Some(2));
        assert_eq!(attributes(&[3, 0, 7, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 7, 0, 1]).count(), 0);
        assert_eq!(attributes(&good[..13]).count(), 1);
    }
}
