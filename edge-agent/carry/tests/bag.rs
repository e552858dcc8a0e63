//! What a bag takes, keeps, lets go of and says that somebody lacks.

use agent_proto::{Credential, TrustBundle};
use carry::{
    Bag, Item, Kept, Keys, Letter, LetterError, Limits, Notice, NoticeSent, Order, Receipt, Refused, Removal,
};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, CommandId, FinishRun, Report, RunAgentState, RunId, RunStateReported, Signed,
    Timestamp, decode_exact, encode,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> [u8; 32] {
    key(seed).verifying_key().to_bytes()
}

fn id(seed: u8) -> AgentId {
    AgentId::of_key(&public(seed))
}

const ROOT: u8 = 200;
const COMMAND: u8 = 201;
const ISSUER: u8 = 202;

fn trust(version: u64, command: u8, issuer: u8) -> Signed {
    let (command_keys, credential_keys) = (vec![public(command)], vec![public(issuer)]);
    let root_key = public(ROOT);
    TrustBundle { version, root_key, command_keys, credential_keys, ca_certificate: vec![] }.sign(&key(ROOT))
}

fn bag(limits: Limits) -> Bag {
    Bag::new(limits, trust(1, COMMAND, ISSUER), &public(ROOT), 1, None).expect("keys")
}

fn order(to: u8, sequence: u64, issued: u64, by: u8) -> Item {
    let issued = Timestamp(NOW.0 + issued);
    let command = Command {
        id: CommandId([sequence as u8; 16]),
        audience: id(to),
        sequence,
        issued,
        not_before: issued,
        expires: Timestamp(issued.0 + 1000),
        body: FinishRun { run: RunId([3; 16]) }.into(),
    };
    Item::Order(Order { signed: command.sign(&key(by)) })
}

fn notice(notice: impl Into<Notice>, by: u8) -> Item {
    Item::NoticeSent(NoticeSent { signed: notice.into().sign(&key(by)) })
}

fn receipt(of: u8, commands: u64, reports: u64) -> Item {
    notice(Receipt { agent: id(of), commands, reports }, COMMAND)
}

fn credential(of: u8, by: u8) -> Vec<u8> {
    Credential {
        version: 1,
        fleet: public(ROOT),
        public_key: public(of),
        name: "device".into(),
        not_before: Timestamp(NOW.0 - 1000),
        not_after: Timestamp(NOW.0 + 1_000_000_000),
    }
    .sign(&key(by))
}

fn report(from: u8, sequence: u64, after: u64) -> Signed {
    let body = RunStateReported { run: RunId([4; 16]), state: RunAgentState::Done }.into();
    Report { agent: id(from), sequence, time: Timestamp(NOW.0 + after), body }.sign(&key(from))
}

fn letter(from: u8, sequence: u64, after: u64) -> Letter {
    let report = report(from, sequence, after);
    Letter::seal(&report, credential(from, ISSUER), &key(from), &public(COMMAND), [sequence as u8 + 1; 32])
        .expect("its own report")
}

fn sent(from: u8, sequence: u64, after: u64) -> Item {
    Item::Letter(letter(from, sequence, after))
}

/// What one bag has, by what it would send to somebody who has nothing.
fn all(bag: &Bag) -> Vec<Item> {
    bag.lacking(&Bag::summary(&self::bag(Limits::AGENT), 0))
}

#[test]
fn only_what_proves_itself_is_taken() {
    let mut bag = bag(Limits::AGENT);
    for forged in [
        order(1, 1, 0, 99),
        notice(Removal { agent: id(1) }, 99),
        notice(Receipt { agent: id(1), commands: 9, reports: 9 }, 99),
        Item::Keys(Keys { signed: Signed { bytes: vec![1], ..trust(2, 99, 99) } }),
        Item::Letter(Letter { credential: credential(1, 99), ..letter(1, 1, 0) }),
        Item::Letter(Letter { credential: credential(2, ISSUER), ..letter(1, 1, 0) }),
        Item::Letter(Letter { credential: vec![], ..letter(1, 1, 0) }),
    ] {
        assert_eq!(bag.put(forged.clone(), NOW), Err(Refused::Forged), "{}", forged.name());
    }
    assert_eq!((all(&bag), bag.bytes()), (vec![], (0, 0)));
    for good in [order(1, 1, 0, COMMAND), receipt(2, 1, 1), sent(1, 1, 0)] {
        assert_eq!(bag.put(good.clone(), NOW), Ok(Kept::New));
        assert_eq!(bag.put(good, NOW), Ok(Kept::Known));
    }
    assert_eq!(all(&bag).len(), 3);
}

#[test]
fn a_receipt_ends_what_it_is_about() {
    let mut bag = bag(Limits::AGENT);
    for sequence in 1..=3 {
        bag.put(order(1, sequence, 0, COMMAND), NOW).expect("room");
        bag.put(sent(1, sequence, 0), NOW).expect("room");
    }
    assert_eq!(bag.put(receipt(1, 2, 1), NOW), Ok(Kept::New));
    let left: Vec<_> = all(&bag).iter().map(Item::name).collect();
    assert_eq!(left, ["notice", "letter", "order", "letter"]);
    assert_eq!(bag.put(order(1, 2, 0, COMMAND), NOW), Err(Refused::Over));
    assert_eq!(bag.put(sent(1, 1, 0), NOW), Err(Refused::Over));
    for older in [receipt(1, 1, 1), receipt(1, 3, 0)] {
        assert_eq!(bag.put(older, NOW), Err(Refused::Over), "both numbers only grow");
    }
    assert_eq!(bag.put(receipt(1, 3, 3), NOW), Ok(Kept::New));
    assert_eq!(bag.bytes(), (0, 0));
}

#[test]
fn who_is_removed_is_forgotten_and_stays_out() {
    let mut bag = bag(Limits::AGENT);
    for item in [order(1, 1, 0, COMMAND), sent(1, 1, 0), receipt(1, 0, 0), sent(2, 1, 0)] {
        bag.put(item, NOW).expect("room");
    }
    assert_eq!(bag.put(notice(Removal { agent: id(1) }, COMMAND), NOW), Ok(Kept::New));
    assert!(bag.is_removed(id(1)) && bag.receipt(id(1)).is_none());
    for item in [order(1, 2, 0, COMMAND), sent(1, 2, 0), receipt(1, 1, 1)] {
        assert_eq!(bag.put(item, NOW), Err(Refused::Removed));
    }
    assert_eq!(all(&bag).len(), 2, "the removal, and what is of another one");
}

#[test]
fn newer_keys_end_what_they_do_not_prove() {
    let mut bag = bag(Limits::AGENT);
    for item in [order(1, 1, 0, COMMAND), sent(1, 1, 0), receipt(2, 1, 1)] {
        bag.put(item, NOW).expect("room");
    }
    assert_eq!(bag.put(Item::Keys(Keys { signed: trust(3, 99, ISSUER) }), NOW), Ok(Kept::New));
    let left: Vec<_> = all(&bag).iter().map(Item::name).collect();
    assert_eq!(left, ["keys", "letter"], "the key of commands and notices was taken back");
    assert_eq!(bag.put(order(1, 1, 0, COMMAND), NOW), Err(Refused::Forged));
    assert_eq!(bag.put(Item::Keys(Keys { signed: trust(2, COMMAND, ISSUER) }), NOW), Err(Refused::Over));
}

#[test]
fn letters_of_another_time_are_not_carried() {
    let mut bag = bag(Limits::AGENT);
    assert_eq!(bag.put(sent(1, 1, 3_600_000), NOW), Err(Refused::OutOfTime), "it was not written yet");
    bag.put(sent(1, 1, 0), NOW).expect("room");
    let later = Timestamp(NOW.0 + Limits::AGENT.letter_age_ms + 1);
    assert_eq!(bag.put(sent(1, 2, 0), later), Err(Refused::OutOfTime));
    bag.forget_old(later);
    assert_eq!(bag.bytes(), (0, 0));
}

#[test]
fn of_one_agent_the_first_ones_stay() {
    let mut bag = bag(Limits::DEVICE);
    for sequence in (1..=20).rev() {
        let _ = bag.put(order(1, sequence, sequence, COMMAND), NOW);
    }
    let sequences: Vec<u64> = bag.summary(0).orders[0].sequences.clone();
    assert_eq!(sequences, (1..=8).collect::<Vec<_>>());
    assert_eq!(
        bag.put(order(1, 9, 99, 99), NOW),
        Err(Refused::NoRoom),
        "before anybody looks at its signature"
    );
}

#[test]
fn a_flood_takes_nobody_elses_room() {
    let mut bag = bag(Limits::DEVICE);
    for agent in 1..=20 {
        bag.put(sent(agent, 1, 0), NOW).expect("room");
    }
    let mut kept = 0;
    for sequence in 1..=40 {
        kept += usize::from(bag.put(sent(100, sequence, 0), NOW) == Ok(Kept::New));
    }
    assert!(kept <= Limits::DEVICE.letters_of_one);
    let others = bag.summary(0).letters.iter().filter(|of| of.agent != id(100)).count();
    assert_eq!(others, 20);
    assert!(bag.bytes().1 <= Limits::DEVICE.letters_len);
}

#[test]
fn what_is_new_stays_and_what_is_old_lies_at_different_carriers() {
    let carrier = |number| {
        let mut bag =
            Bag::new(Limits::DEVICE, trust(1, COMMAND, ISSUER), &public(ROOT), number, None).expect("keys");
        for agent in 0..180 {
            let _ = bag.put(order(agent, 1, u64::from(agent), COMMAND), NOW);
            assert!(bag.bytes().0 <= Limits::DEVICE.orders_len);
        }
        bag.summary(0).orders.iter().map(|of| of.agent).collect::<Vec<_>>()
    };
    let (one, other) = (carrier(1), carrier(2));
    for new in 160..180 {
        assert!(one.contains(&id(new)) && other.contains(&id(new)), "{new}");
    }
    assert_ne!(one, other);
    // What a full one would not keep it is not sent.
    let mut full = bag(Limits::DEVICE);
    let mut source = bag(Limits::AGENT);
    for agent in 0..180 {
        let _ = full.put(order(agent, 1, u64::from(agent), COMMAND), NOW);
        source.put(order(agent, 1, u64::from(agent), COMMAND), NOW).expect("room");
    }
    for item in source.lacking(&full.summary(0)) {
        let put = full.put(item, NOW);
        assert_ne!(put, Err(Refused::NoRoom));
    }
}

#[test]
fn own_commands_come_first_and_are_handed_over() {
    let mut source = bag(Limits::AGENT);
    for item in [
        sent(2, 1, 0),
        order(3, 1, 9, COMMAND),
        receipt(3, 0, 2),
        order(1, 2, 0, COMMAND),
        order(1, 1, 0, COMMAND),
    ] {
        source.put(item, NOW).expect("room");
    }
    let mut device =
        Bag::new(Limits::DEVICE, trust(1, COMMAND, ISSUER), &public(ROOT), 1, Some(id(1))).expect("keys");
    let items = source.lacking(&device.summary(0));
    assert_eq!(items[..2], [order(1, 1, 0, COMMAND), order(1, 2, 0, COMMAND)]);
    assert_eq!(device.put(items[0].clone(), NOW), Ok(Kept::Mine));
    assert_eq!(source.lacking(&device.summary(1))[0], order(1, 2, 0, COMMAND));
    // What it wrote itself is not forgotten because somebody says that he has it.
    for from in [1, 2] {
        device.put(sent(from, 1, 0), NOW).expect("room");
    }
    device.handed_home(&device.summary(0));
    assert_eq!(device.summary(0).letters.iter().map(|of| of.agent).collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn the_service_alone_opens_a_letter() {
    let letter = letter(1, 7, 0);
    let keys = [public(ISSUER)];
    assert_eq!(letter.open(&public(ROOT), &keys, &key(COMMAND)), Ok((id(1), 7, report(1, 7, 0))));
    assert_eq!(letter.open(&public(ROOT), &keys, &key(99)), Err(LetterError::Sealed));
    assert_eq!(letter.open(&public(99), &keys, &key(COMMAND)), Err(LetterError::Forged));
    let foreign = Letter::seal(&report(1, 1, 0), credential(2, ISSUER), &key(2), &public(COMMAND), [1; 32]);
    assert_eq!(foreign, Err(LetterError::Forged), "somebody else's report");
    let text = String::from_utf8_lossy(&encode(&letter)).into_owned();
    assert!(!text.contains(&String::from_utf8_lossy(&report(1, 7, 0).bytes).into_owned()));
}

/// What is carried outlives the program that made it: these bytes are read for ever.
#[test]
fn the_bytes_are_those_of_version_1() {
    for (item, hash) in [
        (Item::Keys(Keys { signed: trust(1, COMMAND, ISSUER) }), GOLDEN[0]),
        (receipt(1, 2, 3), GOLDEN[1]),
        (notice(Removal { agent: id(1) }, COMMAND), GOLDEN[2]),
        (order(1, 2, 3, COMMAND), GOLDEN[3]),
        (sent(1, 2, 3), GOLDEN[4]),
    ] {
        let bytes = encode(&item.to_tagged());
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let told: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((bytes.len(), &told[..]), hash, "{}", item.name());
        assert_eq!(Item::from_tagged(&decode_exact("Item", &bytes).expect("tagged")), Ok(item));
    }
}

/// Lengths, and the first bytes of SHA-256.
const GOLDEN: [(usize, &str); 5] = [
    (169, "c76a600bac847411"),
    (90, "1d6beeddade000d9"),
    (88, "801c933563a5c886"),
    (140, "dc848eaed023bd78"),
    (405, "84e6316a27ef312c"),
];

proptest! {
    /// Whatever somebody sends: an error or an item, and no place of it in the bag that is not proved.
    #[test]
    fn bytes_at_random_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u16..6) {
        let tagged = event_schema::Tagged { kind, version: 1, payload: bytes };
        if let Ok(item) = Item::from_tagged(&tagged) {
            prop_assert!(bag(Limits::DEVICE).put(item, NOW).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_is_a_forgery_or_about_something_else(at: prop::sample::Index, bit in 0u8..8) {
        for item in [order(1, 1, 0, COMMAND), receipt(1, 1, 1), sent(1, 1, 0)] {
            let mut tagged = item.to_tagged();
            let at = at.index(tagged.payload.len());
            tagged.payload[at] ^= 1 << bit;
            if let Ok(other) = Item::from_tagged(&tagged) {
                prop_assert!(bag(Limits::AGENT).put(other, NOW).is_err());
            }
        }
    }
}
