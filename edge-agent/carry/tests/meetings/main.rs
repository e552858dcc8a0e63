//! 500 devices with the real `device-core`, 20 gateways that reach their service now and then, half an hour in which they
//! meet at random for seconds. Among them some that never meet a gateway, some that meet nobody, members that were stolen
//! and flood, and strangers that forge and replay. What would have got where without any limit is followed beside it: who
//! could be reached must have been.

mod flash;
mod world;

use carry::{Bag, Item, Kept, Limits, Notice, NoticeSent, Order, Receipt, Refused, Removal};
use device_core::Taken;
use event_schema::{
    AgentId, CommandBody, JobId, JoinRun, Report, Role, RunAgentState, RunId, RunStateReported, Signed,
};

use crate::world::{Chance, Fleet, Member, Service, at, bring, finish, keys_of};

const DEVICES: usize = 500;
const GATEWAYS: usize = 20;
const SECONDS: u32 = 1800;
/// Commands are given until then; what could be there by `FOLLOWED`, if nothing had a limit, has to be at the end.
const COMMANDED: u32 = 900;
const FOLLOWED: u32 = 1200;
const REMOVED: u32 = 600;

/// The first ones meet devices alone, the next ones nobody, and some are stolen.
const FAR: std::ops::Range<usize> = 0..50;
const HERMITS: std::ops::Range<usize> = 50..55;
const STOLEN: std::ops::Range<usize> = 55..58;

struct World {
    service: Service,
    members: Vec<Member>,
    gateways: Vec<Bag>,
    chance: Chance,
    /// Of each device and gateway: the moment of the service that it could know of.
    fresh: Vec<Option<u32>>,
    /// Of each device, gateway and the service: the moment of each device that it could know of.
    heard: Vec<Vec<Option<u32>>>,
    sent: usize,
    forged: u32,
    turned_away: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut service = Service::new(Fleet::new(seed * 1000));
        let members =
            (0..DEVICES).map(|nth| Member::new(seed * 1000 + 10 + nth as u64, &mut service)).collect();
        let gateways = (0..GATEWAYS).map(|nth| service.fleet.bag(Limits::AGENT, nth as u64, None)).collect();
        Self {
            service,
            members,
            gateways,
            chance: Chance(seed),
            fresh: vec![None; DEVICES + GATEWAYS],
            heard: vec![vec![None; DEVICES]; DEVICES + GATEWAYS + 1],
            sent: 0,
            forged: 0,
            turned_away: 0,
        }
    }

    /// A gateway has its uplink.
    fn uplink(&mut self, gateway: usize, second: u32) {
        let now = at(second);
        let bag = &mut self.gateways[gateway];
        for item in bag.lacking(&self.service.bag.summary(0)) {
            if let Item::Letter(letter) = item {
                self.service.take(&letter, now);
            }
        }
        let items = self.service.bag.lacking(&bag.summary(0));
        bring(items, bag, &mut Vec::new(), (usize::MAX, Limits::AGENT), now);
        let node = DEVICES + gateway;
        self.fresh[node] = Some(second);
        self.merge(DEVICES + GATEWAYS, node);
    }

    fn merge(&mut self, into: usize, from: usize) {
        let [into, from] = self.heard.get_disjoint_mut([into, from]).expect("two nodes");
        for (into, from) in into.iter_mut().zip(from) {
            *into = (*into).max(*from);
        }
    }

    fn met(&mut self, a: usize, b: usize, second: u32) {
        for device in [a, b].into_iter().filter(|node| *node < DEVICES) {
            self.heard[device][device] = Some(second);
        }
        let fresh = self.fresh[a].max(self.fresh[b]);
        (self.fresh[a], self.fresh[b]) = (fresh, fresh);
        self.merge(a, b);
        self.merge(b, a);
    }

    fn device_meets_gateway(&mut self, second: u32) {
        let device = FAR.end + self.chance.below(DEVICES - FAR.end);
        if HERMITS.contains(&device) {
            return;
        }
        let gateway = self.chance.below(GATEWAYS);
        let (member, bag) = (&mut self.members[device], &mut self.gateways[gateway]);
        if bag.is_removed(member.id()) {
            self.turned_away += 1;
            return;
        }
        let room = 4_000 + self.chance.below(36_000);
        let now = at(second);
        let (there, here) = (member.bag.summary(member.device.cursor()), bag.summary(0));
        self.sent += bring(member.bag.lacking(&here), bag, &mut Vec::new(), (room, Limits::AGENT), now);
        member.bag.handed_home(&bag.summary(0));
        self.sent +=
            bring(bag.lacking(&there), &mut member.bag, &mut member.inbox, (room, Limits::DEVICE), now);
        if STOLEN.contains(&device) {
            flood(member, bag, second, &mut self.chance);
        }
        member.act(second, &mut self.chance);
        self.met(device, DEVICES + gateway, second);
    }

    fn devices_meet(&mut self, second: u32) {
        let (a, b) = (self.chance.below(DEVICES), self.chance.below(DEVICES));
        if a == b || HERMITS.contains(&a) || HERMITS.contains(&b) {
            return;
        }
        let room = 2_000 + self.chance.below(10_000);
        let now = at(second);
        let [left, right] = self.members.get_disjoint_mut([a, b]).expect("two devices");
        if left.bag.is_removed(right.id()) || right.bag.is_removed(left.id()) {
            self.turned_away += 1;
            return;
        }
        let of = |member: &Member| member.bag.summary(member.device.cursor());
        let (of_left, of_right) = (of(left), of(right));
        self.sent +=
            bring(left.bag.lacking(&of_right), &mut right.bag, &mut right.inbox, (room, Limits::DEVICE), now);
        self.sent +=
            bring(right.bag.lacking(&of_left), &mut left.bag, &mut left.inbox, (room, Limits::DEVICE), now);
        if STOLEN.contains(&a) {
            flood(left, &mut right.bag, second, &mut self.chance);
        }
        if STOLEN.contains(&b) {
            flood(right, &mut left.bag, second, &mut self.chance);
        }
        left.act(second, &mut self.chance);
        right.act(second, &mut self.chance);
        self.met(a, b, second);
    }

    /// Somebody who is no member, or a thief with what he heard, comes by.
    fn stranger(&mut self, foreign: &Fleet, old: &[Signed], second: u32) {
        let now = at(second);
        let device = STOLEN.end + self.chance.below(DEVICES - STOLEN.end);
        let member = &mut self.members[device];
        let (me, cursor) = (member.id(), member.device.cursor());
        let order = world::order(me, cursor + 1, finish(999), now, at(SECONDS * 2)).sign(&foreign.command);
        let sign = |notice: Notice| Item::NoticeSent(NoticeSent { signed: notice.sign(&foreign.command) });
        let report = Report {
            agent: me,
            sequence: 1,
            time: now,
            body: RunStateReported { run: RunId([9; 16]), state: RunAgentState::Done }.into(),
        };
        let key = world::key_of(self.chance.draw());
        let credential = foreign.credential(&key);
        let report = Report { agent: AgentId::of_key(&key.verifying_key().to_bytes()), ..report };
        let to = self.service.fleet.command.verifying_key().to_bytes();
        let letter = carry::Letter::seal(&report.sign(&key), credential, &key, &to, self.chance.bytes());
        let forgeries = [
            Item::Order(Order { signed: order.clone() }),
            sign(Removal { agent: me }.into()),
            sign(Receipt { agent: me, commands: 1 << 40, reports: 1 << 40 }.into()),
            keys_of(foreign, 99),
            Item::Letter(letter.expect("his own report")),
        ];
        let gateway = self.chance.below(GATEWAYS);
        for item in forgeries {
            for bag in [&mut member.bag, &mut self.gateways[gateway]] {
                // Where nothing like it would stay nobody looks at its signature.
                let put = bag.put(item.clone(), now);
                // What is for the device itself it judges itself: below.
                let fine = matches!(put, Err(Refused::Forged | Refused::NoRoom) | Ok(Kept::Mine));
                assert!(fine, "{}: {put:?}", item.name());
                self.forged += u32::from(put == Err(Refused::Forged));
            }
        }
        assert_eq!(member.device.take(&order, Some(now)), Ok(Taken::Forged));
        // What he heard: it is taken by who it is for if it is the next, and by nobody twice.
        let old = old.iter().map(|signed| Item::Order(Order { signed: signed.clone() })).collect();
        bring(old, &mut member.bag, &mut member.inbox, (usize::MAX, Limits::DEVICE), now);
        member.act(second, &mut self.chance);
    }
}

/// A thief's device writes as many letters as it can.
fn flood(from: &Member, to: &mut Bag, second: u32, chance: &mut Chance) {
    for _ in 0..12 {
        let body = RunStateReported { run: RunId([9; 16]), state: RunAgentState::Done }.into();
        let sequence = 1_000 + chance.draw() % 1_000;
        let junk = Report { agent: from.id(), sequence, time: at(second), body };
        let put = to.put(Item::Letter(from.letter(&junk, chance)), at(second));
        assert!(matches!(put, Ok(_) | Err(Refused::NoRoom | Refused::Over)), "{put:?}");
    }
}

fn body(number: u64) -> CommandBody {
    if !number.is_multiple_of(3) {
        return finish(number);
    }
    let mut run = [0x11; 16];
    run[..8].copy_from_slice(&number.to_le_bytes());
    JoinRun {
        run: RunId(run),
        job: JobId([7; 16]),
        job_name: "firmware".into(),
        role: Role::Destination,
        path: b"firmware".to_vec(),
        source: AgentId([3; 16]),
        peers: vec![],
        trackers: vec![],
        sealed_secret: vec![8; 80],
    }
    .into()
}

#[test]
fn commands_reach_who_can_be_reached_and_reports_come_home_once() {
    half_an_hour(1);
}

#[test]
#[ignore = "measures other courses of the same"]
fn commands_reach_and_reports_come_home_in_other_courses() {
    for seed in 2..8 {
        half_an_hour(seed);
    }
}

fn half_an_hour(seed: u64) {
    let mut world = World::new(seed);
    let foreign = Fleet::new(777_000);
    let mut old: Vec<Signed> = Vec::new();
    let (mut fresh, mut heard) = (Vec::new(), Vec::new());
    for second in 0..SECONDS {
        if second < COMMANDED && second.is_multiple_of(2) {
            let device = world.chance.below(DEVICES);
            if !STOLEN.contains(&device) {
                let lasts = if world.chance.below(5) == 0 { 120 } else { 3600 };
                let agent = world.members[device].id();
                let signed =
                    world.service.command(agent, body(second.into()), at(second), at(second + lasts));
                if second.is_multiple_of(98) {
                    old.push(signed);
                }
            }
        }
        if second == REMOVED {
            for stolen in STOLEN {
                world.service.remove(world.members[stolen].id(), at(second));
            }
            let keys = keys_of(&world.service.fleet, 2);
            assert_eq!(world.service.bag.put(keys, at(second)), Ok(Kept::New));
        }
        // Each for half a minute in three, every ten seconds.
        for gateway in (0..GATEWAYS).filter(|nth| [0, 10, 20].contains(&((second + 41 * *nth as u32) % 180)))
        {
            world.uplink(gateway, second);
        }
        for _ in 0..2 {
            world.device_meets_gateway(second);
        }
        for _ in 0..4 {
            world.devices_meet(second);
        }
        if second.is_multiple_of(10) {
            world.stranger(&foreign, &old, second);
        }
        if second == FOLLOWED {
            fresh.clone_from(&world.fresh);
            heard.clone_from(&world.heard[DEVICES + GATEWAYS]);
        }
    }

    let (mut reachable, mut behind, mut due, mut missing) = (0, Vec::new(), 0, Vec::new());
    for (nth, member) in world.members.iter().enumerate().filter(|(nth, _)| !STOLEN.contains(nth)) {
        let known = &world.service.agents[&member.id()];
        if let (Some(newest), Some(fresh)) = (known.commands.last(), fresh[nth])
            && newest.issued <= at(fresh)
        {
            reachable += 1;
            if member.device.cursor() != newest.sequence {
                behind.push((nth, member.device.cursor(), newest.sequence));
            }
        }
        // Each was given by the service, in time, and is obeyed once.
        let mut last = 0;
        for (command, when) in &member.obeyed {
            assert_eq!(known.commands.get(command.sequence as usize - 1), Some(command));
            assert!(command.sequence > last && *when <= command.expires && command.audience == member.id());
            last = command.sequence;
        }
        for (sequence, _) in member.made.iter().filter(|(_, made)| Some(**made) < heard[nth]) {
            due += 1;
            if !known.reports.contains_key(sequence) {
                missing.push((nth, *sequence));
            }
        }
    }
    let obeyed: usize = world.members.iter().map(|member| member.obeyed.len()).sum();
    let home: usize = world.service.agents.values().map(|known| known.reports.len()).sum();
    println!(
        "{reachable} of {DEVICES} devices could be reached with their newest command, {} were not; {obeyed} commands \
         obeyed; {due} reports could be home, {} are not; {home} are, {} came again and were dropped; {} forgeries \
         refused, {} contacts with removed devices; {} KiB carried",
        behind.len(),
        missing.len(),
        world.service.repeated,
        world.forged,
        world.turned_away,
        world.sent / 1024,
    );
    assert!(reachable > 250 && due > 500 && world.turned_away > 0, "something has to have happened");
    assert_eq!(behind, [], "device, where it is, where it could be");
    assert_eq!(missing, [], "device, report");
    for hermit in HERMITS {
        assert_eq!(world.members[hermit].device.cursor(), 0, "nobody was there to tell it");
    }
}
