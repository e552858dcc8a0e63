//! Why a run is not over, as real agents tell it: the limit of a source, a source that is gone, blocks that nobody has.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Options, Tree, World, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn what_a_destination_waits_for_is_told() -> Result<()> {
    let world = World::new(&Options::default())?;
    let folder = world.path().join("tree");
    Tree { small: 100, large: 3, large_bytes: 24 << 20 }.make(&folder)?;
    let mut source = world.agent("source", &["--upload-limit", "2MB"])?;
    let _destination = world.agent("nas", &[])?;
    let run = world.distribute(("source", &folder), &[("nas", &world.path().join("got"))])?;
    let begun = std::time::Instant::now();
    let explained = |reason: &'static str| {
        let mut last = Value::Null;
        let found = wait_until(reason, LIMIT, || {
            let answer = world.flotilla(&["runs", "explain", &run])?;
            let agents = answer["agents"].as_array().cloned().unwrap_or_default();
            let nas = agents.into_iter().find(|agent| agent["name"] == "nas").unwrap_or_default();
            last.clone_from(&nas);
            Ok((nas["reason"] == reason).then_some(nas))
        });
        eprintln!("{reason} after {:?}", begun.elapsed());
        found.map_err(|error| error.context(format!("the last answer: {last:#}")))
    };
    let limited = explained("peers_limited")?;
    ensure!(limited["text"].as_str().is_some_and(|text| text.contains("source")), "{limited:#}");
    ensure!(limited["eta_seconds"].as_u64().is_some_and(|eta| eta > 0), "{limited:#}");
    ensure!(limited["missing_blocks"].as_u64() > Some(0) && limited["nowhere_blocks"] == 0, "{limited:#}");
    source.process.kill();
    let alone = explained("silent_peers")?;
    ensure!(alone["text"].as_str().is_some_and(|text| text.contains("offline: source")), "{alone:#}");
    source.restart()?;
    explained("peers_limited")?;
    world.flotilla(&["runs", "stop", &run])?;
    let stopped = explained("stopped")?;
    ensure!(stopped["ended"] == true, "{stopped:#}");
    Ok(())
}
