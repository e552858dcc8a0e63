//! `cargo xtask dist`: static agents for other processors, and the packages made of them, in `target/dist`.
//!
//! `table` reads `targets/targets.toml`, `tree` lays out the commit that is built, `cross` builds programs, the crate
//! `packages` has the formats, `sbom` says what is in them, `page` writes down what was measured. The same commit gives the same bytes.

mod cross;
mod crossfile;
mod linux;
mod page;
mod sbom;
mod sign;
mod table;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use packages::Release;
use packages::elf::Elf;
use packages::spk::{self, Dsm, Spk};
use packages::wd::{self, Os, Wd};

use self::cross::Cross;
use self::page::{Job, Measured};
use self::table::{Package, Program, Table, WdPackage};
use self::tree::Commit;
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
    /// Then run the main job with what was built, each on the processor it is for, and write down what was measured
    #[arg(long, conflicts_with = "list")]
    check: bool,
    /// Build each program again in a new folder elsewhere, Rust's library for it too: the bytes have to be the same
    #[arg(long, conflicts_with = "list")]
    twice: bool,
    /// Only write the tables of docs/targets.md and Cross.toml anew, from what was measured before
    #[arg(long, conflicts_with_all = ["list", "check", "twice", "targets", "sign"])]
    table: bool,
    /// Sign the list of checksums with this SSH key
    #[arg(long, value_name = "KEY", conflicts_with = "list")]
    sign: Option<PathBuf>,
    /// Which packaging of this version it is
    #[arg(long, default_value_t = 1, value_name = "N")]
    build: u32,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let table = Table::of(&workspace.root)?;
    if options.table {
        page::write(&workspace.root)?;
        crossfile::write(&workspace.root)?;
        return Ok(ExitCode::SUCCESS);
    }
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
    tree::refuse_other_packers(&workspace.root)?;
    let commit = Commit::newest(&workspace.root)?;
    let tools = tools::install()?;
    let out = workspace.target.join("dist");
    if options.targets.is_empty() && out.exists() {
        // All of it is made anew: nothing of another commit stays beside it.
        fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    println!("commit {}", commit.id);
    let programs = build(&workspace, &commit, &chosen, options.twice, &out)?;
    let packages = pack_all(&table, &programs, &commit, options.build, &workspace.root)?;
    for (path, bytes) in &packages {
        println!("{path}: {} bytes", bytes.len());
        place(&out.join(path), bytes, 0o644)?;
    }
    let list = out.join(SUMS);
    let _ = fs::remove_file(sign::beside(&list));
    fs::write(&list, sums(&out)?)?;
    match &options.sign {
        Some(key) => sign::sign(&list, key)?,
        None => println!("{SUMS} is not signed (--sign KEY)"),
    }
    println!("all is in {}", out.display());
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(build_programs().status()?.success(), "the programs of the main job do not build");
    let figures = tempfile::tempdir()?;
    let mut jobs = main_job(&workspace, tools, &chosen, &out, figures.path());
    if !jobs.status().context("running cargo-nextest")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let mut measured =
        if options.targets.is_empty() { Measured::default() } else { Measured::read(&workspace.root)? };
    for (program, bytes) in &programs {
        let job = Job::read(figures.path(), &program.name)?;
        measured.take(job.seen(&program.name, commit.short(), bytes, options.twice)?, &table);
    }
    // A recipe is no package.
    for (path, bytes) in packages.into_iter().filter(|(path, _)| !path.starts_with("container/")) {
        measured.take_package(path, bytes.len() as u64);
    }
    measured.write(&workspace.root)?;
    page::write(&workspace.root)?;
    page::missing(&table, &measured).iter().for_each(|what| println!("still to do: {what}"));
    Ok(ExitCode::SUCCESS)
}

/// For tests of what is shipped: the one program that CI builds, of the tree as it is, held to the table's size.
pub(crate) fn for_tests(workspace: &Workspace) -> Result<()> {
    let table = Table::of(&workspace.root)?;
    let chosen: Vec<&Program> = table.programs.iter().filter(|p| p.name == IN_CI).collect();
    let commit = Commit::as_it_is(&workspace.root, &workspace.target.join("as-it-is.index"))?;
    build(workspace, &commit, &chosen, false, &workspace.target.join(FOR_TESTS))?;
    Ok(())
}

/// The program that CI builds: the one of most boxes.
const IN_CI: &str = "armv7";

/// Where `for_tests` puts it, in the target folder.
pub(crate) const FOR_TESTS: &str = "dist-for-tests";

/// A row's program that was built; of a service `flotilla`.
type Built<'a> = (&'a Program, Vec<u8>);

/// Builds programs into `out/bin`, each once it has shown what it has to be.
fn build<'a>(
    workspace: &Workspace,
    commit: &Commit,
    chosen: &[&'a Program],
    twice: bool,
    out: &Path,
) -> Result<Vec<Built<'a>>> {
    let tools = workspace.target.join("tools/cross");
    let cross = Cross::new(&tools, &workspace.target.join("cross"), commit)?;
    let mut built = Vec::new();
    for &program in chosen {
        let begun = Instant::now();
        let files = cross.programs(program)?;
        let took = begun.elapsed().as_secs();
        let folder = out.join("bin").join(&program.name);
        for (name, bytes) in &files {
            check(program, bytes)?;
            let new = folder.join(name).with_extension("new");
            place(&new, bytes, 0o755)?;
            println!("{:<8} {} bytes, {}, {took} s", program.name, bytes.len(), answer(program, &new)?);
        }
        if twice {
            build_again(workspace, &tools, commit, program, &files, &folder)?;
        }
        let (_, packages, _) = program.made_of();
        for (&package, (name, bytes)) in packages.iter().zip(&files) {
            fs::rename(folder.join(name).with_extension("new"), folder.join(name))?;
            let file = sbom::File { package, name, bytes };
            let document = sbom::of(program, file, cross.tree(), commit, &cross.parts())?;
            let of = program.name.trim_start_matches("service-");
            place(&out.join(format!("sbom/{name}-{of}.cdx.json")), &document, 0o644)?;
        }
        let (_, first) = files.into_iter().next().context("a program")?;
        built.push((program, first));
    }
    Ok(built)
}

/// Builds a program in a new folder elsewhere, Rust's library for it too: the bytes have to be the same. What differs is
/// left in `folder`.
fn build_again(
    workspace: &Workspace,
    tools: &Path,
    commit: &Commit,
    program: &Program,
    files: &[(&str, Vec<u8>)],
    folder: &Path,
) -> Result<()> {
    let elsewhere =
        tempfile::Builder::new().prefix("again-in-another-folder-").tempdir_in(&workspace.target)?;
    let again = Cross::new(tools, elsewhere.path(), commit)?.programs(program)?;
    for ((name, bytes), (_, again)) in files.iter().zip(&again) {
        if let Some(at) = first_difference(bytes, again) {
            let kept = folder.join(name).with_extension("again");
            place(&kept, again, 0o755)?;
            bail!("{} is not the same twice, from byte {at} on: {}", program.name, kept.display());
        }
    }
    println!("{:<8} the same bytes in {}", program.name, elsewhere.path().display());
    Ok(())
}

/// Where two programs part.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let common = one.iter().zip(other).position(|(a, b)| a != b);
    common.or_else(|| (one.len() != other.len()).then(|| one.len().min(other.len())))
}

/// All packages of the programs, by their paths in `out`.
fn pack_all(
    table: &Table,
    programs: &[Built<'_>],
    commit: &Commit,
    build: u32,
    root: &Path,
) -> Result<Vec<(String, Vec<u8>)>> {
    let licence = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| commit.file(root, name));
    let [mit, apache] = licence;
    let licence =
        format!("Flotilla is free under either of two licences, as you choose.\n\n{}\n{}", mit?, apache?);
    let release = Release { version: env!("CARGO_PKG_VERSION"), build, time: commit.time, licence: &licence };
    let built = |name: &str| programs.iter().find(|(p, _)| p.name == name).map(|(_, bytes)| bytes.as_slice());
    let mut packages = Vec::new();
    for package in &table.packages {
        let Some(agent) = built(&package.program) else { continue };
        let (name, bytes) = pack(package, release, agent)?;
        packages.push((format!("synology/{name}"), bytes));
    }
    for package in &table.wd {
        let Some(agent) = built(&package.program) else { continue };
        for os in &package.os {
            let (name, bytes) = pack_wd(package, *os, release, agent)?;
            packages.push((format!("wd/{name}"), bytes));
        }
    }
    packages.extend(linux::packages(table, release, built)?);
    Ok(packages)
}

/// Checksums of all that is there, in the form of `sha256sum`.
fn sums(out: &Path) -> Result<String> {
    let mut list = String::new();
    for entry in walkdir::WalkDir::new(out).sort_by_file_name() {
        let entry = entry?;
        let name = entry.path().strip_prefix(out)?;
        let own = name == Path::new(SUMS) || name == sign::beside(Path::new(SUMS));
        if entry.file_type().is_file() && !own {
            list += &format!("{}  {}\n", tools::sha256_of(&fs::read(entry.path())?), name.display());
        }
    }
    Ok(list)
}

/// Those end-to-end tests that are about these programs, also those that CI leaves to us.
fn main_job(
    workspace: &Workspace,
    tools: tools::Tools,
    chosen: &[&Program],
    out: &Path,
    figures: &Path,
) -> Command {
    let tests: Vec<String> = chosen.iter().map(|p| format!("test(/{}/)", regex_of(&p.name))).collect();
    let mut command = tools.cargo_nextest.map_or_else(cargo, Command::new);
    command.current_dir(&workspace.root);
    forget_package(&mut command);
    command.args(["nextest", "run", "--package", "e2e", "--run-ignored", "all", "--no-fail-fast"]);
    command.args(["--test", "processors", "--test", "nas", "--test", "wd"]);
    command.args(["--filterset", &tests.join(" or ")]);
    command.env("FLOTILLA_BINARIES", workspace.target.join("debug"));
    command.env("FLOTILLA_DIST", out).env("FLOTILLA_REQUIRE_DIST", "1").env("FLOTILLA_FIGURES", figures);
    command
}

/// Tests whose names have this row's name among their words; those of a service are not those of its processor's agent.
fn regex_of(row: &str) -> String {
    match row.strip_prefix("service-") {
        Some(processor) => format!("^service_{processor}_"),
        None => format!("^{row}_|_(on|for)_{row}(_|$)"),
    }
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
    let limit = page::limit(program.max_mb);
    if bytes.len() as u64 > limit {
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
    fn programs_that_differ_are_told_by_where() {
        assert_eq!(first_difference(b"agent", b"agent"), None);
        assert_eq!(first_difference(b"agent", b"agenT"), Some(4));
        assert_eq!(first_difference(b"agent", b"agents"), Some(5));
        assert_eq!(first_difference(b"agents", b"agent"), Some(5));
    }

    #[test]
    fn a_rows_tests_are_named_after_it() {
        assert_eq!(regex_of("service-aarch64"), "^service_aarch64_");
        assert_eq!(regex_of("armv7"), "^armv7_|_(on|for)_armv7(_|$)");
    }

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
        fs::write(sign::beside(&out.path().join(SUMS)), "signed").expect("written");
        assert_eq!(sums(out.path()).expect("read"), list);
    }
}
