//! What the fuzz targets found interesting, replayed.

mod fuzzing;

use std::path::Path;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let inputs = std::fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("listed").path());
    assert!(inputs.map(|path| check(&std::fs::read(path).expect("readable"))).count() > 0);
}

#[test]
fn datagrams_of_the_corpus_are_parsed_strictly() {
    replay("tracker_messages", fuzzing::datagrams);
}

#[test]
fn a_prober_keeps_its_limits_over_the_corpus() {
    replay("prober", fuzzing::prober);
}

#[test]
#[ignore = "writes the first inputs of the corpora"]
fn the_first_inputs() {
    use tracker_proto::{
        Address, Announce, Call, CookieReply, Entry, EntryFlags, LanAnnounce, ListedPeer, PeersReply, Probe,
        Ring, SwarmKey,
    };
    let key = SwarmKey::from_run_secret(&[7; 32]);
    let (swarm, me, other) = (key.swarm(), key.peer_id(&[1; 16]), key.peer_id(&[2; 16]));
    let addresses = ["192.0.2.1:7", "[2001:db8::1]:7"];
    let addresses = addresses.map(|a| Address::socket(a.parse().expect("one")).expect("legal"));
    let entry = || Entry::sign(&key, me, 1, EntryFlags::default(), &addresses);
    let observed = "192.0.2.2:2".parse().expect("one");
    let mut inputs = vec![vec![]; 7];
    Announce { transaction: [3; 8], cookie: [4; 16], swarm, entry: entry() }.emit(&mut inputs[0], 200);
    CookieReply { transaction: [3; 8], cookie: [4; 16] }.emit(&mut inputs[1]);
    let peers = vec![ListedPeer { observed, entry: entry() }];
    let interval = std::time::Duration::from_secs(30);
    PeersReply { transaction: [3; 8], cookie: [4; 16], interval, full: false, observed, peers }
        .emit(&mut inputs[2]);
    LanAnnounce { swarm, entry: entry() }.emit(&mut inputs[3]);
    Call { transaction: [3; 8], cookie: [4; 16], swarm, callee: other, entry: entry() }
        .emit(&mut inputs[4], 200);
    Ring { swarm, observed, entry: entry() }.emit(&mut inputs[5]);
    Probe::sign(&key, me, other, [1; 8], [2; 8]).emit(&mut inputs[6]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    for target in ["tracker_messages", "prober"] {
        std::fs::create_dir_all(folder.join(target)).expect("made");
    }
    for (n, input) in inputs.iter().enumerate() {
        std::fs::write(folder.join("tracker_messages").join(format!("kind-{n}")), input).expect("written");
    }
    // Asked, answered, answered once more; asked by many, for a minute.
    let asked = [1, 1, 4, 1, 6, 1, 6, 1, 7, 0].to_vec();
    let flood = (0..=200u8).flat_map(|n| [1 + n % 2 * 3, n, 0, 5]).collect();
    for (name, input) in [("asked", asked), ("flood", flood)] {
        std::fs::write(folder.join("prober").join(name), input).expect("written");
    }
}
