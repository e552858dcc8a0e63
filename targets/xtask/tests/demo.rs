//! The demonstration itself, on a small tree with the real programs: what it reports, and that it leaves nothing.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// From its last words to its end.
const GOODBYE: Duration = Duration::from_secs(30);

/// A demonstration whose temporary data goes to `temp`.
fn demo(temp: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["demo", "--json", "--agents", "2", "--temp"]).arg(temp);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn small_tree(root: &Path) -> (u64, u64) {
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    let mut bytes = 0;
    for n in 0..20_u64 {
        let content = vec![u8::try_from(n).unwrap(); usize::try_from(n * n * 1000).unwrap()];
        bytes += content.len() as u64;
        fs::write(root.join(format!("a/b/{n}")), content).unwrap();
    }
    std::os::unix::fs::symlink("b/1", root.join("a/link")).unwrap();
    (20, bytes)
}

/// The processes whose command line names `folder`.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let name = folder.to_str().unwrap();
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let ours =
        all.filter(|path| fs::read_to_string(path.join("cmdline")).is_ok_and(|line| line.contains(name)));
    ours.collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn it_copies_verifies_and_reports() {
    let [source, temp] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (files, bytes) = small_tree(source.path());
    let output = demo(temp.path()).arg("--path").arg(source.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!((report["agents"].as_u64(), report["files"].as_u64()), (Some(2), Some(files)));
    assert_eq!(report["bytes"].as_u64(), Some(bytes));
    let sent = report["source_bytes_sent"].as_u64().unwrap();
    assert!(sent >= bytes && sent <= 2 * bytes, "the source sent {sent} of {bytes} bytes");
    assert!(report["events"].as_u64().unwrap() >= 4 && report["seconds"].as_f64().unwrap() > 0.0);
    assert!(is_empty(temp.path()), "data was left behind");
    assert_eq!(processes(temp.path()), Vec::<PathBuf>::new());
}

#[test]
fn what_could_not_be_sent_is_told_and_is_not_ok() {
    let [source, temp] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    small_tree(source.path());
    std::os::unix::fs::symlink("/etc/passwd", source.path().join("outside")).unwrap();
    let output = demo(temp.path()).arg("--path").arg(source.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["error"].as_str().unwrap().contains("2 of 2 copies differ"), "{report}");
    assert!(told.contains("unsafe_link \"outside\"") && told.contains("\"outside\" is missing"), "{told}");
    assert!(is_empty(temp.path()));
}

#[test]
fn it_leaves_nothing_when_interrupted() {
    let [source, temp] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    small_tree(source.path());
    let mut child = demo(temp.path()).arg("--keep").arg("--path").arg(source.path()).spawn().unwrap();
    // In the middle: the agents are there, the run has not ended.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut told = Vec::new();
    for line in lines.by_ref() {
        told.push(line);
        if told.last().is_some_and(|line| line.starts_with("enrolled and online")) {
            break;
        }
    }
    let running = processes(temp.path());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    told.extend(lines);
    let end = Instant::now() + GOODBYE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "it did not stop:\n{}", told.join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    };
    // Control and three agents at least; the tracker's command line names no folder.
    assert!(running.len() >= 4, "{running:?}\n{}", told.join("\n"));
    assert_eq!(status.code(), Some(130), "{}", told.join("\n"));
    assert_eq!(processes(temp.path()), Vec::<PathBuf>::new());
    assert!(is_empty(temp.path()), "data was left behind");
}

#[test]
fn a_missing_folder_is_an_error_with_a_report() {
    let temp = tempfile::tempdir().unwrap();
    let output = demo(temp.path()).args(["--path", "/no/such/folder"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["error"].as_str().unwrap().contains("/no/such/folder"));
    assert!(is_empty(temp.path()));
}
