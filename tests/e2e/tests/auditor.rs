//! The auditor: with nothing but an exported history and the name of the log he verifies every entry and checkpoint, is told
//! the first tampered byte's place, and replays to any instant.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Tree, World, binary};
use serde_json::Value;

/// The tool alone: no service, no environment, a folder of its own.
fn audit(folder: &Path, line: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("flotilla")).arg("audit").args(line).current_dir(folder).env_clear().output()?)
}

fn json(output: &Output) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(&output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[test]
fn an_auditor_needs_nothing_but_the_export_and_the_name_of_the_log() -> Result<()> {
    let world = World::new(&Options::default())?;
    let (_a, b) = (world.agent("a", &[])?, world.agent("b", &[])?);
    let mut instants = Vec::new();
    let instant = |instants: &mut Vec<(u64, String)>| -> Result<()> {
        let status = world.flotilla(&["status"])?;
        let position = status["position"].as_u64().context("a position")?;
        instants.push((position, status["state_hash"].as_str().context("a hash")?.to_owned()));
        Ok(())
    };
    instant(&mut instants)?;
    let source = world.path().join("tree");
    Tree { small: 40, large: 1, large_bytes: 3 << 20 }.make(&source)?;
    let run = world.distribute(("a", &source), &[("b", &world.path().join("got"))])?;
    instant(&mut instants)?;
    world.wait_success(&run, Duration::from_secs(60))?;
    instant(&mut instants)?;
    // An agent's word, which he asks for on the agent's own machine.
    let holds = |view: &Value| {
        let all = view["witnesses"].as_array().cloned().unwrap_or_default();
        all.iter().any(|w| w["name"] == "b" && w["state"] == "agrees")
    };
    world.wait_witnesses("an agent to witness", holds)?;
    let note =
        Command::new(binary("flotilla-agent")).arg("checkpoint").arg("--data").arg(&b.data).output()?;
    instant(&mut instants)?;

    let office = tempfile::tempdir()?;
    let export = office.path().join("history");
    let made = world.flotilla(&["audit", "export", "--out", export.to_str().context("UTF-8")?])?;
    let origin = made["origin"].as_str().context("an origin")?.to_owned();
    fs::write(office.path().join("b.checkpoint"), note.stdout)?;
    drop(world);

    let verify = ["verify", "history", "--origin", &origin, "--witness", "b.checkpoint", "--json"];
    let good = json(&audit(office.path(), &verify)?)?;
    ensure!(good[0]["good"] == true && good[0]["entries"] == made["entries"], "{good:?}");

    // Every instant at which the live service was asked, and every position in between, in order.
    let all = json(&audit(office.path(), &["replay", "history", "--json"])?)?;
    ensure!(all.len() as u64 == made["entries"].as_u64().context("entries")? + 1);
    for (position, hash) in &instants {
        let told =
            json(&audit(office.path(), &["replay", "history", "--until", &position.to_string(), "--json"])?)?;
        let end = told.last().context("an end")?;
        ensure!(
            end["position"] == *position && end["state_hash"] == hash.as_str(),
            "{end} instead of {hash}"
        );
        let time = told[told.len() - 2]["time"].as_str().context("a time")?;
        let by_time = json(&audit(office.path(), &["replay", "history", "--until", time, "--json"])?)?;
        ensure!(by_time.last().context("an end")?["position"].as_u64() >= Some(*position));
    }

    // One bit, anywhere: told, and where.
    let whole = fs::read(&export)?;
    let last = made["entries"].as_u64().context("entries")?;
    let mut named = 0;
    for n in 0..24usize {
        let place = (whole.len() - 1) * n / 23;
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (n % 8);
        fs::write(office.path().join("tampered"), &bytes)?;
        let bad = audit(office.path(), &["verify", "tampered", "--origin", &origin])?;
        let said = String::from_utf8(bad.stderr)?;
        ensure!(bad.status.code() == Some(1) && said.contains("BAD"), "byte {place}: {said}");
        let bad = audit(office.path(), &["verify", "tampered", "--origin", &origin, "--json"])?;
        let told = json(&bad)?;
        if let Some(first) = told[0]["first_bad"].as_u64() {
            ensure!((1..=last).contains(&first), "{said}");
            named += 1;
        }
    }
    ensure!(named > 12, "most bytes of an export are entries, only {named} flips named one");
    Ok(())
}
