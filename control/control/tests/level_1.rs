//! A log of schema level 1, written by the release before level 2 and stored with this test: a service of today opens
//! it, goes on at the newest level, and whoever folds both halves comes to the states that were attested in either.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control::service::{Options, Origin, Service};
use control_core::form::{self, Checked};
use control_core::projection::Views;
use control_core::{agent, group, job, run};
use event_log::file::{FileLog, FileLogOptions};
use event_log::{EventLog as _, Position, ReadLimit};
use event_schema::*;
use support::*;

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/level-1/log")
}

/// A copy of it, as a service would find it.
fn copied(to: &Path) -> PathBuf {
    let folder = to.join("log");
    std::fs::create_dir(&folder).expect("made");
    for file in std::fs::read_dir(fixture()).expect("stored") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), folder.join(file.file_name())).expect("copied");
    }
    folder
}

async fn records(folder: &Path) -> Vec<Vec<u8>> {
    let log =
        FileLog::open(folder, FileLogOptions { read_only: true, ..Default::default() }).await.expect("opens");
    let mut records = Vec::new();
    loop {
        let page =
            log.read(Position(records.len() as u64 + 1), ReadLimit::default()).await.expect("readable");
        if page.is_empty() {
            return records;
        }
        records.extend(page.into_iter().map(|entry| entry.bytes));
    }
}

/// Folds records and holds every attestation against the fold; the forms they are in, by position.
fn attested(records: &[Vec<u8>]) -> BTreeMap<u64, StateAttested> {
    let (mut fold, mut attested) = (Checked::default(), BTreeMap::new());
    for (position, bytes) in (1..).zip(records) {
        let record = Record::decode(bytes).expect("readable");
        fold.apply(position, &record).unwrap_or_else(|differs| panic!("{differs}"));
        for event in record.events {
            if let Event::StateAttested(e) = event {
                attested.insert(e.at, e);
            }
        }
    }
    assert_eq!((fold.checked, fold.unknown), (attested.len() as u64, 0), "all of them could be checked");
    attested
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_level_1_goes_on_at_the_newest_level_and_every_state_is_as_attested() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = copied(dir.path());
    let old = records(&folder).await;
    let before = attested(&old);
    assert!(before.len() > 30 && before.values().all(|e| e.form == 1), "{}", before.len());
    for bytes in &old {
        let record = Record::decode_up_to(1, bytes).expect("of level 1");
        assert_eq!(record.encode_at(1), *bytes, "the old shape is written as it was");
    }

    let log = Arc::new(FileLog::open(&folder, FileLogOptions::default()).await.expect("opens"));
    let keys_of = sealed_in(dir.path());
    let options = Options { attest_every: 4, subject_keys: Some(keys_of), ..Options::default() };
    let (service, writer) = Service::open(log, keys(), options).await.expect("opens");
    assert_eq!(service.metrics().attestations_differing.value(), 0);
    // What the live service has told, beside what it attests.
    let mut told: BTreeMap<u64, [u8; 32]> = BTreeMap::new();
    let tell = |service: &Service, told: &mut BTreeMap<u64, [u8; 32]>| {
        let views = service.views();
        told.insert(views.position(), views.hash());
    };
    tell(&service, &mut told);
    for life in 3..6 {
        live(&service, life).await;
        tell(&service, &mut told);
    }
    close(service, writer).await;

    let all = records(&folder).await;
    assert_eq!(all[..old.len()], old, "nothing of before was touched");
    let both = attested(&all);
    let after: Vec<&StateAttested> = both.values().filter(|e| e.at > old.len() as u64).collect();
    assert!(
        after.len() >= 10 && after.iter().all(|e| e.form == control_core::form::NEWEST),
        "{}",
        after.len()
    );
    // Fifty places on each side, in no order, each from the beginning.
    let mut seed = 0x5eed_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let sides: [Vec<&StateAttested>; 2] = [before.values().collect(), after];
    for side in &sides {
        for _ in 0..50 {
            let e = side[random(side.len())];
            let views = fold_to(&all, e.at);
            assert_eq!(form::hash(e.form, &views), Some(e.hash), "at {}", e.at);
        }
    }
    for (at, hash) in told {
        assert_eq!(fold_to(&all, at).hash(), hash, "as told at {at}");
    }
    // The new half does not tell what the old one would have told, and an old program stops where it begins.
    let new = all[old.len()..].concat();
    for text in ["carla-3", "Carla 4", "anna", "bert", "fake", "127.0.0.1"] {
        let found = new.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        assert!(!found, "{text} stands in the clear");
    }
    let first_unread = all.iter().position(|bytes| Record::decode_up_to(1, bytes).is_err());
    assert_eq!(first_unread, Some(old.len()));
}

fn fold_to(records: &[Vec<u8>], at: u64) -> Views {
    let mut views = Views::default();
    for (position, bytes) in (1..=at).zip(records) {
        views.apply(position, &Record::decode(bytes).expect("readable"));
    }
    views
}

/// An older program in the place of the newer one: not after the first record of the new level.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_level_1_goes_on_at_level_1_and_stops_at_level_2() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = copied(dir.path());
    let old = records(&folder).await.len();
    let open = async |schema| {
        let log = Arc::new(FileLog::open(&folder, FileLogOptions::default()).await.expect("opens"));
        let subject_keys = Some(sealed_in(dir.path()));
        Service::open(log, keys(), Options { attest_every: 4, subject_keys, schema, ..Options::default() })
            .await
    };
    let (service, writer) = open(1).await.expect("opens");
    live(&service, 3).await;
    close(service, writer).await;
    let all = records(&folder).await;
    assert!(all.iter().all(|bytes| Record::decode_up_to(1, bytes).is_ok()), "older programs read all of it");
    assert!(all.len() > old + 20 && attested(&all).values().all(|e| e.form == 1));
    let (service, writer) = open(2).await.expect("opens");
    live(&service, 4).await;
    close(service, writer).await;
    let error = open(1).await.err().expect("it cannot read this").to_string();
    assert!(error.contains(&format!("position {} ", all.len() + 1)) && error.contains("newer"), "{error}");
}

async fn live(service: &Service, life: u8) {
    let (first, count) = (life * 4 + 1, 4);
    let token = create_token(service, 3).await;
    let mut agents = Vec::new();
    for n in first..first + count {
        let agent = FakeAgent::new(n);
        agent.enrol(service, (n % 4 != 0).then(|| token.clone())).await;
        if n % 4 == 0 {
            // A fifth use of the token is refused, and recorded with the address.
            FakeAgent::new(100 + n).enrol(service, Some(token.clone())).await;
            approve(service, agent.id).await;
        }
        agent.connect(service).await;
        agents.push(agent);
    }
    let ids: Vec<AgentId> = agents.iter().map(|agent| agent.id).collect();
    let group = GroupId([life + 1; 16]);
    let made = service.decide(Origin::operator("anna", format!("group/{group}")), move |state, _| {
        group::decide(state, group::Command::Create { group, name: format!("site {life}") })
    });
    made.await.expect("made");
    let members = ids[1..3].to_vec();
    let added = service.decide(Origin::operator("anna", format!("group/{group}")), move |state, _| {
        group::decide(state, group::Command::Add { group, agents: members.clone() })
    });
    added.await.expect("added");
    let tagged = ids[1];
    let set = service.decide(Origin::operator("bert", format!("agent/{tagged}")), move |state, _| {
        let tags = vec![("OWNER".to_owned(), format!("Carla {life}"))];
        agent::decide(state, agent::Command::Tag { agent: tagged, tags })
    });
    set.await.expect("tagged");
    let job = create_job(service, ids[0], &ids[1..]).await;
    for round in 0..2 {
        let run = start(service, job).await;
        for agent in &mut agents {
            agent.obey(service).await;
        }
        let manifest = ManifestSigned { run, root: [round + 1; 32], entries: 3, bytes: 90_000, blocks: 4 };
        agents[0].report(service, manifest).await.expect("taken");
        let problem = Problem {
            class: ProblemClass::PermissionDenied,
            path: format!("patients/carla-{life}-{round}.pdf").into_bytes(),
            detail: "cannot be read".into(),
        };
        agents[1].report(service, ProblemReported { run, problem }).await.expect("taken");
        if round == 0 {
            for agent in &mut agents[1..] {
                let stats = TransferStats { entries: 3, bytes_total: 90_000, ..TransferStats::default() };
                let state = RunAgentState::Done;
                agent.report(service, RunCompleted { run, state, stats }).await.expect("taken");
            }
        } else {
            let stopped = service.decide(Origin::operator("bert", format!("run/{run}")), move |state, _| {
                run::decide(state, run::Command::Stop { run, reason: "wrong folder".into() })
            });
            stopped.await.expect("stopped");
        }
        for agent in &mut agents {
            agent.obey(service).await;
        }
    }
    if life == 1 {
        let gone = ids[3];
        let removed = service.decide(Origin::operator("anna", format!("agent/{gone}")), move |state, _| {
            agent::decide(state, agent::Command::Remove { agent: gone })
        });
        removed.await.expect("removed");
        let deleted = service.decide(Origin::operator("anna", format!("job/{job}")), move |state, _| {
            job::decide(state, job::Command::Delete { job })
        });
        deleted.await.expect("deleted");
    }
}
