//! What takes how much of the firmware: its symbols, crate by crate.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::grouped;

/// Crates that take less are one line.
const LEAST: u64 = 1000;
/// What the program consists of, as sections.
const PROGRAM: [&str; 4] = [".vector_table", ".text", ".rodata", ".data"];

/// Prints a table as `docs/devices.md` has it.
pub(super) fn print(program: &Path) -> Result<()> {
    let bytes = std::fs::read(program).with_context(|| program.display().to_string())?;
    let file = object::File::parse(&*bytes)?;
    let section = |name: &str| file.section_by_name(name).map_or(0, |section| section.size());
    let whole: u64 = PROGRAM.iter().map(|name| section(name)).sum();
    let (mut crates, mut places) = (BTreeMap::<String, u64>::new(), BTreeSet::new());
    for symbol in file.symbols() {
        let inside = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        let inside = inside.is_some_and(|section| section.name().is_ok_and(|name| PROGRAM.contains(&name)));
        // Functions with the same code have one place.
        if inside && symbol.size() > 0 && places.insert(symbol.address()) {
            *crates.entry(owner(symbol.name()?)).or_default() += symbol.size();
        }
    }
    let named: u64 = crates.values().sum();
    crates.insert("texts and constants without a name".into(), whole.saturating_sub(named));
    let mut rows: Vec<_> = crates.into_iter().collect();
    rows.sort_by_key(|(name, size)| (Reverse(*size), name.clone()));
    println!("| | bytes |\n|---|---|");
    for (name, size) in rows.iter().filter(|row| row.1 >= LEAST) {
        println!("| {name} | {} |", grouped(*size));
    }
    let small: Vec<_> = rows.iter().filter(|row| row.1 < LEAST).collect();
    println!("| {} others | {} |", small.len(), grouped(small.iter().map(|row| row.1).sum()));
    println!("| **program** | **{}** |", grouped(whole));
    println!("| **memory without stack** | **{}** |", grouped(section(".data") + section(".bss")));
    Ok(())
}

/// Whose a symbol is: the first crate in its name, which begins with its length (Rust's mangling, version 0).
fn owner(symbol: &str) -> String {
    if symbol.starts_with("OUTLINED_FUNCTION") {
        return "what functions have in common".into();
    }
    let other = || "start and interrupts".into();
    let Some(path) = symbol.strip_prefix("_R") else { return other() };
    path.match_indices('C').find_map(|(at, _)| crate_at(&path[at + 1..])).unwrap_or_else(other)
}

/// The crate's name, if one begins here: a number to tell it from others of the name, `s…_`, and the name.
fn crate_at(path: &str) -> Option<String> {
    let path = path.strip_prefix('s').map_or(Some(path), |path| Some(path.split_once('_')?.1))?;
    let digits = path.find(|c: char| !c.is_ascii_digit())?;
    let name = path[digits..].get(..path[..digits].parse().ok()?)?;
    let good = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    good.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_their_crates() {
        for (symbol, name) in [
            ("_RNvMs_NtCs1C4x_4utp28endpointNtB4_8Endpoint15handle_datagram", "utp2"),
            ("_RNvNtC4core3fmt5write", "core"),
            ("_RNvXsC_NtCs9_5alloc3vecINtB5_3VecpE4drop", "alloc"),
            ("OUTLINED_FUNCTION_7", "what functions have in common"),
            ("Reset", "start and interrupts"),
            ("_R", "start and interrupts"),
        ] {
            assert_eq!(owner(symbol), name, "{symbol}");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_005, "1,234,005")] {
            assert_eq!(grouped(number), text);
        }
    }
}
