//! `cargo xtask dist`: static agents for other processors, and the packages made of them, in `target/dist`.
//!
//! `table` reads `targets/targets.toml`, `cross` builds programs, the crate `packages` has the formats. The same commit
//! gives the same bytes.

mod cross;
mod linux;
mod table;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use packages::Release;
use packages::elf::Elf;
use packages::spk::{self, Dsm, Spk};
use packages::wd::{self, Os, Wd};

use self::cross::Cross;
use self::table::{Package, Program, Table, WdPackage};
use crate::tools;
use crate::workspace::{Workspace, build_programs, cargo, forget_package};

/// The list of checksums.
const SUMS: &str = "SHA256SUMS";

#[derive(Args)]
pub(crate) struct Options {
    /// Programs to build, by name or triple (default: all), and the packages that need no others
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// Tell what there is, and build nothing
    #[arg(long)]
    list: bool,
    /// Then run the main job with what was built, each on the processor it is for
    #[arg(long, conflicts_with = "list")]
    check: bool,
    /// Which packaging of this version it is
    #[arg(long, default_value_t = 1, value_name = "N")]
    build: u32,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let table = Table::read(&workspace.root.join("targets/targets.toml"))?;
    if options.list {
        for program in &table.programs {
            println!("{:<8} {:<32} {} ({})", program.name, program.triple, program.cpu, program.support);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let unknown = options.targets.iter().find(|name| !table.programs.iter().any(|p| p.is_called(name)));
    if let Some(name) = unknown {
        let names: Vec<&str> = table.programs.iter().map(|p| p.name.as_str()).collect();
        bail!("targets/targets.toml has no program {name}; it has {}", names.join(", "));
    }
    let wanted = |p: &&Program| options.targets.is_empty() || options.targets.iter().any(|t| p.is_called(t));
    let chosen: Vec<&Program> = table.programs.iter().filter(wanted).collect();
    let tools = tools::install()?;
    tools::install_emulators()?;
    let out = workspace.target.join("dist");
    if options.targets.is_empty() && out.exists() {
        // All of it is made anew: nothing of another commit stays beside it.
        fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    let time = commit_time(&workspace.root)?;
    let cross = Cross::new(&workspace, time)?;
    let mut programs = Vec::new();
    for program in &chosen {
        let begun = Instant::now();
        let bytes = cross.agent(program)?;
        check(program, &bytes)?;
        let path = out.join("bin").join(&program.name).join("flotilla-agent");
        let new = path.with_extension("new");
        place(&new, &bytes, 0o755)?;
        let said = answer(program, &new)?;
        fs::rename(&new, &path)?;
        println!("{:<8} {} bytes, {said}, {} s", program.name, bytes.len(), begun.elapsed().as_secs());
        programs.push((&program.name, bytes));
    }
    let licence = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| fs::read_to_string(workspace.root.join(name)));
    let [mit, apache] = licence;
    let licence =
        format!("Flotilla is free under either of two licences, as you choose.\n\n{}\n{}", mit?, apache?);
    let release =
        Release { version: env!("CARGO_PKG_VERSION"), build: options.build, time, licence: &licence };
    let built = |name: &str| programs.iter().find(|(p, _)| *p == name).map(|(_, bytes)| bytes.as_slice());
    let mut packages = Vec::new();
    for package in &table.packages {
        let Some(agent) = built(&package.program) else { continue };
        let (name, bytes) = pack(package, release, agent)?;
        packages.push((out.join("synology").join(name), bytes));
    }
    for package in &table.wd {
        let Some(agent) = built(&package.program) else { continue };
        for os in &package.os {
            let (name, bytes) = pack_wd(package, *os, release, agent)?;
            packages.push((out.join("wd").join(name), bytes));
        }
    }
    for (name, bytes) in linux::packages(&table, release, built)? {
        packages.push((out.join(name), bytes));
    }
    for (path, bytes) in packages {
        println!("{}: {} bytes", path.file_name().unwrap_or_default().display(), bytes.len());
        place(&path, &bytes, 0o644)?;
    }
    fs::write(out.join(SUMS), sums(&out)?)?;
    println!("all is in {}", out.display());
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(build_programs().status()?.success(), "the programs of the main job do not build");
    let status = main_job(&workspace, tools, &chosen, &out).status().context("running cargo-nextest")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checksums of all that is there, in the form of `sha256sum`.
fn sums(out: &Path) -> Result<String> {
    let mut list = String::new();
    for entry in walkdir::WalkDir::new(out).sort_by_file_name() {
        let entry = entry?;
        let name = entry.path().strip_prefix(out)?;
        if entry.file_type().is_file() && name != Path::new(SUMS) {
            list += &format!("{}  {}\n", tools::sha256_of(&fs::read(entry.path())?), name.display());
        }
    }
    Ok(list)
}

/// What of `tests/e2e/tests/processors.rs` is about these programs.
fn main_job(workspace: &Workspace, tools: tools::Tools, chosen: &[&Program], out: &Path) -> Command {
    let mut tests: Vec<String> = chosen.iter().map(|p| format!("test(/^{}_/)", p.name)).collect();
    if chosen.iter().any(|p| p.emulator.is_empty()) {
        tests.push("test(shipped)".into());
    }
    let mut command = tools.cargo_nextest.map_or_else(cargo, Command::new);
    command.current_dir(&workspace.root);
    forget_package(&mut command);
    command.args(["nextest", "run", "--package", "e2e", "--test", "processors"]);
    command.args(["--filterset", &tests.join(" or ")]);
    command.env("FLOTILLA_BINARIES", workspace.target.join("debug"));
    command.env("FLOTILLA_DIST", out).env("FLOTILLA_REQUIRE_DIST", "1");
    command
}

/// Seconds since 1970 of the commit, which all files in packages have: a time that is part of the input.
fn commit_time(root: &Path) -> Result<u64> {
    let output = Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]).output();
    let output = output.context("running git, which tells the time that files in packages have")?;
    ensure!(output.status.success(), "git log failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.trim().parse().context("the commit's time")
}

/// What a program that is shipped has to be.
fn check(program: &Program, bytes: &[u8]) -> Result<()> {
    let elf = Elf::read(bytes)?;
    let mut faults = elf.faults(&program.machine);
    if let Some(arch) = program.arm_arch
        && elf.arm_arch != Some(arch)
    {
        faults.push(format!("it is for ARM architecture {:?}, not {arch}", elf.arm_arch));
    }
    if program.arm_arch.is_some() && elf.arm_neon.unwrap_or(0) != 0 {
        faults.push("it is compiled for NEON, which not all of these have".into());
    }
    let limit = program.max_mb * 1e6;
    if bytes.len() as f64 > limit {
        faults.push(format!("it has {} bytes, more than {limit}", bytes.len()));
    }
    ensure!(faults.is_empty(), "{}: {}", program.name, faults.join("; "));
    Ok(())
}

/// What the program says of itself where it is to run.
fn answer(program: &Program, path: &Path) -> Result<String> {
    let mut command = match program.emulator.split_first() {
        Some((emulator, args)) => {
            let mut command = Command::new(emulator);
            command.args(args).arg(path);
            command
        }
        None => Command::new(path),
    };
    let output = command.arg("version").output().with_context(|| format!("running {}", program.name))?;
    ensure!(output.status.success(), "{} does not run: {output:?}", program.name);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn pack(package: &Package, release: Release<'_>, agent: &[u8]) -> Result<(String, Vec<u8>)> {
    let dsm = match package.dsm {
        6 => Dsm::Six,
        7 => Dsm::Seven,
        other => bail!("there is no package for DSM {other}"),
    };
    let platforms: Vec<&str> = package.platforms.iter().map(String::as_str).collect();
    let spk = Spk { release, dsm, platforms: &platforms, agent };
    let (name, bytes) =
        (format!("flotilla-agent_{}_dsm{}_{}.spk", spk.version(), package.dsm, package.name), spk.build()?);
    let faults = spk::faults(&bytes, dsm)?;
    ensure!(faults.is_empty(), "{name}: {}", faults.join("; "));
    Ok((name, bytes))
}

fn pack_wd(package: &WdPackage, os: u32, release: Release<'_>, agent: &[u8]) -> Result<(String, Vec<u8>)> {
    let model = wd::MODELS.into_iter().find(|model| model.name == package.model);
    let model = model.with_context(|| format!("there is no package for a {}", package.model))?;
    let system = match os {
        3 => Os::Three,
        5 => Os::Five,
        other => bail!("there is no package for My Cloud OS {other}"),
    };
    let made = Wd { release, os: system, model, agent };
    let (name, bytes) =
        (format!("flotilla-agent_{}_OS{os}_{}.bin", made.version(), package.model), made.build()?);
    let faults = wd::faults(&bytes, system, model);
    ensure!(faults.is_empty(), "{name}: {}", faults.join("; "));
    Ok((name, bytes))
}

fn place(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_there_is_summed_up_and_nothing_else() {
        let out = tempfile::tempdir().expect("room");
        place(&out.path().join("wd/b.bin"), b"b", 0o644).expect("written");
        place(&out.path().join("bin/arm/agent"), b"", 0o755).expect("written");
        let list = sums(out.path()).expect("read");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let b = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d";
        assert_eq!(list, format!("{empty}  bin/arm/agent\n{b}  wd/b.bin\n"));
        fs::write(out.path().join(SUMS), &list).expect("written");
        assert_eq!(sums(out.path()).expect("read"), list);
    }
}
