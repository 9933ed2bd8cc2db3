//! Header blocks: compressed lists of names and values, one compression state for each
//! direction of a connection (SPDY Protocol, draft 3.1, section 2.6.10).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use super::frame::{Malformed, length_of};

/// Longest block after decompression, bytes. What Kubernetes sends has less than 200.
const MAX_BLOCK_BYTES: usize = 16 << 10;
/// Most headers of one stream.
const MAX_HEADERS: u32 = 64;

/// The headers of a stream, names in lower case as the protocol wants them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; the first one where there are several.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.split('\0').next().unwrap_or(value))
    }

    fn parse(block: &[u8]) -> Result<Self, Malformed> {
        let mut rest = Fields(block);
        let count = rest.number()?;
        if count > MAX_HEADERS {
            return Err(Malformed::Headers("too many headers"));
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, value) = (rest.text()?, rest.text()?);
            if name.is_empty() {
                return Err(Malformed::Headers("a header without a name"));
            }
            // The protocol wants lower case; Kubernetes' own names have capitals.
            headers.push((name.to_ascii_lowercase(), value));
        }
        if !rest.0.is_empty() {
            return Err(Malformed::Headers("bytes after the last header"));
        }
        Ok(Self(headers))
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(headers: I) -> Self {
        Self(headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// Fields that are not read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self) -> Result<u32, Malformed> {
        let (number, rest) =
            self.0.split_first_chunk().ok_or(Malformed::Headers("a block that is cut off"))?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let (text, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed::Headers("a length beyond the end of its block"))?;
        self.0 = rest;
        let text = std::str::from_utf8(text);
        text.map(str::to_owned).map_err(|_| Malformed::Headers("text that is not UTF-8"))
    }
}

/// Reads the header blocks of one direction, in their order.
#[derive(Debug)]
pub struct Decoder(Decompress);

impl Decoder {
    /// The state before the first block.
    #[must_use]
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads the next block.
    ///
    /// # Errors
    ///
    /// A block that does not decompress, or to something else than headers. The later ones
    /// cannot be read then.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        let mut plain = vec![0; MAX_BLOCK_BYTES];
        let (from, to) = (self.0.total_in(), self.0.total_out());
        let done = |now: u64, start| usize::try_from(now - start).unwrap_or(usize::MAX);
        loop {
            let (read, written) = (done(self.0.total_in(), from), done(self.0.total_out(), to));
            let outcome =
                self.0.decompress(&block[read..], &mut plain[written..], FlushDecompress::Sync);
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| Malformed::Compression)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Malformed::Compression),
                Ok(Status::Ok | Status::BufError) => {}
            }
            let (now_read, now_written) =
                (done(self.0.total_in(), from), done(self.0.total_out(), to));
            if now_written == MAX_BLOCK_BYTES {
                return Err(Malformed::Headers("a block that is too long"));
            }
            if now_read == block.len() {
                return Headers::parse(&plain[..now_written]);
            }
            if (now_read, now_written) == (read, written) {
                return Err(Malformed::Compression);
            }
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes the header blocks of one direction, in their order.
#[derive(Debug)]
pub struct Encoder(Compress);

impl Encoder {
    /// The state before the first block.
    ///
    /// # Errors
    ///
    /// [`Malformed::Compression`] where the dictionary is not taken.
    pub fn new() -> Result<Self, Malformed> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).map_err(|_| Malformed::Compression)?;
        Ok(Self(compress))
    }

    /// Writes the next block.
    ///
    /// # Errors
    ///
    /// [`Malformed::Compression`] where the compressor fails.
    pub fn encode(&mut self, headers: &Headers) -> Result<Vec<u8>, Malformed> {
        let count = u32::try_from(headers.0.len()).map_err(|_| Malformed::Compression)?;
        let mut plain = count.to_be_bytes().to_vec();
        for text in headers.0.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&length_of(text.as_bytes()));
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 128);
        let from = self.0.total_in();
        loop {
            let read = usize::try_from(self.0.total_in() - from).unwrap_or(usize::MAX);
            let status = self.0.compress_vec(&plain[read..], &mut block, FlushCompress::Sync);
            status.map_err(|_| Malformed::Compression)?;
            if block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(block.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers() -> Headers {
        [("streamtype", "stdin"), ("port", "80"), ("requestid", "7")].into_iter().collect()
    }

    #[test]
    fn blocks_come_back_in_their_order() {
        let (mut encoder, mut decoder) = (Encoder::new().unwrap(), Decoder::new());
        for length in [0, 1, 200, 15_000] {
            let value = "v".repeat(length);
            let written: Headers = [("a", value.as_str()), ("b", "c")].into_iter().collect();
            for headers in [written, headers(), Headers::default()] {
                let block = encoder.encode(&headers).unwrap();
                assert_eq!(decoder.decode(&block).unwrap(), headers);
            }
        }
    }

    #[test]
    fn a_name_is_known_in_lower_case_and_a_value_up_to_its_first_separator() {
        let sent: Headers = [("streamType", "stdin\0stdout")].into_iter().collect();
        let block = Encoder::new().unwrap().encode(&sent).unwrap();
        let headers = Decoder::new().decode(&block).unwrap();
        assert_eq!(headers.get("streamtype"), Some("stdin"));
        assert_eq!(headers.get("port"), None);
    }

    fn refused(plain: &[u8]) {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&dictionary()).unwrap();
        let mut block = Vec::with_capacity(plain.len() + 128);
        compress.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        Decoder::new().decode(&block).unwrap_err();
    }

    /// teeth: crates/streaming/src/spdy/headers.rs: `if count > MAX_HEADERS {` → `if count > u32::MAX {`
    #[test]
    fn d11_a_count_is_refused_before_anything_is_made_for_it() {
        let mut many = 65u32.to_be_bytes().to_vec();
        for _ in 0..65 {
            many.extend_from_slice(&[0, 0, 0, 1, b'a', 0, 0, 0, 0]);
        }
        refused(&many);
        refused(&(1u32 << 31).to_be_bytes());
        refused(&u32::MAX.to_be_bytes());
    }

    /// teeth: crates/streaming/src/spdy/headers.rs: `if now_written == MAX_BLOCK_BYTES {` → `if now_written > MAX_BLOCK_BYTES {`
    #[test]
    fn d11_a_block_that_grows_without_end_is_refused() {
        for length in [MAX_BLOCK_BYTES, MAX_BLOCK_BYTES + 1, 10 << 20] {
            let mut bomb = vec![0; length];
            bomb[3] = 1;
            bomb[4..8].copy_from_slice(&u32::try_from(length - 12).unwrap().to_be_bytes());
            bomb[8..length - 4].fill(b'a');
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).unwrap();
            let mut block = Vec::with_capacity(64 << 10);
            compress.compress_vec(&bomb, &mut block, FlushCompress::Sync).unwrap();
            let refused = Decoder::new().decode(&block).unwrap_err();
            assert!(matches!(refused, Malformed::Headers("a block that is too long")), "{refused}");
        }
    }

    /// teeth: crates/streaming/src/spdy/headers.rs: `.split_at_checked(length)` → `.split_at_checked(length.min(self.0.len()))`
    #[test]
    fn d11_lengths_beyond_their_block_and_text_that_is_none_are_refused() {
        refused(&[]);
        refused(&[0, 0, 0, 1]);
        refused(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']);
        refused(&[0, 0, 0, 1, 0, 0, 0, 1, b'a', 0x7f, 0xff, 0xff, 0xff]);
        refused(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]);
        refused(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        refused(&[0, 0, 0, 0, 0]);
        Decoder::new().decode(b"not compressed").unwrap_err();
    }
}
