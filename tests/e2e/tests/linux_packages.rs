//! Packages of whole Linux systems, as their owners use them: installed by the system's own package manager into a system
//! that systemd has booted, enrolled by the command that the page tells, upgraded, broken off, downgraded, removed. What
//! runs is the real agent, under the real unit with all that it forbids.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{BusyBox, Options, Program, System, World, binary, differences, wait_until};
use packages::Release;
use packages::deb::{self, Deb};
use packages::rpm::{self, Rpm};
use packages::tarball::Tarball;
use packages::tree::Tree;

const LIMIT: Duration = Duration::from_secs(90);
const STATE: &str = "/var/lib/flotilla-agent";
const CONFIG: &str = "/etc/flotilla/agent.toml";

fn release(build: u32) -> Release<'static> {
    Release { version: "0.1.0", build, time: 1_700_000_000, licence: "MIT OR Apache-2.0" }
}

/// The agent as it is built for tests, without what debuggers want.
fn agent() -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let stripped = dir.path().join("flotilla-agent");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(binary("flotilla-agent")).status();
    ensure!(status?.success(), "strip, of the Debian package binutils");
    Ok(fs::read(stripped)?)
}

fn code(world: &World, name: &str) -> Result<String> {
    let made = world.flotilla(&["token", "create", "--code", "--tag", &format!("AGENT_NAME={name}")])?;
    Ok(made["code"].as_str().context("a code")?.to_owned())
}

/// A fleet, and a machine that is to come into it.
struct Owner {
    world: World,
    system: System,
    id: String,
    source: PathBuf,
    /// Files that were sent.
    sent: u32,
}

impl Owner {
    fn new() -> Result<Self> {
        let world = World::new(&Options { tracker: true, ..Options::default() })?;
        let source = world.path().join("films");
        fs::create_dir_all(source.join("2026"))?;
        Ok(Self { system: System::boot()?, world, id: String::new(), source, sent: 0 })
    }

    fn put(&self, name: &str, package: &[u8]) -> Result<()> {
        Ok(fs::write(self.system.path("/tmp").join(name), package)?)
    }

    /// Number of the agent's process as the system knows it, 0 if there is none.
    fn process(&self) -> Result<String> {
        let line = "systemctl show --value --property MainPID flotilla-agent";
        Ok(self.system.succeed(line)?.trim().to_owned())
    }

    /// By the command of the page, with what people paste.
    fn enrol(&mut self) -> Result<()> {
        let said = self.system.fail("echo 0193.abc | flotilla-agent-enrol")?;
        ensure!(said.contains("no enrolment code"), "{said}");
        let code = code(&self.world, "pc")?;
        self.system.succeed(&format!("printf '  %s\\r\\n' {code} | flotilla-agent-enrol"))?;
        self.world.wait_online(&["pc"])?;
        let [id] = &self.world.ids("pc")?[..] else { panic!("one agent") };
        self.id = id.clone();
        ensure!(!self.system.path(STATE).join("enrolment-code").exists(), "the token is spent and gone");
        let log = self.system.succeed("journalctl --no-pager --unit flotilla-agent")?;
        ensure!(log.contains("enrolled") && !log.contains(&code[40..]), "the code is in no log: {log}");
        let said = self.system.fail(&format!("echo {code} | flotilla-agent-enrol"))?;
        ensure!(said.contains("has its fleet already"), "{said}");
        Ok(())
    }

    /// The unit's walls are there, and nothing of them stands in the job's way.
    fn is_confined(&self) -> Result<()> {
        let status = fs::read_to_string(self.system.path(&format!("/proc/{}/status", self.process()?)))?;
        let user = self.system.succeed("id -u flotilla-agent")?;
        let user = format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", user.trim());
        for line in [&*user, "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
            ensure!(status.contains(line), "{line} in {status}");
        }
        let mode = fs::metadata(self.system.path(STATE))?.permissions().mode();
        ensure!(mode & 0o777 == 0o700, "{mode:o}");
        Ok(())
    }

    /// Another file from an agent of this machine to a relative folder of the other.
    fn job(&mut self) -> Result<()> {
        self.sent += 1;
        fs::write(self.source.join(format!("2026/{}.mp4", self.sent)), vec![7; 300_000])?;
        let run = if self.sent == 1 {
            self.world.distribute(("base", &self.source), &[("pc", Path::new("films/all"))])?
        } else {
            let again = self.world.flotilla(&["jobs", "start", "job-1"])?;
            again["run"].as_str().context("a run")?.to_owned()
        };
        self.world.wait_success(&run, LIMIT)?;
        self.has_all()?;
        let mode = fs::metadata(self.system.path("/srv/flotilla/films"))?.permissions().mode();
        ensure!(mode & 0o055 == 0o055, "others see what came: {mode:o}");
        Ok(())
    }

    fn has_all(&self) -> Result<()> {
        // Out of there first: rsync, which compares, does not go through another process's root.
        let got = tempfile::tempdir_in(self.world.path())?;
        let inside = self.system.path("/srv/flotilla/films/all");
        ensure!(Command::new("cp").arg("--archive").arg(inside).arg(got.path()).status()?.success());
        let found = differences(&self.source, &got.path().join("all"))?;
        ensure!(found.is_empty(), "{found}");
        Ok(())
    }

    /// It is the agent that it was, and its owner's words stand.
    fn is_the_same(&self) -> Result<()> {
        self.world.wait_online(&["pc"])?;
        ensure!(self.world.ids("pc")? == [self.id.clone()], "{:?}", self.world.ids("pc")?);
        ensure!(fs::read_to_string(self.system.path(CONFIG))?.contains("\nlan = false\n"));
        Ok(())
    }

    /// Waits until another process than this one runs and is in the fleet.
    fn wait_for_another(&self, process: &str) -> Result<()> {
        wait_until("the agent to be started again", LIMIT, || {
            let now = self.process()?;
            Ok((now != "0" && now != process).then_some(()))
        })?;
        self.is_the_same()
    }

    fn log(&self) -> String {
        self.system.succeed("journalctl --no-pager --lines 60").unwrap_or_default()
    }
}

#[test]
fn a_debian_package_from_the_code_to_the_data_that_stays() -> Result<()> {
    if !System::possible() {
        return Ok(());
    }
    let mut owner = Owner::new()?;
    debian(&mut owner).with_context(|| owner.log())
}

fn debian(owner: &mut Owner) -> Result<()> {
    let agent = agent()?;
    for build in 1..=3 {
        let package = Deb { release: release(build), architecture: "amd64", agent: &agent }.build()?;
        let faults = deb::faults(&package, "amd64")?;
        ensure!(faults.is_empty(), "{faults:?}");
        owner.put(&format!("{build}.deb"), &package)?;
        if build == 3 {
            owner.put("cut.deb", &package[..package.len() / 2])?;
        }
    }
    let version = |owner: &Owner| {
        let line = "dpkg-query --show --showformat '${Version} ${db:Status-Abbrev}' flotilla-agent";
        owner.system.succeed(line).map(|text| text.trim().to_owned())
    };

    // Installed as the page says, it waits for its code: no process, nothing that fails.
    owner.system.succeed("apt-get install --yes /tmp/1.deb")?;
    ensure!(version(owner)? == "0.1.0-1 ii");
    ensure!(owner.system.succeed("systemctl is-enabled flotilla-agent")?.trim() == "enabled");
    ensure!(owner.process()? == "0");
    ensure!(owner.system.fail("systemctl is-failed flotilla-agent")?.trim() == "inactive");
    owner.system.succeed("systemd-analyze verify flotilla-agent.service")?;

    let _base = owner.world.agent("base", &[])?;
    owner.enrol()?;
    owner.is_confined()?;
    owner.job()?;

    // What is killed comes back, and what the owner changed stays.
    let config = owner.system.path(CONFIG);
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    let process = owner.process()?;
    owner.system.succeed("apt-get install --yes /tmp/2.deb")?;
    ensure!(version(owner)? == "0.1.0-2 ii");
    owner.wait_for_another(&process)?;
    owner.job()?;

    // Packages that were cut on their way, and a disk on which the program has no room: what runs goes on running.
    let process = owner.process()?;
    owner.system.fail("dpkg --install /tmp/cut.deb")?;
    ensure!(version(owner)? == "0.1.0-2 ii", "{}", version(owner)?);
    owner.system.succeed("fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 4000000)) /filled")?;
    let said = owner.system.fail("dpkg --install /tmp/3.deb")?;
    ensure!(said.contains("No space left on device"), "{said}");
    ensure!(version(owner)? == "0.1.0-2 ii", "{}", version(owner)?);
    owner.system.succeed("rm /filled")?;
    ensure!(owner.process()? == process);
    owner.job()?;
    // dpkg dies in the middle of a file.
    owner.system.fail("ulimit -f 1000; dpkg --install /tmp/3.deb")?;
    ensure!(version(owner)? == "0.1.0-2 iHR", "{}", version(owner)?);
    ensure!(owner.process()? == process);
    owner.system.succeed("dpkg --install /tmp/2.deb")?;
    owner.wait_for_another(&process)?;
    // Power is cut after unpacking: what is there runs, and dpkg goes on where it was.
    let process = owner.process()?;
    owner.system.succeed("dpkg --unpack /tmp/3.deb")?;
    ensure!(version(owner)? == "0.1.0-3 iU", "{}", version(owner)?);
    owner.system.succeed("systemctl kill --signal KILL flotilla-agent; systemctl restart flotilla-agent")?;
    owner.wait_for_another(&process)?;
    owner.job()?;
    owner.system.succeed("dpkg --configure --pending")?;
    ensure!(version(owner)? == "0.1.0-3 ii");
    owner.is_the_same()?;

    let process = owner.process()?;
    owner.system.succeed("dpkg --install /tmp/1.deb")?;
    ensure!(version(owner)? == "0.1.0-1 ii", "back to an older one");
    owner.wait_for_another(&process)?;
    owner.job()?;

    // Removed, it is gone, and comes back as who it was.
    owner.system.succeed("dpkg --remove flotilla-agent")?;
    ensure!(!owner.system.path("/usr/bin/flotilla-agent").exists());
    ensure!(owner.system.fail("pgrep flotilla-agent")?.is_empty());
    ensure!(owner.system.path(STATE).join("state.redb").exists());
    owner.system.succeed("dpkg --install /tmp/2.deb")?;
    owner.wait_for_another("0")?;
    owner.job()?;

    // Purged, it is forgotten; what it brought is not.
    let said = owner.system.succeed("dpkg --purge flotilla-agent")?;
    ensure!(said.contains("left in /srv/flotilla"), "{said}");
    for path in [STATE, CONFIG, "/etc/flotilla", "/usr/bin/flotilla-agent"] {
        ensure!(fs::symlink_metadata(owner.system.path(path)).is_err(), "{path}");
    }
    let wanted = "/etc/systemd/system/multi-user.target.wants/flotilla-agent.service";
    ensure!(fs::symlink_metadata(owner.system.path(wanted)).is_err());
    ensure!(fs::metadata(owner.system.path("/srv/flotilla"))?.uid() != 0);
    owner.has_all()
}

#[test]
fn an_rpm_from_the_code_to_the_data_that_stays() -> Result<()> {
    if !System::possible() || !has("rpm") {
        return Ok(());
    }
    let mut owner = Owner::new()?;
    red_hat(&mut owner).with_context(|| owner.log())
}

/// By RPM's own program, whose list of what is installed begins empty: what the package depends on is there, and not in it.
fn red_hat(owner: &mut Owner) -> Result<()> {
    let agent = agent()?;
    for build in 1..=2 {
        let package = Rpm { release: release(build), architecture: "x86_64", agent: &agent }.build()?;
        let faults = rpm::faults(&package, "x86_64");
        ensure!(faults.is_empty(), "{faults:?}");
        owner.put(&format!("{build}.rpm"), &package)?;
        owner.put("cut.rpm", &package[..package.len() / 2])?;
    }
    let rpm = |arguments: &str| format!("rpm --force-debian --nodeps {arguments}");
    let version = |owner: &Owner| {
        Ok::<_, anyhow::Error>(owner.system.succeed("rpm --query flotilla-agent")?.trim().to_owned())
    };

    owner.system.succeed(&rpm("--install /tmp/1.rpm"))?;
    ensure!(version(owner)? == "flotilla-agent-0.1.0-1.x86_64");
    owner.system.succeed("rpm --verify --nodeps flotilla-agent")?;
    ensure!(owner.process()? == "0");
    let _base = owner.world.agent("base", &[])?;
    owner.enrol()?;
    owner.is_confined()?;
    owner.job()?;

    let config = owner.system.path(CONFIG);
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    let process = owner.process()?;
    owner.system.fail(&rpm("--upgrade /tmp/cut.rpm"))?;
    // RPM dies in the middle of a file.
    owner.system.fail(&format!("ulimit -f 1000; {}", rpm("--upgrade /tmp/2.rpm")))?;
    ensure!(owner.process()? == process, "what runs goes on running");
    owner.system.succeed(&rpm("--upgrade /tmp/2.rpm"))?;
    ensure!(version(owner)? == "flotilla-agent-0.1.0-2.x86_64", "{}", version(owner)?);
    owner.wait_for_another(&process)?;
    owner.job()?;
    let process = owner.process()?;
    owner.system.succeed(&rpm("--upgrade --oldpackage /tmp/1.rpm"))?;
    ensure!(version(owner)? == "flotilla-agent-0.1.0-1.x86_64");
    owner.wait_for_another(&process)?;

    // Erased, it is gone; what it was and what its owner wrote is not, and it comes back as who it was.
    let said = owner.system.succeed(&rpm("--erase flotilla-agent"))?;
    ensure!(said.contains("stays in /var/lib/flotilla-agent"), "{said}");
    ensure!(owner.system.fail("pgrep flotilla-agent")?.is_empty());
    ensure!(fs::symlink_metadata(owner.system.path("/usr/bin/flotilla-agent")).is_err());
    ensure!(owner.system.path(STATE).join("state.redb").exists());
    owner.system.succeed("mv /etc/flotilla/agent.toml.rpmsave /etc/flotilla/agent.toml")?;
    owner.system.succeed(&rpm("--install /tmp/2.rpm"))?;
    owner.wait_for_another("0")?;
    owner.job()
}

#[test]
fn a_tarball_from_the_code_to_the_data_that_stays() -> Result<()> {
    if !System::possible() {
        return Ok(());
    }
    let mut owner = Owner::new()?;
    tarball(&mut owner).with_context(|| owner.log())
}

fn tarball(owner: &mut Owner) -> Result<()> {
    let agent = agent()?;
    for build in 1..=2 {
        let tarball = Tarball { release: release(build), processor: "x86_64", agent: &agent };
        owner.put("agent.tar.gz", &tarball.build()?)?;
        owner.system.succeed("cd /tmp && tar -xzf agent.tar.gz")?;
    }
    let script = |build: u32| format!("/tmp/flotilla-agent-0.1.0-{build}-linux-x86_64/install.sh");

    // One for another processor is told before anything is changed.
    owner.system.succeed(
        "cp -r /tmp/flotilla-agent-0.1.0-1-linux-x86_64 /tmp/other && echo no >/tmp/other/bin/flotilla-agent",
    )?;
    let said = owner.system.fail("/tmp/other/install.sh")?;
    ensure!(said.contains("another processor"), "{said}");
    ensure!(fs::symlink_metadata(owner.system.path("/usr/local/lib/flotilla-agent")).is_err());

    owner.system.succeed(&script(1))?;
    ensure!(owner.process()? == "0");
    let _base = owner.world.agent("base", &[])?;
    owner.enrol()?;
    owner.is_confined()?;
    owner.job()?;

    let config = owner.system.path(CONFIG);
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    let process = owner.process()?;
    // No file may be as large as the program: as if the disk were full half-way.
    let said = owner.system.fail(&format!("ulimit -f 1000; {}", script(2)))?;
    ensure!(said.contains("no room"), "{said}");
    ensure!(owner.process()? == process, "what runs goes on running");
    owner.system.succeed(&script(2))?;
    owner.wait_for_another(&process)?;
    owner.job()?;
    let process = owner.process()?;
    owner.system.succeed(&script(1))?;
    owner.wait_for_another(&process)?;

    owner.system.succeed("/usr/local/lib/flotilla-agent/install.sh uninstall")?;
    ensure!(owner.system.fail("pgrep flotilla-agent")?.is_empty());
    ensure!(fs::symlink_metadata(owner.system.path("/usr/local/lib/flotilla-agent")).is_err());
    owner.system.succeed(&script(2))?;
    owner.wait_for_another("0")?;

    // Removed from its fleet, it is another agent once its owner says that it may forget.
    owner.world.flotilla(&["agents", "remove", "pc"])?;
    let code = code(&owner.world, "again")?;
    owner.system.fail(&format!("echo {code} | flotilla-agent-enrol"))?;
    owner.system.succeed(&format!("echo {code} >/tmp/code && flotilla-agent-enrol --forget /tmp/code"))?;
    owner.world.wait_online(&["again"])?;
    ensure!(!owner.world.ids("again")?.contains(&owner.id));
    owner.has_all()?;

    let said = owner.system.succeed(&format!("{} purge", script(2)))?;
    ensure!(said.contains("left in /srv/flotilla"), "{said}");
    for path in [
        STATE,
        "/etc/flotilla",
        "/usr/local/bin/flotilla-agent",
        "/etc/systemd/system/flotilla-agent.service",
    ] {
        ensure!(fs::symlink_metadata(owner.system.path(path)).is_err(), "{path}");
    }
    owner.has_all()
}

/// Where there is nothing but BusyBox: its init's scripts, its shell, and the supervisor that NAS packages have too.
#[test]
fn a_tarball_where_there_is_no_systemd() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let folders = ["etc/init.d", "usr/local", "var/lib", "srv", "root"];
    let root = BusyBox::new(&folders, &Program::of_this_machine())?;
    fs::write(root.path("etc/init.d/rcS"), "#!/bin/sh\nfor s in /etc/init.d/S*; do $s start; done\n")?;
    fs::set_permissions(root.path("etc/init.d/rcS"), fs::Permissions::from_mode(0o755))?;
    fs::write(
        root.path("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nflotilla-agent:x:1500:1500::/var/lib/flotilla-agent:/bin/false\n",
    )?;
    fs::write(root.path("etc/group"), "root:x:0:\nflotilla-agent:x:1500:\n")?;
    let sh = |line: &str| -> Result<String> {
        let path = ("PATH".to_owned(), "/bin".to_owned());
        let output = root.command(0, [path]).args(["/bin/sh", "-c", line]).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let log = || fs::read_to_string(root.path("var/lib/flotilla-agent/agent.log")).unwrap_or_default();
        ensure!(output.status.success(), "{line}: {}\n{text}{}", output.status, log());
        Ok(text)
    };
    let agent = agent()?;
    for build in 1..=2 {
        let tarball = Tarball { release: release(build), processor: "x86_64", agent: &agent };
        BusyBox::put(&root.path("tmp"), &Tree::read_tar_gz(&tarball.build()?)?, |_| true)?;
    }
    let script = |build: u32| format!("/tmp/flotilla-agent-0.1.0-{build}-linux-x86_64/install.sh");

    sh(&script(1))?;
    ensure!(root.process("flotilla-agent\0run")?.is_none(), "nothing to run yet");
    let code = code(&world, "box")?;
    sh(&format!("echo {code} | /usr/local/sbin/flotilla-agent-enrol"))?;
    world.wait_online(&["box"])?;
    let id = world.ids("box")?;
    let process = root.process("flotilla-agent\0run")?.context("it runs")?;
    ensure!(fs::metadata(format!("/proc/{process}"))?.uid() == 1500, "as its own user");
    let source = world.path().join("films");
    fs::create_dir_all(&source)?;
    fs::write(source.join("a.mp4"), vec![7; 300_000])?;
    let _base = world.agent("base", &[])?;
    let run = world.distribute(("base", &source), &[("box", Path::new("films"))])?;
    world.wait_success(&run, LIMIT)?;
    let found = differences(&source, &root.path("srv/flotilla/films"))?;
    ensure!(found.is_empty(), "{found}");

    // A boot, an upgrade, the end.
    root.kill("supervise.sh", LIMIT)?;
    root.kill("flotilla-agent\0run", LIMIT)?;
    sh("/etc/init.d/rcS")?;
    world.wait_online(&["box"])?;
    let process = root.process("flotilla-agent\0run")?;
    sh(&script(2))?;
    wait_until("another process", LIMIT, || {
        let now = root.process("flotilla-agent\0run")?;
        Ok((now.is_some() && now != process).then_some(()))
    })?;
    world.wait_online(&["box"])?;
    ensure!(world.ids("box")? == id);
    sh("/usr/local/lib/flotilla-agent/service status")?;
    let said = sh(&format!("{} purge", script(2)))?;
    ensure!(said.contains("left in /srv/flotilla"), "{said}");
    ensure!(root.process("flotilla-agent\0run")?.is_none() && root.process("supervise.sh")?.is_none());
    ensure!(
        !root.path("var/lib/flotilla-agent").exists() && !root.path("etc/init.d/S95flotilla-agent").exists()
    );
    ensure!(root.path("srv/flotilla/films/a.mp4").exists());
    Ok(())
}

/// A file of the tree that packages are made of.
fn asset(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../targets/linux").join(path)
}

/// What is tried on no router is at least what its shell can read.
#[test]
fn scripts_for_routers_are_read_by_their_shell() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    for script in ["openwrt/flotilla-agent.init", "openwrt/postinst", "openwrt/prerm", "flotilla-agent-enrol"]
    {
        let output = Command::new("/bin/busybox").args(["sh", "-n"]).arg(asset(script)).output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
    }
    Ok(())
}

/// Whether a program is here. CI has to have it.
fn has(program: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !here {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "missing: {program}");
        eprintln!("SKIPPED: {program} is missing");
    }
    here
}

/// A static program, as what is shipped is: the shipped one if it is built, otherwise BusyBox in its place; which of them.
fn shipped() -> Result<(Vec<u8>, bool)> {
    let folder = std::env::var_os("FLOTILLA_DIST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist"), PathBuf::from);
    let path = folder.join("bin/x86_64/flotilla-agent");
    if let Ok(agent) = fs::read(&path) {
        return Ok((agent, true));
    }
    Ok((fs::read("/bin/busybox").context("the Debian package busybox-static")?, false))
}

#[test]
fn lintian_finds_no_error() -> Result<()> {
    if !has("lintian") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (agent, own) = shipped()?;
    let deb = Deb { release: release(1), architecture: "amd64", agent: &agent };
    let path = dir.path().join(deb.file_name());
    fs::write(&path, deb.build()?)?;
    let mut command = Command::new("lintian");
    command.args(["--no-cfg", "--allow-root", "--show-overrides"]);
    if !own {
        // BusyBox has a dpkg of its own.
        command.args(["--suppress-tags", "uses-dpkg-database-directly"]);
    }
    let output = command.arg(&path).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = |mark: &str| said.lines().any(|line| line.starts_with(mark));
    ensure!(!found("E:") && !found("W:"), "{said}");
    // It has looked: what is overridden is named.
    let said_all = || format!("{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("O: flotilla-agent: statically-linked-binary"), "{}", said_all());
    Ok(())
}

/// The figure that docs/install/debian.md states.
#[test]
fn the_unit_is_as_tight_as_is_said() -> Result<()> {
    if !has("systemd-analyze") {
        return Ok(());
    }
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=13"])
        .arg(asset("flotilla-agent.service"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn the_manual_names_every_command() -> Result<()> {
    let help = Command::new(binary("flotilla-agent")).arg("--help").output()?;
    let help = String::from_utf8(help.stdout)?;
    let (_, commands) = help.split_once("Commands:\n").context("commands")?;
    let manual = fs::read_to_string(asset("flotilla-agent.1"))?;
    let mut named = 0;
    for command in commands.lines().take_while(|line| !line.is_empty()) {
        let Some(name) = command.strip_prefix("  ").and_then(|line| line.split(' ').next()) else { continue };
        if !name.is_empty() && name != "help" {
            ensure!(manual.contains(&format!("flotilla\\-agent {name}\n")), "{name}");
            named += 1;
        }
    }
    ensure!(named >= 5, "{help}");
    Ok(())
}
