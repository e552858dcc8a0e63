//! Where things are: the workspace's root, its target folder and its members, as cargo tells them.
//!
//! Leaves judging the members to `tidy`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The workspace as `cargo metadata --no-deps` describes it.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) members: Vec<Member>,
}

/// One crate of the workspace.
pub(crate) struct Member {
    pub(crate) name: String,
    /// Folder of the manifest, relative to the root, with `/`.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line under `[dependencies]` and its sisters.
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) default_features: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Normal,
    Dev,
    Build,
}

/// `cargo build` of all programs. The end-to-end tests ask for the same packages: another choice could mean other
/// features of what they depend on, and then everything is compiled twice.
pub(crate) fn build_programs() -> Command {
    let mut command = cargo();
    command.args(["build", "-p", "control", "-p", "agent", "-p", "tracker", "-p", "utp2-tool", "--bins"]);
    command
}

/// The repository's root: two folders above this crate.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo as the one who started us wishes it: `cargo run` tells its own path.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    forget_package(&mut command);
    command
}

/// Takes away what `cargo run` and test runners tell about the package they run. A build script that looks at it
/// (`ring`'s does) would be run again whenever it changes, and everything above it be compiled again.
pub(crate) fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|p| text.starts_with(p))
        {
            command.env_remove(name);
        }
    }
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
            .output()
            .context("running cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Self::parse(&serde_json::from_slice(&output.stdout).context("reading cargo metadata")?)
    }

    fn parse(value: &Value) -> Result<Self> {
        let path = |key: &str| -> Result<PathBuf> {
            Ok(PathBuf::from(value[key].as_str().with_context(|| format!("cargo metadata has no {key}"))?))
        };
        let root = path("workspace_root")?;
        let target = path("target_directory")?;
        let packages = value["packages"].as_array().context("cargo metadata has no packages")?;
        let members = packages.iter().map(|p| Member::parse(p, &root)).collect::<Result<Vec<_>>>()?;
        Ok(Self { root, target, members })
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }
}

impl Member {
    fn parse(package: &Value, root: &Path) -> Result<Self> {
        let name = package["name"].as_str().context("a package without a name")?.to_owned();
        let manifest = Path::new(package["manifest_path"].as_str().context("a package without a manifest")?);
        let folder = manifest.parent().unwrap_or(manifest);
        let folder = folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().into_owned();
        let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let dependencies = dependencies
            .iter()
            .map(|d| Dependency {
                name: d["name"].as_str().unwrap_or_default().to_owned(),
                kind: match d["kind"].as_str() {
                    Some("dev") => Kind::Dev,
                    Some("build") => Kind::Build,
                    _ => Kind::Normal,
                },
                default_features: d["uses_default_features"].as_bool().unwrap_or(true),
            })
            .collect();
        Ok(Self { name, folder, dependencies })
    }
}
