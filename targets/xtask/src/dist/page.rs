//! What was measured of what is built (`targets/measured.toml`, written by `cargo xtask dist --check`), and the tables
//! made of it in `docs/targets.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::table::{Program, Table};

/// The file that is kept beside the table of targets.
const MEASURED: &str = "targets/measured.toml";
/// The page, and what its generated part stands between.
const PAGE: &str = "docs/targets.md";
const BEGIN: &str =
    "<!-- made by `cargo xtask dist --table` from targets/targets.toml and targets/measured.toml -->\n";
const END: &str = "<!-- end of what is made -->\n";

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    #[serde(default, rename = "program")]
    pub(super) programs: Vec<Seen>,
    #[serde(default, rename = "package")]
    pub(super) packages: Vec<Packed>,
}

/// What a program turned out to be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    pub(super) name: String,
    /// Of which commit.
    pub(super) commit: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    /// It was built in two folders, and was the same.
    pub(super) twice: bool,
    /// Most memory that it had of its own with nothing to do: before its first job, after it, after a restart, after another one.
    pub(super) rest_kib: u64,
    /// Of the test in which it does the main job, there and back.
    pub(super) seconds: f64,
}

/// A package that was made.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Packed {
    /// In `target/dist`; the first folder is its kind.
    pub(super) path: String,
    pub(super) bytes: u64,
}

impl Measured {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(MEASURED);
        if !path.exists() {
            return Ok(Self::default());
        }
        toml::from_str(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())
    }

    /// What was seen of a program replaces what was seen of it before; the rows stay in the table's order.
    pub(super) fn take(&mut self, seen: Seen, table: &Table) {
        self.programs.retain(|old| old.name != seen.name);
        self.programs.push(seen);
        let place = |name: &str| table.programs.iter().position(|p| p.name == name);
        self.programs.retain(|seen| place(&seen.name).is_some());
        self.programs.sort_by_key(|seen| place(&seen.name));
    }

    pub(super) fn take_package(&mut self, path: String, bytes: u64) {
        self.packages.retain(|old| old.path != path);
        self.packages.push(Packed { path, bytes });
        self.packages.sort_by(|a, b| a.path.cmp(&b.path));
    }

    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let text =
            format!("# Written by `cargo xtask dist --check`, never by hand.\n\n{}", toml::to_string(self)?);
        Ok(fs::write(root.join(MEASURED), text)?)
    }
}

/// Puts the tables into the page.
pub(super) fn write(root: &Path) -> Result<()> {
    let path = root.join(PAGE);
    let page = fs::read_to_string(&path)?;
    Ok(fs::write(path, with_tables(&page, &Table::of(root)?, &Measured::read(root)?)?)?)
}

/// The page with its tables as they are now.
fn with_tables(page: &str, table: &Table, measured: &Measured) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page has no place for its tables")?;
    let (_, after) = rest.split_once(END).context("the page's tables have no end")?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", tables(table, measured)?))
}

fn tables(table: &Table, measured: &Measured) -> Result<String> {
    let mut text = String::from(
        "| agent | for | bytes (at most) | memory at rest, KiB (at most) | the main job, there and back | built twice, in different folders |\n|---|---|---|---|---|---|\n",
    );
    for program in &table.programs {
        let seen = measured.programs.iter().find(|seen| seen.name == program.name);
        let (bytes, rest) = (number(limit(program.max_mb)), number(limit(program.max_rest_mb) / 1024));
        let cells = match seen {
            None => ["not yet".to_owned(), "not yet".into(), "not yet".into(), "not yet".into()],
            Some(seen) => [
                number(seen.bytes),
                number(seen.rest_kib),
                format!("{:.0} s, {}", seen.seconds, means(program)),
                if seen.twice { "the same bytes" } else { "not yet" }.into(),
            ],
        };
        let [is, at_rest, job, twice] = cells;
        writeln!(
            text,
            "| `{}` ({}) | {} | {is} ({bytes}) | {at_rest} ({rest}) | {job} | {twice} |",
            program.name, program.triple, program.cpu
        )?;
    }
    text += "\n| package | bytes | tested |\n|---|---|---|\n";
    for package in &measured.packages {
        let kind = package.path.split('/').next().unwrap_or_default();
        let tested = table.tested.get(kind);
        let tested = tested.with_context(|| format!("targets.toml does not say how {kind} is tested"))?;
        let name = package.path.rsplit('/').next().unwrap_or_default();
        writeln!(text, "| `{name}` | {} | {tested} |", number(package.bytes))?;
    }
    Ok(text)
}

/// How a program is run.
fn means(program: &Program) -> String {
    match program.emulator.as_slice() {
        [] => "on the machine itself; also where system calls after Linux 3.2 are refused".into(),
        words => format!("`{}`", words.join(" ")),
    }
}

/// Bytes in so many megabytes.
pub(super) fn limit(megabytes: f64) -> u64 {
    (megabytes * 1e6).round() as u64
}

/// With a comma after each three digits.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What is wrong with what was measured; only tests ask, as nothing that is too large is ever built or passes its own.
#[cfg(test)]
fn faults(table: &Table, measured: &Measured) -> Vec<String> {
    let mut faults = Vec::new();
    for seen in &measured.programs {
        let Some(program) = table.programs.iter().find(|program| program.name == seen.name) else {
            faults.push(format!("{} was measured, and is no program of targets.toml", seen.name));
            continue;
        };
        if seen.bytes > limit(program.max_mb) {
            faults.push(format!(
                "{} has {} bytes, more than {}",
                seen.name,
                seen.bytes,
                limit(program.max_mb)
            ));
        }
        if seen.rest_kib * 1024 > limit(program.max_rest_mb) {
            faults.push(format!("{} has {} KiB at rest, more than allowed", seen.name, seen.rest_kib));
        }
    }
    faults
}

/// Programs that are to be tested and were not measured yet; the page says so.
pub(super) fn missing(table: &Table, measured: &Measured) -> Vec<String> {
    let tested = table.programs.iter().filter(|program| program.support == "tested");
    let unseen = tested.filter(|program| !measured.programs.iter().any(|seen| seen.name == program.name));
    unseen.map(|program| format!("{} was not measured yet", program.name)).collect()
}

/// What `--check` is to have measured.
#[derive(Deserialize)]
pub(super) struct Job {
    rest_kib: u64,
    seconds: f64,
}

impl Job {
    /// What the test of a program wrote.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.json"));
        let text =
            fs::read(&path).with_context(|| format!("{name}'s test measured nothing: {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(super) fn seen(self, name: &str, commit: &str, bytes: &[u8], twice: bool) -> Result<Seen> {
        ensure!(self.rest_kib > 0, "{name} had no memory, which cannot be");
        Ok(Seen {
            name: name.into(),
            commit: commit.into(),
            bytes: bytes.len() as u64,
            sha256: crate::tools::sha256_of(bytes),
            twice,
            rest_kib: self.rest_kib,
            seconds: (self.seconds * 10.0).round() / 10.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    #[test]
    fn the_page_agrees_with_the_table_and_with_what_was_measured() {
        let (table, measured) =
            (Table::of(&root()).expect("a table"), Measured::read(&root()).expect("figures"));
        let page = fs::read_to_string(root().join(PAGE)).expect("a page");
        let made = with_tables(&page, &table, &measured).expect("tables");
        assert!(page == made, "run `cargo xtask dist --table`: the page should have\n{made}");
        assert_eq!(faults(&table, &measured), Vec::<String>::new());
    }

    #[test]
    fn what_is_too_large_or_was_not_looked_at_is_a_fault() {
        let table = Table::of(&root()).expect("a table");
        let arm = table.programs.iter().find(|p| p.name == "armv5").expect("a row");
        let mut measured = Measured::read(&root()).expect("figures");
        let seen = |name: &str, bytes, rest_kib| Seen {
            name: name.into(),
            commit: "c".into(),
            bytes,
            sha256: "s".into(),
            twice: true,
            rest_kib,
            seconds: 1.0,
        };
        measured.take(seen("armv5", limit(arm.max_mb) + 1, limit(arm.max_rest_mb) / 1024), &table);
        assert!(faults(&table, &measured).iter().any(|f| f.starts_with("armv5 has 5000001 bytes")));
        measured.take(seen("armv5", limit(arm.max_mb), limit(arm.max_rest_mb) / 1024 + 1), &table);
        assert!(faults(&table, &measured).iter().any(|f| f.starts_with("armv5 has 11719 KiB at rest")));
        measured.take(seen("armv5", 1, 1), &table);
        assert!(!faults(&table, &measured).iter().any(|f| f.starts_with("armv5 ")));
        assert!(!missing(&table, &measured).iter().any(|f| f.starts_with("armv5 ")));
        measured.programs.retain(|seen| seen.name != "armv5");
        assert!(missing(&table, &measured).iter().any(|f| f.starts_with("armv5 ")));
        // One that the table no longer has is forgotten with the next figure.
        measured.programs.push(seen("vax", 1, 1));
        assert!(faults(&table, &measured).iter().any(|f| f.starts_with("vax ")));
        measured.take(seen("armv5", 1, 1), &table);
        assert!(measured.programs.iter().all(|seen| seen.name != "vax"));
    }

    #[test]
    fn figures_are_read_as_they_were_written_and_numbers_have_commas() {
        let folder = tempfile::tempdir().expect("room");
        fs::create_dir(folder.path().join("targets")).expect("made");
        let mut measured = Measured::default();
        measured.take_package("wd/b.bin".into(), 2);
        measured.take_package("synology/a.spk".into(), 1);
        measured.take_package("wd/b.bin".into(), 3);
        measured.write(folder.path()).expect("written");
        let read = Measured::read(folder.path()).expect("read");
        let list: Vec<(&str, u64)> = read.packages.iter().map(|p| (p.path.as_str(), p.bytes)).collect();
        assert_eq!(list, [("synology/a.spk", 1), ("wd/b.bin", 3)]);
        assert_eq!([0, 999, 1000, 4_999_999].map(number), ["0", "999", "1,000", "4,999,999"]);
        fs::write(folder.path().join("a.json"), "{\"rest_kib\": 0, \"seconds\": 2.04}").expect("written");
        assert!(Job::read(folder.path(), "a").expect("read").seen("a", "c", b"", false).is_err());
        assert!(Job::read(folder.path(), "b").is_err(), "a test that wrote nothing");
    }
}
