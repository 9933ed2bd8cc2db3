//! The image that is pulled: the same bytes on every machine, and shaped as large images of
//! applications are.
//!
//! Few large layers and many small ones; many small files, some large; most of the content
//! compresses like text, one piece in fourteen hardly at all; links, and files that an upper
//! layer replaces or removes. Nothing of it comes from anywhere: it is drawn from a seeded
//! generator.

use anyhow::Result;
use berth_testkit::image::{Image, ImageBuilder};
use berth_testkit::tar::{Entry, Tar};

/// Shares of the layers in files, and of content, in hundredths.
const LAYERS: [u32; 12] = [23, 17, 14, 11, 9, 7, 6, 5, 3, 2, 2, 1];
/// One hundredth of the files, directories and links.
const ENTRIES: u32 = 248;
/// Entries of a directory, the directory included.
const DIRECTORY: u32 = 24;
/// Words that text is made of.
const WORDS: usize = 150;
/// Bytes that are drawn at once: either some words, or noise.
const PIECE: usize = 256;

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) image: Image,
    /// Entries in all layers.
    pub(crate) entries: u32,
    /// Bytes of all files.
    pub(crate) content: u64,
}

impl Made {
    /// Bytes that a pull fetches.
    pub(crate) fn fetched(&self) -> u64 {
        self.image.blobs.iter().map(|blob| blob.bytes.len() as u64).sum()
    }

    /// In words, for notes.
    pub(crate) fn shape(&self) -> String {
        let mib = |bytes| bytes / (1 << 20);
        format!(
            "{} layers, {} entries, {} MiB of files, {} MiB compressed (gzip), id {}",
            LAYERS.len(),
            self.entries,
            mib(self.content),
            mib(self.fetched()),
            self.image.id
        )
    }
}

/// Makes the image; every share is divided by `smaller`, for smoke runs.
pub(crate) fn make(smaller: u32) -> Result<Made> {
    let mut random = Random(0x5EED_0FBE_247B_E4C4);
    let words = random.words();
    let mut builder = ImageBuilder::new();
    let (mut entries, mut content) = (0, 0);
    for (number, share) in LAYERS.into_iter().enumerate() {
        let count = (share * ENTRIES / smaller.max(1)).max(DIRECTORY);
        let mut layer = Layer { tar: Tar::new(), number, content: 0 };
        for index in 0..count {
            layer.add(index, &mut random, &words);
        }
        entries += count;
        content += layer.content;
        builder = builder.layer(layer.tar)?;
    }
    Ok(Made { image: builder.build()?, entries, content })
}

struct Layer {
    tar: Tar,
    number: usize,
    content: u64,
}

impl Layer {
    /// Adds the entry `index`; directories come before what lies in them.
    fn add(&mut self, index: u32, random: &mut Random, words: &[String]) {
        let (directory, place) = (index / DIRECTORY, index % DIRECTORY);
        let at = |number: usize| format!("usr/share/l{number:02}/d{directory:04}");
        let dir = at(self.number);
        let tar = std::mem::take(&mut self.tar);
        self.tar = match place {
            0 => tar.directory(&format!("{dir}/"), 0o755),
            20 => tar.symlink(&format!("{dir}/link"), "f001"),
            21 => tar.hard_link(&format!("{dir}/same"), &format!("{dir}/f002")),
            // A file of the layer below goes, and another one is replaced.
            22 if self.number > 0 => {
                tar.file(&format!("{}/.wh.f003", at(self.number - 1)), 0o644, b"")
            }
            23 if self.number > 0 => {
                let name = format!("{}/f004", at(self.number - 1));
                self.file(tar, &name, random, words)
            }
            _ => self.file(tar, &format!("{dir}/f{place:03}"), random, words),
        };
    }

    fn file(&mut self, tar: Tar, name: &str, random: &mut Random, words: &[String]) -> Tar {
        let data = random.content(words);
        self.content += data.len() as u64;
        let mode = if random.below(8) == 0 { 0o755 } else { 0o644 };
        tar.entry(&Entry { name, mode, data: &data, ..Entry::default() })
    }
}

/// SplitMix64: a counter, mixed. Every machine draws the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is small and not zero.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn words(&mut self) -> Vec<String> {
        let word = |_| {
            let letters = 5 + self.below(9);
            let letter =
                |_| char::from(b"etaoinshrdlucmfw"[usize::from(self.next().to_le_bytes()[0] & 15)]);
            (0..letters).map(letter).collect()
        };
        (0..WORDS).map(word).collect()
    }

    /// The content of a file: its size from 64 bytes to 512 KiB, half of all below 4 KiB.
    fn content(&mut self, words: &[String]) -> Vec<u8> {
        let doublings = match self.below(100) {
            0..15 => 6,
            15..50 => 6 + self.below(6),
            50..88 => 12 + self.below(2),
            88..96 => 14 + self.below(2),
            _ => 16 + self.below(3),
        };
        let least = 1_u64 << doublings;
        let size = usize::try_from(least + self.below(least)).expect("a small number");
        let mut data = Vec::with_capacity(size + PIECE);
        while data.len() < size {
            if self.below(14) == 0 {
                while data.len() % PIECE < PIECE - 8 {
                    data.extend(self.next().to_le_bytes());
                }
                data.resize(data.len().next_multiple_of(PIECE), b' ');
            } else {
                let end = data.len() + PIECE;
                while data.len() < end {
                    let word = usize::try_from(self.below(WORDS as u64)).expect("a small number");
                    data.extend(words[word].as_bytes());
                    data.push(b' ');
                }
            }
        }
        data.truncate(size);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_wherever_it_is_made() {
        let made = make(40).unwrap();
        assert_eq!(make(40).unwrap().image.id, made.image.id);
        // Uncompressed content, so no matter which gzip: a change makes results of different
        // versions incomparable.
        assert_eq!(made.content, 8_394_074);
        assert_eq!(made.image.manifests.len(), 1);
        assert_eq!(made.image.blobs.len(), LAYERS.len() + 1);
    }

    #[test]
    fn the_shares_are_hundredths() {
        assert_eq!(LAYERS.iter().sum::<u32>(), 100);
    }
}
