//! What a carrier has for others (CARRYING.md §4, §5).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use agent_proto::TrustBundle;
use agent_proto::limits::CLOCK_GRACE_MS;
use event_schema::{AgentId, Command, DecodeError, Domain, Signed, Timestamp};

use crate::item::{Item, Keys};
use crate::letter::Outside;
use crate::limits::{Limits, SUMMARY_AGENTS};
use crate::notice::{Notice, Receipt, Removal};
use crate::shelf::{Floor, GivesWay, Held, Own, Shelf, favour, newest};
use crate::summary::{Sequences, Summary};

/// What was carried to a bag found its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was not there.
    New,
    /// It was.
    Known,
    /// A command for the carrier itself, to be judged and taken by it: it was not looked at, and is not kept here.
    Mine,
}

/// Why it found none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not prove itself under the fleet's keys.
    Forged,
    /// It is larger than anything that is carried here.
    TooLarge,
    /// What it is about is over: newer keys, a receipt.
    Over,
    /// Its author, or who it is for, is no member any more.
    Removed,
    /// It is too old, or of a time that has not come.
    OutOfTime,
    /// There is no room, or others need it more.
    NoRoom,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forged => "it does not prove itself under the fleet's keys",
            Self::TooLarge => "it is larger than anything that is carried",
            Self::Over => "what it is about is over",
            Self::Removed => "the agent is no member any more",
            Self::OutOfTime => "it is too old, or of a time that has not come",
            Self::NoRoom => "there is no room for it",
        })
    }
}

impl core::error::Error for Refused {}

/// What a carrier has for others.
#[derive(Debug)]
pub struct Bag {
    limits: Limits,
    carrier: u64,
    me: Option<AgentId>,
    keys: TrustBundle,
    keys_signed: Signed,
    removed: BTreeMap<AgentId, Item>,
    receipts: BTreeMap<AgentId, (Receipt, Item)>,
    orders: Shelf,
    letters: Shelf,
}

impl Bag {
    /// An empty one, of the fleet whose keys these are: a signed trust bundle under the pinned root key. `carrier` is any
    /// number, another one for each carrier; `me` is which agent it is, if it is one that is sent commands.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(
        limits: Limits,
        keys: Signed,
        root_key: &[u8; 32],
        carrier: u64,
        me: Option<AgentId>,
    ) -> Result<Self, DecodeError> {
        Ok(Self {
            limits,
            carrier,
            me,
            keys: TrustBundle::open(&keys, root_key)?,
            keys_signed: keys,
            removed: BTreeMap::new(),
            receipts: BTreeMap::new(),
            orders: Shelf::new((limits.orders_len, limits.orders_of_one), GivesWay::Oldest, carrier, me),
            letters: Shelf::new((limits.letters_len, limits.letters_of_one), GivesWay::Largest, carrier, me),
        })
    }

    /// The fleet's keys as this carrier knows them.
    pub fn keys(&self) -> &TrustBundle {
        &self.keys
    }

    /// Bytes of orders, and of letters.
    pub fn bytes(&self) -> (usize, usize) {
        (self.orders.bytes(), self.letters.bytes())
    }

    /// Whether this agent is known to be no member any more.
    pub fn is_removed(&self, agent: AgentId) -> bool {
        self.removed.contains_key(&agent)
    }

    /// What the service has of this agent, as far as it is known here.
    pub fn receipt(&self, agent: AgentId) -> Option<Receipt> {
        self.receipts.get(&agent).map(|(receipt, _)| *receipt)
    }

    /// Takes what somebody brought, if it proves itself, is not over and finds room.
    ///
    /// # Errors
    /// Why not. Nothing has changed then, but that others may have given way to what gave way itself.
    pub fn put(&mut self, item: Item, now: Timestamp) -> Result<Kept, Refused> {
        let len = item.len();
        if len > self.limits.item_len {
            return Err(Refused::TooLarge);
        }
        match &item {
            Item::Keys(keys) => self.put_keys(&keys.signed),
            Item::NoticeSent(sent) => {
                // What is here or over needs no look at its signature.
                let said = Notice::peek(&sent.signed.bytes).map_err(|_| Refused::Forged)?;
                if let Some(known) = self.known_notice(&said)? {
                    return Ok(known);
                }
                if !Notice::is_signed(&sent.signed, &self.keys.command_keys) {
                    return Err(Refused::Forged);
                }
                match said {
                    Notice::Receipt(receipt) => self.put_receipt(receipt, item),
                    Notice::Removal(removal) => self.put_removal(removal, item),
                }
            }
            Item::Order(order) => {
                let (_, agent, sequence) =
                    Command::address(&order.signed.bytes).map_err(|_| Refused::Forged)?;
                if self.me == Some(agent) {
                    return Ok(Kept::Mine);
                }
                let has = self.receipts.get(&agent).map_or(0, |(receipt, _)| receipt.commands);
                if let Some(known) = self.is_wanted(&self.orders, &item, agent, sequence, has)? {
                    return Ok(known);
                }
                // A body that this program does not know is carried all the same, as the oldest there is.
                let command = Command::decode(&order.signed.bytes);
                let time = command.map_or(Timestamp(0), |command| command.issued);
                if self.orders.would_not_stay(agent, sequence, len, time) {
                    return Err(Refused::NoRoom);
                }
                let by_service = |key| order.signed.verify(Domain::Command, key).is_ok();
                if !self.keys.command_keys.iter().any(by_service) {
                    return Err(Refused::Forged);
                }
                self.orders.put(agent, sequence, Held { item, len, time })
            }
            Item::Letter(letter) => {
                let Outside { agent, sequence, time, .. } = letter.peek().map_err(|_| Refused::Forged)?;
                let has = self.receipts.get(&agent).map_or(0, |(receipt, _)| receipt.reports);
                let early = time.0 > now.0.saturating_add(CLOCK_GRACE_MS);
                if early || time.0.saturating_add(self.limits.letter_age_ms) < now.0 {
                    return Err(Refused::OutOfTime);
                }
                if let Some(known) = self.is_wanted(&self.letters, &item, agent, sequence, has)? {
                    return Ok(known);
                }
                if self.letters.would_not_stay(agent, sequence, len, time) {
                    return Err(Refused::NoRoom);
                }
                let proved = letter.outside(&self.keys.root_key, &self.keys.credential_keys);
                proved.map_err(|_| Refused::Forged)?;
                self.letters.put(agent, sequence, Held { item, len, time })
            }
        }
    }

    /// Forgets others' letters that somebody took who reaches the service himself: whoever wrote one keeps it until there
    /// is a receipt, so that nobody's word is relied on.
    pub fn handed_home(&mut self, taken: &Summary) {
        let there = sequences(&taken.letters);
        self.letters
            .retain(|agent, sequence, _| Some(agent) == self.me || !there.contains(&(agent, sequence)));
    }

    /// Forgets letters that are too old.
    pub fn forget_old(&mut self, now: Timestamp) {
        let age = self.limits.letter_age_ms;
        self.letters.retain(|_, _, held| held.time.0.saturating_add(age) >= now.0);
    }

    /// What is here, for somebody who is met. `cursor`: the last command that this agent took.
    pub fn summary(&self, cursor: u64) -> Summary {
        let of = |shelf: &Shelf| {
            let all = shelf.all().take(SUMMARY_AGENTS);
            all.map(|(agent, own)| Sequences { agent, sequences: own.keys().copied().collect() }).collect()
        };
        let receipts = self.receipts.values().take(SUMMARY_AGENTS);
        Summary {
            me: self.me.map(|me| (me, cursor)),
            keys: self.keys.version,
            removed: self.removed.keys().take(SUMMARY_AGENTS).copied().collect(),
            receipts: receipts.map(|(r, _)| (r.agent, r.commands, r.reports)).collect(),
            orders: of(&self.orders),
            orders_floor: self.orders.floor(),
            carrier: self.carrier,
            all_receipts: self.receipts.len() < self.limits.receipts / 2,
            letters: of(&self.letters),
        }
    }

    /// What is here and not there, the most urgent first: to be sent until the contact ends.
    pub fn lacking(&self, there: &Summary) -> Vec<Item> {
        let mut lacking = Vec::new();
        if there.keys < self.keys.version {
            lacking.push(Item::Keys(Keys { signed: self.keys_signed.clone() }));
        }
        let gone: BTreeSet<AgentId> = there.removed.iter().copied().collect();
        let removed = self.removed.iter().filter(|(agent, _)| !gone.contains(agent));
        lacking.extend(removed.map(|(_, item)| item.clone()));

        let receipts: BTreeMap<AgentId, (u64, u64)> =
            there.receipts.iter().map(|(agent, commands, reports)| (*agent, (*commands, *reports))).collect();
        let has = |agent: AgentId| receipts.get(&agent).copied().unwrap_or_default();
        let orders = sequences(&there.orders);
        let letters = sequences(&there.letters);
        let me = there.me.map(|(me, _)| me);
        let new = |receipt: &&(Receipt, Item)| {
            let (commands, reports) = has(receipt.0.agent);
            receipt.0.supersedes(&Receipt { agent: receipt.0.agent, commands, reports })
        };

        if let Some((me, cursor)) = there.me {
            let own = self.orders.of(me).into_iter().flat_map(|own| own.range(cursor + 1..));
            let own = own.filter(|(sequence, _)| !orders.contains(&(me, **sequence)));
            lacking.extend(own.map(|(_, held)| held.item.clone()));
            lacking.extend(self.receipts.get(&me).filter(new).map(|(_, item)| item.clone()));
        }
        let theirs: BTreeSet<AgentId> =
            there.orders.iter().chain(&there.letters).map(|of| of.agent).collect();
        let receipts = self.receipts.values().filter(|receipt| Some(receipt.0.agent) != me);
        let receipts = receipts.filter(|receipt| there.all_receipts || theirs.contains(&receipt.0.agent));
        lacking.extend(receipts.filter(new).map(|(_, item)| item.clone()));

        let others = self.orders.all().filter(|(agent, _)| Some(*agent) != me);
        let stays = |(agent, own): &(AgentId, &Own)| {
            let Floor { after, favour: least } = there.orders_floor;
            newest(own) > after || favour(there.carrier, *agent) > least
        };
        let mut told: Vec<_> = others.filter(stays).collect();
        told.sort_by_key(|(_, own)| core::cmp::Reverse(newest(own)));
        let mut outwards = Vec::new();
        for (agent, own) in told {
            let (commands, _) = has(agent);
            let behind = own.range(commands + 1..);
            outwards.extend(behind.filter(|(sequence, _)| !orders.contains(&(agent, **sequence))));
        }
        let mut homewards = Vec::new();
        for (agent, own) in self.letters.all().filter(|(agent, _)| !gone.contains(agent)) {
            let (_, reports) = has(agent);
            let behind = own.range(reports + 1..);
            let missing = behind.filter(|(sequence, _)| !letters.contains(&(agent, **sequence)));
            homewards.extend(missing.map(|(_, held)| (self.me != Some(agent), held.time, held)));
        }
        // Its own first: nobody else may come by.
        homewards.sort_by_key(|(others, time, _)| (*others, *time));
        // By turns, or a short contact would never be long enough for one of them.
        let mut outwards = outwards.into_iter().map(|(_, held)| held);
        let mut homewards = homewards.into_iter().map(|(_, _, held)| held);
        loop {
            let turn = [homewards.next(), outwards.next()];
            if turn.iter().all(Option::is_none) {
                return lacking;
            }
            lacking.extend(turn.into_iter().flatten().map(|held| held.item.clone()));
        }
    }

    fn put_keys(&mut self, signed: &Signed) -> Result<Kept, Refused> {
        let keys = TrustBundle::open(signed, &self.keys.root_key).map_err(|_| Refused::Forged)?;
        if keys.version <= self.keys.version {
            return if *signed == self.keys_signed { Ok(Kept::Known) } else { Err(Refused::Over) };
        }
        (self.keys, self.keys_signed) = (keys, signed.clone());
        // What the new keys do not prove is worth nothing any more, to anybody.
        let Self { keys, removed, receipts, .. } = self;
        let stands = |item: &Item| match item {
            Item::NoticeSent(sent) => Notice::open(&sent.signed, &keys.command_keys).is_ok(),
            Item::Order(order) => {
                keys.command_keys.iter().any(|key| order.signed.verify(Domain::Command, key).is_ok())
            }
            Item::Letter(letter) => letter.outside(&keys.root_key, &keys.credential_keys).is_ok(),
            Item::Keys(_) => true,
        };
        removed.retain(|_, item| stands(item));
        receipts.retain(|_, (_, item)| stands(item));
        self.orders.retain(|_, _, held| stands(&held.item));
        self.letters.retain(|_, _, held| stands(&held.item));
        Ok(Kept::New)
    }

    /// What can be said before a signature is looked at; `None` if nothing can.
    fn known_notice(&self, notice: &Notice) -> Result<Option<Kept>, Refused> {
        match notice {
            Notice::Removal(removal) => Ok(self.is_removed(removal.agent).then_some(Kept::Known)),
            Notice::Receipt(receipt) if self.is_removed(receipt.agent) => Err(Refused::Removed),
            Notice::Receipt(receipt) => match self.receipt(receipt.agent) {
                Some(known) if known == *receipt => Ok(Some(Kept::Known)),
                Some(known) if !receipt.supersedes(&known) => Err(Refused::Over),
                _ => Ok(None),
            },
        }
    }

    fn put_receipt(&mut self, receipt: Receipt, item: Item) -> Result<Kept, Refused> {
        let agent = receipt.agent;
        let is_new = !self.receipts.contains_key(&agent) && self.me != Some(agent);
        if is_new && self.receipts.len() >= self.limits.receipts {
            // Of an agent that nothing is carried for or by: whoever needs it meets others.
            let idle = |agent: &&AgentId| {
                self.me != Some(**agent)
                    && self.orders.of(**agent).is_none()
                    && self.letters.of(**agent).is_none()
            };
            let idle = self.receipts.keys().find(idle).copied();
            self.receipts.remove(&idle.ok_or(Refused::NoRoom)?);
        }
        self.receipts.insert(agent, (receipt, item));
        self.orders.retain(|of, sequence, _| of != agent || sequence > receipt.commands);
        self.letters.retain(|of, sequence, _| of != agent || sequence > receipt.reports);
        Ok(Kept::New)
    }

    fn put_removal(&mut self, removal: Removal, item: Item) -> Result<Kept, Refused> {
        if self.removed.len() >= self.limits.removals {
            return Err(Refused::NoRoom);
        }
        self.removed.insert(removal.agent, item);
        self.receipts.remove(&removal.agent);
        self.orders.remove(removal.agent);
        self.letters.remove(removal.agent);
        Ok(Kept::New)
    }

    /// What can be said before a signature is looked at; `None` if nothing can.
    fn is_wanted(
        &self,
        shelf: &Shelf,
        item: &Item,
        agent: AgentId,
        sequence: u64,
        has: u64,
    ) -> Result<Option<Kept>, Refused> {
        if self.is_removed(agent) {
            return Err(Refused::Removed);
        }
        if sequence <= has {
            return Err(Refused::Over);
        }
        let held = shelf.of(agent).and_then(|own| own.get(&sequence));
        Ok(held.is_some_and(|held| held.item == *item).then_some(Kept::Known))
    }
}

fn sequences(of: &[Sequences]) -> BTreeSet<(AgentId, u64)> {
    of.iter().flat_map(|of| of.sequences.iter().map(|sequence| (of.agent, *sequence))).collect()
}
