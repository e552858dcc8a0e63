//! QNAP packages (`targets/FORMATS.md` §9): a script that installs what follows it, and a tail that the box knows it by; and a
//! check of them.

use std::io;

use crate::Release;
use crate::tree::Tree;

/// The package's name, and that of its folder on the box.
pub const NAME: &str = "flotilla-agent";

/// Bytes of the tail, and where its fields begin in it.
const TAIL: usize = 100;
const CHECK_AT: usize = 40;
const NAME_AT: usize = 60;
const VERSION_AT: usize = 80;
const MARK_AT: usize = 90;
/// Bytes that most fields have; the name has twice as many.
const FIELD: usize = 10;
/// What ends every package.
const MARK: &[u8] = b"QNAPQPKG  ";

/// Processors of these boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// As it stands in file names.
    pub name: &'static str,
    /// What `uname -m` says, as a pattern of the shell.
    pub machines: &'static str,
}

/// All that there are packages for. `arm-x31` and `arm-x41` of QNAP's own tools differ in the size of their pages, which
/// our programs do not ask for.
pub const PROCESSORS: [Processor; 5] = [
    Processor { name: "x86_64", machines: "x86_64" },
    Processor { name: "x86", machines: "i?86 | x86_64" },
    Processor { name: "arm_64", machines: "aarch64" },
    Processor { name: "arm-x41", machines: "armv7l" },
    Processor { name: "arm-x19", machines: "armv5tel" },
];

/// A package for one kind of processor.
pub struct Qpkg<'a> {
    /// The release.
    pub release: Release<'a>,
    /// For which boxes.
    pub processor: Processor,
    /// The agent, static, for them.
    pub agent: &'a [u8],
}

impl Qpkg<'_> {
    /// `flotilla-agent_1.2.3-1_arm_64.qpkg`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{NAME}_{}_{}.qpkg", self.release.packaging(), self.processor.name)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let payload = Tree::default()
            .program("bin/flotilla-agent", self.agent)
            .program("bin/supervise.sh", asset!("common/supervise.sh"))
            .data("service.sh", asset!("common/service.sh"))
            .data("common.sh", asset!("qnap/common.sh"))
            .program("flotilla-agent.sh", asset!("qnap/flotilla-agent.sh"))
            .program(".uninstall.sh", asset!("qnap/uninstall.sh"))
            .data("icons/flotilla.gif", asset!("qnap/icons/flotilla.gif"))
            .data("icons/flotilla_80.gif", asset!("qnap/icons/flotilla_80.gif"))
            .data("icons/flotilla_gray.gif", asset!("qnap/icons/flotilla_gray.gif"))
            .data("LICENSE", self.release.licence)
            .tar_gz(&[], self.release.time)?;
        let version = self.release.packaging();
        let mut package = head(self.processor, &version, payload.len()).into_bytes();
        package.extend(payload);
        let tail = tail(&version, package.len() + TAIL)?;
        package.extend(tail);
        Ok(package)
    }
}

/// The script, which has to know its own length.
fn head(processor: Processor, version: &str, payload: usize) -> String {
    let script = std::str::from_utf8(asset!("qnap/head.sh")).expect("our own text");
    let script = script
        .replace("@VERSION@", version)
        .replace("@MACHINES@", processor.machines)
        .replace("@PROCESSOR@", processor.name)
        .replace("@PAYLOAD_BYTES@", &payload.to_string());
    let with = |bytes: usize| script.replace("@HEAD_BYTES@", &bytes.to_string());
    let mut length = with(0).len();
    while with(length).len() != length {
        length = with(length).len();
    }
    with(length)
}

/// What follows all else in a package of `total` bytes: spaces but for four fields.
fn tail(version: &str, total: usize) -> io::Result<[u8; TAIL]> {
    let mut tail = [b' '; TAIL];
    let mut put = |at: usize, room: usize, text: &[u8]| {
        let field = tail[at..at + room].get_mut(..text.len());
        field.map(|field| field.copy_from_slice(text)).ok_or_else(|| {
            let text = String::from_utf8_lossy(text);
            io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is longer than {room} bytes"))
        })
    };
    put(CHECK_AT, FIELD, check(total).as_bytes())?;
    put(NAME_AT, 2 * FIELD, NAME.as_bytes())?;
    put(VERSION_AT, FIELD, version.as_bytes())?;
    put(MARK_AT, FIELD, MARK)?;
    Ok(tail)
}

/// The first ten digits of a number made of the package's length: it proves nothing, and the box wants it.
fn check(total: usize) -> String {
    let mut digits = (total as u64 * 3589 + 1_000_000_000).to_string();
    digits.truncate(FIELD);
    digits
}

/// What is wrong with a package, by the rules of QNAP's own tools.
pub fn faults(package: &[u8], processor: Processor) -> Vec<String> {
    let mut faults = Vec::new();
    let Some((body, tail)) = package.split_last_chunk::<TAIL>() else {
        return vec![format!("{} bytes are no package", package.len())];
    };
    let field = |at: usize, room: usize| String::from_utf8_lossy(&tail[at..at + room]).trim_end().to_owned();
    if &tail[MARK_AT..] != MARK {
        faults.push("it does not end with the mark of a package".to_owned());
    }
    if field(NAME_AT, 2 * FIELD) != NAME {
        faults.push(format!("it is called {:?}", field(NAME_AT, 2 * FIELD)));
    }
    if field(CHECK_AT, FIELD) != check(package.len()) {
        faults.push(format!("its number is {}, not {}", field(CHECK_AT, FIELD), check(package.len())));
    }
    let number = |key: &str| {
        let text =
            body.windows(key.len()).position(|w| w == key.as_bytes()).map(|at| &body[at + key.len()..])?;
        let digits: Vec<u8> = text.iter().copied().take_while(u8::is_ascii_digit).collect();
        String::from_utf8(digits).ok()?.parse::<usize>().ok()
    };
    let (Some(head), Some(payload)) = (number("\nhead_bytes="), number("\npayload_bytes=")) else {
        faults.push("its script does not say how long it is".to_owned());
        return faults;
    };
    if head.checked_add(payload) != Some(body.len()) {
        faults.push(format!("{head} and {payload} bytes are not the {} there are", body.len()));
        return faults;
    }
    let script = String::from_utf8_lossy(&body[..head]);
    let version = field(VERSION_AT, FIELD);
    for (what, there) in [
        ("it is no script of the shell", script.starts_with("#!/bin/sh\n")),
        ("something in its script was not filled in", !script.contains('@')),
        ("its script is for other boxes", script.contains(&format!("\n{}) ;;", processor.machines))),
        ("its script has another version", script.contains(&format!("\nversion='{version}'\n"))),
    ] {
        if !there {
            faults.push(what.to_owned());
        }
    }
    match Tree::read_tar_gz(&body[head..]) {
        Err(error) => faults.push(format!("what follows the script cannot be unpacked: {error}")),
        Ok(tree) => {
            for path in ["bin/flotilla-agent", "bin/supervise.sh", "flotilla-agent.sh", ".uninstall.sh"] {
                if tree.get(path).is_none_or(|file| file.mode & 0o111 == 0) {
                    faults.push(format!("{path} is not there, or no program"));
                }
            }
            for path in ["icons/flotilla.gif", "icons/flotilla_80.gif", "icons/flotilla_gray.gif"] {
                if tree.get(path).is_none_or(|file| !file.bytes.starts_with(b"GIF89a")) {
                    faults.push(format!("{path} is no picture"));
                }
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(processor: Processor) -> Vec<u8> {
        let release = Release { version: "0.1.0", build: 2, time: 1_700_000_000, licence: "MIT" };
        Qpkg { release, processor, agent: b"\x7fELF" }.build().expect("built")
    }

    #[test]
    fn what_is_built_is_right_and_always_the_same() {
        for processor in PROCESSORS {
            let package = sample(processor);
            assert_eq!(faults(&package, processor), Vec::<String>::new(), "{processor:?}");
            assert_eq!(package, sample(processor));
        }
        assert!(!faults(&sample(PROCESSORS[0]), PROCESSORS[3]).is_empty(), "for other boxes");
    }

    /// As `qpkg_encrypt` of QNAP's development kit computes it: length times 3589 and a thousand million, ten digits.
    #[test]
    fn the_tail_is_as_qnaps_tool_makes_it() {
        let tail = tail("0.1.0-2", 4_000_000).expect("fits");
        let text = std::str::from_utf8(&tail).expect("ASCII");
        assert_eq!(&text[..40], " ".repeat(40));
        assert_eq!(&text[40..60], "1535600000          ");
        assert_eq!(&text[60..], "flotilla-agent      0.1.0-2   QNAPQPKG  ");
        assert!(super::tail("10.10.10-10", 1).is_err(), "eleven bytes of version");
    }

    #[test]
    fn every_damage_is_told() {
        let processor = PROCESSORS[2];
        let package = sample(processor);
        for cut in [0, 99, 100, package.len() / 2, package.len() - 1] {
            assert!(!faults(&package[..cut], processor).is_empty(), "cut at {cut}");
        }
        let payload_at = package.len() - TAIL - 40;
        for at in
            [0, payload_at, package.len() - 55, package.len() - 35, package.len() - 15, package.len() - 5]
        {
            let mut damaged = package.clone();
            damaged[at] ^= 0x10;
            assert!(!faults(&damaged, processor).is_empty(), "a bit at {at}");
        }
    }
}
