//! The forms of the state, pinned: what stands on a log as attested has to be recomputable by every later program.
//!
//! `tests/golden/form-N.txt` has the hash of the empty state and after each of the event schema's golden events, one
//! record each, in the order of their numbers. Form 2 goes through those of version 2 as well, whose texts are sealed, and form 3
//! through those of level 3, form 4 through those of level 4, form 5 through those of level 5. `GOLDEN_WRITE=1` writes a file that is missing and never touches one
//! that is there.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use control_core::form::{self, Checked};
use control_core::projection::{DisposalView, Views};
use event_schema::*;
use support::*;

/// The events whose hashes are pinned: all that there were when form 1 was made. A later event is pinned with a later
/// form, so that this list, and the files, stay.
const EVENTS_OF_FORM_1: [u16; 27] = [
    1, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 30, 31, 32, 40, 41, 50, 51, 52, 53, 54, 55, 60, 61, 70, 80, 81,
];

/// The last event that there was when form 2 was made.
const LAST_EVENT_OF_FORM_2: u16 = 101;

/// Golden events that came with level 3, all of which there were when form 3 was made.
const EVENTS_OF_FORM_3: usize = 6;

/// Golden events that came with level 4, all of which there were when form 4 was made.
const EVENTS_OF_FORM_4: usize = 13;

/// Golden events that came with level 5, all of which there were when form 5 was made.
const EVENTS_OF_FORM_5: usize = 16;

/// Golden events of a version by number, through the reader that upcasts them.
fn golden_events(version: u8) -> Vec<Event> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../events/event-schema/tests/golden/v{version}"));
    let mut events: Vec<Event> = fs::read_dir(folder)
        .expect("the folder")
        .map(|file| file.expect("a file").path())
        .filter(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with("event-") && name.ends_with(".bin")
        })
        .map(|path| Event::decode(&fs::read(path).expect("readable")).expect("an event"))
        .collect();
    // Those of one kind in the order of their bytes, or folders that are read in another order would give other hashes.
    events.sort_by_key(|event| (event.kind(), event.encode()));
    events
}

fn record(n: u64, event: Event) -> Record {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    Record {
        id: RecordId(id),
        stream: "test".into(),
        time: Timestamp(NOW.0 + n),
        actor: Actor::Service,
        causation: None,
        correlation: RecordId(id),
        events: vec![event],
    }
}

#[test]
fn hashes_on_the_log_stay_recomputable() {
    for number in 1..=form::NEWEST {
        let mut lines = Vec::new();
        let mut views = Views::default();
        let hex = |views: &Views| -> String {
            let hash = form::hash(number, views).expect("a known form");
            hash.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        lines.push(format!("{}  (nothing)", hex(&views)));
        let mut kinds = golden_events(1);
        match number {
            1 => {
                kinds.retain(|event| EVENTS_OF_FORM_1.contains(&event.kind()));
                assert_eq!(kinds.len(), EVENTS_OF_FORM_1.len());
            }
            _ => {
                kinds.retain(|event| event.kind() <= LAST_EVENT_OF_FORM_2);
                let sealed: Vec<Event> = golden_events(2);
                assert_eq!((kinds.len(), sealed.len()), (34, 9));
                // A subject is erased after its texts came.
                let erased = kinds.pop().expect("the last one");
                kinds.extend(sealed);
                if number >= 3 {
                    let consolidations = golden_events(3);
                    assert_eq!(consolidations.len(), EVENTS_OF_FORM_3);
                    kinds.extend(consolidations);
                }
                if number >= 4 {
                    let synchronizations = golden_events(4);
                    assert_eq!(synchronizations.len(), EVENTS_OF_FORM_4);
                    kinds.extend(synchronizations);
                }
                if number >= 5 {
                    let backups = golden_events(5);
                    assert_eq!(backups.len(), EVENTS_OF_FORM_5);
                    kinds.extend(backups);
                }
                kinds.push(erased);
            }
        }
        // Once more in the other order, so that what one event took away another gives back.
        let there_and_back: Vec<Event> = kinds.iter().chain(kinds.iter().rev()).cloned().collect();
        for (n, event) in (1..).zip(there_and_back) {
            let name = event.name();
            views.apply(n, &record(n, event));
            lines.push(format!("{}  {n} {name}", hex(&views)));
        }
        let text = lines.join("\n") + "\n";
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/form-{number}.txt"));
        if std::env::var_os("GOLDEN_WRITE").is_some() && !path.exists() {
            fs::write(&path, &text).expect("written");
        }
        let pinned = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for (pinned, now) in pinned.lines().zip(text.lines()) {
            assert_eq!(now, pinned, "form {number} gives another hash than it used to");
        }
        assert_eq!(pinned, text);
    }
    assert!(form::hash(0, &Views::default()).is_none() && form::hash(255, &Views::default()).is_none());
}

/// Every part of the state is in the hash: no two states on the way of a whole run have the same.
#[test]
fn states_that_differ_have_other_hashes() {
    let mut world = World::with_run(3);
    world.happen(vec![SchemaRaised { level: 5 }.into()]);
    let mut seen = BTreeSet::new();
    let mut views = Views::default();
    for (n, record) in (1..).zip(&world.records) {
        views.apply(n, record);
        assert!(seen.insert(views.hash()), "after {n}");
    }
    let mut change = |change: &dyn Fn(&mut Views)| {
        let mut other = views.clone();
        change(&mut other);
        assert!(seen.insert(other.hash()), "a change that the hash does not show");
    };
    change(&|v| v.fleet.root_key = None);
    change(&|v| v.fleet.ca_fingerprint = Some([9; 32]));
    change(&|v| v.fleet.enrolments_refused += 1);
    for n in 0..9 {
        change(&move |v| {
            let agent = v.fleet.agents.values_mut().next().expect("an agent");
            match n {
                0 => agent.name = "x".into(),
                1 => agent.public_key[31] ^= 1,
                2 => agent.online = !agent.online,
                3 => agent.tags = vec![("A".into(), "b".into())].into(),
                4 => agent.version.push('x'),
                5 => agent.addresses = vec!["x".into()].into(),
                6 => agent.enrolled.0 += 1,
                7 => agent.last_seen.0 += 1,
                _ => agent.reports_stored += 1,
            }
        });
    }
    for n in 0..13 {
        change(&move |v| {
            let run = v.runs.runs.values_mut().next().expect("a run");
            match n {
                0 => run.job_name = "x".into(),
                1 => run.finished = Some(Timestamp(1)),
                2 => run.outcome = Some(Outcome::Stopped),
                3 => run.stop_reason = Some(String::new()),
                4 => run.history.push(7),
                5 => run.started.0 += 1,
                8 => run.batch = Some(BatchId([1; 16])),
                9 => run.after = Disposal::Archive { days: 7 },
                10 => {
                    let (time, disposed) = (Timestamp(1), Disposed { gone: 1, ..Disposed::default() });
                    run.disposal = Some(DisposalView { time, disposed, refused: None });
                }
                11 => run.options = RunOptions { hook: Some("x".into()), ..RunOptions::default() }.into(),
                12 => run.purpose = Purpose::Version { name: "x".into() },
                6 => run.agents.values_mut().next().expect("a part").problems += 1,
                _ => run.agents.values_mut().next().expect("a part").path = 9,
            }
        });
    }
    change(&|v| drop(v.mailboxes.agents.pop_first()));
    change(&|v| drop(v.jobs.jobs.pop_first()));
}

#[test]
fn a_fold_checks_what_was_attested() {
    let mut world = World::with_agents(2);
    let attest = |world: &mut World, change: &dyn Fn(&mut StateAttested)| {
        let at = world.views.position();
        let mut attested = StateAttested { at, form: form::newest(&world.views), hash: world.views.hash() };
        change(&mut attested);
        world.happen(vec![attested.into()]);
    };
    attest(&mut world, &|_| {});
    world.connect(1);
    // Of a newer form: not ours to judge.
    attest(&mut world, &|attested| (attested.form, attested.hash) = (200, [0; 32]));
    attest(&mut world, &|_| {});
    let fold = |world: &World| {
        let mut fold = Checked::default();
        let mut first = None;
        for (n, record) in (1..).zip(&world.records) {
            if let Err(differs) = fold.apply(n, record) {
                first.get_or_insert(differs);
            }
        }
        assert_eq!(fold.views().hash(), world.views.hash());
        (fold.checked, fold.unknown, first)
    };
    assert_eq!(fold(&world), (2, 1, None));
    let bad = world.views.position() + 1;
    attest(&mut world, &|attested| attested.hash[7] ^= 1);
    let (checked, _, first) = fold(&world);
    let first = first.expect("it differs");
    assert_eq!((checked, first.position, first.attested.at), (2, bad, bad - 1));
    assert!(first.to_string().contains(&format!("entry {bad} ")), "{first}");
    // Right hash, wrong place.
    attest(&mut world, &|attested| attested.at -= 1);
    assert_eq!(fold(&world).0, 2);
}
