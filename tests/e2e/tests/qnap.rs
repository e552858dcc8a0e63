//! A QNAP box's owner installs the package in the App Center and lays the code into a share: the package's file itself is
//! run as QTS runs it (FORMATS.md §9), as root, by BusyBox's shell in a root of its own, with `getcfg` and `setcfg` as
//! these boxes have them. What runs is the real agent: the one built for tests, and the one that is shipped for ARM,
//! emulated.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{BusyBox, Options, Program, World, differences, wait_until};
use packages::Release;
use packages::qpkg::{self, NAME, PROCESSORS, Processor, Qpkg};

const LIMIT: Duration = Duration::from_secs(90);
const VOLUME: &str = "share/CACHEDEV1_DATA";
const CONF: &str = "/etc/config/qpkg.conf";
/// What QTS takes for an installation that went well.
const DONE: i32 = 10;

/// Reads a value of an INI file: `getcfg SECTION KEY [-u] [-d DEFAULT] -f FILE`; `-u` gives it in capitals.
const GETCFG: &str = r#"#!/bin/sh
section=$1 key=$2 capitals='' default='' file=''
shift 2
while [ $# -gt 0 ]; do
    case $1 in
    -u) capitals=yes ;;
    -d) default=$2; shift ;;
    -f) file=$2; shift ;;
    *) exit 2 ;;
    esac
    shift
done
value=$(awk -v section="[$section]" -v key="$key" '
    /^\[/ { here = ($0 == section) }
    here && index($0, "=") {
        name = substr($0, 1, index($0, "=") - 1); gsub(/^ +| +$/, "", name)
        value = substr($0, index($0, "=") + 1); gsub(/^ +| +$/, "", value)
        if (name == key) { print value; exit }
    }' "$file")
value=${value:-$default}
if [ -n "$capitals" ]; then value=$(printf '%s' "$value" | tr a-z A-Z); fi
printf '%s\n' "$value"
"#;

/// Writes one: `setcfg SECTION KEY VALUE -f FILE`.
const SETCFG: &str = r#"#!/bin/sh
[ "$4" = -f ] || exit 2
touch "$5"
awk -v section="[$1]" -v key="$2" -v value="$3" '
    function put() { if (!done) print key " = " value; done = 1 }
    /^\[/ { if (here) put(); here = ($0 == section); if (here) found = 1 }
    here && index($0, key " = ") == 1 { put(); next }
    { print }
    END { if (!found) print section; if (!found || here) put() }' "$5" >"$5.new" && mv "$5.new" "$5"
"#;

struct Nas {
    root: BusyBox,
    /// What its kernel says that it is.
    machine: &'static str,
    /// Where QTS says that programs are to be, if it does.
    said: Option<&'static str>,
}

impl Nas {
    fn new(machine: &'static str, said: Option<&'static str>, agent: &Program) -> Result<Self> {
        let public = format!("{VOLUME}/Public");
        let folders = [
            &public,
            "etc/config",
            "etc/init.d",
            "etc/rcS.d",
            "etc/rcK.d",
            "sbin",
            "root",
            "home/httpd/RSS/images",
        ];
        let nas = Self { root: BusyBox::new(&folders, agent)?, machine, said };
        nas.program("sbin/getcfg", GETCFG)?;
        nas.program("sbin/setcfg", SETCFG)?;
        nas.program("sbin/log_tool", "#!/bin/sh\nprintf '%s\\n' \"$*\" >>/tmp/log_tool\n")?;
        let share = format!("[global]\nworkgroup = NAS\n[Public]\ncomment = all\npath = /{public}\n");
        fs::write(nas.root.path("etc/config/smb.conf"), share)?;
        Ok(nas)
    }

    fn program(&self, at: &str, text: &str) -> Result<()> {
        let path = self.root.path(at);
        fs::write(&path, text)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    fn run(&self, command: &[&str]) -> Result<Output> {
        let variables = [("PATH", "/bin:/sbin"), ("QINSTALL_PATH", self.said.unwrap_or_default())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(self.root.command(0, variables).args(command).output()?)
    }

    /// Runs a script in a shell that was told something before: BusyBox's takes functions before its own programs, and
    /// those before files.
    fn script_after(&self, before: &str, script: &[&str]) -> Result<Output> {
        self.run(&[&["/bin/sh", "-c", &format!("{before} . \"$0\"")], script].concat())
    }

    fn programs(&self) -> PathBuf {
        self.root.path(self.said.map_or("share/CACHEDEV1_DATA/.qpkg", |said| &said[1..]))
    }

    fn state(&self) -> PathBuf {
        self.programs().join(format!("_{NAME}_state"))
    }

    fn public(&self) -> PathBuf {
        self.root.path(VOLUME).join("Public")
    }

    /// How it ended, and how far it says that it was.
    fn try_install(&self, package: &[u8], before: &str) -> Result<(Option<i32>, String)> {
        fs::write(self.root.path("tmp/uploaded.qpkg"), package)?;
        let before = format!("uname() {{ printf '%s\\n' {}; }}; {before}", self.machine);
        let output = self.script_after(&before, &["/tmp/uploaded.qpkg"])?;
        let progress = fs::read_to_string(self.root.path("tmp/update_process"))?.trim().to_owned();
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        Ok((output.status.code(), progress))
    }

    fn install(&self, package: &[u8]) -> Result<()> {
        let ended = self.try_install(package, "")?;
        ensure!(ended == (Some(DONE), "3".to_owned()), "{ended:?}");
        Ok(())
    }

    /// Nothing is changed by what is refused.
    fn refuses(&self, package: &[u8], before: &str, why: &str) -> Result<()> {
        let (conf, version) = (self.root.path(&CONF[1..]), self.programs().join(NAME));
        let told =
            || (fs::read_to_string(&conf).unwrap_or_default(), version.join("bin/flotilla-agent").exists());
        let was = told();
        let ended = self.try_install(package, before)?;
        ensure!(ended == (Some(1), "-1".to_owned()), "{why}: {ended:?}");
        ensure!(told() == was, "{why}: {was:?} {:?}", told());
        ensure!(!self.programs().join(format!(".{NAME}.new")).exists(), "{why}");
        let log = fs::read_to_string(self.root.path("tmp/log_tool"))?;
        let last = log.lines().last().unwrap_or_default();
        ensure!(last.starts_with("-t2 ") && last.contains(why), "{last}");
        Ok(())
    }

    fn field(&self, key: &str) -> Result<String> {
        let output = self.run(&["/sbin/getcfg", NAME, key, "-f", CONF])?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// As the App Center calls it.
    fn service(&self, what: &str) -> Result<Option<i32>> {
        let script = self.field("Shell")?;
        Ok(self.run(&[&script, what])?.status.code())
    }

    fn wait_for_log(&self, part: &str) -> Result<()> {
        wait_until(part, LIMIT, || {
            let log = fs::read_to_string(self.state().join("agent.log")).unwrap_or_default();
            Ok(log.contains(part).then_some(()))
        })
    }

    /// Waits until what looks after the agent has looked twice, which is what it takes codes after, and once more.
    fn wait_for_looks(&self) -> Result<()> {
        let mut pauses = BTreeSet::new();
        wait_until("three looks", LIMIT, || {
            pauses.extend(self.root.processes("sleep\x005")?);
            Ok((pauses.len() > 3).then_some(()))
        })
    }

    fn give(&self, code: &str) -> Result<PathBuf> {
        let folder = self.public().join("flotilla");
        // As a file from another system: with a mark at its start and another end of the line.
        let given = folder.join("flotilla-enrolment-code.txt");
        fs::write(&given, format!("\u{feff}{code}\r\n"))?;
        Ok(given)
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.state().join("agent.log")).unwrap_or_default());
        }
    }
}

fn processor(name: &str) -> Result<Processor> {
    PROCESSORS.into_iter().find(|p| p.name == name).context("a kind of processor")
}

fn package(processor: Processor, build: u32, agent: &Program) -> Result<Vec<u8>> {
    let agent = fs::read(&agent.path)?;
    let release = Release { version: "0.1.0", build, time: 1_700_000_000, licence: "MIT OR Apache-2.0" };
    let package = Qpkg { release, processor, agent: &agent }.build()?;
    let faults = qpkg::faults(&package, processor);
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(package)
}

fn life(processor: Processor, said: Option<&'static str>, agent: &Program) -> Result<()> {
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let machine = processor.machines.rsplit(' ').next().context("a machine")?;
    let nas = Nas::new(machine, said, agent)?;
    let first = package(processor, 1, agent)?;
    nas.install(&first)?;
    ensure!(nas.field("Enable")? == "TRUE" && nas.field("Version")? == "0.1.0-1");
    for link in ["etc/rcS.d/QS101flotilla-agent", "etc/rcK.d/QK899flotilla-agent"] {
        ensure!(nas.root.path(link).is_symlink(), "{link}");
    }
    ensure!(nas.root.path("home/httpd/RSS/images/flotilla-agent_80.gif").exists());
    ensure!(nas.service("status")? == Some(0));
    nas.wait_for_log("no enrolment code yet")?;
    ensure!(nas.root.process("flotilla-agent\0run")?.is_none(), "nothing to run yet");

    // The code in the share is all there is to do.
    let made = world.flotilla(&["token", "create", "--code", "--tag", "AGENT_NAME=nas"])?;
    let code = made["code"].as_str().context("a code")?;
    let given = nas.give(code)?;
    world.wait_online(&["nas"])?;
    let [id] = &world.ids("nas")?[..] else { bail!("one agent") };
    ensure!(!given.exists(), "who reads the share finds no code");
    wait_until("the token to be spent and gone", LIMIT, || {
        Ok((!nas.state().join("enrolment-code").exists()).then_some(()))
    })?;
    ensure!(
        !fs::read_to_string(nas.state().join("agent.log"))?.contains(&code[40..]),
        "the code is in no log"
    );
    let mode = fs::metadata(nas.state())?.permissions().mode() & 0o777;
    ensure!(mode == 0o700, "{mode:o}");

    // The job: a relative folder lies where the owner sees it.
    let source = world.path().join("films");
    fs::create_dir_all(source.join("2026"))?;
    fs::write(source.join("2026/a.mp4"), vec![7; 300_000])?;
    let _base = world.agent("base", &[])?;
    let run = world.distribute(("base", &source), &[("nas", Path::new("films"))])?;
    world.wait_success(&run, LIMIT)?;
    let files = nas.public().join("flotilla/films");
    ensure!(differences(&source, &files)?.is_empty());

    // A boot: what ran is gone, and the box starts what its links name.
    nas.root.kill("supervise.sh", LIMIT)?;
    nas.root.kill("flotilla-agent\0run", LIMIT)?;
    ensure!(nas.service("status")? == Some(1), "dead, with a pid file");
    ensure!(nas.run(&["/etc/rcS.d/QS101flotilla-agent", "start"])?.status.success());
    world.wait_online(&["nas"])?;
    // Who has a fleet takes no code, whoever gives it.
    let given = nas.give(code)?;
    nas.wait_for_looks()?;
    ensure!(given.exists());
    fs::remove_file(&given)?;

    // An upgrade keeps what the owner changed, and who the agent is.
    let config = nas.state().join("agent.toml");
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    nas.install(&package(processor, 2, agent)?)?;
    world.wait_online(&["nas"])?;
    ensure!(nas.field("Version")? == "0.1.0-2");
    ensure!(world.ids("nas")? == [id.clone()], "{:?}", world.ids("nas")?);
    ensure!(fs::read_to_string(&config)?.contains("lan = false"));
    fs::write(source.join("2026/b.mp4"), vec![8; 100_000])?;
    let again = world.flotilla(&["jobs", "start", "job-1"])?;
    world.wait_success(again["run"].as_str().context("a run")?, LIMIT)?;

    // So does one to an older one, of an app that is turned off: it stays so.
    ensure!(nas.service("stop")? == Some(0) && nas.service("status")? == Some(3));
    ensure!(nas.run(&["/sbin/setcfg", NAME, "Enable", "FALSE", "-f", CONF])?.status.success());
    nas.install(&first)?;
    ensure!(nas.field("Enable")? == "FALSE" && nas.field("Version")? == "0.1.0-1");
    ensure!(nas.service("start")? == Some(1), "turned off");
    ensure!(nas.root.process("flotilla-agent")?.is_none());
    ensure!(nas.run(&["/sbin/setcfg", NAME, "Enable", "TRUE", "-f", CONF])?.status.success());
    ensure!(nas.service("start")? == Some(0));
    world.wait_online(&["nas"])?;

    let uninstall = format!("{}/.uninstall.sh", nas.field("Install_Path")?);
    ensure!(nas.run(&[&uninstall])?.status.success());
    ensure!(nas.root.process("flotilla-agent")?.is_none(), "{:?}", nas.root.process("flotilla-agent")?);
    ensure!(!nas.programs().join(NAME).exists());
    for link in
        ["etc/init.d/flotilla-agent.sh", "etc/rcS.d/QS101flotilla-agent", "etc/rcK.d/QK899flotilla-agent"]
    {
        ensure!(!nas.root.path(link).is_symlink(), "{link}");
    }
    ensure!(nas.state().join("agent/state.redb").exists(), "nothing tells an upgrade from the end");
    ensure!(differences(&source, &files)?.is_empty(), "the data stays");
    Ok(())
}

#[test]
fn from_the_code_in_the_share_to_the_data_that_stays() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    life(processor("x86_64")?, None, &Program::of_this_machine())
}

/// With the program that such a box gets, on the volume that its owner chose.
#[test]
fn on_armv7_from_the_code_in_the_share_to_the_data_that_stays() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let said = Some("/share/CACHEDEV2_DATA/.qpkg");
    Program::shipped("armv7")?.map_or(Ok(()), |agent| life(processor("arm-x41")?, said, &agent))
}

/// Boxes of other kinds, damaged files, full volumes and what was broken off.
#[test]
fn what_cannot_be_installed_leaves_what_was_there() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let agent = Program::of_this_machine();
    let nas = Nas::new("x86_64", None, &agent)?;
    let here = processor("x86_64")?;
    let first = package(here, 1, &agent)?;
    let foreign = package(processor("arm_64")?, 1, &agent)?;
    nas.refuses(&foreign, "", "for boxes with arm_64; this one says x86_64")?;
    ensure!(!nas.programs().exists() && !nas.root.path("etc/rcS.d/QS101flotilla-agent").is_symlink());
    nas.install(&first)?;
    nas.wait_for_log("no enrolment code yet")?;
    let runs = nas.root.process("supervise.sh")?;

    let second = package(here, 2, &agent)?;
    nas.refuses(&second[..second.len() / 2], "", "could not be unpacked")?;
    let mut damaged = second.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    nas.refuses(&damaged, "", "could not be unpacked")?;
    // No file may be as large as the program: as if the volume were full.
    nas.refuses(&second, "ulimit -f 100;", "could not be unpacked")?;
    nas.refuses(&foreign, "", "for boxes with arm_64")?;
    ensure!(nas.root.process("supervise.sh")? == runs && runs.is_some(), "it was never stopped");

    // The volume is locked: there is no share.
    let (conf, aside) = (nas.root.path("etc/config/smb.conf"), nas.root.path("etc/config/smb.aside"));
    fs::rename(&conf, &aside)?;
    nas.refuses(&second, "", "no volume with the share Public")?;
    ensure!(nas.service("restart")? == Some(1), "a share that is not there is not made");
    fs::rename(&aside, &conf)?;

    // Power went between two names.
    fs::rename(nas.programs().join(NAME), nas.programs().join(format!(".{NAME}.old")))?;
    nas.install(&second)?;
    ensure!(nas.field("Version")? == "0.1.0-2" && nas.service("status")? == Some(0));
    ensure!(!nas.programs().join(format!(".{NAME}.old")).exists());
    Ok(())
}

/// Anybody in the network may write to the share: half an hour after the start it is too late.
#[test]
fn a_code_that_comes_too_late_is_not_taken() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let agent = Program::of_this_machine();
    let nas = Nas::new("x86_64", None, &agent)?;
    nas.install(&package(processor("x86_64")?, 1, &agent)?)?;
    ensure!(nas.service("stop")? == Some(0));
    fs::remove_file(nas.state().join("agent.log"))?;
    // What the script reads the machine's seconds with.
    let shell = nas.field("Shell")?;
    let started = nas.script_after("cut() { printf '%s\\n' -1800; };", &[&shell, "start"])?;
    ensure!(started.status.success(), "{started:?}");
    nas.wait_for_log("no enrolment code yet")?;
    let given = nas.give(&format!("flotilla-{}", "a".repeat(100)))?;
    nas.wait_for_looks()?;
    ensure!(given.exists() && !nas.state().join("enrolment-code").exists());
    Ok(())
}
