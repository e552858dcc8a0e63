//! The store against a list of everything it was told: over restarts, torn and damaged files, clocks that jump, and
//! limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_proto::link::Progress;
use event_schema::{AgentId, RunAgentState, RunId, Timestamp};

use super::{Keep, Rows, Store, Width};

const RUN: RunId = RunId([0x52; 16]);

/// A quarter of an hour begins here, and an hour, a day and ten days.
const START: u64 = 2_000 * 864_000;

fn agent(n: u32) -> AgentId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    AgentId(id)
}

fn progress(run: RunId, bytes_done: u64, bytes_sent: u64) -> Progress {
    Progress {
        run,
        state: RunAgentState::Transferring,
        blocks_done: 0,
        blocks_total: 0,
        bytes_done,
        bytes_total: u64::MAX,
        bytes_sent,
        peers: 3,
        entries: 0,
        connections: None,
        sync: None,
        standing: None,
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(seconds * 1000)
}

fn open(path: &Path, now: u64) -> Store {
    open_with(path, Keep::default(), now)
}

/// Its own thread takes it for this time all along: the tests say when it is later.
fn open_with(path: &Path, keep: Keep, now: u64) -> Store {
    Store::open_by(path, keep, move || at(now)).expect("opens")
}

fn sum(rows: &Rows) -> u64 {
    rows.values().flat_map(BTreeMap::values).map(|bucket| bucket.row.verified).sum()
}

fn files(path: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(path).expect("the folder").map(|file| file.expect("a file").path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    files
}

/// 1,000 bytes a second for `seconds`, one sample each second.
fn tell(store: &Store, n: u32, from: u64, seconds: u64) {
    for second in from..from + seconds {
        store.take(agent(n), &progress(RUN, (second - START) * 1000, (second - START) * 10), at(second));
        if second % 5 == 0 {
            store.write(at(second));
        }
    }
}

#[test]
fn every_width_amounts_to_what_was_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    tell(&store, 1, START, 2_000);
    tell(&store, 2, START + 100, 50);
    let all = (START, START + 10_000);
    for (step, buckets) in [(1, 2_000), (5, 400), (60, 34), (120, 17), (900, 3), (1_800, 2)] {
        let rows = store.rows(RUN, None, all, step);
        assert_eq!(rows[&agent(1)].len(), buckets, "{step}");
        // The first sample has nothing to be compared with.
        assert_eq!(sum(&rows), 1_999_000 + 49_000, "{step}");
        let first = rows[&agent(1)][&START];
        assert_eq!((first.seconds, first.row.start, first.row.peers), (step, START, 3));
        assert_eq!(rows[&agent(1)].values().map(|bucket| bucket.row.samples).sum::<u64>(), 2_000);
        let last = rows[&agent(1)].values().last().expect("a bucket").row;
        assert_eq!((last.bytes_done, last.bytes_sent), (1_999_000, 19_990));
        assert!(last.peak == 1_000 || step == 1 && last.peak <= 1_000, "{last:?}");
    }
    let part = store.rows(RUN, Some(&[agent(2)].into()), (START + 110, START + 120), 1);
    assert_eq!((part.len(), part[&agent(2)].len(), sum(&part)), (1, 10, 10_000));
    assert!(store.rows(RunId([1; 16]), None, all, 1).is_empty());
}

#[test]
fn a_restart_loses_nothing_and_doubles_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let all = (START, START + 10_000);
    let (mut told, mut at_second) = (0, START);
    // Closed in order again and again, in the middle of minutes and quarters of an hour.
    for seconds in [10, 700, 333, 1_000, 7] {
        let store = open(dir.path(), at_second);
        tell(&store, 1, at_second, seconds);
        at_second += seconds;
        told += seconds;
        store.shared.write(at(at_second));
        drop(store);
        let store = open(dir.path(), at_second);
        for step in [1, 60, 900] {
            assert_eq!(sum(&store.rows(RUN, None, all, step)), (told - 1) * 1_000, "{step} at {told}");
        }
    }
    // Killed: copied as it is after a write, and opened elsewhere.
    let copy = tempfile::tempdir().expect("a folder");
    for file in files(dir.path()) {
        fs::copy(&file, copy.path().join(file.file_name().expect("a name"))).expect("copied");
    }
    let store = open(copy.path(), at_second + 5_000);
    for step in [1, 60, 900] {
        assert_eq!(sum(&store.rows(RUN, None, all, step)), (told - 1) * 1_000, "{step}");
    }
    // What was verified while the service was away counts once it is told.
    store.take(agent(1), &progress(RUN, 9_000_000, 0), at(START + 9_000));
    assert_eq!(sum(&store.rows(RUN, None, all, 900)), 9_000_000);
}

#[test]
fn a_torn_end_is_cut_off_and_damage_set_aside() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    tell(&store, 1, START, 200);
    drop(store);
    let narrow =
        files(dir.path()).into_iter().find(|path| path.to_string_lossy().contains("1s-")).expect("one");
    let whole = fs::read(&narrow).expect("readable");
    let all = (START, START + 10_000);
    // Every length, and zeros as a lost power supply leaves them: a beginning of what was told, and it goes on.
    for cut in (32..whole.len()).step_by(whole.len() / 40) {
        for zeros in [0, 4_096] {
            let mut bytes = whole[..cut].to_vec();
            bytes.extend(std::iter::repeat_n(0, zeros));
            fs::write(&narrow, &bytes).expect("written");
            let store = open(dir.path(), START + 200);
            let rows = store.rows(RUN, None, all, 1);
            let seconds: Vec<u64> =
                rows.get(&agent(1)).map(|r| r.keys().copied().collect()).unwrap_or_default();
            assert!(seconds.iter().copied().eq(START..START + seconds.len() as u64), "{seconds:?}");
            let before = seconds.len();
            store.take(agent(1), &progress(RUN, 1 << 40, 0), at(START + 300));
            store.write(at(START + 310));
            assert_eq!(store.rows(RUN, None, all, 1)[&agent(1)].len(), before + 1, "cut at {cut}");
        }
    }
    // A flipped bit in the middle: the file goes aside at the next look, the service goes on, the wider rows stay.
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 4;
    fs::write(&narrow, &bytes).expect("written");
    let store = open(dir.path(), START + 200);
    assert!(!narrow.exists() && narrow.with_added_extension("damaged").exists());
    store.take(agent(1), &progress(RUN, 1 << 41, 0), at(START + 400));
    store.write(at(START + 410));
    assert!(!store.rows(RUN, None, all, 60).is_empty());
    // Anything at all.
    for bytes in [&b"FLOTTEL\n"[..], &[0xff; 300], &[]] {
        drop(fs::remove_file(narrow.with_added_extension("damaged")));
        let store = {
            fs::write(&narrow, bytes).expect("written");
            open(dir.path(), START + 500)
        };
        tell(&store, 2, START + 500, 20);
        assert_eq!(store.rows(RUN, None, all, 1)[&agent(2)].len(), 20);
    }
}

#[test]
fn old_rows_go_narrow_ones_first_and_size_is_bounded() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    tell(&store, 1, START, 100);
    let day = 86_400;
    let begins = |width| store.shared.folder.begins(width);
    // An hour's file goes six hours after its end; what it held is still told in minutes.
    store.write(at(START + 3_600 + 6 * 3_600 - 1));
    assert_eq!(begins(Width::Second), Some(START));
    store.write(at(START + 3_600 + 6 * 3_600));
    assert_eq!((begins(Width::Second), begins(Width::Minute)), (None, Some(START)));
    let rows = store.rows(RUN, None, (START, START + day), 1);
    assert_eq!((sum(&rows), rows[&agent(1)][&START].seconds), (99_000, 60));
    store.write(at(START + 15 * day));
    assert_eq!((begins(Width::Minute), begins(Width::Quarter)), (None, Some(START)));
    assert_eq!(store.rows(RUN, None, (START, START + day), 60)[&agent(1)][&START].seconds, 900);
    store.write(at(START + 100 * day));
    assert_eq!(store.begins(), None);
    assert!(store.rows(RUN, None, (START, START + day), 60).is_empty());

    let dir = tempfile::tempdir().expect("a folder");
    let keep = Keep { max_bytes: 1_000_000, ..Keep::default() };
    let store = open_with(dir.path(), keep, START);
    for second in 0..300 {
        for n in 0..100 {
            store.take(agent(n), &progress(RUN, second << 20, 0), at(START + second));
        }
        if second % 5 == 0 {
            store.write(at(START + second));
            let bytes: u64 =
                files(dir.path()).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
            assert!(bytes <= 1_000_000, "{bytes}");
            assert_eq!(bytes, store.figures().2);
        }
    }
    assert_eq!(store.rows(RUN, None, (START, START + 300), 60)[&agent(0)].len(), 5, "minutes are there");
}

#[test]
fn one_agent_does_not_take_the_room_of_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    let run = |n: u32| {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        RunId(id)
    };
    let tell = |n: u32, runs: u32, second: u64| {
        for of in 0..runs {
            store.take(agent(n), &progress(run(of), second << 20, 0), at(START + second));
        }
    };
    // 2,000 runs of each of 30 agents would be more than there is room for.
    (0..30).for_each(|n| tell(n, 2_000, 1));
    assert_eq!((store.figures().0, store.figures().1), (30 * 64, 30 * (2_000 - 64)));
    tell(31, 10, 2);
    assert_eq!(store.figures().0, 30 * 64 + 10, "others have theirs");
    // A run that is silent gives way to the agent's next, and what it told is there.
    store.take(agent(0), &progress(run(5_000), 0, 0), at(START + 50));
    assert_eq!(store.figures().0, 30 * 64 + 10, "not yet");
    store.take(agent(0), &progress(run(5_000), 0, 0), at(START + 61));
    assert_eq!(store.figures().0, 30 * 64 + 11);
    let all = (START, START + 1_000);
    let told = |n: u32| store.rows(run(n), Some(&[agent(0)].into()), all, 1).len();
    assert_eq!(((0..64).map(told).sum::<usize>(), told(5_000), told(64)), (64, 1, 0));
    // Who is forgotten has all of it again.
    store.write(at(START + 4_000));
    tell(0, 100, 4_001);
    assert_eq!(store.figures().0, 30 * 64 + 11 + 64);
}

#[test]
fn clocks_may_jump_and_numbers_be_any() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    for (n, second) in [100, 50, 1 << 40, 3, 0, 200].into_iter().enumerate() {
        let bytes = if n % 2 == 0 { u64::MAX } else { 0 };
        store.take(agent(1), &progress(RUN, bytes, bytes), at(START + second));
        // By a clock so far ahead everything would be old.
        store.write(at(START + second.min(200)));
    }
    store.take(agent(1), &progress(RUN, 5, 5), Timestamp(u64::MAX));
    store.take(agent(1), &progress(RUN, 5, 5), at(START));
    store.write(at(START + 2_000));
    drop(store);
    let store = open(dir.path(), START);
    let rows = store.rows(RUN, None, (START, START + 1_000), 1);
    assert!(rows[&agent(1)].contains_key(&(START + 100)) && rows[&agent(1)].contains_key(&(START + 50)));
}

/// What samples cost: `cargo nextest run -p control --lib --run-ignored only ten_thousand_agents --no-capture`.
#[test]
#[ignore = "measures"]
fn ten_thousand_agents() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path(), START);
    let (agents, rounds) = (10_000u32, 120u64);
    let (mut taking, mut writing, mut samples) = (Duration::ZERO, Duration::ZERO, 0u64);
    for round in 0..rounds {
        let now = START + round * 5;
        let start = Instant::now();
        for n in 0..agents {
            let run = RunId([(n % 50) as u8; 16]);
            store.take(agent(n), &progress(run, round * 7_000_000 + u64::from(n), round * 300_000), at(now));
            samples += 1;
        }
        taking += start.elapsed();
        let start = Instant::now();
        store.write(at(now));
        writing += start.elapsed();
    }
    let bytes = store.figures().2;
    let each = |time: Duration| time.as_secs_f64() * 1e3 / (samples as f64 / 10_000.0);
    println!(
        "{samples} samples, {agents} agents, one each 5 s: {:.2} ms of CPU to take 10,000, {:.2} ms to write them; \
         {:.1} bytes a sample on disk; at 2,000 a second {:.2} % of a core",
        each(taking),
        each(writing),
        bytes as f64 / samples as f64,
        (each(taking) + each(writing)) / 10_000.0 * 2_000.0 / 1e3 * 100.0,
    );
    let start = Instant::now();
    let rows = store.rows(RunId([7; 16]), None, (START, START + 600), 5);
    println!("one run of {} agents, every 5 s: {:?}", rows.len(), start.elapsed());
    let (took, wrote) = (each(taking), each(writing));
    assert!(took + wrote < 500.0, "10,000 samples cost {took} + {wrote} ms");
    let start = Instant::now();
    drop(store);
    let closed = start.elapsed();
    let start = Instant::now();
    drop(open(dir.path(), START + 600));
    println!("closed in {closed:?}, opened in {:?}", start.elapsed());
}
