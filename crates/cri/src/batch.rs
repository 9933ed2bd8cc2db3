//! Long answers in parts (KEP-5825: lists that outgrow a message).

use std::iter::Peekable;
use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// Size of a part, bytes, unless one item alone is larger: far below the 16 MiB that kubelet
/// takes, so that the first part is there at once and no part costs much memory.
const PART_BYTES: usize = 1 << 20;
/// Most items of a part.
const PART_ITEMS: usize = 1000;

/// An answer in parts.
pub(crate) type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items in parts. Each is translated when its part is sent.
pub(crate) fn parts<T, A>(
    items: impl Iterator<Item = T> + Send + 'static,
    part: impl Fn(Vec<T>) -> A + Send + 'static,
) -> Parts<A>
where
    T: Message + 'static,
{
    let mut items = items.peekable();
    let parts = std::iter::from_fn(move || next(&mut items).map(|items| Ok(part(items))));
    Box::pin(tokio_stream::iter(parts))
}

fn next<T: Message>(items: &mut Peekable<impl Iterator<Item = T>>) -> Option<Vec<T>> {
    let first = items.next()?;
    let mut bytes = first.encoded_len();
    let mut part = vec![first];
    while part.len() < PART_ITEMS {
        let fits = |item: &T| bytes + item.encoded_len() <= PART_BYTES;
        let Some(item) = items.next_if(fits) else { break };
        bytes += item.encoded_len();
        part.push(item);
    }
    Some(part)
}

#[cfg(test)]
mod tests {
    use berth_api::v1::Image;

    use super::*;

    fn sizes(items: Vec<Image>) -> Vec<usize> {
        let mut items = items.into_iter().peekable();
        std::iter::from_fn(|| next(&mut items)).map(|part| part.len()).collect()
    }

    /// teeth: crates/cri/src/batch.rs: `<= PART_BYTES` → `> 0`
    #[test]
    fn parts_are_bounded_in_bytes_and_items_and_lose_nothing() {
        let image = |bytes: usize| Image { id: "x".repeat(bytes), ..Image::default() };
        assert_eq!(sizes(vec![]), Vec::<usize>::new());
        assert_eq!(sizes(vec![image(1); 2500]), [1000, 1000, 500]);
        assert_eq!(sizes(vec![image(400 << 10); 5]), [2, 2, 1]);
        assert_eq!(sizes(vec![image(1), image(3 << 20), image(1)]), [1, 1, 1]);
    }
}
