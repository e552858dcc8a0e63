//! What has to hold when everything is calm: one tree, nothing lost, nothing made for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use sync_core::sync::{LocalChanges, Obstacle, Permission, Policy};

use super::{KinPolicy, Node, World, ms, show};

/// What was seen in a world that ended well.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) conflicts: usize,
    pub(crate) edits: usize,
    pub(crate) restarts: u64,
    pub(crate) rolled_back: u32,
    pub(crate) entries: usize,
    pub(crate) archived: usize,
    /// Edits that nobody gave up, and that are in an archive alone.
    pub(crate) only_archived: usize,
    pub(crate) forgotten: u64,
    pub(crate) refusals: u64,
    pub(crate) misbehaved: usize,
    pub(crate) messages: u64,
    pub(crate) settled_after: Duration,
}

impl World {
    /// Runs until all trees are the same, or fails; checks that nothing was lost and that it stays so.
    pub(crate) fn converge(&mut self) -> Seen {
        self.calm();
        let began = self.now;
        let mut problem = String::new();
        for _ in 0..200 {
            self.run(ms(3000));
            problem = self.difference();
            if problem.is_empty() {
                break;
            }
        }
        assert!(problem.is_empty(), "seed {}: {problem}\n{}", self.seed, self.describe());
        let settled_after = self.now - began;
        let mut made: u64 = self.made();
        self.run(ms(60_000));
        if self.made() != made {
            // Something that was blocked, and is looked at every 15 s: but once.
            made = self.made();
            self.run(ms(120_000));
        }
        // Now and then somebody looks again at what is blocked; and who says that it has what nobody has, and gives
        // nothing, keeps others at work for ever.
        let turned = self.nodes.iter().any(|n| n.kin.hostile);
        let mut problem = self.difference_in(turned);
        for _ in 0..20 {
            if !problem.is_empty() {
                self.run(ms(700));
                problem = self.difference_in(turned);
            }
        }
        assert!(problem.is_empty(), "seed {}: came apart: {problem}\n{}", self.seed, self.describe());
        assert_eq!(self.made(), made, "seed {}: statements are made for ever", self.seed);
        let only_archived = self.nothing_lost();
        if !self.nodes.iter().any(|n| n.kin.hostile) {
            let blamed = self.nodes.iter().flat_map(|n| &n.misbehaved).next();
            assert_eq!(blamed, None, "seed {}: somebody honest is blamed", self.seed);
        }
        let sum = |f: &dyn Fn(&Node) -> u64| self.nodes.iter().map(f).sum::<u64>();
        let count = |f: fn(&sync_core::sync::Counters) -> u64| {
            sum(&|n: &Node| n.replica.as_deref().map_or(0, |r| f(r.counters())))
        };
        Seen {
            conflicts: self.nodes.iter().map(|n| n.conflicts.len()).sum(),
            edits: self.written.len(),
            restarts: self.restarts,
            rolled_back: self.nodes.iter().map(|n| n.rolled_back).sum(),
            entries: self.nodes[0].fs.tree().len(),
            archived: self.nodes.iter().map(|n| n.fs.archive.len()).sum(),
            only_archived,
            forgotten: count(|c| c.forgotten),
            refusals: count(|c| c.refusals),
            misbehaved: self.nodes.iter().map(|n| n.misbehaved.len()).sum(),
            messages: self.messages,
            settled_after,
        }
    }

    fn made(&self) -> u64 {
        self.nodes.iter().filter_map(|n| n.replica.as_deref()).map(|r| r.counters().made).sum()
    }

    /// What is not the same everywhere; empty if all is.
    pub(crate) fn difference(&self) -> String {
        self.difference_in(false)
    }

    fn difference_in(&self, at_work: bool) -> String {
        let full = |n: &&Node| {
            !n.kin.hostile && !n.kin.selective && !n.kin.folds && n.kin.permission == Permission::ReadWrite
        };
        let Some(reference) = self.nodes.iter().find(full) else { return "nobody to compare with".into() };
        let tree = reference.fs.tree();
        for (i, n) in self.nodes.iter().enumerate().filter(|(_, n)| !n.kin.hostile) {
            if !at_work && !self.is_idle(i) {
                return format!("{i} is at work");
            }
            let policy = KinPolicy(n.kin);
            let here = n.fs.tree();
            // What went with its only holder: people are told, and it stays as it is.
            let lost = |path: &Vec<u8>| {
                [n, reference].iter().any(|n| n.blocked.get(path) == Some(&Obstacle::NobodyHas))
                    && !self.given_up.is_empty()
            };
            for (path, kind) in &tree {
                if lost(path) {
                    continue;
                }
                if !policy.wants(path, false) {
                    continue;
                }
                let has = here.get(path);
                if has == Some(kind) {
                    let same = match (reference.fs.mtimes().get(path), n.fs.mtimes().get(path)) {
                        (Some(a), Some(b)) => {
                            let coarse = n.kin.granularity.max(reference.kin.granularity);
                            a.div_euclid(coarse) == b.div_euclid(coarse)
                        }
                        _ => true,
                    };
                    if !same {
                        return format!("{i} has another time at {}", show(path));
                    }
                    if reference.fs.modes().get(path) != n.fs.modes().get(path) {
                        return format!("{i} has another mode at {}", show(path));
                    }
                    continue;
                }
                let excused = self.is_blocked(n, path);
                if !excused {
                    return format!("{i} has {has:?} at {} and not {kind:?}", show(path));
                }
            }
            for (path, kind) in &here {
                let foreign =
                    n.kin.permission == Permission::ReadOnly && n.kin.local == LocalChanges::KeepAside;
                if !tree.contains_key(path) && !lost(path) && !foreign && policy.wants(path, false) {
                    return format!("{i} has {kind:?} at {} too", show(path));
                }
            }
        }
        String::new()
    }

    /// Blocked, and told so, or below something that is.
    fn is_blocked(&self, n: &Node, path: &[u8]) -> bool {
        let at = |p: &[u8]| n.blocked.contains_key(p);
        at(path) || path.iter().enumerate().any(|(i, b)| *b == b'/' && at(&path[..i]))
    }

    /// Every content that somebody wrote and nobody gave up is in a tree or an archive.
    fn nothing_lost(&self) -> usize {
        let mut kept: BTreeSet<u64> = self.given_up.clone();
        for n in &self.nodes {
            kept.extend(n.fs.files().map(|(_, c)| c.id));
            kept.extend(&n.fs.given_up);
        }
        let may = |node: usize| self.nodes[node].kin.permission == Permission::ReadWrite;
        let lost = self.written.iter().filter(|(id, (node, ..))| may(*node) && !kept.contains(id));
        let lost: Vec<_> = lost.collect();
        let only_archived = lost.len();
        for (id, (node, path, new)) in &lost {
            self.log(|| format!("only archived: {id} of {node} at {} new {new}", show(path)));
        }
        // A new file that nobody deleted, and that is in archives alone, is lost for whoever made it. (A member that
        // turned may delete what it likes if it may write.)
        let free = !self.nodes.iter().any(|n| n.kin.hostile && n.kin.permission == Permission::ReadWrite);
        if let Some((id, (node, path, _))) = lost.iter().find(|(_, (_, _, new))| *new && free) {
            panic!(
                "seed {}: {id}, new, of {node} at {} vanished into archives\n{}",
                self.seed,
                show(path),
                self.describe()
            );
        }
        for n in &self.nodes {
            kept.extend(n.fs.archive.iter().map(|c| c.id));
        }
        for (id, (node, path, _)) in &self.written {
            assert!(
                kept.contains(id),
                "seed {}: edit {id} of {node} at {} is lost\n{}",
                self.seed,
                show(path),
                self.describe()
            );
        }
        only_archived
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for (i, n) in self.nodes.iter().enumerate() {
            if let Some(r) = n.replica.as_deref() {
                text += &format!(
                    "now {:?} timer {:?} timeout {:?} idle {} entries {:?} {:?}\n",
                    self.now,
                    n.timer,
                    r.poll_timeout(),
                    r.is_idle(),
                    r.entries(),
                    r.counters()
                );
            }
            text += &format!(
                "node {i} {:?}: blocked {:?}\n",
                n.kin,
                n.blocked.iter().map(|(p, w)| (show(p), w)).collect::<Vec<_>>()
            );
            for (path, kind) in n.fs.tree() {
                text += &format!("    {} {kind:?}\n", show(&path));
            }
            for row in n.index.live.rows.values().filter(|r| {
                std::env::var_os("SYNC_ROWS").is_some()
                    || !matches!(r.work, sync_core::sync::Work::None | sync_core::sync::Work::Tombstone)
            }) {
                text += &format!(
                    "    waits: {} {:?} {:?} holders {} statements {:?}\n",
                    show(&row.path),
                    row.work,
                    row.disk,
                    row.holders.len(),
                    row.statements.iter().map(|s| (&s.value, &s.version)).collect::<Vec<_>>()
                );
            }
        }
        text
    }
}
