//! What agents say to a relay and it to them (`edge-agent/PATHS.md` §4), and the names that come from the fleet's key.

use event_schema::tagged_enum;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of a meeting of two members of a run; says nothing to others.
pub type Meeting = [u8; 16];

/// Behind what an agent sends to a relay and gets from it.
pub type Channel = [u8; 8];

/// µTP2 context of sessions with relays of a fleet.
pub fn context(root_key: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&derived(b"flotilla relay context v1", root_key)[..16]);
    out
}

/// µTP2 secret of sessions with relays of a fleet: keeps strangers from handshakes, admits nobody.
pub fn secret(root_key: &[u8; 32]) -> [u8; 32] {
    derived(b"flotilla relay secret v1", root_key)
}

fn derived(label: &[u8], root_key: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(label).chain_update([0]).chain_update(root_key).finalize().into()
}

tagged_enum! {
    /// Between an agent and a relay.
    pub enum RelayMessage, upcast = event_schema::upcast::none {
        /// To the relay: somebody will come to meet me under this name.
        (1, 1) "open" => Open,
        /// From the relay: send and expect behind this channel.
        (2, 1) "opened" => Opened,
        /// From the relay: the other one is there as well.
        (3, 1) "joined" => Joined,
        /// To the relay: enough.
        (4, 1) "close" => Close,
        /// From the relay: it is over.
        (5, 1) "ended" => Ended,
    }
}

/// To the relay: somebody will come to meet me under this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The name.
    pub meeting: Meeting,
}

/// From the relay: send and expect behind this channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Of the request.
    pub meeting: Meeting,
    /// Random.
    pub channel: Channel,
}

/// From the relay: the other one is there as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Which.
    pub meeting: Meeting,
}

/// To the relay: enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// Which.
    pub meeting: Meeting,
}

/// Why a meeting is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// Two others meet there, or the asker has too many.
    Refused,
    /// The relay has as many meetings as its owner allows.
    Full,
    /// It has forwarded as much for this meeting as its owner allows.
    Quota,
    /// The other one left.
    Gone,
    /// The other one never came.
    Late,
}

impl EndReason {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Refused => "the relay refused",
            Self::Full => "the relay is full",
            Self::Quota => "the relay's quota is used up",
            Self::Gone => "the peer left the relay",
            Self::Late => "the peer did not come to the relay",
        }
    }
}

/// From the relay: it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub meeting: Meeting,
    /// Why.
    pub reason: EndReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_between_fleets_and_uses() {
        assert_ne!(context(&[1; 32]), context(&[2; 32]));
        assert_ne!(secret(&[1; 32]), secret(&[2; 32]));
        assert_ne!(secret(&[1; 32])[..16], context(&[1; 32]));
    }

    #[test]
    fn messages_survive_and_cuts_do_not() {
        let messages = [
            RelayMessage::from(Open { meeting: [1; 16] }),
            Opened { meeting: [1; 16], channel: [2; 8] }.into(),
            Joined { meeting: [1; 16] }.into(),
            Close { meeting: [1; 16] }.into(),
            Ended { meeting: [1; 16], reason: EndReason::Quota }.into(),
        ];
        for message in messages {
            let bytes = message.encode();
            assert!(bytes.len() < 64);
            assert_eq!(RelayMessage::decode(&bytes), Ok(message));
            for cut in 0..bytes.len() {
                assert!(RelayMessage::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
