//! WD My Cloud packages (`targets/FORMATS.md` §2): a head that names the model, and a gzip tar; and a check of them.

use std::io;

use blowfish::Blowfish;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use md5::{Digest, Md5};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::Release;
use crate::tree::Tree;

/// The package's name, and that of its folder on the box.
pub const NAME: &str = "flotilla-agent";

/// Scripts that the box calls, in the order of an installation; all must be there.
const SCRIPTS: [(&str, &[u8]); 7] = [
    ("preinst.sh", asset!("wd/preinst.sh")),
    ("install.sh", asset!("wd/install.sh")),
    ("init.sh", asset!("wd/init.sh")),
    ("start.sh", asset!("wd/start.sh")),
    ("stop.sh", asset!("wd/stop.sh")),
    ("clean.sh", asset!("wd/clean.sh")),
    ("remove.sh", asset!("wd/remove.sh")),
];

/// Version of the format.
const FORMAT: u32 = 2;
/// "WD" among the makers of these boxes.
const CUSTOM_ID: u32 = 20;
/// What `apkg.sign` is made with, in every package of everybody: it marks the format and proves nothing.
const SIGN_KEY: &[u8] = b"Lidho.mdk3K3h";
/// Characters of a description that the box shows.
const DESCRIPTION_MAX: usize = 256;

const DESCRIPTION: &str =
    "Moves large folders between this NAS and other machines of your fleet, over any network.";

/// Generations of the box's system, whose heads differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Os {
    /// My Cloud OS 3 (2.x).
    Three,
    /// My Cloud OS 5 (5.x).
    Five,
}

/// A kind of box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// As owners know it, and as it stands in names of files.
    pub name: &'static str,
    /// The board, at most 7 bytes.
    code: &'static str,
    model_id: u32,
    app_id: u32,
    /// The newest system there is for it.
    pub newest: Os,
}

const fn model(name: &'static str, code: &'static str, model_id: u32, app_id: u32, newest: Os) -> Model {
    Model { name, code, model_id, app_id, newest }
}

/// All known models.
pub const MODELS: [Model; 7] = [
    model("WDMyCloudEX2", "KingsCa", 1, 1, Os::Three),
    model("WDMyCloudEX4", "Lightni", 0, 0, Os::Three),
    model("WDMyCloudEX2100", "Yosemit", 4, 5, Os::Five),
    model("WDMyCloudEX4100", "Yellow", 3, 4, Os::Five),
    model("WDMyCloudDL2100", "Aurora", 6, 7, Os::Five),
    model("WDMyCloudDL4100", "Sprite", 5, 6, Os::Five),
    model("MyCloudEX2Ultra", "GrandTe", 1, 9, Os::Five),
];

/// A package for one model.
pub struct Wd<'a> {
    /// The release.
    pub release: Release<'a>,
    /// For which system.
    pub os: Os,
    /// For which box.
    pub model: Model,
    /// The agent, static, for it.
    pub agent: &'a [u8],
}

impl Wd<'_> {
    /// The version as the box has it: one to six numbers of at most two digits.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}", self.release.version, self.release.build)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let inside = |path: &str| format!("{NAME}/{path}");
        let mut tree = Tree::default()
            .data(&inside("apkg.rc"), self.description())
            .data(&inside("apkg.xml"), self.xml()?)
            .data(&inside("apkg.sign"), sign(NAME, self.os, salt(&self.version())))
            .data(&inside("common.sh"), asset!("wd/common.sh"))
            .data(&inside("service.sh"), asset!("common/service.sh"))
            .data(&inside("LICENSE"), self.release.licence)
            .program(&inside("bin/flotilla-agent"), self.agent)
            .program(&inside("bin/supervise.sh"), asset!("common/supervise.sh"))
            .program(&inside("cgi-bin/flotilla-agent.cgi"), asset!("wd/cgi-bin/flotilla-agent.cgi"))
            .data(&inside("web/index.html"), asset!("wd/web/index.html"))
            .data(&inside("web/flotilla.png"), asset!("wd/web/flotilla.png"));
        for (name, script) in SCRIPTS {
            tree = tree.program(&inside(name), script);
        }
        let payload = tree.tar_gz(&[], self.release.time)?;
        let mut package = head(self.os, self.model, NAME, &self.version(), &payload)?;
        package.extend(payload);
        Ok(package)
    }

    fn description(&self) -> String {
        let fields = [
            ("Package", NAME),
            ("Version", &self.version()),
            ("Packager", "The Flotilla developers"),
            ("Email", ""),
            ("Homepage", ""),
            ("Description", DESCRIPTION),
            ("Icon", "flotilla.png"),
            ("AddonShowName", "Flotilla"),
            ("AddonIndexPage", "index.html"),
            ("AddonUsedPort", ""),
            ("InstDepend", ""),
            ("InstConflict", ""),
            ("StartDepend", ""),
            ("StartConflict", ""),
            ("CenterType", "0"),
            // The page is for the box's administrator.
            ("UserControl", "1"),
            ("MinFWVer", ""),
            ("MaxFWVer", ""),
            ("IndividualFlag", "0"),
        ];
        fields.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
    }

    /// What the box lists of the package. No text in it has characters that XML would need to escape.
    fn xml(&self) -> io::Result<String> {
        let date = OffsetDateTime::from_unix_timestamp(self.release.time.cast_signed())
            .map_err(|_| bad("the release's time is no date"))?;
        let date = format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day());
        let (model, app, format) =
            (self.model.model_id.to_string(), self.model.app_id.to_string(), FORMAT.to_string());
        let (custom, version) = (CUSTOM_ID.to_string(), self.version());
        let mut fields = vec![("procudt_id", "0"), ("custom_id", &*custom), ("model_id", &*model)];
        if self.os == Os::Five {
            fields.push(("app_id", &*app));
        }
        fields.extend([
            ("user_control", "1"),
            ("center_type", "0"),
            ("individual_flag", "0"),
            ("name", NAME),
            ("show", "Flotilla"),
            ("enable", "1"),
            ("version", &*version),
            ("date", &*date),
            ("inst_date", ""),
            ("path", ""),
            ("ps_name", "flotilla-agent"),
            ("url", "index.html"),
            ("url_port", ""),
            ("apkg_version", &*format),
            ("packager", "The Flotilla developers"),
            ("email", ""),
            ("homepage", ""),
            ("inst_depend", ""),
            ("inst_conflict", ""),
            ("start_depend", ""),
            ("start_conflict", ""),
            ("description", DESCRIPTION),
            ("icon", "flotilla.png"),
            ("MinFWVer", ""),
            ("MaxFWVer", ""),
            ("Hidden", ""),
        ]);
        let lines: String = fields
            .iter()
            .map(|(key, value)| match *value {
                "" => format!("      <{key}/>\n"),
                value => format!("      <{key}>{value}</{key}>\n"),
            })
            .collect();
        Ok(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<config>\n  <apkg>\n    <item>\n{lines}    </item>\n  \
             </apkg>\n</config>\n"
        ))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Bytes before the payload.
const fn head_len(os: Os) -> usize {
    match os {
        Os::Three => 200,
        Os::Five => 204,
    }
}

/// Where OS 5 has a field that OS 3 has not: there all that follows comes 4 bytes earlier.
const APP_ID: usize = 128;

fn head(os: Os, model: Model, name: &str, version: &str, payload: &[u8]) -> io::Result<Vec<u8>> {
    if !is_version(version) {
        return Err(bad("a version is one to six numbers of one or two digits"));
    }
    let mut head = Vec::with_capacity(head_len(os));
    let mut text = |text: &str, room: usize| {
        if text.len() > room {
            return Err(bad("a name is too long for the head"));
        }
        head.extend_from_slice(text.as_bytes());
        head.resize(head.len() + room - text.len(), 0);
        Ok(())
    };
    text(model.code, 7)?;
    text("Z", 1)?;
    text(name, 68)?;
    text(version, 36)?;
    let app = if os == Os::Five { Some(model.app_id) } else { None };
    let fields = [FORMAT, 0, CUSTOM_ID, model.model_id].into_iter().chain(app).chain([1]);
    fields.for_each(|field| head.extend_from_slice(&field.to_le_bytes()));
    head.resize(head.len() + 60, 0);
    let len = u32::try_from(payload.len()).map_err(|_| bad("the payload is larger than 4 GiB"))?;
    for field in [xor(payload), len] {
        head.extend_from_slice(&field.to_le_bytes());
    }
    Ok(head)
}

fn is_version(version: &str) -> bool {
    let groups: Vec<&str> = version.split('.').collect();
    let whole = |g: &&str| (1..=2).contains(&g.len()) && g.bytes().all(|b| b.is_ascii_digit());
    groups.len() <= 6 && groups.iter().all(whole)
}

/// Of all whole little-endian words; one to three bytes that are left at the end do not count.
fn xor(payload: &[u8]) -> u32 {
    payload.as_chunks::<4>().0.iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word))
}

/// Eight bytes that are the same for the same version, where others take random ones.
fn salt(version: &str) -> [u8; 8] {
    let sum = Sha256::digest(version.as_bytes());
    std::array::from_fn(|i| sum[i])
}

/// Key and first block by `EVP_BytesToKey` with one round, as `openssl enc` does.
fn key(os: Os, salt: [u8; 8]) -> ([u8; 16], [u8; 8]) {
    fn stretch<D: Digest>(salt: [u8; 8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut last = Vec::new();
        while bytes.len() < 24 {
            last = D::new().chain_update(&last).chain_update(SIGN_KEY).chain_update(salt).finalize().to_vec();
            bytes.extend_from_slice(&last);
        }
        bytes
    }
    let bytes = match os {
        Os::Three => stretch::<Md5>(salt),
        Os::Five => stretch::<Sha256>(salt),
    };
    (std::array::from_fn(|i| bytes[i]), std::array::from_fn(|i| bytes[16 + i]))
}

/// `apkg.sign`: the name in the form of `openssl enc -bf-cbc`.
fn sign(name: &str, os: Os, salt: [u8; 8]) -> Vec<u8> {
    let (key, first) = key(os, salt);
    let cipher = cbc::Encryptor::<Blowfish>::new_from_slices(&key, &first)
        .expect("Blowfish takes keys of 4 to 56 bytes");
    let mut sign = [&b"Salted__"[..], &salt].concat();
    sign.extend(cipher.encrypt_padded_vec::<Pkcs7>(format!("{name}\n").as_bytes()));
    sign
}

/// The name in an `apkg.sign`.
fn signed(sign: &[u8], os: Os) -> Option<String> {
    let (salt, text) = sign.strip_prefix(b"Salted__")?.split_first_chunk::<8>()?;
    let (key, first) = key(os, *salt);
    let cipher = cbc::Decryptor::<Blowfish>::new_from_slices(&key, &first)
        .expect("Blowfish takes keys of 4 to 56 bytes");
    let text = String::from_utf8(cipher.decrypt_padded_vec::<Pkcs7>(text).ok()?).ok()?;
    Some(text.strip_suffix('\n')?.to_owned())
}

/// What is wrong with a package for a box; empty if nothing is. As far as can be told from other packages: no box was asked.
#[must_use]
pub fn faults(package: &[u8], os: Os, model: Model) -> Vec<String> {
    let Some((head, payload)) = package.split_at_checked(head_len(os)) else {
        return vec!["it is shorter than a head".into()];
    };
    let mut faults = Vec::new();
    let number = |at: usize| {
        let at = if at > APP_ID && os == Os::Three { at - 4 } else { at };
        u32::from_le_bytes(std::array::from_fn(|i| head[at + i]))
    };
    let text = |at: usize, room: usize| {
        let field = &head[at..at + room];
        let end = field.iter().position(|b| *b == 0).unwrap_or(room);
        let whole = field[end..].iter().all(|b| *b == 0);
        std::str::from_utf8(&field[..end]).ok().filter(|_| whole)
    };
    let mut fault = |wrong: bool, what: &str| {
        if wrong {
            faults.push(what.to_owned());
        }
    };
    fault(text(0, 7) != Some(model.code) || head[7] != b'Z', "it is for another model");
    fault(number(112) != FORMAT, "another version of the format");
    fault(number(116) != 0 || number(120) != CUSTOM_ID, "another maker's or product's");
    fault(number(124) != model.model_id, "another model's id");
    fault(os == Os::Five && number(APP_ID) != model.app_id, "another model's app id");
    fault(number(196) != xor(payload), "the payload is not the one that was summed up");
    fault(usize::try_from(number(200)) != Ok(payload.len()), "the payload has another length");
    let (name, version) = (text(8, 68).unwrap_or_default(), text(76, 36).unwrap_or_default());
    fault(name.is_empty() || name.contains([' ', '/']), "the name is none");
    fault(!is_version(version), "the version is not of up to six numbers of two digits");
    let tree = match Tree::read_tar_gz(payload) {
        Ok(tree) => tree,
        Err(error) => {
            faults.push(format!("payload: {error}"));
            return faults;
        }
    };
    let get = |path: &str| tree.get(&format!("{name}/{path}"));
    fault(tree.files().any(|(path, _)| !path.starts_with(&format!("{name}/"))), "files beside its folder");
    let sign = get("apkg.sign").and_then(|file| signed(&file.bytes, os));
    fault(number(132) == 1 && sign.as_deref() != Some(name), "apkg.sign does not say the name");
    let read =
        |path: &str| get(path).and_then(|file| std::str::from_utf8(&file.bytes).ok()).unwrap_or_default();
    let rc = |key: &str| {
        read("apkg.rc").lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    };
    fault(rc("Package") != Some(name), "apkg.rc has another name");
    fault(rc("Version") != Some(version), "apkg.rc has another version");
    fault(
        rc("Description").is_none_or(|d| d.is_empty() || d.len() > DESCRIPTION_MAX),
        "apkg.rc: no description",
    );
    for (key, folder) in [("Icon", "web"), ("AddonIndexPage", "web")] {
        let there = rc(key).is_some_and(|file| get(&format!("{folder}/{file}")).is_some());
        fault(!there, &format!("apkg.rc: the file of {key} is missing"));
    }
    let xml = read("apkg.xml");
    let says = |key: &str, value: &str| xml.contains(&format!("<{key}>{value}</{key}>"));
    fault(!says("name", name) || !says("version", version), "apkg.xml has another name or version");
    fault(!says("model_id", &model.model_id.to_string()), "apkg.xml is for another model");
    fault(os == Os::Five && !says("app_id", &model.app_id.to_string()), "apkg.xml has another app id");
    for (script, _) in SCRIPTS {
        match get(script) {
            None => fault(true, &format!("{script} is missing")),
            Some(file) => {
                fault(file.mode & 0o111 == 0, &format!("{script} cannot be run"));
                fault(
                    !file.bytes.starts_with(b"#!/bin/sh\n"),
                    &format!("{script} is no script of every box"),
                );
                fault(file.bytes.contains(&b'\r'), &format!("{script} has CR line ends"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(os: Os, model: Model) -> Vec<u8> {
        let release =
            Release { version: "0.1.0", build: 1, time: 1_700_000_000, licence: "MIT OR Apache-2.0" };
        Wd { release, os, model, agent: b"\x7fELF" }.build().expect("built")
    }

    /// All packages that there are.
    fn all() -> impl Iterator<Item = (Os, Model)> {
        let both = MODELS.into_iter().flat_map(|model| [(Os::Three, model), (Os::Five, model)]);
        both.filter(|(os, model)| *os <= model.newest)
    }

    /// A head and a format mark that WD's own packer made, for an EX2 Ultra with OS 5: package `persistent-ssh`, 1.1.
    #[test]
    fn heads_and_marks_are_those_of_the_makers_packer() {
        let mut expected = Vec::new();
        expected.extend(b"GrandTeZpersistent-ssh");
        expected.resize(76, 0);
        expected.extend(b"1.1");
        expected.resize(112, 0);
        for field in [2_u32, 0, 0x14, 1, 9, 1] {
            expected.extend(field.to_le_bytes());
        }
        expected.resize(196, 0);
        // The payload is not kept here: one of the same length and sum.
        let mut payload = vec![0; 0x511];
        payload[..4].copy_from_slice(&[0x3e, 0x87, 0xca, 0xff]);
        expected.extend([0x3e, 0x87, 0xca, 0xff, 0x11, 0x05, 0, 0]);
        let ultra = MODELS[6];
        assert_eq!(head(Os::Five, ultra, "persistent-ssh", "1.1", &payload).expect("made"), expected);
        let mark = [
            0x53, 0x61, 0x6c, 0x74, 0x65, 0x64, 0x5f, 0x5f, 0xcb, 0x81, 0xd6, 0x9d, 0xb2, 0x8c, 0x18, 0xb1,
            0xc2, 0xbd, 0x84, 0x28, 0x19, 0x7e, 0xdd, 0xbe, 0xa5, 0xbf, 0x52, 0x37, 0x69, 0x38, 0x9c, 0x5a,
        ];
        let salt = std::array::from_fn(|i| mark[8 + i]);
        assert_eq!(sign("persistent-ssh", Os::Five, salt), mark);
        assert_eq!(signed(&mark, Os::Five).as_deref(), Some("persistent-ssh"));
        assert_eq!(signed(&mark, Os::Three), None);
    }

    #[test]
    fn packages_hold_by_the_rules_and_are_always_the_same() {
        assert_eq!(all().count(), 12);
        for (os, model) in all() {
            assert_eq!(faults(&sample(os, model), os, model), [""; 0], "{os:?} {model:?}");
            assert_eq!(sample(os, model), sample(os, model));
        }
        for (a, b) in [(0, 1), (3, 2), (4, 5), (6, 0)] {
            assert!(!faults(&sample(Os::Three, MODELS[a]), Os::Three, MODELS[b]).is_empty());
        }
        let ex4100 = MODELS[3];
        assert!(!faults(&sample(Os::Three, ex4100), Os::Five, ex4100).is_empty());
        assert!(!faults(&sample(Os::Five, ex4100), Os::Three, ex4100).is_empty());
    }

    #[test]
    fn every_rule_finds_what_breaks_it() {
        let model = MODELS[3];
        let whole = sample(Os::Five, model);
        let rebuilt = |path: &str, content: Option<&[u8]>, version: &str| {
            let tree = Tree::read_tar_gz(&whole[204..]).expect("read");
            let mut other = Tree::default();
            for (at, file) in tree.files().filter(|(at, _)| *at != path) {
                let make = if file.mode & 0o111 == 0 { Tree::data } else { Tree::program };
                other = make(other, at, file.bytes.clone());
            }
            let put = if path.ends_with("inst.sh") { Tree::program } else { Tree::data };
            let other = content.map_or(other.clone(), |bytes| put(other, path, bytes));
            let payload = other.tar_gz(&[], 0).expect("packed");
            let mut package = head(Os::Five, model, NAME, version, &payload).expect("made");
            package.extend(payload);
            package
        };
        let file =
            |path: &str, content: Option<&[u8]>| rebuilt(&format!("{NAME}/{path}"), content, "0.1.0.1");
        let byte = |at: usize| {
            let mut other = whole.clone();
            other[at] ^= 1;
            other
        };
        for (what, package) in [
            ("shorter", whole[..203].to_vec()),
            ("another model", byte(0)),
            ("another model", byte(7)),
            ("the name", byte(8 + 40)),
            ("the version", byte(77)),
            ("version of the format", byte(112)),
            ("maker", byte(116)),
            ("maker", byte(120)),
            ("model's id", byte(124)),
            ("app id", byte(128)),
            ("summed", byte(196)),
            ("length", byte(200)),
            ("summed", byte(whole.len() - 9)),
            ("payload", whole[..whole.len() - 40].to_vec()),
            ("beside", rebuilt("other/file", Some(b""), "0.1.0.1")),
            ("sign", file("apkg.sign", Some(b"Salted__"))),
            ("sign", file("apkg.sign", Some(&sign("other", Os::Five, [0; 8])))),
            ("another version", rebuilt("x", None, "0.2")),
            ("another name", file("apkg.rc", None)),
            ("Icon", file("web/flotilla.png", None)),
            ("AddonIndexPage", file("web/index.html", None)),
            ("apkg.xml", file("apkg.xml", None)),
            ("start.sh is missing", file("start.sh", None)),
            ("no script", file("preinst.sh", Some(b"#!/bin/bash\n"))),
            ("CR", file("preinst.sh", Some(b"#!/bin/sh\n\r\n"))),
            ("cannot be run", file("stop.sh", Some(b"#!/bin/sh\n"))),
        ] {
            let found = faults(&package, Os::Five, model);
            assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
        }
        for version in ["", "1.", "1.2.3.4.5.6.7", "100", "1.x", "1 "] {
            assert!(head(Os::Five, model, NAME, version, b"").is_err(), "{version:?}");
        }
    }
}
