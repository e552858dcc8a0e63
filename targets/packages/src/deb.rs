//! Packages of Debian and what comes from it (`targets/FORMATS.md` §3), and a check of them by Debian's rules as far as
//! `dpkg` holds by them; lintian, which knows more, is asked by `tests/e2e/tests/linux_packages.rs`.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use md5::{Digest as _, Md5};

use crate::Release;
use crate::linux::{self, CONFIG, DESCRIPTION, MAINTAINER, NAME, SUMMARY};
use crate::tree::{Tree, UNPACKED_MAX, gzip};

/// The scripts that dpkg calls.
const SCRIPTS: [(&str, &[u8]); 3] = [
    ("postinst", asset!("linux/deb/postinst")),
    ("prerm", asset!("linux/deb/prerm")),
    ("postrm", asset!("linux/deb/postrm")),
];

/// The archive's members, in the order that dpkg demands.
const MEMBERS: [&str; 3] = ["debian-binary", "control.tar.gz", "data.tar.gz"];

/// Debian's names of processors that there are packages for.
pub const ARCHITECTURES: [&str; 5] = ["amd64", "i386", "arm64", "armhf", "armel"];

/// A package for one processor.
pub struct Deb<'a> {
    /// The release.
    pub release: Release<'a>,
    /// One of [`ARCHITECTURES`].
    pub architecture: &'a str,
    /// The agent, static, for it.
    pub agent: &'a [u8],
}

impl Deb<'_> {
    /// `flotilla-agent_1.2.3-1_amd64.deb`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{NAME}_{}_{}.deb", self.release.packaging(), self.architecture)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let time = self.release.time;
        let data = self.data()?;
        let mut control = Tree::default()
            .data("control", self.control(&data))
            .data("conffiles", format!("/{CONFIG}\n"))
            .data("md5sums", sums(&data));
        for (name, script) in SCRIPTS {
            control = control.program(name, script);
        }
        let contents = [b"2.0\n".to_vec(), control.dotted_tar_gz(&[], time)?, data.dotted_tar_gz(&[], time)?];
        let mut archive = ar::Builder::new(Vec::new());
        for (name, content) in MEMBERS.iter().zip(&contents) {
            let mut header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
            header.set_mode(0o100_644);
            header.set_mtime(time);
            archive.append(&header, &content[..])?;
        }
        archive.into_inner()
    }

    fn data(&self) -> io::Result<Tree> {
        let copyright = [asset!("linux/deb/copyright"), &include_bytes!("../../../LICENSE-MIT")[..]].concat();
        let doc = |name: &str| format!("usr/share/doc/{NAME}/{name}");
        Ok(linux::files(self.agent)?
            .data("lib/systemd/system/flotilla-agent.service", linux::UNIT)
            .data(&doc("changelog.Debian.gz"), gzip(self.changelog()?.as_bytes())?)
            .data(&doc("copyright"), copyright)
            .data(&format!("usr/share/lintian/overrides/{NAME}"), asset!("linux/deb/lintian-overrides")))
    }

    fn control(&self, data: &Tree) -> String {
        let kilobytes = data.files().map(|(_, file)| file.bytes.len().div_ceil(1024)).sum::<usize>();
        let fields = [
            ("Package", NAME.to_owned()),
            ("Version", self.release.packaging()),
            ("Architecture", self.architecture.to_owned()),
            ("Maintainer", MAINTAINER.to_owned()),
            ("Installed-Size", kilobytes.to_string()),
            ("Depends", "adduser, init-system-helpers (>= 1.54~)".to_owned()),
            ("Section", "net".to_owned()),
            ("Priority", "optional".to_owned()),
            ("Description", SUMMARY.to_owned()),
        ];
        let lines = fields.iter().map(|(key, value)| format!("{key}: {value}\n"));
        lines.chain(DESCRIPTION.iter().map(|line| format!(" {line}\n"))).collect()
    }

    fn changelog(&self) -> io::Result<String> {
        let date = self.release.date()?;
        let (weekday, month) = (date.weekday().to_string(), date.month().to_string());
        Ok(format!(
            "{NAME} ({}) unstable; urgency=medium\n\n  * Release {} of Flotilla.\n\n -- {MAINTAINER}  {}, {:02} {} \
             {} {:02}:{:02}:{:02} +0000\n",
            self.release.packaging(),
            self.release.version,
            &weekday[..3],
            date.day(),
            &month[..3],
            date.year(),
            date.hour(),
            date.minute(),
            date.second()
        ))
    }
}

/// The list of checksums that dpkg keeps of what it unpacked.
fn sums(data: &Tree) -> String {
    let files = data.files().filter(|(path, _)| *path != CONFIG);
    files.map(|(path, file)| format!("{}  {path}\n", md5_of(&file.bytes))).collect()
}

fn md5_of(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is wrong with a package; empty if nothing is.
pub fn faults(package: &[u8], architecture: &str) -> io::Result<Vec<String>> {
    let mut members = Vec::new();
    let mut archive = ar::Archive::new(package);
    while let Some(entry) = archive.next_entry() {
        let entry = entry?;
        let name = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        let mut bytes = Vec::new();
        let size = entry.header().size();
        entry.take(UNPACKED_MAX).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Ok(vec![format!("{name} is cut")]);
        }
        members.push((name, bytes));
    }
    if !members.iter().map(|(name, _)| name.as_str()).eq(MEMBERS) {
        let names: Vec<&String> = members.iter().map(|(name, _)| name).collect();
        return Ok(vec![format!("its members are {names:?}")]);
    }
    let mut faults = Vec::new();
    if members[0].1 != b"2.0\n" {
        faults.push("another version of the format".into());
    }
    let (control, data) = (Tree::read_tar_gz(&members[1].1)?, Tree::read_tar_gz(&members[2].1)?);
    let text = |path: &str| {
        control.get(path).and_then(|file| std::str::from_utf8(&file.bytes).ok()).unwrap_or_default()
    };
    faults.extend(control_faults(text("control"), architecture));
    for (name, _) in SCRIPTS {
        match control.get(name) {
            Some(file) if file.mode & 0o111 != 0 && file.bytes.starts_with(b"#!/bin/sh\n") => {}
            _ => faults.push(format!("{name} is missing, or no script that can be run")),
        }
    }
    for path in text("conffiles").lines() {
        if path.strip_prefix('/').and_then(|path| data.get(path)).is_none() {
            faults.push(format!("the configuration {path} is not in the package"));
        }
    }
    if text("md5sums") != sums(&data) {
        faults.push("md5sums is not of what is in the package".into());
    }
    for (path, file) in data.files() {
        if path.starts_with("etc/") && !text("conffiles").lines().any(|line| line == format!("/{path}")) {
            faults.push(format!("{path} would be overwritten by an upgrade: it is no conffile"));
        }
        if file.mode & 0o7022 != 0 {
            faults.push(format!("{path} has mode {:o}", file.mode));
        }
    }
    Ok(faults)
}

fn control_faults(control: &str, architecture: &str) -> Vec<String> {
    let fields: BTreeMap<&str, &str> = control
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_once(": "))
        .collect();
    let mut faults = Vec::new();
    for key in ["Package", "Version", "Architecture", "Maintainer", "Description"] {
        if !fields.contains_key(key) {
            faults.push(format!("control: {key} is missing"));
        }
    }
    let get = |key| fields.get(key).copied().unwrap_or_default();
    let fits = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    if !fits(get("Package"), "+-.") || !fits(get("Version"), "+-.~") {
        faults.push(format!("control: {} {} is no name and version", get("Package"), get("Version")));
    }
    if get("Architecture") != architecture || !ARCHITECTURES.contains(&architecture) {
        faults.push(format!("control: it is for {:?}", get("Architecture")));
    }
    if !control.ends_with('\n') || control.contains("\n\n") || control.contains('\r') {
        faults.push("control: it is no single paragraph of whole lines".into());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: &str) -> Vec<u8> {
        let release = Release { version, build: 2, time: 1_700_000_000, licence: "" };
        Deb { release, architecture: "armhf", agent: b"\x7fELF" }.build().expect("built")
    }

    fn pack(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut archive = ar::Builder::new(Vec::new());
        for (name, content) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
            archive.append(&header, &content[..]).expect("appended");
        }
        archive.into_inner().expect("written")
    }

    fn members() -> [Vec<u8>; 3] {
        let package = sample("0.1.0");
        let mut archive = ar::Archive::new(&package[..]);
        MEMBERS.map(|_| {
            let mut bytes = Vec::new();
            archive.next_entry().expect("there").expect("read").read_to_end(&mut bytes).expect("read");
            bytes
        })
    }

    #[test]
    fn packages_hold_by_the_rules_and_are_always_the_same() {
        assert_eq!(faults(&sample("0.1.0"), "armhf").expect("read"), [""; 0]);
        assert_eq!(sample("0.1.0"), sample("0.1.0"));
        // What every reader of the format finds: the mark, and the first member with its time.
        assert!(
            sample("0.1.0")
                .starts_with(b"!<arch>\ndebian-binary   1700000000  0     0     100644  4         `\n2.0\n")
        );
        let release = Release { version: "1.2.3", build: 1, time: 1_700_000_000, licence: "" };
        let deb = Deb { release, architecture: "amd64", agent: b"" };
        assert_eq!(deb.file_name(), "flotilla-agent_1.2.3-1_amd64.deb");
        assert!(deb.changelog().expect("a date").ends_with(">  Tue, 14 Nov 2023 22:13:20 +0000\n"));
    }

    #[test]
    fn every_rule_finds_what_breaks_it() {
        let [mark, control, data] = members();
        let changed = |path: &str, content: Option<&str>| {
            let tree = Tree::read_tar_gz(&control).expect("read");
            let mut other = Tree::default();
            for (at, file) in tree.files().filter(|(at, _)| *at != path) {
                let make = if file.mode & 0o111 == 0 { Tree::data } else { Tree::program };
                other = make(other, at, file.bytes.clone());
            }
            let other = content.map_or(other.clone(), |text| other.data(path, text));
            let control = other.dotted_tar_gz(&[], 0).expect("written");
            pack(&[(MEMBERS[0], mark.clone()), (MEMBERS[1], control), (MEMBERS[2], data.clone())])
        };
        let field = |from: &str, to: &str| {
            let tree = Tree::read_tar_gz(&control).expect("read");
            let text = String::from_utf8(tree.get("control").expect("there").bytes.clone()).expect("text");
            assert!(text.contains(from), "{from}");
            changed("control", Some(&text.replace(from, to)))
        };
        let turned =
            pack(&[(MEMBERS[0], mark.clone()), (MEMBERS[2], data.clone()), (MEMBERS[1], control.clone())]);
        let other = Tree::default().data("etc/other", "").dotted_tar_gz(&[], 0).expect("written");
        for (what, package) in [
            ("members", turned),
            (
                "format",
                pack(&[
                    (MEMBERS[0], b"3.0\n".to_vec()),
                    (MEMBERS[1], control.clone()),
                    (MEMBERS[2], data.clone()),
                ]),
            ),
            (
                "no conffile",
                pack(&[(MEMBERS[0], mark.clone()), (MEMBERS[1], control.clone()), (MEMBERS[2], other)]),
            ),
            ("Package is missing", changed("control", None)),
            ("Version is missing", field("Version", "Vision")),
            ("no name", field("0.1.0-2", "0.1.0_2")),
            ("it is for", field("armhf", "sparc")),
            ("paragraph", field("Section: net\n", "Section: net\n\n")),
            ("postinst", changed("postinst", Some("#!/bin/sh\n"))),
            ("prerm", changed("prerm", None)),
            ("md5sums", changed("md5sums", Some("0  usr/bin/flotilla-agent\n"))),
            ("not in the package", changed("conffiles", Some("/etc/elsewhere\n"))),
            ("no conffile", changed("conffiles", None)),
        ] {
            let found = faults(&package, "armhf").expect("read");
            assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
        }
        assert!(!faults(&sample("0.1.0"), "amd64").expect("read").is_empty());
    }

    #[test]
    fn what_is_cut_or_damaged_is_told() {
        let whole = sample("0.1.0");
        // All but the byte that makes the last member's length even.
        for len in 0..whole.len() - 1 {
            let found = faults(&whole[..len], "armhf");
            assert!(found.map_or(true, |faults| !faults.is_empty()), "{len}");
        }
        let mut damaged = whole.clone();
        for (at, byte) in whole.iter().enumerate().take(2000) {
            damaged[at] ^= 0x41;
            let _ = faults(&damaged, "armhf");
            damaged[at] = *byte;
        }
    }
}
