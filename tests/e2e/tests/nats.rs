//! The same service over NATS JetStream: a real server, killed in the middle.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Run, Tree, World, binary, differences};
use event_log_nats::testing::{NatsServer, server_or_skip};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_distribution_over_nats_survives_the_server_and_the_service() -> Result<()> {
    let Some(program) = server_or_skip("a_distribution_over_nats_survives_the_server_and_the_service") else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let mut nats = NatsServer::start(program, dir.path())?;
    let mut world = World::new(&Options { nats: Some(nats.url()), tracker: true, ..Options::default() })?;
    let folder = world.path().join("tree");
    Tree { small: 400, large: 2, large_bytes: 8 << 20 }.make(&folder)?;
    let slow = ["--upload-limit", "6MB"];
    let (_source, _a, _b) =
        (world.agent("source", &slow)?, world.agent("agent-0", &slow)?, world.agent("agent-1", &slow)?);
    let got = [world.path().join("got-0"), world.path().join("got-1")];
    let run = world.distribute(("source", &folder), &[("agent-0", &got[0]), ("agent-1", &got[1])])?;
    world.wait_run(&run, LIMIT, |run| {
        run.agent("agent-0").is_ok_and(|a| a["blocks_done"].as_u64().is_some_and(|done| done > 20))
    })?;
    nats.kill();
    nats.restart()?;
    world.wait_success(&run, LIMIT)?;
    for got in &got {
        let found = differences(&folder, got)?;
        ensure!(found.is_empty(), "{found}");
    }
    world.check_rebuild()?;
    let figures = |run: &Run| -> Result<Vec<Value>> {
        let names = ["source", "agent-0", "agent-1"];
        names
            .iter()
            .map(|name| Ok(serde_json::json!([run.agent(name)?["state"], run.agent(name)?["stats"]])))
            .collect()
    };
    // What the source sent is its last word, after the run has ended.
    world.wait_run(&run, LIMIT, |run| run.agent("source").is_ok_and(|a| a["state"] == "done"))?;
    let before = world.run(&run)?;
    world.control.restart()?;
    world.wait_online(&["source", "agent-0", "agent-1"])?;
    let after = world.run(&run)?;
    ensure!(figures(&before)? == figures(&after)?, "before {:#}\nafter {:#}", before.0, after.0);
    world.check_rebuild()?;
    // The service's own copy of the log, which it opened again when it was restarted, is what the servers hold.
    let servers = &world.flotilla(&["log", "check"])?["servers"];
    let (records, messages) = (servers["records"].as_u64(), servers["messages"].as_u64());
    ensure!(servers["differences"].as_array().is_some_and(Vec::is_empty), "{servers}");
    ensure!(records > Some(1) && messages > Some(1) && messages <= records, "{servers}");
    // Its history comes over the API as well, and proves itself.
    let api: Value = serde_json::from_slice(&fs::read(world.control.data().join("api.json"))?)?;
    let text = |name: &str| api[name].as_str().context("api.json");
    let export = world.path().join("history");
    let made = Command::new(binary("flotilla"))
        .args(["audit", "export", "--json", "--server", text("url")?, "--token", text("token")?, "--out"])
        .arg(&export)
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout)?;
    let good = world.flotilla(&["audit", "verify", export.to_str().context("UTF-8")?])?;
    ensure!(good["good"] == true && good["entries"] == made["entries"], "{good}");
    ensure!(good["entries"].as_u64() >= records, "{good}");
    Ok(())
}
