//! Every input the fuzzer thought worth keeping, and every one that ever found something, on every run of the tests.

use std::fs;
use std::path::Path;

use crate::fuzzing::TARGETS;

fn replay(target: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let run = TARGETS.iter().find(|t| t.0 == target).expect("a target").1;
    run(&[]);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        let data = fs::read(&path).expect("a file");
        if let Err(panic) = std::panic::catch_unwind(|| run(&data)) {
            std::eprintln!("the input is {}", path.display());
            std::panic::resume_unwind(panic);
        }
        count += 1;
    }
    assert!(count > 0, "no corpus for {target}");
}

/// One test a target, so that they run beside each other and a fault names its own.
macro_rules! replays {
    ($($target:ident),*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn every_target_is_replayed() {
            let here = [$(stringify!($target)),*];
            assert!(TARGETS.iter().map(|t| t.0).eq(here), "this list and TARGETS differ");
            let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")).expect("corpora");
            for folder in folders {
                let name = folder.expect("an entry").file_name();
                let name = name.to_string_lossy();
                assert!(name == "tool_wire" || here.contains(&&*name), "nobody replays {name}");
            }
        }
    };
}

replays!(
    ack,
    aead,
    blocks,
    controller,
    endpoint,
    exchange,
    frames,
    handshake,
    header,
    link,
    messages,
    peer,
    ranges,
    received,
    replay_window,
    resume,
    scoreboard,
    srp,
    varint
);
