//! RPM packages, for Fedora, Red Hat's and SUSE's systems (`targets/FORMATS.md` §8), and a check of them.

use std::io;

use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, Package, PackageBuilder};

use crate::Release;
use crate::linux::{self, CONFIG, DESCRIPTION, NAME, SUMMARY};
use crate::tree::Tree;

/// RPM's names of processors that there are packages for.
pub const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// A package for one processor.
pub struct Rpm<'a> {
    /// The release.
    pub release: Release<'a>,
    /// One of [`ARCHITECTURES`].
    pub architecture: &'a str,
    /// The agent, static, for it.
    pub agent: &'a [u8],
}

impl Rpm<'_> {
    /// `flotilla-agent-1.2.3-1.x86_64.rpm`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{NAME}-{}.{}.rpm", self.release.packaging(), self.architecture)
    }

    /// The package.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let package = self.package().map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        package.write(&mut bytes).map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn package(&self) -> Result<Package, rpm::Error> {
        let licence = "MIT OR Apache-2.0";
        let mut builder =
            PackageBuilder::new(NAME, self.release.version, licence, self.architecture, SUMMARY);
        let time = u32::try_from(self.release.time).unwrap_or(u32::MAX);
        builder
            .using_config(BuildConfig::default().source_date(time).compression(CompressionType::Gzip))
            .release(self.release.build.to_string())
            .description(DESCRIPTION.join("\n"))
            .vendor("The Flotilla developers")
            .build_host("localhost")
            .requires(Dependency::any("systemd"))
            .requires(Dependency::script_pre("/usr/sbin/groupadd"))
            .requires(Dependency::script_pre("/usr/sbin/useradd"))
            .pre_install_script(text(asset!("linux/rpm/pre")))
            .post_install_script(text(asset!("linux/rpm/post")))
            .pre_uninstall_script(text(asset!("linux/rpm/preun")))
            .post_uninstall_script(text(asset!("linux/rpm/postun")))
            .with_dir_entry(FileOptions::dir("/etc/flotilla"))?;
        for (path, file) in self.data()?.files() {
            let options = FileOptions::new(format!("/{path}")).permissions(file.mode as u16);
            let options = if path == CONFIG { options.config().noreplace() } else { options };
            let options = if path.starts_with("usr/share/man/") { options.doc() } else { options };
            builder.with_file_contents(file.bytes.clone(), options)?;
        }
        builder.build()
    }

    fn data(&self) -> io::Result<Tree> {
        Ok(linux::files(self.agent)?
            .data("usr/lib/systemd/system/flotilla-agent.service", linux::UNIT)
            .data(&format!("usr/share/licenses/{NAME}/LICENSE"), self.release.licence))
    }
}

fn text(script: &[u8]) -> String {
    String::from_utf8(script.to_vec()).expect("our own text")
}

/// What is wrong with a package; empty if nothing is.
#[must_use]
pub fn faults(package: &[u8], architecture: &str) -> Vec<String> {
    let mut rest = package;
    let package = match Package::parse(&mut rest) {
        Ok(package) => package,
        Err(error) => return vec![error.to_string()],
    };
    let mut faults = Vec::new();
    if let Err(error) = package.verify_digests() {
        faults.push(error.to_string());
    }
    let about = &package.metadata;
    if about.get_name().ok() != Some(NAME) || about.get_arch().ok() != Some(architecture) {
        faults.push(format!("it is {:?} for {:?}", about.get_name().ok(), about.get_arch().ok()));
    }
    match about.get_file_entries() {
        Ok(files) => {
            let config = files.iter().find(|file| file.path().ends_with(CONFIG));
            let kept = rpm::FileFlags::CONFIG | rpm::FileFlags::NOREPLACE;
            if config.is_none_or(|file| !file.flags().contains(kept)) {
                faults.push(format!("{CONFIG} is not kept by an upgrade"));
            }
        }
        Err(error) => faults.push(error.to_string()),
    }
    let scripts = [
        about.get_pre_install_script(),
        about.get_post_install_script(),
        about.get_pre_uninstall_script(),
        about.get_post_uninstall_script(),
    ];
    if scripts.iter().any(Result::is_err) {
        faults.push("a script is missing".into());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let release = Release { version: "0.1.0", build: 2, time: 1_700_000_000, licence: "MIT" };
        Rpm { release, architecture: "aarch64", agent: b"\x7fELF" }.build().expect("built")
    }

    #[test]
    fn packages_hold_by_the_rules_and_are_always_the_same() {
        assert_eq!(faults(&sample(), "aarch64"), [""; 0]);
        assert_eq!(sample(), sample());
        let release = Release { version: "1.2.3", build: 1, time: 0, licence: "" };
        let rpm = Rpm { release, architecture: "x86_64", agent: b"" };
        assert_eq!(rpm.file_name(), "flotilla-agent-1.2.3-1.x86_64.rpm");
        assert!(!faults(&sample(), "x86_64").is_empty());
    }

    #[test]
    fn what_is_cut_or_damaged_is_told() {
        let whole = sample();
        for len in (0..whole.len()).step_by(7) {
            assert!(!faults(&whole[..len], "aarch64").is_empty(), "{len}");
        }
        // All but the lead, whose fields nobody reads any more, is under a digest.
        let mut damaged = whole.clone();
        let end = damaged.len() - 100;
        damaged[end] ^= 1;
        assert!(!faults(&damaged, "aarch64").is_empty());
    }
}
