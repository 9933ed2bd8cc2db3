//! Signals by name, as images and requests write them.

use crate::Error;

/// Number of the first real-time signal that glibc leaves to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names and numbers on x86-64 and arm64 (signal(7)).
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

/// The number of a signal written as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `RTMAX-1`.
pub fn number(text: &str) -> Result<i32, Error> {
    let unknown = || Error::Signal(text.chars().take(64).collect());
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=RTMAX).contains(n)).ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(name, _)| *name == bare) {
        return Ok(*number);
    }
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => digits.parse::<i32>().ok(),
        Some(_) => None,
        None => rest.is_empty().then_some(0),
    };
    let real_time = if let Some(rest) = bare.strip_prefix("RTMIN") {
        offset(rest, '+').and_then(|offset| RTMIN.checked_add(offset))
    } else if let Some(rest) = bare.strip_prefix("RTMAX") {
        offset(rest, '-').and_then(|offset| RTMAX.checked_sub(offset))
    } else {
        None
    };
    real_time.filter(|number| (RTMIN..=RTMAX).contains(number)).ok_or_else(unknown)
}

/// The name kubelet knows a signal under: `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`.
pub fn name(number: i32) -> Option<String> {
    if let Some((name, _)) = NAMES.iter().find(|(_, known)| *known == number) {
        return Some(format!("SIG{name}"));
    }
    // The names meet in the middle: RTMIN+15 is followed by RTMAX-14.
    match number - RTMIN {
        0 => Some("SIGRTMIN".to_owned()),
        offset @ 1..=15 => Some(format!("SIGRTMIN+{offset}")),
        30 => Some("SIGRTMAX".to_owned()),
        offset @ 16..=29 => Some(format!("SIGRTMAX-{}", 30 - offset)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, expected) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGCLD", 17),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("SIGRTMAX", 64),
            ("64", 64),
        ] {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for bad in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIGSIGTERM",
            "TERM ",
            "RTMIN-1",
            "RTMIN+31",
            "RTMAX-31",
            "RTMIN+-1",
            "RTMIN+",
            "99999999999",
        ] {
            assert!(matches!(number(bad), Err(Error::Signal(_))), "{bad:?}");
        }
    }

    #[test]
    fn every_number_with_a_name_finds_its_way_back() {
        for signal in (1..=31).chain(34..=64) {
            assert_eq!(number(&name(signal).unwrap()).unwrap(), signal);
        }
        for none in [0, 32, 33, 65, -1] {
            assert_eq!(name(none), None);
        }
    }
}
