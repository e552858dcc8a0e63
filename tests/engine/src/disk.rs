//! A file system of its own for each measurement: ext4 does not give an inode number out again for minutes after a
//! file was removed and looks through all of those first, so that who comes after a removed tree is slow for no fault
//! of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What a file system needs beside the files: journal, tables, and room that keeps it from searching.
const ROOM: u64 = 1 << 30;

/// A new file system, mounted in this process's mount namespace. Gone when dropped.
pub(crate) struct Disk {
    folder: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Mounts one at `dir/disk`, with room for two copies of the files.
    ///
    /// # Errors
    /// If there is no `mkfs.ext4`, or no loop device can be had.
    pub(crate) fn mount(dir: &Path, files: usize, bytes: u64) -> Result<Self> {
        let (folder, image) = (dir.join("disk"), dir.join("disk.image"));
        fs::create_dir_all(&folder)?;
        let size = ROOM + 2 * files as u64 * bytes.next_multiple_of(4096);
        File::create(&image)?.set_len(size)?;
        let inodes = (2 * files + 10_000).to_string();
        let quiet = ["-q", "-F", "-m", "0", "-N", &inodes, "-E", "lazy_itable_init=1,lazy_journal_init=1"];
        run(Command::new("mkfs.ext4").args(quiet).arg(&image))?;
        // Nothing in the background that the measurement would pay for.
        run(Command::new("mount").args(["-o", "loop,noinit_itable"]).arg(&image).arg(&folder))
            .context("no file system of its own can be mounted; --here does without")?;
        Ok(Self { folder, image })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What stays mounted goes with this process's namespace.
        let _ = run(Command::new("umount").arg(&self.folder));
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
