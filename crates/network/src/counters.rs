//! What went through the interfaces of a sandbox.
//!
//! It is read from `/proc/net/dev` (proc(5)), opened once inside the sandbox's namespace: such
//! a file stays the one of the namespace it was opened in, whoever reads it. The kernel writes
//! it without the lock that every change of links takes (RTNL), which rtnetlink(7) holds for
//! as long as it lists them: to attach a sandbox never waits for statistics. The numbers are
//! cAdvisor's, which reads the same: what the hardware missed counts as dropped.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use crate::attach::INTERFACE;
use crate::error::Error;
use crate::network::Network;

/// The interfaces of the namespace of the thread that opens it.
pub(crate) const COUNTERS: &str = "/proc/thread-self/net/dev";
/// Most interfaces of a sandbox that are told of, beside its own: who may make some there may
/// make so many that lists of all sandboxes outgrow a message.
const MOST: usize = 256;
/// Numbers of an interface: eight of what it received, eight of what it sent.
const NUMBERS: usize = 16;
/// The loopback device, unless somebody with rights over the namespace has renamed it; such
/// a one confuses the numbers of its own sandbox only.
const LOOPBACK: &str = "lo";

/// An interface, and what went through it since it was made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InterfaceCounters {
    /// Its name in the sandbox.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received in error.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent for an error.
    pub tx_errors: u64,
    /// Packets dropped before they were sent.
    pub tx_dropped: u64,
}

/// The counters of a network namespace, to be read again and again. The namespace exists for
/// at least as long as this, which costs a descriptor and a page of the kernel's.
#[derive(Debug)]
pub struct Watched(Mutex<File>);

impl Network {
    /// What [`Watched::counters`] reads of.
    ///
    /// # Errors
    /// The namespace cannot be entered; its counters cannot be opened in there.
    pub fn watch(&self, netns: BorrowedFd<'_>) -> Result<Watched, Error> {
        Ok(Watched(Mutex::new(self.opener.open(netns)?)))
    }
}

impl Watched {
    /// Reads the counters of every interface in the namespace but `lo`, in the kernel's order
    /// (that of their indices since Linux 6.9); of very many of them only the first, and the
    /// sandbox's own. A few microseconds.
    ///
    /// # Errors
    /// The kernel's refusal, and a line that is not proc(5)'s.
    pub fn counters(&self) -> Result<Vec<InterfaceCounters>, Error> {
        // The kernel keeps one place of reading: two readers would have it write the text anew.
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read(|buffer, offset| file.read_at(buffer, offset))
    }
}

/// Reads line by line what `read_at` gives, about a page at once.
fn read(
    read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> Result<Vec<InterfaceCounters>, Error> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    let (mut kept, mut offset) = (0, 0);
    while is_wanted(&all) {
        let more = match read_at(&mut buffer[kept..], offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Read { path: COUNTERS, source }),
            Ok(0) if kept > 0 => return Err(malformed("a line without an end")),
            Ok(0) => break,
            Ok(more) => more,
        };
        offset += u64::try_from(more).unwrap_or_default();
        let text = &buffer[..kept + more];
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text[..whole].split(|byte| *byte == b'\n') {
            keep(&mut all, &String::from_utf8_lossy(line))?;
        }
        kept = kept + more - whole;
        buffer.copy_within(whole..whole + kept, 0);
    }
    Ok(all)
}

/// Whether any further interface would be told of.
fn is_wanted(all: &[InterfaceCounters]) -> bool {
    all.len() < MOST || !all.iter().any(|known| known.name == INTERFACE)
}

fn keep(all: &mut Vec<InterfaceCounters>, line: &str) -> Result<(), Error> {
    // The two lines of headings have no colon, and no name has one.
    let Some((name, numbers)) = line.split_once(':') else { return Ok(()) };
    let name = name.trim_start_matches(' ');
    if name != LOOPBACK && (all.len() < MOST || name == INTERFACE) {
        all.push(told(name, numbers).ok_or_else(|| malformed("not sixteen numbers"))?);
    }
    Ok(())
}

fn malformed(reason: &'static str) -> Error {
    Error::Malformed { operation: format!("read {COUNTERS}"), reason }
}

fn told(name: &str, numbers: &str) -> Option<InterfaceCounters> {
    let mut counters = [0; NUMBERS];
    let mut words = numbers.split_ascii_whitespace();
    for counter in &mut counters {
        *counter = words.next()?.parse().ok()?;
    }
    // Four more of each: fifo, frame, compressed, multicast; fifo, colls, carrier, compressed.
    let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, sent @ ..] = counters;
    let [tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = sent;
    Some(InterfaceCounters {
        name: name.to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: &str = "  1  2 3 4 5 6 7 8 9 10 11 12 13 14 15 18446744073709551615";

    /// What is told of a file that the kernel gives in pieces of that many bytes.
    fn of(text: &str, piece: usize) -> Result<Vec<InterfaceCounters>, Error> {
        read(|buffer, offset| {
            let rest = &text.as_bytes()[usize::try_from(offset).unwrap()..];
            let most = piece.min(buffer.len()).min(rest.len());
            buffer[..most].copy_from_slice(&rest[..most]);
            Ok(most)
        })
    }

    #[test]
    fn what_was_received_and_sent_is_told_wherever_the_kernel_cuts() {
        let text = format!(
            "Inter-|   Receive     |  Transmit\n face |bytes    packets|bytes    packets\n    \
             lo:{NUMBERS}\n  eth0:{NUMBERS}\nlongest-of-names:{NUMBERS}\n"
        );
        for piece in [1, 7, 100, 4096] {
            let all = of(&text, piece).unwrap();
            let names: Vec<_> = all.iter().map(|interface| interface.name.as_str()).collect();
            assert_eq!(names, [INTERFACE, "longest-of-names"]);
            let it = &all[0];
            assert_eq!((it.rx_bytes, it.rx_packets, it.rx_errors, it.rx_dropped), (1, 2, 3, 4));
            assert_eq!((it.tx_bytes, it.tx_packets, it.tx_errors, it.tx_dropped), (9, 10, 11, 12));
        }
        assert_eq!(of("", 1).unwrap(), []);
    }

    #[test]
    fn what_is_not_of_that_form_is_refused() {
        for text in ["eth0: 1 2 3\n", "eth0: a b c\n", "eth0: 1", &"x".repeat(10_000)] {
            assert!(of(text, 4096).is_err(), "{text}");
        }
    }

    /// teeth: crates/network/src/counters.rs: `all.len() < MOST || name == INTERFACE` → `true`
    #[test]
    fn who_makes_very_many_interfaces_does_not_outgrow_lists() {
        let mut text = String::new();
        for number in 0..10_000 {
            text += &format!("dummy{number}:{NUMBERS}\n");
        }
        text += &format!("{INTERFACE}:{NUMBERS}\nnobody reads so far");
        let all = of(&text, 4096).unwrap();
        assert_eq!(all.len(), MOST + 1);
        assert_eq!((&*all[0].name, &*all[MOST].name), ("dummy0", INTERFACE));
    }
}
