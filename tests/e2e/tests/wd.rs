//! A WD My Cloud's owner installs the package and gives the code on its page: the package's scripts are run in a root of
//! their own, in the order that these boxes have, by BusyBox's shell and as root, which they run as there. The page's
//! program is called by BusyBox's web server as somebody without rights. What runs is the real agent: the one built for
//! tests, and those that are shipped for ARM, emulated.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{BusyBox, Options, Program, World, differences, wait_until};
use packages::Release;
use packages::tree::Tree;
use packages::wd::{self, MODELS, Model, NAME, Os, Wd};

const LIMIT: Duration = Duration::from_secs(90);
/// Who the web server is.
const NOBODY: u32 = 65534;
const PROGRAMS: &str = "/mnt/HD/HD_a2/Nas_Prog";
const UPLOADED: &str = "/mnt/HD/HD_a2/.upload";

struct Nas {
    root: BusyBox,
    os: Os,
    model: Model,
}

impl Nas {
    fn new(os: Os, model: Model, agent: &Program) -> Result<Self> {
        let nas = Self { root: BusyBox::new(&[&PROGRAMS[1..], &UPLOADED[1..]], agent)?, os, model };
        nas.boot()?;
        Ok(nas)
    }

    /// What a boot makes anew.
    fn boot(&self) -> Result<()> {
        for folder in ["var", "usr"] {
            let _ = fs::remove_dir_all(self.root.path(folder));
        }
        let pages = if self.os == Os::Five { "var/www/apps" } else { "var/www" };
        for folder in [pages, "var/www/cgi-bin", "var/run", "usr/bin"] {
            fs::create_dir_all(self.root.path(folder))?;
        }
        Ok(())
    }

    fn program(&self) -> PathBuf {
        self.root.path(&PROGRAMS[1..]).join(NAME)
    }

    fn state(&self) -> PathBuf {
        self.root.path(&PROGRAMS[1..]).join(format!("_{NAME}_state"))
    }

    fn files(&self) -> PathBuf {
        self.root.path("mnt/HD/HD_a2/flotilla")
    }

    fn script(&self, script: &str, args: &[&str]) -> Result<()> {
        let path = ("PATH".to_owned(), "/bin".to_owned());
        let output = self.root.command(0, [path]).arg(script).args(args).output()?;
        ensure!(output.status.success(), "{script}: {output:?}");
        Ok(())
    }

    fn own(&self, script: &str) -> Result<()> {
        let app = format!("{PROGRAMS}/{NAME}");
        self.script(&format!("{app}/{script}"), &[&app])
    }

    /// In the box's order; with something installed already it is an upgrade.
    fn install(&self, package: &[u8]) -> Result<()> {
        let faults = wd::faults(package, self.os, self.model);
        ensure!(faults.is_empty(), "{faults:?}");
        let head = if self.os == Os::Five { 204 } else { 200 };
        let tree = Tree::read_tar_gz(&package[head..])?;
        BusyBox::put(&self.root.path(&UPLOADED[1..]), &tree, |_| true)?;
        let uploaded = format!("{UPLOADED}/{NAME}");
        if self.program().exists() {
            self.own("stop.sh")?;
            self.own("clean.sh")?;
            self.script(&format!("{uploaded}/preinst.sh"), &[])?;
            self.own("remove.sh")?;
        } else {
            self.script(&format!("{uploaded}/preinst.sh"), &[])?;
        }
        self.script(&format!("{uploaded}/install.sh"), &[&uploaded, PROGRAMS])?;
        fs::remove_dir_all(self.root.path(&uploaded[1..]))?;
        self.own("init.sh")?;
        self.own("start.sh")
    }

    /// Status and body of what the box's web server says.
    fn page(&self, method: &str, path: &str, code: Option<&str>) -> Result<(u16, String)> {
        let mut child = self
            .root
            .command(NOBODY, [("PATH".to_owned(), "/bin".to_owned())])
            .args(["/bin/httpd", "-i", "-h", "/var/www"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let code = code.map(|code| format!("X-Flotilla-Code: {code}\r\n")).unwrap_or_default();
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let asked = format!("{method} {path} HTTP/1.0\r\nHost: nas\r\n{code}{length}\r\n");
        child.stdin.take().context("piped")?.write_all(asked.as_bytes())?;
        let mut answer = String::new();
        child.stdout.take().context("piped")?.read_to_string(&mut answer)?;
        child.wait()?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("an answer: {answer:?}"))?;
        let status = head.split_whitespace().nth(1).context("a status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    fn agent(&self) -> Result<String> {
        Ok(self.page("GET", "/cgi-bin/flotilla-agent.cgi", None)?.1.trim().to_owned())
    }

    fn wait_for(&self, said: &str) -> Result<()> {
        wait_until(said, LIMIT, || Ok((self.agent()? == said).then_some(())))
    }

    fn give(&self, code: &str) -> Result<u16> {
        Ok(self.page("POST", "/cgi-bin/flotilla-agent.cgi", Some(code))?.0)
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.state().join("agent.log")).unwrap_or_default());
        }
    }
}

fn package(os: Os, model: Model, build: u32, agent: &Program) -> Result<Vec<u8>> {
    let agent = fs::read(&agent.path)?;
    let release = Release { version: "0.1.0", build, time: 1_700_000_000, licence: "MIT OR Apache-2.0" };
    Ok(Wd { release, os, model, agent: &agent }.build()?)
}

fn life(os: Os, model: Model, agent: &Program) -> Result<()> {
    let world = World::new(&Options { tracker: true, ..Options::default() })?;
    let nas = Nas::new(os, model, agent)?;
    let first = package(os, model, 1, agent)?;
    nas.install(&first)?;
    let home = if os == Os::Five { "/apps/flotilla-agent/" } else { "/flotilla-agent/" };
    let (status, html) = nas.page("GET", home, None)?;
    ensure!(status == 200 && html.contains("Enrolment code"), "{status}");
    ensure!(nas.root.process("flotilla-agent\0run")?.is_none(), "nothing to run yet");
    nas.wait_for(r#"{"agent":"waiting","takes_codes":true}"#)?;

    // What is no code, what is no request of the page, and what comes too late.
    let made = world.flotilla(&["token", "create", "--code", "--tag", "AGENT_NAME=nas"])?;
    let code = made["code"].as_str().context("a code")?;
    for no_code in ["", "flotilla-", "0193.abc", "flotilla-$(reboot)", &format!("{code};reboot"), &code[1..]]
    {
        ensure!(nas.give(no_code)? == 400, "{no_code}");
    }
    ensure!(nas.give(&format!("flotilla-{}", "a".repeat(2100)))? == 400);
    ensure!(nas.page("POST", "/cgi-bin/flotilla-agent.cgi", None)?.0 == 400);
    ensure!(nas.page("GET", "/cgi-bin/flotilla-agent.cgi", Some(code))?.0 == 200);
    let until = nas.root.path("var/run/flotilla-agent/until");
    let open = fs::read_to_string(&until)?;
    fs::write(&until, "1\n")?;
    ensure!(nas.give(code)? == 403 && nas.agent()?.contains("false"));
    fs::write(&until, &open)?;
    ensure!(fs::read_dir(nas.root.path("var/run/flotilla-agent/given"))?.next().is_none());

    // The code on the page is all there is to do.
    ensure!(nas.give(code)? == 202);
    world.wait_online(&["nas"])?;
    let [id] = &world.ids("nas")?[..] else { panic!("one agent") };
    wait_until("the token to be spent and gone", LIMIT, || {
        Ok((!nas.state().join("enrolment-code").exists()).then_some(()))
    })?;
    nas.wait_for(r#"{"agent":"running","takes_codes":false}"#)?;
    let log = fs::read_to_string(nas.state().join("agent.log"))?;
    ensure!(!log.contains(&code[40..]), "the code is in no log");

    // The job: a relative folder lies on the volume, beside the owner's shares.
    let source = world.path().join("films");
    fs::create_dir_all(source.join("2026"))?;
    fs::write(source.join("2026/a.mp4"), vec![7; 300_000])?;
    let _base = world.agent("base", &[])?;
    let run = world.distribute(("base", &source), &[("nas", Path::new("films"))])?;
    world.wait_success(&run, LIMIT)?;
    ensure!(differences(&source, &nas.files().join("films"))?.is_empty());

    // A boot: all that ran is gone, and scripts are called without saying where they are.
    nas.root.kill("supervise.sh", LIMIT)?;
    nas.root.kill("flotilla-agent\0run", LIMIT)?;
    nas.boot()?;
    nas.script(&format!("{PROGRAMS}/{NAME}/init.sh"), &[])?;
    nas.script(&format!("{PROGRAMS}/{NAME}/start.sh"), &[])?;
    world.wait_online(&["nas"])?;
    // Who has a fleet takes no code, whoever gives it.
    nas.wait_for(r#"{"agent":"running","takes_codes":false}"#)?;
    ensure!(nas.give(code)? == 403);

    // An upgrade removes the old package; what the owner changed, and who the agent is, stay.
    let config = nas.state().join("agent.toml");
    fs::write(&config, fs::read_to_string(&config)? + "lan = false\n")?;
    nas.install(&package(os, model, 2, agent)?)?;
    world.wait_online(&["nas"])?;
    ensure!(world.ids("nas")? == [id.clone()], "{:?}", world.ids("nas")?);
    ensure!(fs::read_to_string(&config)?.contains("lan = false"));
    fs::write(source.join("2026/b.mp4"), vec![8; 100_000])?;
    let again = world.flotilla(&["jobs", "start", "job-1"])?;
    world.wait_success(again["run"].as_str().context("a run")?, LIMIT)?;

    for script in ["stop.sh", "clean.sh", "remove.sh"] {
        nas.own(script)?;
    }
    ensure!(
        !nas.program().exists() && nas.root.process("flotilla-agent")?.is_none(),
        "{:?}",
        nas.root.process("flotilla-agent")?
    );
    ensure!(nas.page("GET", home, None)?.0 == 404);
    ensure!(nas.state().join("agent/state.redb").exists(), "nothing tells an upgrade from the end");
    ensure!(differences(&source, &nas.files().join("films"))?.is_empty(), "the data stays");
    Ok(())
}

#[test]
fn os_3_from_the_code_on_the_page_to_the_data_that_stays() -> Result<()> {
    if BusyBox::possible() { life(Os::Three, MODELS[0], &Program::of_this_machine()) } else { Ok(()) }
}

#[test]
fn os_5_from_the_code_on_the_page_to_the_data_that_stays() -> Result<()> {
    if BusyBox::possible() { life(Os::Five, MODELS[3], &Program::of_this_machine()) } else { Ok(()) }
}

/// With the program that such a box gets.
fn shipped_life(os: Os, model: &str, name: &str) -> Result<()> {
    let model = MODELS.into_iter().find(|m| m.name == model).context("a model")?;
    if !BusyBox::possible() {
        return Ok(());
    }
    Program::shipped(name)?.map_or(Ok(()), |agent| life(os, model, &agent))
}

#[test]
fn os_3_on_armv7_from_the_code_on_the_page_to_the_data_that_stays() -> Result<()> {
    shipped_life(Os::Three, "WDMyCloudEX2", "armv7")
}

#[test]
fn os_5_on_armv7_from_the_code_on_the_page_to_the_data_that_stays() -> Result<()> {
    shipped_life(Os::Five, "WDMyCloudEX4100", "armv7")
}

#[test]
#[ignore = "measures what CI does not build"]
fn os_3_on_armv5_from_the_code_on_the_page_to_the_data_that_stays() -> Result<()> {
    shipped_life(Os::Three, "WDMyCloudEX4", "armv5")
}

/// An upgrade that is broken off while it copies leaves the program that was there.
#[test]
fn a_full_volume_leaves_what_was_installed() -> Result<()> {
    if !BusyBox::possible() {
        return Ok(());
    }
    let (os, model) = (Os::Five, MODELS[3]);
    let agent = Program::of_this_machine();
    let nas = Nas::new(os, model, &agent)?;
    nas.install(&package(os, model, 1, &agent)?)?;
    let before = fs::read_to_string(nas.program().join("apkg.rc"))?;
    let tree = Tree::read_tar_gz(&package(os, model, 2, &agent)?[204..])?;
    BusyBox::put(&nas.root.path(&UPLOADED[1..]), &tree, |_| true)?;
    let uploaded = format!("{UPLOADED}/{NAME}");
    // No file may be as large as the program: as if the disk were full half-way.
    let limited = format!("ulimit -f 100; {uploaded}/install.sh {uploaded} {PROGRAMS}");
    let path = ("PATH".to_owned(), "/bin".to_owned());
    let output = nas.root.command(0, [path]).args(["/bin/sh", "-c", &limited]).output()?;
    ensure!(!output.status.success(), "{output:?}");
    ensure!(fs::read_to_string(nas.program().join("apkg.rc"))? == before);
    ensure!(nas.program().join("bin/flotilla-agent").exists());
    ensure!(!nas.root.path(&PROGRAMS[1..]).join(".flotilla-agent.new").exists());
    Ok(())
}
