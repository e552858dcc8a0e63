//! Sources that delete what every destination has, start after start: whatever any of them brought can be found at the
//! destination, also if their names repeat themselves.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{Options, Run, World};

const LIMIT: Duration = Duration::from_secs(60);

/// A start, to its very end.
fn start(world: &World, args: &[&str]) -> Result<Run> {
    let started = world.flotilla(args)?;
    let run = started["runs"][0].as_str().with_context(|| format!("a run in {started}"))?;
    world.wait_run(run, LIMIT, |run| run.ended() && run.0["disposal"].is_object())
}

fn record(folder: &Path, name: &str, content: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    Ok(fs::write(folder.join(name), content)?)
}

#[test]
fn a_camera_that_numbers_its_files_anew_loses_none() -> Result<()> {
    let world = World::new(&Options::default())?;
    let _camera = world.agent("camera", &[])?;
    let _base = world.agent("base", &[])?;
    let (card, store) = (world.path().join("card"), world.path().join("store"));
    let (from, to) = (format!("camera:{}", card.display()), format!("base:{}", store.display()));
    record(&card, "REC_0001", "monday")?;
    let first = start(
        &world,
        &[
            "jobs",
            "create",
            "consolidation",
            "--name",
            "footage",
            "--source",
            &from,
            "--destination",
            &to,
            "--after",
            "delete",
        ],
    )?;
    ensure!(first.0["disposal"]["files"] == 1 && !card.join("REC_0001").exists(), "{:#}", first.0);

    record(&card, "REC_0001", "tuesday")?;
    let second = start(&world, &["jobs", "start", "footage"])?;
    ensure!(second.0["outcome"] == "succeeded", "{:#}", second.0);
    ensure!(second.0["disposal"]["files"] == 1 && !card.join("REC_0001").exists(), "{:#}", second.0);
    let place = store.join("camera");
    let run = second.0["id"].as_str().context("its id")?;
    let kept = place.join(".flotilla/archive").join(run);
    ensure!(fs::read_to_string(place.join("REC_0001"))? == "tuesday");
    ensure!(fs::read_to_string(kept.join("REC_0001"))? == "monday");
    // Whoever looks at the run is told.
    let problems = second.0["problems"].as_array().context("problems")?;
    ensure!(problems.iter().any(|problem| problem["class"] == "replaced"), "{:#}", second.0);

    // What is there already takes no room twice, and nobody is told of anything.
    record(&card, "REC_0001", "tuesday")?;
    let third = start(&world, &["jobs", "start", "footage"])?;
    ensure!(third.0["problems"].as_array().is_some_and(Vec::is_empty), "{:#}", third.0);
    ensure!(fs::read_dir(place.join(".flotilla/archive"))?.count() == 2, "one group and its time");

    // A link or a folder in the place of a file is as good as another file.
    fs::create_dir_all(card.join("REC_0001"))?;
    record(&card, "REC_0001/part", "wednesday")?;
    let fourth = start(&world, &["jobs", "start", "footage"])?;
    let run = fourth.0["id"].as_str().context("its id")?;
    let kept = place.join(".flotilla/archive").join(run);
    ensure!(fs::read_to_string(place.join("REC_0001/part"))? == "wednesday");
    ensure!(fs::read_to_string(kept.join("REC_0001"))? == "tuesday");
    world.check_rebuild()
}
