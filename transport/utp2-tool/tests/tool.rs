//! The `utp2` tool as processes: what people and scripts see.
#![cfg(unix)] // Permissions, signals and names that are not UTF-8.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

const WAIT: Duration = Duration::from_secs(60);

fn tool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_utp2"));
    command.env_remove("UTP2_SECRET").env_remove("FLOTILLA_LOG").stdin(Stdio::null());
    command
}

/// Runs to the end, but not for ever.
fn run(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish(child)
}

fn finish(child: Child) -> Output {
    let (tell, told) = mpsc::channel();
    let id = child.id();
    std::thread::spawn(move || tell.send(child.wait_with_output().unwrap()));
    told.recv_timeout(WAIT).unwrap_or_else(|_| {
        terminate(id, rustix::process::Signal::KILL);
        panic!("a process did not end within {WAIT:?}")
    })
}

fn terminate(id: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(id as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_json(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(out.lines().last().unwrap_or_else(|| panic!("no output; {}", stderr(output))))
        .unwrap()
}

/// A receiver that listens.
struct Receiver {
    child: Option<Child>,
    address: String,
    key: String,
    lines: mpsc::Receiver<String>,
}

impl Receiver {
    fn start(out: &Path, more: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", out, more)
    }

    fn start_at(listen: &str, out: &Path, more: &[&str]) -> Self {
        let mut child = tool()
            .args(["recv", "--listen", listen, "--json", "--secret", "one secret", "--out"])
            .arg(out)
            .args(more)
            .env("FLOTILLA_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|l| tell.send(l)));
        let mut receiver = Self { child: Some(child), address: String::new(), key: String::new(), lines };
        let listening = receiver.next();
        receiver.address = listening["address"].as_str().unwrap().to_owned();
        receiver.key = listening["public_key"].as_str().unwrap().to_owned();
        receiver
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(WAIT).expect("the receiver says something")).unwrap()
    }

    /// The object that ends a session.
    fn session(&mut self) -> Value {
        loop {
            let line = self.next();
            if line["event"] == "session" {
                return line;
            }
        }
    }

    fn end(mut self) -> Output {
        finish(self.child.take().unwrap())
    }

    fn terminate(self) -> Output {
        terminate(self.child.as_ref().unwrap().id(), rustix::process::Signal::TERM);
        self.end()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn send(to: &str, files: &[&Path], more: &[&str]) -> Command {
    let mut command = tool();
    command.arg("send").args(files).args(["--to", to, "--secret", "one secret", "--json"]).args(more);
    command
}

fn make(dir: &Path, name: &str, len: usize) -> PathBuf {
    let path = dir.join(name);
    let data: Vec<u8> = (0..len).map(|i| (i / 32_768 * 31 + i % 251) as u8).collect();
    fs::write(&path, data).unwrap();
    path
}

#[test]
fn files_arrive_as_they_were() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let mut files = vec![
        make(temp.path(), "large", 5_000_001),
        make(temp.path(), "empty", 0),
        make(temp.path(), "-rf new\nline", 70_000),
        make(temp.path(), &"n".repeat(255), 1),
    ];
    let odd = temp.path().join(std::ffi::OsStr::from_bytes(b"not \xff utf-8"));
    fs::write(&odd, b"odd").unwrap();
    files.push(odd);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o750)).unwrap();
        fs::File::options().append(true).open(file).unwrap().set_modified(long_ago).unwrap();
    }
    let mut receiver = Receiver::start(&out, &["--once", "--fsync"]);
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let key = receiver.key.clone();
    let sent = run(&mut send(&receiver.address, &paths, &["--peer-key", &key]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    let told = last_json(&sent);
    assert_eq!((&told["ok"], &told["files"], &told["bytes"]), (&true.into(), &5.into(), &5_070_005.into()));
    assert!(told["seconds"].as_f64().unwrap() > 0.0 && told["goodput_mbps"].as_f64().unwrap() > 0.0);
    assert!(told["retransmitted"].is_u64() && told["lost"].is_u64() && told["rtt_ms"].is_f64(), "{told}");
    let session = receiver.session();
    assert_eq!((&session["ok"], &session["files"]), (&true.into(), &5.into()), "{session}");
    let received = receiver.end();
    assert!(received.status.success(), "{}", stderr(&received));
    assert!(stderr(&received).contains("-rf new\\nline"), "control characters are escaped");
    for file in &files {
        let there = out.join(file.file_name().unwrap());
        assert_eq!(fs::read(&there).unwrap(), fs::read(file).unwrap());
        let metadata = fs::metadata(&there).unwrap();
        assert_eq!(metadata.modified().unwrap(), long_ago);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o750);
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), files.len(), "nothing else is left");
}

#[test]
fn the_wrong_secret_is_told_and_the_receiver_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let out = temp.path().join("out");
    let receiver = Receiver::start(&out, &["--once"]);
    let wrong = run(tool()
        .arg("send")
        .arg(&file)
        .args(["--json", "--to", &receiver.address])
        .env("UTP2_SECRET", "hush hush"));
    assert_eq!(wrong.status.code(), Some(1), "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("secrets differ"), "{}", stderr(&wrong));
    let told = last_json(&wrong);
    assert_eq!(told["ok"], false);
    assert!(!stderr(&wrong).contains("hush"), "the secret is not shown");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    let key = "00".repeat(32);
    let wrong = run(&mut send(&receiver.address, &[&file], &["--peer-key", &key]));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("--peer-key"), "{}", stderr(&wrong));
    let right = run(&mut send(&receiver.address, &[&file], &[]));
    assert!(right.status.success(), "{}", stderr(&right));
    let received = receiver.end();
    assert!(received.status.success());
    // Whoever looks after the receiver sees it too; a wrong key is the sender's own affair.
    assert_eq!(stderr(&received).matches("a handshake is refused").count(), 1, "{}", stderr(&received));
    assert!(stderr(&received).contains("remote=127.0.0.1:"), "{}", stderr(&received));
}

#[test]
fn nobody_there_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    // Bound and mute, so that nobody else gets the port.
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = mute.local_addr().unwrap().to_string();
    let sent = run(send(&to, &[&file], &[]).env("FLOTILLA_LOG", "debug"));
    assert_eq!(sent.status.code(), Some(1));
    assert!(stderr(&sent).contains("no answer"), "{}", stderr(&sent));
    assert!(stderr(&sent).matches("kind=\"INIT\"").count() > 1, "{}", stderr(&sent));
    assert!(!stderr(&sent).contains("one secret"), "{}", stderr(&sent));
}

#[test]
fn a_folder_that_cannot_be_written_is_told_to_whom_it_concerns() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    // A file where the folder should be: refused at once, also for root.
    let here = tool()
        .args(["recv", "--listen", "127.0.0.1:0", "--secret", "s", "--out"])
        .arg(file.join("out"))
        .output();
    let here = here.unwrap();
    assert_eq!(here.status.code(), Some(1));
    assert!(stderr(&here).contains("cannot write to"), "{}", stderr(&here));
    // A folder that goes away: the sender is told.
    let out = temp.path().join("out");
    let mut receiver = Receiver::start(&out, &["--once"]);
    fs::remove_dir(&out).unwrap();
    let sent = run(&mut send(&receiver.address, &[&file], &[]));
    assert_eq!(sent.status.code(), Some(1));
    assert!(
        stderr(&sent).contains("the receiver says") && stderr(&sent).contains("cannot write"),
        "{}",
        stderr(&sent)
    );
    assert_eq!(last_json(&sent)["failed"][0]["name"], "file");
    let told = receiver.next();
    assert_eq!((&told["event"], &told["name"]), (&"file".into(), &"file".into()), "{told}");
    assert_eq!((&told["ok"], &told["declined"]), (&false.into(), &true.into()), "{told}");
    assert_eq!((&told["size"], &told["bytes"]), (&1000.into(), &0.into()), "{told}");
    assert_eq!(receiver.session()["ok"], false);
    assert_eq!(receiver.end().status.code(), Some(1));
}

#[test]
fn a_full_disk_is_told_before_the_transfer() {
    let temp = tempfile::tempdir().unwrap();
    let huge = temp.path().join("huge");
    // Sparse here, 7 TiB there.
    if fs::File::create(&huge).unwrap().set_len(7 << 40).is_err() {
        eprintln!("skipped: this file system has no sparse files of that size");
        return;
    }
    let small = make(temp.path(), "small", 1000);
    let out = temp.path().join("out");
    let receiver = Receiver::start(&out, &["--once"]);
    let sent = run(&mut send(&receiver.address, &[&huge, &small], &[]));
    assert_eq!(sent.status.code(), Some(1));
    let told = last_json(&sent);
    assert_eq!((&told["files"], &told["failed"][0]["name"]), (&1.into(), &"huge".into()), "{told}");
    assert!(stderr(&sent).contains("cannot write the file"), "{}", stderr(&sent));
    assert_eq!(fs::read(out.join("small")).unwrap(), fs::read(&small).unwrap());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing is left of the other");
    assert_eq!(receiver.end().status.code(), Some(1));
}

/// Begins to send a file of 40 MB at 8 MB/s; something has arrived, not all. With what it says from then on.
fn send_slowly(receiver: &Receiver, file: &Path) -> (Child, BufReader<ChildStderr>) {
    let mut slow = send(&receiver.address, &[file], &["--rate-limit", "8MB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(slow.stderr.take().unwrap());
    let begun = Instant::now();
    let mut line = String::new();
    while !line.contains("left") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0 && begun.elapsed() < WAIT, "it ended early");
    }
    (slow, lines)
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 40_000_000);
    let out = temp.path().join("out");
    let receiver = Receiver::start(&out, &[]);
    let (slow, mut lines) = send_slowly(&receiver, &file);
    let stopped = receiver.terminate();
    assert_eq!(stopped.status.code(), Some(1), "{}", stderr(&stopped));
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    let slow = finish(slow);
    assert_eq!(slow.status.code(), Some(1));
    assert!(rest.contains("the receiver was stopped; send again to go on where it stopped"), "{rest}");
    let told = last_json(&slow);
    assert!(told["sent_packets"].as_u64().unwrap() > 0 && told["rtt_ms"].as_f64().unwrap() > 0.0, "{told}");
    assert!(stderr(&stopped).contains("this receiver was stopped"), "{}", stderr(&stopped));
    assert!(
        out.join("file.part").exists() && out.join("file.part.map").exists() && !out.join("file").exists()
    );

    let receiver = Receiver::start(&out, &["--once"]);
    let sent = run(&mut send(&receiver.address, &[&file], &[]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    let told = last_json(&sent);
    let (bytes, resumed) = (told["bytes"].as_u64().unwrap(), told["resumed_bytes"].as_u64().unwrap());
    assert_eq!(bytes + resumed, 40_000_000);
    assert!(resumed > 4_000_000, "{resumed}");
    assert!(receiver.end().status.success());
    assert_eq!(fs::read(out.join("file")).unwrap(), fs::read(&file).unwrap());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

/// A receiver whose sender was killed in the middle of a file; the file, and the folder it goes to.
fn left_by_a_killed_sender(temp: &Path, options: &[&str]) -> (Receiver, PathBuf, PathBuf) {
    let (file, out) = (make(temp, "file", 40_000_000), temp.join("out"));
    let receiver = Receiver::start(&out, options);
    let (mut slow, _lines) = send_slowly(&receiver, &file);
    slow.kill().unwrap();
    slow.wait().unwrap();
    (receiver, file, out)
}

#[test]
fn a_sender_that_was_killed_finds_its_file_again() {
    let temp = tempfile::tempdir().unwrap();
    let (receiver, file, out) = left_by_a_killed_sender(temp.path(), &[]);
    // The receiver has not noticed yet; nobody has to wait until its connection times out.
    let sent = run(&mut send(&receiver.address, &[&file], &[]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(last_json(&sent)["resumed_bytes"].as_u64().unwrap() > 4_000_000);
    assert_eq!(fs::read(out.join("file")).unwrap(), fs::read(&file).unwrap());
    receiver.terminate();
}

#[test]
fn a_sender_that_was_killed_finds_a_receiver_of_one_session_again() {
    let temp = tempfile::tempdir().unwrap();
    let (mut receiver, file, out) = left_by_a_killed_sender(temp.path(), &["--once"]);
    let sent = run(&mut send(&receiver.address, &[&file], &[]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(last_json(&sent)["resumed_bytes"].as_u64().unwrap() > 4_000_000);
    let (first, second) = (receiver.session(), receiver.session());
    assert!(first["error"].as_str().unwrap().contains("a newer one"), "{first}");
    assert_eq!((&first["ok"], &second["ok"]), (&false.into(), &true.into()), "{second}");
    let received = receiver.end();
    assert!(received.status.success(), "{}", stderr(&received));
    assert_eq!(fs::read(out.join("file")).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn a_receiver_may_ask_for_its_sender() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let (out, mine) = (temp.path().join("out"), temp.path().join("mine"));
    let more = ["--state", mine.to_str().unwrap()];
    let receiver = Receiver::start(&out, &["--peer-key", &"00".repeat(32)]);
    let refused = run(&mut send(&receiver.address, &[&file], &more));
    assert_eq!(refused.status.code(), Some(1));
    let key = last_json(&refused)["public_key"].as_str().unwrap().to_owned();
    assert!(stderr(&refused).contains(&format!("sending with key {key}")), "{}", stderr(&refused));
    drop(receiver);

    // The second time with a ticket.
    let receiver = Receiver::start(&out, &["--peer-key", &key]);
    for _ in 0..2 {
        let sent = run(&mut send(&receiver.address, &[&file], &more));
        assert!(sent.status.success(), "{}", stderr(&sent));
        assert_eq!(last_json(&sent)["public_key"], *key);
    }
    let stranger = run(&mut send(&receiver.address, &[&file], &[]));
    assert_eq!(stranger.status.code(), Some(1));
    assert!(stderr(&stranger).contains("--peer-key"), "{}", stderr(&stranger));
    // Nothing was cut off by it.
    let ended = receiver.terminate();
    assert!(ended.status.success(), "{}", stderr(&ended));
}

#[test]
fn a_file_that_grows_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 24_000_000);
    let before = fs::read(&file).unwrap();
    let out = temp.path().join("out");
    let receiver = Receiver::start_at("localhost:0", &out, &["--once"]);
    let (slow, mut lines) = send_slowly(&receiver, &file);
    let mut growing = fs::File::options().append(true).open(&file).unwrap();
    growing.write_all(b"more").unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    let sent = finish(slow);
    assert!(sent.status.success() && rest.contains("file grew while it was sent"), "{rest}");
    assert_eq!(last_json(&sent)["grown"][0], "file");
    assert!(receiver.end().status.success());
    assert_eq!(fs::read(out.join("file")).unwrap(), before);
}

#[test]
fn a_receiver_that_is_another_one_now_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let (out, mine) = (temp.path().join("out"), temp.path().join("mine"));
    let more = ["--state", mine.to_str().unwrap()];
    let first = Receiver::start(&out, &[]);
    let (address, first_key) = (first.address.clone(), first.key.clone());
    for _ in 0..2 {
        let told = last_json(&run(&mut send(&address, &[&file], &more)));
        assert_eq!((&told["ok"], &told["peer_key"]), (&true.into(), &Value::from(first_key.as_str())));
        assert_eq!(told["peer_key_changed"], false);
    }
    first.terminate();
    let second = Receiver::start_at(&address, &out, &[]);
    assert_ne!(second.key, first_key);
    let sent = run(&mut send(&address, &[&file], &more));
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(stderr(&sent).contains(&format!("now {}", second.key)), "{}", stderr(&sent));
    assert_eq!(last_json(&sent)["peer_key_changed"], true);
    second.terminate();
}

#[test]
fn giving_up_while_waiting_loses_nothing_of_what_is_there() {
    let temp = tempfile::tempdir().unwrap();
    let (file, small) = (make(temp.path(), "file", 40_000_000), make(temp.path(), "small", 1000));
    let out = temp.path().join("out");
    let mut receiver = Receiver::start(&out, &[]);
    let (mut slow, _lines) = send_slowly(&receiver, &file);
    slow.kill().unwrap();
    slow.wait().unwrap();
    // Waits until the receiver has given up the first one. When the small file is there, the large one was offered.
    let waiting = send(&receiver.address, &[&file, &small], &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while receiver.next()["name"] != "small" {}
    terminate(waiting.id(), rustix::process::Signal::TERM);
    assert_eq!(finish(waiting).status.code(), Some(1));
    while receiver.session()["files"] != 1 {}
    let sent = run(&mut send(&receiver.address, &[&file], &[]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(last_json(&sent)["resumed_bytes"].as_u64().unwrap() > 4_000_000, "{}", last_json(&sent));
    assert_eq!(fs::read(out.join("file")).unwrap(), fs::read(&file).unwrap());
    receiver.terminate();
}

#[test]
fn a_bad_network_is_no_reason() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 4_000_000);
    let out = temp.path().join("out");
    let receiver = Receiver::start(&out, &["--once"]);
    let bad = ["--inject-loss", "5%", "--inject-delay", "40ms", "--mode", "fair"];
    let sent = run(&mut send(&receiver.address, &[&file], &bad));
    assert!(sent.status.success(), "{}", stderr(&sent));
    let told = last_json(&sent);
    assert!(told["lost"].as_u64().unwrap() > 10 && told["rtt_min_ms"].as_f64().unwrap() >= 40.0, "{told}");
    assert!(receiver.end().status.success());
    assert_eq!(fs::read(out.join("file")).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn the_end_takes_no_round_trip_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let receiver = Receiver::start(&temp.path().join("out"), &["--once"]);
    let begun = Instant::now();
    let sent = run(&mut send(&receiver.address, &[&file], &["--inject-delay", "800ms"]));
    let took = begun.elapsed();
    assert!(sent.status.success(), "{}", stderr(&sent));
    // Two round trips to connect, one for the offer, one for the file; CLOSE is held for half of one.
    let seconds = last_json(&sent)["seconds"].as_f64().unwrap();
    assert!(seconds < 3.9, "{seconds}");
    assert!(took < Duration::from_millis(4600), "{took:?}");
    assert!(receiver.end().status.success());
}

#[test]
fn a_remembered_receiver_answers_the_offer_with_the_first_packet() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let out = temp.path().join("out");
    let state = temp.path().join("state");
    let receiver = Receiver::start(&out, &[]);
    let mut seconds = Vec::new();
    for _ in 0..2 {
        let more = ["--inject-delay", "600ms", "--state", state.to_str().unwrap()];
        let sent = run(&mut send(&receiver.address, &[&file], &more));
        assert!(sent.status.success(), "{}", stderr(&sent));
        seconds.push(last_json(&sent)["seconds"].as_f64().unwrap());
        fs::remove_file(out.join("file")).unwrap();
    }
    // Connecting takes two round trips, offer and file one each; then one with the offer, and one.
    assert!(seconds[0] >= 2.4 && (1.2..1.75).contains(&seconds[1]), "{seconds:?}");
    receiver.terminate();
}

#[test]
fn a_receiver_that_restarts_is_known_and_takes_tickets() {
    let temp = tempfile::tempdir().unwrap();
    let file = make(temp.path(), "file", 1000);
    let (out, mine, its) = (temp.path().join("out"), temp.path().join("mine"), temp.path().join("its"));
    let kept = ["--state", its.to_str().unwrap()];
    let mut address: Option<String> = None;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let receiver = match &address {
            None => Receiver::start(&out, &kept),
            Some(address) => Receiver::start_at(address, &out, &kept),
        };
        let key = receiver.key.clone();
        let more = ["--inject-delay", "600ms", "--state", mine.to_str().unwrap(), "--peer-key", &key];
        let sent = run(&mut send(&receiver.address, &[&file], &more));
        assert!(sent.status.success(), "{}", stderr(&sent));
        runs.push((key, last_json(&sent)["seconds"].as_f64().unwrap()));
        address = Some(receiver.address.clone());
        receiver.terminate();
    }
    assert_eq!(runs[0].0, runs[1].0);
    // Two round trips to connect, then one; what is early is not taken from before a restart.
    assert!(runs[0].1 >= 2.4 && (1.8..2.35).contains(&runs[1].1), "{runs:?}");
}

#[test]
fn many_files_go_together() {
    let temp = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = (0..300).map(|i| make(temp.path(), &format!("f{i}"), i * 200)).collect();
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let out = temp.path().join("out");
    let receiver = Receiver::start(&out, &["--once"]);
    let sent = run(&mut send(&receiver.address, &paths, &[]));
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(receiver.end().status.success());
    for file in &files {
        assert_eq!(fs::read(out.join(file.file_name().unwrap())).unwrap(), fs::read(file).unwrap());
    }
}

#[test]
fn wrong_usage_is_two_and_failure_is_one() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (temp.path().join("a"), temp.path().join("b"));
    fs::create_dir_all(&a).unwrap();
    fs::create_dir_all(&b).unwrap();
    let (one, two) = (make(&a, "same", 1), make(&b, "same", 1));
    let code = |command: &mut Command| run(command).status.code();
    assert_eq!(code(&mut tool()), Some(2));
    assert_eq!(code(tool().args(["send", "x", "--to", "127.0.0.1:1"])), Some(2), "no secret");
    let twice = run(&mut send("127.0.0.1:1", &[&one, &two], &[]));
    assert_eq!(twice.status.code(), Some(2), "one name twice");
    assert!(stderr(&twice).contains("Usage: utp2 send"), "{}", stderr(&twice));
    assert_eq!(code(&mut send("127.0.0.1:1", &[&one], &["--rate-limit", "fast"])), Some(2));
    assert_eq!(code(&mut send("127.0.0.1:1", &[&temp.path().join("none")], &[])), Some(1));
    assert_eq!(code(&mut send("127.0.0.1:1", &[&a], &[])), Some(1), "a folder");
    for help in [&["--help"][..], &["send", "--help"], &["recv", "--help"]] {
        let output = run(tool().args(help).env("UTP2_SECRET", "hush hush"));
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("Example") && !text.contains("inject") && !text.contains("hush"), "{text}");
    }
}
