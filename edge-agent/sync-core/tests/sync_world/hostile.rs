//! A member that turned: it says whatever might hurt, from what it heard and from nothing.

use agent_proto::sync::{
    Dot, FileRequest, GetHashes, Head, Hello, Index, IndexEntry, IndexTaken, Known, Life, MemberKnows,
    ReplicaId, Request, Statement, SyncMessage, Unavailable, Value,
};
use event_schema::Signature;
use sync_core::sync::{head_bytes, replica_id, statement_bytes};

use super::{Event, RUN, Step, World, mac, ms, pair};

/// A head of one of its many replicas.
pub(crate) fn own_head(key: &[u8; 32], incarnation: u64, counter: u64, lives: Vec<Life>) -> Head {
    let mut head = Head { key: *key, incarnation, counter, lives, signature: Signature([0; 32], [0; 32]) };
    head.signature = mac(key, &head_bytes(RUN, &head));
    head
}

/// A statement under its key.
pub(crate) fn own_statement(
    key: &[u8; 32],
    author: ReplicaId,
    path: &[u8],
    mut version: Vec<Dot>,
    depth: u64,
    value: Value,
) -> Statement {
    version.sort();
    version.dedup_by_key(|d| d.replica);
    let signature = Signature([0; 32], [0; 32]);
    let mut s = Statement { author, version, depth, value, signature };
    s.signature = mac(key, &statement_bytes(RUN, path, &s));
    s
}

const FIRST: Life = Life { id: 1, since: 0 };

#[derive(Default)]
pub(crate) struct Hostile {
    pub(crate) heads: Vec<Head>,
    entries: Vec<IndexEntry>,
    epoch: u64,
    sent: u64,
    /// What it was told that is no piece of an index.
    pub(crate) heard: Vec<SyncMessage>,
}

impl World {
    pub(crate) fn hostile_connected(&mut self, node: usize, peer: usize) {
        let summary = if self.rng.chance(30) {
            let replica = replica_id(RUN, self.nodes[peer].agent, 5);
            vec![Dot { replica, counter: self.rng.next() >> 12 | 1 }]
        } else {
            Vec::new()
        };
        let cursor = None;
        // Under the receiver's key, if it could: an old copy of itself is what each is afraid to be.
        let (key, theirs) = (self.nodes[node].key, self.nodes[peer].key);
        let mut heads = self.nodes[node].hostile.heads.clone();
        heads.retain(|h| h.key == theirs);
        heads.truncate(3);
        if self.rng.chance(30) {
            let mut head = own_head(&key, self.rng.next(), 1 << 40, vec![FIRST]);
            head.key = theirs;
            heads.push(head);
        }
        if self.silent {
            self.send(node, peer, Hello { cursor, summary: Vec::new(), heads: Vec::new() }.into());
            return;
        }
        self.send(node, peer, Hello { cursor, summary, heads }.into());
        self.nodes[node].hostile.epoch += 1;
        self.nodes[node].hostile.sent = 0;
        self.at(self.now - timebase::Instant::ZERO - ms(1_000_000) + ms(200), Step::Hostile(node));
    }

    /// One that turned gives a block now.
    pub(crate) fn gives(&mut self, from: usize, to: usize, transfer: u32, block: u32, hash: [u8; 32]) {
        let Some(&session) = self.sessions.get(&pair(from, to)) else { return };
        self.push(self.now, 0, Event::Block { from, to, session, transfer, block, hash });
    }

    pub(crate) fn hostile_hears(&mut self, node: usize, from: usize, message: SyncMessage) {
        if self.silent && !matches!(message, SyncMessage::Index(_)) {
            self.nodes[node].hostile.heard.push(message);
            return;
        }
        match message {
            SyncMessage::Index(piece) => {
                let Index { epoch, up_to, heads, entries, .. } = piece;
                let h = &mut self.nodes[node].hostile;
                h.heads.extend(heads);
                h.entries.extend(entries);
                if h.entries.len() > 100 {
                    h.entries.drain(..h.entries.len() - 50);
                }
                if h.heads.len() > 40 {
                    h.heads.drain(..h.heads.len() - 20);
                }
                if self.rng.chance(80) {
                    self.send(node, from, IndexTaken { epoch, up_to }.into());
                }
            }
            SyncMessage::Request(request) => {
                // Stalls, says no, or sends something else, often when it is asked of others already.
                for file in request.files {
                    if self.rng.chance(30) {
                        self.send(node, from, Unavailable { transfer: file.transfer }.into());
                    }
                    let Some(&session) = self.sessions.get(&pair(node, from)) else { continue };
                    for &(first, _) in file.ranges.iter().take(3) {
                        let at = self.now + ms(self.rng.below(20_000));
                        let (transfer, hash) = (file.transfer, [9; 32]);
                        self.push(
                            at,
                            0,
                            Event::Block { from: node, to: from, session, transfer, block: first, hash },
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn forged(&mut self, node: usize) -> Option<IndexEntry> {
        let (key, agent) = (self.nodes[node].key, self.nodes[node].agent);
        let entries = self.nodes[node].hostile.entries.clone();
        let mut entry = self.rng.pick(&entries).cloned()?;
        let own = replica_id(RUN, agent, 1);
        match self.rng.below(9) {
            // Says that it has what it has not; or an old state again.
            0 | 1 => entry.holds = Some(0),
            2 => entry.path = b"../../etc/passwd".to_vec(),
            3 => entry.path = b"forged".to_vec(),
            4 => entry.statements[0].value = Value::Deleted,
            5 => entry.statements[0]
                .version
                .iter_mut()
                .for_each(|d| d.counter = d.counter.saturating_mul(1 << 40)),
            6 => entry.statements[0].depth = u64::MAX,
            7 => entry.holds = Some(200),
            _ => {
                // Its own statements: properly signed, of what it may not or could not know, as deep as can be, twice
                // under one number, or two that each claim to stand on the other.
                let (path, known) = (entry.path.clone(), entry.statements[0].clone());
                let others = known.version.iter().filter(|d| d.replica != own).copied();
                let counter = 1 + self.rng.below(3);
                let me = Dot { replica: own, counter };
                let other = Dot { replica: replica_id(RUN, agent, 2), counter };
                let deleted = Value::Deleted;
                let kept = known.value.clone();
                entry.holds = None;
                entry.statements = match self.rng.below(6) {
                    0 => vec![own_statement(&key, own, &path, vec![me], counter, deleted)],
                    1 => {
                        let far = others
                            .map(|d| Dot { counter: d.counter.wrapping_add(self.rng.below(2) * 1000), ..d });
                        let version: Vec<Dot> = far.chain([me]).collect();
                        vec![own_statement(&key, own, &path, version, known.depth.wrapping_add(1), deleted)]
                    }
                    2 => {
                        // The deepest there can be, under a number that is beyond all bounds.
                        let replica = replica_id(RUN, agent, 3);
                        let version: Vec<Dot> = others.chain([Dot { replica, counter: 1 << 53 }]).collect();
                        vec![own_statement(&key, replica, &path, version, 1 << 53, kept)]
                    }
                    3 => {
                        // Of one number, with and without what it stands on.
                        let with = self.rng.chance(50);
                        let version: Vec<Dot> = others.filter(|_| with).chain([me]).collect();
                        let value = if self.rng.chance(50) { deleted } else { kept };
                        vec![own_statement(
                            &key,
                            own,
                            &path,
                            version,
                            if with { known.depth.wrapping_add(1) } else { 1 },
                            value,
                        )]
                    }
                    4 => {
                        let first = self.rng.chance(50);
                        let author = if first { me.replica } else { other.replica };
                        let value = if first { deleted } else { kept };
                        vec![own_statement(&key, author, &path, vec![me, other], 2 * counter, value)]
                    }
                    _ => {
                        // On top of its own, and not of what that stands on.
                        let replica = other.replica;
                        let counter = counter + 1;
                        vec![own_statement(
                            &key,
                            replica,
                            &path,
                            vec![Dot { replica, counter }],
                            counter,
                            kept,
                        )]
                    }
                };
            }
        }
        Some(entry)
    }

    /// Says a few things to everybody, and goes on.
    pub(crate) fn hostile_acts(&mut self, node: usize) {
        let key = self.nodes[node].key;
        for peer in 0..self.nodes.len() {
            let message: SyncMessage = match self.rng.below(8) {
                0..4 => {
                    let Some(entry) = self.forged(node) else { continue };
                    let mut heads = self.nodes[node].hostile.heads.clone();
                    heads.truncate(20);
                    // Of one replica two that contradict each other, now and then; and one that has counted it all.
                    let other = Life { id: 2 + self.rng.below(2) as u32, since: self.rng.below(2) };
                    let lives = if self.rng.chance(20) { vec![FIRST, other] } else { vec![FIRST] };
                    heads.push(own_head(&key, 1, 4, lives));
                    heads.push(own_head(&key, 2, 4, vec![FIRST]));
                    heads.push(own_head(&key, 3, 1 << 53, vec![FIRST]));
                    if self.rng.chance(5) {
                        // More replicas than anybody has room for, others to each.
                        let from = 1000 * peer as u64 + 100;
                        heads.extend((from..from + 70).map(|i| own_head(&key, i, 1, vec![FIRST])));
                    }
                    if self.rng.chance(10) {
                        heads.iter_mut().for_each(|h| h.counter = h.counter.wrapping_add(1));
                    }
                    let h = &mut self.nodes[node].hostile;
                    let (epoch, after) = (h.epoch, h.sent);
                    h.sent += 1;
                    let up_to = if self.rng.chance(10) { u64::MAX } else { after + 1 };
                    let summary = self.rng.chance(50).then(|| {
                        entry.statements.iter().flat_map(|s| s.version.clone()).take(1).collect::<Vec<_>>()
                    });
                    let mut entries = vec![entry];
                    if self.rng.chance(5) {
                        let path = b"x/of many".to_vec();
                        let many = |i: u64| {
                            let replica =
                                replica_id(RUN, self.nodes[node].agent, 1000 * peer as u64 + 100 + i);
                            let value = Value::Folder { meta: vec![i as u8], implied: false };
                            own_statement(&key, replica, &path, vec![Dot { replica, counter: 1 }], 1, value)
                        };
                        let statements = (0..60).map(many).collect();
                        entries.push(IndexEntry { path: path.clone(), statements, holds: None });
                        let from = 1000 * peer as u64 + 100;
                        heads.extend((from..from + 60).map(|i| own_head(&key, i, 1, vec![FIRST])));
                    }
                    Index { epoch, life: 0, after, up_to, heads, entries, summary }.into()
                }
                4 => {
                    let victim = self.rng.below(self.nodes.len() as u64) as usize;
                    let entries = &self.nodes[node].hostile.entries;
                    let summary = entries.last().map(|e| e.statements[0].version.clone()).unwrap_or_default();
                    Known { members: vec![MemberKnows { member: self.nodes[victim].agent, summary }] }.into()
                }
                5 => {
                    let entries = self.nodes[node].hostile.entries.clone();
                    let Some(entry) = self.rng.pick(&entries) else { continue };
                    let Value::File { root, .. } = entry.statements[0].value else { continue };
                    let ranges = vec![(0, if self.rng.chance(50) { 1 } else { u32::MAX })];
                    let file = FileRequest { transfer: 1, path: entry.path.clone(), root, ranges };
                    Request { files: vec![file; 1 + self.rng.below(60) as usize] }.into()
                }
                6 => GetHashes { transfer: 3, path: b"a.txt".to_vec(), root: [3; 32], page: Some(u32::MAX) }
                    .into(),
                _ => Hello { cursor: None, summary: Vec::new(), heads: Vec::new() }.into(),
            };
            let mut bytes = message.encode();
            if self.rng.chance(30) {
                for _ in 0..1 + self.rng.below(4) {
                    let at = self.rng.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << self.rng.below(8);
                }
            }
            // Agents end the session where a message cannot be read at all.
            if let Ok(message) = SyncMessage::decode(&bytes) {
                self.send(node, peer, message);
            }
        }
        let more = self.now - timebase::Instant::ZERO - ms(1_000_000);
        if more < ms(124_000) {
            let wait = ms(300 + self.rng.below(1500));
            self.at(more + wait, Step::Hostile(node));
        }
    }
}
