//! Names of plugins, and of what they are told.

use berth_api::nri::Event;

/// Longest name of a plugin, bytes: a file has none longer (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// Whether `index` may be one: two digits.
pub(crate) fn is_index(index: &str) -> bool {
    index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether `name` may be one of a plugin.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'+' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

/// Index and name of a program in the plugin directory.
pub(crate) fn split(file: &str) -> Option<(&str, &str)> {
    file.split_once('-').filter(|(index, name)| is_index(index) && is_name(name))
}

/// All that there is to subscribe to.
pub(crate) const ALL: u32 = (1 << 14) - 1;

/// The event as a bit of a subscription.
pub(crate) fn bit(event: Event) -> u32 {
    u32::try_from(event as i32 - 1).map_or(0, |position| 1 << position)
}

/// The method that tells of an event.
pub(crate) fn method(event: Event) -> &'static str {
    match event {
        Event::Unknown => "StateChange",
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_two_digits_a_dash_and_a_name() {
        assert_eq!(split("10-logger"), Some(("10", "logger")));
        assert_eq!(split("00-a-b_c.d+e"), Some(("00", "a-b_c.d+e")));
        for bad in ["", "logger", "1-a", "100-a", "1a-b", "10-", "10-a b", "10-a/b"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn events_are_bits_of_a_subscription() {
        assert_eq!(bit(Event::Unknown), 0);
        assert_eq!(bit(Event::RunPodSandbox), 1);
        assert_eq!(bit(Event::ValidateContainerAdjustment), 1 << 13);
        assert_eq!(ALL, 0x3fff);
    }
}
