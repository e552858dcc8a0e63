//! Trees with everything that files have besides bytes, and tools that are not ours to compare two of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Tree;

/// Makes a tree with extended attributes, access lists, further names, holes, other owners and odd names, by the tools
/// that people use for it. As root it also has files of other users and programs with rights of their own.
///
/// # Errors
/// If a tool is missing (`cargo xtask test` installs it) or the file system has no attributes or lists.
pub fn make_rich_tree(root: &Path) -> Result<()> {
    Tree { small: 200, large: 2, large_bytes: 3 << 20 }.make(root)?;
    fs::create_dir_all(root.join("shared/below"))?;
    tool(root, "setfacl", &["-d", "-m", "u:4321:rwx,g:1234:rx", "shared"])?;
    fs::create_dir(root.join("shared/heir"))?;
    fs::write(root.join("shared/heir/file"), "made below a folder that gives its list on")?;
    fs::write(root.join("shared/plain"), "a list that was taken away")?;
    tool(root, "setfacl", &["-b", "shared/plain"])?;
    tool(root, "setfacl", &["-m", "u:4321:r,m::r", "large-0"])?;
    tool(root, "setfattr", &["-n", "user.empty", "large-0"])?;
    tool(root, "setfattr", &["-n", "user.comment", "-v", "0xdeadbeef00ff", "large-1"])?;
    tool(root, "setfattr", &["-n", "user.large", "-v", &"v".repeat(2000), "shared/heir/file"])?;
    tool(root, "setfattr", &["-n", "user.of a folder", "-v", "x", "shared/below"])?;
    tool(root, "ln", &["large-1", "shared/below/another name"])?;
    tool(root, "ln", &["large-1", "./- sorts before all others"])?;
    tool(root, "ln", &["shared/plain", "shared/below/plain"])?;
    tool(root, "truncate", &["-s", "300M", "nothing but a hole"])?;
    tool(root, "truncate", &["-s", "40M", "holes"])?;
    let holes = fs::OpenOptions::new().write(true).open(root.join("holes"))?;
    for (offset, len) in [(0, 10), (4096 * 3, 5000), (1 << 20, 100_000), ((40 << 20) - 7, 7)] {
        holes.write_all_at(&vec![0xa5; len], offset)?;
    }
    fs::write(root.join("zeros that are data"), vec![0; 200_000])?;
    let old = ["-h", "-d", "1969-07-20 20:17:40.123456789 UTC", "script", "links/dangling", "shared/below"];
    tool(root, "touch", &old)?;
    if rustix::process::geteuid().is_root() {
        tool(root, "chown", &["-h", "daemon:4321", "links/dangling"])?;
        tool(root, "chown", &["12345:daemon", "script", "shared"])?;
        tool(root, "chmod", &["6755", "script"])?;
        tool(root, "chmod", &["3777", "shared/below"])?;
    }
    tool(root, "sync", &["-f", "."])?;
    Ok(())
}

/// Fails if independent tools find any difference between two trees: content, names, kinds, modes, owners, times to the
/// nanosecond, extended attributes, access lists, which names are one file, and how much room files take.
///
/// # Errors
/// The difference, or that a tool is missing.
pub fn ensure_identical(source: &Path, destination: &Path) -> Result<()> {
    for root in [source, destination] {
        tool(root, "sync", &["-f", "."])?;
    }
    let (from, to) = (format!("{}/", source.display()), format!("{}/", destination.display()));
    let rsync = ["-aHAXn", "--numeric-ids", "--checksum", "--delete", "--itemize-changes", &from, &to];
    let found = tool(source, "rsync", &rsync)?;
    ensure!(found.is_empty(), "rsync finds differences:\n{found}");
    let lists: [(&str, &[&str]); 3] = [
        ("getfacl", &["--recursive", "--physical", "--numeric", "."]),
        (
            "getfattr",
            &["--recursive", "--physical", "--no-dereference", "--dump", "--match=-", "--encoding=hex", "."],
        ),
        ("find", &[".", "-printf", "%p %y %m %U:%G %T@ %l\\n\\n"]),
    ];
    for (name, args) in lists {
        let told = |root| -> Result<Vec<String>> {
            let text = tool(root, name, args)?;
            // Folders are listed in any order.
            let mut parts: Vec<_> = text.split("\n\n").map(str::to_owned).collect();
            parts.sort();
            Ok(parts)
        };
        let (a, b) = (told(source)?, told(destination)?);
        let only = |x: &[String], y: &[String]| x.iter().find(|part| !y.contains(part)).cloned();
        if a != b {
            anyhow::bail!("{name} finds a difference: {:?} and {:?}", only(&a, &b), only(&b, &a));
        }
    }
    same_files(source, destination)
}

/// Names that are one file at the source are one at the destination, and no others; files take as much room.
fn same_files(source: &Path, destination: &Path) -> Result<()> {
    let (mut files, mut names) = (BTreeMap::new(), BTreeMap::new());
    for path in tool(source, "find", &[".", "-type", "f", "-print0"])?.split('\0').filter(|p| !p.is_empty()) {
        let (a, b) = (fs::symlink_metadata(source.join(path)), fs::symlink_metadata(destination.join(path)));
        // Names that are not text were compared above.
        let (Ok(a), Ok(b)) = (a, b) else { continue };
        // By the names in both folders: versions of a backup share files with others.
        let (there, here) =
            (files.entry(a.ino()).or_insert(b.ino()), names.entry(b.ino()).or_insert(a.ino()));
        ensure!((*there, *here) == (b.ino(), a.ino()), "{path}: other names are the same file");
        // The file system keeps lists of where data is in blocks of its own, one more or less.
        let room = a.blocks().abs_diff(b.blocks());
        ensure!(
            room <= 16,
            "{path} takes {} blocks of 512 bytes, and {} where it arrived",
            a.blocks(),
            b.blocks()
        );
    }
    Ok(())
}

fn tool(folder: &Path, name: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(name).args(args).current_dir(folder).env("LC_ALL", "C").env("TZ", "UTC").output();
    let output = output.with_context(|| format!("{name} is needed: cargo xtask test installs it"))?;
    ensure!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
