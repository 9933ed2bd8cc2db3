//! Mount options as fstab(5), mount(8) and the OCI specification spell them.

use berth_sys::mount::MountAttributes;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// `MOUNT_ATTR_*` bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    /// Read-only, nothing else.
    pub(crate) const READ_ONLY: Self =
        Self { set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64, clear: 0 };

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn readonly(self) -> bool {
        self.set & Self::READ_ONLY.set != 0
    }

    /// These without the read-only bit.
    pub(crate) fn writable(self) -> Self {
        Self { set: self.set & !Self::READ_ONLY.set, ..self }
    }

    /// For mount_setattr(2), propagation untouched.
    pub(crate) fn change(self) -> MountAttributes {
        MountAttributes { set: self.set, clear: self.clear, propagation: 0 }
    }

    /// The last word on a bit counts.
    fn apply(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
        // The access time bits are one number: to set one means to clear the field first.
        if clear & atime() == atime() {
            self.clear |= atime();
        }
    }
}

/// A propagation type, and whether it applies to the mounts below too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Propagation {
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`.
    pub(crate) flag: u64,
    pub(crate) recursive: bool,
}

/// The options of one mount.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct MountOptions {
    /// `Some(true)` for `rbind`, `Some(false)` for `bind`.
    pub(crate) bind: Option<bool>,
    pub(crate) remount: bool,
    /// For the mount itself.
    pub(crate) attributes: Attributes,
    /// For the mount and all below it (`rro`, `rnosuid`, …).
    pub(crate) recursive: Attributes,
    pub(crate) propagation: Vec<Propagation>,
    /// What is the file system's own: a flag, or a name and a value.
    pub(crate) data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// Sorts `options` out; what is not known here is the file system's.
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    /// The file system's options as mount(2) wants them.
    pub(crate) fn data_string(&self) -> String {
        let text = |(name, value): &(String, Option<String>)| match value {
            None => name.clone(),
            Some(value) => format!("{name}={value}"),
        };
        self.data.iter().map(text).collect::<Vec<_>>().join(",")
    }

    /// Takes an option out of the file system's own: its value.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.data.iter().position(|(known, _)| known == name)?;
        self.data.remove(index).1
    }

    fn add(&mut self, option: &str) {
        match option {
            "" | "defaults" | "norelatime" | "silent" | "loud" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            _ => {
                if let Some(propagation) = propagation(option) {
                    self.propagation.push(propagation);
                } else if let Some((set, clear)) = attribute(option) {
                    self.attributes.apply(set, clear);
                } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
                    self.recursive.apply(set, clear);
                } else {
                    self.data.push(match option.split_once('=') {
                        None => (option.to_owned(), None),
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    });
                }
            }
        }
    }
}

fn propagation(option: &str) -> Option<Propagation> {
    let all = [
        ("private", MountPropagationFlags::PRIVATE),
        ("slave", MountPropagationFlags::DOWNSTREAM),
        ("shared", MountPropagationFlags::SHARED),
        ("unbindable", MountPropagationFlags::UNBINDABLE),
    ];
    let find = |name: &str| all.iter().find(|(known, _)| *known == name);
    let (recursive, (_, flag)) = match find(option) {
        Some(found) => (false, found),
        None => (true, find(option.strip_prefix('r')?)?),
    };
    Some(Propagation { flag: u64::from(flag.bits()), recursive })
}

fn atime() -> u64 {
    u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits())
}

/// The bits an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    let on = |flag: MountAttrFlags| Some((u64::from(flag.bits()), 0));
    let off = |flag: MountAttrFlags| Some((0, u64::from(flag.bits())));
    let time = |flag: MountAttrFlags| Some((u64::from(flag.bits()), atime()));
    match option {
        "ro" => on(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "rw" => off(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "nosuid" => on(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "suid" => off(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "nodev" => on(MountAttrFlags::MOUNT_ATTR_NODEV),
        "dev" => off(MountAttrFlags::MOUNT_ATTR_NODEV),
        "noexec" => on(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "exec" => off(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => on(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => off(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => on(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "diratime" => off(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "noatime" => time(MountAttrFlags::MOUNT_ATTR_NOATIME),
        "strictatime" => time(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => time(MountAttrFlags::MOUNT_ATTR_RELATIME),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_the_mount_and_of_the_file_system_are_told_apart() {
        let parsed = parse(&["rbind", "rprivate", "ro", "nosuid", "size=64k", "lazytime"]);
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.attributes.set, 3);
        assert_eq!(parsed.propagation.len(), 1);
        assert!(parsed.propagation[0].recursive);
        assert_eq!(parsed.data_string(), "size=64k,lazytime");
    }

    #[test]
    fn a_leading_r_means_all_mounts_below_too() {
        let parsed = parse(&["rro", "rnodev", "relatime", "rw"]);
        assert_eq!(parsed.recursive.set, 1 | 4);
        assert_eq!(parsed.attributes, Attributes { set: 0, clear: 0x70 | 1 });
        assert!(parsed.data.is_empty());
    }

    #[test]
    fn the_last_word_on_an_attribute_counts() {
        assert_eq!(parse(&["ro", "rw"]).attributes, Attributes { set: 0, clear: 1 });
        assert_eq!(parse(&["rw", "ro"]).attributes, Attributes { set: 1, clear: 0 });
        assert_eq!(
            parse(&["noatime", "strictatime"]).attributes,
            Attributes { set: 0x20, clear: 0x70 }
        );
    }
}
