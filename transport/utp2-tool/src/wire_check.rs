//! What must hold of `wire` for any bytes: for its fuzz target, and for the tests that replay the corpus.

use crate::wire::{ToReceiver, ToSender, block_len, blocks_of, decode, encode};

/// Any bytes are a message or malformed, and a message comes back as what it was sent as.
pub(crate) fn check(data: &[u8]) {
    if let Ok(message) = decode::<ToReceiver>(data) {
        assert_eq!(decode(&encode(&message)).as_ref(), Ok(&message));
        if let ToReceiver::Offer { meta, .. } = &message
            && let Some(blocks) = blocks_of(meta.size)
        {
            let last = blocks.checked_sub(1).map_or(0, |b| u64::from(block_len(meta.size, b)));
            let before = u64::from(blocks.saturating_sub(1)) * u64::from(crate::wire::BLOCK);
            assert_eq!(before + last, meta.size);
        }
    }
    if let Ok(message) = decode::<ToSender>(data) {
        assert_eq!(decode(&encode(&message)).as_ref(), Ok(&message));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_does_no_harm() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/tool_wire");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!files.is_empty());
        for file in files {
            check(&std::fs::read(&file).unwrap());
        }
    }
}
