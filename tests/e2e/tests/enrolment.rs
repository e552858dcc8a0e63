//! Who is let in, by real programs: good tokens once, everything else not at all, with a word why.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Process, World, binary};
use serde_json::Value;

/// Runs an agent that is expected to give up; gives what it said.
fn refused(world: &World, name: &str, bootstrap: &Path) -> Result<String> {
    let mut command = Command::new(binary("flotilla-agent"));
    command.arg("run").arg("--bootstrap").arg(bootstrap).arg("--data").arg(world.path().join(name));
    command.args(["--listen", "127.0.0.1:0"]);
    let mut agent = Process::start(name, world.path(), &mut command)?;
    let status = agent.wait(Duration::from_secs(30))?;
    ensure!(status.code() == Some(1), "{name} ended with {status}:\n{}", agent.errors());
    Ok(agent.errors())
}

fn edit(file: &Path, change: impl Fn(&mut Value)) -> Result<()> {
    let mut bootstrap: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    change(&mut bootstrap);
    Ok(std::fs::write(file, bootstrap.to_string())?)
}

#[test]
fn a_token_lets_in_as_many_agents_as_it_says() -> Result<()> {
    let world = World::new(&Options::default())?;
    let first = world.agent("first", &[])?;
    let said = refused(&world, "second", &world.path().join("first.bootstrap"))?;
    ensure!(said.contains("token"), "{said}");
    drop(first);
    Ok(())
}

#[test]
fn expired_and_wrong_tokens_and_foreign_services_are_refused() -> Result<()> {
    let world = World::new(&Options::default())?;
    let expired = world.token("late", &["--expires", "1s"])?;
    let wrong = world.token("wrong", &[])?;
    edit(&wrong, |b| {
        let server = &mut b["management_server"];
        let token = server["bootstrap_token"].as_str().unwrap_or_default();
        let (id, _) = token.split_once('.').unwrap_or_default();
        server["bootstrap_token"] = format!("{id}.{}", "0".repeat(64)).into();
    })?;
    let said = refused(&world, "wrong", &wrong)?;
    ensure!(said.contains("token"), "{said}");

    let foreign = world.token("foreign", &[])?;
    edit(&foreign, |b| b["management_server"]["cert_authority_fingerprint"] = "ab".repeat(32).into())?;
    let said = refused(&world, "foreign", &foreign)?;
    ensure!(said.contains("fingerprint"), "{said}");

    e2e::wait_until("the token to expire", Duration::from_secs(20), || {
        let answer = world.flotilla(&["token", "list"])?;
        let tokens = answer["tokens"].as_array().context("tokens")?;
        Ok(tokens.iter().any(|token| token["state"] == "expired").then_some(()))
    })?;
    let said = refused(&world, "late", &expired)?;
    ensure!(said.contains("expired"), "{said}");

    // Nobody came in, and the log knows of those who knocked.
    let agents = world.flotilla(&["agents", "list"])?;
    ensure!(agents["agents"].as_array().context("agents")?.is_empty(), "{agents}");
    let log = serde_json::to_string(&world.flotilla_lines(&["log", "show"])?)?;
    ensure!(log.matches("enrolment.refused").count() == 2, "{log}");
    Ok(())
}

#[test]
fn secrets_are_in_no_log() -> Result<()> {
    let world = World::new(&Options::default())?;
    let agent = world.agent("agent", &[])?;
    let bootstrap: Value = serde_json::from_slice(&std::fs::read(world.path().join("agent.bootstrap"))?)?;
    let token = bootstrap["management_server"]["bootstrap_token"].as_str().context("a token")?;
    let (_, secret) = token.split_once('.').context("id.secret")?;
    let api: Value = serde_json::from_slice(&std::fs::read(world.path().join("control/api.json"))?)?;
    let api_token = api["token"].as_str().context("a token")?;
    for said in [world.control.process.errors(), agent.process.errors()] {
        ensure!(!said.contains(secret) && !said.contains(api_token), "a secret was logged:\n{said}");
    }
    Ok(())
}
