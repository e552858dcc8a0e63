//! The bytes of every message (`PROTOCOL.md` §9). Only ever added to: a change here is a new version.

use std::fmt::Write as _;
use std::time::Duration;

use tracker_proto::message::NO_COOKIE;
use tracker_proto::{
    Address, Announce, Call, CookieReply, Entry, EntryFlags, FromTracker, LanAnnounce, ListedPeer,
    PeersReply, Probe, Ring, SwarmKey, ToTracker,
};

const SWARM: &str = "da9cbdf92e82d664b41332a8783d1dbe4a950f9e88faeeb380dcbbc944794726";
const PEER: &str = "095feb21b2b1f32fcf30e49cb8f874d1";
const SEQUENCE: &str = "0102030405060708";
const ADDRESSES: [&str; 3] = ["04c00002010fa0", "0620010db80000000000000000000000010fa1", "000fa2"];

fn key() -> SwarmKey {
    SwarmKey::from_run_secret(&[7; 32])
}

fn entry(flags: EntryFlags) -> Entry {
    let addresses = [
        Address::socket("192.0.2.1:4000".parse().unwrap()).unwrap(),
        Address::socket("[2001:db8::1]:4001".parse().unwrap()).unwrap(),
        Address::reflexive(4002).unwrap(),
    ];
    Entry::sign(&key(), key().peer_id(&[1; 16]), 0x0102_0304_0506_0708, flags, &addresses)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

/// The bytes of [`entry`]; the MACs were computed with another implementation.
fn golden_entry(flags: &str, mac: &str) -> String {
    [PEER, SEQUENCE, flags, "03", &ADDRESSES.concat(), mac].concat()
}

#[track_caller]
fn check(emitted: &[u8], golden: &[&str]) {
    assert_eq!(hex(emitted), golden.concat());
}

#[test]
fn names() {
    assert_eq!(hex(&key().swarm().0), SWARM);
    assert_eq!(hex(&key().peer_id(&[1; 16]).0), PEER);
}

#[test]
fn announce() {
    let message = Announce {
        transaction: *b"transact",
        cookie: NO_COOKIE,
        swarm: key().swarm(),
        entry: entry(EntryFlags::default()),
    };
    let mut bytes = Vec::new();
    message.emit(&mut bytes, 140);
    let golden = golden_entry("00", "0a32ef9a0ef57eaef3a230d078d62cd6");
    let no_cookie = "00".repeat(16);
    check(&bytes, &["46540101", "7472616e73616374", &no_cookie, SWARM, &golden, &"00".repeat(9)]);
    assert_eq!(Announce::parse(&bytes), Ok(message));
}

#[test]
fn cookie() {
    let message = CookieReply { transaction: *b"transact", cookie: *b"0123456789abcdef" };
    let mut bytes = Vec::new();
    message.emit(&mut bytes);
    check(&bytes, &["46540102", "7472616e73616374", "30313233343536373839616263646566"]);
    assert_eq!(FromTracker::parse(&bytes), Ok(FromTracker::Cookie(message)));
}

#[test]
fn peers() {
    let peer = |observed: &str| ListedPeer {
        observed: observed.parse().unwrap(),
        entry: entry(EntryFlags { observed_usable: true, ..EntryFlags::default() }),
    };
    let message = PeersReply {
        transaction: *b"transact",
        cookie: *b"0123456789abcdef",
        interval: Duration::from_secs(30),
        full: true,
        observed: "198.51.100.7:65535".parse().unwrap(),
        peers: vec![peer("203.0.113.1:5000"), peer("[2001:db8::2]:5001")],
    };
    let mut bytes = Vec::new();
    message.emit(&mut bytes);
    let golden = golden_entry("04", "aa7dd7c2710cc97970f4a49dbebc1c69");
    check(
        &bytes,
        &[
            "46540103",
            "7472616e73616374",
            "30313233343536373839616263646566",
            "001e01",
            "04c6336407ffff",
            "02",
            "04cb0071011388",
            &golden,
            "0620010db80000000000000000000000021389",
            &golden,
        ],
    );
    assert_eq!(FromTracker::parse(&bytes), Ok(FromTracker::Peers(message)));
}

#[test]
fn lan_announce() {
    let message = LanAnnounce {
        swarm: key().swarm(),
        entry: entry(EntryFlags { answer_me: true, ..EntryFlags::default() }),
    };
    let mut bytes = Vec::new();
    message.emit(&mut bytes);
    check(&bytes, &["46540110", SWARM, &golden_entry("02", "50790d4d752873ba3576295c6582de6f")]);
    assert_eq!(LanAnnounce::parse(&bytes), Ok(message));
}

const OTHER: &str = "c75b8f65d564fec65df3c629fd429f9a";

#[test]
fn call_and_ring() {
    let callee = key().peer_id(&[2; 16]);
    let flags = EntryFlags { observed_usable: true, relay: true, ..EntryFlags::default() };
    let call = Call {
        transaction: *b"transact",
        cookie: *b"0123456789abcdef",
        swarm: key().swarm(),
        callee,
        entry: entry(flags),
    };
    let golden = golden_entry("0c", "d9fab41831d528e2fcf604458d075518");
    let mut bytes = Vec::new();
    call.emit(&mut bytes, 160);
    let cookie = "30313233343536373839616263646566";
    check(&bytes, &["46540104", "7472616e73616374", cookie, SWARM, OTHER, &golden, &"00".repeat(13)]);
    assert_eq!(ToTracker::parse(&bytes), Ok(ToTracker::Call(call)));
    let ring =
        Ring { swarm: key().swarm(), observed: "198.51.100.7:65535".parse().unwrap(), entry: entry(flags) };
    let mut bytes = Vec::new();
    ring.emit(&mut bytes);
    check(&bytes, &["46540105", SWARM, "04c6336407ffff", &golden]);
    assert_eq!(FromTracker::parse(&bytes), Ok(FromTracker::Ring(ring)));
}

#[test]
fn probe() {
    let probe =
        Probe::sign(&key(), key().peer_id(&[1; 16]), key().peer_id(&[2; 16]), *b"question", *b"answered");
    let mut bytes = Vec::new();
    probe.emit(&mut bytes);
    let mac = "5d05f14cfd23e30f5ce1cb47f87a7a88";
    check(&bytes, &["46540111", SWARM, PEER, OTHER, "7175657374696f6e", "616e737765726564", mac]);
    assert_eq!(Probe::parse(&bytes), Ok(probe));
}

#[test]
fn meeting() {
    let (one, two) = (key().peer_id(&[1; 16]), key().peer_id(&[2; 16]));
    assert_eq!(hex(&key().meeting(one, two)), "1ffa27b7171cc63ff80618a37ebf8fa1");
    assert_eq!(key().meeting(one, two), key().meeting(two, one));
}
