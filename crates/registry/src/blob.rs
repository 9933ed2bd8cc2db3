//! A blob as it arrives.

use bytes::Bytes;

use crate::Error;

/// A blob as it arrives. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Blob {}

impl Blob {
    /// The next bytes, never empty; `None` after exactly as many as the descriptor says.
    ///
    /// A connection that breaks or stalls is replaced by one that asks for the rest. Time
    /// between calls does not count as a stall.
    ///
    /// # Errors
    /// Any [`Error`]; after one the blob is of no more use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        todo!()
    }
}
