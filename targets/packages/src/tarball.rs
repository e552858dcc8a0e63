//! The program with an install script, for systems that no other package is for (`targets/FORMATS.md` §5).

use std::io;

use crate::Release;
use crate::linux::{self, NAME};
use crate::tree::Tree;

/// A tarball for one processor.
pub struct Tarball<'a> {
    /// The release.
    pub release: Release<'a>,
    /// The word for the processor in its name.
    pub processor: &'a str,
    /// The agent, static, for it.
    pub agent: &'a [u8],
}

impl Tarball<'_> {
    /// `flotilla-agent-1.2.3-1-linux-armv7`: the folder that all lies in, and the file's name but for its end.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("{NAME}-{}-linux-{}", self.release.packaging(), self.processor)
    }

    /// The tarball.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let folder = self.folder();
        let inside = |path: &str| format!("{folder}/{path}");
        let unit = linux::changed(
            linux::UNIT,
            "/usr/bin/flotilla-agent",
            "/usr/local/lib/flotilla-agent/bin/flotilla-agent",
        );
        Tree::default()
            .program(&inside("bin/flotilla-agent"), self.agent)
            .program(&inside("install.sh"), asset!("linux/tarball/install.sh"))
            .program(&inside("service"), asset!("linux/tarball/service"))
            .program(&inside("init.sysv"), asset!("linux/tarball/init.sysv"))
            .program(&inside("init.openrc"), asset!("linux/tarball/init.openrc"))
            .program(&inside("supervise.sh"), asset!("common/supervise.sh"))
            .data(&inside("service.sh"), asset!("common/service.sh"))
            .data(&inside("flotilla-agent.service"), unit)
            .program(&inside("flotilla-agent-enrol"), linux::ENROL)
            .data(&inside("agent.toml"), linux::AGENT_TOML)
            .data(&inside("flotilla-agent.1"), linux::MANUAL)
            .data(&inside("flotilla-agent-enrol.8"), linux::ENROL_MANUAL)
            .data(&inside("LICENSE"), self.release.licence)
            .tar_gz(&[], self.release.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_all_that_its_script_installs_and_is_always_the_same() {
        let release = Release { version: "0.1.0", build: 3, time: 1_700_000_000, licence: "MIT" };
        let tarball = Tarball { release, processor: "armv5", agent: b"\x7fELF" };
        let bytes = tarball.build().expect("built");
        assert_eq!(bytes, tarball.build().expect("built"));
        let tree = Tree::read_tar_gz(&bytes).expect("read");
        let folder = "flotilla-agent-0.1.0-3-linux-armv5";
        assert!(tree.files().all(|(path, _)| path.starts_with(folder)));
        let text = |path: &str| {
            let file = tree.get(&format!("{folder}/{path}")).expect(path);
            String::from_utf8(file.bytes.clone()).expect("text")
        };
        assert!(
            text("flotilla-agent.service")
                .contains("\nExecStart=/usr/local/lib/flotilla-agent/bin/flotilla-agent run")
        );
        // Every `"source target mode"` of the script.
        let script = text("install.sh");
        let rows = script.lines().filter_map(|line| {
            let row: Vec<&str> = line.split('"').nth(1)?.split(' ').collect();
            <[&str; 3]>::try_from(row)
                .ok()
                .filter(|[_, target, _]| target.contains('/') || target.starts_with("$script"))
        });
        let mut found = 0;
        for [source, _, mode] in rows {
            let file = tree.get(&format!("{folder}/{source}")).expect(source);
            assert_eq!(format!("{:o}", file.mode), mode, "{source}");
            found += 1;
        }
        assert_eq!(found, 11);
    }
}
