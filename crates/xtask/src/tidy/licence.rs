//! SPDX licence expressions, as far as crates use them.

/// Licences that ask for nothing beyond attribution.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether `expression` can be satisfied by permissive licences alone.
///
/// `AND` binds tighter than `OR` (SPDX specification, annex on licence expressions);
/// the old `A/B` form means `A OR B`.
pub(super) fn permissive(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let mut rest = words.as_slice();
    let permitted = any(&mut rest);
    permitted && rest.is_empty()
}

fn any(rest: &mut &[&str]) -> bool {
    let mut permitted = all(rest);
    while let Some((&"OR", after)) = rest.split_first() {
        *rest = after;
        permitted |= all(rest);
    }
    permitted
}

fn all(rest: &mut &[&str]) -> bool {
    let mut permitted = one(rest);
    while let Some((&"AND", after)) = rest.split_first() {
        *rest = after;
        permitted &= one(rest);
    }
    permitted
}

fn one(rest: &mut &[&str]) -> bool {
    let Some((first, after)) = rest.split_first() else { return false };
    *rest = after;
    if *first == "(" {
        let permitted = any(rest);
        let Some((&")", after)) = rest.split_first() else { return false };
        *rest = after;
        return permitted;
    }
    let mut name = (*first).to_owned();
    if let Some((&"WITH", [exception, after @ ..])) = rest.split_first() {
        name = format!("{name} WITH {exception}");
        *rest = after;
    }
    PERMISSIVE.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::permissive;

    #[test]
    fn one_permissive_choice_is_enough() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR GPL-2.0) AND Zlib",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ] {
            assert!(permissive(good), "{good}");
        }
    }

    #[test]
    fn what_must_be_obeyed_must_be_permissive() {
        for bad in ["GPL-3.0", "MIT AND GPL-2.0", "(MIT", "", "MIT MIT", "CC0-1.0"] {
            assert!(!permissive(bad), "{bad}");
        }
    }
}
