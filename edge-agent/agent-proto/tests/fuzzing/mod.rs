//! What must hold of any bytes: for the fuzz targets (`tests/fuzz`), and for the test that replays their corpora.

use agent_proto::peer::PeerMessage;
use agent_proto::relay::RelayMessage;
use agent_proto::sync::SyncMessage;

/// Between an agent and a relay.
pub(crate) fn relay(bytes: &[u8]) {
    if let Ok(message) = RelayMessage::decode(bytes) {
        assert_eq!(RelayMessage::decode(&message.encode()), Ok(message));
    }
}

/// Between agents of a run, what they tell of others among it.
pub(crate) fn peer(bytes: &[u8]) {
    let Ok(message) = PeerMessage::decode(bytes) else { return };
    if let PeerMessage::Peers(told) = &message {
        for address in told.peers.iter().flat_map(|peer| &peer.addresses) {
            assert!(address.address().is_none_or(|addr| addr.port() != 0 && !addr.ip().is_unspecified()));
        }
    }
    assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
}

/// Between members of a synchronization.
pub(crate) fn sync(bytes: &[u8]) {
    if let Ok(message) = SyncMessage::decode(bytes) {
        assert_eq!(SyncMessage::decode(&message.encode()), Ok(message));
    }
}
