//! The resume journal: the numbers of the blocks that were fetched and verified, in order of arrival.
//!
//! Each record is 8 bytes, a block number little-endian. The number of records is the number of
//! blocks ever fetched for the run, over all restarts. A torn tail is cut off; what a record says is
//! checked against the disk before it is believed, so that power loss can only cost work.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

const RECORD_LEN: usize = 8;

/// An open journal.
pub(crate) struct Journal {
    file: File,
    len: u64,
}

impl Journal {
    /// Opens or makes the journal and tells every number that it holds.
    pub(crate) fn open(path: &Path, mut tell: impl FnMut(u64)) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut len = 0;
        let mut reader = BufReader::with_capacity(64 * 1024, &mut file);
        loop {
            let records = reader.fill_buf()?.chunks_exact(RECORD_LEN);
            let taken = RECORD_LEN * records.len();
            records.for_each(|r| tell(u64::from_le_bytes(r.try_into().expect("8 bytes"))));
            if taken == 0 {
                break;
            }
            reader.consume(taken);
            len += taken as u64;
        }
        file.set_len(len)?;
        file.seek(SeekFrom::Start(len))?;
        Ok(Self { file, len })
    }

    /// Adds records, with one write: after a kill some of the first ones may be there, and the others not.
    pub(crate) fn push_all(&mut self, blocks: impl Iterator<Item = u64>) -> io::Result<()> {
        let records: Vec<u8> = blocks.flat_map(u64::to_le_bytes).collect();
        match self.file.write_all(&records) {
            Ok(()) => {
                self.len += records.len() as u64;
                Ok(())
            }
            Err(e) => {
                // A disk that filled up in the middle of a record: cut it off, so that the next one
                // is readable.
                let _ = self.file.set_len(self.len);
                let _ = self.file.seek(SeekFrom::Start(self.len));
                Err(e)
            }
        }
    }

    /// Number of records.
    pub(crate) fn records(&self) -> u64 {
        self.len / RECORD_LEN as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_cut_at_any_byte() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("journal");
        let open = || {
            let mut blocks = Vec::new();
            let journal = Journal::open(&path, |block| blocks.push(block)).expect("any length");
            (journal, blocks)
        };
        let (mut journal, _) = open();
        for block in [3, 1, u64::MAX] {
            journal.push_all([block].into_iter()).expect("room");
        }
        let bytes = std::fs::read(&path).expect("written");
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("room");
            let (mut journal, blocks) = open();
            assert_eq!(blocks, [3, 1, u64::MAX][..cut / 8]);
            journal.push_all([7].into_iter()).expect("room");
            assert_eq!(open().1.last(), Some(&7));
        }
    }
}
