//! What the fuzz targets found interesting, replayed.

mod fuzzing;

use std::path::Path;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let inputs = std::fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("listed").path());
    assert!(inputs.map(|path| check(&std::fs::read(path).expect("readable"))).count() > 0);
}

#[test]
fn messages_of_the_corpus_survive() {
    replay("relay_messages", fuzzing::relay);
    replay("peer_messages", fuzzing::peer);
    replay("sync_messages", fuzzing::sync);
}

/// The smallest payload of zeros that is one, of every kind.
#[test]
#[ignore = "writes the first inputs of the corpora"]
fn the_first_inputs() {
    use agent_proto::{peer::PeerMessage, relay::RelayMessage, sync::SyncMessage};
    type Kinds = &'static [(u16, u8, &'static str)];
    let write = |target: &str, kinds: Kinds, is_one: &dyn Fn(&[u8]) -> bool| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
        std::fs::create_dir_all(&folder).expect("made");
        for &(kind, version, name) in kinds {
            let tagged = |len| {
                let tagged = event_schema::Tagged { kind, version, payload: vec![0; len] };
                event_schema::encode(&tagged)
            };
            let bytes = (0..1000).map(tagged).find(|bytes| is_one(bytes));
            if let Some(bytes) = bytes {
                std::fs::write(folder.join(name), bytes).expect("written");
            }
        }
    };
    write("relay_messages", RelayMessage::KINDS, &|bytes| RelayMessage::decode(bytes).is_ok());
    write("peer_messages", PeerMessage::KINDS, &|bytes| PeerMessage::decode(bytes).is_ok());
    write("sync_messages", SyncMessage::KINDS, &|bytes| SyncMessage::decode(bytes).is_ok());
}
