//! What agents say to a relay and it to them (`edge-agent/PATHS.md` §4), and the names that come from the fleet's key.

use event_schema::{AgentId, tagged_enum};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of a meeting of two members of a run; says nothing to others.
pub type Meeting = [u8; 16];

/// Who is meant in a meeting; says nothing to who does not know the agent.
pub type PlaceName = [u8; 16];

/// Behind what an agent sends to a relay and gets from it.
pub type Channel = [u8; 8];

/// An agent's name in a meeting: the relay makes it of who has proved to be there, the other one of whom it wants to meet.
pub fn place_name(meeting: &Meeting, agent: &AgentId) -> PlaceName {
    let hash = Sha256::new().chain_update(b"flotilla relay place v1\0").chain_update(meeting);
    let mut out = [0; 16];
    out.copy_from_slice(&hash.chain_update(agent.0).finalize()[..16]);
    out
}

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
        /// To the relay: this agent will come to meet me under this name. (Version 1 let anybody come.)
        (1, 2) "open" => Open,
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

/// To the relay: this agent will come to meet me under this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The name.
    pub meeting: Meeting,
    /// Who will: [`place_name`] of it.
    pub peer: PlaceName,
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
    /// The asker has too many, or means itself.
    Refused,
    /// The relay has as many meetings as its owner allows, or as many that wait.
    Full,
    /// It has forwarded as much for these two as its owner allows in a day.
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
    fn a_request_that_anybody_may_answer_is_not_understood_any_more() {
        let old = event_schema::Tagged { kind: 1, version: 1, payload: alloc::vec![1; 16] };
        assert!(RelayMessage::from_tagged(&old).is_err());
        let (one, other) = (AgentId([1; 16]), AgentId([2; 16]));
        assert_ne!(place_name(&[1; 16], &one), place_name(&[1; 16], &other));
        assert_ne!(place_name(&[1; 16], &one), place_name(&[2; 16], &one));
    }

    #[test]
    fn messages_survive_and_cuts_do_not() {
        let messages = [
            RelayMessage::from(Open { meeting: [1; 16], peer: [3; 16] }),
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
