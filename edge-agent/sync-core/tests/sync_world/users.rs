//! People who work in their folders: they write, grow, copy, delete, rename, make folders of files and files of folders.

use super::fs::{BLOCK, Content, Kind};
use super::{World, show};

const FOLDERS: [&str; 6] = ["", "d0", "d1", "d2", "d0/e", "D0"];
const NAMES: [&str; 7] = ["a.txt", "b", "c.tar", "A.txt", "e", "d1", "x.conf"];

impl World {
    fn size(&mut self) -> u64 {
        match self.rng.below(10) {
            0 => 0,
            1..=7 => 1 + self.rng.below(3000),
            _ => BLOCK * (1 + self.rng.below(6)) + self.rng.below(100),
        }
    }

    pub(crate) fn write(&mut self, node: usize, path: &[u8], content: Content) {
        let wall = self.wall();
        let n = &mut self.nodes[node];
        let path = n.fs.resolve(path);
        let new = n.fs.get(&path).is_none();
        if n.fs.put(wall, &path, Kind::File(content)) {
            self.log(|| format!("{node} user writes {} = {}", show(&path), content.id));
            self.written.entry(content.id).or_insert((node, path.clone(), new));
            self.noticed(node, [path]);
        }
    }

    pub(crate) fn edit(&mut self, node: usize, path: &[u8], size: u64) {
        let content = self.new_content(size);
        self.write(node, path, content);
    }

    /// Both have the same content there, written at different times.
    pub(crate) fn copy(&mut self, from: usize, path: &[u8], to: usize) {
        if let Some(Kind::File(content)) = self.nodes[from].fs.get(path).map(|n| n.kind.clone()) {
            self.write(to, path, content);
        }
    }

    pub(crate) fn folder(&mut self, node: usize, path: &[u8]) {
        let wall = self.wall();
        let n = &mut self.nodes[node];
        let path = n.fs.resolve(path);
        if n.fs.get(&path).is_none() && n.fs.put(wall, &path, Kind::Folder) {
            self.log(|| format!("{node} user makes folder {}", show(&path)));
            self.noticed(node, [path]);
        }
    }

    pub(crate) fn delete(&mut self, node: usize, path: &[u8]) {
        let gone = self.nodes[node].fs.remove(path);
        self.log(|| format!("{node} user deletes {:?}", gone.iter().map(|p| show(p)).collect::<Vec<_>>()));
        self.noticed(node, gone);
    }

    pub(crate) fn rename(&mut self, node: usize, from: &[u8], to: &[u8]) {
        let wall = self.wall();
        if self.nodes[node].fs.rename(wall, from, to) {
            self.log(|| format!("{node} user renames {} to {}", show(from), show(to)));
            self.noticed(node, [from.to_vec(), to.to_vec()]);
        }
    }

    pub(crate) fn set_mode(&mut self, node: usize, path: &[u8], mode: u8) {
        let wall = self.wall();
        self.log(|| format!("{node} user sets the mode of {} to {mode}", show(path)));
        self.nodes[node].fs.set_mode(wall, path, mode);
        self.noticed(node, [path.to_vec()]);
    }

    fn some_name(&mut self) -> Vec<u8> {
        let folder = *self.rng.pick(&FOLDERS).expect("some");
        let name = *self.rng.pick(&NAMES).expect("some");
        if folder.is_empty() { name.into() } else { format!("{folder}/{name}").into_bytes() }
    }

    /// Somebody does something at a node.
    pub(crate) fn user(&mut self, node: usize) {
        let there: Vec<Vec<u8>> = self.nodes[node].fs.paths().cloned().collect();
        let files: Vec<(Vec<u8>, Content)> =
            self.nodes[node].fs.files().map(|(p, c)| (p.clone(), c)).collect();
        let wall = self.wall();
        match self.rng.below(100) {
            0..30 => {
                let (path, size) = (self.some_name(), self.size());
                self.edit(node, &path, size);
            }
            30..50 => {
                // In place, often of the same size: coarse times do not tell.
                if let Some((path, old)) = self.rng.pick(&files).cloned() {
                    let size =
                        if self.rng.chance(50) { old.size } else { old.size + 1 + self.rng.below(BLOCK * 2) };
                    self.edit(node, &path, size);
                }
            }
            50..62 => {
                if let Some(path) = self.rng.pick(&there).cloned() {
                    self.delete(node, &path);
                }
            }
            62..80 => {
                if let Some(from) = self.rng.pick(&there).cloned() {
                    let to = self.some_name();
                    self.rename(node, &from, &to);
                }
            }
            80..83 => {
                let modes: Vec<Vec<u8>> = self.nodes[node].fs.modes().into_keys().collect();
                // Where times are coarse nobody keeps modes either.
                let keeps = self.nodes[node].kin.granularity < 1_000_000_000;
                if let Some(path) = self.rng.pick(&modes).filter(|_| keeps).cloned() {
                    let mode = 1 + self.rng.below(3) as u8;
                    self.set_mode(node, &path, mode);
                }
            }
            83..88 => {
                let path = match self.rng.below(3) {
                    0 => self.some_name(),
                    _ => self.rng.pick(&FOLDERS[1..]).expect("some").as_bytes().to_vec(),
                };
                self.folder(node, &path);
            }
            88..92 => {
                // The same content under another name: a copy.
                if let Some((_, content)) = self.rng.pick(&files).cloned() {
                    let path = self.some_name();
                    self.write(node, &path, content);
                }
            }
            92..95 => {
                // The same content as somebody else wrote, by another way.
                let other = self.rng.below(self.nodes.len() as u64) as usize;
                let theirs: Vec<(Vec<u8>, Content)> =
                    self.nodes[other].fs.files().map(|(p, c)| (p.clone(), c)).collect();
                if let Some((path, content)) = self.rng.pick(&theirs).cloned() {
                    self.write(node, &path, content);
                }
            }
            95..98 => {
                // A folder becomes a file, a file a folder.
                if let Some(path) = self.rng.pick(&there).cloned() {
                    let was_folder =
                        matches!(self.nodes[node].fs.get(&path), Some(n) if n.kind == Kind::Folder);
                    self.delete(node, &path);
                    if was_folder {
                        let size = self.size();
                        self.edit(node, &path, size);
                    } else {
                        self.folder(node, &path);
                    }
                }
            }
            _ => {
                let path = self.some_name();
                let n = &mut self.nodes[node];
                let path = n.fs.resolve(&path);
                if n.fs.put(wall, &path, Kind::Link(b"a.txt".to_vec())) {
                    self.noticed(node, [path]);
                }
            }
        }
    }
}
