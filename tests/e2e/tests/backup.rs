//! Backups with real processes: a service, an agent with a folder, storage that keeps its versions, and another agent.
//!
//! What a version is, and what comes back, is told by programs that know nothing of Flotilla (`e2e::ensure_identical`).

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{Agent, Options, Run, World, ensure_identical, make_rich_tree, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(90);

const JOB: &str = "papers";

/// A backup of one folder, and what the folder was at each version.
struct Backup {
    world: World,
    laptop: Agent,
    vault: Agent,
    tree: PathBuf,
    shelf: PathBuf,
    was: Vec<(String, PathBuf)>,
}

impl Backup {
    /// `how`: what `jobs create backup` is told besides names and places.
    fn new(how: &[&str], laptop: &[&str]) -> Result<Self> {
        let world = World::new(&Options::default())?;
        let laptop = world.agent("laptop", laptop)?;
        let vault = world.agent("vault", &[])?;
        let (tree, store) = (world.path().join("tree"), world.path().join("store"));
        fs::create_dir(&tree)?;
        let (from, to) = (format!("laptop:{}", tree.display()), format!("vault:{}", store.display()));
        let mut args =
            vec!["jobs", "create", "backup", "--name", JOB, "--source", &from, "--destination", &to];
        args.extend(["--no-start"].iter().chain(how));
        world.flotilla(&args)?;
        Ok(Self { world, laptop, vault, tree, shelf: store.join("laptop"), was: Vec::new() })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.tree.join(path)
    }

    /// What the folder is now, kept elsewhere.
    fn remember(&self) -> Result<PathBuf> {
        let copy = self.world.path().join(format!("was-{}", self.was.len()));
        let copied = Command::new("cp").arg("-a").arg(&self.tree).arg(&copy).status()?;
        ensure!(copied.success());
        Ok(copy)
    }

    fn start(&self) -> Result<String> {
        let started = self.world.flotilla(&["jobs", "start", JOB])?;
        Ok(started["runs"][0].as_str().with_context(|| format!("a run in {started}"))?.to_owned())
    }

    /// Starts it, and waits until there is a version of what the folder is now.
    fn back_up(&mut self) -> Result<()> {
        let copy = self.remember()?;
        let run = self.start()?;
        self.world.wait_success(&run, LIMIT)?;
        let kept = self.versions()?.into_iter().find(|version| version["run"] == run.as_str());
        let kept = kept.with_context(|| format!("a version of run {run} in {:?}", self.versions()))?;
        ensure!(
            kept["state"] == "complete" && kept["source"] == "laptop" && kept["storage"] == "vault",
            "{kept}"
        );
        let name = kept["version"].as_str().context("its name")?.to_owned();
        self.was.push((name, copy));
        Ok(())
    }

    /// Versions as the service tells them, the newest first.
    fn versions(&self) -> Result<Vec<Value>> {
        let told = self.world.flotilla(&["backups", "versions", JOB, "--source", "laptop"])?;
        Ok(told["versions"].as_array().context("versions")?.clone())
    }

    /// Their names, the oldest first.
    fn names(&self) -> Result<Vec<String>> {
        let name = |version: &Value| version["version"].as_str().context("a name").map(str::to_owned);
        self.versions()?.iter().rev().map(name).collect()
    }

    /// What stands on the shelf beside what is the agent's own.
    fn on_disk(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.shelf)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != ".flotilla");
        names.sort();
        Ok(names)
    }

    /// Every version is what the folder was then.
    fn check(&self, kept: &[(String, PathBuf)]) -> Result<()> {
        kept.iter().try_for_each(|(name, was)| {
            ensure_identical(was, &self.shelf.join(name)).with_context(|| format!("version {name}"))
        })
    }

    /// Gives something back, and waits until that has ended.
    fn restore(&self, args: &[&str]) -> Result<Run> {
        let mut line = vec!["backups", "restore", JOB, "--source", "laptop"];
        line.extend(args);
        let started = self.world.flotilla(&line)?;
        let run = started["run"].as_str().with_context(|| format!("a run in {started}"))?;
        self.world.wait_run(run, LIMIT, Run::ended)
    }
}

fn problems(run: &Run) -> Result<Vec<(String, String)>> {
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let all = run.0["problems"].as_array().context("problems")?;
    Ok(all.iter().map(|problem| (text(problem, "class"), text(problem, "path"))).collect())
}

/// Changes one byte, and neither size nor time.
fn damage(path: &Path, at: u64) -> Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let time = file.metadata()?.modified()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(file.set_modified(time)?)
}

#[test]
fn versions_are_made_thinned_and_given_back() -> Result<()> {
    let mut b = Backup::new(&["--keep-last", "3"], &[])?;
    let other = b.world.agent("other", &[])?;
    make_rich_tree(&b.tree)?;
    b.back_up()?;
    // Nothing has changed: nothing is made.
    let same = b.start()?;
    b.world.wait_success(&same, LIMIT)?;
    ensure!(b.names()?.len() == 1 && b.on_disk()? == b.names()?, "{:?}", b.on_disk()?);

    // Edits, renames and deletions between one version and the next.
    let mut edited = fs::read(b.at("large-0"))?;
    edited.splice(1000..1000, *b"inserted");
    fs::write(b.at("large-0"), edited)?;
    fs::rename(b.at("d1"), b.at("moved"))?;
    b.back_up()?;
    let blocks =
        b.world.run(b.versions()?[0]["run"].as_str().context("a run")?)?.stat("vault", "blocks_fetched")?;
    ensure!(blocks <= 4, "{blocks} blocks for one insertion and a renamed folder");
    fs::remove_dir_all(b.at("d2"))?;
    fs::write(b.at("script"), "#!/bin/sh\nexit 1\n")?;
    b.back_up()?;
    b.check(&b.was)?;
    let first = b.shelf.join(&b.was[0].0);
    let (old, new) = (first.join("large-1"), b.shelf.join(&b.was[2].0).join("large-1"));
    ensure!(fs::metadata(&old)?.ino() == fs::metadata(&new)?.ino(), "what is the same is one file");

    // The fourth is one too many, and takes the first one's place; what somebody else put there stays.
    fs::write(b.shelf.join("notes.txt"), "of somebody")?;
    fs::create_dir_all(b.shelf.join("2001-01-01T000000Z/mine"))?;
    fs::write(b.at("new"), "new")?;
    b.back_up()?;
    wait_until("the first version to be removed", LIMIT, || {
        Ok((!first.exists() && b.names()?.len() == 3).then_some(()))
    })?;
    let kept: Vec<String> = b.was[1..].iter().map(|(name, _)| name.clone()).collect();
    ensure!(b.names()? == kept, "{:?}, {kept:?} expected", b.names()?);
    let mut there = kept.clone();
    there.extend(["2001-01-01T000000Z".to_owned(), "notes.txt".into()]);
    there.sort();
    ensure!(b.on_disk()? == there, "{:?}, {there:?} expected", b.on_disk()?);
    b.check(&b.was[1..])?;

    // All of an older one, to another agent.
    let (second, was) = b.was[1].clone();
    let folder = b.world.path().join("restored");
    let to = |folder: &Path| format!("other:{}", folder.display());
    let run = b.restore(&["--version", &second, "--to", &to(&folder)])?;
    ensure!(run.0["outcome"] == "succeeded" && run.0["purpose"]["version"] == second.as_str(), "{:#}", run.0);
    ensure_identical(&was, &folder)?;

    // A folder of it and a file of it, each under its own name.
    let parts = b.world.path().join("parts");
    for path in ["moved/e1", "script"] {
        let run = b.restore(&["--version", &second, "--path", path, "--to", &to(&parts)])?;
        ensure!(run.0["outcome"] == "succeeded", "{path}: {:#}", run.0);
    }
    ensure_identical(&was.join("moved/e1"), &parts.join("e1"))?;
    ensure!(fs::read(parts.join("script"))? == fs::read(was.join("script"))?);
    ensure!(fs::read_dir(&parts)?.count() == 2);

    // A file at the source, where what it replaces is kept; a folder that is gone there.
    fs::write(b.at("script"), "spoilt")?;
    let run = b.restore(&["--version", &second, "--path", "script"])?;
    ensure!(run.0["outcome"] == "succeeded", "{:#}", run.0);
    ensure!(fs::read(b.at("script"))? == fs::read(was.join("script"))?);
    let kept = b.at(".flotilla/archive").join(run.0["id"].as_str().context("its id")?).join("script");
    ensure!(fs::read_to_string(&kept)? == "spoilt");
    let run = b.restore(&["--version", &second, "--path", "d2"])?;
    ensure!(run.0["outcome"] == "succeeded", "{:#}", run.0);
    ensure_identical(&was.join("d2"), &b.at("d2"))?;

    // The source has lost everything.
    fs::remove_dir_all(&b.tree)?;
    let run = b.restore(&[])?;
    ensure!(run.0["outcome"] == "succeeded", "{:#}", run.0);
    let (newest, was) = b.was[3].clone();
    ensure!(run.0["purpose"]["version"] == newest.as_str(), "{:#}", run.0);
    ensure_identical(&was, &b.tree)?;

    // Somebody wrote into the storage: what is whole comes back, what is not is told and does not.
    damage(&b.shelf.join(&newest).join("large-1"), 12_345)?;
    fs::remove_file(b.shelf.join(&newest).join("new"))?;
    let folder = b.world.path().join("whole");
    let run = b.restore(&["--version", &newest, "--to", &to(&folder)])?;
    ensure!(run.0["outcome"] == "succeeded_with_errors", "{:#}", run.0);
    let mut told = problems(&run)?;
    told.retain(|(class, _)| class == "damaged");
    told.sort();
    let damaged = |path: &str| ("damaged".to_owned(), path.to_owned());
    ensure!(told.contains(&damaged("large-1")) && told.contains(&damaged("new")), "{told:?}");
    for (_, path) in &told {
        ensure!(!folder.join(path).exists(), "{path} is not what was backed up");
        fs::remove_file(was.join(path))?;
    }
    // Folders of what was left out keep their times: they are the version's.
    for (class, path) in problems(&run)? {
        ensure!(class == "damaged", "{class} {path}");
    }
    ensure!(e2e::differences(&folder, &was)?.lines().all(|line| line.starts_with(".d")), "{:?}", folder);
    drop(other);
    b.world.check_rebuild()
}

/// The storage agent is killed while a version comes: under the names of versions there are whole ones only, and the run
/// goes on.
#[test]
fn a_version_survives_the_death_of_its_storage() -> Result<()> {
    let mut b = Backup::new(&["--keep-last", "5"], &["--upload-limit", "4MB"])?;
    make_rich_tree(&b.tree)?;
    b.back_up()?;
    fs::write(b.at("large-0"), vec![7; 100_000].repeat(2))?;
    let noise: Vec<u8> = (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(b.at("large-1"), noise)?;
    let copy = b.remember()?;
    let run = b.start()?;
    for still_missing in [300, 150] {
        let forming = b.shelf.join(".flotilla/versions").join(&run);
        wait_until("blocks to come", LIMIT, || {
            // After a restart it answers when it is ready to.
            let Ok(status) = b.world.status(&b.vault) else { return Ok(None) };
            let runs = status["runs"].as_array().context("runs")?;
            let ours = runs.iter().find(|one| one["run"] == run.as_str());
            let figure = |key: &str| ours.and_then(|one| one[key].as_u64()).unwrap_or(0);
            let missing = figure("blocks_total") - figure("blocks_done");
            Ok((forming.exists() && (1..still_missing).contains(&missing)).then_some(()))
        })?;
        b.vault.process.kill();
        ensure!(b.on_disk()? == [b.was[0].0.clone()], "{:?}", b.on_disk()?);
        b.check(&b.was)?;
        b.vault.restart()?;
    }
    b.world.wait_success(&run, LIMIT)?;
    let newest = b.versions()?.remove(0);
    ensure!(newest["run"] == run.as_str() && newest["state"] == "complete", "{newest}");
    b.was.push((newest["version"].as_str().context("its name")?.into(), copy));
    ensure!(b.on_disk()? == b.names()?, "{:?}", b.on_disk()?);
    b.check(&b.was)
}

/// Nobody starts it: the source tells that its folder has changed and come to rest.
#[test]
fn a_continuous_backup_notices_changes() -> Result<()> {
    let mut b = Backup::new(&["--continuous", "1min", "--quiet", "1s"], &[])?;
    let versions = |b: &Backup, count: usize| {
        wait_until(&format!("{count} versions"), LIMIT, || Ok((b.names()?.len() == count).then_some(())))
    };
    // What is there when the watch begins, at once.
    versions(&b, 1)?;
    ensure!(b.world.status(&b.laptop)?["watched_folders"] == 1);
    fs::write(b.at("plan"), "first")?;
    // Not more than once a minute, however much changes meanwhile.
    b.laptop.restart()?;
    b.world.wait_online(&["laptop"])?;
    fs::write(b.at("plan"), "second")?;
    fs::create_dir(b.at("folder"))?;
    versions(&b, 2)?;
    let names = b.names()?;
    ensure!(fs::read_to_string(b.shelf.join(&names[1]).join("plan"))? == "second", "{names:?}");
    b.was.push((names[1].clone(), b.remember()?));
    b.check(&b.was)
}
