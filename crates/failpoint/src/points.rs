//! The list: one line for each point, by verb, in the order in which a verb passes them.

/// A place between two effects of a verb.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Point {
    /// Verb and step, as a test names it: `run.stored`.
    pub name: &'static str,
    /// What has happened when it is passed.
    pub after: &'static str,
}

macro_rules! points {
    ($($constant:ident $name:literal $after:literal)*) => {
        impl Point {
            $(#[doc = concat!("`", $name, "`: ", $after, ".")]
            pub const $constant: Self = Self { name: $name, after: $after };)*
        }

        /// Every point there is.
        pub const POINTS: &[Point] = &[$(Point::$constant),*];
    };
}

points! {
    RUN_CLAIMED "run.claimed" "a sandbox has its name, and nothing else"
    RUN_STORED "run.stored" "a sandbox is stored as being made"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_say_their_verb() {
        let verbs =
            ["pull", "run", "create", "start", "stop", "remove", "exec", "collect", "recover"];
        let mut names: Vec<_> = POINTS.iter().map(|point| point.name).collect();
        for name in &names {
            let (verb, step) = name.split_once('.').unwrap();
            assert!(verbs.contains(&verb) && !step.is_empty(), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }
}
