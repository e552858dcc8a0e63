//! A NAS owner installs the package and types one code (DESIGN §9.2): the package is unpacked and its scripts are run in a
//! root of their own, in the order and with the variables that DSM has for them, by BusyBox's shell and as the package's
//! user. What runs in it is the real agent: the one built for tests, and the one that is shipped for ARM, emulated.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{BusyBox, Options, Program, World, differences, wait_until};
use packages::Release;
use packages::spk::{self, Dsm, NAME, Spk};
use packages::tree::Tree;

/// The user that DSM makes for the package.
const USER: u32 = 1500;
const LIMIT: Duration = Duration::from_secs(90);

/// A box: what DSM knows of one package.
struct Nas {
    root: BusyBox,
    dsm: Dsm,
}

impl Nas {
    fn new(dsm: Dsm, agent: &Program) -> Result<Self> {
        let root = BusyBox::new(&["volume1/@appstore", "volume1/@appdata", "volume2"], agent)?;
        let nas = Self { root, dsm };
        fs::create_dir_all(nas.package(""))?;
        Ok(nas)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.path(inside)
    }

    fn package(&self, inside: &str) -> PathBuf {
        self.path("var/packages").join(NAME).join(inside)
    }

    fn target(&self) -> PathBuf {
        self.path("volume1/@appstore").join(NAME)
    }

    /// The agent's state.
    fn state(&self) -> PathBuf {
        match self.dsm {
            Dsm::Six => self.target().join("var"),
            Dsm::Seven => self.path("volume1/@appdata").join(NAME),
        }
    }

    /// Of the name that the package asks for: on DSM 7 one that the owner had already, on another volume.
    fn share(&self) -> PathBuf {
        self.path(if self.dsm == Dsm::Seven { "volume2/flotilla" } else { "volume1/flotilla" })
    }

    /// Runs a script as the package's user, in a mount namespace of its own that goes with the last process in it.
    fn script(&self, script: &str, args: &[&str], status: &str, wizard: &[(&str, &str)]) -> Result<Output> {
        let shown = self.path("tmp/shown");
        fs::write(&shown, "")?;
        chown(&shown, Some(USER), Some(USER))?;
        let mut env: BTreeMap<&str, String> = BTreeMap::from([
            ("SYNOPKG_PKGNAME", NAME.into()),
            ("SYNOPKG_PKGDEST", format!("/var/packages/{NAME}/target")),
            ("SYNOPKG_PKGDEST_VOL", "/volume1".into()),
            ("SYNOPKG_PKG_STATUS", status.into()),
            ("SYNOPKG_TEMP_LOGFILE", "/tmp/shown".into()),
            ("SYNOPKG_TEMP_UPGRADE_FOLDER", "/volume1/@tmp-upgrade".into()),
            ("PATH", "/bin".into()),
        ]);
        if self.dsm == Dsm::Seven {
            env.insert("SYNOPKG_PKGVAR", format!("/var/packages/{NAME}/var"));
        }
        env.extend(wizard.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let env = env.into_iter().map(|(key, value)| (key.to_owned(), value));
        let script = format!("/var/packages/{NAME}/scripts/{script}");
        Ok(self.root.command(USER, env).arg(script).args(args).output()?)
    }

    /// The same, which is to succeed.
    fn succeed(&self, script: &str, args: &[&str], status: &str, wizard: &[(&str, &str)]) -> Result<()> {
        let output = self.script(script, args, status, wizard)?;
        ensure!(output.status.success(), "{script} {args:?}: {output:?}, shown: {}", self.shown()?);
        Ok(())
    }

    /// What Package Center shows of the last script.
    fn shown(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("tmp/shown"))?)
    }

    fn service(&self, verb: &str) -> Result<Option<i32>> {
        Ok(self.script("start-stop-status", &[verb], verb, &[])?.status.code())
    }

    /// Unpacks the scripts, and checks the package as far as the public rules go.
    fn take(&self, package: &[u8]) -> Result<Tree> {
        let faults = spk::faults(package, self.dsm)?;
        ensure!(faults.is_empty(), "{faults:?}");
        let tree = Tree::read_tar(package)?;
        let _ = fs::remove_dir_all(self.package("scripts"));
        BusyBox::put(&self.package(""), &tree, |path| path.starts_with("scripts/"))?;
        Ok(tree)
    }

    /// What DSM does between preinst and postinst: the program's folder, state.
    fn unpack(&self, tree: &Tree) -> Result<()> {
        let content = Tree::read_tar_gz(&tree.get("package.tgz").context("package.tgz")?.bytes)?;
        BusyBox::put(&self.target(), &content, |_| true)?;
        link(&format!("/volume1/@appstore/{NAME}"), &self.package("target"))?;
        if self.dsm == Dsm::Seven {
            fs::create_dir_all(self.state())?;
            chown(self.state(), Some(USER), Some(USER))?;
            link(&format!("/volume1/@appdata/{NAME}"), &self.package("var"))?;
        }
        Ok(chown(self.target(), Some(USER), Some(USER))?)
    }

    /// What the package's resources are, which DSM makes before it starts the package.
    fn resources(&self) -> Result<()> {
        if self.dsm == Dsm::Seven {
            fs::create_dir_all(self.package("shares"))?;
            link("/volume2/flotilla", &self.package("shares/flotilla"))?;
        }
        fs::create_dir_all(self.share())?;
        Ok(chown(self.share(), Some(USER), Some(USER))?)
    }

    fn install(&self, package: &[u8], wizard: &[(&str, &str)]) -> Result<()> {
        let tree = self.take(package)?;
        self.succeed("preinst", &[], "INSTALL", wizard)?;
        self.unpack(&tree)?;
        self.succeed("postinst", &[], "INSTALL", wizard)?;
        self.resources()?;
        self.succeed("start-stop-status", &["start"], "INSTALL", &[])
    }

    /// In DSM's order; the program's folder is replaced, and with it what lies in it.
    fn upgrade(&self, package: &[u8]) -> Result<()> {
        self.succeed("start-stop-status", &["prestop"], "UPGRADE", &[])?;
        self.succeed("start-stop-status", &["stop"], "UPGRADE", &[])?;
        let kept = self.path("volume1/@tmp-upgrade");
        fs::create_dir_all(&kept)?;
        chown(&kept, Some(USER), Some(USER))?;
        let old = self.package("scripts.old");
        let _ = fs::remove_dir_all(&old);
        fs::rename(self.package("scripts"), &old)?;
        let tree = self.take(package)?;
        self.succeed("preupgrade", &[], "UPGRADE", &[])?;
        let new = self.package("scripts.new");
        fs::rename(self.package("scripts"), &new)?;
        fs::rename(&old, self.package("scripts"))?;
        self.succeed("preuninst", &[], "UPGRADE", &[])?;
        self.succeed("postuninst", &[], "UPGRADE", &[])?;
        fs::remove_dir_all(self.package("scripts"))?;
        fs::rename(&new, self.package("scripts"))?;
        fs::remove_dir_all(self.target())?;
        self.succeed("preinst", &[], "UPGRADE", &[])?;
        self.unpack(&tree)?;
        self.succeed("postinst", &[], "UPGRADE", &[])?;
        self.succeed("postupgrade", &[], "UPGRADE", &[])?;
        fs::remove_dir_all(&kept)?;
        self.succeed("start-stop-status", &["prestart"], "UPGRADE", &[])?;
        self.succeed("start-stop-status", &["start"], "UPGRADE", &[])
    }

    fn uninstall(&self, wizard: &[(&str, &str)]) -> Result<()> {
        self.succeed("start-stop-status", &["stop"], "UNINSTALL", &[])?;
        self.succeed("preuninst", &[], "UNINSTALL", wizard)?;
        self.succeed("postuninst", &[], "UNINSTALL", wizard)?;
        if self.target().exists() {
            fs::remove_dir_all(self.target())?;
        }
        Ok(())
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.state().join("agent.log")).unwrap_or_default());
        }
    }
}

fn link(to: &str, at: &Path) -> Result<()> {
    let _ = fs::remove_file(at);
    Ok(symlink(to, at)?)
}

fn package(dsm: Dsm, build: u32, agent: &Program) -> Result<Vec<u8>> {
    let agent = fs::read(&agent.path)?;
    let release = Release { version: "0.1.0", build, time: 1_700_000_000, licence: "MIT OR Apache-2.0" };
    Ok(Spk { release, dsm, platforms: &["x86_64"], agent: &agent }.build()?)
}

fn code(world: &World, name: &str) -> Result<String> {
    let tag = format!("AGENT_NAME={name}");
    let made = world.flotilla(&["token", "create", "--code", "--tag", &tag])?;
    Ok(made["code"].as_str().context("a code")?.to_owned())
}

/// From the code in the wizard to data that stays behind.
fn life(dsm: Dsm, agent: &Program) -> Result<()> {
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let nas = Nas::new(dsm, agent)?;
    let first = package(dsm, 1, agent)?;

    // What is no code is told before anything is changed.
    nas.take(&first)?;
    let refused = nas.script("preinst", &[], "INSTALL", &[("wizard_code", "0193.abc")])?;
    ensure!(!refused.status.success() && nas.shown()?.contains("no enrolment code"), "{}", nas.shown()?);

    let code = code(&world, "nas")?;
    nas.install(&first, &[("wizard_code", &code)])?;
    world.wait_online(&["nas"])?;
    let [id] = &world.ids("nas")?[..] else { panic!("one agent") };
    ensure!(nas.service("status")? == Some(0));
    ensure!(!nas.state().join("enrolment-code").exists(), "the token is spent and gone");
    let log = fs::read_to_string(nas.state().join("agent.log"))?;
    let said = agent_proto::parse_enrolment_code(&code)?.bootstrap_token.context("a token")?;
    let secret = said.split('.').nth(1).context("a secret")?;
    ensure!(!log.contains(secret) && !log.contains(&code[40..]), "the code is in no log");
    ensure!(fs::metadata(nas.state().join("agent.toml"))?.permissions().mode() & 0o077 == 0);

    // The job: a relative folder lies in the shared folder.
    let source = world.path().join("films");
    fs::create_dir_all(source.join("2026"))?;
    fs::write(source.join("2026/a.mp4"), vec![7; 300_000])?;
    let _base = world.agent("base", &[])?;
    let run = world.distribute(("base", &source), &[("nas", Path::new("films/all"))])?;
    world.wait_success(&run, LIMIT)?;
    ensure!(differences(&source, &nas.share().join("films/all"))?.is_empty());
    let mode = fs::metadata(nas.share().join("films"))?.permissions().mode();
    ensure!(mode & 0o055 == 0o055, "others see what came: {mode:o}");

    // A member takes no code, whoever may write to the shared folder.
    let given = nas.share().join("flotilla-enrolment-code.txt");
    fs::write(&given, format!("flotilla-{}", "A".repeat(60)))?;
    // Nobody but the package looks after the program.
    nas.root.kill("flotilla-agent\0run", LIMIT)?;
    wait_until("the agent to be started again", LIMIT, || nas.root.process("flotilla-agent\0run"))?;
    world.wait_online(&["nas"])?;
    ensure!(given.exists() && !nas.state().join("enrolment-code").exists());
    fs::remove_file(&given)?;
    if dsm == Dsm::Seven {
        let supervisor = fs::read_to_string(nas.state().join("supervise.pid"))?;
        ensure!(Command::new("kill").args(["-9", supervisor.trim()]).status()?.success());
        ensure!(nas.service("status")? == Some(1), "dead, with a pid file");
        // An agent that lost its supervisor ends all the same.
        ensure!(nas.service("stop")? == Some(0) && nas.root.process("flotilla-agent\0run")?.is_none());
        ensure!(nas.service("start")? == Some(0) && nas.service("start")? == Some(0));
        ensure!(nas.root.processes("supervise.sh")?.len() == 1, "twice is once");
    }

    // What the owner changed, and who the agent is, stay.
    let config = nas.state().join("agent.toml");
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    nas.upgrade(&package(dsm, 2, agent)?)?;
    world.wait_online(&["nas"])?;
    ensure!(world.ids("nas")? == [id.clone()], "{:?}", world.ids("nas")?);
    ensure!(fs::read_to_string(&config)?.contains("lan = false"));
    fs::write(source.join("2026/b.mp4"), vec![8; 100_000])?;
    let again = world.flotilla(&["jobs", "start", "job-1"])?;
    world.wait_success(again["run"].as_str().context("a run")?, LIMIT)?;

    if dsm == Dsm::Seven {
        nas.uninstall(&[])?;
        nas.install(&first, &[])?;
        world.wait_online(&["nas"])?;
        ensure!(world.ids("nas")? == [id.clone()], "who the agent is stays unless its owner says otherwise");
    }
    nas.uninstall(&[("wizard_delete_state", "true")])?;
    ensure!(nas.root.process("flotilla-agent\0run")?.is_none());
    ensure!(nas.root.process("supervise.sh")?.is_none());
    ensure!(!nas.state().join("agent").exists());
    ensure!(differences(&source, &nas.share().join("films/all"))?.is_empty(), "the data stays");
    Ok(())
}

#[test]
fn dsm_7_from_the_code_to_the_data_that_stays() -> Result<()> {
    if BusyBox::possible() { life(Dsm::Seven, &Program::of_this_machine()) } else { Ok(()) }
}

#[test]
fn dsm_6_from_the_code_to_the_data_that_stays() -> Result<()> {
    if BusyBox::possible() { life(Dsm::Six, &Program::of_this_machine()) } else { Ok(()) }
}

/// With the program that such a box gets.
fn shipped_life(dsm: Dsm, name: &str) -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    Program::shipped(name)?.map_or(Ok(()), |agent| life(dsm, &agent))
}

#[test]
fn dsm_7_on_armv7_from_the_code_to_the_data_that_stays() -> Result<()> {
    shipped_life(Dsm::Seven, "armv7")
}

#[test]
fn dsm_6_on_armv7_from_the_code_to_the_data_that_stays() -> Result<()> {
    shipped_life(Dsm::Six, "armv7")
}

#[test]
#[ignore = "measures what CI does not build"]
fn dsm_6_on_armv5_from_the_code_to_the_data_that_stays() -> Result<()> {
    shipped_life(Dsm::Six, "armv5")
}

#[test]
fn a_silent_installation_takes_its_code_from_the_shared_folder() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let world = World::new(&Options::default())?;
    let agent = Program::of_this_machine();
    let nas = Nas::new(Dsm::Seven, &agent)?;
    nas.install(&package(Dsm::Seven, 1, &agent)?, &[])?;
    ensure!(nas.service("status")? == Some(0));
    let log = nas.state().join("agent.log");
    wait_until("it to be told", LIMIT, || {
        Ok(fs::read_to_string(&log)?.contains("no enrolment code yet").then_some(()))
    })?;
    ensure!(nas.root.process("flotilla-agent\0run")?.is_none());
    let given = nas.share().join("flotilla-enrolment-code.txt");
    // What is no code, and one that is not for this service any more: then another may be given.
    let give = |text: &str| {
        fs::write(&given, text)?;
        chown(&given, Some(USER), Some(USER))
    };
    give("flotilla-")?;
    let spent = world.flotilla(&["token", "create", "--code"])?;
    world.flotilla(&["token", "revoke", spent["id"].as_str().context("an id")?])?;
    give(spent["code"].as_str().context("a code")?)?;
    wait_until("it to be taken", LIMIT, || Ok((!given.exists()).then_some(())))?;
    // As an editor of Windows writes it, broken by a mail.
    let code = code(&world, "nas")?;
    give(&format!("\u{feff}  {}\r\n{}\r\n", &code[..60], &code[60..]))?;
    world.wait_online(&["nas"])?;
    ensure!(!given.exists(), "who can read the shared folder does not need it");
    ensure!(nas.service("stop")? == Some(0) && nas.service("status")? == Some(3));
    Ok(())
}
