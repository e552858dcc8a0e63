//! A folder goes from one agent to others, and nothing that dies on the way costs more than time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Agent, Options, Run, Tree, World, differences};

const LIMIT: Duration = Duration::from_secs(120);

/// Enough to be caught in the middle, at the rate below.
const TREE: Tree = Tree { small: 600, large: 3, large_bytes: 8 << 20 };

/// Keeps a transfer of [`TREE`] going for some seconds.
const SLOW: &[&str] = &["--upload-limit", "6MB"];

struct Scene {
    world: World,
    source: Agent,
    destinations: Vec<Agent>,
    folder: PathBuf,
    run: String,
}

impl Scene {
    fn begin(options: &Options, tree: Tree, destinations: usize, args: &[&str]) -> Result<Self> {
        let world = World::new(options)?;
        let folder = world.path().join("tree");
        tree.make(&folder)?;
        let source = world.agent("source", args)?;
        let mut agents = Vec::new();
        for i in 0..destinations {
            agents.push(world.agent(&format!("agent-{i}"), args)?);
        }
        let places: Vec<PathBuf> = (0..destinations).map(|i| world.path().join(format!("got-{i}"))).collect();
        let names: Vec<String> = agents.iter().map(|a| a.name.clone()).collect();
        let to: Vec<_> = names.iter().map(String::as_str).zip(places.iter().map(PathBuf::as_path)).collect();
        let run = world.distribute(("source", &folder), &to)?;
        Ok(Self { world, source, destinations: agents, folder, run })
    }

    /// Waits until every destination has some blocks but none has all.
    fn wait_middle(&self) -> Result<Run> {
        self.world.wait_run(&self.run, LIMIT, |run| {
            self.destinations.iter().all(|a| {
                let agent = run.agent(&a.name).ok();
                agent.and_then(|a| a["blocks_done"].as_u64()).is_some_and(|done| done > 50)
            })
        })
    }

    /// Everything arrived, and nothing was fetched that had been verified before.
    fn check(&self) -> Result<Run> {
        let run = self.world.wait_success(&self.run, LIMIT)?;
        for (i, agent) in self.destinations.iter().enumerate() {
            let found = differences(&self.folder, &self.world.path().join(format!("got-{i}")))?;
            ensure!(found.is_empty(), "{} differs:\n{found}", agent.name);
            let (fetched, total) =
                (run.stat(&agent.name, "blocks_fetched")?, run.stat(&agent.name, "blocks_total")?);
            ensure!(fetched == total, "{} fetched {fetched} blocks of {total}", agent.name);
        }
        self.world.check_rebuild()?;
        Ok(run)
    }
}

#[test]
fn everything_arrives_and_the_source_sends_it_about_once() -> Result<()> {
    let scene = Scene::begin(&Options { tracker: true, ..Options::default() }, TREE, 4, &[])?;
    let run = scene.check()?;
    let sent = scene
        .world
        .wait_run(&scene.run, LIMIT, |run| run.stat("source", "bytes_sent").is_ok_and(|sent| sent > 0))?;
    let (sent, bytes) = (sent.stat("source", "bytes_sent")?, run.0["bytes"].as_u64().unwrap_or(0));
    ensure!(sent as f64 <= 1.5 * bytes as f64, "{sent} bytes sent for {bytes}");
    Ok(())
}

#[test]
fn a_destination_killed_in_the_middle_goes_on_where_it_stopped() -> Result<()> {
    let mut scene = Scene::begin(&Options::default(), TREE, 2, SLOW)?;
    scene.wait_middle()?;
    scene.destinations[0].restart()?;
    scene.check()?;
    Ok(())
}

#[test]
fn a_source_killed_in_the_middle_goes_on_where_it_stopped() -> Result<()> {
    let mut scene = Scene::begin(&Options::default(), TREE, 2, SLOW)?;
    scene.wait_middle()?;
    scene.source.restart()?;
    scene.check()?;
    Ok(())
}

#[test]
fn without_control_and_tracker_the_transfer_completes_and_reports_come_later() -> Result<()> {
    let mut scene = Scene::begin(&Options { tracker: true, ..Options::default() }, TREE, 2, SLOW)?;
    scene.wait_middle()?;
    scene.world.control.process.kill();
    if let Some(tracker) = &mut scene.world.tracker {
        tracker.kill();
    }
    for agent in &scene.destinations {
        e2e::wait_until("the agent to finish alone", LIMIT, || {
            let status = scene.world.status(agent)?;
            Ok((status["runs"][0]["state"] == "done").then_some(()))
        })?;
    }
    for i in 0..scene.destinations.len() {
        let found = differences(&scene.folder, &scene.world.path().join(format!("got-{i}")))?;
        ensure!(found.is_empty(), "{found}");
    }
    scene.world.control.restart()?;
    scene.check()?;
    Ok(())
}

#[test]
fn control_killed_and_restarted_in_the_middle() -> Result<()> {
    let mut scene = Scene::begin(&Options::default(), TREE, 2, SLOW)?;
    scene.wait_middle()?;
    scene.world.control.restart()?;
    scene.check()?;
    Ok(())
}

#[test]
fn all_agents_away_and_control_restarted_loses_nothing() -> Result<()> {
    let mut scene = Scene::begin(&Options::default(), TREE, 2, SLOW)?;
    scene.wait_middle()?;
    scene.source.process.kill();
    for agent in &mut scene.destinations {
        agent.process.kill();
    }
    scene.world.control.restart()?;
    scene.world.check_rebuild()?;
    scene.source.restart()?;
    for agent in &mut scene.destinations {
        agent.restart()?;
    }
    scene.check()?;
    Ok(())
}

#[test]
fn a_tracker_killed_in_the_middle_is_not_missed() -> Result<()> {
    let mut scene = Scene::begin(&Options { tracker: true, ..Options::default() }, TREE, 2, SLOW)?;
    scene.wait_middle()?;
    if let Some(tracker) = &mut scene.world.tracker {
        tracker.kill();
    }
    // Somebody who comes back has to find the others without it.
    scene.destinations[1].restart()?;
    scene.check()?;
    Ok(())
}

#[test]
fn a_second_run_fetches_nothing() -> Result<()> {
    let scene = Scene::begin(&Options::default(), TREE, 1, &[])?;
    scene.check()?;
    let answer = scene.world.flotilla(&["jobs", "start", "job-1"])?;
    let run = answer["run"].as_str().unwrap_or_default().to_owned();
    let again = scene.world.wait_success(&run, LIMIT)?;
    ensure!(again.stat("agent-0", "blocks_fetched")? == 0);
    ensure!(again.stat("agent-0", "blocks_reused")? == again.stat("agent-0", "blocks_total")?);
    Ok(())
}

#[test]
fn a_lying_peer_is_found_out_and_the_files_come_from_others() -> Result<()> {
    let world = World::new(&Options::default())?;
    let folder = world.path().join("tree");
    TREE.make(&folder)?;
    let (mut source, liar, honest) = (
        world.agent("source", &["--upload-limit", "3MB"])?,
        world.agent("liar", &["--fault", "corrupt-blocks"])?,
        world.agent("honest", &[])?,
    );
    let (a, b) = (world.path().join("got-liar"), world.path().join("got-honest"));
    let run = world.distribute(("source", &folder), &[("liar", &a), ("honest", &b)])?;
    let ended = world.wait_run(&run, LIMIT, Run::ended)?;
    ensure!(differences(&folder, &b)?.is_empty());
    let corrupt = ended.stat("honest", "blocks_corrupt")?;
    ensure!(corrupt >= 1, "the liar was never asked: the test shows nothing");
    let text = ended.0.to_string();
    ensure!(text.contains("corrupt_block"), "no problem names the lie: {text}");
    drop(liar);
    drop(honest);
    source.process.terminate()?;
    Ok(())
}

#[test]
fn what_cannot_be_sent_is_told_and_the_rest_arrives() -> Result<()> {
    let world = World::new(&Options::default())?;
    let folder = world.path().join("tree");
    Tree { small: 20, large: 0, large_bytes: 0 }.make(&folder)?;
    std::os::unix::fs::symlink("/etc/hostname", folder.join("outside"))?;
    let (_source, _agent) = (world.agent("source", &[])?, world.agent("agent-0", &[])?);
    let got = world.path().join("got");
    let run = world.distribute(("source", &folder), &[("agent-0", &got)])?;
    let ended = world.wait_run(&run, LIMIT, Run::ended)?;
    ensure!(ended.0["outcome"] == "succeeded_with_errors", "{:#}", ended.0);
    ensure!(ended.0["problems"].to_string().contains("unsafe_link"), "{:#}", ended.0);
    ensure!(!got.join("outside").exists() && got.join("script").exists());
    fs::remove_file(folder.join("outside"))?;
    Ok(())
}
