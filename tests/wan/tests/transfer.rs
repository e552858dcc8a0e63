//! Real programs over the emulated link: files arrive whole, whatever the link does meanwhile.
//!
//! Bounds are shares and wide, because the machine has other work; how fast it is, `wan bench` tells.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{WAIT, config, link, until};
use e2e::utp2;
use serde_json::Value;
use wan::{Link, Program};

const SECRET: [(&str, &str); 1] = [("UTP2_SECRET", "one machine, one secret")];

/// A receiver that waits and a sender under way.
struct Transfer {
    folder: tempfile::TempDir,
    source: PathBuf,
    receiver: Program,
    sender: Program,
}

impl Transfer {
    fn start(link: &Link, bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let data: Vec<u8> = (0..bytes).map(|i| (i / 32_768 * 31 + i % 251) as u8).collect();
        fs::write(&source, data).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (program, out) = (text(&utp2()), text(&folder.path().join("got")));
        let receive = [&program, "recv", "--listen", "10.77.0.2:4433", "--once", "--out", &out];
        let log = |name: &str| folder.path().join(name);
        let mut receiver =
            Program::start(&link.b, "the receiver", &receive, &SECRET, Some(&log("receiver"))).unwrap();
        receiver.wait_for("listening on").unwrap();
        let send = [&program, "send", &text(&source), "--to", "10.77.0.2:4433", "--json"];
        let sender = Program::start(&link.a, "the sender", &send, &SECRET, Some(&log("sender"))).unwrap();
        Self { folder, source, receiver, sender }
    }

    /// Waits until this many bytes have arrived.
    fn until_arrived(&mut self, link: &Link, bytes: u64) {
        let early = until(&mut self.sender, || link.report().forward.delivered_bytes > bytes);
        assert!(early, "it ended before that:\n{}", self.sender.tail());
    }

    /// Waits for the end; what the sender says about it.
    fn end(&mut self) -> Value {
        let sent = self.sender.wait(WAIT).unwrap();
        assert!(sent.success, "{}", self.sender.tail());
        let received = self.receiver.wait(WAIT).unwrap();
        assert!(received.success, "{}", self.receiver.tail());
        let got = fs::read(self.folder.path().join("got/source")).unwrap();
        assert!(got == fs::read(&self.source).unwrap(), "another file arrived");
        let said = self.sender.said();
        let json = said.lines().rev().find(|line| line.starts_with('{'));
        serde_json::from_str(json.unwrap_or_else(|| panic!("no result:\n{said}"))).unwrap()
    }
}

#[test]
fn a_file_arrives_whole_over_a_long_lossy_link() {
    let config = config(200, 50, 0.01);
    let Some(link) = link("a_file_arrives_whole_over_a_long_lossy_link", &config) else { return };
    let bytes = 100_000_000;
    let said = Transfer::start(&link, bytes).end();
    assert_eq!(said["bytes"], bytes);
    let report = link.report();
    assert!(report.is_sound(), "{report:?}");
    assert!(report.forward.lost > 300, "the link did lose packets: {report:?}");
    let sent = report.forward.bytes as f64 / bytes as f64;
    assert!((1.0..1.4).contains(&sent), "{sent} bytes sent for each that was wanted: {report:?}");
}

#[test]
fn an_address_that_changes_in_the_middle_does_no_harm() {
    let config = config(100, 50, 0.005);
    let test = "an_address_that_changes_in_the_middle_does_no_harm";
    let Some(mut link) = link(test, &config) else { return };
    let mut transfer = Transfer::start(&link, 40_000_000);
    transfer.until_arrived(&link, 6_000_000);
    link.a.change_address([10, 77, 0, 3].into()).unwrap();
    transfer.until_arrived(&link, 20_000_000);
    link.a.change_address([10, 77, 0, 4].into()).unwrap();
    let said = transfer.end();
    assert_eq!(
        (&said["bytes"], &said["resumed_bytes"]),
        (&40_000_000.into(), &0.into()),
        "one session: {said}"
    );
}

#[test]
fn an_outage_of_seconds_is_sat_out() {
    let config = config(100, 50, 0.005);
    let Some(link) = link("an_outage_of_seconds_is_sat_out", &config) else { return };
    let mut transfer = Transfer::start(&link, 30_000_000);
    transfer.until_arrived(&link, 6_000_000);
    link.set_down(true);
    let outage = Duration::from_millis(3500);
    std::thread::sleep(outage);
    link.set_down(false);
    let said = transfer.end();
    assert_eq!(
        (&said["bytes"], &said["resumed_bytes"]),
        (&30_000_000.into(), &0.into()),
        "one session: {said}"
    );
    assert!(link.report().forward.outage_drops > 0, "{:?}", link.report());
}

#[test]
fn every_contender_arrives_whole_with_and_without_offloads() {
    let test = "every_contender_arrives_whole_with_and_without_offloads";
    if link(test, &config(100, 2, 0.0)).is_none() {
        return;
    }
    for gso in ["true", "false"] {
        let output = Command::new(env!("CARGO_BIN_EXE_wan"))
            .args(["bench", "--scenario", "short", "--size", "10MB", "--gso", gso])
            .args(["--contender", "quinn-bbr", "--contender", "tcp-cubic:16"])
            .args(["--contender", "utp2", "--contender", "utp2-warm", "--utp2"])
            .arg(utp2())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(rows.len(), 4, "{said}");
        assert!(rows.iter().all(|row| row["whole"] == true && row["sound"] == true), "{said}");
    }
}
