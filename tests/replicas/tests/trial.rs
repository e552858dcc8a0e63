//! One minute of the trial with few agents. The long one is a command: `cargo run -p replicas -- --minutes 15`.

use std::process::Command;

use event_log_nats::testing::server_or_skip;

#[test]
fn replicas_come_and_go_and_nothing_is_lost_or_done_twice() {
    if server_or_skip("replicas_come_and_go_and_nothing_is_lost_or_done_twice").is_none() {
        return;
    }
    if !replicas::world::is_possible() {
        let required =
            ["CI", "FLOTILLA_REQUIRE_ALL"].into_iter().find(|name| std::env::var_os(name).is_some());
        assert!(required.is_none(), "network namespaces are needed: run as root, with ip and unshare");
        eprintln!("\n!!! SKIPPED: network namespaces cannot be had here (root, ip, unshare)\n");
        return;
    }
    // Built before the program goes where there is no network.
    e2e::binary("flotilla");
    let output = Command::new(env!("CARGO_BIN_EXE_replica-trial"))
        .args(["--minutes", "1", "--agents", "40", "--seed", "7"])
        .env("FLOTILLA_BINARIES", e2e::binary("flotilla").parent().expect("a folder"))
        .output()
        .expect("it runs");
    let (report, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{report}\n{errors}");
    assert!(report.ends_with("GOOD\n"), "{report}");
}
