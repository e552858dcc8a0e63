//! A destination is interrupted at random moments, by `kill -9` and by cutting the power of its disk, while one version
//! of a folder after the other is delivered to it. After each time every file under its real name is, byte for byte, one
//! of the old version or one of the new, and what was on the disk is not fetched again.
//!
//! `FLOTILLA_SEED` repeats the moments of a run.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use e2e::{Agent, Disk, Options, Run, World};

const LIMIT: Duration = Duration::from_secs(120);

/// What the destination gets: fast enough for several versions, slow enough to be caught at every stage.
const RATE: u64 = 8_000_000;

/// Bytes of a content block.
const BLOCK: u64 = 32 * 1024;

/// Blocks asked for at a time at most (`FetchConfig::outstanding_max` and `want_max` in `sync-core`).
const IN_FLIGHT: u64 = 1024 + 512;

/// How long content may be in memory only before it is written down (PROTOCOL.md §4.9), with what writing takes.
const IN_MEMORY: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, PartialEq)]
enum How {
    Kill,
    PowerCut,
}

#[test]
fn killed_at_random_moments_no_file_is_corrupt() -> Result<()> {
    interrupt(How::Kill, 8)
}

#[test]
#[ignore = "measures: ten minutes"]
fn killed_at_two_hundred_random_moments_no_file_is_corrupt() -> Result<()> {
    interrupt(How::Kill, 200)
}

#[test]
fn cut_off_from_power_at_random_moments_no_file_is_corrupt() -> Result<()> {
    interrupt(How::PowerCut, 4)
}

#[test]
#[ignore = "measures: fifteen minutes"]
fn cut_off_from_power_at_two_hundred_random_moments_no_file_is_corrupt() -> Result<()> {
    interrupt(How::PowerCut, 200)
}

/// Numbers that look random and are the same for one seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The folder in all its versions: most files change with each, and some are in every second one only.
struct Content;

impl Content {
    const FILES: u64 = 600;

    /// A file's path in the folder.
    fn path(file: u64) -> String {
        format!("d{}/{}file-{file}", file % 13, if file.is_multiple_of(3) { "deep/" } else { "" })
    }

    /// What a file holds in a version; none if it is not there, or not yet.
    fn of(file: u64, version: u64) -> Option<Vec<u8>> {
        if file % 10 == 7 && version < 2 {
            return None;
        }
        // Some keep their size, others do not; some are empty, a few have many blocks.
        let size = match file % 20 {
            0 => 700_000 + file * 100,
            1 | 2 => 40_000 + 1000 * (version % 3),
            3 => 0,
            _ => 100 + file * 7 + 50 * (version % 2),
        };
        let mut random = Random((file + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (version + 1) << 40);
        let mut bytes = Vec::with_capacity(size as usize + 8);
        while bytes.len() < size as usize {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(size as usize);
        Some(bytes)
    }

    fn write(folder: &Path, version: u64) -> Result<()> {
        for file in 0..Self::FILES {
            let Some(bytes) = Self::of(file, version) else { continue };
            let path = folder.join(Self::path(file));
            fs::create_dir_all(path.parent().context("below")?)?;
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    /// Bytes and blocks of a version.
    fn size(version: u64) -> (u64, u64) {
        let sizes =
            (0..Self::FILES).filter_map(|file| Self::of(file, version)).map(|bytes| bytes.len() as u64);
        sizes.fold((0, 0), |(bytes, blocks), size| (bytes + size, blocks + size.div_ceil(BLOCK)))
    }

    /// Wants every file to be of one of these versions; with the number of those of the second. Nothing else may be
    /// there.
    fn check(folder: &Path, old: u64, new: u64) -> Result<u64> {
        let mut arrived = 0;
        let mut names = 0;
        for file in 0..Self::FILES {
            let path = folder.join(Self::path(file));
            let found = match fs::read(&path) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            };
            names += u64::from(found.is_some());
            let is_new = found == Self::of(file, new);
            let fits = is_new || found == Self::of(file, old) || (old == 0 && found.is_none());
            let told = found.as_ref().map(|bytes| (bytes.len(), bytes.iter().all(|&b| b == 0)));
            ensure!(fits, "{} is neither of version {old} nor of {new}: {told:?}", path.display());
            arrived += u64::from(is_new);
        }
        let all = count(folder)?;
        ensure!(all == names, "{all} files instead of {names}");
        Ok(arrived)
    }
}

/// Files below a folder, without what the agent keeps there.
fn count(folder: &Path) -> Result<u64> {
    let mut files = 0;
    let Ok(names) = fs::read_dir(folder) else { return Ok(0) };
    for name in names {
        let name = name?;
        if name.file_name().as_bytes() == b".flotilla" {
            continue;
        }
        files += if name.file_type()?.is_dir() { count(&name.path())? } else { 1 };
    }
    Ok(files)
}

struct Scene {
    world: World,
    _source: Agent,
    destination: Agent,
    folder: PathBuf,
    got: PathBuf,
}

impl Scene {
    fn start(&self, version: u64) -> Result<String> {
        Content::write(&self.folder, version)?;
        if version == 1 {
            return self.world.distribute(("source", &self.folder), &[("there", &self.got)]);
        }
        let started = self.world.flotilla(&["jobs", "start", "job-1"])?;
        Ok(started["run"].as_str().with_context(|| format!("a run in {started}"))?.to_owned())
    }
}

fn interrupt(how: How, times: u64) -> Result<()> {
    let by_clock =
        || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let seed = std::env::var("FLOTILLA_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(by_clock) | 1;
    println!("FLOTILLA_SEED={seed}");
    let mut random = Random(seed);
    let world = World::new(&Options::default())?;
    let disk = match how {
        How::Kill => None,
        How::PowerCut => match Disk::new(world.path(), 1 << 30)? {
            Some(disk) => Some(disk),
            None => return Ok(()),
        },
    };
    let place = disk.as_ref().map_or(world.path(), Disk::path).to_path_buf();
    let (folder, got) = (world.path().join("tree"), place.join("got"));
    let rate = RATE.to_string();
    let source = world.agent("source", &["--upload-limit", &rate])?;
    let destination = world.agent_in("there", &place.join("agent"), &[])?;
    let mut scene = Scene { world, _source: source, destination, folder, got };

    let (mut version, mut done) = (1, 0);
    let (mut bytes, mut sent, mut blocks, mut fetched, mut caught) = (0, 0, 0, 0, 0);
    let mut torn = 0;
    let mut run = scene.start(version)?;
    let began = Instant::now();
    while done < times {
        // From the first block on to beyond the end.
        std::thread::sleep(Duration::from_millis(100 + random.below(2400)));
        let state = scene.world.run(&run)?;
        if !state.ended() {
            match &disk {
                None => scene.destination.process.kill(),
                Some(disk) => {
                    disk.cut()?;
                    scene.destination.process.kill();
                    disk.restore()?;
                }
            }
            done += 1;
            torn += 1;
            let arrived = Content::check(&scene.got, version - 1, version)
                .with_context(|| format!("interruption {done} of seed {seed}"))?;
            caught += u64::from(arrived > 0 && arrived < Content::FILES);
            scene.destination.restart()?;
            continue;
        }
        // It came to its end between two interruptions: the next version.
        let (total, was_sent, got) = finish(&scene, &run, version, how)?;
        (bytes, sent, blocks, fetched) = (bytes + total.0, sent + was_sent, blocks + total.1, fetched + got);
        let most = torn * limit_of(how);
        ensure!(was_sent <= total.0 + most, "{was_sent} bytes sent for {} and {torn} interruptions", total.0);
        torn = 0;
        version += 1;
        run = scene.start(version)?;
    }
    let (total, was_sent, got) = finish(&scene, &run, version, how)?;
    (bytes, sent, blocks, fetched) = (bytes + total.0, sent + was_sent, blocks + total.1, fetched + got);
    println!(
        "{done} interruptions in {:.0} s, {caught} with some files of a version in place and others not; {version} \
         versions of {} files; {bytes} bytes, {sent} sent: {:.0} more for each interruption; {blocks} blocks, {fetched} \
         written",
        began.elapsed().as_secs_f64(),
        Content::FILES,
        (sent.saturating_sub(bytes)) as f64 / done as f64,
    );
    Ok(())
}

/// Bytes that one interruption may cost: what was asked for and had not come; of a disk without power also what was in
/// memory only.
fn limit_of(how: How) -> u64 {
    let asked = IN_FLIGHT * BLOCK;
    match how {
        How::Kill => asked,
        How::PowerCut => asked + RATE * IN_MEMORY.as_secs(),
    }
}

/// Waits for a run's end and looks at everything: bytes and blocks of it, bytes sent, blocks written.
fn finish(scene: &Scene, run: &str, version: u64, how: How) -> Result<((u64, u64), u64, u64)> {
    scene.world.wait_success(run, LIMIT)?;
    let arrived = Content::check(&scene.got, version, version)?;
    ensure!(arrived == Content::FILES, "{arrived} files of version {version}");
    let served = |run: &Run| run.stat("source", "bytes_sent").is_ok_and(|sent| sent > 0);
    let run = scene.world.wait_run(run, LIMIT, served)?;
    let stat = |name: &str| run.stat("there", name);
    let (bytes, total) = Content::size(version);
    let (reused, fetched) = (stat("blocks_reused")?, stat("blocks_fetched")?);
    // What was written before a kill is there after it: nothing is written twice. A disk may have lost the last of it.
    let written_once = fetched + reused == total || (how == How::PowerCut && fetched + reused > total);
    ensure!(written_once, "{fetched} blocks fetched and {reused} found of {total}");
    Ok(((bytes, total), run.stat("source", "bytes_sent")?, fetched))
}
