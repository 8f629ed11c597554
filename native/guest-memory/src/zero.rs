//! Whether a page is all zero.

use novacron_core::PAGE_BYTES;

/// Whether every byte is zero; most pages that are not are known after their first bytes.
pub fn is_zero_page(page: &[u8; PAGE_BYTES]) -> bool {
    let (blocks, _) = page.as_chunks::<256>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |any, word| any | u64::from_ne_bytes(*word)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_byte_counts() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero_page(&page));
        for at in 0..PAGE_BYTES {
            page[at] = 1;
            assert!(!is_zero_page(&page), "byte {at}");
            page[at] = 0;
        }
    }
}
