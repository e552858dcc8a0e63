//! What the log is told of handshakes: at debug level each packet of one, at info level whom we refused.
//!
//! Never what is in them, but for the code of an ALERT (PROTOCOL.md §3.2, §3.7). Strangers decide how many there are,
//! so the lines at info level are limited; those at debug level are for who wants them all.

use std::net::SocketAddr;
use std::time::Duration;

use timebase::Instant;

/// The bit of the first byte that packets of a handshake have, and where an ALERT has its code.
const HANDSHAKE: u8 = 0x80;
const ALERT: u8 = 5;
const ALERT_CODE: usize = 13;

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

/// The name of a packet of a handshake.
fn kind(datagram: &[u8]) -> Option<&'static str> {
    let first = *datagram.first()?;
    if first & HANDSHAKE == 0 {
        return None;
    }
    Some(match first & !HANDSHAKE {
        1 => "INIT",
        2 => "RETRY",
        3 => "REPLY",
        4 => "PROVE",
        ALERT => "ALERT",
        6 => "RESUME",
        7 => "RESUMED",
        8 => "RESET",
        _ => "of an unknown kind",
    })
}

/// What an ALERT says; a ticket that is not taken is no refusal, for a full handshake follows.
fn alert(datagram: &[u8]) -> Option<&'static str> {
    match (datagram.first()? & !HANDSHAKE, *datagram.get(ALERT_CODE)?) {
        (ALERT, 1) => Some("its secret is another one, or its key is not accepted"),
        (ALERT, 2) => Some("too many handshakes or connections"),
        (ALERT, 3) => Some("it speaks another version"),
        _ => None,
    }
}

impl Talk {
    /// A datagram came.
    #[inline]
    pub(crate) fn came(&self, remote: SocketAddr, datagram: &[u8]) {
        if let Some(kind) = kind(datagram) {
            let bytes = datagram.len();
            tracing::debug!(%remote, kind, bytes, code = alert(datagram), "a packet of a handshake came");
        }
    }

    /// Datagrams of `size` bytes each, but for the last one, are sent.
    #[inline]
    pub(crate) fn goes(&mut self, now: Instant, remote: SocketAddr, datagrams: &[u8], size: usize) {
        // Packets of handshakes and others never go together.
        if kind(datagrams).is_none() {
            return;
        }
        for datagram in datagrams.chunks(size.max(1)) {
            let Some(kind) = kind(datagram) else { continue };
            tracing::debug!(%remote, kind, bytes = datagram.len(), "a packet of a handshake is sent");
            if let Some(why) = alert(datagram)
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

    fn packet(kind: u8, code: u8) -> [u8; 14] {
        let mut packet = [0; 14];
        (packet[0], packet[ALERT_CODE]) = (HANDSHAKE | kind, code);
        packet
    }

    #[test]
    fn only_handshakes_are_named_and_only_refusals_told() {
        assert_eq!((kind(&[]), kind(&[0x40; 50]), kind(&packet(1, 0))), (None, None, Some("INIT")));
        assert!(alert(&packet(5, 1)).is_some_and(|why| why.contains("secret")));
        assert_eq!((alert(&packet(5, 4)), alert(&packet(1, 1)), alert(&[0x85])), (None, None, None));
        assert_eq!(alert(&[]), None);
    }

    #[test]
    fn strangers_do_not_fill_the_log() {
        let mut talk = Talk::default();
        let remote = "192.0.2.1:9".parse().unwrap();
        for _ in 0..25 {
            talk.goes(Instant::ZERO, remote, &packet(5, 1), 14);
        }
        assert_eq!((talk.told, talk.left_out), (TOLD_PER_PERIOD, 15));
        assert_eq!(talk.may_tell(Instant::ZERO + PERIOD), Some(15));
        assert_eq!(talk.may_tell(Instant::ZERO + PERIOD), Some(0));
    }
}
