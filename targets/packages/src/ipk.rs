//! Packages of OpenWrt up to 24.10 (`targets/FORMATS.md` §6): a gzip tar of gzip tars.

use std::io;

use crate::Release;
use crate::linux::{self, CONFIG, DESCRIPTION, MAINTAINER, NAME};
use crate::tree::Tree;

/// Where the state lies: `/var` is memory there, and `/etc` is what an upgrade of the system keeps.
const STATE: &str = "/etc/flotilla/state";

/// Where relative folders of jobs lie: a disk that the owner mounted.
const FOLDERS: &str = "/mnt/flotilla";

/// A package for one of OpenWrt's architectures.
pub struct Ipk<'a> {
    /// The release.
    pub release: Release<'a>,
    /// Such as `aarch64_cortex-a53`.
    pub architecture: &'a str,
    /// The agent, static, for it.
    pub agent: &'a [u8],
}

impl Ipk<'_> {
    /// `flotilla-agent_1.2.3-1_x86_64.ipk`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{NAME}_{}_{}.ipk", self.release.packaging(), self.architecture)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let time = self.release.time;
        let data = data(self.agent);
        let control = Tree::default()
            .data("control", self.control(&data))
            .data("conffiles", format!("/{CONFIG}\n"))
            .program("postinst", asset!("linux/openwrt/postinst"))
            .program("prerm", asset!("linux/openwrt/prerm"));
        Tree::default()
            .data("debian-binary", "2.0\n")
            .data("control.tar.gz", control.dotted_tar_gz(&[], time)?)
            .data("data.tar.gz", data.dotted_tar_gz(&[], time)?)
            .dotted_tar_gz(&["debian-binary"], time)
    }

    fn control(&self, data: &Tree) -> String {
        format!(
            "Package: {NAME}\nVersion: {}\nArchitecture: {}\nMaintainer: {MAINTAINER}\nSection: net\nPriority: optional\n\
             License: MIT OR Apache-2.0\nInstalled-Size: {}\nDescription: {}\n",
            self.release.packaging(),
            self.architecture,
            data.len(),
            DESCRIPTION.join("\n ")
        )
    }
}

fn data(agent: &[u8]) -> Tree {
    let config = linux::changed(linux::AGENT_TOML, "/var/lib/flotilla-agent", STATE);
    Tree::default()
        .data(CONFIG, linux::changed(config.as_bytes(), "/srv/flotilla", FOLDERS))
        .program("etc/init.d/flotilla-agent", asset!("linux/openwrt/flotilla-agent.init"))
        // What an upgrade of the whole system takes along.
        .data("lib/upgrade/keep.d/flotilla-agent", "/etc/flotilla/\n")
        .program("usr/bin/flotilla-agent", agent)
        .program(
            "usr/sbin/flotilla-agent-enrol",
            linux::changed(linux::ENROL, "/var/lib/flotilla-agent", STATE),
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::gunzip;

    #[test]
    fn it_is_three_archives_in_one_and_always_the_same() {
        let release = Release { version: "0.1.0", build: 1, time: 1_700_000_000, licence: "" };
        let ipk = Ipk { release, architecture: "aarch64_cortex-a53", agent: b"\x7fELF" };
        let package = ipk.build().expect("built");
        assert_eq!(package, ipk.build().expect("built"));
        assert_eq!(ipk.file_name(), "flotilla-agent_0.1.0-1_aarch64_cortex-a53.ipk");
        // opkg takes the version of the format first.
        assert!(gunzip(&package).expect("gzip")[512..].starts_with(b"./debian-binary\0"));
        let outer = Tree::read_tar_gz(&package).expect("read");
        let control = Tree::read_tar_gz(&outer.get("control.tar.gz").expect("there").bytes).expect("read");
        let data = Tree::read_tar_gz(&outer.get("data.tar.gz").expect("there").bytes).expect("read");
        let text = |tree: &Tree, path: &str| {
            String::from_utf8(tree.get(path).expect(path).bytes.clone()).expect("text")
        };
        let about = text(&control, "control");
        assert!(
            about.contains("\nVersion: 0.1.0-1\nArchitecture: aarch64_cortex-a53\n")
                && !about.contains("\n\n")
        );
        assert_eq!(text(&control, "conffiles"), "/etc/flotilla/agent.toml\n");
        for path in [CONFIG, "usr/sbin/flotilla-agent-enrol", "etc/init.d/flotilla-agent"] {
            assert!(!text(&data, path).contains("/var/lib"), "{path}: /var is memory there");
        }
        assert!(text(&data, CONFIG).contains("allowed_paths = [\"/mnt/flotilla\"]"));
    }
}
