//! New ids: UUID version 7 (RFC 9562 §5.7), so that they sort by time.

use event_schema::{BatchId, CommandId, GroupId, JobId, RecordId, RunId, Timestamp, TokenId};

/// Makes ids from the time given and the system's randomness.
#[derive(Clone, Copy, Debug)]
pub struct Ids(pub Timestamp);

macro_rules! makers {
    ($($(#[$meta:meta])* $name:ident -> $id:ident),+ $(,)?) => {
        impl Ids {
            $($(#[$meta])* pub fn $name(self) -> $id { $id(self.uuid_v7()) })+
        }
    };
}

makers! {
    /// For a record.
    record -> RecordId,
    /// For a command.
    command -> CommandId,
    /// For a group.
    group -> GroupId,
    /// For a job.
    job -> JobId,
    /// For a run.
    run -> RunId,
    /// For the runs of one start.
    batch -> BatchId,
    /// For a token.
    token -> TokenId,
}

impl Ids {
    fn uuid_v7(self) -> [u8; 16] {
        let mut id = random::<16>();
        id[..6].copy_from_slice(&self.0.0.to_be_bytes()[2..]);
        id[6] = id[6] & 0x0f | 0x70;
        id[8] = id[8] & 0x3f | 0x80;
        id
    }
}

/// Random bytes of the system.
///
/// # Panics
/// If the system has none, which leaves nothing that could be done safely.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// 64 hex digits of randomness, wiped when dropped.
pub(crate) fn random_secret() -> zeroize::Zeroizing<String> {
    let bytes = zeroize::Zeroizing::new(random::<32>());
    zeroize::Zeroizing::new(data_encoding::HEXLOWER.encode(bytes.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ() {
        let (a, b, c) = (Ids(Timestamp(1)).run(), Ids(Timestamp(2)).run(), Ids(Timestamp(2)).run());
        assert!(a < b && b != c);
        assert_eq!((a.0[6] >> 4, a.0[8] >> 6), (7, 2));
    }
}
