//! A file system in memory that is as awkward as real ones: coarse times, names that fold, users who change things
//! between any two steps of an agent. What is displaced is never destroyed but by a user.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use agent_proto::sync::Value;
use sync_core::merkle::{Hash, tree_root};
use sync_core::sync::{Displaced, Expected, Make, Outcome, Stamp};

pub(crate) const BLOCK: u64 = 32 * 1024;

/// Content is a number and a size: its blocks hash to what both say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) id: u64,
    pub(crate) size: u64,
}

impl Content {
    pub(crate) fn blocks(self) -> u32 {
        self.size.div_ceil(BLOCK) as u32
    }

    pub(crate) fn block_hash(self, block: u32) -> Hash {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&block.to_le_bytes());
        sync_core::merkle::block_hash(&bytes)
    }

    pub(crate) fn hashes(self) -> Vec<Hash> {
        (0..self.blocks()).map(|b| self.block_hash(b)).collect()
    }

    pub(crate) fn root(self) -> Hash {
        thread_local!(static ROOTS: RefCell<BTreeMap<Content, Hash>> = const { RefCell::new(BTreeMap::new()) });
        ROOTS.with_borrow_mut(|roots| *roots.entry(self).or_insert_with(|| tree_root(&self.hashes())))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Content),
    Folder,
    Link(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Of folders, what people set.
    mode: u8,
    number: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Fs {
    nodes: BTreeMap<Vec<u8>, Node>,
    next_number: u64,
    /// Granularity of times, ns. From 1 s on there are no file numbers and no times of change either.
    pub(crate) granularity: i64,
    pub(crate) folds: bool,
    /// Of new folders of which nobody says it.
    pub(crate) mode: u8,
    /// Not mounted: it looks empty, and nothing can be changed.
    pub(crate) gone: bool,
    pub(crate) archive: Vec<Content>,
    /// What has more metadata than anybody takes.
    pub(crate) heavy: BTreeSet<Vec<u8>>,
    /// What users replaced or deleted knowingly.
    pub(crate) given_up: BTreeSet<u64>,
}

pub(crate) fn fold(path: &[u8]) -> Vec<u8> {
    path.to_ascii_lowercase()
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|at| &path[..at])
}

impl Fs {
    pub(crate) fn new(granularity: i64, folds: bool) -> Self {
        Self {
            nodes: BTreeMap::new(),
            next_number: 1,
            granularity,
            folds,
            mode: 0,
            gone: false,
            archive: Vec::new(),
            heavy: BTreeSet::new(),
            given_up: BTreeSet::new(),
        }
    }

    fn tick(&self, now: i64) -> i64 {
        now - now.rem_euclid(self.granularity)
    }

    /// The name under which the file system has this, if it has.
    pub(crate) fn resolve(&self, path: &[u8]) -> Vec<u8> {
        if !self.folds {
            return path.to_vec();
        }
        let mut at: Vec<u8> = Vec::new();
        for name in path.split(|b| *b == b'/') {
            let next = if at.is_empty() { name.to_vec() } else { [&at[..], b"/", name].concat() };
            let known = self.nodes.keys().find(|k| parent(k) == parent(&next) && fold(k) == fold(&next));
            at = known.cloned().unwrap_or(next);
        }
        at
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path).filter(|_| !self.gone)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.nodes.keys().filter(|_| !self.gone)
    }

    pub(crate) fn below<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a Vec<u8>> {
        let prefix = [path, b"/"].concat();
        self.paths().filter(move |p| p.starts_with(&prefix))
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&Vec<u8>, Content)> {
        self.nodes.iter().filter_map(|(p, n)| match n.kind {
            Kind::File(content) => Some((p, content)),
            _ => None,
        })
    }

    pub(crate) fn tree(&self) -> BTreeMap<Vec<u8>, Kind> {
        self.nodes.iter().map(|(p, n)| (p.clone(), n.kind.clone())).collect()
    }

    pub(crate) fn mtimes(&self) -> BTreeMap<Vec<u8>, i64> {
        let files = self.nodes.iter().filter(|(_, n)| matches!(n.kind, Kind::File(_)));
        files.map(|(p, n)| (p.clone(), n.mtime_ns)).collect()
    }

    pub(crate) fn modes(&self) -> BTreeMap<Vec<u8>, u8> {
        let folders = self.nodes.iter().filter(|(_, n)| n.kind == Kind::Folder);
        folders.map(|(p, n)| (p.clone(), n.mode)).collect()
    }

    /// Sets a folder's mode.
    pub(crate) fn set_mode(&mut self, now: i64, path: &[u8], mode: u8) {
        let tick = self.tick(now);
        if let Some(node) = self.nodes.get_mut(path).filter(|n| n.kind == Kind::Folder) {
            (node.mode, node.ctime_ns) = (mode, tick);
        }
    }

    pub(crate) fn stamp(&self, now: i64, path: &[u8]) -> Option<Stamp> {
        let node = self.get(path)?;
        let coarse = self.granularity >= 1_000_000_000;
        let size = match &node.kind {
            Kind::File(content) => content.size,
            _ => 0,
        };
        Some(Stamp {
            file: if coarse { 0 } else { node.number },
            size,
            mtime_ns: node.mtime_ns,
            ctime_ns: if coarse { 0 } else { node.ctime_ns },
            settled: self.tick(now) > node.mtime_ns && (coarse || self.tick(now) > node.ctime_ns),
        })
    }

    pub(crate) fn value(&self, path: &[u8]) -> Option<Value> {
        let node = self.get(path)?;
        Some(match &node.kind {
            Kind::Folder if self.heavy.contains(path) => {
                Value::Folder { meta: vec![7; 80 * 1024], implied: false }
            }
            Kind::File(content) => {
                let meta = node.mtime_ns.to_le_bytes().to_vec();
                Value::File { size: content.size, root: content.root(), meta }
            }
            Kind::Folder => Value::Folder { meta: vec![node.mode], implied: false },
            Kind::Link(target) => Value::Link { target: target.clone(), meta: Vec::new() },
        })
    }

    // What users do.

    /// Puts a file or folder there, if the folder above is one; what was there is given up.
    pub(crate) fn put(&mut self, now: i64, path: &[u8], kind: Kind) -> bool {
        let path = self.resolve(path);
        if self.gone || !self.has_folder_above(&path) {
            return false;
        }
        let number = match (self.nodes.get(&path), &kind) {
            (Some(Node { kind: Kind::Folder, .. }), _) => return false,
            (Some(old), Kind::File(_)) if matches!(old.kind, Kind::File(_)) => old.number,
            _ => self.number(),
        };
        self.give_up(&path);
        let tick = self.tick(now);
        let mode = self.mode;
        self.nodes.insert(path, Node { kind, mode, number, mtime_ns: tick, ctime_ns: tick });
        true
    }

    pub(crate) fn remove(&mut self, path: &[u8]) -> Vec<Vec<u8>> {
        let mut gone: Vec<Vec<u8>> = self.below(path).cloned().collect();
        gone.extend(self.get(path).map(|_| path.to_vec()));
        for path in &gone {
            self.give_up(path);
            self.nodes.remove(path);
        }
        gone
    }

    /// Renames, replacing a file but no folder.
    pub(crate) fn rename(&mut self, now: i64, from: &[u8], to: &[u8]) -> bool {
        let to_is = self.resolve(to);
        let inside = to.starts_with(&[from, b"/"].concat());
        if self.get(from).is_none() || inside || from == to || !self.has_folder_above(&to_is) {
            return false;
        }
        // The last name is as the user wrote it, what is above as it is.
        let name_at = to.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let target = match parent(&to_is) {
            Some(above) => [above, b"/", &to[name_at..]].concat(),
            None => to.to_vec(),
        };
        if to_is != from {
            let from_folder = matches!(self.nodes.get(from), Some(n) if n.kind == Kind::Folder);
            match self.nodes.get(&to_is).map(|n| n.kind.clone()) {
                Some(Kind::Folder) => return false,
                Some(_) if from_folder => return false,
                Some(_) => {
                    self.give_up(&to_is);
                    self.nodes.remove(&to_is);
                }
                None => {}
            }
        }
        self.move_tree(now, from, &target);
        true
    }

    fn move_tree(&mut self, now: i64, from: &[u8], to: &[u8]) {
        let mut moved: Vec<Vec<u8>> = self.below(from).cloned().collect();
        moved.push(from.to_vec());
        for old in moved {
            if let Some(mut node) = self.nodes.remove(&old) {
                node.ctime_ns = self.tick(now);
                self.nodes.insert([to, &old[from.len()..]].concat(), node);
            }
        }
    }

    fn give_up(&mut self, path: &[u8]) {
        if let Some(Node { kind: Kind::File(content), .. }) = self.nodes.get(path) {
            self.given_up.insert(content.id);
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn has_folder_above(&self, path: &[u8]) -> bool {
        parent(path).is_none_or(|p| matches!(self.get(p), Some(n) if n.kind == Kind::Folder))
    }

    // What the agent does (SYNC.md §7): all of it or nothing, against what is there at this moment.

    pub(crate) fn change(
        &mut self,
        now: i64,
        path: &[u8],
        expected: Expected,
        displaced: &Displaced,
        make: &Make,
        staged: Option<Content>,
    ) -> Outcome {
        if self.gone {
            return Outcome::Failed;
        }
        if !self.has_folder_above(path) {
            return Outcome::Refused;
        }
        let from = match make {
            Make::Moved { from, stamp, .. } => {
                if self.stamp(now, from).is_none_or(|s| !s.is(stamp)) {
                    return Outcome::Refused;
                }
                Some(from.clone())
            }
            _ => None,
        };
        let stays = matches!(make, Make::Meta { .. });
        match expected {
            Expected::Absent => {
                let known = self.resolve(path);
                if self.nodes.contains_key(&known) && from.as_ref() != Some(&known) {
                    return Outcome::Refused;
                }
            }
            Expected::File(stamp) => {
                let same = self.stamp(now, path).is_some_and(|s| s.is(&stamp));
                if !same || matches!(self.get(path), Some(n) if n.kind == Kind::Folder) {
                    return Outcome::Refused;
                }
            }
            Expected::Folder => {
                if !matches!(self.get(path), Some(n) if n.kind == Kind::Folder) {
                    return Outcome::Refused;
                }
                if !stays && self.below(path).next().is_some() {
                    return Outcome::NotEmpty;
                }
            }
        }
        let mut kept = None;
        if !stays && expected != Expected::Absent {
            match displaced {
                Displaced::Nothing => assert_eq!(expected, Expected::Folder, "only folders vanish"),
                Displaced::Archive => match self.nodes.get(path).map(|n| n.kind.clone()) {
                    Some(Kind::File(content)) => self.archive.push(content),
                    Some(Kind::Link(_)) => {}
                    other => panic!("{other:?} in the archive"),
                },
                Displaced::Keep(name) => {
                    if self.nodes.contains_key(&self.resolve(name)) {
                        return Outcome::Refused;
                    }
                    self.move_tree(now, path, name);
                    kept = self.stamp(now, name);
                }
            }
            self.nodes.remove(path);
        }
        let tick = self.tick(now);
        let (kind, meta) = match make {
            Make::Nothing => return Outcome::Done { stamp: Stamp::default(), kept },
            Make::Staged { meta, .. } => (Kind::File(staged.expect("staged")), meta),
            Make::Moved { from, meta, .. } => match self.nodes.remove(from).map(|n| n.kind) {
                Some(kind @ Kind::File(_)) => (kind, meta),
                other => panic!("{other:?} moved"),
            },
            Make::Folder { meta } => (Kind::Folder, meta),
            Make::Link { target, meta } => (Kind::Link(target.clone()), meta),
            Make::Meta { meta } => (self.nodes.get(path).expect("stays").kind.clone(), meta),
        };
        let mtime_ns = <[u8; 8]>::try_from(&meta[..]).map_or(tick, |m| self.tick(i64::from_le_bytes(m)));
        let mode = match meta[..] {
            [mode] => mode,
            // Nobody said which: it stays as it is.
            _ => self.nodes.get(path).filter(|_| stays).map_or(self.mode, |node| node.mode),
        };
        let number = self.number();
        self.nodes.insert(path.to_vec(), Node { kind, mode, number, mtime_ns, ctime_ns: tick });
        Outcome::Done { stamp: self.stamp(now, path).expect("made"), kept }
    }
}
