//! The real binary, with clients over loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant as Clock};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use timebase::Instant;
use tracker_proto::{Address, Client, ClientConfig, Event, SwarmKey, Usable};

const PATIENCE: Duration = Duration::from_secs(20);

struct Tracker {
    child: Child,
    stdout: BufReader<ChildStdout>,
    listen: SocketAddr,
}

impl Tracker {
    fn start(listen: &str, config: &str) -> Self {
        let (_dir, path) = config_file(config);
        let mut child = Command::new(env!("CARGO_BIN_EXE_flotilla-tracker"))
            .args(["--listen", listen, "--json", "--config"])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let ready = line(&mut stdout);
        assert_eq!(ready["ready"], true);
        let listen = ready["listen"].as_str().unwrap().parse().unwrap();
        Self { child, stdout, listen }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn stats(&mut self) -> serde_json::Value {
        self.signal(Signal::USR1);
        line(&mut self.stdout)["stats"].take()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config_file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tracker.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

/// The next JSON line; the process prints one or ends, so this does not wait for ever.
fn line(out: &mut BufReader<ChildStdout>) -> serde_json::Value {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
}

/// A client on a socket of its own.
struct Agent {
    client: Client,
    socket: UdpSocket,
    started: Clock,
    found: Vec<SocketAddr>,
}

impl Agent {
    fn new(id: u8, tracker: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut client = Client::new(ClientConfig::new([id; 32], 1));
        client.set_trackers(Instant::ZERO, &[tracker]);
        client.set_addresses(
            Instant::ZERO,
            vec![Address::reflexive(4000 + u16::from(id)).unwrap()],
            Usable::NONE,
        );
        assert!(client.join(Instant::ZERO, SwarmKey::from_run_secret(&[7; 32]), &[id; 16]));
        Self { client, socket, started: Clock::now(), found: vec![] }
    }

    fn turn(&mut self) {
        let now = Instant::from_micros(self.started.elapsed().as_micros() as u64);
        self.client.handle_timeout(now);
        while let Some((to, bytes)) = self.client.poll_transmit(now) {
            self.socket.send_to(&bytes, to).unwrap();
        }
        self.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut buffer = [0; 2000];
        // On Linux a port without a listener shows as an error of the next receive: nothing to read then.
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            self.client.handle_datagram(now, from, &buffer[..len]);
        }
        while let Some(event) = self.client.poll_event() {
            if let Event::Peers { peers, .. } = event {
                self.found.extend(peers.into_iter().flat_map(|p| p.addrs));
            }
        }
    }
}

fn until_found(agents: &mut [Agent]) {
    let start = Clock::now();
    while agents.iter().any(|a| a.found.is_empty()) {
        assert!(start.elapsed() < PATIENCE, "not found in time");
        agents.iter_mut().for_each(Agent::turn);
    }
}

#[test]
fn agents_find_each_other_and_again_after_the_tracker_was_killed() {
    let config = "[limits]\nannounce_interval_s = 1";
    let mut tracker = Tracker::start("127.0.0.1:0", config);
    let listen = tracker.listen;
    let mut agents = [Agent::new(1, listen), Agent::new(2, listen)];
    until_found(&mut agents);
    assert!(agents[0].found.contains(&"127.0.0.1:4002".parse().unwrap()), "{:?}", agents[0].found);
    assert!(agents[1].found.contains(&"127.0.0.1:4001".parse().unwrap()), "{:?}", agents[1].found);
    let stats = tracker.stats();
    assert_eq!((&stats["swarms"], &stats["entries"]), (&1.into(), &2.into()), "{stats}");

    tracker.signal(Signal::KILL);
    drop(tracker);
    agents.iter_mut().for_each(|a| a.found.clear());
    let start = Clock::now();
    while agents.iter().any(|a| a.client.stats().timeouts == 0) {
        assert!(start.elapsed() < PATIENCE, "its absence is noticed");
        agents.iter_mut().for_each(Agent::turn);
    }
    agents.iter().for_each(|a| assert!(a.found.is_empty()));

    let _tracker = Tracker::start(&listen.to_string(), config);
    until_found(&mut agents);
    assert!(agents.iter().all(|a| a.client.stats().forged == 0));
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut tracker = Tracker::start("127.0.0.1:0", "");
        tracker.signal(signal);
        assert_eq!(tracker.child.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        tracker.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

#[test]
fn it_prints_statistics_by_itself_and_ignores_junk() {
    let mut tracker = Tracker::start("127.0.0.1:0", "stats_interval_s = 1");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for junk in [&b""[..], b"FT\x01\x01", &[0; 1201], &[0xff; 9000]] {
        socket.send_to(junk, tracker.listen).unwrap();
    }
    let stats = line(&mut tracker.stdout);
    assert_eq!((&stats["stats"]["received"], &stats["stats"]["invalid"]), (&4.into(), &4.into()), "{stats}");
}

fn outcome(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_flotilla-tracker")).args(args).output().unwrap();
    (
        out.status.code(),
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
    )
}

#[test]
fn usage_and_failures_have_their_exit_codes() {
    let (code, text) = outcome(&["--help"]);
    assert!(code == Some(0) && text.contains("flotilla-tracker --listen 0.0.0.0:7070"), "{text}");
    assert_eq!(outcome(&[]).0, Some(2));
    assert_eq!(outcome(&["--listen", "nowhere"]).0, Some(2));
    let (code, text) = outcome(&["--config", "/nonexistent/tracker.toml"]);
    assert!(code == Some(1) && text.contains("/nonexistent/tracker.toml"), "{text}");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (code, text) = outcome(&["--listen", &taken.local_addr().unwrap().to_string()]);
    assert!(code == Some(1) && text.contains("can't serve 127.0.0.1:"), "{text}");
}
