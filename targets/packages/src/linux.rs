//! What packages for whole Linux systems have in common: files, texts and versions.
//!
//! The program, its systemd unit, its configuration and the command that enrols it lie in `targets/linux`; `deb`, `rpm`,
//! `tarball` and `ipk` put them where their systems want them.

use std::io;

use time::OffsetDateTime;

use crate::Release;
use crate::tree::{Tree, gzip};

/// The package's name everywhere, that of its service, and the user that the agent runs as.
pub const NAME: &str = "flotilla-agent";

/// Where the owner's configuration lies, relative to the root.
pub const CONFIG: &str = "etc/flotilla/agent.toml";

/// Who makes the packages. Flotilla has no mail address of its own: who distributes packages puts theirs here.
pub(crate) const MAINTAINER: &str = "The Flotilla developers <flotilla@example.org>";

/// In a line.
pub(crate) const SUMMARY: &str = "moves large folders between machines of a fleet";

/// In lines of at most 75 characters.
pub(crate) const DESCRIPTION: [&str; 4] = [
    "The agent takes part in the jobs of its fleet: it serves folders of this",
    "machine to other agents and fetches theirs, over any network, in verified",
    "blocks, and goes on where it was interrupted. It does nothing until",
    "flotilla-agent-enrol gives it the code of its fleet.",
];

pub(crate) const UNIT: &[u8] = asset!("linux/flotilla-agent.service");
pub(crate) const AGENT_TOML: &[u8] = asset!("linux/agent.toml");
pub(crate) const ENROL: &[u8] = asset!("linux/flotilla-agent-enrol");
pub(crate) const MANUAL: &[u8] = asset!("linux/flotilla-agent.1");
pub(crate) const ENROL_MANUAL: &[u8] = asset!("linux/flotilla-agent-enrol.8");

impl Release<'_> {
    /// `1.2.3-1`: the release, and which packaging of it.
    #[must_use]
    pub fn packaging(&self) -> String {
        format!("{}-{}", self.version, self.build)
    }

    /// Year, month and day, and the date as mails have it.
    pub(crate) fn date(&self) -> io::Result<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.time.cast_signed())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the release's time is no date"))
    }
}

/// What lies at the same place on every system with systemd.
pub(crate) fn files(agent: &[u8]) -> io::Result<Tree> {
    Ok(Tree::default()
        .data(CONFIG, AGENT_TOML)
        .program("usr/bin/flotilla-agent", agent)
        .program("usr/sbin/flotilla-agent-enrol", ENROL)
        .data("usr/share/man/man1/flotilla-agent.1.gz", gzip(MANUAL)?)
        .data("usr/share/man/man8/flotilla-agent-enrol.8.gz", gzip(ENROL_MANUAL)?))
}

/// A text with one of its parts changed everywhere.
///
/// # Panics
/// If the part is not in it: both are part of this crate.
pub(crate) fn changed(text: &[u8], from: &str, to: &str) -> String {
    let text = std::str::from_utf8(text).expect("our own text");
    assert!(text.contains(from), "{from} is not in the text");
    text.replace(from, to)
}
