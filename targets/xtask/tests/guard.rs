//! A guarded program does not outlive who started it, however that ended.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

fn runs(pid: i32) -> bool {
    // A zombie that nobody has waited for yet does not run.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

#[test]
#[cfg(target_os = "linux")]
fn a_guarded_program_dies_with_its_parent() {
    // The shell starts the program, tells its number, and is killed without a chance to tidy up.
    let script = format!("{XTASK} guard --parent $$ -- sleep 600 >/dev/null & echo $!; wait");
    let mut shell =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().expect("starting a shell");
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid: i32 = line.trim().parse().unwrap();
    let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let end = Instant::now() + Duration::from_secs(20);
    while name(pid).trim() != "sleep" {
        assert!(Instant::now() < end, "the program did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    shell.kill().unwrap();
    shell.wait().unwrap();
    while runs(pid) {
        assert!(Instant::now() < end, "the program outlived its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_is_started_for_a_parent_that_is_gone() {
    let output =
        Command::new(XTASK).args(["guard", "--parent", "1", "--", "echo", "started"]).output().unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the parent is gone"));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let own = std::process::id().to_string();
    let output =
        Command::new(XTASK).args(["guard", "--parent", &own, "--", "no-such-program"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("starting no-such-program"));
}
