//! Real binaries as children: built once, started with their output in files, killed for sure.

use std::ffi::OsStr;
use std::fs::{File, read_to_string};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

/// Path of one of the programs a [`crate::World`] consists of: in the folder `FLOTILLA_BINARIES` names, as `cargo
/// xtask test` does after building them, otherwise built if it is missing or old.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder(&["control", "agent", "tracker"])).join(name)
}

/// A program as [`binary`] gives it, in a namespace of the network if one is named.
pub(crate) fn program(name: &str, namespace: Option<&str>) -> Command {
    let Some(namespace) = namespace else { return Command::new(binary(name)) };
    // `ip` becomes the program, so that its process is the program's.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(binary(name));
    command
}

/// Path of `utp2`, likewise. Nothing else is built for it.
pub fn utp2() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder(&["utp2-tool"])).join("utp2")
}

/// Where the programs of these packages are.
fn folder(packages: &[&str]) -> PathBuf {
    std::env::var_os("FLOTILLA_BINARIES").map_or_else(|| build(packages), PathBuf::from)
}

fn build(packages: &[&str]) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bins"]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    // What cargo tells this test about its own package would make build scripts run again.
    let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    for (name, _) in std::env::vars_os() {
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let exe = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/this-test, or a program: target/debug/this-program.
    let folder = exe.parent().expect("a file is in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().expect("three levels") } else { folder };
    // What measures a release measures what is released.
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status();
    assert!(status.is_ok_and(|s| s.success()), "the binaries do not build");
    folder.into()
}

/// A running child. Dropping it kills it.
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`, its output appended to `DIR/NAME.out` and `DIR/NAME.err`.
    pub fn start(name: &str, dir: &Path, command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let open = |path| File::options().create(true).append(true).open(path);
        // What an earlier life of this process said is not this one's answer.
        File::create(&stdout)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&stdout)?)
            .stderr(open(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.into(), stdout, stderr })
    }

    /// Waits for a line on standard output that `pick` takes.
    pub fn wait_for_line<T>(&mut self, pick: impl Fn(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            // A line counts once its end is there.
            let text = read_to_string(&self.stdout)?;
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(found) = whole.lines().find_map(&pick) {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.errors());
            }
            ensure!(Instant::now() < end, "{} does not get ready:\n{}", self.name, self.errors());
            pause();
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it stand still (SIGSTOP) until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait_until("the process to end", Duration::from_secs(15), || Ok(self.child.try_wait()?))
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_until(&format!("{name} to end"), limit, || Ok(self.child.try_wait()?))
            .with_context(|| self.errors())
    }

    /// Its number among the processes of this machine.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it wrote to standard error, over all its lives.
    pub fn errors(&self) -> String {
        read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let errors = self.errors();
            let tail: Vec<&str> = errors.lines().rev().take(30).collect();
            eprintln!("--- {} said last:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Asks `probe` until it has an answer.
///
/// # Errors
/// What `probe` fails with, or that `limit` is over.
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "waited {limit:?} for {what}");
        pause();
    }
}

/// Runs a command to its end and wants success.
pub(crate) fn run(mut command: Command, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
    let output = command.args(args).stdin(Stdio::null()).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    Ok(output)
}

fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
