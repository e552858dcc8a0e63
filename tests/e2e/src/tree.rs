//! Trees of files to send, and comparing two of them with an independent tool.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What a tree shall hold.
#[derive(Clone, Copy)]
pub struct Tree {
    /// Small files of 0 to 8 KiB.
    pub small: usize,
    /// Large files.
    pub large: usize,
    /// Bytes of each large file.
    pub large_bytes: usize,
}

impl Tree {
    /// Makes the tree at `root`, the same one each time: nested folders, odd names, empty files,
    /// links inside, modes.
    pub fn make(&self, root: &Path) -> Result<()> {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for i in 0..self.small {
            let dir = root.join(format!("d{}/e{}", i % 17, i % 5));
            fs::create_dir_all(&dir)?;
            let len = (random.next() % 8192) as usize * usize::from(i % 10 != 0);
            fs::write(dir.join(format!("small-{i}")), random.bytes(len))?;
        }
        fs::create_dir_all(root)?;
        for i in 0..self.large {
            let mut file = fs::File::create(root.join(format!("large-{i}")))?;
            let mut left = self.large_bytes;
            while left > 0 {
                let len = left.min(1 << 20);
                file.write_all(&random.bytes(len))?;
                left -= len;
            }
        }
        for name in [&b"new\nline"[..], b"bytes\xff\xfe", b"-rf", b" spaces ", &[b'n'; 255]] {
            fs::write(root.join(OsStr::from_bytes(name)), name)?;
        }
        fs::create_dir_all(root.join("links/deep"))?;
        symlink("../../-rf", root.join("links/deep/up"))?;
        symlink("nowhere", root.join("links/dangling"))?;
        fs::write(root.join("script"), "#!/bin/sh\n")?;
        fs::set_permissions(root.join("script"), Permissions::from_mode(0o755))?;
        fs::set_permissions(root.join("links"), Permissions::from_mode(0o555))?;
        Ok(())
    }
}

/// What `rsync` finds different between two folders, by content, mode and time; empty if nothing.
///
/// # Errors
/// If rsync is missing (`cargo xtask test` installs it) or fails.
pub fn differences(source: &Path, destination: &Path) -> Result<String> {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = Command::new("rsync")
        .args(["-nrlpt", "--checksum", "--itemize-changes", &slash(source), &slash(destination)])
        .output()
        .context("rsync is needed to compare folders: cargo xtask test installs it")?;
    ensure!(output.status.success(), "rsync: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `rsync` finds different between the folders of two members of a synchronization, by content, mode, owner and the
/// files' times, also what only the second one has; empty if nothing. What agents keep for themselves is left out.
///
/// # Errors
/// If rsync is missing (`cargo xtask test` installs it) or fails.
pub fn members_differ(one: &Path, other: &Path) -> Result<String> {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = Command::new("rsync")
        .args(["-nrlptOgo", "--checksum", "--delete", "--itemize-changes", "--exclude=/.flotilla"])
        .args([slash(one), slash(other)])
        .output()
        .context("rsync is needed to compare folders: cargo xtask test installs it")?;
    ensure!(output.status.success(), "rsync: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
