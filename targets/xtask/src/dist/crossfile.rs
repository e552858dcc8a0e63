//! `Cross.toml`, for people with a container engine: `cross` then builds the agents in images of its own, with nothing
//! installed. Made of the table; what is shipped is built by `cross`'s namesake module here, without containers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::cross::PAGES;
use super::table::Table;

/// At the root, where `cross` looks for it.
const FILE: &str = "Cross.toml";

/// Writes it anew.
pub(super) fn write(root: &Path) -> Result<()> {
    Ok(fs::write(root.join(FILE), text(&Table::of(root)?)?)?)
}

fn text(table: &Table) -> Result<String> {
    let mut text = String::from(
        "# Made by `cargo xtask dist --table` from targets/targets.toml. For github.com/cross-rs/cross and a container engine:\n\
         #   cross build --locked --profile dist --package agent --target TRIPLE\n\
         # Its images have a compiler and a musl of their own: the bytes are not those of `cargo xtask dist`.\n",
    );
    for program in table.programs.iter().filter(|program| !program.service) {
        // The variable's name has the target in it, so that build scripts are compiled without the flag.
        let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", program.triple.to_uppercase().replace('-', "_"));
        writeln!(text, "\n# {}", program.cpu)?;
        writeln!(text, "[target.{}.env]\npassthrough = [\"{variable}={PAGES}\"]", program.triple)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::root;

    #[test]
    fn the_file_agrees_with_the_table() {
        let made = text(&Table::of(&root()).expect("a table")).expect("made");
        let there = fs::read_to_string(root().join(FILE)).expect("a file");
        assert!(made == there, "run `cargo xtask dist --table`: it should have\n{made}");
        let read: toml::Table = made.parse().expect("TOML");
        let armv5 = &read["target"]["armv5te-unknown-linux-musleabi"]["env"]["passthrough"][0];
        assert_eq!(
            armv5.as_str(),
            Some(
                "CARGO_TARGET_ARMV5TE_UNKNOWN_LINUX_MUSLEABI_RUSTFLAGS=-Clink-arg=-Wl,-z,max-page-size=65536"
            )
        );
    }
}
