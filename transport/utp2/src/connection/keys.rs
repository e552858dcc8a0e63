//! Traffic keys of one connection, with key updates per direction (PROTOCOL.md §7).

use crate::crypto::aead::PacketKey;
use crate::crypto::kdf::Secret;

/// Packets under one key after which the connection must end, RFC 9001 appendix B (§7.4).
pub(crate) const KEY_LIMIT: u64 = 1 << 28;
/// Packets that did not open after which the connection must end.
pub(crate) const FORGERY_LIMIT: u64 = 1 << 52;

#[derive(Debug)]
pub(crate) struct SealKeys {
    secret: Secret,
    pub(crate) key: PacketKey,
    pub(crate) phase: bool,
    /// First packet number of the present phase.
    began: u64,
    acked: bool,
    update_after: u64,
}

impl SealKeys {
    pub(crate) fn new(secret: Secret, update_after: u64) -> Self {
        let key = PacketKey::of_traffic(&secret);
        Self { secret, key, phase: false, began: 0, acked: false, update_after }
    }

    /// Tells that a packet was acknowledged.
    pub(crate) fn on_acked(&mut self, number: u64) {
        self.acked |= number >= self.began;
    }

    /// To be called before `number` is sealed. False when the key must not be used any more.
    pub(crate) fn advance(&mut self, number: u64) -> bool {
        let used = number - self.began;
        if used >= self.update_after && self.acked {
            self.secret = self.secret.derive("ku", b"");
            self.key = PacketKey::of_traffic(&self.secret);
            self.phase = !self.phase;
            self.began = number;
            self.acked = false;
        }
        number - self.began < KEY_LIMIT
    }
}

#[derive(Debug)]
pub(crate) struct OpenKeys {
    secret: Secret,
    key: PacketKey,
    previous: Option<PacketKey>,
    next: PacketKey,
    phase: bool,
    /// Smallest number opened in the present phase.
    began: u64,
    pub(crate) forgeries: u64,
}

impl OpenKeys {
    pub(crate) fn new(secret: Secret) -> Self {
        let key = PacketKey::of_traffic(&secret);
        let next = PacketKey::of_traffic(&secret.derive("ku", b""));
        Self { secret, key, previous: None, next, phase: false, began: 0, forgeries: 0 }
    }

    /// Opens a packet; moves on to the next key when that is the one.
    pub(crate) fn open<'a>(
        &mut self,
        phase: bool,
        number: u64,
        largest: Option<u64>,
        packet: &'a mut [u8],
        header: usize,
    ) -> Option<&'a mut [u8]> {
        let ahead = largest.is_none_or(|l| number > l);
        let key = if phase == self.phase {
            &self.key
        } else if ahead {
            &self.next
        } else if number < self.began {
            self.previous.as_ref()?
        } else {
            // Reordered within the switch: the next phase began below the largest seen.
            &self.next
        };
        match key.open(number, packet, header) {
            Ok(body) => {
                if phase != self.phase && (ahead || number >= self.began) {
                    self.secret = self.secret.derive("ku", b"");
                    let next = PacketKey::of_traffic(&self.secret.derive("ku", b""));
                    let key = core::mem::replace(&mut self.next, next);
                    self.previous = Some(core::mem::replace(&mut self.key, key));
                    self.phase = phase;
                    self.began = number;
                } else if phase == self.phase {
                    self.began = self.began.min(number);
                }
                Some(body)
            }
            Err(_) => {
                self.forgeries += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn phases_follow_each_other_under_reordering_but_never_without_an_acknowledgement() {
        let mut seal = SealKeys::new(Secret([7; 32]), 10);
        let mut open = OpenKeys::new(Secret([7; 32]));
        let mut packets: Vec<(u64, bool, Vec<u8>)> = Vec::new();
        for n in 0..100u64 {
            if n > 3 {
                seal.on_acked(n - 3);
            }
            assert!(seal.advance(n));
            let mut p: Vec<u8> = alloc::vec![1; 20];
            let tag = seal.key.seal(n, &mut p, 13);
            p.extend_from_slice(&tag);
            packets.push((n, seal.phase, p));
        }
        assert!(packets.windows(2).filter(|w| w[0].1 != w[1].1).count() >= 6);
        packets.chunks_mut(4).for_each(|c| c.reverse());
        let mut largest = None;
        for (n, phase, mut p) in packets {
            assert!(open.open(phase, n, largest, &mut p, 13).is_some(), "packet {n}");
            largest = largest.max(Some(n));
        }
        assert_eq!(open.forgeries, 0);
        let mut unacked = SealKeys::new(Secret([7; 32]), 10);
        assert!(unacked.advance(50) && !unacked.phase);
        assert!(!unacked.advance(KEY_LIMIT));
    }
}
