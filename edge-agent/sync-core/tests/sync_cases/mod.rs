//! What single members, copies of indexes and slow disks can do to all others, one case each (`edge-agent/SYNC.md`
//! §6, §8, §10).

use agent_proto::sync::{
    Dot, FileRequest, GetHashes, Hashes, Head, Index, IndexEntry, Life, Request, Statement, SyncMessage,
    Value, WEAK_PAGE,
};
use sync_core::sync::{Confirm, LocalChanges, Obstacle, Permission, replica_id};

use super::sync_world::fs::{BLOCK, Content, Kind};
use super::sync_world::hostile::{own_head, own_statement};
use super::sync_world::{Back, Kin, RUN, Step, World, ms};
use super::{KIN, READER, apart, does, paths, quiet};

const FIRST: Life = Life { id: 1, since: 0 };
const TURNED: Kin = Kin { hostile: true, ..KIN };

/// Members that all run, of whom those that turned do what the test says.
fn silent(kins: &[Kin]) -> World {
    silent_of(1, kins)
}

fn silent_of(seed: u64, kins: &[Kin]) -> World {
    let mut world = World::new(seed, kins);
    (world.deaf, world.frail, world.silent) = (0, 0, true);
    (0..kins.len()).for_each(|node| world.at(ms(0), Step::Start(node)));
    world.run(ms(3000));
    world
}

fn tells(world: &mut World, from: usize, to: usize, heads: Vec<Head>, entries: Vec<IndexEntry>) {
    let piece = Index { epoch: 1, life: 1, after: 0, up_to: 1, heads, entries, summary: Some(Vec::new()) };
    world.send(from, to, piece.into());
    world.run(ms(100));
}

fn nobody_is_blamed(world: &World) {
    for (i, node) in world.nodes.iter().enumerate() {
        assert!(node.misbehaved.is_empty(), "{i} blames {:?}", node.misbehaved);
    }
}

fn entry(path: &[u8], statement: Statement) -> IndexEntry {
    IndexEntry { path: path.to_vec(), statements: vec![statement], holds: None }
}

/// Bytes put in or taken out move all that follows: that is not fetched again, unless who has the file cannot help to find it.
#[test]
fn what_may_have_moved_within_a_file_is_looked_for() {
    // The first member is of an earlier release, which knows no weak hashes.
    for source in [0, 1] {
        let mut world = silent(&[KIN, KIN]);
        does(&mut world, [Step::Edit(source, "a", BLOCK * 100)]);
        world.converge();
        let before = world.blocks_sent;
        does(&mut world, [Step::Edit(source, "a", BLOCK * 100 + 7)]);
        world.converge();
        let sent = world.blocks_sent - before;
        match source {
            0 => assert!(world.searched == 0 && sent == 101, "{} and {sent}", world.searched),
            _ => assert!(world.searched == 1 && (20..80).contains(&sent), "{} and {sent}", world.searched),
        }
        nobody_is_blamed(&world);
    }
}

#[test]
fn replicas_without_end_part_nobody() {
    for permission in [Permission::ReadOnly, Permission::ReadWrite] {
        let mut world = silent(&[KIN, KIN, KIN, Kin { permission, ..TURNED }]);
        does(&mut world, apart(3));
        let (key, agent) = (world.nodes[3].key, world.nodes[3].agent);
        for (to, first) in [(0, 1), (1, 101)] {
            let heads = (first..first + 100).map(|i| own_head(&key, i, 1, vec![FIRST])).collect();
            let folders = (first..first + 100).map(|i| {
                let dot = Dot { replica: replica_id(RUN, agent, i), counter: 1 };
                let value = Value::Folder { meta: Vec::new(), implied: false };
                let path = format!("f{i}").into_bytes();
                entry(&path, own_statement(&key, dot.replica, &path, vec![dot], 1, value))
            });
            let folders = folders.filter(|_| permission == Permission::ReadWrite).collect();
            tells(&mut world, 3, to, heads, folders);
        }
        does(&mut world, [Step::Edit(0, "a", 3), Step::Edit(1, "b", 4)]);
        world.converge();
        // Of itself it brings 64; what somebody has heard of it the others take.
        let expected = if permission == Permission::ReadWrite { 2 * 64 + 2 } else { 2 };
        assert_eq!(paths(&world, 2).len(), expected);
        nobody_is_blamed(&world);
    }
}

#[test]
fn an_agent_that_loses_its_index_every_day_is_heard_for_ever() {
    let mut world = silent(&[KIN, KIN, KIN, TURNED]);
    let (key, agent) = (world.nodes[3].key, world.nodes[3].agent);
    // A hundred and fifty lives of its index, each of which makes the same folder anew.
    for life in 1..=150 {
        let dot = Dot { replica: replica_id(RUN, agent, life), counter: 1 };
        // Who has a folder says which mode it has: nobody else has a reason to state it.
        let value = Value::Folder { meta: vec![0], implied: false };
        let said = own_statement(&key, dot.replica, b"f", vec![dot], 1, value.clone());
        let last = own_statement(&key, dot.replica, b"last", vec![dot], 1, value);
        let said = if life == 150 { entry(b"last", last) } else { entry(b"f", said) };
        for to in 0..3 {
            let entries = vec![said.clone()];
            let head = own_head(&key, life, 1, vec![FIRST]);
            let piece =
                Index { epoch: life, life: 1, after: 0, up_to: 1, heads: vec![head], entries, summary: None };
            world.send(3, to, piece.into());
        }
        world.run(ms(1000));
    }
    // It says so again when it is asked from the beginning.
    assert_eq!(
        [0, 1, 2].map(|node| paths(&world, node)),
        [0; 3].map(|_| vec!["f".to_string(), "last".into()])
    );
    nobody_is_blamed(&world);
}

#[test]
fn an_older_copy_of_an_index_takes_nothing_from_anybody_whomever_it_meets_first() {
    for (first, new) in [(1, 1), (1, 8), (2, 1), (2, 8)] {
        let mut world = quiet(&[KIN; 3]);
        for i in 0..5 {
            world.edit(0, format!("old {i}").as_bytes(), 10 + i);
        }
        world.converge();
        does(&mut world, [Step::Backup(0), Step::Cut(0, 1), Step::Cut(1, 2)]);
        // Only the last one hears of these, under the numbers that are used again.
        for i in 0..5 {
            world.edit(0, format!("told {i}").as_bytes(), 20 + i);
        }
        world.run(ms(10_000));
        does(&mut world, [Step::Cut(0, 2), Step::Restore(0, Back::Both), Step::Start(0)]);
        for i in 0..new {
            world.edit(0, format!("new {i}").as_bytes(), 30 + i);
        }
        world.run(ms(5000));
        let other = 3 - first;
        does(&mut world, [Step::Mend(0, first)]);
        world.run(ms(10_000));
        // A start in between: what was told since the copy is nothing to go by.
        does(&mut world, [Step::Crash(0), Step::Start(0)]);
        world.run(ms(5000));
        does(&mut world, [Step::Mend(1, 2)]);
        world.run(ms(10_000));
        does(&mut world, [Step::Mend(0, other)]);
        world.converge();
        assert_eq!(paths(&world, 0).len() as u64, 10 + new, "{first} first: {:?}", paths(&world, 0));
        assert_eq!(world.nodes[0].rolled_back, 1);
    }
}

#[test]
fn a_copy_that_only_ever_received_uses_no_sequence_for_two_things() {
    let mut world = quiet(&[KIN; 3]);
    does(&mut world, [Step::Edit(1, "first", 1)]);
    world.converge();
    does(&mut world, [Step::Backup(0)]);
    for round in 0..2 {
        for i in 0..20 {
            world.edit(1, format!("b{i}").as_bytes(), 10 + round * 50 + i);
        }
        world.run(ms(10_000));
    }
    does(&mut world, apart(3));
    does(&mut world, [Step::Edit(2, "a", 3)]);
    world.run(ms(3000));
    does(&mut world, [Step::Restore(0, Back::Both), Step::Start(0), Step::Mend(0, 2)]);
    world.run(ms(10_000));
    for i in 0..30 {
        world.edit(2, format!("c{i}").as_bytes(), 40 + i);
    }
    world.run(ms(10_000));
    // The other one has more of the old copy's index than of this one's, or as it seems all of it.
    does(&mut world, [Step::Cut(0, 2), Step::Mend(0, 1)]);
    world.run(ms(10_000));
    does(&mut world, [Step::Cut(0, 1), Step::Mend(1, 2)]);
    world.converge();
    assert!(paths(&world, 1).contains(&"a".to_string()) && paths(&world, 2).len() == 52);
}

#[test]
fn what_nobody_takes_is_listed_and_stops_nothing() {
    let mut world = quiet(&[KIN; 3]);
    let wall = world.wall();
    let fs = &mut world.nodes[1].fs;
    fs.put(wall, b"big", Kind::File(Content { id: 1 << 40, size: 5 << 40 }));
    fs.put(wall, b"heavy", Kind::Folder);
    fs.heavy.insert(b"heavy".to_vec());
    world.noticed(1, [b"big".to_vec(), b"heavy".to_vec()]);
    world.run(ms(3000));
    does(&mut world, [Step::Edit(1, "next", 3)]);
    world.run(ms(10_000));
    assert_eq!((paths(&world, 0), paths(&world, 2)), (vec!["next".into()], vec!["next".into()]));
    nobody_is_blamed(&world);
    let why: Vec<_> = world.nodes[1].blocked.values().collect();
    assert_eq!(why, [&Obstacle::TooLarge; 2]);
    // One goes, the other becomes what others take, without anybody noticing at once.
    world.nodes[1].fs.remove(b"big");
    world.nodes[1].fs.heavy.clear();
    world.run(ms(40_000));
    world.converge();
    assert_eq!((paths(&world, 0).len(), world.nodes[1].blocked.len()), (2, 0));
}

#[test]
fn more_members_than_a_row_has_room_for_keep_all_their_files_of_one_name() {
    const N: usize = 66;
    let kins = vec![KIN; N];
    let mut world = World::new(1, &kins);
    (world.deaf, world.frail) = (0, 0);
    // All of them with two.
    for a in 2..N {
        for b in 2..a {
            world.at(ms(0), Step::Cut(a, b));
        }
    }
    for node in 0..N {
        world.at(ms(1), Step::Edit(node, "config", 100 + node as u64));
        world.at(ms(1), Step::Edit(node, "alike", 50));
        world.at(ms(2), Step::Start(node));
    }
    world.run(ms(60_000));
    nobody_is_blamed(&world);
    let tree = world.nodes[0].fs.tree();
    for (i, node) in world.nodes.iter().enumerate() {
        assert_eq!(node.fs.tree().len(), tree.len(), "{i}");
    }
    let sizes: std::collections::BTreeSet<u64> = world.nodes[N - 1].fs.files().map(|(_, c)| c.size).collect();
    assert_eq!(sizes.range(100..100 + N as u64).count(), N, "nobody's is lost");
}

fn filled(world: &mut World, files: u64) {
    for i in 0..files {
        world.edit(0, format!("file {i}").as_bytes(), 10 + i);
    }
    world.converge();
}

#[test]
fn the_guard_holds_however_long_a_deletion_takes() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 400);
    for i in 0..400 {
        world.delete(0, format!("file {i}").as_bytes());
        world.run(ms(250));
        if i == 200 {
            // A start in the middle begins nothing anew.
            does(&mut world, [Step::Crash(0), Step::Start(0)]);
        }
    }
    world.run(ms(60_000));
    assert!(paths(&world, 1).len() >= 300, "{} are left", paths(&world, 1).len());
    assert!(world.nodes[0].guards > 0);
    does(&mut world, [Step::Confirm(0, Confirm::Restore)]);
    world.run(ms(60_000));
    assert_eq!(
        (paths(&world, 0).len(), paths(&world, 1).len()),
        (paths(&world, 1).len(), paths(&world, 1).len())
    );
}

#[test]
fn who_confirms_a_deletion_confirms_what_was_shown() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 200);
    (0..60).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(10_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 200));
    // More goes just before the answer comes.
    (60..140).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(1000));
    does(&mut world, [Step::Confirm(0, Confirm::Delete)]);
    world.run(ms(30_000));
    assert_eq!(paths(&world, 1).len(), 200);
    assert!(world.nodes[0].guards > 1);
    does(&mut world, [Step::Confirm(0, Confirm::Delete)]);
    world.run(ms(30_000));
    assert_eq!(paths(&world, 1).len(), 60);
}

/// People were asked: what has nothing to do with what is gone answers nothing.
#[test]
fn a_question_of_the_guard_is_answered_by_what_is_gone_alone() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 1000);
    let content = |world: &World, i: usize| match world.nodes[1].fs.get(format!("file {i}").as_bytes()) {
        Some(node) => match node.kind {
            Kind::File(content) => content,
            _ => panic!("a file"),
        },
        None => panic!("there"),
    };
    (0..400).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(30_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 1000));
    (0..200).for_each(|i| world.edit(0, format!("new {i}").as_bytes(), 5000 + i));
    world.run(ms(60_000));
    let guarded = |world: &World| world.nodes[0].replica.as_deref().map(|r| r.is_guarded());
    assert_eq!(guarded(&world), Some(true));
    assert!((0..400).all(|i| world.nodes[1].fs.get(format!("file {i}").as_bytes()).is_some()));
    // They were moved, which takes its time.
    for i in 0..350 {
        let content = content(&world, i);
        world.write(0, format!("moved {i}").as_bytes(), content);
    }
    world.run(ms(60_000));
    assert_eq!(guarded(&world), Some(false));
    world.converge();
    assert_eq!(paths(&world, 1).len(), 600 + 200 + 350);
}

/// Something went a moment ago, much came, and then much goes that was there before.
#[test]
fn what_came_stands_for_nothing_that_goes_later() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 400);
    world.edit(0, b"temp", 5);
    world.run(ms(5000));
    world.delete(0, b"temp");
    world.run(ms(30_000));
    (0..300).for_each(|i| world.edit(0, format!("new {i}").as_bytes(), 5000 + i));
    world.run(ms(20_000));
    (0..300).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(60_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 700));
}

/// What was moved counts once, in whatever order it is told: here a folder is gone for good while another one is renamed.
#[test]
fn what_is_moved_stands_for_nothing_else() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 1000);
    let content = |world: &World, i: usize| match world.nodes[0].fs.get(format!("file {i}").as_bytes()) {
        Some(node) => match node.kind {
            Kind::File(content) => content,
            _ => panic!("a file"),
        },
        None => panic!("there"),
    };
    (0..300).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(1000));
    for i in 300..600 {
        let content = content(&world, i);
        world.write(0, format!("moved {i}").as_bytes(), content);
    }
    world.run(ms(1000));
    (300..600).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(60_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 1000));
}

/// Folders, and files with nothing in them, are known by their names when they come elsewhere.
#[test]
fn a_moved_tree_answers_the_question_of_the_guard() {
    let mut world = quiet(&[KIN; 2]);
    world.folder(0, b"old");
    for i in 0..100 {
        world.folder(0, format!("old/d{i}").as_bytes());
        world.edit(0, format!("old/d{i}/f").as_bytes(), 10 + i);
        world.edit(0, format!("old/d{i}/empty {i}").as_bytes(), 0);
    }
    world.converge();
    let files: Vec<(Vec<u8>, Content)> = world.nodes[0].fs.files().map(|(p, c)| (p.to_vec(), c)).collect();
    world.delete(0, b"old");
    world.run(ms(30_000));
    let guarded = |world: &World| world.nodes[0].replica.as_deref().map(|r| r.is_guarded());
    assert_eq!((guarded(&world), paths(&world, 1).len()), (Some(true), 301));
    world.folder(0, b"new");
    (0..100).for_each(|i| world.folder(0, format!("new/d{i}").as_bytes()));
    for (path, content) in files {
        world.write(0, &[b"new", &path[3..]].concat(), content);
    }
    world.run(ms(60_000));
    assert_eq!(guarded(&world), Some(false));
    world.converge();
    assert_eq!(paths(&world, 1).len(), 301);
}

/// Where much is written all day, and temporary files go, the guard is there for all of it.
#[test]
fn a_folder_that_grows_is_guarded_as_it_is() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 60);
    for i in 0..200 {
        world.edit(0, format!("data {i}").as_bytes(), 1000 + i);
        world.edit(0, format!("temp {i}").as_bytes(), 2000 + i);
        world.run(ms(3000));
        world.delete(0, format!("temp {i}").as_bytes());
    }
    world.run(ms(20_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (0, 260));
    (0..200).for_each(|i| world.delete(0, format!("data {i}").as_bytes()));
    (0..60).for_each(|i| world.delete(0, format!("file {i}").as_bytes()));
    world.run(ms(60_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 260));
}

/// Who has what a silent member promised is asked for it, whatever else it tells in the same breath.
#[test]
fn a_transfer_is_not_left_to_who_promised_first() {
    let mut world = silent(&[KIN, KIN, TURNED]);
    does(&mut world, [Step::Cut(0, 1), Step::Edit(1, "b", 3000)]);
    world.run(ms(5000));
    let root = match world.nodes[1].fs.get(b"b").expect("written").kind {
        Kind::File(content) => content.root(),
        _ => panic!("a file"),
    };
    let (key, agent) = (world.nodes[2].key, world.nodes[2].agent);
    let statement = |incarnation, value| {
        let dot = Dot { replica: replica_id(RUN, agent, incarnation), counter: 1 };
        own_statement(&key, dot.replica, b"a", vec![dot], 1, value)
    };
    let file = statement(1, Value::File { size: 3000, root, meta: Vec::new() });
    let loser = statement(2, Value::Deleted);
    let head = |incarnation| own_head(&key, incarnation, 1, vec![FIRST]);
    let of = |statements| IndexEntry { path: b"a".to_vec(), statements, holds: Some(0) };
    tells(&mut world, 2, 0, vec![head(1)], vec![of(vec![file.clone()])]);
    tells(&mut world, 2, 1, vec![head(1), head(2)], vec![of(vec![file, loser])]);
    world.run(ms(20_000));
    let has = |world: &World, node: usize| world.nodes[node].fs.get(b"a").is_some();
    assert_eq!((has(&world, 0), has(&world, 1)), (false, true));
    does(&mut world, [Step::Mend(0, 1)]);
    world.run(ms(60_000));
    assert!(has(&world, 0));
}

/// A root says nothing of a size: a member that names somebody's content with another one parts no honest ones.
#[test]
fn a_content_under_a_wrong_size_parts_nobody() {
    for size in [BLOCK + 4000, BLOCK * 5, 1 << 41] {
        let mut world = silent(&[KIN, Kin { selective: true, ..KIN }, TURNED]);
        does(&mut world, [Step::Folder(0, "d1"), Step::Edit(0, "d1/b", BLOCK + 3000)]);
        world.run(ms(10_000));
        let root = match world.nodes[0].fs.get(b"d1/b").expect("written").kind {
            Kind::File(content) => content.root(),
            _ => panic!("a file"),
        };
        let (key, agent) = (world.nodes[2].key, world.nodes[2].agent);
        for (n, path) in [b"p", b"q", b"r", b"s"].into_iter().enumerate() {
            let dot = Dot { replica: replica_id(RUN, agent, 1), counter: n as u64 + 1 };
            let value = Value::File { size, root, meta: Vec::new() };
            let said = own_statement(&key, dot.replica, path, vec![dot], 1, value);
            let (after, up_to) = (n as u64, n as u64 + 1);
            let (heads, entries) = (vec![own_head(&key, 1, 4, vec![FIRST])], vec![entry(path, said)]);
            for to in [0, 1] {
                let (heads, entries) = (heads.clone(), entries.clone());
                let piece = Index { epoch: 1, life: 1, after, up_to, heads, entries, summary: None };
                world.send(2, to, piece.into());
            }
            world.run(ms(1000));
        }
        world.run(ms(120_000));
        assert!(world.nodes[1].fs.get(b"p").is_none(), "nobody has it");
        for (of, by) in [(0, 1), (1, 0)] {
            let agent = world.nodes[of].agent;
            let blamed = &world.nodes[by].misbehaved;
            assert!(blamed.iter().all(|(who, _)| *who != agent), "{size}: {by} blames {of}: {blamed:?}");
        }
    }
}

#[test]
fn things_that_come_and_go_all_day_are_no_mass_deletion() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 60);
    for i in 0..200 {
        world.edit(0, format!("temp {i}").as_bytes(), 1000 + i);
        world.run(ms(3000));
        world.delete(0, format!("temp {i}").as_bytes());
    }
    let seen = world.converge();
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len(), seen.conflicts), (0, 60, 0));
}

#[test]
fn who_removes_what_others_bring_empties_nothing() {
    let mut world = quiet(&[KIN; 2]);
    filled(&mut world, 4);
    for i in 0..150 {
        world.edit(1, format!("job {i}").as_bytes(), 1000 + i);
        world.run(ms(4000));
        world.delete(0, format!("job {i}").as_bytes());
    }
    world.converge();
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (0, 4));
    // What goes at once is asked about as ever, though more came since the first deletion.
    (0..100).for_each(|i| world.edit(1, format!("kept {i}").as_bytes(), 2000 + i));
    world.run(ms(20_000));
    world.delete(0, b"file 0");
    world.run(ms(5000));
    (0..24).for_each(|i| world.delete(0, format!("kept {i}").as_bytes()));
    world.run(ms(20_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (0, 79), "less than a quarter, less than 40");
    (24..70).for_each(|i| world.delete(0, format!("kept {i}").as_bytes()));
    world.run(ms(20_000));
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (1, 79));
}

#[test]
fn a_guard_of_a_hundred_percent_never_asks() {
    let mut world = quiet(&[KIN; 2]);
    world.guard_percent = 100;
    does(&mut world, [Step::Crash(0), Step::Start(0)]);
    for round in 0..3 {
        // More in all than there was at the first of them.
        (0..60).for_each(|i| world.edit(1, format!("{round} {i}").as_bytes(), 10 + i));
        world.run(ms(20_000));
        (0..60).for_each(|i| world.delete(0, format!("{round} {i}").as_bytes()));
        world.run(ms(20_000));
    }
    world.converge();
    assert_eq!((world.nodes[0].guards, paths(&world, 1).len()), (0, 0));
}

#[test]
fn a_folder_that_outlives_its_deletion_has_one_mode() {
    // Whoever hears of what is in it first makes it again; some have it still, with what its owner set.
    for order in [[(0, 1), (1, 2), (0, 2)], [(1, 2), (0, 1), (0, 2)], [(0, 2), (1, 2), (0, 1)]] {
        let mut world = quiet(&[KIN; 3]);
        does(&mut world, [Step::Folder(0, "d"), Step::Mode(0, "d", 7), Step::Folder(0, "d/e")]);
        world.converge();
        does(&mut world, [Step::Cut(0, 2), Step::Cut(1, 2)]);
        does(&mut world, [Step::Delete(0, "d"), Step::Folder(2, "d/e/f")]);
        world.run(ms(20_000));
        does(&mut world, [Step::Cut(0, 1), Step::Edit(2, "d/e/f/a", 3)]);
        for (a, b) in order {
            does(&mut world, [Step::Mend(a, b)]);
            world.run(ms(20_000));
        }
        world.converge();
        // What somebody sets afterwards is told as ever.
        does(&mut world, [Step::Mode(1, "d/e", 8)]);
        world.converge();
        assert!((0..3).all(|n| world.nodes[n].fs.modes()[&b"d/e"[..]] == 8));
    }
}

#[test]
fn two_statements_under_one_number_leave_one_tree() {
    // With and without what the first stands on, in each order, of the greater and the lesser.
    for (one, other, stands) in [(1, 2, true), (2, 1, true), (1, 2, false), (2, 1, false)] {
        let mut world = silent(&[KIN, KIN, KIN, TURNED]);
        does(&mut world, [Step::Folder(0, "a")]);
        world.converge();
        does(&mut world, apart(3));
        let key = world.nodes[3].key;
        let replica = replica_id(RUN, world.nodes[3].agent, 1);
        let dot = Dot { replica, counter: 9 };
        let known = world.nodes[0].index.live.rows[&b"a"[..]].statements[0].clone();
        let mut say = |to: usize, kind: u8, stands: bool| {
            let mut version = vec![dot];
            let mut depth = 1;
            if stands {
                version.extend(known.version.clone());
                depth = known.depth + 1;
            }
            let value = match kind {
                1 => Value::Link { target: b"one".to_vec(), meta: Vec::new() },
                _ => Value::Link { target: b"two".to_vec(), meta: Vec::new() },
            };
            let said = own_statement(&key, replica, b"a", version, depth, value);
            tells(&mut world, 3, to, vec![own_head(&key, 1, 9, vec![FIRST])], vec![entry(b"a", said)]);
        };
        say(0, one, true);
        say(1, other, stands);
        // They hear of each other through the third one alone.
        does(&mut world, [Step::Mend(0, 2), Step::Mend(1, 2)]);
        world.run(ms(20_000));
        let trees = [0, 1, 2].map(|node| world.nodes[node].fs.tree());
        assert!(trees[0] == trees[1] && trees[1] == trees[2], "{trees:?}");
        let known = |node: usize| &world.nodes[node].index.live.rows[&b"a"[..]].statements;
        assert!(known(0) == known(1) && known(1) == known(2), "{:?}", known(2));
        world.converge();
        nobody_is_blamed(&world);
    }
}

#[test]
fn a_version_that_leaves_out_what_it_stands_on_leaves_one_tree() {
    let mut world = silent(&[KIN, KIN, KIN, TURNED]);
    does(&mut world, apart(3));
    does(&mut world, [Step::Folder(1, "a")]);
    world.run(ms(3000));
    let key = world.nodes[3].key;
    let replica = replica_id(RUN, world.nodes[3].agent, 1);
    let known = world.nodes[1].index.live.rows[&b"a"[..]].statements[0].clone();
    let link = |to: &[u8]| Value::Link { target: to.to_vec(), meta: Vec::new() };
    // On top of the folder; and on top of that, without the folder.
    let first = vec![Dot { replica, counter: 1 }, known.version[0]];
    let first = own_statement(&key, replica, b"a", first, known.depth + 1, link(b"one"));
    let second = vec![Dot { replica, counter: 2 }];
    let mut later = own_statement(&key, replica, b"a", second, 2, link(b"two"));
    if later.depth <= first.depth {
        later = own_statement(
            &key,
            replica,
            b"a",
            vec![Dot { replica, counter: 4 }],
            first.depth + 1,
            link(b"two"),
        );
    }
    let heads = || vec![own_head(&key, 1, 4, vec![FIRST])];
    // One hears the first on top of the folder; the other the last, beside it.
    does(&mut world, [Step::Mend(0, 1)]);
    world.run(ms(3000));
    does(&mut world, [Step::Cut(0, 1)]);
    tells(&mut world, 3, 0, heads(), vec![entry(b"a", first)]);
    tells(&mut world, 3, 1, heads(), vec![entry(b"a", later)]);
    world.run(ms(3000));
    let count = |world: &World, node: usize| world.nodes[node].index.live.rows[&b"a"[..]].statements.len();
    assert_eq!((count(&world, 0), count(&world, 1)), (1, 2));
    does(&mut world, [Step::Mend(0, 1)]);
    world.run(ms(20_000));
    let known = |node: usize| &world.nodes[node].index.live.rows[&b"a"[..]].statements;
    assert!(known(0) == known(1), "{:?} {:?}", known(0), known(1));
    assert_eq!(world.nodes[0].fs.tree(), world.nodes[1].fs.tree());
    world.converge();
    nobody_is_blamed(&world);
}

#[test]
fn a_newcomer_hears_from_a_reader_what_the_reader_can_vouch_for() {
    let mut world = World::new(1, &[KIN, READER, KIN, KIN]);
    (world.deaf, world.frail) = (0, 0);
    (0..3).for_each(|node| world.at(ms(0), Step::Start(node)));
    world.run(ms(3000));
    does(&mut world, [Step::Edit(0, "a", 3), Step::Edit(2, "b", 4)]);
    world.run(ms(10_000));
    does(&mut world, [Step::Crash(2), Step::Cut(1, 3), Step::Cut(0, 3), Step::Cut(2, 3), Step::Start(3)]);
    world.remove_member(2);
    does(&mut world, [Step::Edit(0, "c", 5), Step::Mend(1, 3)]);
    world.run(ms(20_000));
    assert_eq!(paths(&world, 3), ["a", "c"], "not what nobody can say when it was made");
    nobody_is_blamed(&world);
    does(&mut world, [Step::Mend(0, 3)]);
    world.run(ms(20_000));
    assert_eq!(paths(&world, 3), ["a", "b", "c"]);
}

#[test]
fn what_is_asked_elsewhere_is_cancelled_and_what_is_not_told_is_not_served() {
    let mut world = silent(&[KIN, TURNED, Kin { local: LocalChanges::KeepAside, ..READER }]);
    let key = world.nodes[1].key;
    let replica = replica_id(RUN, world.nodes[1].agent, 1);
    let content = world.new_content(5 * BLOCK);
    let value = Value::File { size: content.size, root: content.root(), meta: vec![0; 8] };
    let said = own_statement(&key, replica, b"x", vec![Dot { replica, counter: 1 }], 1, value);
    let told = IndexEntry { holds: Some(0), ..entry(b"x", said) };
    tells(&mut world, 1, 0, vec![own_head(&key, 1, 1, vec![FIRST])], vec![told]);
    world.run(ms(20_000));
    let heard = &world.nodes[1].hostile.heard;
    assert!(heard.iter().any(|m| matches!(m, SyncMessage::GetHashes(_))), "{heard:?}");
    assert!(heard.iter().any(|m| matches!(m, SyncMessage::Cancel(_))), "{heard:?}");
    // A reader's own file, asked for by somebody who knows what is in it.
    does(&mut world, [Step::Edit(2, "own", 3 * BLOCK)]);
    world.run(ms(3000));
    let root = world.nodes[2].fs.files().next().expect("its own").1.root();
    let ask = GetHashes { transfer: 7, path: b"own".to_vec(), root, page: Some(0) };
    world.send(1, 2, ask.into());
    let file = FileRequest { transfer: 8, path: b"y".to_vec(), root, ranges: vec![(0, 1)] };
    world.send(1, 2, Request { files: vec![file] }.into());
    world.run(ms(3000));
    let heard = &world.nodes[1].hostile.heard;
    let refused = heard.iter().filter(|m| matches!(m, SyncMessage::Unavailable(_))).count();
    assert_eq!(refused, 2, "{heard:?}");
}

/// The same of the very path under which both have the content.
#[test]
fn a_content_under_a_wrong_size_at_its_own_path_parts_nobody() {
    let mut world = silent(&[KIN, KIN, TURNED]);
    does(&mut world, [Step::Edit(0, "a", 3 * BLOCK - 100)]);
    world.run(ms(20_000));
    assert_eq!(paths(&world, 1), ["a"]);
    let content = world.nodes[0].fs.files().next().expect("there").1;
    let theirs = world.nodes[0].index.live.rows[&b"a"[..]].statements[0].version[0];
    let key = world.nodes[2].key;
    let replica = replica_id(RUN, world.nodes[2].agent, 1);
    let value = Value::File { size: content.size + BLOCK, root: content.root(), meta: vec![0; 8] };
    let said = own_statement(&key, replica, b"a", vec![theirs, Dot { replica, counter: 1 }], 2, value);
    tells(&mut world, 2, 1, vec![own_head(&key, 1, 1, vec![FIRST])], vec![entry(b"a", said)]);
    world.run(ms(60_000));
    does(&mut world, [Step::Edit(0, "b", 2 * BLOCK)]);
    world.run(ms(60_000));
    nobody_is_blamed(&world);
    assert!(paths(&world, 1).contains(&"b".to_owned()), "{:?}", paths(&world, 1));
}

/// Who makes weak hashes of a large file answers other questions meanwhile, whatever the order in which they came.
#[test]
fn weak_hashes_hold_up_no_others() {
    let mut world = silent(&[KIN, TURNED]);
    does(&mut world, [Step::Edit(0, "a", 3 * BLOCK), Step::Edit(0, "b", 4 * BLOCK)]);
    world.run(ms(3000));
    world.weak_takes = 8000;
    let roots: Vec<_> = world.nodes[0].fs.files().map(|(_, content)| content.root()).collect();
    let ask = |transfer, path: &[u8], root, page| GetHashes {
        transfer,
        path: path.to_vec(),
        root,
        page: Some(page),
    };
    let asked = [
        ask(1, b"a", roots[0], WEAK_PAGE),
        ask(2, b"b", roots[1], WEAK_PAGE),
        ask(3, b"a", roots[0], 0),
        ask(4, b"b", roots[1], 0),
    ];
    for ask in asked {
        world.send(1, 0, ask.into());
    }
    world.run(ms(1000));
    let heard = &world.nodes[1].hostile.heard;
    let answered =
        |transfer| heard.iter().any(|m| matches!(m, SyncMessage::Hashes(h) if h.transfer == transfer));
    assert!(answered(3) && answered(4), "{heard:?}");
}

/// A member that has a file gives a block before each moment at which it would be given up, while another one that has it too
/// has nothing to do.
#[test]
fn who_gives_a_block_now_and_then_keeps_nobody_waiting() {
    // Whichever of the two has the lower id.
    (1..=8).for_each(a_block_now_and_then);
}

fn a_block_now_and_then(seed: u64) {
    let mut world = silent_of(seed, &[KIN, KIN, TURNED]);
    does(&mut world, [Step::Cut(0, 1)]);
    does(&mut world, [Step::Edit(0, "a", 300 * BLOCK)]);
    world.run(ms(3000));
    let content = world.nodes[0].fs.files().next().expect("there").1;
    let said = world.nodes[0].index.live.rows[&b"a"[..]].statements[0].clone();
    let heads = world.nodes[2].hostile.heads.clone();
    tells(&mut world, 2, 1, heads, vec![IndexEntry { holds: Some(0), ..entry(b"a", said) }]);
    world.run(ms(3000));
    let asked = world.nodes[2].hostile.heard.iter().find_map(|m| match m {
        SyncMessage::GetHashes(ask) => Some(ask.transfer),
        _ => None,
    });
    let transfer = asked.expect("it says that it has it");
    world.send(2, 1, Hashes { transfer, page: Some(0), hashes: content.hashes() }.into());
    world.run(ms(3000));
    does(&mut world, [Step::Mend(0, 1)]);
    let began = world.now;
    for block in 0.. {
        world.gives(2, 1, transfer, block, content.block_hash(block));
        world.run(ms(7900));
        if paths(&world, 1) == ["a"] {
            break;
        }
        assert!(world.now - began < ms(60_000), "{block} blocks");
    }
    nobody_is_blamed(&world);
}
