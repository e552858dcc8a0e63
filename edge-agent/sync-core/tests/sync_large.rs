//! What the synchronization machine itself costs with a million files: signatures, disk and network cost nothing here.
//!
//! `FLOTILLA_FILES=n` for another number of files.

use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant as Clock};

use agent_proto::sync::{SyncMessage, Value};
use event_schema::{AgentId, RunId, Signature};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use sync_core::merkle::Hash;
use sync_core::sync::{
    Action, Batch, Config, Disk, Index, Look, Member, Notary, OnDisk, Outcome, Permission, Policy, Replica,
    Row, Stamp, Work,
};
use timebase::Instant;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Whoever signs is believed.
struct Believes;

impl Notary for Believes {
    fn sign(&self, _bytes: &[u8]) -> Signature {
        Signature([1; 32], [2; 32])
    }

    fn holds(&self, _key: &[u8; 32], _bytes: &[u8], _signature: &Signature) -> bool {
        true
    }
}

/// Wants all but one folder.
struct Without(&'static [u8]);

impl Policy for Without {
    fn wants(&self, path: &[u8], _: bool) -> bool {
        self.0.is_empty() || !path.starts_with(self.0)
    }
}

/// An index in memory: rows as they are, and what finds them.
#[derive(Default)]
struct Tables {
    rows: BTreeMap<Vec<u8>, Row>,
    sequences: BTreeMap<u64, Vec<u8>>,
    work: BTreeMap<Work, BTreeSet<Vec<u8>>>,
    roots: BTreeMap<Hash, Vec<u8>>,
    meta: Option<Vec<u8>>,
    members: BTreeMap<AgentId, Vec<u8>>,
    rows_put: u64,
    meta_bytes: u64,
}

impl Tables {
    fn take_out(&mut self, path: &[u8]) {
        if let Some(row) = self.rows.remove(path) {
            self.sequences.remove(&row.sequence);
            if row.work != Work::None {
                self.work.entry(row.work).or_default().remove(path);
            }
            if let Some(root) = row.root() {
                self.roots.remove(&root);
            }
        }
    }
}

impl Index for Tables {
    fn row(&self, path: &[u8]) -> Option<Row> {
        self.rows.get(path).cloned()
    }

    fn next(&self, after: &[u8]) -> Option<Row> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.rows.range::<[u8], _>((Excluded(after), Unbounded)).next().map(|(_, row)| row.clone())
    }

    fn next_told(&self, after: u64) -> Option<Row> {
        self.sequences.range(after + 1..).next().and_then(|(_, path)| self.row(path))
    }

    fn next_work(&self, work: Work, after: Option<&[u8]>) -> Option<Vec<u8>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.work.get(&work)?.range::<[u8], _>((from, Unbounded)).next().cloned()
    }

    fn previous_work(&self, work: Work, before: Option<&[u8]>) -> Option<Vec<u8>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let to = before.map_or(Unbounded, Excluded);
        self.work.get(&work)?.range::<[u8], _>((Unbounded, to)).next_back().cloned()
    }

    fn with_root(&self, root: &Hash) -> Option<Vec<u8>> {
        self.roots.get(root).cloned()
    }

    fn with_fold(&self, _fold: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn meta(&self) -> Option<Vec<u8>> {
        self.meta.clone()
    }

    fn members(&self) -> Vec<(AgentId, Vec<u8>)> {
        self.members.iter().map(|(agent, bytes)| (*agent, bytes.clone())).collect()
    }

    fn put(&mut self, batch: Batch) {
        for row in batch.rows {
            self.take_out(&row.path);
            self.rows_put += 1;
            if row.sequence > 0 {
                self.sequences.insert(row.sequence, row.path.clone());
            }
            if row.work != Work::None {
                self.work.entry(row.work).or_default().insert(row.path.clone());
            }
            if let Some(root) = row.root() {
                self.roots.insert(root, row.path.clone());
            }
            self.rows.insert(row.path.clone(), row);
        }
        batch.forgotten.iter().for_each(|path| self.take_out(path));
        if let Some(meta) = batch.meta {
            self.meta_bytes += meta.len() as u64;
            self.meta = Some(meta);
        }
        self.members.extend(batch.members);
    }
}

struct Side {
    replica: Replica,
    index: Tables,
    now: Instant,
    out: VecDeque<SyncMessage>,
    bytes: u64,
    longest: std::time::Duration,
}

impl Side {
    fn new(who: u8, members: &[Member]) -> Self {
        let key = [who; 32];
        let now = Instant::ZERO + Duration::from_secs(1000);
        let config = Config::new(RunId([9; 16]), AgentId::of_key(&key), key, u64::from(who) << 32 | 77);
        let mut index = Tables::default();
        let policy = Box::new(Without(b""));
        let replica = Replica::new(now, config, policy, Box::new(Believes), members, &mut index);
        Self { replica, index, now, out: VecDeque::new(), bytes: 0, longest: Default::default() }
    }

    fn call(&mut self, call: impl FnOnce(&mut Replica, Instant, &mut Tables)) {
        let began = Clock::now();
        call(&mut self.replica, self.now, &mut self.index);
        self.longest = self.longest.max(began.elapsed());
        while let Some(action) = self.replica.poll_action() {
            let (replica, index, now) = (&mut self.replica, &mut self.index, self.now);
            match action {
                Action::Sync { ticket } => replica.handle_synced(now, index, ticket),
                Action::Send { message, .. } => {
                    self.bytes += message.encode().len() as u64;
                    self.out.push_back(message);
                }
                // All content is somewhere on this agent.
                Action::Stage { transfer, .. } => {
                    let all = 0..1;
                    replica.handle_reused(now, index, transfer, std::slice::from_ref(&all));
                }
                Action::Change { change, .. } => {
                    let outcome = Outcome::Done { stamp: stamp(change.into()), kept: None };
                    replica.handle_changed(now, index, change, outcome);
                }
                _ => {}
            }
        }
    }
}

fn stamp(file: u64) -> Stamp {
    Stamp { file, size: 1000, mtime_ns: 5, ctime_ns: 6, settled: true }
}

fn path(i: u64) -> Vec<u8> {
    format!("folder {:04}/a file of some name {:03}.dat", i / 1000, i % 1000).into_bytes()
}

fn file(i: u64) -> Value {
    let mut root = [7; 32];
    root[..8].copy_from_slice(&i.to_le_bytes());
    Value::File { size: 1000, root, meta: vec![3; 24] }
}

#[test]
#[ignore = "measures: what a million files cost the machine"]
fn a_million_rows() {
    let files: u64 = std::env::var("FLOTILLA_FILES").map_or(1_000_000, |n| n.parse().expect("a number"));
    let agent = |who: u8| AgentId::of_key(&[who; 32]);
    let members = [1, 2].map(|who| Member { agent: agent(who), permission: Permission::ReadWrite });
    let mut sides = [Side::new(1, &members), Side::new(2, &members)];
    let mut last = Clock::now();
    let mut lap = |what: &str| {
        println!("{what}: {:?}", last.elapsed());
        last = Clock::now();
    };
    for i in 0..files {
        if i % 1000 == 0 {
            let name = format!("folder {:04}", i / 1000).into_bytes();
            let value = Value::Folder { meta: vec![3; 24], implied: false };
            sides[0].call(|r, now, index| r.handle_found(now, index, &name, value, stamp(i)));
        }
        sides[0].call(|r, now, index| r.handle_found(now, index, &path(i), file(i), stamp(i)));
    }
    lap("a first scan");
    sides[0].longest = Default::default();
    for (side, other) in [(0, 2), (1, 1)] {
        sides[side].call(|r, now, index| r.handle_connected(now, index, agent(other)));
    }
    let mut timers = 0;
    loop {
        let mut quiet = true;
        for side in 0..2 {
            while let Some(message) = sides[side].out.pop_front() {
                quiet = false;
                let from = agent(side as u8 + 1);
                sides[1 - side].call(|r, now, index| r.handle_message(now, index, from, message));
            }
            if sides[side].replica.poll_timeout().is_some_and(|at| at <= sides[side].now) {
                quiet = false;
                timers += 1;
                sides[side].call(|r, now, index| r.handle_timeout(now, index));
            }
        }
        if quiet {
            break;
        }
    }
    lap("a first exchange, all put in place");
    let held = sides[1].index.rows.values().filter(|r| r.present().is_some()).count() as u64;
    assert_eq!(held, files + files.div_ceil(1000));
    for side in &sides {
        println!(
            "  {} bytes sent, {} rows and {} bytes of the record put, the longest call {:?}; {timers} timers",
            side.bytes, side.index.rows_put, side.index.meta_bytes, side.longest
        );
    }
    let [_, b] = &mut sides;
    let mut unchanged = 0;
    let mut after = Vec::new();
    // The folder and the index side by side.
    for i in 0..files {
        let row = b.index.next(&after).expect("a row");
        let here: Option<&OnDisk> = row.present();
        let seen = here.map(|h| h.stamp).expect("in place");
        after = row.path.clone();
        let looked = b.replica.look(&b.index, &after, &seen);
        assert!(looked == Look::Unchanged, "{i}");
        unchanged += 1;
    }
    lap("a rescan that finds nothing changed");
    assert_eq!(unchanged, files);
    b.longest = Default::default();
    let before = b.index.rows_put;
    let walk = |b: &mut Side, policy: Without| {
        b.call(|r, now, index| r.handle_policy(now, index, Box::new(policy)));
        while !b.replica.is_idle() {
            b.call(|r, now, index| r.handle_timeout(now, index));
        }
    };
    walk(b, Without(b""));
    lap("a policy that changes nothing");
    println!("  {} rows put, the longest call {:?}", b.index.rows_put - before, b.longest);
    (b.longest, b.now) = (Default::default(), b.now + Duration::from_secs(1));
    let before = b.index.rows_put;
    walk(b, Without(b"folder 00"));
    lap("a policy that does not want a tenth");
    println!("  {} rows put, the longest call {:?}", b.index.rows_put - before, b.longest);
    let absent = b.index.rows.values().filter(|r| r.disk == Disk::Absent).count();
    assert!(absent > 0);
    // What is in memory beside the index is what goes with the machine.
    for (who, side) in sides.into_iter().enumerate() {
        let region = Region::new(ALLOCATOR);
        drop(side.replica);
        let freed = region.change().bytes_deallocated;
        println!("the machine of {who} held {freed} bytes");
        assert!(freed < 4 << 20, "grows with files");
        std::mem::forget(side.index);
    }
}
