//! All that files are besides their bytes arrives, for tools that are not ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Options, World, ensure_identical, make_rich_tree};

const LIMIT: Duration = Duration::from_secs(120);

/// The same for a tree of any size.
const LIMIT_OF_YOURS: Duration = Duration::from_secs(3600);

/// Sends a folder to two agents, one of which has an older version of some of it, and compares.
fn arrives(
    folder: &Path,
    world: &World,
    limit: Duration,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let source = world.agent("source", &[])?;
    let agents = [world.agent("agent-0", &[])?, world.agent("agent-1", &[])?];
    let places = [world.path().join("got-0"), world.path().join("got-1")];
    prepare(&places[1])?;
    let to: Vec<_> =
        agents.iter().map(|a| a.name.as_str()).zip(places.iter().map(PathBuf::as_path)).collect();
    let run = world.distribute((source.name.as_str(), folder), &to)?;
    world.wait_success(&run, limit)?;
    for place in &places {
        ensure_identical(folder, place).with_context(|| place.display().to_string())?;
    }
    Ok(())
}

#[test]
fn a_tree_with_everything_is_the_same_for_independent_tools() -> Result<()> {
    let world = World::new(&Options::default())?;
    let folder = world.path().join("tree");
    make_rich_tree(&folder)?;
    arrives(&folder, &world, LIMIT, |older| {
        make_rich_tree(older)?;
        std::fs::remove_file(older.join("shared/below/another name"))?;
        std::fs::write(older.join("large-0"), "another list and other bytes")?;
        std::fs::write(older.join("nothing but a hole"), vec![1; 100_000])?;
        Ok(())
    })
}

/// A comparison that finds nothing is worth as much as what it would find.
#[test]
fn the_comparison_finds_every_kind_of_difference() -> Result<()> {
    let world = tempfile::tempdir_in("/var/tmp")?;
    let (tree, copy) = (world.path().join("tree"), world.path().join("copy"));
    make_rich_tree(&tree)?;
    let shell = |line: &str| -> Result<()> {
        let status = Command::new("sh").args(["-ec", line]).current_dir(world.path()).status()?;
        ensure!(status.success(), "{line}");
        Ok(())
    };
    let again = || shell("rm -rf copy; cp -a --sparse=auto tree copy");
    again()?;
    ensure_identical(&tree, &copy).context("a copy by cp -a")?;
    for change in [
        "printf x | dd of=copy/large-0 conv=notrunc bs=1 seek=70000 status=none; touch -r tree/large-0 copy/large-0",
        "chmod 600 copy/large-1",
        "touch -d '2001-01-01 00:00:00.000000001' copy/script",
        "touch -d '2001-01-01' copy/shared",
        "setfattr -x user.empty copy/large-0",
        "setfattr -n user.more -v 1 copy/shared",
        "setfacl -m u:99:r copy/large-0",
        "setfacl -k copy/shared",
        "cp -a copy/large-1 copy/x; mv copy/x 'copy/shared/below/another name'; touch -r tree/shared/below copy/shared/below; touch -r tree copy",
        "dd if=/dev/zero of='copy/nothing but a hole' bs=1M count=1 conv=notrunc status=none; \
         touch -r 'tree/nothing but a hole' 'copy/nothing but a hole'",
        "touch copy/extra; touch -r tree copy",
        "ln -sfn elsewhere copy/links/dangling",
    ] {
        again()?;
        shell(change)?;
        ensure!(ensure_identical(&tree, &copy).is_err(), "not found: {change}");
    }
    Ok(())
}

/// A tree that nobody here made: `FLOTILLA_TREE` names it.
#[test]
#[ignore = "writes a copy of FLOTILLA_TREE, a folder on a file system with extended attributes"]
fn a_tree_of_yours_is_the_same_for_independent_tools() -> Result<()> {
    let folder = PathBuf::from(std::env::var_os("FLOTILLA_TREE").context("FLOTILLA_TREE names no folder")?);
    ensure!(folder.is_absolute(), "an absolute path");
    let world = World::new(&Options::default())?;
    arrives(&folder, &world, LIMIT_OF_YOURS, |_| Ok(()))
}
