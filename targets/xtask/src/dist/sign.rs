//! The signature over the list of checksums, by whoever releases: with an SSH key, since the tool that makes and checks it
//! is on every system, and a key may lie in an agent or on a token (`ssh-keygen(1)`, `-Y sign`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// What is signed: a signature that was made for something else does not count for it.
pub(super) const NAMESPACE: &str = "flotilla-dist";

/// Where the signature of a file is: beside it.
pub(super) fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

/// Signs a file with a private key, or a public one whose private part an agent or a token has.
pub(super) fn sign(file: &Path, key: &Path) -> Result<()> {
    let signature = beside(file);
    if signature.exists() {
        // ssh-keygen would ask whether it may be replaced.
        fs::remove_file(&signature)?;
    }
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key).arg(file).stdout(Stdio::null());
    let status = command.status().context("running ssh-keygen, of Debian's openssh-client")?;
    ensure!(status.success() && signature.is_file(), "{} was not signed", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `docs/targets.md` tells who wants to check it.
    fn verifies(file: &Path, signers: &Path, namespace: &str) -> bool {
        let mut command = Command::new("ssh-keygen");
        command.args(["-Y", "verify", "-I", "releases", "-n", namespace, "-f"]).arg(signers);
        command.arg("-s").arg(beside(file)).stdin(fs::File::open(file).expect("a file"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn key(path: &Path) -> String {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path);
        assert!(command.status().expect("ssh-keygen").success());
        fs::read_to_string(path.with_extension("pub")).expect("a public key")
    }

    #[test]
    fn what_was_signed_verifies_and_nothing_else_does() {
        if !Path::new("/usr/bin/ssh-keygen").exists() {
            assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "openssh-client is missing");
            eprintln!("SKIPPED: needs openssh-client");
            return;
        }
        let folder = tempfile::tempdir().expect("room");
        let at = |name: &str| folder.path().join(name);
        let (ours, others) = (key(&at("ours")), key(&at("others")));
        fs::write(at("signers"), format!("releases {ours}")).expect("written");
        fs::write(at("other-signers"), format!("releases {others}")).expect("written");
        let file = at("SHA256SUMS");
        fs::write(&file, "of this\n").expect("written");
        sign(&file, &at("ours")).expect("signed");
        let first = fs::read(beside(&file)).expect("a signature");
        assert!(verifies(&file, &at("signers"), NAMESPACE));
        assert!(!verifies(&file, &at("other-signers"), NAMESPACE), "somebody else's");
        assert!(!verifies(&file, &at("signers"), "git"), "made for something else");
        fs::write(&file, "of that\n").expect("written");
        assert!(!verifies(&file, &at("signers"), NAMESPACE), "of another file");
        // Again, over the old one, and the same bytes for the same file.
        sign(&file, &at("ours")).expect("signed");
        assert!(verifies(&file, &at("signers"), NAMESPACE));
        fs::write(&file, "of this\n").expect("written");
        sign(&file, &at("ours")).expect("signed");
        assert_eq!(fs::read(beside(&file)).expect("a signature"), first);
        assert!(sign(&file, &at("nobody's")).is_err());
        assert!(!beside(&file).exists(), "what is not signed has no signature");
    }
}
