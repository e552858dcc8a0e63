//! `targets/targets.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// All rows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    #[serde(rename = "program")]
    pub(super) programs: Vec<Program>,
    #[serde(rename = "spk")]
    pub(super) packages: Vec<Package>,
    pub(super) wd: Vec<WdPackage>,
    pub(super) qpkg: Vec<LinuxPackage>,
    pub(super) deb: Vec<LinuxPackage>,
    pub(super) ipk: Vec<LinuxPackage>,
    pub(super) rpm: Vec<LinuxPackage>,
    /// How packages are tested, by kind.
    pub(super) tested: BTreeMap<String, String>,
}

/// A program for some processors. The fields are explained in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub(super) triple: String,
    pub(super) name: String,
    pub(super) machine: String,
    #[serde(default)]
    pub(super) emulator: Vec<String>,
    pub(super) cpu: String,
    /// `Tag_CPU_arch` that it must have been compiled for.
    pub(super) arm_arch: Option<u64>,
    /// It is the control service and the tracker instead of an agent.
    #[serde(default)]
    pub(super) service: bool,
    pub(super) max_mb: f64,
    pub(super) max_rest_mb: f64,
    pub(super) support: String,
}

/// A Synology package.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Package {
    pub(super) dsm: u32,
    pub(super) program: String,
    pub(super) name: String,
    pub(super) platforms: Vec<String>,
}

/// A WD My Cloud's packages.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WdPackage {
    pub(super) model: String,
    pub(super) program: String,
    pub(super) os: Vec<u32>,
}

/// A package of a whole Linux system.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinuxPackage {
    pub(super) program: String,
    /// The system's name of the processor.
    pub(super) architecture: String,
}

impl Table {
    /// Of the tree at `root`.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let path = &root.join("targets/targets.toml");
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let table: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let packed = table.packages.iter().map(|p| &p.program);
        let packed = packed.chain(table.wd.iter().map(|p| &p.program));
        let packed = packed.chain(
            table.deb.iter().chain(&table.ipk).chain(&table.rpm).chain(&table.qpkg).map(|p| &p.program),
        );
        for program in packed {
            let known = table.programs.iter().any(|p| p.name == *program && !p.service);
            ensure!(known, "{}: there is no agent {program}", path.display());
        }
        Ok(table)
    }
}

impl Program {
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.triple == name
    }

    /// The profile that it is built with, cargo's packages, and the names of their programs.
    pub(super) fn made_of(&self) -> (&'static str, &'static [&'static str], &'static [&'static str]) {
        match self.service {
            true => ("dist-service", &["control", "tracker"], &["flotilla", "flotilla-tracker"]),
            false => ("dist", &["agent"], &["flotilla-agent"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use packages::wd::Os;

    use super::*;

    #[test]
    fn the_table_is_whole_and_every_platform_has_one_package_a_generation() {
        let table = Table::of(&crate::workspace::root()).expect("read");
        assert_eq!(table.programs.len(), 7);
        let mut seen = std::collections::BTreeSet::new();
        for package in &table.packages {
            for platform in &package.platforms {
                assert!(
                    seen.insert((package.dsm, platform)),
                    "{platform} is there twice for DSM {}",
                    package.dsm
                );
            }
        }
        for model in packages::wd::MODELS {
            let row = table.wd.iter().find(|row| row.model == model.name);
            assert_eq!(
                row.map(|row| row.os.len()),
                Some(1 + usize::from(model.newest > Os::Three)),
                "{model:?}"
            );
        }
        // What a system calls a processor is the processor of the program.
        for (architecture, machine) in
            [("amd64", "x86_64"), ("i386", "i386"), ("arm64", "aarch64"), ("armhf", "arm"), ("armel", "arm")]
        {
            let row = table.deb.iter().find(|row| row.architecture == architecture).expect(architecture);
            let program = table.programs.iter().find(|p| p.name == row.program).expect("known");
            assert_eq!(program.machine, machine, "{architecture}");
            let soft_float = program.triple.ends_with("eabi");
            assert_eq!(soft_float, architecture == "armel", "{architecture}");
        }
        for row in table.ipk.iter().chain(&table.rpm) {
            let program = table.programs.iter().find(|p| p.name == row.program).expect("known");
            assert!(row.architecture.starts_with(&program.machine), "{}", row.architecture);
        }
        // The platforms that Flotilla set out for.
        for code in [
            "88f6281",
            "alpine",
            "armada370",
            "armada375",
            "armada38x",
            "armadaxp",
            "avoton",
            "braswell",
            "bromolow",
            "cedarview",
            "comcerto2k",
            "evansport",
            "geminilake",
            "monaco",
            "x86",
            "x64",
        ] {
            assert!(seen.contains(&(6, &code.to_owned())), "{code}");
        }
    }
}
