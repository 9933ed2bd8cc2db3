//! The file as text: where each key lies in it, and what a key that is unknown may mean.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// A place in the file; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Position {
    /// The place of byte `offset` of `bytes`, which are UTF-8 up to there.
    pub(super) fn of(bytes: &[u8], offset: usize) -> Self {
        let before = &bytes[..offset.min(bytes.len())];
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let is_character = |byte: &&u8| **byte & 0b1100_0000 != 0b1000_0000;
        Self {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + before[start..].iter().filter(is_character).count(),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    Name(String),
    Index(usize),
}

/// A key with the tables it lies in, from the top of the file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Key(Vec<Step>);

impl Key {
    /// The key `name` of the table that this key names.
    pub(super) fn child(mut self, name: &str) -> Self {
        self.0.push(Step::Name(name.to_owned()));
        self
    }

    /// Entry `index` of the array that this key names.
    pub(super) fn entry(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }

    fn is_file(&self) -> bool {
        self.0.is_empty()
    }
}

/// Names without dots in them, joined by dots.
impl From<&str> for Key {
    fn from(dotted: &str) -> Self {
        Self(dotted.split('.').map(|name| Step::Name(name.to_owned())).collect())
    }
}

/// As TOML writes it: names that are not bare are quoted.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Name(name) => {
                    let dot = if index == 0 { "" } else { "." };
                    if !name.is_empty() && name.chars().all(bare) {
                        write!(f, "{dot}{name}")?;
                    } else {
                        write!(f, "{dot}{name:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A file that is TOML, with the place of everything in it.
#[derive(Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    top: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Box<toml::de::Error>> {
        Ok(Self { text, top: DeTable::parse(text)? })
    }

    /// Where `key` lies; where the innermost of its tables does if only a default has it.
    pub(super) fn position(&self, key: &Key) -> Position {
        let mut found = 0..0;
        let mut at = Node::Table(self.top.get_ref());
        for step in &key.0 {
            let Some((name, value)) = at.find(step) else { break };
            at = Node::of(value.get_ref());
            // A table's own span is its header's, or its first key's.
            found = if matches!(at, Node::Table(_)) { name } else { value.span() };
        }
        Position::of(self.text.as_bytes(), found.start)
    }

    /// What is written for `key`.
    pub(super) fn value(&self, key: &Key) -> Option<&DeValue<'a>> {
        let (last, tables) = key.0.split_last()?;
        let mut at = Node::Table(self.top.get_ref());
        for step in tables {
            at = Node::of(at.find(step)?.1.get_ref());
        }
        Some(at.find(last)?.1.get_ref())
    }

    /// The innermost key whose name or value holds `span`.
    pub(super) fn key_at(&self, span: &Range<usize>) -> Option<Key> {
        let mut best = (usize::MAX, Key::default());
        Node::Table(self.top.get_ref()).search(span, &Key::default(), &mut best);
        (!best.1.is_file()).then_some(best.1)
    }

    /// The key beside `key` that is spelled most like it, if one is.
    pub(super) fn resembling(&self, key: &Key) -> Option<&str> {
        let (Step::Name(wrong), tables) = key.0.split_last()? else { return None };
        let mut at = Node::Table(self.top.get_ref());
        for step in tables {
            at = Node::of(at.find(step)?.1.get_ref());
        }
        let Node::Table(table) = at else { return None };
        let known = table.keys().map(|name| name.get_ref().as_ref());
        let near = known.map(|name| (distance(wrong, name), name));
        let (distance, name) = near.min_by_key(|(distance, _)| *distance)?;
        (distance <= wrong.len().max(name.len()).div_ceil(3)).then_some(name)
    }
}

/// What a key can lead on from.
#[derive(Clone, Copy)]
enum Node<'n, 'a> {
    Table(&'n DeTable<'a>),
    Array(&'n DeArray<'a>),
    Leaf,
}

impl<'n, 'a> Node<'n, 'a> {
    fn of(value: &'n DeValue<'a>) -> Self {
        match value {
            DeValue::Table(table) => Self::Table(table),
            DeValue::Array(array) => Self::Array(array),
            _ => Self::Leaf,
        }
    }

    /// Where the key or entry `step` is named, and its value.
    fn find(self, step: &Step) -> Option<(Range<usize>, &'n Spanned<DeValue<'a>>)> {
        match (self, step) {
            (Self::Table(table), Step::Name(wanted)) => {
                let (name, value) = table.iter().find(|(name, _)| name.get_ref() == wanted)?;
                Some((name.span(), value))
            }
            (Self::Array(array), Step::Index(index)) => {
                let value = array.get(*index)?;
                Some((value.span(), value))
            }
            _ => None,
        }
    }

    fn search(self, span: &Range<usize>, own: &Key, best: &mut (usize, Key)) {
        let mut visit = |key: Key, spans: [Range<usize>; 2], value: &'n DeValue<'a>| {
            let holds = |at: &&Range<usize>| at.start <= span.start && span.start < at.end;
            for at in spans.iter().filter(holds) {
                // Of equals the inner one, which comes later.
                if at.len() <= best.0 {
                    *best = (at.len(), key.clone());
                }
            }
            Self::of(value).search(span, &key, best);
        };
        match self {
            Self::Table(table) => {
                for (name, value) in table {
                    let key = own.clone().child(name.get_ref());
                    visit(key, [name.span(), value.span()], value.get_ref());
                }
            }
            Self::Array(array) => {
                for (index, value) in array.iter().enumerate() {
                    let at = value.span();
                    visit(own.clone().entry(index), [at.clone(), at], value.get_ref());
                }
            }
            Self::Leaf => {}
        }
    }
}

/// How many characters are inserted, dropped or replaced between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = line + 1;
        for (column, to) in b.iter().enumerate() {
            let replaced = corner + usize::from(from != *to);
            corner = row[column + 1];
            row[column + 1] = replaced.min(corner + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_differ_by_their_edits() {
        for (a, b, edits) in
            [("", "", 0), ("mtu", "mtuu", 1), ("mtu", "mut", 2), ("a", "", 1), ("bridge", "b", 5)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "ä = 1\r\n\tböse = 2\n";
        let place = |offset| Position::of(text.as_bytes(), offset).to_string();
        assert_eq!(place(0), "1:1");
        assert_eq!(place(text.find('=').unwrap()), "1:3");
        assert_eq!(place(text.rfind('=').unwrap()), "2:7");
        assert_eq!(place(text.len()), "3:1");
        assert_eq!(place(usize::MAX), "3:1");
    }

    #[test]
    fn keys_are_found_however_they_are_written() {
        let text = "a.b = 1\n[t]\n\"x y\" = [\n 5,\n 6]\n[t.u.v]\nw = {z = 2}\n[[l]]\nm = 1\n";
        let document = Document::parse(text).unwrap();
        let list = Key::from("t").child("x y");
        for (key, shown, place) in [
            (Key::from("a.b"), "a.b", "1:7"),
            (list.clone(), "t.\"x y\"", "3:9"),
            (list.clone().entry(1), "t.\"x y\"[1]", "5:2"),
            (list.entry(7), "t.\"x y\"[7]", "3:9"),
            (Key::from("t.u.v"), "t.u.v", "6:6"),
            (Key::from("t.u.v.w.z"), "t.u.v.w.z", "7:10"),
            (Key::from("t.u.v.none"), "t.u.v.none", "6:6"),
            (Key::from("l").entry(0).child("m"), "l[0].m", "9:5"),
            (Key::from("none"), "none", "1:1"),
        ] {
            assert_eq!(
                (key.to_string().as_str(), document.position(&key).to_string().as_str()),
                (shown, place)
            );
        }
        let at = |text_at: &str| {
            let start = text.find(text_at).unwrap();
            document.key_at(&(start..start + 1)).unwrap().to_string()
        };
        assert_eq!(at("6]"), "t.\"x y\"[1]");
        assert_eq!(at("z = 2"), "t.u.v.w.z");
        assert_eq!(at("v]"), "t.u.v");
    }
}
