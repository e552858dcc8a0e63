//! Synology packages (`targets/FORMATS.md` §1): what DSM 6 and DSM 7 take, and a check of packages by the public rules.

use std::collections::BTreeMap;
use std::io;

use md5::{Digest, Md5};

use crate::Release;
use crate::tree::Tree;

/// The package's id, and the user that its programs run as.
pub const NAME: &str = "flotilla-agent";

/// Scripts that DSM calls; all must be there, even those that do nothing.
const SCRIPTS: [(&str, &[u8]); 7] = [
    ("preinst", asset!("synology/scripts/preinst")),
    ("postinst", asset!("synology/scripts/postinst")),
    ("preuninst", asset!("synology/scripts/preuninst")),
    ("postuninst", asset!("synology/scripts/postuninst")),
    ("preupgrade", asset!("synology/scripts/preupgrade")),
    ("postupgrade", asset!("synology/scripts/postupgrade")),
    ("start-stop-status", asset!("synology/scripts/start-stop-status")),
];

/// Bytes of a licence that DSM shows.
const LICENCE_MAX: usize = 1 << 20;

/// Generations of DSM whose packages differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dsm {
    /// DSM 6.0 to 6.2.
    Six,
    /// DSM 7.
    Seven,
}

impl Dsm {
    /// Side of the smaller icon, pixels.
    fn icon(self) -> u32 {
        if self == Self::Six { 72 } else { 64 }
    }
}

/// A package for some processors.
pub struct Spk<'a> {
    /// The release.
    pub release: Release<'a>,
    /// For which DSM.
    pub dsm: Dsm,
    /// Platform codes that it is for, such as `armada370`, or a family such as `x86_64`.
    pub platforms: &'a [&'a str],
    /// The agent, static, for these.
    pub agent: &'a [u8],
}

impl Spk<'_> {
    /// The version as INFO has it: the release's, and which packaging of it.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}-{:04}", self.release.version, self.release.build)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let content = Tree::default()
            .program("bin/flotilla-agent", self.agent)
            .program("bin/supervise.sh", asset!("common/supervise.sh"))
            .data("port_conf/flotilla-agent.sc", asset!("synology/conf/flotilla-agent.sc"));
        let package = content.tar_gz(&[], self.release.time)?;
        let mut tree = Tree::default()
            .data("INFO", self.info(&package, content.len().div_ceil(1024)))
            .data("scripts/common.sh", asset!("synology/scripts/common.sh"))
            .data("scripts/service.sh", asset!("common/service.sh"))
            .data("conf/privilege", asset!("synology/conf/privilege"))
            .data("conf/resource", asset!("synology/conf/resource"))
            .data("WIZARD_UIFILES/install_uifile", asset!("synology/wizard/install_uifile"))
            .data("LICENSE", self.release.licence)
            .data("PACKAGE_ICON_256.PNG", asset!("synology/icons/256.png"))
            .data("package.tgz", package);
        tree = match self.dsm {
            Dsm::Six => tree.data("PACKAGE_ICON.PNG", asset!("synology/icons/72.png")),
            // DSM 6 removes the state with the program: there is nothing to ask.
            Dsm::Seven => tree
                .data("PACKAGE_ICON.PNG", asset!("synology/icons/64.png"))
                .data("WIZARD_UIFILES/uninstall_uifile", asset!("synology/wizard/uninstall_uifile")),
        };
        for (name, script) in SCRIPTS {
            tree = tree.program(&format!("scripts/{name}"), script);
        }
        tree.tar(&["INFO"], self.release.time)
    }

    fn info(&self, package: &[u8], kilobytes: u64) -> String {
        let system: &[(&str, &str)] = match self.dsm {
            // `firmware` is what DSM before 6.1 reads, and `startable` the older name of `ctl_stop`.
            Dsm::Six => &[
                ("firmware", "6.0-7321"),
                ("os_min_ver", "6.1-14715"),
                ("os_max_ver", "6.9-99999"),
                ("startable", "yes"),
            ],
            Dsm::Seven => &[("os_min_ver", "7.0-40000")],
        };
        let checksum: String = Md5::digest(package).iter().map(|byte| format!("{byte:02x}")).collect();
        let fields = [
            ("package", NAME),
            ("version", &self.version()),
            ("displayname", "Flotilla"),
            (
                "description",
                "Moves large folders between this NAS and other machines of your fleet, over any network.",
            ),
            ("maintainer", "The Flotilla developers"),
            ("arch", &self.platforms.join(" ")),
            ("ctl_stop", "yes"),
            ("silent_install", "yes"),
            ("silent_upgrade", "yes"),
            ("silent_uninstall", "yes"),
            ("checksum", &checksum),
            ("extractsize", &kilobytes.to_string()),
        ];
        let line = |(key, value): &(&str, &str)| format!("{key}=\"{value}\"\n");
        fields.iter().chain(system).map(line).collect()
    }
}

/// What is wrong with a package by the public rules of its DSM; empty if nothing is. As far as they can be told without
/// the box: what Package Center itself says about a package is not to be had here.
pub fn faults(archive: &[u8], dsm: Dsm) -> io::Result<Vec<String>> {
    if archive.starts_with(&[0x1F, 0x8B]) {
        return Ok(vec!["the package itself is compressed; DSM takes plain tar alone (error 263)".into()]);
    }
    let tree = Tree::read_tar(archive)?;
    let mut faults = Vec::new();
    let text = |path: &str| tree.get(path).and_then(|file| std::str::from_utf8(&file.bytes).ok());
    match text("INFO").ok_or("it is missing, or no text".to_owned()).and_then(fields) {
        Ok(info) => faults.extend(info_faults(&info, &tree, dsm)),
        Err(what) => faults.push(format!("INFO: {what}")),
    }
    for (name, _) in SCRIPTS {
        match tree.get(&format!("scripts/{name}")) {
            None => faults.push(format!("scripts/{name} is missing (error 261)")),
            Some(file) if file.mode & 0o111 == 0 => faults.push(format!("scripts/{name} cannot be run")),
            Some(file) if !file.bytes.starts_with(b"#!/bin/sh\n") => {
                faults.push(format!("scripts/{name} is no script of the shell that every box has"));
            }
            Some(file) if file.bytes.contains(&b'\r') => {
                faults.push(format!("scripts/{name} has CR line ends"))
            }
            Some(_) => {}
        }
    }
    let json = |path: &str| serde_json::from_slice::<serde_json::Value>(&tree.get(path)?.bytes).ok();
    match json("conf/privilege") {
        Some(privilege) if privilege["defaults"]["run-as"] == "package" => {}
        Some(_) => faults.push("conf/privilege asks for root: unsigned packages are refused".into()),
        None if dsm >= Dsm::Seven => faults.push("conf/privilege is missing, or no JSON (error 276)".into()),
        None => {}
    }
    if tree.get("conf/resource").is_some() && !json("conf/resource").is_some_and(|v| v.is_object()) {
        faults.push("conf/resource is no JSON object".into());
    }
    for (path, _) in tree.files().filter(|(path, _)| path.starts_with("WIZARD_UIFILES/")) {
        let name = path.trim_start_matches("WIZARD_UIFILES/");
        if !["install_uifile", "upgrade_uifile", "uninstall_uifile"].iter().any(|n| name.starts_with(n)) {
            faults.push(format!("{path}: no such wizard"));
        } else if !name.ends_with(".sh") {
            faults.extend(
                json(path).map_or(Some("no JSON".into()), wizard_fault).map(|w| format!("{path}: {w}")),
            );
        }
    }
    for (path, side) in [("PACKAGE_ICON.PNG", dsm.icon()), ("PACKAGE_ICON_256.PNG", 256)] {
        match tree.get(path).and_then(|file| png_size(&file.bytes)) {
            Some(size) if size == (side, side) => {}
            found => faults.push(format!("{path} is to be {side} × {side}, not {found:?}")),
        }
    }
    if tree.get("LICENSE").is_some_and(|file| file.bytes.len() > LICENCE_MAX) {
        faults.push("LICENSE is longer than 1 MiB".into());
    }
    match tree.get("package.tgz").map(|file| Tree::read_tar_gz(&file.bytes)) {
        Some(Ok(content)) if !content.is_empty() => {}
        Some(Ok(_)) => faults.push("package.tgz is empty".into()),
        Some(Err(error)) => faults.push(format!("package.tgz: {error}")),
        None => faults.push("package.tgz is missing".into()),
    }
    Ok(faults)
}

/// `key="value"` lines.
fn fields(info: &str) -> Result<BTreeMap<&str, &str>, String> {
    let mut fields = BTreeMap::new();
    for (n, line) in info.lines().enumerate() {
        let field = line.split_once('=').and_then(|(key, value)| {
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            (!key.is_empty() && !value.contains('"')).then_some((key, value))
        });
        let (key, value) = field.ok_or_else(|| format!("line {} is not key=\"value\"", n + 1))?;
        if fields.insert(key, value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    if info.contains('\r') { Err("CR line ends".into()) } else { Ok(fields) }
}

fn info_faults(info: &BTreeMap<&str, &str>, tree: &Tree, dsm: Dsm) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |what: String| faults.push(format!("INFO: {what}"));
    for key in ["package", "version", "arch", "description", "maintainer", "os_min_ver"] {
        if info.get(key).is_none_or(|value| value.is_empty()) {
            fault(format!("{key} is missing"));
        }
    }
    let get = |key| info.get(key).copied().unwrap_or_default();
    let plain = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    if !plain(get("package"), "_-") {
        fault(format!("package {:?} has characters beyond A-Z a-z 0-9 _ -", get("package")));
    }
    if !get("version").chars().all(|c| c.is_ascii_digit() || ".-_".contains(c)) {
        fault(format!("version {:?} is more than digits with . - _", get("version")));
    }
    if !plain(get("arch"), "_ ") {
        fault(format!("arch {:?} is no list of platform codes", get("arch")));
    }
    let major = get("os_min_ver").split('.').next().and_then(|major| major.parse::<u32>().ok());
    match (dsm, major) {
        (Dsm::Seven, Some(7..)) => {
            if info.contains_key("firmware") {
                fault("firmware is of DSM before 6.1".into());
            }
        }
        (Dsm::Six, Some(..7)) if info.contains_key("os_max_ver") => {}
        (Dsm::Six, Some(..7)) => fault("os_max_ver is missing: DSM 7 refuses what is for 6".into()),
        _ => fault(format!("os_min_ver {:?} does not fit", get("os_min_ver"))),
    }
    for key in ["ctl_stop", "startable", "silent_install", "silent_upgrade", "silent_uninstall", "beta"] {
        if info.get(key).is_some_and(|value| !["yes", "no"].contains(value)) {
            fault(format!("{key} is neither yes nor no"));
        }
    }
    let package = tree.get("package.tgz").map(|file| Md5::digest(&file.bytes));
    let checksum = package.map(|sum| sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    if info.get("checksum").is_some_and(|told| checksum.as_deref() != Some(told)) {
        fault("checksum is not that of package.tgz".into());
    }
    if info.get("extractsize").is_some_and(|size| size.parse::<u64>().is_err()) {
        fault("extractsize is no number of KB".into());
    }
    faults
}

/// What is wrong with the steps of a wizard.
fn wizard_fault(steps: serde_json::Value) -> Option<String> {
    let Some(steps) = steps.as_array() else { return Some("no list of steps".into()) };
    for step in steps {
        let items = step["items"].as_array().filter(|_| step["step_title"].is_string());
        let Some(items) = items else { return Some("a step without title or items".into()) };
        for item in items {
            let kind = item["type"].as_str().unwrap_or_default();
            if !["textfield", "password", "singleselect", "multiselect", "combobox"].contains(&kind) {
                return Some(format!("an item of type {kind:?}"));
            }
            let keys = item["subitems"].as_array().into_iter().flatten();
            for key in keys.map(|sub| sub["key"].as_str().unwrap_or_default()) {
                if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    return Some(format!("key {key:?} is no name of a variable"));
                }
            }
        }
    }
    None
}

/// Width and height of a PNG picture.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let head = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")?;
    let (width, rest) = head.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dsm: Dsm) -> Vec<u8> {
        let release =
            Release { version: "0.1.0", build: 1, time: 1_700_000_000, licence: "MIT OR Apache-2.0" };
        Spk { release, dsm, platforms: &["armada370", "armadaxp"], agent: b"\x7fELF" }.build().expect("built")
    }

    /// The package with one file changed, taken out (`None`) or put in.
    fn changed(dsm: Dsm, path: &str, content: Option<&[u8]>) -> Vec<u8> {
        let tree = Tree::read_tar(&sample(dsm)[..]).expect("read");
        let mut other = Tree::default();
        for (at, file) in tree.files().filter(|(at, _)| *at != path) {
            let make = if file.mode & 0o111 == 0 { Tree::data } else { Tree::program };
            other = make(other, at, file.bytes.clone());
        }
        let put = if path.starts_with("scripts/") { Tree::program } else { Tree::data };
        content.map_or(other.clone(), |bytes| put(other, path, bytes)).tar(&["INFO"], 0).expect("written")
    }

    #[test]
    fn packages_hold_by_the_rules_and_are_always_the_same() {
        for dsm in [Dsm::Six, Dsm::Seven] {
            assert_eq!(faults(&sample(dsm), dsm).expect("read"), [""; 0], "{dsm:?}");
            assert_eq!(sample(dsm), sample(dsm));
        }
        assert!(!faults(&sample(Dsm::Six), Dsm::Seven).expect("read").is_empty());
        assert!(!faults(&sample(Dsm::Seven), Dsm::Six).expect("read").is_empty());
    }

    #[test]
    fn every_rule_finds_what_breaks_it() {
        let info = |from: &str, to: &str| {
            let tree = Tree::read_tar(&sample(Dsm::Seven)[..]).expect("read");
            let text = String::from_utf8(tree.get("INFO").expect("there").bytes.clone()).expect("text");
            assert!(text.contains(from), "{from}");
            changed(Dsm::Seven, "INFO", Some(text.replace(from, to).as_bytes()))
        };
        let seven = |path: &str, content: Option<&[u8]>| changed(Dsm::Seven, path, content);
        for (what, package) in [
            ("INFO", seven("INFO", None)),
            ("line 1", seven("INFO", Some(b"package=flotilla\n"))),
            ("twice", seven("INFO", Some(b"a=\"1\"\na=\"2\"\n"))),
            ("version", info("0.1.0-0001", "0.1.0~rc1")),
            ("package", info("package=\"flotilla-agent\"", "package=\"flotilla agent\"")),
            ("arch", info("armada370 armadaxp", "")),
            ("os_min_ver", info("7.0-40000", "6.2-1")),
            (
                "checksum",
                seven("package.tgz", Some(&Tree::default().data("x", "y").tar_gz(&[], 0).expect("made"))),
            ),
            ("neither yes nor no", info("ctl_stop=\"yes\"", "ctl_stop=\"1\"")),
            ("261", seven("scripts/start-stop-status", None)),
            ("no script", seven("scripts/preinst", Some(b"#!/bin/bash\n"))),
            ("CR", seven("scripts/preinst", Some(b"#!/bin/sh\n\r\n"))),
            ("276", seven("conf/privilege", None)),
            ("root", seven("conf/privilege", Some(br#"{"defaults":{"run-as":"root"}}"#))),
            ("no JSON object", seven("conf/resource", Some(b"[]"))),
            ("no JSON", seven("WIZARD_UIFILES/install_uifile", Some(b"{"))),
            ("a step", seven("WIZARD_UIFILES/install_uifile", Some(b"[{}]"))),
            ("no such wizard", seven("WIZARD_UIFILES/other", Some(b"[]"))),
            ("64 × 64", seven("PACKAGE_ICON.PNG", Some(asset!("synology/icons/72.png")))),
            ("256 × 256", seven("PACKAGE_ICON_256.PNG", None)),
            ("package.tgz", seven("package.tgz", Some(b"no archive"))),
            ("1 MiB", seven("LICENSE", Some(&vec![b' '; LICENCE_MAX + 1]))),
        ] {
            let found = faults(&package, Dsm::Seven).expect("read");
            assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
        }
        let gz = [0x1F, 0x8B, 8];
        assert!(faults(&gz, Dsm::Seven).expect("told")[0].contains("263"));
    }
}
