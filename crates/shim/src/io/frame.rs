//! CRI log lines: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`.
//!
//! `F` ends a line of the program, `P` is a piece of one: of a line longer than
//! [`MAX_PIECE`], or of a last line without its line feed, as containerd writes it.
//! Pure: the clock and the file are the caller's.

use std::time::{Duration, SystemTime};

/// Longest text of one log line, bytes; kubelet's reader expects no more.
pub(crate) const MAX_PIECE: usize = 16 << 10;

/// Which stream of a process a line is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into log lines; holds at most [`MAX_PIECE`] bytes of an unfinished one.
#[derive(Debug)]
pub(crate) struct Framer {
    stream: Stream,
    unfinished: Vec<u8>,
}

impl Framer {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, unfinished: Vec::new() }
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// Appends to `out` the lines that `chunk`, read at `time`, completes.
    pub(crate) fn push(&mut self, chunk: &[u8], time: &str, out: &mut Vec<u8>) {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (mut text, ended) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            while self.unfinished.len() + text.len() > MAX_PIECE {
                let (piece, rest) = text.split_at(MAX_PIECE - self.unfinished.len());
                self.line(time, 'P', piece, out);
                text = rest;
            }
            if ended {
                self.line(time, 'F', text, out);
            } else {
                self.unfinished.extend_from_slice(text);
            }
        }
    }

    /// Appends the last line, if it lacks its line feed.
    pub(crate) fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            self.line(time, 'P', b"", out);
        }
    }

    fn line(&mut self, time: &str, tag: char, text: &[u8], out: &mut Vec<u8>) {
        let mut mark = [0; 4];
        let head = [time, " ", self.stream.name(), " ", tag.encode_utf8(&mut mark), " "];
        for part in head {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(&self.unfinished);
        out.extend_from_slice(text);
        out.push(b'\n');
        // Most lines are short and end in their own chunk: keep no buffer for them.
        self.unfinished = Vec::new();
    }
}

/// `time` in UTC as RFC 3339 with nine digits, so that lines sort by their text.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar.
///
/// Counts from 0000-03-01, so that the leap day is the last of its year; an era is the
/// 400 years (146,097 days) after which the calendar repeats.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames `chunks` and gives what came out, each line as its tag and text.
    #[track_caller]
    fn check(chunks: &[&[u8]], expected: &[(char, &str)]) {
        let mut framer = Framer::new(Stream::Stderr);
        let mut out = Vec::new();
        for chunk in chunks {
            framer.push(chunk, "T", &mut out);
        }
        framer.finish("T", &mut out);
        let wanted: String =
            expected.iter().map(|(tag, text)| format!("T stderr {tag} {text}\n")).collect();
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
        assert!(framer.unfinished.is_empty());
    }

    #[test]
    fn each_line_of_a_chunk_is_a_full_line() {
        check(&[b"a\nb\n"], &[('F', "a"), ('F', "b")]);
        check(&[b"\n\n"], &[('F', ""), ('F', "")]);
        check(&[b"a\r\n"], &[('F', "a\r")]);
        check(&[], &[]);
    }

    #[test]
    fn a_line_in_several_chunks_is_one_line() {
        check(&[b"a", b"b", b"", b"c\nd", b"\n"], &[('F', "abc"), ('F', "d")]);
    }

    #[test]
    fn a_last_line_without_line_feed_is_partial() {
        check(&[b"a\nb"], &[('F', "a"), ('P', "b")]);
    }

    #[test]
    fn a_long_line_is_cut_into_pieces_of_the_limit() {
        let exact = "x".repeat(MAX_PIECE);
        check(&[exact.as_bytes(), b"\n"], &[('F', &exact)]);
        check(&[exact.as_bytes(), b"y\n"], &[('P', &exact), ('F', "y")]);
        let twice = exact.repeat(2);
        check(&[twice.as_bytes(), b"\nz\n"], &[('P', &exact), ('F', &exact), ('F', "z")]);
        check(
            &[b"ab", twice.as_bytes()],
            &[('P', &format!("ab{}", &exact[2..])), ('P', &exact), ('P', "xx")],
        );
    }

    #[test]
    fn chunk_borders_change_nothing() {
        let text: Vec<u8> = (0..100_000_u32)
            .map(|n| if n % 20_011 == 0 || n % 97 == 3 { b'\n' } else { b'a' })
            .collect();
        let frame = |size: usize| {
            let (mut framer, mut out) = (Framer::new(Stream::Stdout), Vec::new());
            text.chunks(size).for_each(|chunk| framer.push(chunk, "T", &mut out));
            framer.finish("T", &mut out);
            out
        };
        let whole = frame(text.len());
        for size in [1, 7, 4096, MAX_PIECE, MAX_PIECE + 1] {
            assert!(frame(size) == whole, "chunks of {size}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_709_210_096, 123_456_789, "2024-02-29T12:34:56.123456789Z"),
            (4_102_444_799, 999_999_999, "2099-12-31T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(rfc3339(time), expected);
        }
    }
}
