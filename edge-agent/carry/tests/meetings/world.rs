//! A fleet: its service, gateways, devices with what they keep on their flash, and what would have got where if nothing
//! had a limit.

use std::collections::BTreeMap;

use agent_proto::{Credential, TrustBundle};
use carry::{Bag, Item, Kept, Keys, Letter, Limits, Notice, NoticeSent, Order, Receipt, Removal};
use device_core::{Board, Device, Layout, Provision, Region, Slot, Taken};
use ed25519_dalek::SigningKey;
use event_schema::{
    AgentId, Command, CommandBody, CommandId, Report, ReportBody, RunAgentState, RunId, Signed, Timestamp,
    TransferStats,
};

use crate::flash::Memory;

pub(crate) const BEGIN: Timestamp = Timestamp(1_790_000_000_000);
const BOARD: Board = Board::named("mps2-an386");
const LAYOUT: Layout = Layout {
    identity: Region { start: 0, len: 0x2000 },
    journal: Region { start: 0x2000, len: 0x10000 },
    segment_len: 0x4000,
    manifests: [Region { start: 0x12000, len: 0x2000 }, Region { start: 0x14000, len: 0x2000 }],
    slots: [Region { start: 0x18000, len: 0x8000 }, Region { start: 0x20000, len: 0x8000 }],
};
const FLASH_LEN: usize = 0x28000;

/// A source of numbers that a seed determines (SplitMix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.draw() % end as u64) as usize
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.draw() as u8)
    }
}

pub(crate) fn key_of(seed: u64) -> SigningKey {
    SigningKey::from_bytes(&Chance(seed).bytes())
}

pub(crate) fn at(second: u32) -> Timestamp {
    Timestamp(BEGIN.0 + u64::from(second) * 1000)
}

/// The keys of a fleet.
pub(crate) struct Fleet {
    pub(crate) root: SigningKey,
    pub(crate) command: SigningKey,
    issuer: SigningKey,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Self {
        Self { root: key_of(seed), command: key_of(seed + 1), issuer: key_of(seed + 2) }
    }

    pub(crate) fn root_key(&self) -> [u8; 32] {
        self.root.verifying_key().to_bytes()
    }

    pub(crate) fn trust(&self, version: u64) -> Signed {
        TrustBundle {
            version,
            root_key: self.root_key(),
            command_keys: vec![self.command.verifying_key().to_bytes()],
            credential_keys: vec![self.issuer.verifying_key().to_bytes()],
            ca_certificate: Vec::new(),
        }
        .sign(&self.root)
    }

    pub(crate) fn credential(&self, key: &SigningKey) -> Vec<u8> {
        Credential {
            version: 1,
            fleet: self.root_key(),
            public_key: key.verifying_key().to_bytes(),
            name: "device".into(),
            not_before: Timestamp(BEGIN.0 - 1000),
            not_after: Timestamp(BEGIN.0 + 365 * 86_400_000),
        }
        .sign(&self.issuer)
    }

    pub(crate) fn bag(&self, limits: Limits, carrier: u64, me: Option<AgentId>) -> Bag {
        Bag::new(limits, self.trust(1), &self.root_key(), carrier, me).expect("its own keys")
    }
}

pub(crate) fn order(
    agent: AgentId,
    sequence: u64,
    body: CommandBody,
    now: Timestamp,
    expires: Timestamp,
) -> Command {
    let mut id = agent.0;
    id[..8].copy_from_slice(&sequence.to_le_bytes());
    let id = CommandId(id);
    Command { id, audience: agent, sequence, issued: now, not_before: now, expires, body }
}

/// What the service has of an agent.
#[derive(Default)]
pub(crate) struct Known {
    public_key: [u8; 32],
    pub(crate) commands: Vec<Command>,
    pub(crate) reports: BTreeMap<u64, Report>,
    /// Commands and reports of its last receipt.
    told: (u64, u64),
}

/// The service: what it says lies in a bag without limits, for gateways.
pub(crate) struct Service {
    pub(crate) fleet: Fleet,
    pub(crate) bag: Bag,
    pub(crate) agents: BTreeMap<AgentId, Known>,
    pub(crate) repeated: u64,
}

impl Service {
    pub(crate) fn new(fleet: Fleet) -> Self {
        let limits = Limits { orders_len: usize::MAX / 2, orders_of_one: 1000, ..Limits::AGENT };
        let bag = fleet.bag(limits, 0, None);
        Self { fleet, bag, agents: BTreeMap::new(), repeated: 0 }
    }

    pub(crate) fn command(
        &mut self,
        agent: AgentId,
        body: CommandBody,
        now: Timestamp,
        expires: Timestamp,
    ) -> Signed {
        let known = self.agents.get_mut(&agent).expect("one of the fleet");
        let command = order(agent, known.commands.len() as u64 + 1, body, now, expires);
        let signed = command.sign(&self.fleet.command);
        known.commands.push(command);
        self.bag.put(Item::Order(Order { signed: signed.clone() }), now).expect("its own");
        signed
    }

    pub(crate) fn notice(&mut self, notice: &Notice, now: Timestamp) {
        let signed = notice.sign(&self.fleet.command);
        self.bag.put(Item::NoticeSent(NoticeSent { signed }), now).expect("its own");
    }

    pub(crate) fn remove(&mut self, agent: AgentId, now: Timestamp) {
        self.notice(&Removal { agent }.into(), now);
    }

    /// Takes a letter as the service would: what it has counts once.
    pub(crate) fn take(&mut self, letter: &Letter, now: Timestamp) {
        let keys = self.bag.keys().credential_keys.clone();
        let opened = letter.open(&self.fleet.root_key(), &keys, &self.fleet.command);
        // A member may write what it likes into its own.
        let Ok((agent, sequence, report)) = opened else { return };
        if self.bag.is_removed(agent) {
            return;
        }
        let known = self.agents.get_mut(&agent).expect("one of the fleet");
        let Ok(report) = Report::open(&report, &known.public_key) else { return };
        assert_eq!((report.agent, report.sequence), (agent, sequence));
        if known.reports.contains_key(&sequence) {
            self.repeated += 1;
            return;
        }
        known.reports.insert(sequence, report);
        let (mut commands, mut reports) = known.told;
        while let Some(next) = known.reports.get(&(reports + 1)) {
            reports += 1;
            commands = match &next.body {
                ReportBody::CommandAccepted(it) => it.sequence,
                ReportBody::CommandRefused(it) => it.sequence,
                _ => commands,
            };
        }
        if (commands, reports) != known.told {
            known.told = (commands, reports);
            self.notice(&Receipt { agent, commands, reports }.into(), now);
        }
    }
}

/// A device of the fleet.
pub(crate) struct Member {
    pub(crate) device: Device<Memory>,
    pub(crate) bag: Bag,
    credential: Vec<u8>,
    to: [u8; 32],
    /// When each of its reports was made.
    pub(crate) made: BTreeMap<u64, u32>,
    pub(crate) obeyed: Vec<(Command, Timestamp)>,
    letters: BTreeMap<u64, Letter>,
    /// Commands that it was brought.
    pub(crate) inbox: Vec<Signed>,
}

impl Member {
    pub(crate) fn new(seed: u64, service: &mut Service) -> Self {
        let key = key_of(seed);
        let public_key = key.verifying_key().to_bytes();
        let as_whom = Provision {
            seed: key.to_bytes(),
            root_key: service.fleet.root_key(),
            trust: &service.fleet.trust(1),
            board: BOARD,
            version: 1,
            running: Slot::A,
            now: BEGIN,
        };
        let device = Device::provision(Memory(vec![0xff; FLASH_LEN]), LAYOUT, &as_whom).expect("new flash");
        service.agents.insert(device.id(), Known { public_key, ..Known::default() });
        Self {
            credential: service.fleet.credential(&key),
            to: service.fleet.command.verifying_key().to_bytes(),
            bag: service.fleet.bag(Limits::DEVICE, seed, Some(device.id())),
            device,
            made: BTreeMap::new(),
            obeyed: Vec::new(),
            letters: BTreeMap::new(),
            inbox: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> AgentId {
        self.device.id()
    }

    /// What it does after it was brought something.
    pub(crate) fn act(&mut self, second: u32, chance: &mut Chance) {
        let (me, now) = (self.id(), at(second));
        if let Some(receipt) = self.bag.receipt(me) {
            self.device.stored(receipt.reports).expect("flash");
        }
        for order in std::mem::take(&mut self.inbox) {
            match self.device.take(&order, Some(now)) {
                Ok(Taken::Obey(command)) => {
                    if command.body.join().is_some() {
                        let stats = TransferStats::default();
                        self.device.report_end(RunAgentState::Done, stats, Some(now)).expect("room for it");
                    }
                    self.obeyed.push((*command, now));
                }
                Ok(Taken::Refused(_) | Taken::Passed(_)) => {}
                // What it did not take it is brought again.
                Ok(Taken::Gap) | Err(device_core::Error::OutboxFull) => break,
                other => panic!("{other:?}"),
            }
        }
        let waiting = self.device.waiting();
        self.letters.retain(|sequence, _| waiting.contains(sequence));
        for sequence in waiting {
            self.made.entry(sequence).or_insert(second);
            if !self.letters.contains_key(&sequence) {
                let report = self.device.report(sequence).expect("flash").expect("it waits");
                let key = self.device.key().clone();
                let letter = Letter::seal(&report, self.credential.clone(), &key, &self.to, chance.bytes());
                self.letters.insert(sequence, letter.expect("its own report"));
            }
            let letter = self.letters[&sequence].clone();
            // Only the first ones have room.
            let _ = self.bag.put(Item::Letter(letter), now);
        }
    }

    pub(crate) fn letter(&self, report: &Report, chance: &mut Chance) -> Letter {
        let key = self.device.key();
        Letter::seal(&report.sign(key), self.credential.clone(), key, &self.to, chance.bytes())
            .expect("its own report")
    }
}

/// Brings what one lacks to the other until so many bytes were sent.
pub(crate) fn bring(
    items: Vec<Item>,
    to: &mut Bag,
    inbox: &mut Vec<Signed>,
    (bytes, limits): (usize, Limits),
    now: Timestamp,
) -> usize {
    let mut sent = 0;
    for item in items {
        sent += item.len();
        if sent > bytes {
            break;
        }
        let order = if let Item::Order(order) = &item { Some(order.signed.clone()) } else { None };
        let put = to.put(item, now);
        inbox.extend(order.filter(|_| put == Ok(Kept::Mine)));
        assert_ne!(put, Err(carry::Refused::Forged), "members bring nothing forged");
        let (orders, letters) = to.bytes();
        assert!(orders <= limits.orders_len && letters <= limits.letters_len, "{orders} {letters}");
    }
    sent
}

pub(crate) fn finish(number: u64) -> CommandBody {
    let mut run = [0x77; 16];
    run[..8].copy_from_slice(&number.to_le_bytes());
    event_schema::FinishRun { run: RunId(run) }.into()
}

pub(crate) fn keys_of(fleet: &Fleet, version: u64) -> Item {
    Item::Keys(Keys { signed: fleet.trust(version) })
}
