//! A member that turned: it says whatever might hurt, from what it heard and from nothing.

use agent_proto::sync::{
    Dot, FileRequest, GetHashes, Head, Hello, Index, IndexEntry, IndexTaken, Known, MemberKnows, Request,
    Statement, SyncMessage, Unavailable, Value,
};
use event_schema::Signature;
use sync_core::sync::{head_bytes, replica_id, statement_bytes};

use super::{RUN, Step, World, mac, ms};

#[derive(Default)]
pub(crate) struct Hostile {
    heads: Vec<Head>,
    entries: Vec<IndexEntry>,
    epoch: u64,
    sent: u64,
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
        self.send(node, peer, Hello { cursor, summary }.into());
        self.nodes[node].hostile.epoch += 1;
        self.nodes[node].hostile.sent = 0;
        self.at(self.now - timebase::Instant::ZERO - ms(1_000_000) + ms(200), Step::Hostile(node));
    }

    pub(crate) fn hostile_hears(&mut self, node: usize, from: usize, message: SyncMessage) {
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
                // Stalls, or says no.
                for file in request.files {
                    if self.rng.chance(30) {
                        self.send(node, from, Unavailable { transfer: file.transfer }.into());
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
            6 => entry.statements[0].depth = u32::MAX,
            7 => entry.holds = Some(200),
            _ => {
                // Its own statement: properly signed, of what it may not or could not know.
                let counter = 1 + self.rng.below(3);
                let mut version = vec![Dot { replica: own, counter }];
                if self.rng.chance(50) {
                    for d in &entry.statements[0].version {
                        if d.replica != own {
                            version.push(Dot {
                                replica: d.replica,
                                counter: d.counter.wrapping_add(self.rng.below(2) * 1000),
                            });
                        }
                    }
                    version.sort();
                }
                let mut s = Statement {
                    author: own,
                    version,
                    depth: 1000,
                    value: Value::Deleted,
                    signature: Signature([0; 32], [0; 32]),
                };
                s.signature = mac(&key, &statement_bytes(RUN, &entry.path, &s));
                entry.statements = vec![s];
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
                    let mut own =
                        Head { key, incarnation: 1, counter: 3, signature: Signature([0; 32], [0; 32]) };
                    own.signature = mac(&key, &head_bytes(RUN, &own));
                    let mut heads = self.nodes[node].hostile.heads.clone();
                    heads.truncate(20);
                    heads.push(own);
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
                    Index { epoch, after, up_to, heads, entries: vec![entry], summary }.into()
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
                _ => Hello { cursor: None, summary: Vec::new() }.into(),
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
