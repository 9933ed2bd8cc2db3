//! Signals: the CRI's enumeration and the names that images use.

use berth_api::v1::Signal;

use super::fields::known;
use crate::Error;

/// `SIGRTMINPLUS3` of the enumeration is `SIGRTMIN+3` elsewhere.
const SIGNS: [(&str, &str); 2] = [("MINPLUS", "MIN+"), ("MAXMINUS", "MAX-")];

/// The signal's common name; `None` for the runtime's default.
pub(super) fn name(field: &'static str, value: i32) -> Result<Option<String>, Error> {
    let signal = known::<Signal>(field, value)?;
    if signal == Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal.as_str_name();
    Ok(Some(SIGNS.iter().fold(name.to_owned(), |name, (cri, common)| name.replace(cri, common))))
}

/// The enumeration's value for a signal in any of its spellings.
pub(super) fn value(text: &str) -> Signal {
    let name = berth_spec::signal::number(text).ok().and_then(berth_spec::signal::name);
    let cri = |name: String| {
        let name = SIGNS.iter().fold(name, |name, (cri, common)| name.replace(common, cri));
        Signal::from_str_name(&name)
    };
    name.and_then(cri).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_cri_is_one_of_ours() {
        for number in 1..=65 {
            let name = name("stop_signal", number).unwrap().unwrap();
            berth_spec::signal::number(&name).unwrap_or_else(|error| panic!("{error}"));
            let back = value(&name);
            // Of two names for one number, either comes back.
            let again = self::name("stop_signal", back.into()).unwrap().unwrap();
            let numeric = |name: &str| berth_spec::signal::number(name).unwrap();
            assert_eq!(numeric(&again), numeric(&name));
        }
    }

    #[test]
    fn names_are_as_images_have_them() {
        assert_eq!(name("f", 0).unwrap(), None);
        assert_eq!(name("f", Signal::Sigterm.into()).unwrap().as_deref(), Some("SIGTERM"));
        assert_eq!(name("f", Signal::Sigrtminplus3.into()).unwrap().as_deref(), Some("SIGRTMIN+3"));
        assert!(name("f", 66).is_err());
        assert_eq!(value("TERM"), Signal::Sigterm);
        assert_eq!(value("SIGRTMAX-1"), Signal::Sigrtmaxminus1);
        assert_eq!(value("nonsense"), Signal::RuntimeDefault);
    }
}
