//! Agents as witnesses: a log that is restored from an old copy, rewritten or exchanged is told by what they hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Options, Tree, World, binary};
use serde_json::Value;

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = (entry?, to.to_path_buf());
        let target = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Puts a copy of `from` where the folder `to` is.
fn replace(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    copy(from, to)
}

/// What an agent holds, by its own program.
fn held(agent: &Agent) -> Result<String> {
    let output =
        Command::new(binary("flotilla-agent")).arg("checkpoint").arg("--data").arg(&agent.data).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn size_of(note: &str) -> Result<u64> {
    Ok(note.lines().nth(1).context("a size")?.parse()?)
}

fn root_of(note: &str) -> Result<&str> {
    note.lines().nth(2).context("a root")
}

fn witness<'v>(view: &'v Value, name: &str) -> Option<&'v Value> {
    view["witnesses"].as_array()?.iter().find(|witness| witness["name"] == name)
}

fn in_conflict(view: &Value, name: &str) -> bool {
    witness(view, name).is_some_and(|witness| witness["state"] == "conflict")
        && view["conflicts"].as_array().is_some_and(|all| all.iter().any(|conflict| conflict["name"] == name))
}

/// Waits until both agents hold a checkpoint of at least so many entries, and nothing is wrong.
fn wait_agreed(world: &World, least: u64) -> Result<Value> {
    world.wait_witnesses("both agents to witness", |view| {
        ["a", "b"].iter().all(|name| {
            witness(view, name).is_some_and(|witness| {
                witness["state"] == "agrees" && witness["held"]["size"].as_u64() >= Some(least)
            })
        })
    })
}

fn audit(line: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("flotilla")).arg("audit").args(line).env_clear().output()?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

/// Both notes of the one conflict that an agent keeps.
fn evidence(agent: &Agent) -> Result<[String; 2]> {
    let folder = agent.data.join("witness/evidence");
    let pair =
        fs::read_dir(&folder).with_context(|| folder.display().to_string())?.next().context("a pair")??;
    Ok([fs::read_to_string(pair.path().join("held"))?, fs::read_to_string(pair.path().join("shown"))?])
}

#[test]
fn a_history_that_is_not_the_one_witnessed_raises_an_alarm() -> Result<()> {
    let mut world = World::new(&Options::default())?;
    let (mut a, mut b) = (world.agent("a", &[])?, world.agent("b", &[])?);
    wait_agreed(&world, 1)?;
    let data = world.control.data();
    let [old, one, other] = ["old", "one", "other"].map(|name| world.path().join(name));

    // A clean stop signs everything; this is the backup.
    ensure!(world.control.process.terminate()?.success());
    copy(&data, &old)?;
    let backup = size_of(&fs::read_to_string(data.join("audit/checkpoint"))?)?;

    // History goes on, and the agents see it; kill -9 loses nothing of that.
    world.control.restart()?;
    for name in ["one", "two", "three"] {
        world.flotilla(&["groups", "create", name])?;
    }
    // Without commands a newer checkpoint is shown every ten minutes, or when an agent connects.
    let position = world.flotilla(&["status"])?["position"].as_u64().context("a position")?;
    ensure!(position > backup, "history has grown");
    world.wait_witnesses("a checkpoint over it", |view| view["sealed"]["size"].as_u64() >= Some(position))?;
    a.restart()?;
    b.restart()?;
    let view = wait_agreed(&world, backup + 1)?;
    ensure!(view["conflicts"].as_array().context("conflicts")?.is_empty(), "{view}");
    let (held_a, held_b) = (held(&a)?, held(&b)?);
    ensure!(size_of(&held_a)? > backup && size_of(&held_b)? > backup, "{held_a}{held_b}");
    a.process.kill();
    b.process.kill();
    world.control.restart()?;
    let exported = world.path().join("one.export");
    world.flotilla(&["audit", "export", "--out", text(&exported)?])?;
    world.control.process.kill();
    copy(&data, &one)?;

    // The backup is restored. The agents' checkpoints are not of its history.
    replace(&old, &data)?;
    world.control.restart()?;
    a.restart()?;
    b.restart()?;
    let view = world.wait_witnesses("the alarm", |view| in_conflict(view, "a") && in_conflict(view, "b"))?;
    let said = view.to_string();
    ensure!(said.contains(root_of(&held_a)?) && said.contains(root_of(&held_b)?), "{said}");
    let status = world.flotilla(&["status"])?;
    ensure!(status["alarms"].as_array().is_some_and(|alarms| alarms.len() == 2), "{status}");
    let log = serde_json::to_string(&world.flotilla_lines(&["log", "show"])?)?;
    ensure!(log.matches("\"audit.conflict\"").count() == 2 && log.contains(root_of(&held_a)?), "{log}");
    ensure!(world.control.process.errors().contains("ALARM: two histories"));
    e2e::wait_until("the evidence", Duration::from_secs(20), || Ok(evidence(&a).ok().map(|_| ())))?;
    let [kept, shown] = evidence(&a)?;
    ensure!(kept == held_a && held(&a)? == held_a && size_of(&shown)? <= backup + 100, "{kept}{shown}");
    ensure!(a.process.errors().contains("ALARM"));
    // Connecting again is no new conflict, and the agents obey as before.
    a.restart()?;
    world.wait_online(&["a", "b"])?;
    let source = world.path().join("tree");
    Tree { small: 5, large: 0, large_bytes: 0 }.make(&source)?;
    let run = world.distribute(("a", &source), &[("b", &world.path().join("got"))])?;
    world.wait_success(&run, Duration::from_secs(60))?;
    let status = world.flotilla(&["status"])?;
    ensure!(status["alarms"].as_array().is_some_and(|alarms| alarms.len() == 2), "{status}");

    // Nothing that the agents hold is signed a second time: the next checkpoint is longer than all of that.
    let floor = size_of(&held_a)?.max(size_of(&held_b)?);
    for n in 0..floor.saturating_sub(status["position"].as_u64().context("a position")?) + 2 {
        world.flotilla(&["groups", "create", &format!("later-{n}")])?;
    }
    world.wait_witnesses("a checkpoint beyond what the agents hold", |view| {
        view["sealed"]["size"].as_u64() > Some(floor)
    })?;
    a.process.kill();
    b.process.kill();
    let forked = world.path().join("other.export");
    world.flotilla(&["audit", "export", "--out", text(&forked)?])?;
    world.control.process.kill();
    copy(&data, &other)?;

    // An auditor with nothing but files: each history is good by itself, and the agents' notes tell which one was shown.
    let note = world.path().join("a.checkpoint");
    fs::write(&note, &held_a)?;
    let (one_file, other_file, note) = (text(&exported)?, text(&forked)?, text(&note)?);
    ensure!(
        audit(&["verify", one_file])?.status.success() && audit(&["verify", other_file])?.status.success()
    );
    let good = audit(&["verify", one_file, "--witness", note])?;
    ensure!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let bad = audit(&["verify", other_file, "--witness", note])?;
    let said = String::from_utf8(bad.stderr)?;
    ensure!(bad.status.code() == Some(1) && said.contains("two histories") && said.contains(note), "{said}");
    ensure!(said.contains(root_of(&held_a)?) && said.matches("root").count() >= 2, "{said}");
    // A note that the log did not sign proves nothing.
    let forged = world.path().join("forged.checkpoint");
    fs::write(&forged, held_a.replacen(&format!("\n{}\n", size_of(&held_a)?), "\n7\n", 1))?;
    let said = String::from_utf8(audit(&["verify", other_file, "--witness", text(&forged)?])?.stderr)?;
    ensure!(said.contains("proves nothing"), "{said}");

    // Only the log is exchanged: the service's own checkpoint tells, and nothing is signed any more.
    replace(&one, &data)?;
    replace(&other.join("log"), &data.join("log"))?;
    let promised = fs::read_to_string(one.join("audit/checkpoint"))?;
    world.control.restart()?;
    let view = world.wait_witnesses("the sealing to stop", |view| view["sealing"] == "stopped")?;
    ensure!(
        view["sealing_detail"].as_str().is_some_and(|why| why.contains(root_of(&promised).unwrap_or("?")))
    );
    let own = |view: &Value| {
        view["conflicts"].as_array().is_some_and(|all| all.iter().any(|c| c["witness"].is_null()))
    };
    world.wait_witnesses("the service's own conflict", own)?;
    ensure!(fs::read_to_string(data.join("audit/checkpoint"))? == promised, "what was promised stays");
    Ok(())
}

/// Kill -9 at any moment: what was signed stays true, and is never signed a second time in another way.
#[test]
fn checkpoints_survive_kills() -> Result<()> {
    let mut world = World::new(&Options::default())?;
    let agent = world.agent("a", &[])?;
    let mut seen: Vec<(u64, String)> = Vec::new();
    let checkpoint: PathBuf = world.control.data().join("audit/checkpoint");
    for round in 0..6u64 {
        for n in 0..5 {
            world.flotilla(&["groups", "create", &format!("g-{round}-{n}")])?;
        }
        // Signed on demand while the service works on, then killed a little later each time.
        world.flotilla(&["audit", "export", "--out", text(&world.path().join("export"))?])?;
        std::thread::sleep(Duration::from_millis(37 * round));
        world.control.process.kill();
        let note = fs::read_to_string(&checkpoint)?;
        let (size, root) = (size_of(&note)?, root_of(&note)?.to_owned());
        ensure!(seen.iter().all(|(s, r)| *s < size || (*s == size && *r == root)), "{seen:?} then {note}");
        seen.push((size, root));
        if round % 2 == 1 {
            // Unfinished tiles are lost or torn, as a power cut may leave them.
            fs::remove_dir_all(world.control.data().join("audit/tile"))?;
        }
        world.control.restart()?;
        world.wait_online(&["a"])?;
    }
    let export = world.path().join("last");
    world.wait_witnesses("the agent to agree", |view| {
        witness(view, "a").is_some_and(|witness| witness["state"] == "agrees")
    })?;
    world.flotilla(&["audit", "export", "--out", text(&export)?])?;
    let note = world.path().join("note");
    fs::write(&note, held(&agent)?)?;
    let good = audit(&["verify", text(&export)?, "--witness", text(&note)?])?;
    ensure!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    Ok(())
}
