//! What the log is told of handshakes: at debug level each packet of one, at info level whom we refused.
//!
//! Never what is in them, but for the code of an ALERT (PROTOCOL.md §3.2, §3.7). Strangers decide how many there are,
//! so the lines at info level are limited; those at debug level are for who wants them all.

use std::net::SocketAddr;
use std::time::Duration;

use timebase::Instant;
use utp2::HandshakePacket;

/// Refusals told in so long a time; the number of the others follows with the next one.
const PERIOD: Duration = Duration::from_secs(60);
const TOLD_PER_PERIOD: u32 = 10;

/// Tells the log.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    period: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Talk {
    /// A datagram came.
    #[inline]
    pub(crate) fn came(&self, remote: SocketAddr, datagram: &[u8]) {
        if let Some(HandshakePacket { kind, refusal }) = HandshakePacket::of(datagram) {
            let bytes = datagram.len();
            tracing::debug!(%remote, kind, bytes, refusal, "a packet of a handshake came");
        }
    }

    /// Datagrams of `size` bytes each, but for the last one, are sent.
    #[inline]
    pub(crate) fn goes(&mut self, now: Instant, remote: SocketAddr, datagrams: &[u8], size: usize) {
        // Packets of handshakes and others never go together.
        if HandshakePacket::of(datagrams).is_none() {
            return;
        }
        for datagram in datagrams.chunks(size.max(1)) {
            let Some(HandshakePacket { kind, refusal }) = HandshakePacket::of(datagram) else { continue };
            tracing::debug!(%remote, kind, bytes = datagram.len(), "a packet of a handshake is sent");
            if let Some(why) = refusal
                && let Some(left_out) = self.may_tell(now)
            {
                match left_out {
                    0 => tracing::info!(%remote, "a handshake is refused: {why}"),
                    _ => tracing::info!(%remote, left_out, "a handshake is refused: {why}"),
                }
            }
        }
    }

    /// Whether another refusal is told now; then how many were not since the last one told.
    fn may_tell(&mut self, now: Instant) -> Option<u64> {
        if self.period.is_none_or(|began| now.saturating_since(began) >= PERIOD) {
            (self.period, self.told) = (Some(now), 0);
        }
        if self.told >= TOLD_PER_PERIOD {
            self.left_out += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_fill_the_log() {
        let mut talk = Talk::default();
        let remote = "192.0.2.1:9".parse().unwrap();
        for _ in 0..25 {
            // An ALERT that refuses.
            talk.goes(Instant::ZERO, remote, &[0x85, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1], 14);
        }
        assert_eq!((talk.told, talk.left_out), (TOLD_PER_PERIOD, 15));
        assert_eq!(talk.may_tell(Instant::ZERO + PERIOD), Some(15));
        assert_eq!(talk.may_tell(Instant::ZERO + PERIOD), Some(0));
    }
}
