//! A disk whose power can be cut: ext4 of its own in a file, stopped as `xfstests` do (`FS_IOC_SHUTDOWN` without a flush
//! of the log): what was not written to the device is gone, what the journal had not committed never was. Mounted with a
//! commit each second, so that names outrun content wherever nobody keeps them from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait_until;

/// See the module. Unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    folder: PathBuf,
}

impl Disk {
    /// Makes one of so many bytes in `dir` and mounts it at `dir/disk`; none where that is not permitted, or tools are
    /// missing: who wants it so (`FLOTILLA_REQUIRE_ALL`) gets an error instead.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn new(dir: &Path, bytes: u64) -> Result<Option<Self>> {
        let (image, folder) = (dir.join("disk.image"), dir.join("disk"));
        fs::create_dir_all(&folder)?;
        File::create(&image)?.set_len(bytes)?;
        let disk = Self { image, folder };
        let made = disk.make();
        match made {
            Ok(()) => Ok(Some(disk)),
            Err(error) if std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none() => {
                eprintln!("SKIPPED: no disk whose power can be cut: {error:#}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn make(&self) -> Result<()> {
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&self.image))?;
        self.mount()
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Takes the power away: from now on nothing can be written or read.
    ///
    /// # Errors
    /// If the file system does not know how.
    pub fn cut(&self) -> Result<()> {
        // _IOR('X', 125, u32) with 2: at once, with nothing of the log.
        let stop = "import fcntl, os, struct, sys\n\
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", stop]).arg(&self.folder))
    }

    /// Gives it power again, once nobody uses it any more.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn restore(&self) -> Result<()> {
        wait_until("the disk to be left alone", Duration::from_secs(20), || {
            Ok(run(Command::new("umount").arg(&self.folder)).ok())
        })?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        // Content is written when it was asked for, or half a minute later: names are, within a second.
        run(Command::new("mount").args(["-o", "loop,commit=1"]).arg(&self.image).arg(&self.folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if run(Command::new("umount").arg(&self.folder)).is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&self.folder));
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
